"""Another reward's scores, kept by content: what was scored once is not scored again, in this run or in the next.

  reward = {"name": "cache", "reward": {"name": "unified", ...}, "folder": DIR, "identity": "unified-7b-point-v2"}

An entry's name is a hash of a sample's media and of all that its batch says of it except its numbers (prompt_id,
sample_id, experience), of the reward's parameters and of its identity. The reward never sees those numbers, so that one
that compares samples is refused rather than kept; a cache belongs around single rewards, within a mixture. What is not
valid, or not finite, is asked again every time. Keys are no part of the name: what is drawn by chance is drawn once.

In memory the last `size` entries stay. In `folder` there is a file an entry, written whole or not at all, so that
several runs may share it; one that cannot be read is scored again and replaced.
Left out: rewards inside the mesh, whose scores no host code can look up; removal of old files.
"""
import hashlib
import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import weights
from rewards.core import Reward, Scores

NUMBERS = ("prompt_id", "sample_id", "experience")
DIGEST = hashlib.sha256().digest_size


def make(reward: Reward, size: int = 65536, folder: str = None, identity: str = None) -> Reward:
  """Args:
    reward: one on the host whose parameters stand still. size: entries in memory, the longest unused goes first.
    folder: where entries outlive the run; identity: what tells this reward with its options from others there, and
      must change whenever its options do.

  Returns:
    Reward on the host; part `cached` is 1 where a score was there already.

  Raises:
    ValueError: other rewards, a folder without identity; while scoring, parameters that changed, a batch entry that is
      not there for the reward, other parts than before.
  """
  check(reward, size, folder, identity)
  memory, stood = OrderedDict(), [None, ""]  # entries; the leaves of the parameters and their hash

  def named(view, batch, media):
    leaves = jax.tree.leaves(view)
    if stood[0] is None or [*map(id, leaves)] != [*map(id, stood[0])]:  # held, so that no other array takes their ids
      now = parameters(view)
      if stood[1] and now != stood[1]:
        raise ValueError("reward cache: the parameters of the cached reward changed between two calls, but kept scores "
                         "need a reward that stands still; leave it untrained, or without cache")
      stood[:] = leaves, now
    return [content(f"{identity} {stood[1]}", row(batch, i), media[i]) for i in range(len(media))]

  def found(name):
    if name not in memory and folder is not None:
      entry = read(Path(folder) / name[:2] / f"{name}.npz", name)
      return entry if entry is None else keep(name, entry)
    if name in memory:
      memory.move_to_end(name)
    return memory.get(name)

  def keep(name, entry):
    memory[name] = entry
    while len(memory) > size:
      memory.popitem(last=False)
    return entry

  def score(view, batch, media, keys):
    media = np.asarray(media)
    batch = {k: v if isinstance(v, list) else jax.tree.map(np.asarray, v) for k, v in batch.items() if k not in NUMBERS}
    names = named(view, batch, media)
    known = {name: found(name) for name in set(names)}
    rows = [i for i, name in enumerate(names) if known[name] is None and name not in names[:i]]
    fresh, valid = {}, np.ones(len(names), bool)
    if rows:
      fresh, good = scored(reward, view, batch, media, keys, rows, names)
      for name, entry in fresh.items():
        if good[name] and np.isfinite(entry["total"]):
          write(folder, name, keep(name, entry))
      valid = np.array([good.get(name, True) for name in names])
    return joined([fresh.get(name) or known[name] for name in names], valid, [name not in fresh for name in names])

  return reward._replace(score=score)


def check(reward: Reward, size: int, folder: str | None, identity: str | None) -> None:
  if reward.where != "host":
    raise ValueError(f"reward cache: the reward's where = {reward.where!r}, but only scores on the host ('host') can "
                     "be kept; leave the cache out, it would be traced once and forgotten")
  if reward.fit is not None or reward.calibrate is not None:
    raise ValueError("reward cache: the reward is one that is trained or calibrated, so its scores change, but kept "
                     "scores need one that stands still; put the cache around the parts of a mixture, or leave it out")
  if reward.chunks is None:
    raise ValueError("reward cache: the reward compares all samples of a call, but a kept score must not depend on "
                     "others; put the cache around the parts of a mixture, or leave it out")
  if size < 1:
    raise ValueError(f"size = {size} must be at least 1, entries in memory; raise it")
  if folder is not None and not identity:
    raise ValueError(f"identity = {identity!r} with folder = {folder!r}: it must tell this reward and its options from "
                     "others whose scores lie there; name it, such as 'jpeg-95'")


