"""lax.conv_general_dilated, whose gradient in the kernel is matrix products on CPUs.

  dL/dkernel[i, j] = sum over samples and places of x, shifted by (i, j), times dL/dy

Within a loop (lax.scan, lax.map), such as the pieces of an update or the steps of a chain, XLA's gradient in the kernel
took a CPU 24 to 97 times as long as outside of one, in layers of 3 to 96 channels, and outside of one it is about as
fast as these products (`launch.bench convs`). Shifts along a row of the kernel stand beside each other in one product,
of x or of dL/dy, whichever has fewer channels: within a fifth of the time of all shifts at once, in a third of the
memory. Other devices, and convolutions in groups, dilated or of other than two dimensions, are left as they are, but
that forward mode (jax.jvp) is left out on all of them.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, strides, padding, *, lhs_dilation=None, rhs_dilation=None, dimension_numbers=None,
         feature_group_count: int = 1, precision=None):
  """As lax.conv_general_dilated, for nn.Conv's `conv_general_dilated`; x [B H W C], kernel [kh kw C D]."""
  plain = functools.partial(lax.conv_general_dilated, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation,
                            dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
                            precision=precision)
  spread = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
  usual = dimension_numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, LAYOUT) if x.ndim == 4 else False
  if spread or feature_group_count != 1 or not usual:
    return plain(x, kernel, strides, padding)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  return usual_conv(x, kernel, tuple(strides), tuple(tuple(pair) for pair in padding), precision)


def library_conv(x, kernel, strides, padding, precision):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, precision=precision)


usual_conv = jax.custom_vjp(library_conv, nondiff_argnums=(2, 3, 4))


def forward(x, kernel, strides, padding, precision):
  # lax's own, not usual_conv: a policy of jax.checkpoint that saves convolutions knows them by that name
  return library_conv(x, kernel, strides, padding, precision), (x, kernel)


def backward(strides, padding, precision, kept, dy):
  x, kernel = kept
  plain = lambda x, kernel: library_conv(x, kernel, strides, padding, precision)
  library = lambda x, dy: jax.vjp(lambda k: plain(x, k), kernel)[1](dy)[0]
  ours = lambda x, dy: products(x, dy, kernel.shape[:2], strides, padding, precision).astype(kernel.dtype)
  return jax.vjp(lambda x: plain(x, kernel), x)[1](dy)[0], lax.platform_dependent(x, dy, cpu=ours, default=library)


usual_conv.defvjp(forward, backward)


def products(x, dy, size, strides, padding, precision=None):
  """The gradient in a kernel of this size [kh kw C D], at least float32: x [B H W C], dy [B H' W' D]."""
  channels, features = x.shape[-1], dy.shape[-1]
  rows = lambda a: a.reshape(-1, a.shape[-1])
  product = functools.partial(jnp.matmul, precision=precision,
                              preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
  if strides == (1, 1) and features <= channels:  # y at p - (i, j) has x at p
    ends = [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(size, padding, strict=True)]
    moved = shifts(dy, size, (1, 1), ends, x.shape[1:3])
    found = jnp.stack([product(rows(x).T, rows(jnp.concatenate(row, -1))) for row in moved])
    return found.reshape(size[0], channels, size[1], features).swapaxes(1, 2)[::-1, ::-1]
  moved = shifts(x, size, strides, padding, dy.shape[1:3])
  found = jnp.stack([product(rows(dy).T, rows(jnp.concatenate(row, -1))) for row in moved])
  return jnp.moveaxis(found.reshape(size[0], features, *size[1:], channels), 1, -1)


def shifts(a, size, strides, padding, out):
  """[kh][kw] of [B *out C]: what each place of a kernel sees of a [B H W C]; padding may be negative."""
  zero = jnp.zeros((), a.dtype)
  padded = lax.pad(a, zero, [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])
  along = lambda i, axis: slice(i, i + (out[axis] - 1) * strides[axis] + 1, strides[axis])
  return [[padded[:, along(i, 0), along(j, 1)] for j in range(size[1])] for i in range(size[0])]
