"""The mean of a picture: a reward without weights that white paper satisfies best.

It is of no use alone. Added to a reward it is an exploit whose outcome is known, on which guards are tried.
"""
import jax.numpy as jnp

from rewards.core import Reward, Scores


def make(scale: float = 1.0) -> Reward:
  """scale: of the mean, which is in [0, 1]. Media are pictures [B H W C] or clips [B F H W C]."""
  def score(view, batch, media, keys):
    total = scale * media.reshape(media.shape[0], -1).mean(-1)
    return Scores(total, {}, jnp.isfinite(total))
  return Reward(lambda key: {}, lambda batch: batch, score, "gradient", None)
