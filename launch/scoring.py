"""The benchmark of rewards: pictures judged by small random encoders, by us and by transformers (scoring_peer.py).

For each reward, `score`: from pictures and prompts on the host to numbers there, with scaling, cutting, normalising and
tokenising; and `slope`: to the gradient of the numbers' sum in the pictures. Float32 on the CPU; CLIP, BLIP and DINOv2
in about the proportions of the published ones. Sides are functions that return what they find, so that the test
compares what is timed.
"""
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffusion import folder
from launch.judging import CAPTIONS
from launch.timing import alternated, compared
from rewards import aesthetic, clip, hps, image_reward, pickscore, reconstruction

REWARDS = {  # name: (make, folder of the model, of a head)
  "clip": (clip.make, "clip", None), "pickscore": (pickscore.make, "clip", None), "hps": (hps.make, "clip", None),
  "aesthetic": (aesthetic.make, "clip", "head.safetensors"), "image_reward": (image_reward.make, "image_reward", None),
  "reconstruction clip": (reconstruction.make, "clip", None),
  "reconstruction dinov2": (reconstruction.make, "dinov2", None),
}


class Work(NamedTuple):
  """How much. pictures: in a batch. side: of the pictures, in pixels. vision, text: of transformers' configuration, the
  same for all networks. head: widths inside the heads. rewards: names, of REWARDS."""
  pictures: int
  side: int
  vision: dict
  text: dict
  head: tuple = (1024, 128, 64, 16)
  rewards: tuple = tuple(REWARDS)


def sized(width: int, depth: int, heads: int, **more) -> dict:
  """Sizes of a transformer as its configuration names them."""
  return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
          "intermediate_size": 4 * width, **more}


# heads of 64 channels and pictures of 197 tokens, as published, with few layers and channels
SMALL = Work(8, 256, sized(192, 3, 3, image_size=224, patch_size=16), sized(128, 2, 2))
TINY = Work(3, 20, sized(16, 1, 1, image_size=12, patch_size=4), sized(16, 1, 1), (8, 4, 4, 2))


class Shown(NamedTuple):
  """A batch. media [B H W 3] float32 in [0, 1]; given: of the same shape, uint8, what was to be drawn; prompts [B]."""
  media: np.ndarray
  given: np.ndarray
  prompts: list


def shown(work: Work) -> Shown:
  """Smooth pictures, of which two have the same prompt."""
  rng = np.random.default_rng(0)

  def pictures():
    coarse = jax.image.resize(rng.uniform(0.3, 0.7, (work.pictures, 5, 5, 3)), (work.pictures, work.side, work.side, 3),
                              "linear")
    return np.array(coarse + rng.uniform(-0.1, 0.1, coarse.shape), np.float32)

  prompts = [CAPTIONS[i // 2 % len(CAPTIONS)] for i in range(work.pictures)]
  return Shown(pictures(), np.round(255 * pictures()).astype(np.uint8), prompts)


def ours(root: Path, name: str) -> tuple[Callable, Callable]:
  """(score, slope) of a reward, each from a batch."""
  make, model, head = REWARDS[name]
  reward = make(model=str(root / model), **({"head": str(root / head)} if head else {}))
  drawn = jax.jit(lambda key: {part: leaves for part, leaves in reward.init(key).items() if part != "net"})
  view = {**drawn(jax.random.key(0)), **folder.load(str(root / model), "reward")}
  score = lambda view, arrays, media: reward.score(view, arrays, media, None).total
  runs = jax.jit(score), jax.jit(jax.grad(lambda view, arrays, media: score(view, arrays, media).sum(), 2))

  def arrays(batch):
    given = {"prompt": batch.prompts, "media": batch.given}
    return {entry: value for entry, value in reward.prepare(given).items() if entry not in given}

  return tuple(lambda batch, run=run: np.asarray(run(view, arrays(batch), batch.media)) for run in runs)


def parts(work: Work, root: Path) -> dict:
  """{"reward what": {side: function}}."""
  from launch import scoring_peer  # torch and transformers
  batch, peer, out = shown(work), scoring_peer.Peer(root, work), {}
  for name in work.rewards:
    mine = ours(root, name)
    for what, own, theirs in zip(("score", "slope"), mine, (peer.score, peer.slope), strict=True):
      out[f"{name} {what}"] = {"ours": lambda f=own: f(batch),
                               "PyTorch": lambda f=theirs, name=name: f(name, batch)}
  return out


def run(repeats: int, work: Work = SMALL) -> dict:
  """{"reward what, who": numbers}."""
  from launch import scoring_peer
  out = {}
  with tempfile.TemporaryDirectory() as root:
    scoring_peer.write(Path(root), work)
    for name, sides in parts(work, Path(root)).items():
      rows = compared(alternated(sides, repeats), {})
      out |= {f"{name}, {who}": {**row, "pictures a second": round(work.pictures / row["seconds"], 2)}
              for who, row in rows.items()}
  return out
