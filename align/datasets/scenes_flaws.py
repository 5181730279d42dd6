"""Pairs of clips of Scenes with planted defects, judged dimension by dimension: what rewards are learned from.

  content  whether it is what the caption says; else another clip
  motion   whether it moves as it should; else frozen or shaken (rewards/scenes/defects.py)
  looks    whether it looks well; else hazy, blurred or noisy

Each candidate has each defect with a probability of its own. As in Seedance (2506.09113) a pair is kept for a dimension
only if the better one is no worse on every other dimension, so that no reward learns to give up one for another; here
defects are drawn until that is so. Left out: degrees of a defect, ties.
"""
import random

import numpy as np

from align.build import UserError, nearest
from align.data import Source
from rewards import scenes
from rewards.scenes import defects

DIMENSIONS = ("content", "motion", "looks")
TRIALS = 200


def flawed(rng: random.Random, clip: np.ndarray, other: np.ndarray, good: dict) -> np.ndarray:
  """uint8 [F H W 3] with the defects of the dimensions that are not good; other: a clip of something else."""
  clip = clip if good["content"] else other
  clip = clip if good["motion"] else defects.moved_badly(rng, clip)
  return clip if good["looks"] else defects.looking_badly(rng, clip)


def graded(rng: random.Random, dimension: str, chance: float) -> tuple[dict, dict]:
  """{dimension: whether it is good} of the better and of the worse one."""
  other = [name for name in DIMENSIONS if name != dimension]
  worse = {dimension: False, **{name: rng.random() >= chance for name in other}}
  better = {dimension: True, **{name: worse[name] or rng.random() >= chance for name in other}}
  return better, worse


def different(rng: random.Random, draw, motion: list) -> np.ndarray:
  """A clip of a thing that `motion` does not name."""
  for _ in range(TRIALS):
    media, _, spec = draw(rng)
    if not any(thing in spec["motion"] for thing in motion):
      return media
  raise UserError(f"scenes flaws: {TRIALS} clips all show {motion[0]}; give the world more shapes or colors")


def make(split: str = "train", count: int = 10_000, *, dimension: str = "content", chance: float = 0.3, size: int = 16,
         frames: int = 6, seed: int = 0, shapes: tuple[str, ...] = scenes.SHAPES,
         colors: tuple[str, ...] = tuple(scenes.COLORS), most: int = 1) -> Source:
  """Records: "win", "lose" uint8 [F size size 3], "prompt", "meta", the spec of the caption with "dimension" and
  "good" {"win": {dimension: bool}, "lose": ...}. Record i is a pure function of (seed, split, i) and the other options.

  Args:
    split: "train" or "test": which things captions name; none is in both. count: records.
    dimension: in which the two differ. chance: of a defect of each other dimension.
    size, frames, shapes, colors, most: of clips, as in scenes.py.

  Raises: UserError for a value that is impossible.
  """
  if dimension not in DIMENSIONS:
    raise UserError(f"scenes flaws: dimension = {dimension!r} is not one of {', '.join(DIMENSIONS)}; choose one of "
                    f"them{nearest(dimension, DIMENSIONS)}")
  if not 0 <= chance < 1 or count < 1:
    raise UserError(f"scenes flaws: chance = {chance}, count = {count}; chance is 0 or more and below 1, count 1 or "
                    "more: correct the one that is outside")

  def draw(rng):
    media, texts, specs = scenes.clip.batch(seed, rng.getrandbits(40), 1, split, size, frames, world)
    return media[0], texts[0], specs[0]

  def record(index):
    rng = random.Random(f"flaws/{seed}/{split}/{dimension}/{index}")
    media, text, spec = draw(rng)
    better, worse = graded(rng, dimension, chance)
    win, lose = (flawed(rng, media, different(rng, draw, spec["motion"]), good) for good in (better, worse))
    return {"prompt": text, "win": win, "lose": lose,
            "meta": {**spec, "dimension": dimension, "good": {"win": better, "lose": worse}}}

  try:
    world = scenes.make_world(shapes=tuple(shapes), colors=tuple(colors), most=most)
    record(0)
  except ValueError as error:
    raise UserError(str(error)) from None
  return Source(count, record, f"scenes_flaws/{dimension}/{split}")
