"""What a caption says of a scene against what is there, whatever its words: completeness, invention, length.

An object is named by its colour and shape next to each other, as in `a small red circle at the top left` and `a red
circle and a blue square`; sizes and places count where both say something clear. Numbers and things without a colour
are not read.
"""
import re
from collections import Counter

from rewards.scenes import world as worlds
from rewards.scenes.check import described

WHERE = sorted([*worlds.PLACES, "middle"], key=len, reverse=True)  # longer names first: "top left" before "top"
THING = re.compile(rf"(?:\b(?P<size>small|large) )?\b(?P<color>{'|'.join(worlds.COLORS)}) "
                   rf"(?P<class>{'|'.join(worlds.SHAPES)})\b(?: (?:at|on) the (?P<place>{'|'.join(WHERE)})\b)?")


def named(text: str) -> list[dict]:
  """The objects that a caption names: {"color", "class"} and, where they are said, "size" and "place"."""
  return [{k: v for k, v in found.groupdict().items() if v} for found in THING.finditer(text)]


def told(text: str, objects: list) -> dict:
  """Shares in [0, 1] and a count: `complete` of the objects that are named by colour and shape, `invented` of what is
  named that is not there, `right` of the objects whose size and place are said as they are, and `words`."""
  said = named(text)
  kinds = Counter((thing["color"], thing["class"]) for thing in said)
  there = Counter((o["color"], o["shape"]) for o in objects)
  both = sum((kinds & there).values())
  full = [thing for thing in said if "size" in thing and "place" in thing]
  return {"complete": both / max(len(objects), 1), "invented": 1 - both / len(said) if said else 0.0,
          "right": paired(full, objects) / max(len(objects), 1), "words": len(text.split())}


def paired(clauses: list, objects: list) -> int:
  """How many objects have a clause of their own that describes them, taken one after another."""
  left, count = list(clauses), 0
  for thing in objects:
    fits = next((clause for clause in left if described(clause, thing)), None)
    if fits is not None:
      left.remove(fits)
      count += 1
  return count
