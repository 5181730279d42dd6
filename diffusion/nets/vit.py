"""The vision transformer (2010.11929) of CLIP (2103.00020), BLIP (2201.12086) and DINOv2 (2304.07193; with registers,
2309.16588): one picture to a vector for itself and one a patch.

Arithmetic is that of transformers' CLIPVisionModel, BlipVisionModel, Dinov2Model and Dinov2WithRegistersModel in
evaluation. Pixels that do not fill a patch, at the right and the bottom, are not looked at. Left out: gated MLPs
(DINOv2's largest size), masked patches, dropout.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.nets.layers import Dense, remat, unroll
from diffusion.nets.layers import variant as named
from diffusion.nets.text import ACTIVATIONS, Layer

PLACES = ("fixed", "bicubic", "antialias")


class ViT(nn.Module):
  """pixels [B H W 3], normalised -> hidden [B 1 + registers + N width] after the last norm: the picture's own vector,
  registers, and N = (H // patch) * (W // patch) patches in raster order.

  image, patch: sides of the square picture that the places were learned for, and of a patch, in pixels. inner: width
  inside the MLP. epsilon: of the norms. before: a norm in front of the blocks (CLIP). patch_bias: patches have one (not
  in CLIP). scale: blocks have learned gains (DINOv2). registers: vectors that stand for nothing. mask: a vector that
  pretraining put in place of patches is held, so that it can be written back, without effect (DINOv2). places: pictures
  are of side `image` ("fixed"), or of any, for which places are interpolated, "bicubic" by four values each (DINOv2) or
  with "antialias" (with registers). remat: see `layers.remat`; a block is a unit. ValueError for pixels of another
  shape.
  """
  image: int = 224
  patch: int = 14
  width: int = 1024
  depth: int = 24
  heads: int = 16
  inner: int = 4096
  activation: str = "gelu"
  epsilon: float = 1e-5
  before: bool = False
  patch_bias: bool = True
  scale: bool = False
  registers: int = 0
  mask: bool = False
  places: str = "fixed"
  remat: bool | str = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, pixels):
    check(self, pixels)
    dtype, p, init = jnp.dtype(self.dtype), self.patch, nn.initializers.normal(0.02)
    b, (high, wide), side = pixels.shape[0], (n // p for n in pixels.shape[1:3]), self.image // p
    vector = lambda name, count: self.param(name, init, (count, self.width)).astype(jnp.float32)
    norm = lambda name: nn.LayerNorm(epsilon=self.epsilon, dtype=dtype, name=name)
    if self.mask and self.is_initializing():
      vector("mask", 1)
    x = pixels[:, :high * p, :wide * p].reshape(b, high, p, wide, p, 3).swapaxes(2, 3).reshape(b, high * wide, -1)
    x = Dense(self.width, use_bias=self.patch_bias, dtype=dtype, name="patch_in")(x.astype(dtype))
    place = placed(vector("position", 1 + side * side), side, high, wide, self.places == "antialias")
    own = jnp.concatenate([vector("class", 1) + place[:1], *([vector("registers", self.registers)] if self.registers
                                                             else [])])
    x = jnp.concatenate([jnp.broadcast_to(own, (b, *own.shape)), x.astype(jnp.float32) + place[1:]], 1).astype(dtype)
    x = norm("pre_norm")(x) if self.before else x
    stack = nn.scan(remat(self.remat)(Layer), variable_axes={"params": 0}, split_rngs={"params": True},
                    in_axes=nn.broadcast, length=self.depth, unroll=unroll(self.depth))
    layers = stack(self.heads, self.inner, self.activation, False, dtype, self.epsilon, self.scale, name="blocks")
    return norm("norm")(layers(x, None)[0])

  def example(self):
    """What this may be called with, of the smallest size."""
    return (jnp.zeros((1, self.image, self.image, 3)),)


def placed(table, side: int, high: int, wide: int, antialias: bool):
  """Vectors of places [1 + side^2 C], the first of which is the picture's own -> [1 + high * wide C], interpolated."""
  if (high, wide) == (side, side):
    return table
  grid = table[1:].reshape(side, side, -1)
  if antialias:
    grid = jax.image.resize(grid, (high, wide, grid.shape[-1]), "cubic")
  else:
    grid = jnp.einsum("hy,wx,yxc->hwc", taps(high, side), taps(wide, side), grid, precision="highest")
  return jnp.concatenate([table[:1], grid.reshape(high * wide, -1)])


def taps(new: int, old: int) -> np.ndarray:
  """[new old] float32 weights of cubic convolution (Keys, 1981) with a = -0.75 and repeated edges, as PyTorch's
  bicubic interpolation without antialiasing has it."""
  a, at = -0.75, (np.arange(new) + 0.5) * old / new - 0.5
  first, out = np.floor(at).astype(int), np.zeros((new, old))
  for i in range(-1, 3):
    d = np.abs(at - first - i)
    weight = np.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4))
    np.add.at(out, (np.arange(new), np.clip(first + i, 0, old - 1)), weight)
  return out.astype(np.float32)


