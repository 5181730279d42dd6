"""Checkpoints that can be trusted: orbax writes them, a manifest of digests of our own says whether they are what was
saved.

Orbax (CheckpointManager, asynchronous, atomic by rename) restores a flipped bit silently and may name a step that is
half there. So every save first writes `checkpoints/manifests/STEP/PROCESS.json`: shape and dtype of every leaf and a
sha256 of every piece of it that the process holds (one replica of each), plus one of the extra JSON. A restore compares
names, shapes and dtypes before it reads (a difference is the user's, and refused by name), and digests after; a step
that fails is moved to `checkpoints/broken`, loudly, and the newest one before it that verifies is taken.

    checkpoints/STEP/{state,extra}    checkpoints/manifests/STEP/PROCESS.json    checkpoints/broken/STEP

Layouts may change between save and restore: pieces are found by their place in the whole array. Left out: with several
processes *and* another layout, a piece that no single process holds after the restore is not verified.
"""
import concurrent.futures
import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from align.build import UserError
from align.guard import fault

TRASH = "trash"  # orbax renames what it deletes into this folder, so that no half-deleted step is ever offered


class Checkpoints(NamedTuple):
  """The checkpoints of one workdir. With several processes every function is called by all of them."""
  save: Callable     # (step, state, extra=None, final=False) -> bool, whether it is being written
  restore: Callable  # (abstract=None) -> (step, state, extra), or None if there is none
  steps: Callable    # () -> [int], oldest first, not verified
  wait: Callable     # () -> None, when everything is on disk; raises UserError if the newest save is not
  close: Callable    # () -> None, waits too; what went wrong is only logged


class Broken(ValueError):
  """A step is not what was saved; the message says which file or leaf."""


def open_(workdir: str | Path, keep: int = 2, tries: int = 3) -> Checkpoints:
  """Opens WORKDIR/checkpoints, which is created.

  save(step, state, extra, final): `state` is a pytree of arrays (typed PRNG keys too), `extra` what json can write.
    Returns at once; the arrays may be donated afterwards. A save that fails (disk full) is reported, training goes on
    and the next one tries again; `tries` failures in a row, or a failing `final` one, which waits, raise UserError.
  restore(abstract): `abstract` is the tree of ShapeDtypeStruct, with shardings where they matter; the state comes back
    laid out so, bit for bit. None gives nested dicts of numpy arrays (process-local; for reading a run from outside).

  Args:
    keep: how many of the newest steps stay; 2 or more leave something to fall back on.
    tries: failures in a row that end the run.

  Raises: UserError if the folder cannot be written.
  """
  if keep < 1:
    raise UserError(f"keep={keep} checkpoints: at least 1 must stay, 2 leave one to fall back on; set keep")
  root = Path(workdir).expanduser().absolute() / "checkpoints"
  _writable(root)
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, todelete_subdir=TRASH, cleanup_tmp_directories=True)
  manager = ocp.CheckpointManager(root, options=options)
  failed, writing = [], []  # what went wrong since the last save that held; the step under way

  def settle():
    """Waits for the write under way; only a write that was seen to its end counts as a success."""
    try:
      manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
      writing.clear()
      manager.reload()
      failed.append(str(_refusal(root, error)))
      raise _refusal(root, error) from error
    if writing:
      writing.clear()
      failed.clear()

  def attempt(work, step, final) -> bool:
    before = len(failed)
    try:
      work()
    except UserError as error:
      if len(failed) <= before:
        failed.append(str(error))
      if final or len(failed) >= tries:
        raise
      logging.warning("checkpoint %s: %s. Training goes on, the next save tries again", step, error)
      return False
    return True

  def start(step, state, extra):
    if step not in manager.all_steps():
      _write(manager, root, step, _plain(state), json.loads(json.dumps(extra)))
    writing.append(step)

  def save(step, state, extra=None, final=False):
    attempt(settle, "before", False)
    started = attempt(lambda: start(int(step), state, extra or {}), int(step), final)
    return attempt(settle, int(step), final) if final else started

  def restore(abstract=None):
    settle()
    reasons = []
    for step in sorted(manager.all_steps(), reverse=True):
      state, extra, reason = _attempt(manager, root, step, abstract)
      if reason is None:
        return step, state, extra
      reasons.append(f"step {step}: {reason}")
      logging.error("checkpoint %s is BROKEN (%s); moved to %s, trying the one before it", root / str(step), reason,
                    root / "broken")
      _aside(root, step)
      manager.reload()
    if reasons:
      raise UserError(f"no checkpoint in {str(root)!r} can be trusted ({'; '.join(reasons)}); a step that verifies is "
                      "needed: bring one back from a copy, or start in a new workdir")
    return None

  def wait():
    settle()
    if failed:  # the newest save was given up before it was begun
      raise UserError(failed[-1])

  def close():
    try:
      settle()
    except UserError as error:  # whatever else is being raised matters more; `wait` is for those who must know
      logging.error("%s", error)
    if jax.process_index() == 0:
      _sweep(manager, root)
    manager.close()

  return Checkpoints(save, restore, lambda: sorted(manager.all_steps()), wait, close)


