"""What several networks share: embeddings of time and places, GroupNorm, rematerialisation, and named sizes."""
import difflib
import math
from collections.abc import Mapping
from typing import Any, Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion import lora
from diffusion.nets import attention, conv

SHORT = 4  # blocks of a stack that is written out


def sinusoid(t, width: int):
  """t [B] -> [B width] float32, cosines before sines, as SD embeds timesteps (flip_sin_to_cos, no frequency shift)."""
  frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def turned(x, angles):
  """x [B T heads head], whose neighbours 2i and 2i + 1 are turned as a pair by angles, cos and sin [2 T head/2]
  (RoFormer, 2104.09864); float32."""
  cos, sin = angles[:, :, None]
  a, b = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
  return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape).astype(x.dtype)


class Dense(nn.Dense):
  """nn.Dense over rows [N C]: XLA's gradient of the kernel copies an activation of rank 3 or 4 transposed first. Its
  kernel may be lora.Adapted."""
  promote_dtype: Callable = lora.promoted
  dot_general: Callable = lora.product

  def __call__(self, x):
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Conv(nn.Conv):
  """nn.Conv, whose kernel may be lora.Adapted, and is gathered where a mesh has it in parts. Its gradient on CPUs is
  that of conv.py."""
  promote_dtype: Callable = lora.summed
  conv_general_dilated: Callable = conv.conv


class Embedded(nn.Module):
  """Dense, SiLU, Dense; float32."""
  width: int

  @nn.compact
  def __call__(self, x):
    return Dense(self.width, name="out")(nn.silu(Dense(self.width, name="in")(x.astype(jnp.float32))))


class GroupNorm(nn.Module):
  """nn.GroupNorm of [B H W C] as one multiply-add a channel: sums over H and W, then over the channels of a group.

  Statistics are float32. It never reshapes the large array, which is what makes the stock one slow on CPUs.
  """
  groups: int
  eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    y = x.astype(jnp.float32)
    grouped = lambda a: a.reshape(a.shape[0], self.groups, -1).mean(-1)
    mean, square = grouped(y.mean((1, 2))), grouped((y * y).mean((1, 2)))
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + self.eps)
    spread = lambda a: jnp.repeat(a, channels // self.groups, 1)
    slope = spread(inverse) * scale
    return (y * slope[:, None, None] + (bias - spread(mean) * slope)[:, None, None]).astype(self.dtype)


def remat(how: bool | str) -> Callable:
  """(module class) -> module class whose backward pass recomputes: all of it (True), nothing (False), all but attention
  ("attention"), or what the named policy of jax.checkpoint_policies does not save. ValueError for an unknown one."""
  if how is False:
    return lambda module: module
  if how is True:
    return nn.remat
  if how == attention.SAVED:
    return lambda module: nn.remat(module, policy=jax.checkpoint_policies.save_only_these_names(how))
  policies = [name for name in dir(jax.checkpoint_policies) if not name.startswith("_") and "names" not in name]
  if how not in policies:
    raise ValueError(f"remat = {how!r} is not True, False or one of {attention.SAVED}, {', '.join(policies)}; choose "
                     "one of them")
  return lambda module: nn.remat(module, policy=getattr(jax.checkpoint_policies, how))


def unroll(count: int) -> int:
  """Blocks of a stack in one turn of its loop: all of a short stack, so that no weights are copied out of it, which on
  CPUs costs a fifth of a step; one of a long stack, so that compile time does not grow with depth."""
  return count if count <= SHORT else 1


def variant(module: Callable, table: Mapping, name: str, options: Mapping) -> nn.Module:
  """A module of a named size, with those of its fields replaced that `options` gives a value other than None."""
  if name not in table:
    near = difflib.get_close_matches(str(name), table, 1)
    raise ValueError(f"{module.__name__}: variant = {name!r} is not one of {', '.join(table)}; choose one of them"
                     + (f" (nearest: {near[0]!r})" if near else ""))
  given = {k: v for k, v in options.items() if v is not None}
  remat(given.get("remat", False))  # refuses what it does not know before anything is traced
  return module(**{**table[name], **given})
