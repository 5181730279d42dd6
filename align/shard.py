"""Where the arrays of a run live: a rule table from leaf names to shardings on the mesh of diffusion/mesh.py, and the
ways from hosts to devices and back. Left out: pipeline and sequence parallelism.
"""
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align import tree as trees
from align.build import UserError
from diffusion.mesh import AXES, BATCH, LAID, auto, batch_sharding, grid, ways

# Of every network, whose layers are named alike: tensor parallelism of pairs (1909.08053). What is computed from a
# copied activation is cut along its outputs, what is added back to one along its inputs: each pair ends in one sum.
RULES = [
  (r"(^|/)(q|k|v|gate|up|fc1|ff_in|in|mlp|conv1|time)/kernel$", "columns"),
  (r"(^|/)((\w+_)?out|down|fc2|ff_out|conv2)/kernel$", "rows"),
  (r".*", "auto"),
]


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
  return grid(tuple(sizes), devices)


def specs(shapes: Any, rules: Any, mesh: Mesh) -> dict:
  """[(regex, rule)] -> a tree of NamedShardings for a tree of arrays or ShapeDtypeStructs.

  A rule is "auto", "columns" or "rows" (see diffusion/mesh.py), or a tuple with None, an axis or a tuple of axes for
  each leading dimension. Raises UserError naming leaf, axis, dimension and size where a tuple does not fit."""
  chosen = trees.flatten(trees.match(rules, shapes))
  return trees.unflatten({name: NamedSharding(mesh, spec(name, leaf.shape, chosen[name], mesh))
                          for name, leaf in trees.flatten(shapes).items()})


def spec(name: str, shape: tuple, rule: Any, mesh: Mesh) -> PartitionSpec:
  if isinstance(rule, str):
    return LAID[rule](shape, mesh)
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


def moments(state: Any, shapes: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of an optimiser's `state`: those of the parameter whose name and shape a leaf has, else by its shape."""
  shapes, shardings = trees.flatten(shapes), trees.flatten(shardings)

  def one(path, leaf):
    name = "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
    same = name in shapes and shapes[name].shape == leaf.shape
    return shardings[name] if same else NamedSharding(mesh, auto(leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, state)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, shardings: Any) -> Any:
  """Host or device arrays, whole in every process, onto shards; `shardings` is a tree like it, or one for all.

  The result never shares memory with host arrays, so it may be donated."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(place, tree, shardings)


def place(x: Any, sharding: Any) -> Any:
  if isinstance(x, jax.Array) and x.is_fully_addressable and not sharding.is_fully_addressable:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])  # the same in every process
  if isinstance(x, jax.Array):
    return jax.device_put(x, sharding, may_alias=False)
  x = np.array(x)  # a copy: on the CPU device_put may share memory with what it is handed, also if asked not to
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def settled(x: Any, sharding: Any) -> Any:
  """`place`, of a device array that lies so already without a copy; it may share memory with `x`."""
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  return place(x, sharding)


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
