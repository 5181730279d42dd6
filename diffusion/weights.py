"""Weights as safetensors files: nested dicts of arrays whose leaves are named by their path joined by "/".

Reading is strict and tensor by tensor. Nothing that is unpickled is ever opened: a pickle runs code when it is read.
Left out: one file in several shards.
"""
import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as st

PICKLES = (".bin", ".pt", ".ckpt", ".pth", ".pkl", ".pickle")
SHOWN = 8  # names of one kind in an error


def leaves(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """("net/conv/kernel", leaf) for every leaf of nested dicts. ValueError for a name that a path cannot hold."""
  for name, value in tree.items():
    if not isinstance(name, str) or "/" in name or not name:
      raise ValueError(f"weights: the name {name!r} under {prefix!r} must be a non-empty string without '/', which "
                       "joins names to paths; rename it")
    if isinstance(value, Mapping):
      yield from leaves(value, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", value


def nested(flat: Mapping) -> dict:
  """{"a/b": leaf} -> {"a": {"b": leaf}}."""
  tree = {}
  for path, value in flat.items():
    *branches, leaf = path.split("/")
    node = tree
    for name in branches:
      node = node.setdefault(name, {})
    node[leaf] = value
  return tree


def save(path: Any, tree: Mapping, metadata: Mapping = None) -> Path:
  """Writes a nested dict of arrays; the file appears whole or not at all. metadata: {str: str}, kept in the header."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = {name: np.ascontiguousarray(np.asarray(leaf)).reshape(np.shape(leaf)) for name, leaf in leaves(tree)}
  part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    st.save_file(flat, part, metadata=dict(metadata) if metadata else None)
    os.chmod(part, 0o666 & ~umask())
    os.replace(part, path)
  except safetensors.SafetensorError as error:  # the library hides the system's error, such as a full disk
    raise OSError(f"weights: {path} cannot be written ({error}); free space there, or choose another folder") from error
  finally:
    part.unlink(missing_ok=True)
  return path


def umask() -> int:
  """The process's file mask; reading it means setting it."""
  mask = os.umask(0)
  os.umask(mask)
  return mask


def opened(path: Any) -> Any:
  """The file, for tensor-wise reading. ValueError for a pickle, a missing or a damaged file."""
  path = Path(path)
  if path.suffix.lower() in PICKLES:
    raise ValueError(f"weights: {path} is a pickle, which runs code when it is read; only .safetensors files are read, "
                     "convert it with safetensors.torch.save_file")
  if not path.is_file():
    beside = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
    raise ValueError(f"weights: {path} is no file; beside it stand: {', '.join(beside) or 'no .safetensors files'}; "
                     "correct the path")
  try:
    return safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f"weights: {path} cannot be read ({error}); it must be a whole .safetensors file, but is damaged "
                     "or cut off: copy or make it again") from error


def load(path: Any, like: Mapping = None) -> dict:
  """The nested dict of a file, as numpy arrays of the file's types.

  like: a tree of arrays or shapes; then names and shapes must be exactly these. ValueError lists all that is missing,
  extra or of another shape, with the nearest names.
  """
  with opened(path) as file:
    names = file.keys()
    if like is not None:
      compare(path, {name: tuple(file.get_slice(name).get_shape()) for name in names},
              {name: tuple(np.shape(leaf)) for name, leaf in leaves(like)})
    return nested({name: file.get_tensor(name) for name in names})


def compare(path: Any, found: Mapping, wanted: Mapping) -> None:
  """Raises ValueError unless {name: shape} is the same twice."""
  missing, extra = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
  near = lambda name, names: "".join(f" (nearest: {n})" for n in difflib.get_close_matches(name, names, 1, 0.6))
  shapes = [f"{n} is {found[n]}, not {wanted[n]}" for n in wanted if n in found and found[n] != wanted[n]]
  kinds = {"missing": [n + near(n, extra) for n in missing[:SHOWN]] + missing[SHOWN:],
           "not known": [n + near(n, missing) for n in extra[:SHOWN]] + extra[SHOWN:], "of another shape": shapes}
  lines = [f"  {len(these)} {kind}: {'; '.join(these[:SHOWN])}{' ...' if len(these) > SHOWN else ''}"
           for kind, these in kinds.items() if these]
  if lines:
    raise ValueError("\n".join([f"weights: {path} does not fit the network, whose names and shapes must be the same:",
                                *lines, "  use the weights of this network, or the options that they were made with"]))


def metadata(path: Any) -> dict:
  """{str: str} from the file's header."""
  with opened(path) as file:
    return dict(file.metadata() or {})


def digest(path: Any) -> str:
  """The sha256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
