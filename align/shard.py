"""Where arrays live: one mesh of three axes, and a rule table from leaf names to shardings.

  data   copies of the parameters, each with a part of the batch
  fsdp   parts of the parameters and of the batch (ZeRO-3: gathered where they are used)
  model  parts of the parameters, the batch is copied
Left out: pipeline and sequence parallelism.
"""
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align import tree as trees
from align.build import UserError

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes that a batch is cut over
SMALL = 1024              # leaves below so many elements are cheaper to copy than to gather


def mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Any = None) -> Mesh:
  """A mesh of data x fsdp x model devices; one may be -1 for what is left. UserError where that is impossible."""
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, model]
  shown, n = f"config.mesh = {dict(zip(AXES, sizes, strict=True))}", len(devices)
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise UserError(f"{shown}: sizes are positive and at most one is -1 (what is left); correct it")
  rest = math.prod(s for s in sizes if s != -1)
  sizes = [n // rest if s == -1 else s for s in sizes]
  if math.prod(sizes) != n:
    raise UserError(f"{shown}: their product must be the number of devices, {n}, or divide it where one is -1; "
                    f"{rest} does not, change a size")
  # Auto: recent jax makes Explicit axes by default, with which flax modules fail
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def specs(shapes: Any, rules: Any, mesh: Mesh) -> dict:
  """[(regex, rule)] -> a tree of NamedShardings for a tree of arrays or ShapeDtypeStructs.

  A rule is "auto" (see `auto`), or a tuple with None, an axis or a tuple of axes for each leading dimension. Raises
  UserError naming leaf, axis, dimension and size where a rule does not fit."""
  chosen = trees.flatten(trees.match(rules, shapes))
  return trees.unflatten({name: NamedSharding(mesh, spec(name, leaf.shape, chosen[name], mesh))
                          for name, leaf in trees.flatten(shapes).items()})


def spec(name: str, shape: tuple, rule: Any, mesh: Mesh) -> PartitionSpec:
  if rule == "auto":
    return auto(shape, mesh)
  if len(rule) > len(shape):
    raise UserError(f"sharding of {name!r} = {rule}: it has only {len(shape)} dimensions, {shape}; shorten the rule")
  for dim, axes in enumerate(rule):
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      if axis not in mesh.shape:
        raise UserError(f"sharding of {name!r} = {rule}: there is no axis {axis!r}, only {', '.join(mesh.shape)}; "
                        "correct the rule")
    if shape[dim] % ways(axes, mesh):
      raise UserError(f"sharding of {name!r} = {rule}: axis {axes!r} of size {ways(axes, mesh)} does not divide "
                      f"dimension {dim} of {shape}, which is {shape[dim]}; change the rule or config.mesh")
  return PartitionSpec(*rule)


def ways(axes: Any, mesh: Mesh) -> int:
  return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def auto(shape: tuple, mesh: Mesh) -> PartitionSpec:
  """All of fsdp and model on the largest dimension that their product divides, else each on one of its own; a small
  leaf, or one that nothing divides, is copied."""
  free = tuple(a for a in ("fsdp", "model") if mesh.shape[a] > 1)
  if math.prod(shape) < SMALL or not free:
    return PartitionSpec()
  placed = [None] * len(shape)
  for axes in [free, *((a,) for a in free)]:
    fits = [d for d, n in enumerate(shape) if placed[d] is None and n % ways(axes, mesh) == 0]
    if fits and not any(a in p for p in placed if p for a in axes):
      placed[max(fits, key=lambda d: shape[d])] = axes
  entries = [p[0] if p and len(p) == 1 else p for p in placed]
  while entries and entries[-1] is None:
    entries.pop()
  return PartitionSpec(*entries)


def moments(state: Any, shapes: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of an optimiser's `state`: those of the parameter whose name and shape a leaf has, else by its shape."""
  shapes, shardings = trees.flatten(shapes), trees.flatten(shardings)

  def one(path, leaf):
    name = "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
    same = name in shapes and shapes[name].shape == leaf.shape
    return shardings[name] if same else NamedSharding(mesh, auto(leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, shardings: Any) -> Any:
  """Host or device arrays, whole in every process, onto shards; `shardings` is a tree like it, or one for all.

  The result never shares memory with host arrays, so it may be donated."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(place, tree, shardings)


def place(x: Any, sharding: Any) -> Any:
  if isinstance(x, jax.Array):
    return jax.device_put(x, sharding, may_alias=False)
  x = np.array(x)  # a copy: on the CPU device_put may share memory with what it is handed, also if asked not to
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Host arrays [B/processes ...], this process's part of every batch, -> global arrays [B ...] over data and fsdp.

  Scalars are copied. Raises UserError where the mesh does not divide B."""
  processes = jax.process_count()

  def one(x):
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not x.ndim:
      return place(x, replicated(mesh))
    check_batch(x.shape[0] * processes, mesh)
    if processes == 1:
      return place(x, batch_sharding(mesh))
    return jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(x))

  return jax.tree.map(one, batch)


def batch_or_copy(shape: tuple, mesh: Mesh) -> NamedSharding:
  """How an array of a run's memory is laid out: cut along its leading axis where the mesh divides it, else copied."""
  parts = ways(BATCH, mesh)
  return batch_sharding(mesh) if shape and shape[0] % parts == 0 else replicated(mesh)


def check_batch(size: int, mesh: Mesh) -> None:
  """UserError where the mesh does not divide a batch of `size` samples."""
  parts = ways(BATCH, mesh)
  if size % parts:
    near = [n for n in (size // parts * parts, (size // parts + 1) * parts) if n]
    raise UserError(f"config.batch: {size} samples cannot be cut evenly over data x fsdp = {parts} devices; "
                    f"take {' or '.join(map(str, near))} samples (batch x group), or change config.mesh")


def to_host(x: Any) -> Any:
  """A device array -> the whole of it as a numpy array, in every process (a collective: all of them must call it)."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)


def local(x: Any) -> np.ndarray:
  """This process's rows of a batch-sharded array, the inverse of `put_batch`: what host code works on."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x)
  pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])
