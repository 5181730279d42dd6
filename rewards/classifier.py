"""A small CNN over labelled images: probability of the asked class as a differentiable reward, and how it is trained.

The batch says what was asked for in `label` [B]. Trained by the algorithm `fit` with cross-entropy, label smoothing and
light augmentation (shifts, noise), so that its probability stays informative off the data. Left out:
anything pretrained.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.layers import Conv
from rewards.core import Reward, Scores

OUTPUTS = ("probability", "log_probability")


class Net(nn.Module):
  """Two convolutions a resolution, halved while above 4, then a dense layer. [B H W C] in [-1, 1] -> logits."""
  classes: int
  width: int

  @nn.compact
  def __call__(self, x):
    width = self.width
    while True:
      for _ in range(2):
        x = nn.silu(nn.GroupNorm(num_groups=min(8, width))(Conv(width, (3, 3))(x)))
      if min(x.shape[1:3]) <= 4:
        break
      x, width = nn.avg_pool(x, (2, 2), (2, 2), "SAME"), 2 * width
    x = x.reshape(x.shape[0], -1) if x.shape[1] * x.shape[2] <= 16 else x.mean((1, 2))
    return nn.Dense(self.classes)(nn.silu(nn.Dense(4 * self.width)(x)))


def shifted(key, image, most: int):
  """One image [H W C] moved by up to `most` pixels each way; edges are repeated."""
  padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), "edge")
  start = jax.random.randint(key, (2,), 0, 2 * most + 1)
  return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)


def augmented(keys, media, shift: int, noise: float):
  """media [B H W C] in [0, 1] with per-sample shifts and normal noise of a random strength up to `noise`."""
  def one(key, image):
    k_shift, k_size, k_noise = jax.random.split(key, 3)
    moved = shifted(k_shift, image, shift)
    return moved + noise * jax.random.uniform(k_size) * jax.random.normal(k_noise, image.shape)
  return jax.vmap(one)(keys, media)


def make(classes: int = 10, size: int = 8, channels: int = 1, width: int = 16, output: str = "probability",
         shift: int = 1, noise: float = 0.1, smoothing: float = 0.0) -> Reward:
  """Args: output: what `total` is, "probability" of the asked class or its logarithm; both are parts, with `accuracy`.

  shift (pixels), noise (standard deviation, media are in [0, 1]) and smoothing (of labels) act in training only."""
  sizes = {"classes": (classes, 2), "size": (size, 4), "channels": (channels, 1), "width": (width, 1)}
  for name, (value, least) in sizes.items():
    if value < least:
      raise ValueError(f"{name} = {value} must be at least {least}; change it")
  if output not in OUTPUTS:
    raise ValueError(f"output = {output!r} is not one of {', '.join(OUTPUTS)}; choose one of them")
  if width % min(8, width):
    raise ValueError(f"width = {width} must be below 8 or a multiple of it, for the groups of its norms; change it")
  net = Net(classes, width)

  def init(key):
    return {"net": net.init(key, jnp.zeros((1, size, size, channels)))["params"]}

  def logits(view, media):
    return net.apply({"params": view["net"]}, 2 * media - 1)

  def label(batch):
    if "label" not in batch:
      raise ValueError(f"batch entry 'label' is missing, it has {', '.join(sorted(batch))}; 'classifier' judges "
                       "labelled records, choose such a data set or another reward")
    return jnp.asarray(batch["label"])

  def score(view, batch, media, keys):
    asked, out = label(batch), logits(view, media)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(out), asked[:, None], axis=1)[:, 0]
    parts = {"probability": jnp.exp(log_prob), "accuracy": (out.argmax(-1) == asked).astype(jnp.float32)}
    total = parts["probability"] if output == "probability" else log_prob
    return Scores(total, parts, jnp.isfinite(total))

  def fit(view, batch, keys):
    asked, media = label(batch), batch["media"].astype(jnp.float32) / 255
    out = logits(view, augmented(keys, media, shift, noise))
    target = (1 - smoothing) * jax.nn.one_hot(asked, classes) + smoothing / classes
    loss = -(target * jax.nn.log_softmax(out)).sum(-1)
    return loss, {"accuracy": (out.argmax(-1) == asked).astype(jnp.float32)}

  return Reward(init, lambda batch: batch, score, "gradient", None, fit)
