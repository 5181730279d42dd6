"""How different the samples of one prompt are: what reward maximisation destroys first and what no reward sees.

The figure is one a prompt, NaN where a prompt has fewer than two samples to compare.
"""
from typing import Callable, NamedTuple

import numpy as np

from rewards import scenes as world
from rewards.scenes.reward import detected


class Diversity(NamedTuple):
  """measure(images uint8 [P n H W C] or clips [P n F H W C], meta list of P dicts, correct bool [P n]) -> float [P]."""
  measure: Callable


def pairs(values: np.ndarray) -> float:
  """Mean distance over the pairs of values [n D], divided by sqrt(D): 0 for identical samples."""
  n = len(values)
  if n < 2:
    return float("nan")
  square = (values ** 2).sum(1)
  distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * values @ values.T, 0) / values.shape[1])
  return float(distance[np.triu_indices(n, 1)].mean())


def pixels(correct_only: bool = False) -> Diversity:
  """Root-mean-square pixel distance in [0, 1], over all samples of a prompt or only the correct ones."""
  def measure(images, meta, correct):
    flat = images.reshape(*images.shape[:2], -1).astype(np.float64) / 255
    return np.array([pairs(x[c] if correct_only else x) for x, c in zip(flat, correct, strict=True)])
  return Diversity(measure)


def scenes() -> Diversity:
  """Distance of the attributes that a caption leaves open, among its correct samples (scenes/diversity.py)."""
  def measure(images, meta, correct):
    p, n = images.shape[:2]
    found = detected(images.reshape((p * n,) + images.shape[2:]))
    specs = [m for m in meta for _ in range(n)]
    return np.asarray(world.diversity(specs, found, np.asarray(correct).reshape(-1), n))
  return Diversity(measure)
