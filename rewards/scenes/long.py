"""Captions that describe everything: size, colour, shape and place of every object in the scene.

With `detail` below 1 some tell no sizes, some no places, and some neither, as those of people do. The scene comes first
and the words follow from it; scenes in which a size or a place would be ambiguous are drawn again. Held out are things
(colour, shape, place): no training caption names one, every test caption names at least one.
"""
import functools
import hashlib
import random

import numpy as np

from rewards.scenes import caption as captions
from rewards.scenes import combos, render
from rewards.scenes import world as worlds
from rewards.scenes.check import LARGE, MARGIN

SLACK = .012  # a large radius is at least this much above the threshold, a small one as much below
TRIALS = 400


@functools.cache
def held(shape, color, place):
  """Whether a thing belongs to the test split."""
  digest = hashlib.sha256(f"long/{color}-{shape}-{place}".encode()).digest()
  return int.from_bytes(digest[:4], "big") < combos.HELD_OUT * 2 ** 32


def place(x, y, margin):
  """Name of where a point is, None if it is not clear."""
  signs = [0 if abs(v - .5) < MARGIN / 2 else 1 if v > .5 + margin else -1 if v < .5 - margin else None
           for v in (x, y)]
  if None in signs:
    return None
  return "middle" if signs == [0, 0] else next(n for n, s in worlds.PLACES.items() if list(s) == signs)


def make(seed, number, split, count, world):
  """`count` scenes of chunk `number`; see `scenes.batch`.

  Returns:
    the arguments of `render.render` without the size, list of captions, list of specs.

  Raises:
    ValueError: a world in which hardly any scene can be described.
  """
  rng = np.random.default_rng([seed, number, 2 if split == "train" else 3])
  words, made = random.Random(f"long/{seed}/{split}/{number}"), []
  for _ in range(TRIALS):
    if len(made) >= count:
      scene = [np.stack(column) for column in zip(*(arrays for _, arrays in made[:count]), strict=True)]
      pairs = [describe(things, words, world.detail) for things, _ in made[:count]]
      return scene, [text for text, _ in pairs], [spec for _, spec in pairs]
    made += attempt(rng, split, count, world)
  raise ValueError(f"scenes world: only {len(made)} of {count} long captions after {TRIALS} trials with margin "
                   f"{world.margin} and radius {world.radius}; allowed is what leaves sizes and places clear; lower "
                   "the margin")


def attempt(rng, split, count, world):
  """Scenes of one trial that can be described and belong to the split, [(objects, arrays of the scene)]."""
  number = rng.integers(1, world.most + 1, size=count)
  shape, color = (np.array([[*known].index(n) for n in names])[rng.integers(len(names), size=(count, world.most))]
                  for known, names in ((worlds.SHAPES, world.shapes), (worlds.COLORS, world.colors)))
  none = np.zeros((count, 2), int)
  xyr = render.layout(rng, number, shape, none, none, world)
  present = np.arange(world.most) < number[:, None]
  made = []
  for i in range(count):
    things = render.objects(shape[i], color[i], *xyr[:, i], present[i])
    places = [place(o["x"], o["y"], world.margin) for o in things]
    if None in places or any(abs(o["r"] - LARGE) < SLACK for o in things):
      continue
    if any(held(o["shape"], o["color"], p) for o, p in zip(things, places, strict=True)) == (split == "test"):
      named = [{**o, "place": p} for o, p in zip(things, places, strict=True)]
      made.append((named, (shape[i], color[i], *xyr[:, i], present[i])))
  return made


def describe(things, words, detail):
  """(caption, spec) of objects with their `place`."""
  order = words.sample(things, len(things))
  sizes, places = (detail == 1 or words.random() < detail for _ in range(2))
  clauses = [{"class": o["shape"], "count": 1, "color": o["color"], **({"place": o["place"]} if places else {}),
              **({"size": "large" if o["r"] >= LARGE else "small"} if sizes else {})} for o in order]
  named = [[c[name] for name in ("size", "color", "class", "place") if name in c] for c in clauses]
  parts = [f"a {' '.join(said[:-1])} at the {said[-1]}" if places else f"a {' '.join(said)}" for said in named]
  key = "/".join(["long", *sorted("-".join(said) for said in named)])
  truth = [{name: value for name, value in o.items() if name != "place"} for o in things]
  text = f"{captions.choose(captions.PREFIXES, words)} {' and '.join(parts)}".strip()
  return text, {"category": "long", "key": key.replace(" ", "_"), "objects": truth, "include": clauses, "exclude": []}
