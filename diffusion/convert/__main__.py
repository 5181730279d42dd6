"""Public checkpoints by command, and half the bytes of our own.

  python -m diffusion.convert verify MODEL [--against=OTHER]   reads every tensor: names, shapes, types, equality
  python -m diffusion.convert export MODEL --out=DIR [--lora=FILE]   writes a whole folder in diffusers' layout
  python -m diffusion.convert adapters RUN --out=DIR --layout=peft   writes adapters in another layout; also of a FILE
                                                               or folder, for --model=MODEL
  python -m diffusion.convert import PICKLE --out=DIR          a .bin, .pt or .ckpt, or a folder of them, as safetensors
  python -m diffusion.convert halve RUN --out=DIR              what a run of a model of our own left, in float16

MODEL is a folder in diffusers' layout or the workdir of a run that aligned one, whose adapters are fused. Pickles are
read with weights_only=True, in which nothing that they hold is run; this alone needs PyTorch.
"""
import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion import folder, hub, lora, weights
from diffusion.convert import adapters, core, exported, pickles


class Source(NamedTuple):
  """A model whose weights are still in their files, and the adapters that lie on top, if any."""
  model: hub.Model
  lora: adapters.Adapters | None


def source(model: str) -> Source:
  """MODEL of the command. ValueError for a path that is none."""
  found = folder.public_of(model)
  if not found:
    raise ValueError(f"model = {model!r} is neither a folder in diffusers' layout (with a model_index.json) nor the "
                     "workdir of a run that aligned one; correct the path")
  made = hub.open_(found[0])
  return Source(made, adapters.load(found[1], made) if found[1] else None)


def tensors(held: Source, role: str) -> tuple[dict, Callable]:
  """({(path, layer): entry}, (path, layer) -> array) of a network, in the layout and type of its file. One tensor is
  held at a time, or, where adapters are added to it, one leaf."""
  part = held.model.parts[role]
  files = weights.component(hub.folder_of(held.model) / part.folder, part.stem)
  groups = core.matched(files, part.layout)
  listed = {(entry.path, entry.layer): entry for group in groups.values() for entry in group}
  changed = dict(weights.leaves(held.lora.tree.get(role, {}))) if held.lora else {}

  @functools.lru_cache(1)
  def fused(path):
    own = {path: {name: changed[f"{path}/{name}"] for name in "ab"}}
    leaf = {path: jnp.asarray(core.whole(files, groups[path]))}
    return np.asarray(lora.apply(leaf, own, held.lora.alpha / held.lora.rank)[path])

  def tensor(path, layer):
    entry = listed[path, layer]
    if f"{path}/a" not in changed:
      return files.tensor(entry.name)
    leaf = fused(path)
    return core.theirs(entry, leaf, leaf.dtype)
  return listed, tensor


def verify(model: str, against: str | None) -> int:
  """Prints a line a network; 1 where the two models differ."""
  mine, other = source(model), source(against) if against else None
  code = 0
  for role, part in mine.model.parts.items():
    listed, kinds, wrong, differ = seen(mine, other, role)
    said = (f"{part.folder}: {len(listed):,} tensors, {sum(math.prod(entry.shape) for entry in listed.values()):,} "
            f"parameters, {', '.join(sorted(kinds))}")
    if wrong:
      said, code = f"{said}; {len(wrong)} of them hold values that are not finite", 1
    if other:
      said += (f"; {len(differ)} leaves differ: {', '.join(sorted(differ)[:3])}" if differ
               else "; the same in both, bit for bit")
      code = code or int(bool(differ))
    print(said)
  for role in other.model.parts.keys() - mine.model.parts.keys() if other else ():
    print(f"{other.model.parts[role].folder}: only in {against}")
    code = 1
  return code


def seen(mine: Source, other: Source | None, role: str) -> tuple[dict, set, set, set]:
  """(entries, types, paths of leaves with values that are not finite, paths of leaves that differ) of a network."""
  listed, tensor = tensors(mine, role)
  theirs, compared = tensors(other, role) if other and role in other.model.parts else ({}, None)
  kinds, wrong, differ = set(), set(), {path for path, _ in theirs.keys() ^ listed.keys()} if other else set()
  for path, layer in listed:
    array = tensor(path, layer)
    kinds.add(str(array.dtype))
    if not np.isfinite(array).all():
      wrong.add(path)
    if (path, layer) in theirs and not same(array, compared(path, layer)):
      differ.add(path)
  return listed, kinds, wrong, differ


