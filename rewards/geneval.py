"""Whether a picture shows what a prompt of GenEval asks for (2310.11513), by rules over what a detector finds.

  reward = {"name": "geneval", "detector": "module:function"}     data = {"name": "geneval", "path": METADATA.jsonl}

A prompt's meta is a line of evaluation_metadata.jsonl: `include` lists clauses {"class", "count", "color"?,
"position"?: [relation, index of an earlier clause]}, `exclude` {"class", "count"}, that many are too many. Scores:

  correct  GenEval's verdict: of each class at least `count` objects, the most confident `count` of which all have the
           colour and the position towards those of the other clause; nothing excluded
  strict   the verdict that Flow-GRPO (2505.05470) trains with: exactly `count` objects, else the same
  soft     its graded form, the mean over terms: of a clause 1 - |count - found| / count, unclamped, so that 5 for 1 is
           -3; where that is 1, also 1 - |count - of the colour| / count, and where that is 1, whether the position
           holds; a wrong count of a clause with colour or position adds one 0 instead

Boxes count above a confidence of 0.3 (0.9 where the tag is "counting"), the 16 most confident of a class, and GenEval
suppresses no overlaps. The released graded form adds 0 and then 1 for a wrong position, so that such a picture has
0.75; here only the 0 is added, and it has 2 / 3. Excluded classes that no clause includes are rules too: GenEval's own
prompts have none, and the released forms of Flow-GRPO do not look at them.
Left out: a detector and a classifier of colours (published: Mask2Former and CLIP L/14 on masked crops).
"""
from typing import Any

import numpy as np

from rewards import plugin
from rewards.core import CHUNKS, Reward, Scores
from rewards.scenes import world
from rewards.scenes.detect import JUNK
from rewards.scenes.detect import detect as exact

SCORES = ("soft", "strict", "correct")
RELATIONS = ("left of", "right of", "above", "below")
CLAUSE, EXCLUDED = {"class", "count", "color", "position"}, {"class", "count"}
NEAR = 1e-3  # pixels: nearer boxes have no position


def make(detector: Any, score: str = "soft", threshold: float = 0.3, counting: float = 0.9, most: int = 16,
         overlap: float = 1.0, shrink: float = 0.1) -> Reward:
  """The reward of pictures [B H W C] in [0, 1], on the host; the defaults are published.

  Args:
    detector: "module:function" or a function: uint8 pictures [B H W 3] -> for each a list of {"class", "box": (x0, y0,
      x1, y1) in pixels, "score", "color"}, or None where it failed. "scenes": the exact one of Scenes (`scenes`).
    score: which of the three is the total; all are parts.
    threshold, counting: confidence above which a box counts. most: boxes of a class. overlap: IoU from which the less
      confident box of a class goes, 1 for never. shrink: of the boxes' sizes, the dead band of a position.

  Raises:
    ValueError: options that cannot be; while scoring, clips, meta that is no such line, a detector of another kind.
  """
  if score not in SCORES:
    raise ValueError(f"score = {score!r} is not one of {', '.join(SCORES)}; choose one of them")
  for name, value in (("threshold", threshold), ("counting", counting), ("overlap", overlap), ("shrink", shrink)):
    if not 0 <= value <= 1:
      raise ValueError(f"{name} = {value} must be in 0 .. 1; 0.3, 0.9, 1 and 0.1 are published")
  if most < 1:
    raise ValueError(f"most = {most} must be at least 1, boxes of a class; 16 is published")
  detect = scenes if detector == "scenes" else plugin.function(detector, "detector")

  def run(view, batch, media, keys):
    pictures, valid = plugin.shown(media, "geneval")
    specs = described(batch, len(pictures))
    found = plugin.one_each(detect(pictures), len(pictures), "detector")
    valid &= np.array([objects is not None for objects in found], bool)
    table = np.zeros((len(pictures), len(SCORES)), np.float32)
    for i in np.flatnonzero(valid):
      least = counting if specs[i].get("tag") == "counting" else threshold
      kept = classes(found[i], least, most, overlap)
      table[i] = (*graded(specs[i], kept, shrink), correct(specs[i], kept, shrink))
    parts = dict(zip(SCORES, table.T.copy(), strict=True))
    return Scores(parts[score], parts, valid)

  pieces = 1 if detector == "scenes" else CHUNKS  # the exact one takes no time that is worth it
  return Reward(lambda key: {}, lambda batch: batch, run, "host", None, chunks=pieces)


def scenes(pictures: np.ndarray) -> list:
  """The exact detector of Scenes in the form of any detector: sure of what it names, boxes in pixels, without what it
  cannot name. Pictures are squares."""
  def one(thing):
    half = np.multiply(world.EXTENT[thing["shape"]], thing["r"])
    middle = np.array([thing["x"], thing["y"]])
    box = np.concatenate([middle - half, middle + half]) * pictures.shape[1]
    return {"class": thing["shape"], "color": thing["color"], "score": 1.0, "box": tuple(map(float, box))}

  return [[one(thing) for thing in objects if thing["shape"] != JUNK] for objects in exact(pictures)]


# --- what is asked ----------------------------------------------------------------------------------------------------


def described(batch: dict, count: int) -> list:
  """The specs of `count` samples, checked."""
  specs = batch.get("meta") or []
  if len(specs) != count:
    raise ValueError(f"reward geneval: batch['meta'] has {len(specs)} specs for {count} samples, one each is needed; "
                     "use prompts with GenEval's metadata")
  return [checked(spec) for spec in specs]


