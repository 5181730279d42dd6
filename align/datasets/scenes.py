"""Renders of the procedural world Scenes with captions: drawn on the fly, or read from what scenes_builder.py wrote."""
import math
from pathlib import Path

from align.build import UserError
from align.data import Source
from align.datasets import tfds
from rewards import scenes


def make(split: str = "train", count: int = 100_000, *, size: int = 16, seed: int = 0,
         categories: tuple[str, ...] | None = None, weights: tuple[float, ...] | None = None, frames: int = 0,
         shapes: tuple[str, ...] = scenes.SHAPES, colors: tuple[str, ...] = tuple(scenes.COLORS), most: int = 4,
         detail: float = 1.0, data_dir: str | None = None) -> Source:
  """Records: "media" uint8 [size size 3], "prompt", "meta" (the spec, see rewards/scenes).

  Args:
    split: "train" or "test": which combinations captions name; none is in both.
    count: records. On the fly, record i is a pure function of (seed, split, i); above a million, prepare them on disk.
    size: pixels of a side.
    seed: another one, other scenes.
    categories: names among the six of GenEval and "long", by default the six.
    weights: their relative frequencies, by default equal.
    frames: 0 for pictures; of clips [F size size 3] instead, without categories.
    shapes, colors, most: the objects of the world, and how many of them a scene has at most, which says how difficult
      it is. Prompts must be of the same world.
    detail: the share of long captions that tell sizes, and, independently, of those that tell places.
    data_dir: folder of a prepared version (it holds dataset_info.json); everything else but split and count then comes
      from there, and fewer records than `count` are an error.

  Raises: UserError for a value that is impossible, or that the prepared data set does not have.
  """
  if count < 1 or size < 12 or frames < 0 or frames == 1:
    raise UserError(f"scenes: count={count}, size={size}, frames={frames}; count is 1 or more, size 12 or more, "
                    "frames 0 or at least 2: correct the one that is outside")
  if frames and data_dir is not None:
    raise UserError(f"scenes: frames={frames} with data_dir={data_dir!r}, but only pictures are prepared on disk; "
                    "leave data_dir out, and clips are drawn on the fly")
  if data_dir is not None:
    return prepared(data_dir, split, count, size)
  categories, weights = categories and tuple(categories), weights and tuple(weights)

  def record(index):
    if frames:
      media, texts, specs = scenes.clip.batch(seed, index, 1, split, size, frames, world)
    else:
      media, texts, specs = scenes.batch(seed, index, 1, split, size, categories, weights, world)
    return {"media": media[0], "prompt": texts[0], "meta": specs[0]}

  try:
    world = scenes.make_world(shapes=tuple(shapes), colors=tuple(colors), most=most, detail=detail)
    record(0)
  except ValueError as error:
    raise UserError(str(error)) from None
  return Source(count, record, f"scenes/{split}")


def prepared(data_dir: str, split: str, count: int, size: int) -> Source:
  """The first `count` records of a data set that scenes_builder.py wrote; `split` is "train" or "test"."""
  source = tfds.make(str(Path(data_dir).expanduser()), split)
  if source.size < count:
    raise UserError(f"scenes: count={count}, but {data_dir!r} holds {source.size} records of split {split!r}; ask for "
                    "fewer, or prepare more")
  found = source.record(0)["media"].shape
  if math.prod(found) != size * size * 3:
    raise UserError(f"scenes: size={size}, but {data_dir!r} holds pictures of shape {found}; set size={found[0]} or "
                    "prepare others")
  return source._replace(size=count)