# --- names ------------------------------------------------------------------------------------------------------------


def parameters(view: Any) -> str:
  """A hash of every leaf and its place."""
  told = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(view):
    told.update(jax.tree_util.keystr(path).encode())
    tell(told, leaf)
  return told.hexdigest()


def content(identity: str, entries: dict, media: np.ndarray) -> str:
  """A sample's name."""
  told = hashlib.sha256(identity.encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(entries):
    told.update(jax.tree_util.keystr(path).encode())
    tell(told, leaf)
  tell(told, media)
  return told.hexdigest()


def tell(told: Any, leaf: Any) -> None:
  """Adds an array, or a text, to a hash; its length comes first, so that neighbours cannot be confused."""
  if isinstance(leaf, str):
    about, data = "text", leaf.encode("utf-8", "surrogatepass")
  else:
    array = np.asarray(leaf)
    about, data = f"{array.dtype} {array.shape}", array.tobytes()
  told.update(f" {about} {len(data)} ".encode() + data)


def row(batch: dict, i: int) -> dict:
  """What a batch says of sample i: arrays, and lists as JSON."""
  def entry(value):
    if isinstance(value, list):
      return value[i] if isinstance(value[i], str) else json.dumps(value[i], sort_keys=True, default=plain)
    return jax.tree.map(lambda a: a[i], value)
  return {name: entry(value) for name, value in batch.items()}


def plain(value: Any) -> Any:
  """numpy's numbers and arrays as JSON knows them."""
  if not hasattr(value, "tolist"):
    raise ValueError(f"reward cache: {value!r} of a prompt's meta is neither a number, a text, a list nor a dict, so "
                     "that it has no name; leave it out of meta")
  return value.tolist()


# --- scores -----------------------------------------------------------------------------------------------------------


def some(batch: dict, rows: list) -> dict:
  """A batch of some of its samples."""
  cut = lambda value: [value[i] for i in rows] if isinstance(value, list) else jax.tree.map(lambda a: a[rows], value)
  return {name: cut(value) for name, value in batch.items()}


def scored(reward: Reward, view: Any, batch: dict, media: np.ndarray, keys: Any, rows: list, names: list) -> tuple:
  """({name: entry}, {name: whether it is valid}) of the samples `rows`; an entry is {"total": [], part: []}."""
  try:
    made = reward.score(view, some(batch, rows), media[rows], None if keys is None else keys[np.array(rows)])
  except KeyError as error:
    raise ValueError(f"reward cache: the reward reads batch entry {error}, which the batch does not have or which a "
                     f"cache hides ({', '.join(NUMBERS)}), since a kept score must not depend on other samples; put "
                     "the cache around single rewards") from error
  table = {"total": np.asarray(made.total), **{f"part {name}": np.asarray(v) for name, v in made.parts.items()}}
  valid = np.asarray(made.valid)
  return ({names[i]: {key: values[n] for key, values in table.items()} for n, i in enumerate(rows)},
          {names[i]: bool(valid[n]) for n, i in enumerate(rows)})


def joined(entries: list, valid: np.ndarray, cached: list) -> Scores:
  """Scores of entries, in their own types."""
  other = next((entry for entry in entries if entry.keys() != entries[0].keys()), None)
  if other is not None:
    raise ValueError(f"reward cache: kept scores have {', '.join(entries[0])}, and others {', '.join(other)}: they are "
                     "of another reward or of other options; change identity, or name another folder")
  table = {key: np.stack([entry[key] for entry in entries]) for key in entries[0]}
  parts = {key.removeprefix("part "): values for key, values in table.items() if key != "total"}
  return Scores(table["total"], {**parts, "cached": np.array(cached, np.float32)}, valid)


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: str | None, name: str, entry: dict) -> None:
  """One entry as an npz file without pickled objects, and behind it its SHA-256: damage to a zip file is not always an
  error when it is read."""
  if folder is None:
    return
  data = io.BytesIO()
  np.savez(data, name=np.frombuffer(bytes.fromhex(name), np.uint8), keys=np.array(list(entry)),
           **{f"value_{i}": value for i, value in enumerate(entry.values())})
  with weights.replacing(Path(folder) / name[:2] / f"{name}.npz") as part:
    part.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def read(path: Path, name: str) -> dict | None:
  """The entry of a file; None where there is none that is whole, or it is of another name."""
  try:
    data = path.read_bytes()
  except OSError:
    return None
  if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
    return None
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    if file["name"].tobytes().hex() != name:
      return None
    return {str(key): file[f"value_{i}"][()] for i, key in enumerate(file["keys"])}
