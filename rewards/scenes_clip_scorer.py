"""A differentiable judge of what clips of Scenes show, learned from renders: which thing is where in every frame.

The network of scenes_scorer.py looks at each frame by itself; a caption's things are then worked out analytically on
its probabilities: whether a thing of that shape and colour is there, mean over the frames, and how its soft place moves
along the asked direction, a line fitted over the frames by least squares. The exact verdict (scenes/clip.py) is the
reference, this is its smooth stand-in for reward gradients. Places are known to a cell of 8 only. Trained by `fit` on
renders, or by `compare` on pairs, through the same parameters. The product of the parts is as strict as the exact
verdict and has hardly a gradient where a clip is wrong in two of them; their mean has. Left out: things that pass out
of sight.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rewards.core import Reward, Scores
from rewards.motion import check_clips
from rewards.scenes import clip
from rewards.scenes_scorer import CENTRE, KINDS, Net, check, labels, learned, stacked

THINGS = 2
TOTALS = {"product": lambda parts: jnp.prod(jnp.stack(parts), 0), "mean": lambda parts: jnp.stack(parts).mean(0)}
BLUR = .04  # of a way, in sides: how sharp the bounds of what counts as moving, and as quick, are
SIDEWAYS = np.sqrt(1 - .8 ** 2) / .8  # what clip.py allows beside the way


def encoded(spec: dict) -> dict:
  """Things of a spec as arrays: kind [2 18], direction [2 2], quick [2], used [2]."""
  out = {"kind": np.zeros((THINGS, len(KINDS)), np.float32), "direction": np.zeros((THINGS, 2), np.float32),
         "quick": np.zeros(THINGS, np.float32), "used": np.zeros(THINGS, np.float32)}
  for i, thing in enumerate(spec["motion"]):
    out["kind"][i, KINDS.index((thing["class"], thing["color"]))] = 1
    out["direction"][i], out["used"][i] = clip.DIRECTIONS[thing["direction"]], 1
    out["quick"][i] = thing["speed"] == "quickly"
  return out


def cells(spec: dict, frames: int) -> np.ndarray:
  """[F 8 8] int32 classes of a render's frames, see scenes_scorer.labels."""
  at = lambda o, s: {**o, "x": o["x"] + s * o["dx"], "y": o["y"] + s * o["dy"]}
  return np.stack([labels([at(o, s) for o in spec["objects"]]) for s in np.linspace(0, 1, frames)])


def moved(found) -> jax.Array:
  """[B T 2] the way of things over the whole clip, in sides, from how likely they are where, [B T F 8 8]."""
  weight = found.sum((3, 4))
  at = jnp.stack([jnp.einsum("btfyx,x->btf", found, CENTRE), jnp.einsum("btfyx,y->btf", found, CENTRE)], -1)
  at = at / jnp.maximum(weight, 1e-3)[..., None]
  share = weight / jnp.maximum(weight.sum(2, keepdims=True), 1e-3)
  time = jnp.linspace(0, 1, found.shape[2])
  centre = lambda v: v - jnp.einsum("btf,btf...->bt...", share, v)[:, :, None]
  late, away = centre(jnp.broadcast_to(time, weight.shape)), centre(at)
  spread = jnp.einsum("btf,btf->bt", share, late ** 2)
  return jnp.einsum("btf,btf,btfk->btk", share, late, away) / jnp.maximum(spread, 1e-3)[..., None]


def judged(probabilities, things: dict, sharpness: float) -> dict:
  """Parts [B] in [0, 1] of probabilities [B F 8 8 19] against encoded specs [B ...]."""
  found = jnp.einsum("bfyxk,btk->btfyx", probabilities[..., 1:], things["kind"])
  used = lambda value: jnp.where(things["used"] > 0, value, 1.0).prod(1)
  there = jax.nn.sigmoid((found.sum((3, 4)) - 0.5) * sharpness).mean(2)
  way = moved(found)
  along = (way * things["direction"]).sum(-1)
  beside = jnp.abs(way[..., 0] * things["direction"][..., 1]) + jnp.abs(way[..., 1] * things["direction"][..., 0])
  least = jnp.maximum(clip.STILL, beside / SIDEWAYS)
  quick = jax.nn.sigmoid((along - clip.FAST) / BLUR)
  speed = jnp.where(things["quick"] > 0, quick, 1 - quick)
  return {"present": used(there), "straight": used(jax.nn.sigmoid((along - least) / BLUR)), "speed": used(speed)}


def make(size: int = 16, width: int = 32, sharpness: float = 6.0, noise: float = 0.1,
         total: str = "product") -> Reward:
  """The reward of clips [B F H W 3] in [0, 1]; `total` is the "product" or the "mean" of the parts. Other options as in
  scenes_scorer.py.

  Raises: ValueError for another total, and as scenes_scorer.py."""
  check(size, width)
  if total not in TOTALS:
    raise ValueError(f"total = {total!r} is not one of {', '.join(TOTALS)}; choose one of them")
  net = Net(width)

  def init(key):
    return {"net": net.init(key, jnp.zeros((1, size, size, 3)))["params"]}

  def prepare(batch):
    out = {**batch, "things": stacked([encoded(m) for m in described(batch)])}
    if "media" not in batch:
      return out
    return {**out, "cells": np.stack([cells(m, batch["media"].shape[1]) for m in batch["meta"]])}

  def logits(view, media):
    check_clips("scenes_clip_scorer", media.shape)
    out = net.apply({"params": view["net"]}, 2 * media.reshape(-1, *media.shape[2:]) - 1)
    return out.reshape(*media.shape[:2], *out.shape[1:])

  def score(view, batch, media, keys):
    parts = judged(jax.nn.softmax(logits(view, media)), batch["things"], sharpness)
    whole = TOTALS[total](list(parts.values()))
    return Scores(whole, parts, jnp.isfinite(whole))

  def fit(view, batch, keys):
    loss, right = learned(functools.partial(logits, view), batch, keys, noise)
    return loss.mean(1), {"accuracy": right.mean(1)}

  return Reward(init, prepare, score, "gradient", None, fit)


def described(batch: dict) -> list:
  """The specs of a batch. ValueError where one is of no clip."""
  specs = batch.get("meta") or [{}]
  for spec in specs:
    if "motion" not in spec or len(spec["motion"]) > THINGS:
      raise ValueError(f"batch['meta'] has {spec!r}; scenes_clip_scorer judges specs of clips with at most {THINGS} "
                       "things: choose prompts of Scenes with frames, or the exact reward 'scenes'")
  return specs
