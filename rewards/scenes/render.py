"""Scenes to pixels, and combinations to scenes: vectorised NumPy, a pure function of seeds.

Coverage of a pixel is `clip(0.5 - d, 0, 1)` with `d` the signed distance in pixels from its centre to the outline;
an object adds coverage x (colour - background), which is exact because boxes keep a gap. What a caption leaves open
is drawn uniformly: colours, shapes, sizes and positions. There are no objects beyond the ones a caption names.
"""
import numpy as np

from rewards.scenes import world as worlds

PALETTE = np.array([*worlds.COLORS.values()], np.float32) / 255  # [colours 3]
BACKGROUND = np.array(worlds.BACKGROUND, np.float32) / 255  # [3]
EXTENT = np.array([worlds.EXTENT[shape] for shape in worlds.SHAPES], np.float32)  # [shapes 2]


def distance(shape, dx, dy, r):
  """Signed distance to the outline, negative inside; all arguments broadcast, lengths in one unit.

  `shape` indexes `SHAPES`; (dx, dy) is the offset from the centre of the bounding box. Corners use the maximum of the
  half planes, so the distance outside a corner is a lower bound.
  """
  circle = np.sqrt(dx * dx + dy * dy) - r
  square = np.maximum(np.abs(dx), np.abs(dy)) - .9 * r
  # Apex (0, -1.05 r), base corners (+-1.2 r, 1.05 r); (2.1, 1.2) / 2.4187 is the unit normal of a side.
  side = (2.1 * np.abs(dx) - 1.2 * (dy + 1.05 * r)) / np.float32(np.hypot(2.1, 1.2))
  triangle = np.maximum(side, dy - 1.05 * r)
  return np.where(shape == 0, circle, np.where(shape == 1, square, triangle))


def coverage(shape, x, y, r, size):
  """Anti-aliased masks [... size size] of objects [...], positions and radii in fractions of the side."""
  centres = (np.arange(size, dtype=np.float32) + .5)
  shape, x, y, r = (np.asarray(a)[..., None, None] for a in (shape, x, y, r))
  dx, dy = centres - np.float32(size) * x, centres[:, None] - np.float32(size) * y
  return np.clip(.5 - distance(shape, dx, dy, np.float32(size) * r), 0, 1)


def render(shape, color, x, y, r, present, size):
  """Images of scenes.

  Args:
    shape: int [B K] indices into `SHAPES`.
    color: int [B K] indices into `COLORS`.
    x: float32 [B K], of the centre of the bounding box, in fractions of the side; `y` and `r` likewise.
    y: see x.
    r: see x.
    present: bool [B K], objects that exist.
    size: pixels of a side.

  Returns:
    uint8 [B size size 3].
  """
  mask = coverage(shape, x, y, r, size) * present[..., None, None]
  tint = (PALETTE - BACKGROUND)[color]
  image = BACKGROUND + np.einsum("bkhw,bkc->bhwc", mask, tint, optimize=True)
  return (np.clip(image, 0, 1) * 255 + .5).astype(np.uint8)


def objects(shape, color, x, y, r, present):
  """One scene as a list of dicts; arguments as of `render`, without the batch."""
  return [{"shape": worlds.SHAPES[shape[k]], "color": [*worlds.COLORS][color[k]],
           "x": round(float(x[k]), 4), "y": round(float(y[k]), 4), "r": round(float(r[k]), 4)}
          for k in range(int(present.sum()))]


def layout(rng, count, shape, wanted, relation, world):
  """Positions and radii by rejection: boxes apart from each other, relation and place with their margins.

  Args:
    rng: numpy Generator.
    count: int [B] objects.
    shape: int [B K].
    wanted: int [B 2], the signs of the place that the first object must be in, 0 is open.
    relation: int [B 2], the signs of the relation from the first to the second object, (0, 0) is none.
    world: a `World`.

  Returns:
    x, y, r float32 [B K].
  """
  total, most = shape.shape
  spans = np.array(world.radius, np.float32)[count - 1]  # [B 2]
  found = np.zeros((3, total, most), np.float32)
  left = np.arange(total)
  for trial in range(10_000):
    if not len(left):
      return found
    span, half = spans[left, :1, None], EXTENT[shape[left]]
    draws = rng.random((3, len(left), most), np.float32)
    if trial % 2:  # three and four large objects hardly fit otherwise
      draws[:2] = np.where(count[left, None] > 2, quadrants(rng, draws[:2]), draws[:2])
    r = span[..., 0] + draws[2] * (spans[left, 1:] - span[..., 0]) * .97 ** trial  # crowded scenes get small objects
    half = half * r[..., None] + world.edge  # [b K 2]
    xy = half + np.moveaxis(draws[:2], 0, -1) * (1 - 2 * half)
    good = apart(xy, half, count[left], 2 * world.edge - world.gap)
    good &= placed(xy[:, 0] - .5, wanted[left], world.margin) & related(xy, relation[left], world)
    found[:, left[good]] = np.stack([xy[good][..., 0], xy[good][..., 1], r[good]])
    left = left[~good]
  raise ValueError(f"scenes world: {len(left)} scenes of up to {count[left].max()} objects found no room with radius "
                   f"{world.radius} and gap {world.gap}; allowed is what fits; use smaller ones or fewer objects")


def quadrants(rng, draws):
  """Moves uniform draws [2 B K] into quadrants of the unit square that are different for four objects in a row."""
  order = (np.arange(draws.shape[-1]) + rng.integers(4, size=(draws.shape[1], 1))) % 4
  order = np.where(rng.random((len(order), 1)) < .5, order, order ^ (order >> 1))  # around, or row by row
  return (draws + np.stack([order & 1, order >> 1])) / 2


def apart(xy, half, count, slack):
  """Whether all boxes of a scene keep their gap, bool [B]."""
  good = np.ones(len(xy), bool)
  for i in range(xy.shape[1]):
    for j in range(i):
      room = np.abs(xy[:, i] - xy[:, j]) - half[:, i] - half[:, j] + slack
      good &= (room > 0).any(-1) | (count <= i)
  return good


def placed(offset, wanted, margin):
  """Whether offsets [B 2] from the middle lie on the wanted side with this margin, bool [B]."""
  return ((offset * wanted > margin) | (wanted == 0)).all(-1)


def related(xy, relation, world):
  """Whether the first object lies from the second as wanted, clearly along one axis, bool [B]."""
  offset = xy[:, 0] - xy[:, 1]
  along = (offset * relation).sum(-1)
  across = np.abs(offset * (relation == 0)).sum(-1)
  clear = (along > world.margin) & (across <= world.slope * along)
  return clear | (relation == 0).all(-1)
