"""How a picture looks to a small network that learned it from pairs, one number a picture; it knows no prompt.

The convolutions of classifier.py with one output. Trained by the algorithm `compare` on pairs of pictures, or inside
`keyframes` on pairs of clips: the aesthetic reward of a world for which no published one was made. Left out: anything
pretrained; how far the score generalises beyond the kinds of defects that it was shown.
"""
import jax.numpy as jnp

from rewards.classifier import Net
from rewards.core import Reward, Scores


def make(size: int = 16, channels: int = 3, width: int = 16) -> Reward:
  """The reward of pictures [B H W C] in [0, 1].

  Args: size, channels: of pictures. width: of the first convolutions, below 8 or a multiple of it. ValueError for sizes
    that cannot be."""
  for name, value, least in (("size", size, 4), ("channels", channels, 1), ("width", width, 1)):
    if value < least:
      raise ValueError(f"{name} = {value} must be at least {least}; change it")
  if width % min(8, width):
    raise ValueError(f"width = {width} must be below 8 or a multiple of it, for the groups of its norms; change it")
  net = Net(1, width)

  def init(key):
    return {"net": net.init(key, jnp.zeros((1, size, size, channels)))["params"]}

  def score(view, batch, media, keys):
    total = net.apply({"params": view["net"]}, 2 * media - 1)[:, 0]
    return Scores(total, {}, jnp.isfinite(total))

  return Reward(init, lambda batch: batch, score, "gradient", None)
