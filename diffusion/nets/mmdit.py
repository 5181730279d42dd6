"""The MMDiT of Stable Diffusion 3 and 3.5 (2403.03206), NHWC in and out, as one Linen module.

Text and image tokens have weights of their own and attend jointly; arithmetic is that of diffusers'
SD3Transformer2DModel. Equal blocks are one `nn.scan`, so that compile time does not grow with depth: their weights have
a leading axis. Softmax, norm statistics and the time embedding are float32 whatever `dtype` is. Left out: ControlNet
residuals, skipped layers.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.layers import Dense, Embedded, remat, sinusoid, unroll
from diffusion.nets.layers import variant as named


def positions(width: int, table: int, base: int, rows: int, columns: int):
  """The middle rows x columns of a table x table grid of sin-cos vectors [rows columns width]; half for x, half for y.

  base: patches of a side at the resolution trained first, where neighbours are one unit apart (2403.03206, B.3).
  """
  if max(rows, columns) > table:
    raise ValueError(f"mmdit: an input of {rows}x{columns} patches must not exceed table = {table}, the table of "
                     "positions; use a smaller input or raise table")
  frequencies = 1 / 10000 ** (jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
  place = lambda n: (jnp.arange(n) + (table - n) // 2) / (table / base)

  def waves(n):
    angles = place(n)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
  x = jnp.broadcast_to(waves(columns)[None], (rows, columns, width // 2))
  y = jnp.broadcast_to(waves(rows)[:, None], (rows, columns, width // 2))
  return jnp.concatenate([x, y], -1)


def modulated(x, shift, scale):
  """LayerNorm without weights, then scale and shift [B C] that depend on the time."""
  norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=x.dtype, parent=None)
  return norm.apply({}, x) * (1 + scale[:, None]) + shift[:, None]


def modulation(width: int, dtype: Any, name: str) -> Dense:
  """Dense that starts at zero, so that a block starts as the identity (adaLN-zero, 2212.09748)."""
  return Dense(width, kernel_init=nn.initializers.zeros, dtype=dtype, name=name)


class Heads(nn.Module):
  """x [B N C] -> queries, keys, values [B N heads C / heads], with RMSNorm of queries and keys if `norm`."""
  heads: int
  norm: bool
  dtype: Any

  @nn.compact
  def __call__(self, x):
    split = lambda name: Dense(x.shape[-1], dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
    q, k, v = split("q"), split("k"), split("v")
    if self.norm:
      q, k = (nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name=f"{n}_norm")(a) for n, a in (("q", q), ("k", k)))
    return q, k, v


class MLP(nn.Module):
  """Dense, tanh-GELU, Dense, four times as wide inside."""
  dtype: Any

  @nn.compact
  def __call__(self, x):
    h = nn.gelu(Dense(4 * x.shape[-1], dtype=self.dtype, name="in")(x))
    return Dense(x.shape[-1], dtype=self.dtype, name="out")(h)


class Block(nn.Module):
  """((x [B N C], c [B L C]), temb [B C], mask [B 1 1 N+L]) -> ((x, c), None).

  dual: a second attention of the image to itself, as SD3.5-medium has. last: the text is read, but not changed further.
  """
  heads: int
  norm: bool
  dual: bool
  last: bool
  dtype: Any

  @nn.compact
  def __call__(self, carry, temb, mask):
    (x, c), width, dtype = carry, temb.shape[-1], self.dtype
    dense = lambda name: Dense(width, dtype=dtype, name=name)
    heads = lambda name: Heads(self.heads, self.norm, dtype, name=name)
    signal = nn.silu(temb)
    shift, scale, gate, shift_m, scale_m, gate_m, *second = jnp.split(
      modulation((9 if self.dual else 6) * width, dtype, "x_mod")(signal), 9 if self.dual else 6, -1)
    if self.last:  # diffusers' AdaLayerNormContinuous has the scale first
      c_scale, c_shift = jnp.split(modulation(2 * width, dtype, "c_mod")(signal), 2, -1)
    else:
      c_shift, c_scale, c_gate, *c_mlp = jnp.split(modulation(6 * width, dtype, "c_mod")(signal), 6, -1)
    qkv = zip(heads("x_qkv")(modulated(x, shift, scale)), heads("c_qkv")(modulated(c, c_shift, c_scale)), strict=True)
    joint = jax.nn.dot_product_attention(*(jnp.concatenate(pair, 1) for pair in qkv), mask=mask)
    joint = joint.reshape(*joint.shape[:2], -1)
    out = x + gate[:, None] * dense("x_out")(joint[:, :x.shape[1]])
    if self.dual:
      alone = jax.nn.dot_product_attention(*heads("dual_qkv")(modulated(x, *second[:2])))
      out = out + second[2][:, None] * dense("dual_out")(alone.reshape(x.shape))
    out = out + gate_m[:, None] * MLP(dtype, name="x_mlp")(modulated(out, shift_m, scale_m))
    if self.last:
      return (out, c), None
    c = c + c_gate[:, None] * dense("c_out")(joint[:, x.shape[1]:])
    return (out, c + c_mlp[2][:, None] * MLP(dtype, name="c_mlp")(modulated(c, *c_mlp[:2]))), None


class MMDiT(nn.Module):
  """x [B H W C], t [B] on the network's clock, context [B L D], mask [B L], pooled [B E] -> [B H W channels].

  patch: side of a token in pixels. dual: how many of the first blocks have a second image attention. norm: RMSNorm of
  queries and keys. table, base: see `positions`. remat: see `layers.remat`; a block is a unit.
  """
  channels: int = 16
  patch: int = 2
  width: int = 1536
  depth: int = 24
  heads: int = 24
  dual: int = 0
  norm: bool = False
  table: int = 192
  base: int = 64
  remat: bool | str = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x, t, context, mask=None, pooled=None):
    check(self, x, pooled)
    dtype, (b, height, width, _) = jnp.dtype(self.dtype), x.shape
    rows, columns, p = height // self.patch, width // self.patch, self.patch
    # patches as rows of (patch, patch, channels): a strided convolution's kernel, reshaped
    tokens = x.reshape(b, rows, p, columns, p, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)
    tokens = Dense(self.width, dtype=dtype, name="patch_in")(tokens.astype(dtype))
    place = positions(self.width, self.table, self.base, rows, columns)
    tokens = tokens + place.reshape(1, -1, self.width).astype(dtype)
    temb = Embedded(self.width, name="time")(sinusoid(t, 256)) + Embedded(self.width, name="pooled_text")(pooled)
    context = Dense(self.width, dtype=dtype, name="context_in")(context.astype(dtype))
    if mask is not None:
      mask = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), mask.astype(bool)], 1)[:, None, None]
    tokens, temb = self.blocks(tokens, context, temb.astype(dtype), mask), temb.astype(dtype)
    scale, shift = jnp.split(modulation(2 * self.width, dtype, "mod_out")(nn.silu(temb)), 2, -1)
    out = Dense(p * p * self.channels, kernel_init=nn.initializers.normal(0.02), dtype=dtype, name="patch_out")(
      modulated(tokens, shift, scale))
    return out.reshape(b, rows, columns, p, p, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)

  def blocks(self, x, context, temb, mask):
    """The image tokens after all blocks: `dual_blocks` and `blocks` are stacks, `last_block` stands alone."""
    again = remat(self.remat)
    carry, dual = (x, context), min(self.dual, self.depth - 1)
    for name, count, is_dual in (("dual_blocks", dual, True), ("blocks", self.depth - 1 - dual, False)):
      if count:
        stack = nn.scan(again(Block), variable_axes={"params": 0}, split_rngs={"params": True},
                        in_axes=(nn.broadcast, nn.broadcast), length=count, unroll=unroll(count))
        carry, _ = stack(self.heads, self.norm, is_dual, False, jnp.dtype(self.dtype), name=name)(carry, temb, mask)
    last = again(Block)(self.heads, self.norm, self.dual >= self.depth, True, jnp.dtype(self.dtype), name="last_block")
    return last(carry, temb, mask)[0][0]


def check(net: MMDiT, x, pooled) -> None:
  """Refuses sizes that do not fit each other, by name."""
  if x.shape[1] % net.patch or x.shape[2] % net.patch:
    raise ValueError(f"mmdit: an input of {x.shape[1]}x{x.shape[2]} must be a multiple of patch = {net.patch}; change "
                     "one of them")
  if net.width % net.heads or net.width % 4:
    raise ValueError(f"mmdit: width = {net.width} must be a multiple of 4 and of heads = {net.heads}; change one "
                     "of them")
  if pooled is None:
    raise ValueError("mmdit: pooled is None, but time and pooled text [B E] condition every block; pass the "
                     "pooled text")


VARIANTS = {
  "digits": {"channels": 1, "width": 64, "depth": 3, "heads": 4, "norm": True, "table": 8, "base": 4},
  "sd3_medium": {},
  "sd35_medium": {"dual": 13, "norm": True, "table": 384},
  "sd35_large": {"width": 2432, "depth": 38, "heads": 38, "norm": True},
  "tiny": {"channels": 3, "width": 16, "depth": 2, "heads": 2, "table": 16, "base": 8},
}


def make(variant: str = "digits", *, channels: int = None, patch: int = None, width: int = None, depth: int = None,
         heads: int = None, dual: int = None, norm: bool = None, table: int = None, base: int = None,
         remat: bool | str = None, dtype: str = None) -> MMDiT:
  """A size of VARIANTS; an option that is not None replaces that field of `MMDiT`."""
  options = {k: v for k, v in locals().items() if k != "variant"}
  return named(MMDiT, VARIANTS, variant, options)