def _writable(root):
  try:
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".probe{jax.process_index()}"
    probe.write_bytes(b"x")
    probe.unlink()
  except OSError as error:
    raise _refusal(root, error) from error


def _refusal(root, error) -> UserError:
  full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
  reason = "the disk is full" if full else f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
  return UserError(f"checkpoint folder {str(root)!r} cannot be written ({reason}); it must be writable and have room: "
                   "free some space or choose another workdir. Earlier checkpoints are untouched")


# Writing


def _write(manager, root, step, state, extra):
  """Room first, then the manifest, then orbax: a step that exists always has its manifest."""
  needed = sum(piece.nbytes for leaf in jax.tree.leaves(state) for _, piece in _pieces(leaf)) * 11 // 10 + (1 << 20)
  if jax.process_index() == 0:
    _sweep(manager, root)  # before the others, which wait below, write manifests of their own
  free = shutil.disk_usage(root).free
  if _any(needed > free):
    raise UserError(f"checkpoint folder {str(root)!r}: {free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are needed; "
                    "free some space or choose another workdir. Earlier checkpoints are untouched")
  what = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra))
  _together(root, lambda: _manifest(root, step, state, extra))
  _together(root, lambda: manager.save(step, args=what, force=True))


def _together(root, work):
  """Runs `work` on every process; where one fails all of them refuse, so that none waits for another for ever."""
  problem = None
  try:
    work()
  except (OSError, RuntimeError) as error:
    problem = error
  if _any(problem is not None):
    raise _refusal(root, problem or OSError("another process could not write")) from problem


def _sweep(manager, root):
  """Empties the trash and drops manifests of steps that are gone."""
  shutil.rmtree(root / TRASH, ignore_errors=True)
  kept = {str(step) for step in manager.all_steps()}
  for folder in (root / "manifests").glob("*"):
    if folder.name not in kept:
      shutil.rmtree(folder, ignore_errors=True)


def _manifest(root, step, state, extra):
  if fault("save", step):
    raise OSError(errno.ENOSPC, "No space left on device")
  pairs = _named(state)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
    digests = list(pool.map(lambda pair: {where: _digest(piece) for where, piece in _pieces(pair[1])}, pairs))
  leaves = {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "pieces": digest}
            for (name, leaf), digest in zip(pairs, digests, strict=True)}
  body = {"step": step, "leaves": leaves, "extra": _digest(_canonical(extra))}
  folder = root / "manifests" / str(step)
  folder.mkdir(parents=True, exist_ok=True)
  part = folder / f"{jax.process_index()}.part"
  part.write_text(json.dumps({"sha256": _digest(_canonical(body)), "processes": jax.process_count(), "body": body}))
  part.replace(folder / f"{jax.process_index()}.json")


def _canonical(value) -> bytes:
  return json.dumps(value, sort_keys=True).encode()


def _digest(data) -> str:
  if not isinstance(data, bytes):
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  return hashlib.sha256(data).hexdigest()


def _pieces(leaf) -> list[tuple[str, Any]]:
  """[(place in the whole array, data)] of what this process must account for: one replica of each shard."""
  if not isinstance(leaf, jax.Array):
    return [(_place([slice(0, n) for n in leaf.shape], leaf.shape), leaf)]
  return [(_place(s.index, leaf.shape), s.data) for s in leaf.addressable_shards if s.replica_id == 0]


def _place(index, shape) -> str:
  return ",".join("{}:{}".format(*cut.indices(n)[:2]) for cut, n in zip(index, shape, strict=True))


