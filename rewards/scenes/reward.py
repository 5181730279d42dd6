"""The exact reward: does the image show what its caption says? Strict and soft verdict of the detector, on the host."""
import numpy as np

from rewards.core import Reward, Scores
from rewards.scenes import clip
from rewards.scenes.check import check, soft
from rewards.scenes.detect import detect


def make(strict: float = .5, soft: float = .5, exact: bool = False) -> Reward:
  """The reward of Scenes, images [B H W 3] or clips [B F H W 3] in [0, 1] of any size.

  Args:
    strict: weight of part `exact`, 1 where every clause holds (check.py), else 0.
    soft: weight of part `soft`, the mean over clauses.
    exact: count strictly: equality in every clause, no unrecognisable object.

  Returns:
    Reward on the host. `score` reads the specs in batch["meta"]; part `junk` (weight 0) is the number of unrecognisable
    objects (of a clip: of a frame). Of clips there are also parts `shape`, `color` and `motion` (weight 0), 1 where
    that is right of everything that the caption names (clip.py). Samples with non-finite media are invalid and score 0.

  Raises:
    ValueError: weights that are negative or all 0; while scoring, meta that is missing or of another length.
  """
  for name, weight in (("strict", strict), ("soft", soft)):
    if not np.isfinite(weight) or weight < 0 or strict + soft == 0:
      raise ValueError(f"scenes reward: {name}={weight}, allowed are weights of 0 or more with a positive sum; change "
                       "it")

  def score(view, batch, media, keys):
    media = np.asarray(media)
    specs = described(batch, media)
    valid = np.isfinite(media.reshape(len(media), -1)).all(1)
    found = detected(np.where(valid.reshape(-1, *[1] * (media.ndim - 1)), media, 0))
    rows = [verdict(spec, objects, exact) for spec, objects in zip(specs, found, strict=True)]
    parts = {name: np.where(valid, [row[name] for row in rows], 0).astype(np.float32) for name in rows[0]}
    total = np.float32(strict) * parts["exact"] + np.float32(soft) * parts["soft"]
    return Scores(total.astype(np.float32), parts, valid)

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None)


def described(batch, media):
  """The specs of a batch, checked."""
  specs = batch["meta"] if "meta" in batch else None
  if specs is None or len(specs) != len(media):
    given = "no specs" if specs is None else f"{len(specs)} specs"
    raise ValueError(f"scenes reward: batch['meta'] has {given} for {len(media)} samples, allowed is one each; use "
                     "prompts of the Scenes data sets")
  wrong = next((s for s in specs if "category" not in s or not ("include" in s or "motion" in s)), None)
  if wrong is not None:
    raise ValueError(f"scenes reward: batch['meta'] has {wrong!r}, allowed are specs of Scenes with category and "
                     "clauses; use prompts of the Scenes data sets")
  return specs


def detected(media):
  """Objects of images, or of every frame of clips."""
  return detect(media) if media.ndim == 4 else clip.detect(media)


def verdict(spec, objects, exact):
  """{part: value} of one sample."""
  if "motion" in spec:
    junk = sum(o["shape"] == "junk" for frame in objects for o in frame) / max(len(objects), 1)
    return {"exact": clip.check(spec, objects), "soft": clip.soft(spec, objects), "junk": junk,
            **clip.parts(spec, objects)}
  junk = sum(o["shape"] == "junk" for o in objects)
  return {"exact": check(spec, objects, exact), "soft": soft(spec, objects), "junk": junk}
