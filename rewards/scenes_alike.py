"""How much two pictures of Scenes show the same, where places are only roughly told: the reward of drawing a picture
again from its caption.

  cells   cosine of what stands where, the cell-wise probabilities of scenes_scorer.py, blurred
  pixels  mean squared difference of the pixels, blurred
  total = cells - weight * pixels

The blur is Gaussian; outside of the picture there is nothing. On 2,354 synthetic scenes, whose objects were moved about
as far as a full description allows or changed in one thing (colour, shape, place, size, one more, one less), the area
under the curve against the exact verdict is .93, and .95 among scenes of one description. Without blur, pixels alone
have .74 and .78, cells .62 and .64. A change of size is seen by the pixels, one of shape by the cells. Weights are
those of a run that trained scenes_scorer: "start": {"reward": its workdir}.
"""
import jax
import jax.numpy as jnp
import numpy as np

from rewards import reconstruction, scenes_scorer
from rewards.core import Reward, Scores

LEAST = 1e-6  # length of a vector that is told from none


def make(size: int = 16, width: int = 32, against: str = "media", blur: float = 0.25,
         weight: float = 200.0) -> Reward:
  """Args: size, width: as in scenes_scorer.py. against: the batch's entry with the pictures, uint8 [B size size 3].
    blur: the standard deviation, in fractions of the side. weight: of the pixels' difference.

  Raises: ValueError for a blur that is not positive; while scoring, for a missing entry and pictures of another size.
  """
  if not blur > 0:
    raise ValueError(f"blur = {blur} must be positive, a fraction of the side; .25 tells scenes apart best")
  scorer = scenes_scorer.make(size, width)
  compared = reconstruction.make(kind="mse", against=against)

  def what(view, media):
    return blurred(jax.nn.softmax(scenes_scorer.Net(width).apply({"params": view["net"]}, 2 * media - 1))[..., 1:],
                   blur)

  def score(view, batch, media, keys):
    given = jnp.asarray(batch[f"compared with {against}"], jnp.float32) / 255
    if media.shape != given.shape:
      raise ValueError(f"media of shape {media.shape} are compared with {against!r} of shape {given.shape}; they must "
                       "be the same: scale the data")
    a, b = what(view, media), what(view, given)
    norm = lambda p: jnp.sqrt((p ** 2).sum((1, 2, 3)) + LEAST)
    same = (a * b).sum((1, 2, 3)) / (norm(a) * norm(b))
    apart = (blurred(media - given, blur) ** 2).mean((1, 2, 3))
    total = same - weight * apart
    return Scores(total, {"cells": same, "pixels": apart}, jnp.isfinite(total))

  return Reward(scorer.init, compared.prepare, score, "gradient", None)


def blurred(x, spread: float):
  """x [B N N C] weighted with a Gaussian of standard deviation spread * N along both sides."""
  n = x.shape[1]
  away = np.arange(n)[:, None] - np.arange(n)
  kernel = np.exp(-0.5 * (away / (spread * n)) ** 2) / (spread * n * np.sqrt(2 * np.pi))
  return jnp.einsum("yi,xj,bijc->byxc", kernel.astype(np.float32), kernel.astype(np.float32), x)