def check(net: ViT, pixels) -> None:
  """Refuses names and sizes that do not fit, by name."""
  for name, allowed in (("activation", tuple(ACTIVATIONS)), ("places", PLACES)):
    if getattr(net, name) not in allowed:
      raise ValueError(f"vit: {name} = {getattr(net, name)!r} is not one of {', '.join(allowed)}; choose one of them")
  if net.width % net.heads:
    raise ValueError(f"vit: width = {net.width} must be a multiple of heads = {net.heads}; change one of them")
  if not 0 < net.patch <= net.image:
    raise ValueError(f"vit: patch = {net.patch} must be positive and at most image = {net.image}, the side of a "
                     "picture; change one of them")
  if pixels.ndim != 4 or pixels.shape[-1] != 3 or min(pixels.shape[1:3]) < net.patch:
    raise ValueError(f"vit: pixels of shape {pixels.shape} must be [B H W 3] with sides of at least patch = "
                     f"{net.patch}; scale the pictures")
  if net.places == "fixed" and pixels.shape[1:3] != (net.image, net.image):
    raise ValueError(f"vit: pixels of shape {pixels.shape} must be [B {net.image} {net.image} 3], the side that the "
                     "places were learned for; scale the pictures to it, or set places to 'bicubic'")


CLIP = {"activation": "quick_gelu", "before": True, "patch_bias": False}
HUGE = {**CLIP, "activation": "gelu", "width": 1280, "depth": 32, "inner": 5120}  # of laion's and DFN's CLIPs
DINO = {"image": 518, "epsilon": 1e-6, "scale": True, "mask": True, "places": "bicubic"}
VARIANTS = {
  "clip_b32": {**CLIP, "patch": 32, "width": 768, "depth": 12, "heads": 12, "inner": 3072},
  "clip_l14": CLIP,
  "clip_h14": HUGE,
  "clip_h14_384": {**HUGE, "image": 378, "activation": "quick_gelu"},  # DFN5B-CLIP-ViT-H-14-378
  "blip_l16": {"patch": 16, "epsilon": 1e-6},
  "dinov2_s14": {**DINO, "width": 384, "depth": 12, "heads": 6, "inner": 1536},
  "dinov2_b14": {**DINO, "width": 768, "depth": 12, "heads": 12, "inner": 3072},
  "dinov2_l14": DINO,
  "tiny": {"image": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2, "inner": 24},
}


def make(variant: str = "clip_l14", *, image: int = None, patch: int = None, width: int = None, depth: int = None,
         heads: int = None, inner: int = None, activation: str = None, epsilon: float = None, before: bool = None,
         patch_bias: bool = None, scale: bool = None, registers: int = None, mask: bool = None, places: str = None,
         remat: bool | str = None, dtype: str = None) -> ViT:
  """A size of VARIANTS; an option that is not None replaces that field of `ViT`."""
  options = {k: v for k, v in locals().items() if k != "variant"}
  return named(ViT, VARIANTS, variant, options)
