"""Judges whose verdict is known, for tests of what is made of verdicts: configs name them as "judges:media"."""
import re

import numpy as np

from rewards import verdict
from rewards.core import Reward, Scores
from rewards.judging import formats
from rewards.judging.judge import Answerer, Said
from rewards.judging.reward import make_host


def speaking(level, noun, broken=lambda level: False):
  """The Answerer for whom the candidate of a higher `level` is better, which it calls by its `noun`; scores are 1 to
  10. It mumbles about what `broken` is true of."""
  def say(view, talks, keys):
    return [Said(answer(level(talk))) for talk in talks]

  def answer(levels):
    if any(map(broken, levels)):
      return "Well ..."
    if len(levels) == 1:
      return f"Final Score: {1 + 9 * levels[0]:.3f}"
    return f"{noun} {1 if levels[0] > levels[1] else 2} is better"
  return Answerer(say, None)


def shades(talk):
  """Mean brightness of each picture or clip, in [0, 1]."""
  return [float(part[part["type"]].mean()) / 255 for part in talk[0]["content"] if part["type"] != "text"]


def lengths(talk):
  """Characters of each answer, in tenths, and a little for which they are."""
  found = re.findall(r"Answer(?: [12])?: \[(.*?)\]", talk[0]["content"][-1]["text"])
  return [len(said) / 10 + sum(map(ord, said)) / 1e5 for said in found]


def media(kind: str = "point_sift", scheme: str = "all", broken: float = 0.0, medium: str = "image") -> Reward:
  """The brighter picture or clip is better. broken: how bright one must be to be judged at all."""
  question = formats.question(f"{medium}_generation_{kind}")._replace(side=None, frames=None, as_images=False)
  return make_host(speaking(shades, medium.capitalize(), lambda level: level < broken), question, scheme=scheme)


def answers(model: str, kind: str = "point_v1", scheme: str = "all") -> Reward:
  """The longer answer is better. model: whose tokenizer they are in."""
  question = formats.question(f"image_understanding_{kind}")._replace(side=None, range=(1, 100))
  talk = verdict.opened(model)[0]
  return make_host(speaking(lengths, "Answer"), question, scheme=scheme,
                   said=lambda ids: verdict.said(talk, ids))


def bright(step: float = 0.0) -> Reward:
  """The truth about brightness, in whole steps of this size where it is not 0."""
  level = lambda media: np.asarray(media).reshape(len(media), -1).mean(1)
  total = lambda media: np.floor(level(media) / step) if step else level(media)
  return Reward(lambda key: {}, lambda batch: batch,
                lambda view, batch, media, keys: Scores(total(media), {}, np.ones(len(media), bool)), "host", None)
