"""A judge as a Reward on the host: scores of media or of answers, or win rates among the samples of a prompt."""
from typing import Any, Callable

import numpy as np

from rewards.core import Reward, Scores
from rewards.judging import judge
from rewards.judging.judge import Answerer
from rewards.judging.questions import Asked, Question, two


def make_host(answerer: Answerer, question: Question, reading: str = "text", scheme: str = "all",
              init: Callable = lambda key: {}, said: Callable = None) -> Reward:
  """The reward of generated images [B H W C] or videos [B F H W C] in [0, 1], C 1 or 3; or of answers, tokens [B L].

  Args:
    question: one about generation, or about understanding where `said` is given. Of kind point its score is the total,
      of kind yes the probability, of a pair the share of its comparisons that a sample wins; the samples of a prompt
      (sample_id from 0) must come in one call.
    reading, scheme: as of judge.py; "reference" compares with batch["reference"], uint8, of the form of the media.
    init: (key) -> params, the view that `answerer` is given.
    said: (tokens [L]) -> the text of an answer, None where it does not end. Answers are about batch["media"], [B H W 3]
      or [B n H W 3], of which the first batch["shown"] [B] are there, in all the frames of one video.

  Returns:
    Reward on the host. Parts: the dimensions of the question; `asked_again`, answers of a sample that could not be read
    at first, and of pairs `first`, the probability of the one that was shown first (1/2 without position bias), and
    `flips`, comparisons whose winner changes with the order, as means over the comparisons of a sample. A sample
    without any answer that can be read, with media that are not finite or an answer that does not end, is invalid.
    `explain` asks again and tells what the judge wrote.

  Raises:
    ValueError: a question about understanding without `said`, one about generation with it, a reading or scheme that
      there is not; while scoring, groups that are cut and what `questions.conversation` refuses.
  """
  if question.task == "understanding" and said is None:
    raise ValueError(f"question {question.name!r} judges answers, but a reward judges media unless it knows whose "
                     "tokens answers are; give answers, the folder of the model, or choose a question about generation")
  if question.task == "generation" and said is not None:
    raise ValueError(f"question {question.name!r} judges media, but answers says that samples are tokens; leave it "
                     "out, or choose a question about understanding")
  judge.check_reading(question, reading)
  judge.comparisons(0, scheme)
  if said and scheme == "reference":
    raise ValueError("scheme = 'reference' compares with media, but these are answers; choose all, ring or adjacent")

  def run(view, batch, media, keys):
    asked, of = samples(batch, np.asarray(media)) if said is None else spoken(batch, np.asarray(media), said, question)
    if two(question):
      return *compared(answerer, view, question, batch, asked, keys, reading, scheme), of
    return *rated(answerer, view, question, asked, keys, reading), of

  def score(view, batch, media, keys):
    total, parts, _, of = run(view, batch, media, keys)
    valid = np.isfinite(total)
    keep = lambda values: np.where(valid, values, 0).astype(np.float32)[of]  # an invalid sample has a total of 0
    return Scores(keep(total), {name: keep(part) for name, part in parts.items()}, valid[of])

  def explain(view, batch, media, keys):
    *_, texts, of = run(view, batch, media, keys)
    return [texts[i] for i in of]

  return Reward(init, lambda batch: batch, score, "host", None, explain=explain)


def samples(batch: dict, media: np.ndarray) -> tuple:
  """([B] Asked, None where media are not finite or a copy; of [B]: the sample each is a copy of, else itself).

  Copies, equal to the one before in prompt_id, sample_id and every pixel, fill a batch up; they are not asked again.
  """
  of = copies(batch, media)
  good = np.isfinite(media.reshape(len(media), -1)).all(1) & (of == np.arange(len(media)))
  return [Asked(prompt, (one,)) if fine else None
          for prompt, one, fine in zip(batch["prompt"], pixels(media), good, strict=True)], of


def spoken(batch: dict, tokens: np.ndarray, said: Callable, question: Question) -> tuple:
  """The same of answers: tokens [B L]; None also where an answer does not end."""
  if "media" not in batch:
    raise ValueError(f"judge: batch entry 'media' is missing, but question {question.name!r} is about what an answer "
                     "was given to; choose data with media")
  of, shown = copies(batch, tokens), pixels(np.asarray(batch["media"]))
  shown = shown[:, None] if shown.ndim == 4 else shown
  count = batch.get("shown", np.full(len(shown), shown.shape[1]))
  about = lambda i: (shown[i, :count[i]],) if question.medium == "video" else tuple(shown[i, :count[i]])
  texts = [said(ids) if i == k else None for i, (ids, k) in enumerate(zip(tokens, of, strict=True))]
  return [None if text is None else Asked(prompt, about(i), (text,))
          for i, (prompt, text) in enumerate(zip(batch["prompt"], texts, strict=True))], of


