"""A BERT encoder (1810.04805) that may look at image tokens in every layer, as BLIP's does (2201.12086).

Arithmetic is that of transformers' BertModel without token types, and with an image of BlipTextModel: every token sees
the whole text but its padding, and a norm stands behind each residual sum, the first behind the embeddings. Left out:
token types (BLIP's has none), the pooler, dropout, and decoding.
"""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.attention import attend
from diffusion.nets.layers import Dense, remat, unroll
from diffusion.nets.layers import variant as named
from diffusion.nets.text import ACTIVATIONS

EPSILON = 1e-12


class Attention(nn.Module):
  """(x [B L C], source [B S D], mask) -> [B L C]: x looks at `source`; a residual sum and its norm."""
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x, source, mask=None):
    dense = lambda name: Dense(x.shape[-1], dtype=self.dtype, name=name)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
    q, k, v = split(dense("q")(x)), split(dense("k")(source)), split(dense("v")(source))
    out = dense("out")(attend(q, k, v, mask=mask).reshape(x.shape))
    return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x + out)


class Layer(nn.Module):
  """(x [B L C], mask [B 1 1 L], image [B N D] or None) -> (x, None): the text, then the image, then `inner` units."""
  heads: int
  inner: int
  activation: str
  dtype: Any

  @nn.compact
  def __call__(self, x, mask, image):
    x = Attention(self.heads, self.dtype, name="self")(x, x, mask)
    if image is not None:
      x = Attention(self.heads, self.dtype, name="cross")(x, image)
    h = ACTIVATIONS[self.activation](Dense(self.inner, dtype=self.dtype, name="fc1")(x))
    h = Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)
    return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x + h), None


class Bert(nn.Module):
  """tokens [B L], mask [B L] (False is padding), image [B N D] or None -> hidden [B L width], after the last norm.

  Whether layers have weights for an image depends on whether they are drawn with one; those that do may be called
  without, and read the text alone. length: of the table of positions. remat: see `layers.remat`; a layer is a unit.
  """
  vocab: int = 30522
  length: int = 512
  width: int = 768
  depth: int = 12
  heads: int = 12
  inner: int = 3072
  activation: str = "gelu"
  remat: bool | str = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, tokens, mask, image=None):
    check(self, tokens, mask)
    dtype, init = jnp.dtype(self.dtype), nn.initializers.normal(0.02)
    place = self.param("position", init, (self.length, self.width))[:tokens.shape[1]]
    x = nn.Embed(self.vocab, self.width, embedding_init=init, name="token")(tokens)
    x = x.astype(jnp.float32) + place.astype(jnp.float32)
    x = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name="norm")(x)
    stack = nn.scan(remat(self.remat)(Layer), variable_axes={"params": 0}, split_rngs={"params": True},
                    in_axes=(nn.broadcast, nn.broadcast), length=self.depth, unroll=unroll(self.depth))
    layers = stack(self.heads, self.inner, self.activation, dtype, name="blocks")
    return layers(x, mask[:, None, None].astype(bool), image)[0]


def check(net: Bert, tokens, mask) -> None:
  """Refuses names and sizes that do not fit, by name."""
  if net.activation not in ACTIVATIONS:
    raise ValueError(f"bert: activation = {net.activation!r} is not one of {', '.join(ACTIVATIONS)}; choose one of "
                     "them")
  if net.width % net.heads:
    raise ValueError(f"bert: width = {net.width} must be a multiple of heads = {net.heads}; change one of them")
  if tokens.ndim != 2 or mask.shape != tokens.shape:
    raise ValueError(f"bert: mask of shape {mask.shape} and tokens of shape {tokens.shape} must both be [B L]; pass a "
                     "mask of ones to look at every token")
  if tokens.shape[1] > net.length:
    raise ValueError(f"bert: prompts of {tokens.shape[1]} tokens must not exceed length = {net.length}, the table of "
                     "positions; shorten the prompts or raise length")


VARIANTS = {
  "base": {},
  "blip": {"vocab": 30524},  # with a token to decode and one to encode behind the vocabulary
  "tiny": {"vocab": 128, "length": 16, "width": 16, "depth": 2, "heads": 2, "inner": 24},
}


def make(variant: str = "base", *, vocab: int = None, length: int = None, width: int = None, depth: int = None,
         heads: int = None, inner: int = None, activation: str = None, remat: bool | str = None,
         dtype: str = None) -> Bert:
  """A size of VARIANTS; an option that is not None replaces that field of `Bert`."""
  options = {k: v for k, v in locals().items() if k != "variant"}
  return named(Bert, VARIANTS, variant, options)
