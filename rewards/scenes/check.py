"""Objects against what a caption says, by GenEval's rules (Ghosh et al. 2023, evaluate_images.py).

A clause asks for `count` objects of its class, `count` of them with its colour and place, and for its position
relative to the target clause. More than asked is allowed, as in GenEval, except where `exclude` says otherwise
(category count): there unrecognisable objects ("junk") fail too, since the count is then unknown. `exact` asks for
equality in every clause and for no junk, the stricter variant that reinforcement-learning papers train with.

GenEval looks at the `count` most confident boxes. An exact detector has no such order, so here colour and place may be
those of any `count` objects of the class, and a position must hold between all that fit the two clauses otherwise.
"""
import itertools

import numpy as np

from rewards.scenes import world as worlds

SHRINK = .1   # of the two boxes' sizes, GenEval's dead band of a position
CONE = .5     # least share of the offset along an axis, GenEval
MARGIN = .08  # of the side, the dead band of a place
LARGE = .175  # radius from which an object is large


def check(spec, objects, exact=False):
  """Whether the objects satisfy a spec, strictly.

  Args:
    spec: dict with `include` and `exclude` (see the package's docstring).
    objects: from `detect`, or the spec's own truth.
    exact: equality in every clause and no junk.
  """
  if spec["category"] == "long":
    return matched(spec, objects) == max(len(spec["include"]), len(objects))
  junk = sum(o["shape"] == "junk" for o in objects)
  if junk and (exact or spec["exclude"]):
    return False
  for clause in spec["exclude"]:
    if len(members(clause, objects)) >= clause["count"]:
      return False
  parts = [part for clause in verdicts(spec, objects) for part in clause]
  surplus = exact and any(len(members(c, objects)) != c["count"] for c in spec["include"])
  return not surplus and min(parts) >= 1


def soft(spec, objects):
  """How much of a spec the objects satisfy, in [0, 1]: the mean over clauses of the mean over what each asserts.

  A count scores 1 - |found - count| / count where too many are excluded and min(found / count, 1) elsewhere;
  colour, place and position score the share of the `count` objects (or pairs) that are right. 1 wherever `check` holds.
  """
  if spec["category"] == "long":
    return matched(spec, objects) / max(len(spec["include"]), len(objects))
  limits = {clause["class"]: clause["count"] for clause in spec["exclude"]}
  scores = []
  for clause, parts in zip(spec["include"], verdicts(spec, objects), strict=True):
    found = len(members(clause, objects))
    if found >= limits.get(clause["class"], np.inf):
      parts = [max(0., 1 - (found - clause["count"]) / clause["count"]), *parts[1:]]
    scores.append(sum(parts) / len(parts))
  return float(sum(scores) / len(scores))


def verdicts(spec, objects):
  """Scores in [0, 1] of each clause's parts: presence, then colour, place and position where it has them."""
  every = [members(clause, objects) for clause in spec["include"]]
  made = []
  for clause, mine in zip(spec["include"], every, strict=True):
    found = mine[:clause["count"]]
    parts = [len(found) / clause["count"]]
    if "color" in clause:
      parts.append(sum(o["color"] == clause["color"] for o in found) / clause["count"])
    if "place" in clause:
      parts.append(sum(within(o, clause["place"]) for o in found) / clause["count"])
    if "position" in clause:
      relation, target = clause["position"]
      other = spec["include"][target]
      pairs = [relation in relations(a, b) for a in alike(clause, mine) for b in alike(other, every[target])]
      parts.append(sum(pairs) / len(pairs) if pairs else 0.)
    made.append(parts)
  return made


def members(clause, objects):
  """The objects of a clause's class, those that fit its colour and place best first; class "object" is any shape."""
  found = [o for o in objects if o["shape"] == clause["class"] or clause["class"] == "object" and o["shape"] != "junk"]
  return sorted(found, key=lambda o: (-fitting(clause, o), -o.get("score", 1.)))


def fitting(clause, thing):
  """How many of colour and place an object has as the clause says."""
  return int(thing["color"] == clause.get("color")) + int("place" in clause and within(thing, clause["place"]))


def alike(clause, found):
  """The first of the sorted objects and all that fit the clause as well."""
  return [o for o in found if fitting(clause, o) == fitting(clause, found[0])]


def within(thing, place):
  """Whether an object's centre is clearly on that side of the middle."""
  return all(sign * (thing[axis] - .5) > MARGIN for axis, sign in zip("xy", worlds.PLACES[place], strict=True) if sign)


def relations(a, b):
  """Names of the relations that hold from a to b: offsets of the box centres, shrunk, over the whole distance."""
  offset = np.array([a["x"] - b["x"], a["y"] - b["y"]])
  sides = 2 * np.array([np.multiply(worlds.EXTENT[o["shape"]], o["r"]) for o in (a, b)]).sum(0)
  share = np.maximum(np.abs(offset) - SHRINK * sides, 0) * np.sign(offset) / max(np.hypot(*offset), 1e-9)
  return {name for name, signs in worlds.RELATIONS.items() if share @ signs > CONE}


def matched(spec, objects):
  """How many clauses of a long caption have an object of their own."""
  fits = np.array([[described(clause, o) for o in objects[:8]] for clause in spec["include"]]).reshape(
      len(spec["include"]), -1)
  short = fits if fits.shape[0] <= fits.shape[1] else fits.T
  return max((sum(short[i, j] for i, j in enumerate(order))
              for order in itertools.permutations(range(short.shape[1]), short.shape[0])), default=0)


def described(clause, thing):
  """Whether an object is what a clause of a long caption says, of any size or place where it tells none."""
  size, place = clause.get("size"), clause.get("place")
  if thing["shape"] != clause["class"] or thing["color"] != clause["color"]:
    return False
  if size and size != ("large" if thing["r"] >= LARGE else "small"):
    return False
  if place == "middle":
    return max(abs(thing["x"] - .5), abs(thing["y"] - .5)) <= MARGIN
  return place is None or within(thing, place)
