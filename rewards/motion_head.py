"""A learned judge of motion: a small network over frames and the statistics of their flow, one number a clip.

Each frame, its flow and what the flow does not explain (motion.py) go through a few convolutions; their means over the
picture, how these change from frame to frame, and amplitude, jitter and flicker give the score. It knows no prompt. The
last layer begins near zero, N(0, 1 / (width + 1)^2) as ImageReward's (2304.05977), so that training begins at undecided
pairs. Trained by the algorithm `compare` on pairs of clips or on ratings; measures are computed, not learned. Left out:
anything pretrained; how far the score generalises beyond the kinds of defects that it was shown.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.layers import Conv
from rewards.core import Reward, Scores
from rewards.motion import FULL, Measures, check_clips, measure, reduced


class Net(nn.Module):
  """[B F-1 h w D] maps and [B K] statistics -> [B]. `depth` convolutions, each halves the sides."""
  width: int
  depth: int

  @nn.compact
  def __call__(self, maps, statistics):
    b, f = maps.shape[:2]
    x = maps.reshape(-1, *maps.shape[2:])
    for _ in range(self.depth):
      x = nn.silu(nn.GroupNorm(num_groups=1)(Conv(self.width, (3, 3), (2, 2))(x)))
    x = x.mean((1, 2)).reshape(b, f, -1)
    change = jnp.abs(x[:, 1:] - x[:, :-1]).mean(1) if f > 1 else jnp.zeros_like(x[:, 0])
    x = nn.silu(nn.Dense(4 * self.width)(jnp.concatenate([x.mean(1), change, statistics], -1)))
    return nn.Dense(1, kernel_init=nn.initializers.normal(1 / (4 * self.width + 1)))(x)[:, 0]


def described(found: Measures, clips: Any) -> tuple:
  """What the network sees: (maps, statistics), of about the same size whatever the speed."""
  maps = jnp.concatenate([2 * clips[:, :-1] - 1, jnp.arcsinh(found.flow / FULL), 10 * found.residual], -1)
  measures = [jnp.arcsinh(found.amplitude / FULL), jnp.arcsinh(found.jitter / FULL), 10 * found.flicker]
  return maps, jnp.stack([part for m in measures for part in (m.mean(1), m.max(1))], -1)


def make(channels: int = 3, width: int = 16, depth: int = 3, side: int = 128) -> Reward:
  """The reward of clips [B F H W C] in [0, 1], F >= 2.

  Args: channels: C. width, depth: of the convolutions. side: pixels of the short side, larger frames are averaged down.

  Raises ValueError for sizes below 1; while scoring, for pictures and clips of one frame."""
  for name, value in (("channels", channels), ("width", width), ("depth", depth), ("side", side)):
    if value < 1:
      raise ValueError(f"{name} = {value} must be at least 1; change it")
  net = Net(width, depth)

  def init(key):
    sees = jax.eval_shape(lambda clips: described(measure(clips), clips), jnp.zeros((1, 3, 16, 16, channels)))
    return {"net": net.init(key, *(jnp.zeros(one.shape) for one in sees))["params"]}

  def score(view, batch, media, keys):
    check_clips("motion_head", media.shape)
    clips = reduced(media, side)
    found = measure(clips, side)
    total = net.apply({"params": view["net"]}, *described(found, clips))
    parts = {name: getattr(found, name).mean(1) for name in ("amplitude", "jitter", "flicker")}
    return Scores(total, parts, jnp.isfinite(total))

  return Reward(init, lambda batch: batch, score, "gradient", None)
