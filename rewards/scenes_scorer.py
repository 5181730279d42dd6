"""A differentiable judge of Scenes, learned from renders: what stands where, cell by cell, and captions scored on that.

A small CNN says for each of 8x8 cells whether the centre of an object lies in it and, if so, of which shape and colour.
A caption's clauses are then worked out analytically on these probabilities: soft counts of what a clause describes,
soft places, soft relations between pairs of cells. The exact verdict (scenes/check.py) is the reference, this is its
smooth stand-in for reward gradients. Centres are known to a cell only, so relations near the border of what counts are
uncertain. Left out: long captions, clips, sizes.
"""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.nets.layers import Conv
from rewards.core import Reward, Scores
from rewards.scenes import world as worlds

CELLS = 8
KINDS = [(shape, color) for shape in worlds.SHAPES for color in worlds.COLORS]  # class k + 1 of a cell, 0 is none
CLAUSES = 2
PARTS = ("present", "placed", "related", "surplus")
RELATIONS = tuple(worlds.RELATIONS)
CENTRE = (np.arange(CELLS) + 0.5) / CELLS
MARGIN, BAND = 0.08, 0.06  # as in check.py: dead bands of a place, and (of the side, about) of a relation


class Net(nn.Module):
  """[B H W 3] in [-1, 1] -> logits [B 8 8 19]; halved until 8 cells remain a side."""
  width: int

  @nn.compact
  def __call__(self, x):
    norm = lambda h: nn.silu(nn.GroupNorm(num_groups=8)(h))
    x = norm(Conv(self.width, (3, 3))(x))
    while x.shape[1] > CELLS:
      x = norm(Conv(self.width, (4, 4), strides=2)(x))
    for _ in range(2):
      x = x + norm(Conv(self.width, (3, 3))(x))
    return nn.Dense(1 + len(KINDS))(x)


def labels(objects: list) -> np.ndarray:
  """[8 8] int32: the class of the object whose centre lies in a cell, 0 where there is none."""
  out = np.zeros((CELLS, CELLS), np.int32)
  for o in objects:
    row, column = (min(int(o[axis] * CELLS), CELLS - 1) for axis in "yx")
    out[row, column] = 1 + KINDS.index((o["shape"], o["color"]))
  return out


def place_mask(name: str) -> np.ndarray:
  """[8 8]: how far a cell lies on that side of the middle, 1 everywhere where no place is asked for."""
  out = np.ones((CELLS, CELLS), np.float32)
  for sign, at in zip(worlds.PLACES.get(name, (0, 0)), (CENTRE[None], CENTRE[:, None]), strict=True):
    out = out / (1 + np.exp(-(sign * (at - 0.5) - MARGIN) / 0.03)) if sign else out
  return out.astype(np.float32)


def relation_masks() -> np.ndarray:
  """[4 64 64]: how much cell i stands in each relation to cell j, by GenEval's rule for box centres."""
  y, x = (a.reshape(-1) for a in np.meshgrid(CENTRE, CENTRE, indexing="ij"))
  offset = np.stack([x[:, None] - x[None], y[:, None] - y[None]], -1)
  length = np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), 1e-6)
  share = np.sign(offset) * np.maximum(np.abs(offset) - BAND, 0) / length
  along = np.stack([share @ np.array(worlds.RELATIONS[name], float) for name in RELATIONS])
  return (1 / (1 + np.exp(-(along - 0.5) / 0.08))).astype(np.float32)


def encoded(spec: dict) -> dict:
  """Clauses of a spec as arrays: kinds [2 18], place [2 8 8], count [2], used [2], relation [4] (of clause 1 to 0),
  and of what there may not be too many: surplus [18] and its count."""
  out = {"kinds": np.zeros((CLAUSES, len(KINDS)), np.float32), "place": np.ones((CLAUSES, CELLS, CELLS), np.float32),
         "count": np.zeros(CLAUSES, np.float32), "used": np.zeros(CLAUSES, np.float32),
         "relation": np.zeros(len(RELATIONS), np.float32), "surplus": np.zeros(len(KINDS), np.float32),
         "most": np.float32(0)}
  fits = lambda clause: [clause["class"] in ("object", s) and clause.get("color", c) == c for s, c in KINDS]
  for i, clause in enumerate(spec["include"]):
    out["kinds"][i], out["count"][i], out["used"][i] = fits(clause), clause["count"], 1
    out["place"][i] = place_mask(clause.get("place", ""))
    if "position" in clause:
      out["relation"][RELATIONS.index(clause["position"][0])] = 1
  for clause in spec["exclude"]:
    out["surplus"], out["most"] = np.array(fits(clause), np.float32), np.float32(clause["count"])
  return out


