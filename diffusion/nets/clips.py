"""A small network of clips: the U-Net of unet.py over whole clips, whose frames are stacked as channels, between
convolutions over single frames and their neighbours.

  x [B F H W C] -> stem: convolution over F, H and W -> trunk: one U-Net over [B H W F stem], which sees the words and
  decides what is where in every frame -> head: residual blocks over each frame, beside the stem's, which draw it

One U-Net for all frames costs hardly more than for a picture, but must hold F pictures in its channels, which blurs
shapes; the head, of the same weights for every frame, makes them sharp. Left out: attention over time, clips of other
lengths than the network was made for.
"""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets.layers import Conv, Embedded, GroupNorm, sinusoid
from diffusion.nets.layers import variant as named
from diffusion.nets.unet import ResBlock, UNet


class Clips(nn.Module):
  """x [B F H W C], t [B] on the network's clock, context [B L D], mask [B L], pooled [B E] -> [B F H W channels].

  stem: channels of a frame between trunk and head. blocks: of the head. The other fields are the trunk's, see `UNet`,
  which sees the pooled text too.
  """
  channels: int = 3
  stem: int = 8
  blocks: int = 2
  widths: tuple[int, ...] = (24, 48, 64)
  layers: int = 1
  depth: tuple[int, ...] = (0, 1, 1)
  alone: tuple[bool, ...] = (False, False, True)
  head: tuple[int, ...] = (24, 24, 32)
  groups: int = 8
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x, t, context, mask=None, pooled=None):
    check(self, x)
    dtype, (b, f, height, width, _) = jnp.dtype(self.dtype), x.shape
    conv = lambda size, name: Conv(size, (3, 3), padding=1, dtype=dtype, name=name)
    own = conv(self.stem, "stem")(beside(x.astype(dtype))).reshape(b, f, height, width, self.stem)
    stacked = jnp.moveaxis(own, 1, 3).reshape(b, height, width, f * self.stem)
    trunk = UNet(f * self.stem, self.widths, self.layers, self.depth, None, self.alone, self.head, self.groups, True,
                 dtype=self.dtype, name="trunk")
    drawn = trunk(stacked, t, context, mask, pooled).reshape(b, height, width, f, self.stem)
    h = jnp.concatenate([jnp.moveaxis(drawn, 3, 1), own], -1).reshape(b * f, height, width, 2 * self.stem)
    temb = Embedded(4 * self.stem, name="time")(sinusoid(t, self.stem))
    temb = temb + Embedded(4 * self.stem, name="pooled_text")(pooled)
    for i in range(self.blocks):
      h = ResBlock(self.stem, self.groups, dtype, name=f"head_{i}")(h, jnp.repeat(temb, f, 0).astype(dtype))
    h = nn.silu(GroupNorm(self.groups, 1e-5, dtype, name="norm_out")(h))
    return conv(self.channels, "conv_out")(h).reshape(b, f, height, width, self.channels)


def beside(x):
  """Clips [B F H W C] -> frames [B F, H W 3 C] with the frames before and after, zeros at the ends."""
  b, f, height, width, c = x.shape
  longer = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  return jnp.concatenate([longer[:, i:i + f] for i in range(3)], -1).reshape(b * f, height, width, 3 * c)


def check(net: Clips, x) -> None:
  """Refuses pictures, and a stem that cannot be normalised, by name."""
  if x.ndim != 5:
    raise ValueError(f"clips: an input of shape {x.shape} must be clips [B F H W C]; set frames of the policy, or "
                     "choose the network unet for pictures")
  if net.stem % net.groups:
    raise ValueError(f"clips: stem = {net.stem} must be a multiple of groups = {net.groups}; change one of them")


VARIANTS = {
  "scenes": {},
  "tiny": {"stem": 4, "blocks": 1, "widths": (8, 8), "depth": (1, 1), "alone": (False, True), "head": (8, 8),
           "groups": 4},
}


def make(variant: str = "scenes", *, channels: int = None, stem: int = None, blocks: int = None,
         widths: tuple[int, ...] = None, layers: int = None, depth: tuple[int, ...] = None,
         alone: tuple[bool, ...] = None, head: tuple[int, ...] = None, groups: int = None, dtype: str = None) -> Clips:
  """A size of VARIANTS; an option that is not None replaces that field of `Clips`."""
  options = {k: v for k, v in locals().items() if k != "variant"}
  return named(Clips, VARIANTS, variant, options)
