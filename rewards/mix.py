"""A weighted sum of rewards, after bringing each to a common scale.

  none        weights times scores as they are
  batch       z-score over the valid samples of the call
  group       z-score over those of each prompt (DanceGRPO, MixGRPO); runs of samples that begin with sample_id 0
  frozen      z-score by stored statistics, leaves mix/NAME/mean and std, set once from samples of the base when a run
              begins (`calibration`), the form for a composite of several rewards

A sample that one part could not score is invalid as a whole. The mixture may be called where its least capable part
may. Left out: GDPO, which needs the parts and lives with the advantages.
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewards.core import Reward, Scores

CAPABLE = ("host", "device", "gradient")
NORMALISE = ("none", "batch", "group", "frozen")
FLOOR = 1e-6


def moments(total: Any, valid: Any, segment: Any) -> tuple:
  """Mean and std of the valid entries of each sample's segment, [B] each."""
  n = total.shape[0]
  sums = lambda v: jax.ops.segment_sum(jnp.where(valid, v, 0.0), segment, n)
  count = jnp.maximum(sums(jnp.ones_like(total)), 1)
  mean = (sums(total) / count)[segment]
  variance = (sums((total - mean) ** 2) / count)[segment]
  moved = variance > 0  # the square root has no gradient at 0
  return mean, jnp.where(moved, jnp.sqrt(jnp.where(moved, variance, 1.0)), 0.0)


def calibration(totals: dict, valid: dict | None = None) -> dict:
  """{name: scores [N] of the base's samples} -> the leaves under "mix" of a frozen mixture.

  Raises ValueError for a reward whose scores do not vary."""
  out = {}
  for name, values in totals.items():
    values = np.asarray(values, np.float64)[np.asarray(valid[name], bool) if valid else slice(None)]
    if values.size < 2 or not values.std() > 0:
      raise ValueError(f"calibration of {name!r}: {values.size} valid scores, {values[:3].tolist()} ..., must vary; "
                       "score more samples, or leave this reward out")
    out[name] = {"mean": np.float32(values.mean()), "std": np.float32(values.std())}
  return out


def scaled(kind: str, scores: Scores, batch: dict, leaves: Any) -> Any:
  """One part's total on the common scale; 0 where it is not valid."""
  total = jnp.where(scores.valid, scores.total, 0.0)
  if kind == "none":
    return total
  if kind == "frozen":
    mean, std = leaves["mean"], leaves["std"]
  else:
    first = jnp.asarray(batch["sample_id"]) == 0 if kind == "group" else jnp.zeros(total.shape, bool)
    mean, std = moments(total, scores.valid, jnp.maximum(jnp.cumsum(first) - (kind == "group"), 0))
  return jnp.where(scores.valid & (std > FLOOR), (total - mean) / jnp.maximum(std, FLOOR), 0.0)


def check(rewards: dict, weights: dict, normalise: str) -> None:
  if not rewards:
    raise ValueError("rewards = {}: a mixture needs at least one reward; add {name: reward}")
  if "mix" in rewards:
    raise ValueError("rewards has a part called 'mix', where the statistics are kept; any other name is allowed, "
                     "rename it")
  unknown = sorted(set(weights) - set(rewards))
  if unknown:
    raise ValueError(f"weights has {unknown[0]!r}, which is none of the rewards {', '.join(rewards)}; rename or "
                     "remove it")
  if normalise not in NORMALISE:
    raise ValueError(f"normalise = {normalise!r} is not one of {', '.join(NORMALISE)}; choose one of them")


def make(rewards: dict, weights: dict | None = None, normalise: str = "none") -> Reward:
  """rewards: {name: Reward}; weights: {name: float}, 1 where left out. Parts are logged as name and name/part."""
  weights = weights or {}
  check(rewards, weights, normalise)
  where = CAPABLE[min(CAPABLE.index(part.where) for part in rewards.values())]
  frames = {str(part.frames): part.frames for part in rewards.values()}

  def init(key):
    tree = {name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(rewards.items())}
    stats = {name: {"mean": jnp.zeros(()), "std": jnp.ones(())} for name in rewards}
    return {k: v for k, v in tree.items() if v} | ({"mix": stats} if normalise == "frozen" else {})

  def prepare(batch):
    for part in rewards.values():
      batch = part.prepare(batch)
    return batch

  def call(part):
    return jax.jit(part.score) if where == "host" and part.where != "host" else part.score

  calls = {name: call(part) for name, part in rewards.items()}

  def arrays(part, batch):
    host = part.where == "host" or where != "host"
    return batch if host else {k: v for k, v in batch.items() if k not in ("prompt", "meta")}

  def score(view, batch, media, keys):
    total, valid, parts = 0.0, True, {}
    for name, part in rewards.items():
      scores = calls[name](view.get(name, {}), arrays(part, batch), media, keys)
      total += weights.get(name, 1.0) * scaled(normalise, scores, batch, view.get("mix", {}).get(name))
      valid &= jnp.asarray(scores.valid)
      parts |= {name: scores.total} | {f"{name}/{k}": v for k, v in scores.parts.items()}
    return Scores(jnp.asarray(total, jnp.float32), parts, valid)

  calibrate = (lambda totals: calibration({name: totals[name] for name in rewards})) if normalise == "frozen" else None
  return Reward(init, prepare, score, where, next(iter(frames.values())) if len(frames) == 1 else None, None, calibrate)
