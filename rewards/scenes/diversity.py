"""How different the correct samples of one prompt are in what its caption leaves open.

Distances between two samples are means over what is open, each in [0, 1]: for every object position (distance over the
diagonal), size (radius difference over the range of radii) and, where the caption does not name them, colour and shape
(equal or not). Place and relation are named and still leave room, so positions always count. Of a clip, the place and
the size of each thing are their means over the frames in which it is recognised.
"""
import itertools

import numpy as np

from rewards.scenes.check import members

RADII = .15  # largest difference of radii that counts as 1


def diversity(specs, detections, correct, group):
  """Mean pairwise distance of the correct samples of each prompt.

  Args:
    specs: list of B specs, samples of one prompt contiguous.
    detections: list of B lists of objects, from `detect`, or of clips from `clip.detect`.
    correct: bool [B].
    group: samples of each prompt.

  Returns:
    float [B / group], NaN where a prompt has fewer than two correct samples.

  Raises:
    ValueError: B is not a multiple of `group`, or the lengths differ.
  """
  total = len(specs)
  if len(detections) != total or len(correct) != total or group < 1 or total % group:
    raise ValueError(f"scenes diversity: {total} specs, {len(detections)} detections, {len(correct)} verdicts and "
                     f"groups of {group}; allowed are equal lengths that are a multiple of the group; pad or cut them")
  return np.array([spread(specs[start], [detections[i] for i in range(start, start + group) if correct[i]])
                   for start in range(0, total, group)], float)


def spread(spec, samples):
  """Mean distance over pairs of samples, NaN below two."""
  things = [assigned(spec, objects) for objects in samples]
  pairs = [distance(a, b) for a, b in itertools.combinations(things, 2)]
  return float(np.mean(pairs)) if pairs else float("nan")


def assigned(spec, objects):
  """The objects of each clause, as [(open shape, open colour, objects from left to right)]."""
  if "motion" in spec:
    return [(False, False, mean(thing, objects)) for thing in spec["motion"]]
  return [("class" not in clause or clause["class"] == "object", "color" not in clause,
           sorted(members(clause, objects)[:clause["count"]], key=lambda o: (o["x"], o["y"])))
          for clause in spec["include"]]


def mean(thing, frames):
  """A thing of a clip as one object, or none where it is in no frame."""
  seen = [o for objects in frames for o in objects if (o["shape"], o["color"]) == (thing["class"], thing["color"])]
  return [{name: float(np.mean([o[name] for o in seen])) for name in ("x", "y", "r")}] if seen else []


def distance(a, b):
  """Distance of two samples in [0, 1], the mean over the objects that both have and over what is open."""
  parts = []
  for (shape, color, mine), (_, _, yours) in zip(a, b, strict=True):
    for one, other in zip(mine, yours, strict=False):
      parts.append(np.hypot(one["x"] - other["x"], one["y"] - other["y"]) / np.sqrt(2))
      parts.append(min(abs(one["r"] - other["r"]) / RADII, 1.))
      parts += [float(one["shape"] != other["shape"])] if shape else []
      parts += [float(one["color"] != other["color"])] if color else []
  return float(np.mean(parts)) if parts else 0.
