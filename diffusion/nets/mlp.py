"""A perceptron on all pixels at once, for pictures as small as handwritten digits: a run of it is seconds, and hardly
anything has to be compiled. `words` is the text encoder to go with it. Left out: everything that makes pictures large.
"""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.layers import Dense, sinusoid
from diffusion.nets.layers import variant as named


class MLP(nn.Module):
  """x [B H W C] at t [B] with pooled text [B D] -> [B H W C]; residual layers, each of which sees text and time."""
  width: int
  depth: int

  @nn.compact
  def __call__(self, x, t, context, mask=None, pooled=None):
    given = jnp.concatenate([pooled, sinusoid(t, 32)], -1)
    h = Dense(self.width, name="in")(x.reshape(x.shape[0], -1))
    for i in range(self.depth):
      seen = nn.silu(h + Dense(self.width, name=f"given{i}")(given))
      h = h + Dense(self.width, name=f"out{i}")(nn.silu(Dense(self.width, name=f"mid{i}")(seen)))
    return Dense(x[0].size, name="out")(nn.silu(h)).reshape(x.shape)


class Words(nn.Module):
  """tokens [B L], mask [B L] -> a vector a token [B L width] and their mean [B width]."""
  width: int
  vocab: int

  @nn.compact
  def __call__(self, tokens, mask):
    context = nn.Embed(self.vocab, self.width, name="token")(tokens)
    return context, (context * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]


VARIANTS = {"digits": {"width": 256, "depth": 3}, "tiny": {"width": 16, "depth": 1}}


def make(variant: str = "digits", *, width: int = None, depth: int = None) -> MLP:
  """A size of VARIANTS; an option that is not None replaces that field of `MLP`."""
  return named(MLP, VARIANTS, variant, {"width": width, "depth": depth})


def words(width: int = 32, vocab: int = 128) -> Words:
  """The text encoder, named "diffusion.nets.mlp:words"."""
  return Words(width, vocab)
