"""The task that writes a data set to disk once, so that training reads it with Grain instead of making it again.

A data set that is complete already is left as it is. Pairs come from `collect`, a user's own files need no preparation.
"""
import functools
from typing import Callable

from align import build
from align.datasets import scenes_builder
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
