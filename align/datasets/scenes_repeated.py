"""A few captions of Scenes, each again and again in the same words: what alignment with a single prompt learns from."""
from align.build import UserError
from align.data import Source
from rewards import scenes


def make(combos: dict, count: int = 96, *, seed: int = 0) -> Source:
  """Records {"prompt", "meta"}; record i is of prompt i modulo their number, and every record has noise of its own.

  Args:
    combos: {name: combination}, such as {"seen": "two/1/none/circle-red/square"}, by its canonical name
      (rewards/scenes/combos.py), of whichever split. The name is the record's category.
    count: records. seed: of the words.

  Raises: UserError for an unknown combination, none, or a count below 1.
  """
  if count < 1 or not combos:
    raise UserError(f"scenes repeated: combos={combos}, count={count}; at least one of each is needed: correct it")
  try:
    said = [(name, *scenes.prompt(key, seed)) for name, key in combos.items()]
  except ValueError as error:
    raise UserError(str(error)) from None

  def record(index):
    name, text, spec = said[index % len(said)]
    return {"prompt": text, "meta": {**spec, "category": name}}
  return Source(count, record, "scenes_repeated")
