"""Pixels to objects: the exact detector, deterministic NumPy and SciPy on the host.

The hue of a pixel is the palette colour whose direction from the background is nearest (the nearest palette colour
would fail on anti-aliased edges), its coverage the length along that direction. Connected components of one hue are
matched with an analytic template of every shape, equal in centroid and area, by soft intersection over union. What
matches no shape, or has no clear hue, is reported as "junk". Left out: objects that overlap or touch in one colour.
"""
import numpy as np
from scipy import ndimage

from rewards.scenes import render
from rewards.scenes import world as worlds

AREA = np.array([np.pi, 3.24, 2.52], np.float32)      # of each shape at radius 1
CENTROID = np.array([0, 0, .35], np.float32)          # below the centre of the box, at radius 1
JUNK = "junk"
BLOCK = 1 << 22                                       # template pixels at a time


def detect(images, *, match=.8, pure=.93, least=.012, solid=.5):
  """Objects in images.

  Args:
    images: uint8, or float in [0, 1], [B H W 3].
    match: soft IoU below which a component is junk.
    pure: cosine between a component's colour and its hue below which it is junk.
    least: area in fractions of the image below which a component is noise and not reported.
    solid: coverage from which a pixel belongs to the body of a component.

  Returns:
    B lists of {"shape", "color", "x", "y", "r", "area", "score"}, best score first; x, y (centre of the bounding
    box) and r in fractions of the side, area in fractions of the image, score the IoU. Junk has the hue it is
    nearest to.

  Raises:
    ValueError: images of another shape.
  """
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
    raise ValueError(f"scenes detector: images have shape {images.shape}, allowed is [B H W 3] with H = W; add the "
                     "batch axis, or give frames one by one")
  images = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)
  batch, size = images.shape[:2]
  hue, cover, cosine = hues(images)
  where, color, masks = components(hue, cover, solid)
  area = masks.sum((1, 2))
  keep = area >= least * size * size
  where, color, masks, area = where[keep], color[keep], masks[keep], area[keep]
  purity = (masks * cosine[where]).sum((1, 2)) / np.maximum(area, 1e-6)
  shape, x, y, r, score = fit(masks, area, size)
  found = [[] for _ in range(batch)]
  for i in np.argsort(-score, kind="stable"):
    name = worlds.SHAPES[shape[i]] if score[i] >= match and purity[i] >= pure else JUNK
    found[where[i]].append({
        "shape": name, "color": [*worlds.COLORS][color[i]], "x": float(x[i]), "y": float(y[i]), "r": float(r[i]),
        "area": float(area[i]) / size ** 2, "score": float(score[i])})
  return found


def hues(images):
  """Nearest hue, coverage in [0, 1] along it and cosine to it, each [B H W]."""
  tint = render.PALETTE - render.BACKGROUND
  length = np.linalg.norm(tint, axis=1)
  offset = images - render.BACKGROUND
  along = offset @ (tint / length[:, None]).T  # [B H W colours]
  hue = along.argmax(-1)
  best = np.take_along_axis(along, hue[..., None], -1)[..., 0]
  cosine = best / np.maximum(np.linalg.norm(offset, axis=-1), 1e-6)
  return hue, np.clip(best / length[hue], 0, 1), cosine


def components(hue, cover, solid):
  """Connected bodies of one hue with their soft edges.

  Returns:
    image index [M], hue [M] and soft masks [M H W]. A pixel at the edge joins a body of its hue beside it.
  """
  flat = np.zeros((3, 3, 3), bool)
  flat[1] = True  # the batch axis does not connect
  where, color, masks = [], [], []
  for h in range(len(worlds.COLORS)):
    mine = np.where(hue == h, cover, 0)
    label, count = ndimage.label(mine >= solid, flat)
    if not count:
      continue
    first = np.array([box[0].start for box in ndimage.find_objects(label)])
    label = np.where(label > 0, label, ndimage.maximum_filter(label, (1, 3, 3), mode="constant"))
    where.append(first)
    color.append(np.full(count, h))
    masks.append(np.where(label[first] == np.arange(1, count + 1)[:, None, None], mine[first], 0))
  if not where:
    return np.zeros(0, int), np.zeros(0, int), np.zeros((0, *hue.shape[1:]), np.float32)
  return np.concatenate(where), np.concatenate(color), np.concatenate(masks)


def fit(masks, area, size):
  """Best shape of each soft mask [M H W]: index, x, y, r in fractions of the side, and soft IoU, each [M]."""
  grid = (np.arange(size, dtype=np.float32) + .5) / size
  weight = np.maximum(area, 1e-6)
  cx, cy = (masks.sum(1) @ grid) / weight, (masks.sum(2) @ grid) / weight
  r = np.sqrt(area[:, None] / AREA) / size  # [M shapes]
  y = cy[:, None] - CENTROID * r
  x = np.repeat(cx[:, None], len(AREA), 1)
  iou = np.zeros_like(r)
  block = max(1, BLOCK // (size * size * len(AREA)))
  for start in range(0, len(masks), block):
    part = slice(start, start + block)
    template = render.coverage(np.arange(len(AREA)), x[part], y[part], r[part], size)
    mask = masks[part, None]
    iou[part] = np.minimum(mask, template).sum((2, 3)) / np.maximum(mask, template).sum((2, 3))
  best = iou.argmax(1)
  rows = np.arange(len(best))
  return best, x[rows, best], y[rows, best], r[rows, best], iou[rows, best]
