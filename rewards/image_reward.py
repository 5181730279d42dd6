"""ImageReward (2304.05977): how much people like a picture for its prompt, mostly between -2 and 2.

  reward = {"name": "image_reward", "model": DIR}

DIR is what `python -m rewards.convert ImageReward.pt --tokenizer=BERT` makes of the released file, with the tokenizer
of bert-base-uncased. BLIP's image encoder and a BERT that looks at it give one number at the prompt's first token;
a mean and a deviation, published with the weights, scale it. Prompts are cut to 35 tokens. The score has a gradient in
the picture, and all of the network can be trained by the algorithm `compare` (published: "bt", lr 1e-5, batch 64, 70 %
of the layers frozen). Left out: dropout in the head while it is trained.
"""
import functools

import jax.numpy as jnp
import numpy as np

from diffusion import eyes
from diffusion.convert import blip
from rewards.core import Reward, Scores

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # published
PAD = 0  # in every vocabulary of BERT


def make(model: str, length: int = 35, dtype: str = "float32", remat: bool | str = False) -> Reward:
  """length: tokens of a prompt, with both ends. dtype: of the network and its parameters; remat: see layers.remat.

  Returns: Reward of pictures [B H W C] in [0, 1], C 1 or 3. Raises ValueError for a folder of another network, or of
  one without a tokenizer; while scoring, for clips."""
  opened = eyes.open_(model, (blip.CLASS,), dtype=dtype, remat=remat)
  if not 3 <= length <= opened.net.text.length:
    raise ValueError(f"length = {length} must be 3 to {opened.net.text.length}, the table of positions of "
                     f"{opened.root}; 35 is published")
  words = functools.cache(lambda: eyes.words(opened, length))  # only where there is a prompt
  entry = f"asked of {opened.root}: {length} tokens"           # several rewards share a batch

  def prepare(batch):
    tokens = words()(list(batch["prompt"]))
    ends = length - 1 - np.argmax(tokens[:, ::-1] != PAD, 1)   # a prompt may spell [PAD], but [SEP] is last
    return {**batch, entry: {"tokens": tokens, "mask": np.arange(length) <= ends[:, None]}}

  def score(view, batch, media, keys):
    found, _ = opened.net.apply({"params": view["net"]}, opened.processor.device(media), **batch[entry])
    total = (found - MEAN) / STD
    return Scores(total, {}, jnp.isfinite(total))

  return Reward(lambda key: {"net": eyes.fresh(opened, key, dtype)}, prepare, score, "gradient", None)
