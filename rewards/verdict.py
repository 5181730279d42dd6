"""Whether a judge's own answers are right: the reward of its reinforcement learning (UnifiedReward-Think, 2505.03318).

  reward = {"name": "verdict", "model": DIR}

Samples are tokens of a judge (align/policies/chat.py), asked what datasets/scenes_questions.py or the like asks: each
record's meta names the format ("question", "" for plain words) and says what the answer is read as ("truth"). Part
`format` is 1 where the answer can be read, `accuracy` where it is the truth, exactly; the paper adds both. An answer
that does not come to its end is neither. Left out: partial credit for a score that is nearly right.
"""
import functools

import numpy as np

from diffusion import chat, vlm
from rewards.core import Reward, Scores
from rewards.judging import answers, formats, questions


def make(model: str, prompts: str = None, format: float = 1.0, accuracy: float = 1.0) -> Reward:
  """model: the folder whose tokenizer the answers are in. prompts: JSON files of formats, besides those of
  judging/formats.py. format, accuracy: weights.

  Raises: ValueError for weights that are negative or all 0; while scoring, for records that lack the truth."""
  if min(format, accuracy) < 0 or not 0 < format + accuracy < np.inf:
    raise ValueError(f"verdict: format = {format} and accuracy = {accuracy} must be weights of 0 or more with a "
                     "positive sum; change them")
  talk, known = opened(model, prompts)

  def score(view, batch, media, keys):
    metas = batch.get("meta") or []
    if len(metas) != len(media) or any("question" not in m or "truth" not in m for m in metas):
      raise ValueError(f"verdict: batch['meta'] has {len(metas)} records for {len(media)} answers, each of which must "
                       "have 'question' and 'truth'; use a data set of questions, such as scenes_questions")
    found = np.array([judged(known, meta, said(talk, ids)) for meta, ids in zip(metas, media, strict=True)], np.float32)
    total = np.float32(format) * found[:, 0] + np.float32(accuracy) * found[:, 1]
    return Scores(total, {"format": found[:, 0], "accuracy": found[:, 1]}, np.ones(len(media), bool))

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None)


@functools.cache
def opened(model: str, prompts: str = None) -> tuple[chat.Chat, dict]:
  """(the tokenizer, {name: Question}) of the options of `make`."""
  return chat.load(vlm.at(model) or model, None, None), formats.known(prompts)


def said(talk: chat.Chat, ids: np.ndarray) -> str | None:
  """The text of an answer; None where it does not end."""
  return spoken(talk, ids) if np.isin(ids, talk.stop).any() else None


def spoken(talk: chat.Chat, ids: np.ndarray) -> str:
  """The text of an answer up to its end, or as far as it goes."""
  ends = np.flatnonzero(np.isin(ids, talk.stop))
  return talk.decode(ids[:ends[0]] if len(ends) else ids)


def judged(known: dict, meta: dict, text: str | None) -> tuple[float, float]:
  """(whether it can be read, whether it is the truth)."""
  if text is None:
    return 0.0, 0.0
  if not meta["question"]:
    return float(bool(text.strip())), float(text.strip() == meta["truth"])
  value = answers.parse(questions.find(meta["question"], known), text).value
  return float(np.isfinite(value)), float(value == meta["truth"])
