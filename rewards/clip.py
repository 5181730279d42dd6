"""CLIP as a judge: how near a picture and its prompt are, with a gradient in the picture.

  reward = {"name": "clip", "model": DIR, "kind": "clipscore"}

DIR is a folder of a CLIPModel in transformers' layout with its tokenizer, whose weights are taken unless `start` names
others. What the total is, on the published scale:

  cosine         of the two vectors; the "clipscore" of Flow-GRPO and DiffusionNFT (CLIP-L/14), logits / 100
  logit          cosine times exp(logit_scale), 100 in public models: PickScore, or what `compare` trains
  clipscore      2.5 max(cosine, 0), the prompt behind "A photo depicts " (2104.08718, CLIP-B/32)
  refclipscore   harmonic mean of that and of max(cosine, 0) between the prompt and the nearest of the reference
                 captions meta["references"], as the paper has it

Left out: clips, of which keyframes.py picks frames; OpenCLIP's repair of broken Unicode in prompts.
"""
import functools

import jax.numpy as jnp
import numpy as np

from diffusion import eyes
from diffusion.convert import clip_vision
from rewards.core import Reward, Scores

KINDS = ("cosine", "logit", "clipscore", "refclipscore")
PREFIX, WEIGHT = "A photo depicts ", 2.5


def make(model: str, kind: str = "cosine", prefix: str = None, frame: str = None, references: int = 5,
         dtype: str = "float32", remat: bool | str = False) -> Reward:
  """Args:
    kind: see above. prefix: in front of the prompt; None: the kind's own. frame: see eyes.open_.
    references: the most captions that a sample has. dtype: of the network and its parameters; remat: see layers.remat.

  Returns: Reward of pictures [B H W C] in [0, 1], C 1 or 3, with part cosine. Raises ValueError for a folder that is no
  CLIPModel; while scoring, for clips and for samples without references.
  """
  if kind not in KINDS:
    raise ValueError(f"kind = {kind!r} is not one of {', '.join(KINDS)}; choose one of them")
  if references < 1:
    raise ValueError(f"references = {references} must be at least 1, the most captions of a sample; raise it")
  opened = eyes.open_(model, (clip_vision.CLASS,), frame, dtype, remat)
  prefix = (PREFIX if "clipscore" in kind else "") if prefix is None else prefix
  words = functools.cache(lambda: eyes.words(opened))
  entry, beside = (f"read by {opened.root}: {what}" for what in (prefix, "references"))  # several share a batch

  def prepare(batch):
    out = {**batch, entry: words()([prefix + prompt for prompt in batch["prompt"]])}
    if kind == "refclipscore":
      texts = captions(batch, references)
      filled = [prefix + text for own in texts for text in [*own, *own[:1] * (references - len(own))]]
      out[beside] = words()(filled).reshape(len(texts), references, -1)
    return out

  def score(view, batch, media, keys):
    said = eyes.read(opened, view["net"], batch[entry])
    cosine = (eyes.see(opened, view["net"], media) * said).sum(-1)
    total, parts = cosine, {"cosine": cosine}
    if kind == "logit":
      total = jnp.exp(view["net"]["logit_scale"][0].astype(jnp.float32)) * cosine
    if "clipscore" in kind:
      total = WEIGHT * jnp.maximum(cosine, 0)
    if kind == "refclipscore":
      near = jnp.einsum("bd,brd->br", said, eyes.read(opened, view["net"], batch[beside])).max(-1)
      near, parts["clipscore"] = jnp.maximum(near, 0), total
      parts["reference"] = near
      total = 2 * total * near / jnp.maximum(total + near, 1e-12)
    return Scores(total, parts, jnp.isfinite(total))

  return Reward(lambda key: {"net": eyes.fresh(opened, key, dtype)}, prepare, score, "gradient", None)


def captions(batch: dict, most: int) -> list:
  """The reference captions of each sample, 1 to `most`. ValueError for another number, by the sample's prompt."""
  out = [list(meta.get("references") or []) for meta in batch.get("meta", [{}] * len(batch["prompt"]))]
  for prompt, own in zip(batch["prompt"], out, strict=True):
    if not 1 <= len(own) <= most or not all(isinstance(text, str | np.str_) for text in own):
      raise ValueError(f"references of {str(prompt)!r} = {own} must be 1 to {most} captions in meta['references']; add "
                       "them to the data, set references to the most that there are, or choose another kind")
  return out
