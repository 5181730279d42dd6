"""Whether a picture shows the text that its prompt asks for (Flow-GRPO, 2505.05470): 1 - min(edits, n) / n.

  reward = {"name": "ocr", "reader": "module:function"}

Edits are Levenshtein's, from what is read to the n characters of the target, both without white space and in small
letters; 0 where the target occurs in what is read, so that other text costs nothing then. The target is meta["text"],
else what stands between the first pair of double quotes in the prompt. A picture that could not be read has no score,
where the released code gives the worst one. Left out: a reader of text (any may be named), clips.
"""
from typing import Any

import numpy as np

from rewards import plugin
from rewards.core import CHUNKS, Reward, Scores


def make(reader: Any) -> Reward:
  """The reward of pictures [B H W C] in [0, 1], on the host.

  Args:
    reader: "module:function" or a function: uint8 pictures [B H W 3] -> B strings, all text in the order of reading,
      "" where there is none, None where a picture could not be read.

  Returns:
    Reward. Parts: `exact`, 1 where the target occurs in what is read; `edits`, as counted.

  Raises:
    ValueError: no such reader; while scoring, clips, prompts without a text, a reader of another kind.
  """
  read = plugin.function(reader, "reader")

  def score(view, batch, media, keys):
    pictures, valid = plugin.shown(media, "ocr")
    wanted = targets(batch, len(pictures))
    texts = plugin.one_each(read(pictures), len(pictures), "reader")
    valid &= np.array([text is not None for text in texts], bool)
    edits = np.array([distance(plain(text or ""), want) for text, want in zip(texts, wanted, strict=True)], np.float32)
    total = 1 - edits / np.array([len(want) for want in wanted], np.float32)
    keep = lambda values: np.where(valid, values, 0).astype(np.float32)
    return Scores(keep(total), {"exact": keep(edits == 0), "edits": keep(edits)}, valid)

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None, chunks=CHUNKS)


def plain(text: str) -> str:
  """Without white space, in small letters."""
  return "".join(text.split()).lower()


def targets(batch: dict, count: int) -> list[str]:
  """The text that each of `count` samples should show."""
  metas = batch.get("meta") or [{}] * count
  if not len(batch["prompt"]) == len(metas) == count:
    raise ValueError(f"reward ocr: batch has {len(batch['prompt'])} prompts and {len(metas)} meta for {count} samples; "
                     "one each is needed")
  return [target(prompt, meta) for prompt, meta in zip(batch["prompt"], metas, strict=True)]


def target(prompt: str, meta: dict) -> str:
  quoted = prompt.split('"')
  text = meta["text"] if "text" in meta else quoted[1] if len(quoted) > 2 else ""
  if not isinstance(text, str) or not plain(text):
    raise ValueError(f"reward ocr: prompt {prompt!r} with meta['text'] = {meta.get('text')!r} names no text; it must "
                     "stand between double quotes, or in meta['text']: choose such prompts")
  return plain(text)


def distance(read: str, wanted: str) -> int:
  """Insertions, deletions and replacements from one to the other, at most the length of what is wanted; 0 where that
  occurs in what is read."""
  if wanted in read:
    return 0
  row = list(range(len(wanted) + 1))
  for i, letter in enumerate(read, 1):
    left, row = row, [i]
    for j, other in enumerate(wanted, 1):
      row.append(min(left[j] + 1, row[-1] + 1, left[j - 1] + (letter != other)))
  return min(row[-1], len(wanted))
