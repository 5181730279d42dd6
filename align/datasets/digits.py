"""Handwritten digits: 1797 real 8x8 grey images that ship inside scikit-learn (UCI optical recognition, test part).

Four disjoint splits, so that the generator, its reward and the verdict never saw the same image. Which image goes where
is decided by a hash of its pixels within its class: balanced, and the same on every machine and version.
"""
import hashlib

import numpy as np
from sklearn import datasets

from align.build import UserError
from align.data import Source

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "a picture of a handwritten {}", "a handwritten {} in grey")
SPLITS = {"train": (0, 797),       # the generator
          "reward": (797, 1197),   # the classifier that is the reward
          "judge": (1197, 1597),   # the independent classifier that gives the verdict
          "test": (1597, 1797),    # accuracy of both classifiers, references of the metrics
          "all": (0, 1797)}


def make(split: str = "train", *, paraphrases: bool = False) -> Source:
  """Records: "media" uint8 [8 8 1], "label" int32, "prompt" "a handwritten seven", "meta" {"category", "label"}.

  Args:
    split: train (797 images), reward (400), judge (400), test (200) or all (1797); or "prompts", ten records without
      media, one a class, to sample from; they are one category, so that an interval is over the ten.
    paraphrases: captions come from three templates instead of the first one.

  Raises: UserError for an unknown split.
  """
  if split == "prompts":
    return Source(len(WORDS), lambda i: {"label": np.int32(i), "prompt": TEMPLATES[0].format(WORDS[i]),
                                         "meta": {"category": "digits", "label": i}}, "digits/prompts")
  if split not in SPLITS:
    raise UserError(f"split={split!r}: digits has {', '.join(SPLITS)} and prompts; set one of them")
  media, labels, start = *arrays(split), SPLITS[split][0]

  def record(index):
    word = WORDS[labels[index]]
    template = TEMPLATES[(start + index) // 10 % len(TEMPLATES) if paraphrases else 0]
    return {"media": media[index], "label": labels[index], "prompt": template.format(word),
            "meta": {"category": word, "label": int(labels[index])}}

  return Source(len(labels), record, f"digits/{split}")


def arrays(split: str = "all") -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [N 8 8 1], int32 [N]) of a split; grey levels 0..16 become 0..255."""
  raw = datasets.load_digits()
  images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = raw.target.astype(np.int32)
  digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
  order = sorted(range(len(labels)), key=lambda i: (digests[i], i))
  rank = np.zeros(len(labels), int)
  for word in range(10):
    members = [i for i in order if labels[i] == word]
    rank[members] = np.arange(len(members))
  order = np.lexsort((labels, rank))[slice(*SPLITS[split])]  # class by class in turn: every slice is balanced
  return images[order], labels[order]
