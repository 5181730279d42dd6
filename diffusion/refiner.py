"""What makes a generator a refiner of what another one made: the picture at low resolution, enlarged, stands beside the
noise as further channels, as in Seedance 1.0 (2506.09113; before it SR3, 2104.07636).

The network is that of any generator with twice the input channels; those that see the low resolution begin at zero
weights where a run starts from a network without them, so that it begins as the same network at the higher resolution.
Left out: refining in an autoencoder's latents, enlarging by other than repeated pixels.
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def enlarged(low: Any, factor: int) -> Any:
  """[... h w C] -> [... h * factor, w * factor, C], every pixel repeated."""
  return jnp.repeat(jnp.repeat(low, factor, -3), factor, -2)


def reduced(media: Any, factor: int) -> Any:
  """[... H W C] -> [... H / factor, W / factor, C], means over squares of pixels, which undoes `enlarged`."""
  *front, height, width, channels = media.shape
  return media.reshape(*front, height // factor, factor, width // factor, factor, channels).mean((-4, -2))


def beside(predictor: Callable, factor: int) -> Callable:
  """A Generator.predictor whose network sees cond["low"] [B h w C], enlarged, as channels after those of x."""
  def wide(view, cond, guided):
    inner, low = predictor(view, cond, guided), enlarged(cond["low"], factor)
    return lambda x, t: inner(jnp.concatenate([x, low], -1), t)
  return wide


def widened(tree: Mapping, like: Mapping, channels: int) -> dict:
  """`tree` with zeros for the further channels that `like`, a tree of shapes, has: wherever the inputs of a kernel
  [... inputs, outputs] are half of those in `like`, every `channels` of them are followed by as many zeros."""
  wanted = {name: np.shape(leaf) for name, leaf in traverse_util.flatten_dict(like).items()}

  def grown(name, leaf):
    shape = wanted.get(name, leaf.shape)
    if leaf.ndim < 2 or shape != (*leaf.shape[:-2], 2 * leaf.shape[-2], leaf.shape[-1]) or leaf.shape[-2] % channels:
      return leaf
    rows = leaf.reshape(*leaf.shape[:-2], -1, channels, leaf.shape[-1])
    return np.concatenate([rows, np.zeros_like(rows)], -2).reshape(shape)
  flat = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict({name: grown(name, leaf) for name, leaf in flat.items()})
