"""Pickled state dicts (.bin, .pt, .ckpt) as safetensors: the one place that needs PyTorch at run time.

A pickle can run code when it is read. They are read with weights_only=True alone, which refuses all but tensors.
"""
import json
import re
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from diffusion import weights

SHARD = r"-\d{5}-of-\d{5}"
INDEX = r"\.bin\.(index(?:\.[^.]+)?|[^.]+\.index)\.json$"  # with a variant's word, as today and in older releases


def unpickled(path: Path) -> dict:
  """{name: array} of a pickled state dict. ValueError for a file that holds anything else."""
  try:
    import torch
  except ImportError as error:
    raise ValueError("import: reading a pickle needs PyTorch; install torch, or convert the file where it "
                     "is") from error
  try:
    held = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises whatever the bytes lead it to; none of it may be silent, and none runs code
    said = re.split(r"\. |\n", traceback.format_exception_only(error)[0])[0]  # then comes advice to read it unsafely
    raise ValueError(f"import: {path} cannot be read safely ({said}); it must hold tensors alone: get the model as "
                     ".safetensors, or copy this file again") from error
  held = held.get("state_dict", held) if isinstance(held, Mapping) else held
  if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
    raise ValueError(f"import: {path} holds something else than named tensors; get the model as .safetensors")
  return {name: array(value.detach()) for name, value in held.items()}


def array(tensor):
  """A tensor as numpy array; torch knows no numpy type for bfloat16, whose bits are carried over."""
  import torch
  if tensor.dtype == torch.bfloat16:
    return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
  return tensor.contiguous().numpy()


def convert(source: str, out: str) -> int:
  """Writes every pickle under `source` as safetensors, and what indices say of shards in the new names; copies the
  rest. A pickle beside safetensors of the same weights is left out."""
  source, out = Path(source), Path(out)
  if not source.exists():
    raise ValueError(f"import: {str(source)!r} is not there; give a .bin, .pt or .ckpt file, or a folder of them")
  if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
    raise ValueError(f"import: --out = {str(out)!r} lies in the folder that is read, {str(source)!r}; give a folder "
                     "outside of it")
  root = source if source.is_dir() else source.parent
  found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
  whole = lambda path: path.with_name(re.sub(SHARD, "", path.name))
  there = {whole(path) for path in found if path.suffix == ".safetensors"}
  pickles = [path for path in found if is_pickle(path) and whole(renamed(path)) not in there]
  if not pickles:
    raise ValueError(f"import: {str(source)!r} holds no {', '.join(weights.PICKLES)} file without its .safetensors; "
                     "nothing needs converting")
  indices = {path: shards(path) for path in found if re.search(INDEX, path.name)}
  for path in pickles:
    print(weights.save(out / renamed(path).relative_to(root), unpickled(path), {"format": "pt"}))
  for path in found:
    if path not in indices and not is_pickle(path):
      with weights.replacing(out / path.relative_to(root)) as part:
        shutil.copyfile(path, part)
  for path, listed in indices.items():
    if any(path.parent / file in pickles for file in listed.values()):
      index(path, listed, renamed(out / path.relative_to(root)))
  return 0


def shards(path: Path) -> dict:
  """{tensor: file} of an index of pickles. ValueError where some of the files are missing; where all are, it may be
  that other formats alone were copied."""
  listed = weights.weight_map(path)
  files = set(listed.values())
  missing = sorted(file for file in files if not (path.parent / file).is_file())
  if 0 < len(missing) < len(files):
    raise ValueError(f"import: {path} lists {', '.join(missing[:weights.SHOWN])}, which must lie beside it, but do "
                     "not; copy the folder again")
  return listed


def index(path: Path, listed: dict, target: Path) -> None:
  """Writes an index with the new names of its shards. ValueError where it and they disagree."""
  listed = {name: renamed(Path(file)).name for name, file in listed.items()}
  held = {**json.loads(path.read_text()), "weight_map": listed}
  weights.indexed(weights.write(target, json.dumps(held, indent=2, sort_keys=True) + "\n"))


def is_pickle(path: Path) -> bool:
  return path.suffix.lower() in weights.PICKLES


def renamed(path: Path) -> Path:
  """The place of a pickle, or of an index of pickles, as safetensors. transformers calls pickles pytorch_model.bin, but
  the same weights model.safetensors."""
  name = path.name if path.name.startswith("diffusion_") else path.name.replace("pytorch_model", "model", 1)
  path = path.with_name(re.sub(INDEX, r".safetensors.\1.json", name))
  return path.with_suffix(".safetensors") if is_pickle(path) else path
