"""What the world of Scenes consists of: its size, words, colours, proportions and difficulty.

A scene is a dark square with one to four anti-aliased objects that never touch. Lengths are fractions of the side, x to
the right and y downwards, so that one scene can be drawn at any resolution.
"""
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (235, 50, 45),
    "green": (45, 205, 60),
    "blue": (50, 75, 245),
    "yellow": (240, 215, 45),
    "purple": (205, 50, 230),
    "cyan": (45, 210, 220),
}
BACKGROUND = (18, 18, 22)
CATEGORIES = ("single", "count", "color", "two", "position", "attribution")  # the six of GenEval
PLACES = {  # name: (x, y) as signs relative to the middle, 0 is open
    "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1),
    "top left": (-1, -1), "top right": (1, -1), "bottom left": (-1, 1), "bottom right": (1, 1),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Half width and half height of each shape's bounding box, in units of its radius.
EXTENT = {"circle": (1., 1.), "square": (.9, .9), "triangle": (1.2, 1.05)}


class World(NamedTuple):
  """The parameters of a world; lengths are fractions of the side. The defaults are the easy 16x16 world."""
  size: int = 16           # pixels of a side
  shapes: tuple = SHAPES
  colors: tuple = tuple(COLORS)
  most: int = 4            # objects in a scene, at most
  radius: tuple = ((.175, .24), (.165, .22), (.15, .19), (.145, .17))  # range for 1, 2, 3, 4 objects
  gap: float = .09         # between two bounding boxes
  edge: float = .02        # between a bounding box and the border
  margin: float = .12      # of a relation or a place when a scene is made; it is checked with less
  slope: float = .6        # |across| <= slope * |along| in the scenes that show a relation
  detail: float = 1.       # share of the long captions that tell sizes, and, independently, of those that tell places


def make(**options):
  """Returns a checked `World`.

  Raises:
    ValueError: a name or a number that no scene can be drawn with.
  """
  world = World(**options)
  for name, chosen, known in (("shapes", world.shapes, SHAPES), ("colors", world.colors, tuple(COLORS))):
    wrong = [word for word in chosen if word not in known]
    if wrong or len(set(chosen)) != len(chosen) or len(chosen) < 2:
      raise ValueError(f"scenes world: {name} is {tuple(chosen)}, allowed are two or more different ones of {known}; "
                       f"change {wrong or 'the list'}")
  if world.size < 12:
    raise ValueError(f"scenes world: size is {world.size}, allowed is 12 or more; smaller shapes cannot be told apart")
  if not 1 <= world.most <= len(world.radius):
    raise ValueError(f"scenes world: most is {world.most}, allowed is 1 to {len(world.radius)}, the number of radius "
                     "ranges; give `radius` one range for every number of objects")
  if not 0 <= world.detail <= 1:
    raise ValueError(f"scenes world: detail is {world.detail}, allowed is 0 to 1, the share of long captions that tell "
                     "sizes or places; correct it")
  return world._replace(shapes=tuple(world.shapes), colors=tuple(world.colors))
