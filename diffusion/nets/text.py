"""A CLIP-like text transformer (2103.00020): tokens to one vector a token and one a prompt.

`causal` with quick_gelu is OpenAI's CLIP; without, every token sees the whole prompt, as a small encoder trained with
its generator wants. Public pipelines let CLIP attend to padding: give a mask of ones for that. Left out: the image
tower.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.attention import attend
from diffusion.nets.layers import Dense, remat, unroll
from diffusion.nets.layers import variant as named

ACTIVATIONS = {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x), "gelu": lambda x: nn.gelu(x, approximate=False),
               "gelu_pytorch_tanh": nn.gelu}
POOLS = ("end", "highest", "mean")


class Layer(nn.Module):
  """(x [B L C], mask) -> (x, None, or x as it came if `keeps`): LayerNorm, attention, LayerNorm, MLP; each half
  residual. mask [B 1 1 L] or [B 1 L L], False is not looked at, or None. scale: each half is multiplied by a learned
  vector, gain1 and gain2, before it is added (DINOv2's layer scale)."""
  heads: int
  inner: int
  activation: str
  keeps: bool
  dtype: Any
  epsilon: float = 1e-5
  scale: bool = False

  @nn.compact
  def __call__(self, x, mask):
    norm = lambda name: nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
    dense = lambda width, name: Dense(width, dtype=self.dtype, name=name)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
    came, h, width = x, norm("norm1")(x), x.shape[-1]
    gain = lambda a, name: a * self.param(name, nn.initializers.ones, (width,)).astype(a.dtype) if self.scale else a
    q, k, v = (split(dense(width, name)(h)) for name in ("q", "k", "v"))
    x = x + gain(dense(width, "out")(attend(q, k, v, mask=mask).reshape(x.shape)), "gain1")
    h = ACTIVATIONS[self.activation](dense(self.inner, "fc1")(norm("norm2")(x)))
    return x + gain(dense(width, "fc2")(h), "gain2"), came if self.keeps else None


class Text(nn.Module):
  """tokens [B L], mask [B L] (False is padding) -> context [B L width], pooled [B projection or width].

  pool: "end" is the feature at the first token `end` (None: at the last token that is no padding), as CLIP takes it,
  "highest" at the token of the highest number, as CLIPs do whose config.json says eos_token_id 2, "mean" the mean over
  tokens that are no padding. skip: context is read that many layers before the last, as SDXL does, without the final
  norm unless `skip_norm`, as SD1.5's clip-skip has it. inner: width inside the MLP, 0 for 4 * width. projection: width
  of a linear map of the pooled feature, 0 for none. The layers are one `nn.scan`, with a leading axis in their weights.
  """
  vocab: int = 128
  length: int = 77
  width: int = 64
  depth: int = 2
  heads: int = 4
  causal: bool = False
  activation: str = "gelu"
  pool: str = "end"
  end: int | None = None
  skip: int = 0
  skip_norm: bool = False
  inner: int = 0
  projection: int = 0
  remat: bool | str = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, tokens, mask):
    check(self, tokens)
    dtype, n, init = jnp.dtype(self.dtype), tokens.shape[1], nn.initializers.normal(0.02)
    place = self.param("position", init, (self.length, self.width))[:n]
    x = nn.Embed(self.vocab, self.width, embedding_init=init, name="token")(tokens)
    x = (x.astype(jnp.float32) + place.astype(jnp.float32)).astype(dtype)  # not rounded as weights of a file may be
    seen = mask[:, None, None, :]
    if self.causal:
      seen = seen & jnp.tril(jnp.ones((n, n), bool))
    stack = nn.scan(remat(self.remat)(Layer), variable_axes={"params": 0}, split_rngs={"params": True},
                    in_axes=nn.broadcast, length=self.depth, unroll=unroll(self.depth))
    layers = stack(self.heads, self.inner or 4 * self.width, self.activation, self.skip > 0, dtype, name="blocks")
    last, inputs = layers(x, seen)
    norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="norm")
    x = norm(last)
    pooled = (x * self.weights(tokens, mask)[..., None]).sum(1).astype(dtype)
    if self.projection:
      pooled = Dense(self.projection, use_bias=False, dtype=dtype, name="projection")(pooled)
    if not self.skip:
      return x, pooled
    context = inputs[self.depth - self.skip]
    return (norm(context) if self.skip_norm else context), pooled

  def weights(self, tokens, mask):
    """[B L] float32, what each token contributes to the pooled feature."""
    if self.pool == "mean":
      return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    if self.pool == "highest":
      last = jnp.argmax(jnp.where(mask, tokens, -1), -1)
    else:
      last = jnp.maximum(mask.sum(-1) - 1, 0) if self.end is None else jnp.argmax(tokens == self.end, -1)
    return jax.nn.one_hot(last, tokens.shape[1])


def check(net: Text, tokens) -> None:
  """Refuses names and sizes that do not fit, by name."""
  for name, allowed in (("activation", tuple(ACTIVATIONS)), ("pool", POOLS)):
    if getattr(net, name) not in allowed:
      raise ValueError(f"text: {name} = {getattr(net, name)!r} is not one of {', '.join(allowed)}; choose one of them")
  if not 0 <= net.skip < net.depth:
    raise ValueError(f"text: skip = {net.skip} must be at least 0 and less than depth = {net.depth}; change one of "
                     "them")
  if tokens.shape[1] > net.length:
    raise ValueError(f"text: prompts of {tokens.shape[1]} tokens must not exceed length = {net.length}, the table of "
                     "positions; shorten the prompts or raise length")
  if net.width % net.heads:
    raise ValueError(f"text: width = {net.width} must be a multiple of heads = {net.heads}; change one of them")


VARIANTS = {
  "scenes": {"vocab": 128, "length": 48, "width": 64, "depth": 2, "heads": 4},
  "clip_l": {"vocab": 49408, "width": 768, "depth": 12, "heads": 12, "causal": True, "activation": "quick_gelu",
             "end": 49407},
  "clip_g": {"vocab": 49408, "width": 1280, "depth": 32, "heads": 20, "causal": True, "end": 49407, "skip": 1,
             "projection": 1280},
  "tiny": {"vocab": 128, "length": 48, "width": 16, "depth": 1, "heads": 2},
}


def make(variant: str = "scenes", *, vocab: int = None, length: int = None, width: int = None, depth: int = None,
         heads: int = None, causal: bool = None, activation: str = None, pool: str = None, end: int = None,
         skip: int = None, skip_norm: bool = None, inner: int = None, projection: int = None,
         remat: bool | str = None, dtype: str = None) -> Text:
  """A size of VARIANTS; an option that is not None replaces that field of `Text`."""
  options = {k: v for k, v in locals().items() if k != "variant"}
  return named(Text, VARIANTS, variant, options)
