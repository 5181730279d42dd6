"""The task that writes a data set to disk once, so that training reads it with Grain instead of making it again, or the
folder of a model that a run begins from.

A data set that is complete already is left as it is. Pairs come from `collect`, a user's own files need no preparation.
"""
import functools
from typing import Callable

from align import build
from align.datasets import scenes_builder, scenes_questions
from diffusion import vlm_small
from rewards.scenes import world


def run(config: dict, workdir: str) -> dict:
  return prepare(workdir, **{k: v for k, v in config.items() if k != "task"})


def prepare(workdir: str, *, dataset: dict, seed: int = 0) -> dict:
  """Writes the data set (a function of this module) below `workdir`, which a reader's `data_dir` or `path` takes."""
  return {"path": build.build("align.prepare", dataset)(workdir, seed=seed)}


def scenes(size: int = 16, count: int = 20_000, categories: tuple[str, ...] | None = None,
           shapes: tuple[str, ...] = world.SHAPES, colors: tuple[str, ...] = tuple(world.COLORS),
           most: int = 4) -> Callable:
  """Renders of the procedural world with their captions (datasets/scenes_builder.py)."""
  return functools.partial(scenes_builder.prepare, size=size, count=count, categories=categories, shapes=shapes,
                           colors=colors, most=most)


def judge(width: int = 128, depth: int = 4, tower: int = 3, heads: int = 4, patch: int = 8, merge: int = 1) -> Callable:
  """A small vision-language model with random weights, whose words are those of datasets/scenes_questions.py."""
  return functools.partial(vlm_small.write, words=tuple(scenes_questions.texts()), width=width, depth=depth,
                           tower=tower, heads=heads, patch=patch, merge=merge)
