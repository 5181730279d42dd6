"""How near a sample is to a picture of its record, as where a caption is to let a generator draw the picture again
(UAE, 2509.09666).

  reward = {"name": "reconstruction", "model": DIR}        cosine of CLIP's or DINOv2's vectors
  reward = {"name": "reconstruction", "kind": "psnr"}      pixel by pixel, without a network

  cosine    of the vectors of DIR, a folder of CLIP (with or without text tower) or of DINOv2
  mse       1 minus the mean squared difference of pixels in [0, 1]
  psnr      -10 log10 of it, in dB, at most 100
"""
import jax.numpy as jnp
import numpy as np

from diffusion import eyes
from diffusion.convert import clip_vision, dinov2
from rewards.core import Reward, Scores

KINDS = ("cosine", "mse", "psnr")
ENCODERS = (clip_vision.CLASS, clip_vision.PICTURES, dinov2.CLASS, dinov2.REGISTERS)
LEAST = 1e-10  # mean square that is told from none: 100 dB


def make(model: str = None, kind: str = "cosine", against: str = "media", dtype: str = "float32",
         remat: bool | str = False) -> Reward:
  """Args:
    model, kind: see above. against: the batch's entry with the pictures, uint8 [B H W C], as the policy leaves it.
      dtype: of the network and its parameters; remat: see layers.remat.

  Returns: Reward of pictures [B H W C] in [0, 1], with part mse where pixels are compared. Raises ValueError for a
  model where none is used, or none where one is; while scoring, for a missing entry or, pixel by pixel, other sizes.
  """
  if kind not in KINDS:
    raise ValueError(f"kind = {kind!r} is not one of {', '.join(KINDS)}; choose one of them")
  if (model is None) == (kind == "cosine"):
    raise ValueError(f"model = {model!r} with kind = {kind!r}: a network is what compares by 'cosine', and by that "
                     "alone; name a folder or choose mse or psnr, but not both")
  opened = model and eyes.open_(model, ENCODERS, None, dtype, remat)
  entry = f"compared with {against}"

  def prepare(batch):
    found = np.asarray(batch.get(against, ()))
    if found.dtype != np.uint8 or found.ndim != 4:
      raise ValueError(f"batch entry {against!r} is {found.dtype} of shape {found.shape}, it must be pictures, uint8 "
                       f"[B H W C], among {', '.join(sorted(batch))}; set against to one that is")
    return {**batch, entry: found}

  def score(view, batch, media, keys):
    given = jnp.asarray(batch[entry], jnp.float32) / 255
    if opened:
      total = (eyes.see(opened, view["net"], media) * eyes.see(opened, view["net"], given)).sum(-1)
      return Scores(total, {}, jnp.isfinite(total))
    if media.shape != given.shape:
      raise ValueError(f"media of shape {media.shape} are compared pixel by pixel with {against!r} of shape "
                       f"{given.shape}; they must be the same: scale the data, or choose kind 'cosine'")
    error = ((media - given) ** 2).mean((1, 2, 3))
    total = 1 - error if kind == "mse" else -10 * jnp.log10(jnp.maximum(error, LEAST))
    return Scores(total, {"mse": error}, jnp.isfinite(total))

  return Reward(lambda key: {"net": eyes.fresh(opened, key, dtype)} if opened else {}, prepare, score, "gradient", None)