def copies(batch: dict, media: np.ndarray) -> np.ndarray:
  """[B] which sample each is a copy of, else itself."""
  of = np.arange(len(media))
  if len(batch["prompt"]) != len(media):
    raise ValueError(f"judge: batch['prompt'] has {len(batch['prompt'])} prompts for {len(media)} samples; one each is "
                     "needed")
  for i in range(1, len(media)):
    same = all(name in batch and batch[name][i] == batch[name][i - 1] for name in ("prompt_id", "sample_id"))
    if same and np.array_equal(media[i], media[i - 1]):
      of[i] = of[i - 1]
  return of


def pixels(media: np.ndarray) -> np.ndarray:
  """[0, 1] -> uint8 with three channels; uint8 stays as it is."""
  if media.dtype != np.uint8:
    media = np.round(np.clip(np.nan_to_num(media), 0, 1) * 255).astype(np.uint8)
  return np.repeat(media, 3, -1) if media.shape[-1] == 1 else media


def rated(answerer: Answerer, view: Any, question: Question, asked: list, keys: Any, reading: str) -> tuple:
  """(scores [B], parts {name: [B]}), NaN where there is none, and what was written, B texts."""
  rows = np.array([i for i, one in enumerate(asked) if one is not None], int)
  found = judge.point(answerer, view, question, [asked[i] for i in rows], keys[rows], reading)
  return (scattered(found.score, rows, len(asked)),
          {name: scattered(part, rows, len(asked))
           for name, part in {**found.parts, "asked_again": found.asked_again}.items()},
          told(zip(rows, found.said, strict=True), len(asked)))


def told(lines: Any, count: int) -> list:
  """[(sample, Said)] -> `count` texts, what was written of a sample in one line."""
  out = [[] for _ in range(count)]
  for i, one in lines:
    out[i].append(" ".join(one.text.split()))
  return [" | ".join(texts) for texts in out]


def scattered(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
  out = np.full(count, np.nan)
  out[rows] = values
  return out


def compared(answerer: Answerer, view: Any, question: Question, batch: dict, asked: list, keys: Any, reading: str,
             scheme: str) -> tuple:
  """(win rates [B], parts {name: [B]}), NaN where there is none, and what was written, B texts."""
  starts = groups(batch, len(asked))
  if scheme != "reference" and max(np.diff([*starts, len(asked)])) < 2:
    raise ValueError(f"question {question.name!r} compares the samples of a prompt, but prompts have 1; raise "
                     "config.group to 2 or more, or choose a point question")
  candidates = [asked[a:b] for a, b in zip(starts, [*starts[1:], len(asked)], strict=True)]
  references = None
  if scheme == "reference":
    references = [Asked(batch["prompt"][i], (one,)) for i, one in zip(starts, referred(batch, starts), strict=True)]
  found = judge.group(answerer, view, question, candidates, keys[starts], scheme, references, reading)
  sizes = [len(row) for row in candidates]
  spread = lambda share, flip=True: np.concatenate(judge.rates(share, found.index, sizes, flip))
  pairs = found.pairs
  parts = {name: spread(part) for name, part in pairs.parts.items()}
  parts |= {"first": spread(pairs.first.mean(1), False),
            "flips": spread(np.where(pairs.valid, pairs.flips, np.nan), False),
            "asked_again": spread(pairs.asked_again / 2, False)}
  lines = [(starts[p] + place, one) for (p, i, j), said in zip(found.index, pairs.said, strict=True)
           for place in (i, j) if place >= 0 for one in said]
  return np.concatenate(found.rate), parts, told(lines, len(asked))


def groups(batch: dict, count: int) -> np.ndarray:
  """Where the samples of each prompt begin."""
  if "sample_id" not in batch:
    raise ValueError("judge: batch entry 'sample_id' is missing, which says what samples to compare; number the "
                     "samples of each prompt from 0, or choose a point question")
  ids = np.asarray(batch["sample_id"])
  starts = np.flatnonzero(ids == 0)
  if not len(starts) or starts[0] or any(b != a and b != a + 1 and b != 0 for a, b in zip(ids, ids[1:], strict=False)):
    raise ValueError(f"judge: sample_id = {ids[:12].tolist()} ... of {count} samples, but the samples of a prompt must "
                     "come together, from 0 on; make the batch a multiple of the samples of a prompt")
  return starts


def referred(batch: dict, starts: np.ndarray) -> np.ndarray:
  if "reference" not in batch:
    raise ValueError("judge: batch entry 'reference' is missing; scheme 'reference' compares with such media, choose "
                     "data that have them, or scheme 'all'")
  return pixels(np.asarray(batch["reference"]))[starts]
