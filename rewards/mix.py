"""A weighted sum of rewards, after bringing each to a common scale.

A part's score goes through four stages, each of which may be named for all parts or part by part:

  passes      1 from this score on, else 0: binary rewards (DanceGRPO, 2505.07818)
  hinges      what is above this score counts nothing: min(score - enough, 0), as the ReLU of ReFL (2304.05977)
  normalise   none    scores as they are
              batch   z-score over the valid samples of the call
              group   z-score over those of each prompt (DanceGRPO, MixGRPO 2507.21802); runs of samples that begin with
                      sample_id 0
              frozen  z-score by stored statistics, leaves mix/NAME/mean and std, set once from samples of the base when
                      a run begins (`calibration`), the form for a composite of several rewards
  clip        the normalised score is cut to -clip .. clip

Thresholds are in a score's own units. The weighted sum is the total, unless a gate is shut: where a part is below the
score of its gate, the total is what the gate says instead, whatever the others find; of several shut gates the lowest
counts. There the gradient is 0. A sample that one part could not score is invalid as a whole. The mixture may be called
where its least capable part may. Left out: GDPO, which needs the raw parts and lives with the advantages.
"""
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewards.core import Reward, Scores

CAPABLE = ("host", "device", "gradient")
NORMALISE = ("none", "batch", "group", "frozen")
FLOOR = 1e-6


# --- scales -----------------------------------------------------------------------------------------------------------


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


def shaped(total: Any, passed: float | None, enough: float | None) -> Any:
  """Scores behind their threshold, where they have one."""
  total = total if passed is None else jnp.where(total >= passed, 1.0, 0.0)
  return total if enough is None else jnp.minimum(total - enough, 0.0)


def scaled(kind: str, total: Any, valid: Any, batch: dict, leaves: Any) -> Any:
  """One part's scores on the common scale; 0 where they are not valid."""
  total = jnp.where(valid, total, 0.0)
  if kind == "none":
    return total
  if kind == "frozen":
    mean, std = leaves["mean"], leaves["std"]
  else:
    first = jnp.asarray(batch["sample_id"]) == 0 if kind == "group" else jnp.zeros(total.shape, bool)
    mean, std = moments(total, valid, jnp.maximum(jnp.cumsum(first) - (kind == "group"), 0))
  return jnp.where(valid & (std > FLOOR), (total - mean) / jnp.maximum(std, FLOOR), 0.0)


def shut(total: Any, parts: dict, gates: dict) -> Any:
  """The total, or where parts are below their gates the lowest of what these say."""
  fallen = [jnp.where(parts[name] >= least, jnp.inf, instead) for name, (least, instead) in gates.items()]
  lowest = jnp.stack(fallen).min(0) if fallen else jnp.inf
  return jnp.where(jnp.isfinite(lowest), lowest, total)


# --- frames -----------------------------------------------------------------------------------------------------------


def union(frames: list) -> tuple | None:
  """What parts look at together: None where one looks at all, else counted from the start, then from the end."""
  if any(part is None for part in frames):
    return None
  return tuple(sorted({int(i) for part in frames for i in part}, key=lambda i: (i < 0, i)))


def looked(media: Any, given: tuple | None, wanted: tuple | None) -> Any:
  """A part's frames out of the `given` ones of a clip, or out of a whole clip. Pictures stay as they are."""
  if media.ndim < 5 or wanted is None or wanted == given and media.shape[1] == len(given):
    return media
  count = media.shape[1]
  if given is not None and count == len(given):  # a whole clip of as many has the same frames at the same places
    return media[:, np.array([given.index(i) for i in wanted])]
  if not all(-count <= i < count for i in wanted):
    raise ValueError(f"frames {tuple(wanted)} of a reward are not all in a clip of {count} frames; choose frames from "
                     f"{-count} to {count - 1}, or a policy that makes longer clips")
  return media[:, np.array(wanted)]


# --- the mixture ------------------------------------------------------------------------------------------------------


def named(option: str, values: dict | None, rewards: dict) -> dict:
  """An option {part: value}, checked."""
  unknown = sorted(set(values or {}) - set(rewards))
  if unknown:
    raise ValueError(f"{option} has {unknown[0]!r}, which is none of the rewards {', '.join(rewards)}; rename or "
                     "remove it")
  for name, value in (values or {}).items():
    row = (2,) if option == "gates" else ()
    try:
      good = np.shape(value) == row and np.isfinite(np.asarray(value, float)).all()
    except (TypeError, ValueError):
      good = False
    if not good:
      what = "two numbers, the least score and the total below it" if row else "a number"
      raise ValueError(f"{option} of {name!r} = {value!r} must be {what}; correct it")
  return values or {}


