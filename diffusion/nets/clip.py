"""CLIP (2103.00020): a picture and a text as vectors that can be compared, each by its own transformer."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.layers import Dense


class Clip(nn.Module):
  """see: pixels [B image image 3], normalised -> [B projection]. read: tokens [B L] -> [B projection]; neither of unit
  length. logit_scale is the logarithm of the factor of cosines that training used.

  vision: a nets/vit.ViT. text: a nets/text.Text with this projection, or None for pictures alone.
  """
  vision: Any
  text: Any
  projection: int

  def setup(self):
    self.visual_projection = Dense(self.projection, use_bias=False, dtype=self.vision.dtype)
    if self.text is not None:
      self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), (1,))

  def see(self, pixels):
    return self.visual_projection(self.vision(pixels)[:, 0])

  def read(self, tokens):
    """Padding is looked at, as published; behind the end it changes nothing."""
    return self.text(tokens, jnp.ones(tokens.shape, bool))[1]

  def __call__(self, pixels, tokens=None):
    """(see, read) where there are tokens, else see."""
    return self.see(pixels) if tokens is None else (self.see(pixels), self.read(tokens))
