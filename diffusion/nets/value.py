"""A small value network V(x_t, t, cond): what return to expect from a state of a denoising chain.

Convolutions with halving, the mean over places, the noise level's embedding and the mean of every leaf of the
condition (token ids are embedded; a leaf `mask` says which places count), then a dense layer. Its last layer starts at
0, so that V = 0 at first. Left out: a tower shared with the generator.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.layers import Conv, Embedded, sinusoid


class Value(nn.Module):
  """x [B H W C] (or [B F H W C]), t [B] in [0, 1], cond (tree with leading B) -> [B] float32."""
  width: int = 32
  vocab: int = 4096

  @nn.compact
  def __call__(self, x, t, cond):
    h, width = x.astype(jnp.float32), self.width
    while h.shape[-3] > 4:
      h = nn.silu(Conv(width, (3, 3), strides=(2, 2))(h))
    h = nn.silu(Conv(width, (3, 3))(h)).mean(tuple(range(1, h.ndim - 1)))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(cond)}
    mask = leaves.pop("['mask']", None)
    said = sum(nn.Dense(width)(self.pooled(leaf, mask)) for leaf in leaves.values())
    h = nn.silu(nn.Dense(2 * width)(jnp.concatenate([h, said, Embedded(width)(sinusoid(1000 * t, width))], -1)))
    return nn.Dense(1, kernel_init=nn.initializers.zeros, name="out")(h)[:, 0]

  def pooled(self, leaf, mask):
    """[B ...] -> [B width or C]: integers are looked up, then all axes between the first and the last averaged, where
    they are those of `mask` [B L] over what it shows."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      leaf = leaf.astype(jnp.float32)
    else:
      leaf = nn.Embed(self.vocab, self.width)(leaf.astype(jnp.int32) % self.vocab)
    if mask is not None and leaf.shape[:-1] == mask.shape:
      shown = mask[..., None].astype(leaf.dtype)
      return (leaf * shown).sum(1) / jnp.maximum(shown.sum(1), 1)
    return leaf.mean(tuple(range(1, leaf.ndim - 1))) if leaf.ndim > 2 else leaf


def make(width: int = 32, vocab: int = 4096) -> Value:
  return Value(width, vocab)
