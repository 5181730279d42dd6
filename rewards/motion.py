"""How a clip moves, computed from its frames and an estimate of their flow (flow.py), without prompts.

  amplitude   length of the flow a frame, in short sides of the frame: mean over the fastest 5 % of pixels, each by how
              far flow can be seen there, then over frames
  jitter      how much the flow changes from one frame to the next along the way, likewise in sides, where it moves
  flicker     mean difference of the next frame, moved back along the flow, from this one, in [0, 1]
  dynamic     min(amplitude / full, 1) of every frame, mean over frames
  smooth      exp(-jitter / rough) of every frame, mean over frames
  steady      1 - flicker
  static      exp(-amplitude / still) of every frame, mean over frames: 1 for a frozen clip, about 0 for one that moves
  consistency only with `model`, a public encoder of pictures: mean cosine, 0 at least, of the features of a frame with
              those of the frame before and with those of the first one

  total = sum of weights times dynamic, smooth, steady, static and consistency

These are light forms of what VBench (2311.17982) measures with networks: dynamic degree (the fastest 5 % of pixels, 6
pixels of 256 a frame are motion; weight 1/2), motion smoothness, temporal flickering and, with DINO as the encoder,
subject consistency (weight 1). The static penalty is ours: a frozen clip is perfectly smooth and steady.

Differentiable in the clip, except that a frozen one has no gradient of amplitude: no direction is better than another.
A clip of two frames has one flow, which does not change: jitter 0. Left out: whether the motion is possible, or the
one that was asked for; what flow.py cannot see, which fast steps between frames are part of.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion import eyes
from rewards import flow as flows
from rewards.core import Reward, Scores

WEIGHTS = {"dynamic": 0.5, "smooth": 1.0, "steady": 1.0, "static": -1.0, "consistency": 1.0}
FULL = 6 / 256  # sides a frame, VBench's threshold of motion
SHARE = 0.05    # of pixels, the fastest
TINY = 1e-5     # of a side: lengths below are rounded, so that they have a gradient at 0


class Measures(NamedTuple):
  """What is measured of clips [B F H W C]."""
  flow: Any       # [B F-1 h w 2] in sides of the frame
  residual: Any   # [B F-1 h w C] next frame moved back, minus this one; 0 where it comes from beyond the border
  amplitude: Any  # [B F-1] in sides
  jitter: Any     # [B F-2] in sides, or [B 1] zeros of two frames
  flicker: Any    # [B F-1] in [0, 1]


def check_clips(name: str, shape: tuple) -> None:
  """ValueError unless media of this shape are clips of two frames or more."""
  if len(shape) != 5 or shape[1] < 2 or 0 in shape:
    raise ValueError(f"reward {name!r}: media have shape {tuple(shape)}, but it judges motion of clips [B F H W C] of "
                     "at least 2 frames; choose a policy that makes videos, or a reward of pictures")


def length(vectors: Any) -> Any:
  return jnp.sqrt((vectors ** 2).sum(-1) + TINY ** 2) - TINY


def reduced(clips: Any, side: int) -> Any:
  """Clips whose short side is at most about `side` pixels: means of k by k pixels, what is left over cut off."""
  b, f, h, w, c = clips.shape
  k = -(-min(h, w) // side)
  h, w = h // k, w // k
  return clips[:, :, :h * k, :w * k].reshape(b, f, h, k, w, k, c).mean((3, 5))


def fastest(speed: Any) -> Any:
  """[B F] mean over the fastest pixels of speed [B F h w]."""
  flat = speed.reshape(*speed.shape[:2], -1)
  return jax.lax.top_k(flat, max(1, round(SHARE * flat.shape[-1])))[0].mean(-1)


def changed(flow: Any, trust: Any, unit: int) -> Any:
  """[B F-2] how much flow [B F-1 h w 2], in pixels / unit, changes along the way, weighted by trust [B F-1 h w] and by
  how fast it was: what comes to move only then counts in `static` and later on."""
  b, f, h, w, _ = flow.shape
  flat = lambda a: a.reshape(-1, *a.shape[2:])
  now, later = flat(flow[:, :-1]), flat(flow[:, 1:])
  later = flows.warped(later, now * unit)
  weight = flat(trust[:, :-1]) * length(now)
  change = (weight * length(later - now)).sum((1, 2)) / (weight.sum((1, 2)) + TINY)
  return change.reshape(b, f - 1)


def measure(clips: Any, side: int = 128) -> Measures:
  """clips [B F H W C] in [0, 1], F >= 2; they are reduced to `side` pixels first."""
  clips = reduced(clips, side)
  b, f, h, w, c = clips.shape
  unit = min(h, w)
  flat = lambda a: a.reshape(-1, *a.shape[2:])
  back = lambda a: a.reshape(b, f - 1, *a.shape[1:])
  first, second = flat(clips[:, :-1]), flat(clips[:, 1:])
  pixels = flows.estimate(first, second)
  seen = flows.inside(pixels)[..., None]
  residual = jnp.where(seen, flows.warped(second, pixels) - first, 0.0)
  flicker = jnp.abs(residual).sum((1, 2, 3)) / (c * jnp.maximum(seen.sum((1, 2, 3)), 1))
  flow, trust = back(pixels / unit), back(flows.structure(first))
  jitter = changed(flow, trust, unit) if f > 2 else jnp.zeros((b, 1), clips.dtype)
  return Measures(flow, back(residual), fastest(trust * length(flow)), jitter, back(flicker))


def consistent(model: eyes.Model, params: Any, clips: Any) -> Any:
  """[B F-1] cosines of each frame of clips [B F H W C] with the one before and with the first, 0 at least, averaged."""
  seen = eyes.see(model, params, clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:2], -1)
  cosine = lambda others: jax.nn.relu((seen[:, 1:] * others).sum(-1))
  return (cosine(seen[:, :-1]) + cosine(seen[:, :1])) / 2


def make(weights: dict = WEIGHTS, full: float = FULL, rough: float = FULL, still: float = FULL / 10, side: int = 128,
         model: str | None = None, dtype: str = "float32") -> Reward:
  """The reward of clips [B F H W C] in [0, 1], F >= 2. Its parts are all that is listed above.

  Args:
    weights: of the terms of the total; what is left out keeps its default. full, rough, still: see above, in sides a
      frame; clips of fewer frames a second need larger ones.
    side: pixels of the short side that flow is estimated on; larger frames are averaged down.
    model: a folder of a public encoder of pictures (DINOv2, CLIP), whose parameters are "net"; dtype: of it.

  Raises:
    ValueError: options that are not there or not positive; while scoring, pictures and clips of one frame.
  """
  for name in weights:
    if name not in WEIGHTS:
      raise ValueError(f"weights has {name!r}, which is not one of {', '.join(WEIGHTS)}; rename or remove it")
  for name, value in (("full", full), ("rough", rough), ("still", still), ("side", side)):
    if not value > 0:
      raise ValueError(f"{name} = {value} must be more than 0; the default is usual")
  factors, opened = {**WEIGHTS, **weights}, eyes.open_(model, dtype=dtype) if model else None

  def init(key):
    return {"net": eyes.fresh(opened, key, dtype)} if opened else {}

  def score(view, batch, media, keys):
    check_clips("motion", media.shape)
    found = measure(media, side)
    terms = {"dynamic": jnp.minimum(found.amplitude / full, 1), "smooth": jnp.exp(-found.jitter / rough),
             "steady": 1 - found.flicker, "static": jnp.exp(-found.amplitude / still)}
    terms |= {"consistency": consistent(opened, view["net"], media)} if opened else {}
    terms = {name: values.mean(1) for name, values in terms.items()}
    total = sum(factors[name] * values for name, values in terms.items())
    raw = {name: getattr(found, name).mean(1) for name in ("amplitude", "jitter", "flicker")}
    return Scores(total, {**raw, **terms}, jnp.isfinite(total))

  return Reward(init, lambda batch: batch, score, "gradient", None)
