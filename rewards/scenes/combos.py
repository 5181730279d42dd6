"""What captions can assert, independent of their wording, and which of it is held out.

A combination is the set of objects, attributes and relation that a caption names, in canonical order: `A left of B` and
`B right of A` are one. Every GenEval category has plain combinations, as GenEval words them, and refined ones,
which name one attribute more; with three shapes the plain ones alone would be too few to hold some out.

  category     plain (always trained on)       refined (a fixed share is held out)
  single       a circle                        a circle at the top left
  count        two circles                     two red circles
  color        a red object                    a red circle
  two          a circle and a square           a red circle and a square
  position     a circle left of a square       a red circle left of a square
  attribution                                  a red circle and a blue square

Held out are the first `HELD_OUT` of each category's refined combinations in the order of their SHA-256, so the
split depends on neither seeds nor versions. No held-out combination equals, or is implied by, a training one of its
category (a corner counts as another place than the two sides that meet there). Other categories may name a part of it,
for otherwise nothing could be held out.
"""
import functools
import hashlib
import math
from typing import NamedTuple

from rewards.scenes import world as worlds

HELD_OUT = .18
NUMBERS = ("zero", "one", "two", "three", "four")


class Combo(NamedTuple):
  """An assertion: things (shape or "object", colour or "", place or ""), a single one repeated `count` times."""
  category: str
  things: tuple
  count: int = 1
  relation: str = ""  # from the first thing to the second, "left of" or "above"

  @property
  def refined(self):
    """Whether it names more than the plain captions of its category."""
    named = [bool(color) + bool(place) for _, color, place in self.things]
    if self.category == "color":
      return self.things[0][0] != "object"
    return sum(named) > 0

  @property
  def key(self):
    """Canonical name, equal for all wordings of the same assertion."""
    things = ["-".join(word.replace(" ", "_") for word in thing if word) for thing in self.things]
    if not self.relation:
      things = sorted(things)
    return "/".join([self.category, str(self.count), self.relation.replace(" ", "_") or "none", *things])


@functools.cache
def combos(category, world=worlds.World()):  # noqa: B008 (immutable)
  """All combinations of a category in this world, a tuple of `Combo`."""
  shapes, colors = world.shapes, world.colors
  pairs = [(a, b) for a in shapes for b in shapes if a != b]
  if category == "single":
    made = [((s, "", p),) for s in shapes for p in ("", *worlds.PLACES)]
  elif category == "color":
    made = [((s, c, ""),) for s in ("object", *shapes) for c in colors]
  elif category == "count":
    return tuple(Combo(category, ((s, c, ""),), n) for n in range(2, world.most + 1)
                 for s in shapes for c in ("", *colors))
  elif category == "two":
    made = [((a, c, ""), (b, "", "")) for a, b in pairs for c in ("", *colors) if c or a < b]
  elif category == "attribution":
    made = [((a, c, ""), (b, d, "")) for a, b in pairs for c in colors for d in colors if a < b and c != d]
  elif category == "position":
    return tuple(Combo(category, ((a, c, ""), (b, d, "")), 1, r) for a, b in pairs for r in ("left of", "above")
                 for c in ("", *colors) for d in ("", *colors) if not (c and d))
  else:
    raise ValueError(f"scenes category: {category!r}, allowed are {worlds.CATEGORIES}; choose one of them")
  return tuple(Combo(category, things) for things in made)


@functools.cache
def split(category, name, world=worlds.World()):  # noqa: B008 (immutable)
  """The combinations of a category that belong to "train" or to "test", in canonical order."""
  if name not in ("train", "test"):
    raise ValueError(f"scenes split: {name!r}, allowed are 'train' and 'test'; choose one of them")
  every = combos(category, world)
  refined = sorted((c for c in every if c.refined), key=lambda c: hashlib.sha256(c.key.encode()).hexdigest())
  held = {c.key for c in refined[:math.ceil(HELD_OUT * len(refined))]}
  return tuple(c for c in every if (c.key in held) == (name == "test"))
