"""Low-rank adapters of kernels in a tree of parameters (2106.09685): W + scale * A B, with scale = alpha / rank.

An adapter tree mirrors the parameters, with {"a", "b"} where a kernel stands. A starts as peft's gaussian does, with
standard deviation 1 / rank, B at zero, so that an adapted network starts as the plain one. Left out: DoRA, rsLoRA.
"""
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STACKED = r"(^|/)(\w+_)?blocks/"  # leaves of nn.scan, whose first axis counts layers


def leaves(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """("net/conv/kernel", leaf) for every leaf of nested dicts."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", value


def sides(path: str, shape: tuple, stacked: str = STACKED) -> tuple[tuple, int, int]:
  """(leading axes, inputs, outputs) of a kernel.

  [in out] of a dense layer; [in heads dim] of DenseGeneral has outputs heads * dim; [kh kw in out] of a convolution has
  inputs kh * kw * in, as peft's does; under `stacked` the first axis is kept, one adapter a layer.
  """
  lead = shape[:1] if re.search(stacked, path) else ()
  rest = shape[len(lead):]
  if len(rest) < 2:
    raise ValueError(f"lora: {path} has shape {shape}, but a kernel needs at least two axes; narrow the targets")
  split = 1 if len(rest) == 3 else len(rest) - 1
  return lead, int(np.prod(rest[:split])), int(np.prod(rest[split:]))


def init(key: Any, tree: Mapping, rank: int, targets: str = r"kernel$", stacked: str = STACKED) -> dict:
  """Adapters for the kernels of `tree` (arrays or shapes) whose name the regex `targets` is found in.

  Each leaf's numbers depend on the key and its own name alone. A [.. in rank], B [.. rank out], float32.
  Raises ValueError if no kernel matches, or for a rank below 1.
  """
  if rank < 1:
    raise ValueError(f"lora: rank = {rank} must be at least 1; 4 to 128 are usual")
  kernels = {path: leaf.shape for path, leaf in leaves(tree) if path.split("/")[-1] == "kernel"}
  chosen = {path: shape for path, shape in kernels.items() if re.search(targets, path)}
  if not chosen:
    some = ", ".join(list(kernels)[:6]) or "none"
    raise ValueError(f"lora: targets = {targets!r} matches none of the {len(kernels)} kernels ({some} ...); it is a "
                     "regex searched in such names, correct it")
  out = {}
  for path, shape in chosen.items():
    lead, inputs, outputs = sides(path, shape, stacked)
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    node = out
    for name in path.split("/"):
      node = node.setdefault(name, {})
    node["a"] = jax.random.normal(own, (*lead, inputs, rank), jnp.float32) / rank
    node["b"] = jnp.zeros((*lead, rank, outputs), jnp.float32)
  return out


def apply(params: Mapping, lora: Mapping, scale: Any) -> dict:
  """Parameters with W + scale * A B where `lora` has adapters, in float32, then in W's type; other leaves are shared.

  Folding adapters in for good is the same function. Raises ValueError for an adapter without a kernel or of other
  sides.
  """
  return adapted(params, lora, scale, "")


def adapted(params: Mapping, lora: Mapping, scale: Any, prefix: str) -> dict:
  out = dict(params)
  for name, part in lora.items():
    path = f"{prefix}{name}"
    if name not in params:
      raise ValueError(f"lora: there is an adapter for {path}, but no such parameter, only {', '.join(params)}; "
                       "use the adapters with the network they were made for")
    is_leaf = not isinstance(params[name], Mapping)
    out[name] = added(path, params[name], part, scale) if is_leaf else adapted(params[name], part, scale, f"{path}/")
  return out


def added(path: str, kernel: Any, part: Mapping, scale: Any):
  """One kernel with its adapter."""
  delta = jnp.matmul(part["a"].astype(jnp.float32), part["b"].astype(jnp.float32), precision="highest")
  if delta.size != kernel.size:
    raise ValueError(f"lora: {path} has shape {kernel.shape}, but its adapter has sides {part['a'].shape} and "
                     f"{part['b'].shape}; use the adapters with the network they were made for")
  return (kernel.astype(jnp.float32) + scale * delta.reshape(kernel.shape)).astype(kernel.dtype)