def checked(spec: dict) -> dict:
  """A line of GenEval's metadata. ValueError where it is none."""
  include, exclude = spec.get("include", []), spec.get("exclude", [])
  if not include and not exclude:
    raise ValueError(f"GenEval's metadata {spec!r} must have clauses under 'include' or 'exclude'; use such prompts")
  for place, clause in enumerate(include):
    check_clause(clause, CLAUSE)
    relation, target = clause.get("position", (RELATIONS[0], 0))
    if relation not in RELATIONS or "position" in clause and target not in range(place):
      raise ValueError(f"GenEval's clause {clause!r}: position must be one of {', '.join(RELATIONS)} and the index of "
                       f"an earlier clause, of which there are {place}; correct it")
  for clause in exclude:
    check_clause(clause, EXCLUDED)
  return spec


def check_clause(clause: dict, allowed: set) -> None:
  if not EXCLUDED <= set(clause) <= allowed or not isinstance(clause["count"], int) or clause["count"] < 1:
    raise ValueError(f"GenEval's clause {clause!r} must have 'class' and 'count', 1 or more, and may have nothing "
                     f"besides {', '.join(sorted(allowed - EXCLUDED)) or 'these'}; correct it, or use the reward that "
                     "goes with these prompts")


# --- what is seen -----------------------------------------------------------------------------------------------------


def classes(objects: list, least: float, most: int, overlap: float) -> dict:
  """{class: its objects that count, the most confident first}."""
  for one in objects:
    if not {"class", "box", "score"} <= set(one) or len(one["box"]) != 4:
      raise ValueError(f"detector gave {one!r}; an object must have class, box (x0, y0, x1, y1) and score, and color "
                       "where prompts name colours: mend it")
  out = {}
  for one in sorted(objects, key=lambda one: -one["score"]):
    out.setdefault(one["class"], []).append(one)
  kept = {name: [one for one in mine if one["score"] > least][:most] for name, mine in out.items()}
  return {name: apart(mine, overlap) for name, mine in kept.items()}


def apart(objects: list, overlap: float) -> list:
  """Without those that overlap a more confident one that is kept."""
  kept = []
  for one in objects:
    if overlap == 1 or all(iou(one["box"], other["box"]) < overlap for other in kept):
      kept.append(one)
  return kept


def iou(a: tuple, b: tuple) -> float:
  """Of boxes in pixels, both ends of which belong to the box."""
  area = lambda x0, y0, x1, y1: max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)
  both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
  return both / (area(*a) + area(*b) - both)


def relations(a: tuple, b: tuple, shrink: float = 0.1) -> set:
  """Where box a is relative to box b: the offset of the centres, shortened by a share of both sizes, over the whole
  distance, must be above 1/2 along an axis."""
  a, b = np.reshape(a, (2, 2)).astype(float), np.reshape(b, (2, 2)).astype(float)
  offset = a.mean(0) - b.mean(0)
  clear = np.maximum(np.abs(offset) - shrink * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])), 0) * np.sign(offset)
  if (np.abs(clear) < NEAR).all():
    return set()
  dx, dy = clear / np.linalg.norm(offset)
  return {name for name, far in zip(RELATIONS, (-dx, dx, -dy, dy), strict=True) if far > 0.5}


# --- rules ------------------------------------------------------------------------------------------------------------


def painted(clause: dict, objects: list) -> int:
  """How many have the colour of the clause."""
  missing = next((one for one in objects if "color" not in one), None)
  if missing is not None:
    raise ValueError(f"detector gave {missing!r} without a color, which clause {clause!r} asks for; let it name "
                     "colours, or leave such prompts out")
  return sum(one["color"] == clause["color"] for one in objects)


def placed(clause: dict, objects: list, groups: list, shrink: float) -> bool:
  """Whether all objects have the clause's position towards all of the target's; None where that broke its own rules.
  """
  relation, target = clause["position"]
  return groups[target] is not None and all(relation in relations(a["box"], b["box"], shrink)
                                            for a in objects for b in groups[target])


def excluded(spec: dict, found: dict) -> list:
  """Clauses of what should not be there, but is."""
  return [clause for clause in spec.get("exclude", []) if len(found.get(clause["class"], [])) >= clause["count"]]


def correct(spec: dict, found: dict, shrink: float = 0.1) -> bool:
  """GenEval's verdict."""
  groups = []
  for clause in spec.get("include", []):
    count = clause["count"]
    mine = found.get(clause["class"], [])[:count]
    good = len(mine) == count and ("color" not in clause or painted(clause, mine) == count)
    good = good and ("position" not in clause or placed(clause, mine, groups, shrink))
    groups.append(mine if good else None)
  return None not in groups and not excluded(spec, found)


def graded(spec: dict, found: dict, shrink: float = 0.1) -> tuple[float, bool]:
  """(soft, strict) of Flow-GRPO."""
  groups, terms = [], []
  for clause in spec.get("include", []):
    mine, count = found.get(clause["class"], []), clause["count"]
    own = [1 - abs(count - len(mine)) / count]
    if own[0] == 1 and "color" in clause:
      own.append(1 - abs(count - painted(clause, mine)) / count)
    elif own[0] < 1 and ("color" in clause or "position" in clause):
      own.append(0.0)
    if min(own) == 1 and "position" in clause:
      own.append(float(placed(clause, mine, groups, shrink)))
    groups.append(mine if min(own) == 1 else None)
    terms += own
  broken, included = excluded(spec, found), {clause["class"] for clause in spec.get("include", [])}
  terms += [float(clause not in broken) for clause in spec.get("exclude", []) if clause["class"] not in included]
  return sum(terms) / len(terms), min(terms) == 1 and not broken
