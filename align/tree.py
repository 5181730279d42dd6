"""Nested dicts of arrays: paths, rules over paths, roles.

A leaf's name is its path joined by "/", as in "policy/net/down_0/conv/kernel". Rule tables over these names decide
what is trained, decayed, sharded and restored (after big_vision). Only nested mappings are trees here: lists and
NamedTuples are leaves.
"""
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": leaf}} -> {"a/b": leaf}, in the tree's order; empty branches vanish."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{name}/"))
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def unflatten(flat: Mapping) -> dict:
  """The inverse of `flatten`. Raises ValueError where a name is both a leaf and a branch."""
  tree = {}
  for path, value in flat.items():
    *branches, leaf = path.split("/")
    node = tree
    for name in branches:
      node = node.setdefault(name, {})
      if not isinstance(node, dict):
        raise ValueError(f"tree: {path!r} passes through {name!r}, which is a leaf; a name is a leaf or a branch, "
                         "rename one")
    if leaf in node:
      raise ValueError(f"tree: {path!r} is there already; a name is a leaf or a branch and stands once, rename one")
    node[leaf] = value
  return tree


def overlay(base: Mapping, top: Mapping) -> dict:
  """`base` with the leaves of `top` laid over it; both stay as they are and leaves are shared, not copied."""
  out = dict(base)
  for name, value in top.items():
    both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
    out[name] = overlay(out[name], value) if both else value
  return out


def view(params: Mapping, role: str) -> dict:
  """What the networks of `role` are applied with: params["base"] overlaid by params[role], where there is such."""
  return overlay(params.get("base", {}), params.get(role, {}))


def match(rules: Any, tree: Mapping) -> dict:
  """[(regex, value)] -> a tree of values. The first rule whose regex is found in a leaf's name wins.

  Raises ValueError naming the first leaf that no rule matches."""
  rules = list(rules)

  def value(path):
    for regex, result in rules:
      if re.search(regex, path):
        return result
    raise ValueError(f"tree: no rule matches leaf {path!r}; the rules are {[r for r, _ in rules]}; "
                     "add one for it, or a last one with '.*'")

  return unflatten({path: value(path) for path in flatten(tree)})


def partition(tree: Mapping, regex: str) -> tuple[dict, dict]:
  """(leaves in whose name `regex` is found, the others), empty branches dropped; `merge` is the inverse."""
  flat = flatten(tree)
  selected = {path: leaf for path, leaf in flat.items() if re.search(regex, path)}
  return unflatten(selected), unflatten({path: leaf for path, leaf in flat.items() if path not in selected})


def merge(a: Mapping, b: Mapping) -> dict:
  """The union of two trees without a common leaf. Raises ValueError where they clash."""
  flat_a, flat_b = flatten(a), flatten(b)
  clash = sorted(set(flat_a) & set(flat_b))
  if clash:
    raise ValueError(f"tree: both trees hold {clash[:5]} ({len(clash)} in all); merge takes disjoint trees, "
                     "use overlay where one is to win")
  return unflatten({**flat_a, **flat_b})


def sizes(tree: Any) -> list[tuple[int, Any]]:
  return [(int(np.prod(x.shape)), x.dtype) for x in jax.tree.leaves(tree)]


def count(tree: Any) -> int:
  """Number of elements in all leaves (arrays or ShapeDtypeStructs)."""
  return sum(n for n, _ in sizes(tree))


def nbytes(tree: Any) -> int:
  """Bytes in all leaves, over all devices (a replicated leaf counts once)."""
  return sum(n * dtype.itemsize for n, dtype in sizes(tree))


def copy(tree: Any) -> Any:
  """The same tree in memory of its own, so that donating one of the two leaves the other alive; shardings are kept."""
  return jax.tree.map(lambda x: x.copy() if hasattr(x, "copy") else x, tree)
