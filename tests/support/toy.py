"""The smallest things a run can be made of: configs name them as "toy:policy", "toy:reward" and "toy:data"."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from align.data import Source
from align.policies import diffusion
from diffusion import process as processes
from diffusion.core import expand
from rewards.core import Reward, Scores

SIDE = 4
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, t, context, mask=None, pooled=None):
    said = pooled.reshape(len(x), *[1] * (x.ndim - 2), -1)
    said = jnp.broadcast_to(said, x.shape[:-1] + pooled.shape[-1:])
    h = jnp.concatenate([said, x, jnp.broadcast_to(expand(t / 1000, x), x.shape)], -1)
    return nn.Dense(x.shape[-1], name="out")(jnp.tanh(nn.Dense(16, name="in")(h)))


class Text(nn.Module):
  @nn.compact
  def __call__(self, tokens, mask):
    context = nn.Embed(200, 4, name="embed")(tokens)
    return context, context.mean(1)


def policy(kind: str = "flow", kernel: str = "flow_sde", steps: int = 5, frames: int = 0):
  """A policy of a few hundred parameters: flow, or ddpm with its own kernel; of pictures, or of clips."""
  made = processes.flow() if kind == "flow" else processes.ddpm()
  return diffusion.make(Net(), Text(), made, kernel if kind == "flow" else "ddim", length=6, size=SIDE, channels=1,
                        steps=steps, frames=frames, law="uniform")


def reward(where: str = "gradient", failing: int = -1) -> Reward:
  """Smooth in the pixels: bright and flat is better. On the host, call number `failing` gives no number at all."""
  calls = []

  def score(view, batch, media, keys):
    lib = np if where == "host" else jnp
    axes = tuple(range(1, media.ndim))
    bright = lib.asarray(media).mean(axes)
    total = bright - (lib.asarray(media) ** 2).mean(axes)
    calls.append(where)
    if where == "host" and len(calls) - 1 == failing:
      total = total * np.nan
    return Scores(total, {"bright": bright}, lib.ones(len(media), bool))
  return Reward(lambda key: {}, lambda batch: batch, score, where, None)


def words(where: str = "host") -> Reward:
  """Of token ids [B L]: the share of tokens below 50, so that every answer has a score of its own."""
  score = lambda view, batch, media, keys: Scores((media < 50).mean(1), {}, np.ones(len(media), bool))
  return Reward(lambda key: {}, lambda batch: batch, score, where, None)


def texts(count: int = 8) -> Source:
  """Questions with an answer, a better and a worse one."""
  def record(i):
    meta = {"caption": f"{WORDS[i]} circles", "win": f"{WORDS[i]} red circles", "lose": f"a {WORDS[7 - i]}"}
    return {"prompt": f"a handwritten {WORDS[i]}", "meta": meta}
  return Source(count, record, "toy")


def data(pairs: bool = False, count: int = 8, media: bool = True, frames: int = 0) -> Source:
  """Captioned pictures or clips, pairs of them, or prompts alone."""
  def picture(i, shift):
    shape = (frames,) * bool(frames) + (SIDE, SIDE, 1)
    return np.random.default_rng([i, shift]).integers(0, 256, shape).astype(np.uint8)

  def record(i):
    out = {"prompt": f"a handwritten {WORDS[i % 8]}", "meta": {}, "label": np.int32(i % 8)}
    if pairs:
      return {**out, "win": picture(i, 1), "lose": picture(i, 2)}
    return {**out, "media": picture(i, 0)} if media else out
  return Source(count, record, "toy")