def same(a, b) -> bool:
  """Of one type and shape, and equal bit for bit."""
  return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def opened(model: str) -> tuple[hub.Model, dict]:
  """(folder, parameters in the files' types) of MODEL."""
  made, found = source(model)
  view = hub.load(made)
  return made, lora.apply(view, found.tree, found.alpha / found.rank) if found else view


def empty(out: str) -> None:
  """ValueError for a folder with something in it."""
  if Path(out).exists() and any(Path(out).iterdir()):
    raise ValueError(f"--out = {out!r} is not empty; give a folder that is, or does not exist")


def export(model: str, out: str, more: str | None, shard_bytes: int) -> int:
  """Writes the whole model to an empty folder; more: adapters to fuse besides."""
  empty(out)
  made, view = opened(model)
  hub.save(made, adapters.fused(view, more, made) if more else view, out, shard_bytes)
  print(f"{made.index['_class_name']}: {out}")
  return 0


def rewrite(given: str, out: str, layout: str, model: str | None) -> int:
  """Writes the adapters of a run, or of a file or folder for `model`, in another layout."""
  found = folder.public_of(given)
  if found and not found[1]:
    raise ValueError(f"adapters: {given!r} is a whole model, without adapters apart; give a run that left some, or a "
                     "file of them")
  if not found and not model:
    raise ValueError(f"adapters: {given!r} is no run that left adapters; give --model, the folder that they are for")
  empty(out)
  made = hub.open_(model or found[0])
  held = adapters.load(found[1] if found else given, made)
  for file in adapters.save(out, made, held.tree, held.rank, held.alpha, layout):
    print(file)
  return 0


def halve(run: str, out: str) -> int:
  """Writes a policy of our own in float16, which is read back in the types of its network."""
  if folder.public_of(run) or folder.reader_of(run):
    raise ValueError(f"halve: {run!r} is a model in diffusers' or transformers' layout, which says its own types; give "
                     "the workdir of a run of another policy")
  empty(out)
  held = {name: np.asarray(leaf) for name, leaf in weights.leaves(folder.load(run))}
  with np.errstate(over="ignore"):  # which is refused below
    made = {name: a.astype(np.float16) if a.dtype.kind == "f" else a for name, a in held.items()}
  over = [name for name, a in made.items() if np.isfinite(held[name]).all() and not np.isfinite(a).all()]
  if over:
    raise ValueError(f"halve: {len(over)} leaves hold values that float16 cannot, beyond 65,504: "
                     f"{', '.join(over[:3])}; leave this model as it is")
  folder.save(out, "policy", folder.describe(run), weights.nested(made))
  print(f"{sum(a.nbytes for a in made.values()) / 1e6:.1f} MB: {out}")
  return 0


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m diffusion.convert", description=__doc__.splitlines()[0])
  verbs = parser.add_subparsers(dest="verb", required=True)
  verb = verbs.add_parser("verify", help="read every tensor of a model, and compare it with another's")
  verb.add_argument("model")
  verb.add_argument("--against", help="another model that must be equal bit for bit")
  verb = verbs.add_parser("export", help="write a model as a whole folder in diffusers' layout, adapters fused")
  verb.add_argument("model")
  verb.add_argument("--out", required=True)
  verb.add_argument("--lora", help="adapters to fuse besides, a file or folder")
  verb.add_argument("--shard-bytes", type=int, default=5 * 10 ** 9, help="most bytes of one file")
  verb = verbs.add_parser("adapters", help="write adapters in another layout")
  verb.add_argument("source", help="the workdir of a run that left adapters, or a file or folder of them")
  verb.add_argument("--out", required=True)
  verb.add_argument("--layout", choices=tuple(exported.LAYOUTS), default="diffusers")
  verb.add_argument("--model", help="the folder that adapters of a file are for")
  verb = verbs.add_parser("import", help="turn pickles into safetensors")
  verb.add_argument("source")
  verb.add_argument("--out", required=True)
  verb = verbs.add_parser("halve", help="write what a run left in half the bytes")
  verb.add_argument("run")
  verb.add_argument("--out", required=True)
  args = parser.parse_args(argv)
  try:
    if args.verb == "verify":
      return verify(args.model, args.against)
    if args.verb == "export":
      return export(args.model, args.out, args.lora, args.shard_bytes)
    if args.verb == "adapters":
      return rewrite(args.source, args.out, args.layout, args.model)
    if args.verb == "halve":
      return halve(args.run, args.out)
    return pickles.convert(args.source, args.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
