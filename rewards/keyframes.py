"""Key frames of a clip judged by rewards of pictures, such as their aesthetics.

  reward = {"name": "keyframes", "choose": "uniform", "count": 3, "total": 16, "rewards": {"taste": {"name": ...}}}

  first, middle, last   one frame
  uniform               `count` frames evenly from the first to the last one; 3 are first, middle and last
  change                `count` frames at even shares of the clip's change, the running sum of the mean difference of
                        each frame from the one before: more of them where more happens. All differ, in order of time; a
                        clip that does not change has them evenly

or `frames`, which names them. Where the frames are known without looking at the clip, only these are decoded (`frames`
of the Reward); for "middle" and "uniform" that needs `total`. Frames are scored one after another, each with the whole
batch, so that a judge that compares samples compares the same moment of them. The score of a clip is the mean over its
key frames, weighted by decay^k from the first on, or the lowest. A clip is valid if all its key frames are. Left out:
detection of shots; gradients through the choice, which "change" makes as if it did not depend on the clip.
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import pictures
from rewards import mix
from rewards.core import Reward, Scores

CHOICES = ("first", "middle", "last", "uniform", "change")
POOLS = ("mean", "min")


def places(choose: str, count: int, total: int | None) -> tuple | None:
  """Indices of the frames, None where they are not known: for "change", and without the number of frames in all."""
  if choose in ("first", "last"):
    return (0,) if choose == "first" else (-1,)
  if choose == "change" or total is None:
    return None
  return (total // 2,) if choose == "middle" else tuple(pictures.uniform(total, count, last=True).tolist())


def by_change(clips: Any, count: int) -> Any:
  """[B count] indices of frames of clips [B F H W C], see above; increasing."""
  b, f = clips.shape[:2]
  step = jnp.abs(clips[:, 1:] - clips[:, :-1]).mean((2, 3, 4))
  along = jnp.concatenate([jnp.zeros((b, 1)), jnp.cumsum(step, 1)], 1)
  whole = along[:, -1:]
  share = jnp.where(whole > 0, along / jnp.where(whole > 0, whole, 1), jnp.linspace(0, 1, f))
  nearest = jnp.abs(share[:, :, None] - jnp.linspace(0, 1, count)).argmin(1)
  chosen = [jnp.full(b, -1)]
  for k in range(count):  # the one after the last chosen at least, so that room is left for those to come
    chosen.append(jnp.clip(nearest[:, k], chosen[-1] + 1, f - count + k))
  return jnp.stack(chosen[1:], 1)


def chosen(clips: Any, known: tuple | None, choose: str, count: int) -> Any:
  """The key frames [B K H W C] of what the reward is given: those alone where they were known, or whole clips."""
  if clips.ndim != 5 or 0 in clips.shape:
    raise ValueError(f"reward 'keyframes': media have shape {clips.shape}, but it judges frames of clips [B F H W C]; "
                     "choose a policy that makes videos, or its rewards alone for pictures")
  total = clips.shape[1]
  if known is not None:
    if total != len(known):
      raise ValueError(f"reward 'keyframes': clips of {total} frames are given, but it looks at frames {known} and "
                       f"must be given those {len(known)} alone; decode them with its `frames`")
    return clips
  if choose == "middle":
    return clips[:, total // 2][:, None]
  if count > total:
    raise ValueError(f"reward 'keyframes': count = {count} key frames of clips of {total}; lower count, or choose a "
                     "policy that makes longer clips")
  if choose == "uniform":
    return clips[:, pictures.uniform(total, count, last=True)]
  index = by_change(jax.lax.stop_gradient(clips), count)
  return jnp.take_along_axis(jnp.asarray(clips), index[:, :, None, None, None], 1)


def check(rewards: dict, choose: str, count: int, total: int | None, frames: tuple | None, pool: str,
          decay: float) -> None:
  for name, value, allowed in (("choose", choose, CHOICES), ("pool", pool, POOLS)):
    if value not in allowed:
      raise ValueError(f"{name} = {value!r} is not one of {', '.join(allowed)}; choose one of them")
  if count < 1:
    raise ValueError(f"count = {count} must be at least 1, key frames of a clip; 3 is usual")
  if total is not None and total < (count if choose == "uniform" else 1):
    raise ValueError(f"total = {total} frames of a clip must be at least count = {count}; raise it, or lower count")
  if frames is not None and (not frames or len(set(frames)) != len(frames)):
    raise ValueError(f"frames = {tuple(frames)} must be one or more different indices, -1 is the last; change them, or "
                     "leave them out for `choose`")
  if not 0 < decay <= 1:
    raise ValueError(f"decay = {decay} must be more than 0 and at most 1, where all key frames weigh the same")
  for name, part in rewards.items():
    if part.frames is not None:
      raise ValueError(f"rewards: {name!r} judges frames {part.frames} of clips, but key frames are pictures; choose "
                       "rewards of pictures")


def make(rewards: dict, weights: dict | None = None, choose: str = "uniform", count: int = 3, total: int | None = None,
         frames: tuple | list | None = None, pool: str = "mean", decay: float = 1.0) -> Reward:
  """Args:
    rewards: {name: Reward} of pictures, added with `weights` as in a mixture, 1 where left out.
    choose, count: see above. total: frames of the clips, where it is known. frames: indices, negative from the end,
      instead of both.
    pool: "mean" or "min" over key frames, of the total and of each part. decay: of the mean's weights; 1: all alike.

  Returns: Reward of clips [B F H W C] in [0, 1], where its rewards are: "host", "device" or "gradient".
  """
  check(rewards, choose, count, total, frames, pool, decay)
  part = mix.make(rewards, weights)
  known = places(choose, count, total) if frames is None else tuple(frames)

  def score(view, batch, media, keys):
    shown = jnp.moveaxis(chosen(media, known, choose, count), 1, 0)
    shown = list(np.asarray(shown) if part.where == "host" else shown)  # no scan: its convolutions are slow on CPUs
    found = stacked([part.score(view, batch, frame, keys) for frame in shown])
    share = jnp.asarray(decay) ** jnp.arange(len(shown))
    pooled = lambda v: v.min(0) if pool == "min" else (share / share.sum()) @ v
    return Scores(pooled(found.total), {name: pooled(v) for name, v in found.parts.items()}, found.valid.all(0))

  return Reward(part.init, part.prepare, score, part.where, known, chunks=part.chunks)


def stacked(scores: list) -> Scores:
  return jax.tree.map(lambda *values: jnp.stack([jnp.asarray(v) for v in values]), *scores)
