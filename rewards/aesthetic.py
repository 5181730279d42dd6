"""LAION's aesthetic predictor: how pleasing a picture is, about 1 to 10, whatever the prompt.

  reward = {"name": "aesthetic", "model": DIR, "head": FILE}

DIR is a folder of OpenAI's CLIP-L/14, a CLIPVisionModelWithProjection or a CLIPModel, whose text tower then takes room
and does nothing; FILE is what `python -m rewards.convert sac+logos+ava1-l14-linearMSE.pth` writes. The head takes the
projected vector of unit length through linear layers 1024, 128, 64, 16, 1. Nothing stands between these (dropout acts
in training only), so that together they are one affine map, which `affine` makes of them: the same scores from fewer
numbers. Left out: the head with ReLUs, ava+logos-l14-reluMSE.pth.
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import eyes, weights
from diffusion.convert import clip_vision
from diffusion.nets.blip import Head
from rewards.core import Reward, Scores

PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the file; dropout lies between the others
NAMES = {f"layers.{i}.{word}" for i in PLACES for word in ("weight", "bias")}


def make(model: str, head: str, affine: bool = False, dtype: str = "float32", remat: bool | str = False) -> Reward:
  """dtype: of the network and its parameters; the head's are float32. remat: see layers.remat. ValueError for a folder
  that is no CLIP, and for a head of another form or size."""
  opened = eyes.open_(model, (clip_vision.CLASS, clip_vision.PICTURES), None, dtype, remat)
  layers = layers_of(head, opened.net.projection)
  layers = collapsed(layers) if affine else layers
  net = Head(tuple(len(layers[f"fc{i}"]["bias"]) for i in range(len(layers) - 1)))

  def init(key):
    return {"net": eyes.fresh(opened, key, dtype), "head": jax.tree.map(jnp.asarray, layers)}

  def score(view, batch, media, keys):
    total = net.apply({"params": view["head"]}, eyes.see(opened, view["net"], media))
    return Scores(total, {}, jnp.isfinite(total))

  return Reward(init, lambda batch: batch, score, "gradient", None)


def layers_of(file: str, width: int) -> dict:
  """{"fc0": {"kernel", "bias"}, ...} float32 of a file. ValueError for other names or sizes."""
  found = weights.load(file)
  if set(found) != NAMES:
    raise ValueError(f"head = {file!r} holds {', '.join(sorted(found)[:weights.SHOWN])}; it must hold weight and bias "
                     f"of layers.{', '.join(map(str, PLACES))}, the linear layers without activations: convert "
                     "sac+logos+ava1-l14-linearMSE.pth by python -m rewards.convert")
  out = {f"fc{i}": {"kernel": found[f"layers.{place}.weight"].T.astype(np.float32),
                    "bias": found[f"layers.{place}.bias"].astype(np.float32)} for i, place in enumerate(PLACES)}
  sizes = [width, *(len(layer["bias"]) for layer in out.values())]
  shapes = [layer["kernel"].shape for layer in out.values()]
  if shapes != list(zip(sizes, sizes[1:], strict=False)) or sizes[-1] != 1:
    raise ValueError(f"head = {file!r} has layers of {shapes}, which must lead from {width}, what the model's vectors "
                     "have, to 1; use the model that the head was trained on")
  return out


def collapsed(layers: Mapping) -> dict:
  """The same affine map as one layer, computed in float64."""
  kernel, bias = np.eye(len(layers["fc0"]["kernel"])), np.zeros(())
  for layer in layers.values():
    own = layer["kernel"].astype(np.float64)
    kernel, bias = kernel @ own, bias @ own + layer["bias"] if bias.ndim else layer["bias"].astype(np.float64)
  return {"fc0": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}
