"""The gradient of a convolution's kernel, summed over pieces of a batch in a loop, as an update in pieces does: by
diffusion/nets/conv.py, by XLA's own convolutions, and by PyTorch."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion.nets import conv
from launch.timing import alternated, compared

PIECES, SHAPE, KERNEL = 4, (16, 16, 16, 48), (3, 3, 48, 24)  # of a layer of the Scenes U-Net


def given(seed: int = 0) -> tuple:
  """(pieces of the input [P B H W C], of the output's gradient [P B H W D], kernel)."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return draw(PIECES, *SHAPE), draw(PIECES, *SHAPE[:3], KERNEL[-1]), draw(*KERNEL)


def looped(how):
  """A jitted (xs, dys, kernel) -> the kernel's gradient."""
  layout = lax.conv_dimension_numbers(SHAPE, KERNEL, conv.LAYOUT)

  def piece(kernel, x, dy):
    return (how(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=layout) * dy).sum()

  @jax.jit
  def total(xs, dys, kernel):
    add = lambda sum_, piece_: (sum_ + jax.grad(piece)(kernel, *piece_), None)
    return lax.scan(add, jnp.zeros_like(kernel), (xs, dys))[0]
  return total


def torched():
  """The same in PyTorch, of arrays in its own layout."""
  import torch

  def total(xs, dys, kernel):
    # the gradient alone: that of a sum is linear in the kernel, so that ours needs no forward pass either
    return sum(torch.nn.grad.conv2d_weight(x, kernel.shape, dy, padding=1) for x, dy in zip(xs, dys, strict=True))
  return total


def sides() -> dict:
  """{side: () -> the kernel's gradient, which has been waited for}."""
  import torch
  arrays = given()
  first = lambda a, axes: torch.from_numpy(np.ascontiguousarray(a.transpose(axes)))
  theirs = first(arrays[0], (0, 1, 4, 2, 3)), first(arrays[1], (0, 1, 4, 2, 3)), first(arrays[2], (3, 2, 0, 1))
  ours = [jnp.asarray(a) for a in arrays]
  waited = lambda f: lambda: jax.block_until_ready(f(*ours))
  return {"ours": waited(looped(conv.conv)), "XLA's": waited(looped(lax.conv_general_dilated)),
          "PyTorch": functools.partial(torched(), *theirs)}


def run(repeats: int) -> dict:
  return compared(alternated(sides(), repeats), {})
