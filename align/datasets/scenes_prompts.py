"""Captions of the procedural world Scenes to sample from, without pictures, balanced over the categories; or those of
its clips."""
from align.build import UserError
from align.data import Source
from rewards import scenes


def make(split: str = "test", count: int = 480, *, seed: int = 0, categories: tuple[str, ...] | None = None,
         shapes: tuple[str, ...] = scenes.SHAPES, colors: tuple[str, ...] = tuple(scenes.COLORS),
         most: int = 4, detail: float = 1.0, frames: int = 0) -> Source:
  """Records {"prompt", "meta"}; record i is of category i modulo their number.

  Args:
    split: "test" for combinations that no training caption names, or "train".
    count: prompts. Combinations come again, in other words where they have some, when there are fewer.
    seed: of their order and words.
    categories: names among the six of GenEval and "long", by default the six.
    shapes, colors, most: the objects of the world, and how many of them a scene has at most.
    detail: the share of long captions that tell sizes, and, independently, of those that tell places.
    frames: 0 for pictures; more for clips, which have no categories, and whose captions do not depend on how many.

  Raises: UserError for an unknown split or category, or a count below 1.
  """
  if count < 1 or frames < 0 or frames == 1:
    raise UserError(f"scenes prompts: count={count}, frames={frames}; count is 1 or more, frames 0 or at least 2: "
                    "correct the one that is outside")
  if frames and categories:
    raise UserError(f"scenes prompts: categories={tuple(categories)} with frames={frames}, but clips have none; leave "
                    "one of them out")
  try:
    world = scenes.make_world(shapes=tuple(shapes), colors=tuple(colors), most=most, detail=detail)
    prompts = (scenes.clip.prompts(split, count, seed, world) if frames else
               scenes.prompts(split, count, seed, categories and tuple(categories), world))
  except ValueError as error:
    raise UserError(str(error)) from None
  return Source(count, lambda i: {"prompt": prompts[i][0], "meta": prompts[i][1]}, f"scenes_prompts/{split}")
