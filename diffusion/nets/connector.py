"""What carries the hidden states of one network to where another one expects the words of its text encoder (UAE,
2509.09666): linear, GELU, linear, token by token. Published for Qwen2.5-VL-3B and SD3.5: 2048 -> 8192 -> 4096.
"""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.layers import Dense


class Connector(nn.Module):
  """states [B L D] -> [B L width], float32."""
  inner: int
  width: int

  @nn.compact
  def __call__(self, states):
    h = nn.gelu(Dense(self.inner, name="fc1")(states.astype(jnp.float32)), approximate=False)
    return Dense(self.width, name="fc2")(h)


def make(inner: int = 8192, width: int = 4096) -> Connector:
  """inner: width in between; width: of the generator's text. ValueError where one is below 1."""
  if min(inner, width) < 1:
    raise ValueError(f"connector: inner = {inner} and width = {width} must be at least 1; width is that of the text "
                     "that the generator was made for")
  return Connector(inner, width)
