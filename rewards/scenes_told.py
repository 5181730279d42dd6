"""How well captions of Scenes describe what is there: a measure of captions, for comparisons rather than for training.

  reward = {"name": "scenes_told", "model": DIR}

Samples are tokens of a captioner (align/policies/chat.py); each record's meta has the "objects" of its scene. Parts are
those of scenes/told.py: `complete`, `invented`, `right` and `words`. The total is `complete` less `invented`. A caption
that does not come to its end counts as far as it goes.
"""
import numpy as np

from rewards import verdict
from rewards.core import Reward, Scores
from rewards.scenes.told import told


def make(model: str) -> Reward:
  """model: the folder whose tokenizer the captions are in. Raises ValueError, while scoring, for records without
  objects."""
  talk, _ = verdict.opened(model)

  def score(view, batch, media, keys):
    metas = batch.get("meta") or []
    if len(metas) != len(media) or any("objects" not in m for m in metas):
      raise ValueError(f"scenes_told: batch['meta'] has {len(metas)} records for {len(media)} captions, each of which "
                       "must have 'objects'; use pictures of the data set scenes")
    found = [told(verdict.spoken(talk, ids), m["objects"]) for ids, m in zip(media, metas, strict=True)]
    parts = {name: np.array([one[name] for one in found], np.float32) for name in found[0]}
    return Scores(parts["complete"] - parts["invented"], parts, np.ones(len(media), bool))

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None)
