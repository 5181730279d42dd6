"""Optical flow between consecutive frames: iterative Lucas-Kanade on a pyramid (Bouguet 2000), without weights.

At every pixel the motion d = (right, down) that best explains second(p + d) = first(p) in a small window solves

  [sum Ix Ix + floor, sum Ix Iy; sum Ix Iy, sum Iy Iy + floor] d = -[sum Ix It; sum Iy It]

from coarse to fine, each time after the second frame was warped by what was found so far. Sums are over channels and a
binomial window. `floor` keeps the system regular: where nothing has a structure the flow is 0, and its gradient is
finite. The mean change of a frame is taken out, so that a frame that is brighter as a whole does not move, and what
leaves the picture has no say.

Traceable and differentiable; the work is some hundred operations a pixel. Limits: on textured frames it is right to
about a tenth of a pixel up to 4 pixels a frame, and too small beyond; along a straight edge only motion across it is
seen; on objects smaller than the window, and within three pixels of an outline, it is rough; brightness that changes in
parts of a frame looks like motion. `structure` says where it can be trusted. Left out: occlusion, smoothness between
windows, learned flow (RAFT).
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = tuple(w / 64 for w in (1, 6, 15, 20, 15, 6, 1))  # binomial, standard deviation 1.2 pixels
LEAST = 6     # pixels of a side of the coarsest level
FLOOR = 1e-4  # of the squared slope, intensities are in [0, 1]
SHARE = 0.1   # of the frame's mean squared slope, which is added to the floor
STEP = 1.0    # most pixels that one iteration moves


def along(values: Any, axis: int, weights: tuple) -> Any:
  """values [N H W ...] averaged with `weights` along axis 1 or 2, the border repeated: a product with a banded matrix,
  which compiles and differentiates faster than shifts."""
  size, reach = values.shape[axis], len(weights) // 2
  matrix, at = np.zeros((size, size)), np.arange(size)
  for i, weight in enumerate(weights):
    np.add.at(matrix, (at, np.clip(at + i - reach, 0, size - 1)), weight)
  form = "nhw...,ih->niw..." if axis == 1 else "nhw...,iw->nhi..."
  return jnp.einsum(form, values, matrix.astype(values.dtype), precision="highest")


def slope(image: Any, axis: int) -> Any:
  return along(image, axis, (-0.5, 0, 0.5))


def blurred(values: Any) -> Any:
  """values [N H W ...] averaged over the window."""
  return along(along(values, 1, WINDOW), 2, WINDOW)


def halved(image: Any) -> Any:
  """[N H W C] -> [N ceil(H / 2) ceil(W / 2) C], means of two by two pixels."""
  image = jnp.pad(image, ((0, 0), (0, image.shape[1] % 2), (0, image.shape[2] % 2), (0, 0)), "edge")
  n, h, w, c = image.shape
  return image.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def structure(frames: Any) -> Any:
  """[N H W] in [0, 1) for frames [N H W C]: how far flow can be seen at a pixel, by its slope against the mean one."""
  square = (slope(frames, 1) ** 2 + slope(frames, 2) ** 2).sum(-1)
  return square / (square + SHARE * square.mean((1, 2), keepdims=True) + FLOOR)


def targets(flow: Any) -> tuple:
  """(rows, columns) [N H W] that each pixel goes to."""
  _, h, w, _ = flow.shape
  return jnp.arange(h)[:, None] + flow[..., 1], jnp.arange(w) + flow[..., 0]


def warped(image: Any, flow: Any) -> Any:
  """image [N H W C] at p + flow(p), [N H W 2] in pixels (right, down): bilinear, beyond the border the border."""
  pick = lambda plane, at: jax.scipy.ndimage.map_coordinates(plane, at, order=1, mode="nearest")
  return jax.vmap(jax.vmap(pick, (2, None), 2))(image, targets(flow))


def inside(flow: Any) -> Any:
  """[N H W] bool: whether p + flow(p) lies in the picture."""
  (_, h, w, _), (row, column) = flow.shape, targets(flow)
  return (row >= 0) & (row <= h - 1) & (column >= 0) & (column <= w - 1)


def refined(first: Any, second: Any, flow: Any) -> Any:
  """One iteration at one level: the flow with what is left between `first` and the warped `second`."""
  moved, seen = warped(second, flow), inside(flow)[..., None]
  middle, change = (first + moved) / 2, moved - first
  change -= (seen * change).sum((1, 2), keepdims=True) / jnp.maximum(seen.sum((1, 2), keepdims=True), 1)
  x, y = slope(middle, 2), slope(middle, 1)
  products = jnp.stack([(a * b).sum(-1) for a, b in ((x, x), (x, y), (y, y), (x, change), (y, change))], -1)
  xx, xy, yy, xt, yt = jnp.moveaxis(blurred(products * seen), -1, 0)
  floor = FLOOR + SHARE * (xx + yy).mean((1, 2), keepdims=True)
  xx, yy = xx + floor, yy + floor
  step = jnp.stack([xy * yt - yy * xt, xy * xt - xx * yt], -1) / (xx * yy - xy * xy)[..., None]
  return flow + jnp.clip(step, -STEP, STEP)


def estimate(first: Any, second: Any, levels: int = 3, iterations: int = 4) -> Any:
  """Flow [N H W 2] in pixels (right, down) from frames [N H W C] in [0, 1] to the next ones, with
  second(p + flow(p)) = first(p). levels: of the pyramid, fewer where the frames are small; iterations: at each."""
  pyramid = [(first, second)]
  while len(pyramid) < levels and min(pyramid[-1][0].shape[1:3]) >= 2 * LEAST:
    pyramid.append(tuple(map(halved, pyramid[-1])))
  flow = jnp.zeros((*pyramid[-1][0].shape[:3], 2), first.dtype)
  for one, two in reversed(pyramid):
    n, h, w, _ = one.shape
    if flow.shape[1:3] != (h, w):
      flow = 2 * jax.image.resize(flow, (n, 2 * flow.shape[1], 2 * flow.shape[2], 2), "linear")[:, :h, :w]
    flow, _ = jax.lax.scan(lambda f, _, one=one, two=two: (refined(one, two, f), None), flow, length=iterations)
  return flow