def judged(cells, spec: dict, sharpness: float) -> dict:
  """Parts [B] in [0, 1] of probabilities [B 8 8 19] against encoded specs [B ...]; 1 where nothing is asked."""
  found = jnp.einsum("byxk,bck->bcyx", cells[..., 1:], spec["kinds"])            # of each clause, cell by cell
  enough = lambda n, count: jax.nn.sigmoid((n - (count - 0.5)) * sharpness)
  used = lambda value: jnp.where(spec["used"] > 0, value, 1.0).prod(1)
  present = used(enough(found.sum((2, 3)), spec["count"]))
  placed = used(enough((found * spec["place"]).sum((2, 3)), spec["count"]))
  first, second = (found[:, i].reshape(len(found), -1) for i in (0, 1))
  holds = jnp.einsum("br,rij->bij", spec["relation"], relation_masks())
  pairs = jnp.einsum("bi,bij,bj->b", second, holds, first)
  related = pairs / jnp.maximum(first.sum(1) * second.sum(1), 1e-3)
  related = jnp.where(spec["relation"].sum(1) > 0, jnp.minimum(related, 1.0), 1.0)
  many = jnp.einsum("byxk,bk->b", cells[..., 1:], spec["surplus"])
  surplus = jnp.where(spec["most"] > 0, 1 - enough(many, spec["most"]), 1.0)
  return dict(zip(PARTS, (present, placed, related, surplus), strict=True))


def check(size: int, width: int) -> None:
  if size < 8 or size % 8 or (size // 8) & (size // 8 - 1):
    raise ValueError(f"size = {size} must be 8 times a power of two, for {CELLS} cells a side; 16, 32 and 64 are usual")
  if width < 8 or width % 8:
    raise ValueError(f"width = {width} must be a positive multiple of 8, for the groups of its norms; change it")


def make(size: int = 16, width: int = 32, sharpness: float = 6.0, noise: float = 0.1) -> Reward:
  """Args: size: pixels of a side, 8 times a power of 2. sharpness: of soft counts, per object. noise: the standard
  deviation up to which pixels in [0, 1] are disturbed in training. `total` is the product of the parts."""
  check(size, width)
  net = Net(width)

  def init(key):
    return {"net": net.init(key, jnp.zeros((1, size, size, 3)))["params"]}

  def prepare(batch):
    out = {**batch, "scene": stacked([encoded(m) for m in described(batch)])}
    return {**out, "cells": np.stack([labels(m["objects"]) for m in batch["meta"]])} if "media" in batch else out

  def logits(view, media):
    return net.apply({"params": view["net"]}, 2 * media - 1)

  def score(view, batch, media, keys):
    parts = judged(jax.nn.softmax(logits(view, media)), batch["scene"], sharpness)
    total = parts["present"] * parts["placed"] * parts["related"] * parts["surplus"]
    return Scores(total, parts, jnp.isfinite(total))

  def fit(view, batch, keys):
    loss, right = learned(functools.partial(logits, view), batch, keys, noise)
    return loss, {"accuracy": right}

  return Reward(init, prepare, score, "gradient", None, fit)


def stacked(specs: list) -> dict:
  """[B] {name: array} -> {name: [B ...]}."""
  return {name: np.stack([spec[name] for spec in specs]) for name in specs[0]}


def learned(logits: Any, batch: dict, keys: Any, noise: float) -> tuple[Any, Any]:
  """(-ln p summed over the cells, whether all are right) of disturbed media, each [B], of clips [B F].

  logits: (media in [0, 1]) -> [B .. h w K]. Of every sample the noise has a strength of its own, up to `noise`."""
  media, cells = batch["media"].astype(jnp.float32) / 255, batch["cells"]
  jitter = jax.vmap(lambda k: jax.random.uniform(k) * jax.random.normal(jax.random.fold_in(k, 1), media.shape[1:]))
  out = logits(media + noise * jitter(keys))
  loss = -jnp.take_along_axis(jax.nn.log_softmax(out), cells[..., None], -1)[..., 0].sum((-2, -1))
  return loss, (out.argmax(-1) == cells).all((-2, -1)).astype(jnp.float32)


def described(batch: dict) -> list:
  """The specs of a batch. ValueError where one is none, or of a kind that is left out."""
  specs = batch.get("meta") or [{}]
  for spec in specs:
    if "include" not in spec or spec.get("category") == "long" or len(spec["include"]) > CLAUSES:
      raise ValueError(f"batch['meta'] has {spec!r}; scenes_scorer judges specs of the six categories of Scenes: "
                       "choose such prompts, or the exact reward 'scenes'")
  return specs