def kinds(rewards: dict, normalise: str | dict) -> dict:
  """{part: how it is normalised}."""
  given = normalise if isinstance(normalise, dict) else dict.fromkeys(rewards, normalise)
  out = dict.fromkeys(rewards, "none") | given
  unknown = sorted(set(out) - set(rewards))
  if unknown:
    raise ValueError(f"normalise has {unknown[0]!r}, which is none of the rewards {', '.join(rewards)}; rename or "
                     "remove it")
  for name, kind in out.items():
    if kind not in NORMALISE:
      at = f"normalise of {name!r}" if isinstance(normalise, dict) else "normalise"
      raise ValueError(f"{at} = {kind!r} is not one of {', '.join(NORMALISE)}; choose one of them")
  return out


def limits(clip: float | dict | None, kind: dict) -> dict:
  """{part: its limit}; only what is normalised has one."""
  out = dict.fromkeys(kind, clip) if isinstance(clip, float | int) else named("clip", clip, kind)
  for name, limit in out.items():
    if not 0 < limit < math.inf or kind[name] == "none":
      raise ValueError(f"clip of {name!r} = {limit} with normalise = {kind[name]!r}: it cuts normalised scores and "
                       "must be positive, 3 to 5 are usual; change it, normalise this part, or name only others")
  return out


def pieces(rewards: dict, kind: dict) -> int | None:
  """Into how many chunks an experience may be cut: as many as a part wishes, None where one must see it whole."""
  wished = [part.chunks for part in rewards.values()]
  return None if None in wished or "batch" in kind.values() else max(wished)


def check(rewards: dict) -> None:
  if not rewards:
    raise ValueError("rewards = {}: a mixture needs at least one reward; add {name: reward}")
  if "mix" in rewards:
    raise ValueError("rewards has a part called 'mix', where the statistics are kept; any other name is allowed, "
                     "rename it")


def make(rewards: dict, weights: dict | None = None, normalise: str | dict = "none", clip: float | dict | None = None,
         passes: dict | None = None, hinges: dict | None = None, gates: dict | None = None) -> Reward:
  """Args:
    rewards: {name: Reward}. weights: {name: float}, 1 where left out; 0 for a part that is only logged, or a gate.
    normalise: for all, or {name: kind} with "none" for the others. clip: for all, or {name: limit}.
    passes, hinges: {name: score}, see above. gates: {name: (least score, total below it)}.

  Parts are logged as name (raw) and name/part, and as name/scaled where what is summed differs from the raw score.
  """
  check(rewards)
  weights, gates = named("weights", weights, rewards), named("gates", gates, rewards)
  passes, hinges, kind = named("passes", passes, rewards), named("hinges", hinges, rewards), kinds(rewards, normalise)
  limit = limits(clip, kind)
  where = CAPABLE[min(CAPABLE.index(part.where) for part in rewards.values())]
  frames = union([part.frames for part in rewards.values()])
  frozen = [name for name in rewards if kind[name] == "frozen"]
  shape = lambda name, total: shaped(total, passes.get(name), hinges.get(name))

  def init(key):
    tree = {name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(rewards.items())}
    stats = {name: {"mean": jnp.zeros(()), "std": jnp.ones(())} for name in frozen}
    return {k: v for k, v in tree.items() if v} | ({"mix": stats} if frozen else {})

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

  def scale(name, view, batch, total, valid):
    leaves = view.get("mix", {}).get(name)
    leaves = jax.tree.map(np.asarray, leaves) if where == "host" else leaves  # the host runs nothing over the mesh
    out = scaled(kind[name], shape(name, total), valid, batch, leaves)
    return jnp.clip(out, -limit[name], limit[name]) if name in limit else out

  def score(view, batch, media, keys):
    total, valid, parts = 0.0, True, {}
    for name, part in rewards.items():
      found = calls[name](view.get(name, {}), arrays(part, batch), looked(media, frames, part.frames), keys)
      value = scale(name, view, batch, found.total, found.valid)
      total += weights.get(name, 1.0) * value
      valid &= jnp.asarray(found.valid)
      parts |= {name: found.total} | {f"{name}/{k}": v for k, v in found.parts.items()}
      if kind[name] != "none" or name in passes or name in hinges:
        parts[f"{name}/scaled"] = value
    return Scores(jnp.asarray(shut(total, parts, gates), jnp.float32), parts, valid)

  calibrate = lambda totals: calibration({name: np.asarray(shape(name, totals[name])) for name in frozen})
  return Reward(init, prepare, score, where, frames, None, calibrate if frozen else None, pieces(rewards, kind))