def _named(tree) -> list[tuple[str, Any]]:
  """[(path with slashes, leaf)]."""
  return [("/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf) -> bool:
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state):
  """Typed keys as their words, Python numbers as arrays."""
  def one(leaf):
    if _is_key(leaf):
      return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
  return jax.tree.map(one, state)


# Reading


def _attempt(manager, root, step, abstract) -> tuple[Any, Any, str | None]:
  """(state, extra, None), or (None, None, why this step cannot be trusted). All processes come to the same answer."""
  state = extra = reason = None
  try:
    bodies = _manifests(root, step)
    plain = None if abstract is None else jax.tree.map(_words, abstract)
    if abstract is not None:
      _compare(step, bodies, plain)
    state, extra = _read(manager, root, step, plain)
    _verify(bodies, state, extra)
  except Broken as error:
    reason = str(error)
  if _any(reason is not None):
    return None, None, reason or "another process found it broken"
  if abstract is not None:
    state = jax.tree.map(_unwords, abstract, state)
  return state, extra, None


def _words(leaf):
  """The abstract value that a leaf has on disk."""
  if not _is_key(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
  words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=getattr(leaf, "sharding", None))


def _unwords(abstract, leaf):
  """Back from the disk: words become typed keys again."""
  return jax.random.wrap_key_data(leaf, impl=abstract.dtype._impl.name) if _is_key(abstract) else leaf


def _manifests(root, step) -> list[dict]:
  """The verified manifests of all processes that wrote the step."""
  folder = root / "manifests" / str(step)
  files, bodies, wanted = sorted(folder.glob("*.json")), [], 1
  for file in files:
    try:
      entry = json.loads(file.read_text())
      body, digest, wanted = entry["body"], entry["sha256"], entry["processes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise Broken(f"manifest {file.name} cannot be read ({error})") from error
    if _digest(_canonical(body)) != digest:
      raise Broken(f"manifest {file.name} does not match its own digest")
    bodies.append(body)
  if len(bodies) < wanted:
    raise Broken(f"manifest: {len(bodies)} of {wanted} files are in {folder}")
  return bodies


def _compare(step, bodies, abstract):
  """Refuses a state of another tree, shape or dtype by the name of the leaf, before anything is read."""
  saved = {name: (tuple(leaf["shape"]), leaf["dtype"]) for body in bodies for name, leaf in body["leaves"].items()}
  wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _named(abstract)}
  different = [f"{name}: {_show(saved.get(name))} in the checkpoint, {_show(wanted.get(name))} in this run"
               for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
  if different:
    more = f" and {len(different) - 8} more" if len(different) > 8 else ""
    raise UserError(f"checkpoint of step {step} is of another run: {'; '.join(different[:8])}{more}; every leaf must "
                    "have the same name, shape and dtype: use the config that wrote it, or start in a new workdir")


def _show(entry) -> str:
  return "absent" if entry is None else f"{entry[1]}{list(entry[0])}"


def _read(manager, root, step, abstract):
  """What orbax finds. It raises nearly every built-in exception on damaged files, so all of them mean the same here."""
  try:
    if abstract is None:
      return _plainly(root, step)
    how = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore())
    found = manager.restore(step, args=how)
    return found.state, found.extra
  except Exception as error:
    missing = [name for name in ("state", "extra") if not (root / str(step) / name).is_dir()]
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    reason = f"{' and '.join(missing)} missing" if missing else said
    raise Broken(reason) from error


def _plainly(root, step):
  """State as nested dicts of numpy arrays, wherever and however it was laid out; and the extra."""
  handlers = {"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
  with ocp.CheckpointManager(root, item_handlers=handlers) as reader:
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.item_metadata(step).state.tree)
    how = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=kinds), extra=ocp.args.JsonRestore())
    found = reader.restore(step, args=how)
  return found.state, found.extra


def _verify(bodies, state, extra):
  """Every piece that this process can put together must have the digest that was written."""
  if bodies[0]["extra"] != _digest(_canonical(extra)):
    raise Broken("extra/metadata does not match its digest")
  leaves = dict(_named(state))
  for body in bodies:
    for name, saved in body["leaves"].items():
      for where, digest in saved["pieces"].items():
        piece = _cut(leaves[name], where) if name in leaves else None
        if name not in leaves or (piece is not None and _digest(piece) != digest):
          raise Broken(f"leaf {name!r}[{where}] does not match its digest: its file in state/ was changed after saving")


def _cut(leaf, where):
  """The part of a restored array that a manifest calls `where`, or None if this process does not hold it."""
  cut = tuple(slice(*map(int, part.split(":"))) for part in where.split(",")) if where else ()
  if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
    return np.asarray(leaf)[cut]
  for shard in leaf.addressable_shards:
    held = [slice(*s.indices(n)[:2]) for s, n in zip(shard.index, leaf.shape, strict=True)]
    pairs = list(zip(held, cut, strict=True))
    if all(h.start <= c.start and c.stop <= h.stop for h, c in pairs):
      return np.asarray(shard.data)[tuple(slice(c.start - h.start, c.stop - h.start) for h, c in pairs)]
  return None


def _aside(root, step):
  """Out of orbax's sight, kept for whoever wants to look."""
  if jax.process_index() == 0:
    target = root / "broken" / str(step)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    (root / str(step)).rename(target)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"aside {step}")


def _any(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
