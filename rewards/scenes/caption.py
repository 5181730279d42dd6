"""Combinations to words: captions by templates with paraphrases, and the clauses that a check reads.

Clauses follow GenEval's metadata (Ghosh et al. 2023): `include` is a list of {"class", "count", "color"?, "position"?:
[relation, index of the target clause]}, with the target first, and `exclude` lists counts that are too many. `place`
(where in the image) is the only addition. Captions are lower case, without punctuation.
"""
from rewards.scenes import world as worlds
from rewards.scenes.combos import NUMBERS

PREFIXES = ("a photo of", "a photo of", "a picture of", "an image of", "")
WORDINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under"),
}


def noun(thing, count=1):
  """`a red circle`, `two circles`."""
  shape, color, _ = thing
  words = [color, shape] if color else [shape]
  if count > 1:
    return " ".join([NUMBERS[count], *words]) + "s"
  return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def place(name, rng):
  """`at the top left`, `on the left`."""
  preposition = "on" if name in ("left", "right") and rng.random() < .5 else "at"
  return f"{preposition} the {name}"


def caption(combo, rng):
  """Words for a combination.

  Args:
    combo: a `Combo`.
    rng: random.Random or anything with `random()`; it chooses the wording, never the meaning.

  Returns:
    The caption and the things in the order in which they are named, with the relation from the first to the second.
  """
  things, relation = list(combo.things), combo.relation
  if len(things) == 2 and rng.random() < .5:
    things, relation = things[::-1], worlds.OPPOSITE.get(relation, "")
  first = noun(things[0], combo.count)
  if combo.category == "single" and things[0][2]:
    first = f"{first} {place(things[0][2], rng)}"
  elif combo.category == "color" and rng.random() < .3:
    first = f"{noun((things[0][0], '', ''))} that is {things[0][1]}"
  elif combo.category == "count" and rng.random() < .25:
    first = f"exactly {first}"
  elif relation:
    first = f"{first} {choose(WORDINGS[relation], rng)} {noun(things[1])}"
  elif len(things) == 2:
    first = f"{first} {'with' if rng.random() < .3 else 'and'} {noun(things[1])}"
  return f"{choose(PREFIXES, rng)} {first}".strip(), things, relation


def choose(options, rng):
  """One of a sequence."""
  return options[int(rng.random() * len(options))]


def clauses(combo, things, relation):
  """GenEval-like `include` and `exclude` of what a caption says.

  Args:
    combo: the `Combo` of the caption.
    things: its things as named, from `caption`.
    relation: from the first to the second, "" if there is none.

  Returns:
    A dict with `include` and `exclude`.
  """
  include = []
  for shape, color, where in (things[::-1] if relation else things):
    clause = {"class": shape, "count": combo.count}
    clause.update({"color": color} if color else {})
    clause.update({"place": where} if where else {})
    include.append(clause)
  if relation:
    include[1]["position"] = [relation, 0]
  exclude = [{"class": combo.things[0][0], "count": combo.count + 1}] if combo.category == "count" else []
  return {"include": include, "exclude": exclude}
