"""ImageReward's network (2304.05977): BLIP's image encoder, BERT that looks at it in every layer, and a head.

BLIP (2201.12086) as it compares a text with an image: the image is read whole, the text with the image beside it, and
what stands at the text's first token goes through linear layers to one number. There is no activation between these, so
that the head is one affine map, though its layers are trained apart. Left out: BLIP's decoder, its projections for
contrastive learning, momentum copies.
"""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.layers import Dense


class Head(nn.Module):
  """[B D] -> [B] float32, through linear layers of these widths and of 1; drawn as published, N(0, 1 / (D + 1)^2)."""
  widths: tuple = (1024, 128, 64, 16)

  @nn.compact
  def __call__(self, x):
    x, init = x.astype(jnp.float32), nn.initializers.normal(1 / (x.shape[-1] + 1))
    for i, width in enumerate((*self.widths, 1)):
      x = Dense(width, kernel_init=init, name=f"fc{i}")(x)
    return x[:, 0]


class ImageReward(nn.Module):
  """pixels [B image image 3], normalised, tokens [B L], mask [B L] (False is padding) -> (number [B] float32, hidden
  [B L width] of the text).

  vision: a nets/vit.ViT. text: a nets/bert.Bert, of another width. head: widths inside the head.
  """
  vision: Any
  text: Any
  head: tuple = (1024, 128, 64, 16)

  @nn.compact
  def __call__(self, pixels, tokens, mask):
    hidden = self.text(tokens, mask, self.vision(pixels))
    return Head(tuple(self.head), name="mlp")(hidden[:, 0]), hidden
