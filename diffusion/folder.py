"""Self-describing folders of weights: PART.safetensors beside PART.json, the resolved description that builds the part.

A run leaves one as WORKDIR/export; `locate` accepts such a workdir, the folder itself, or the name of a base that ships
with the package. A description is nested {"name": ..., option: ...} dicts, so a folder needs no code of its own.

A folder in diffusers' layout is read as well (hub.py). Where a run aligned such a model, PART.json stands without
PART.safetensors: beside it lie the whole model in diffusers' layout, or adapters of the model that "model" names. So is
one of a vision-language model (vlm.py) or of an encoder of pictures (eyes.py) in transformers' layout, as {"net":
parameters}; a run leaves the first whole.
"""
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import eyes, hub, refiner, vlm, weights
from diffusion.convert import adapters

BASES = vlm.BASES


def shipped() -> list[str]:
  """Names of the bases in the package."""
  return sorted(p.name for p in BASES.iterdir() if p.is_dir()) if BASES.is_dir() else []


def locate(model: str, part: str = "policy") -> Path:
  """The folder that holds `part`. Raises ValueError naming what was looked for."""
  tried = [Path(model), Path(model) / "export", BASES / model]
  for folder in tried:
    if (folder / f"{part}.json").is_file() and ((folder / f"{part}.safetensors").is_file() or of_public(folder)):
      return folder
  inside = sorted(p.parts[-3] for p in Path(model).glob(f"*/export/{part}.safetensors"))
  if inside:
    raise ValueError(f"model = {str(model)!r} is a workdir of several runs; name one of them: "
                     f"{', '.join(str(Path(model) / name) for name in inside)}")
  raise ValueError(f"model = {str(model)!r} holds no {part}.safetensors with its {part}.json; it may be a workdir "
                   f"whose run has finished (WORKDIR/export), a folder of that kind, or one of the shipped bases: "
                   f"{', '.join(shipped()) or 'none'}")


def save(folder: Path, part: str, description: dict, tree: Any) -> Path:
  """Writes one part; each file appears whole or not at all."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  weights.save(folder / f"{part}.safetensors", tree)
  return written(folder, part, description)


def written(folder: Path, part: str, description: dict) -> Path:
  """PART.json, whole or not at all."""
  weights.write(folder / f"{part}.json", json.dumps(description, indent=1, sort_keys=True) + "\n")
  return folder


def of_public(folder: Path) -> bool:
  """Whether a run left an aligned public model there."""
  return hub.is_public(folder) or (folder / adapters.FILE).is_file()


def public_of(model: str) -> tuple[Path, Path | None, dict] | None:
  """(folder in diffusers' layout, adapters on top of it or None, description) of a bare such folder or of what a run
  that aligned one left; None for anything else."""
  if hub.is_public(model):
    beside = Path(model) / "policy.json"  # an export that is named itself
    return Path(model), None, json.loads(beside.read_text()) if beside.is_file() else {}
  tried = [folder for folder in (Path(model), Path(model) / "export") if of_public(folder)]
  if not tried or not (tried[0] / "policy.json").is_file():
    return None
  found = json.loads((tried[0] / "policy.json").read_text())
  apart = not hub.is_public(tried[0])
  return (Path(found["model"]), tried[0] / adapters.FILE, found) if apart else (tried[0], None, found)


def describe(model: str, part: str = "policy") -> dict:
  """The description that was saved with the weights; of a bare public folder, that it is one."""
  if part == "policy" and hub.is_public(model) and not (Path(model) / "policy.json").is_file():
    return {"name": "public", "model": str(model)}
  if part == "policy" and (talking := vlm.at(model)):
    beside = talking / "policy.json"
    return {"name": "chat", **(json.loads(beside.read_text()) if beside.is_file() else {}), "model": str(talking)}
  folder = locate(model, part)
  found = json.loads((folder / f"{part}.json").read_text())
  return {**found, "model": str(folder)} if hub.is_public(folder) else found


def load(model: str, part: str = "policy", like: Any = None, place: Any = None, wider: int = 0) -> Any:
  """The weights as a nested dict; strict against the shapes in `like`, and in its types.

  place: shardings like the parameters, onto which public weights are read shard by shard.
  wider: channels that a refiner's network may have beside those of the weights, which get zeros for them; 0 for none.
  """
  if part == "policy" and hub.is_public(model):
    return of_hub(hub.open_(model), like, place)
  if reader := reader_of(model):
    kind = jax.tree.leaves(like["net"])[0].dtype if like else "float32"
    return {"net": reader.load(reader.open_(model), (place or {}).get("net"), kind)}
  folder = locate(model, part)
  if not of_public(folder):
    tree = widened(folder / f"{part}.safetensors", like, wider)
    return tree if like is None else jax.tree.map(lambda a, wanted: np.asarray(a, wanted.dtype), tree, like)
  opened = hub.open_(describe(model, part)["model"])
  plain = of_hub(opened, like, place)
  return plain if hub.is_public(folder) else adapters.fused(plain, folder / adapters.FILE, opened)


def widened(path: Path, like: Any, wider: int) -> dict:
  """The weights of a file, with zeros for the channels that a refiner's network has beside theirs."""
  if not wider:
    return weights.load(path, like=like)
  tree = refiner.widened(weights.load(path), like, wider)
  weights.compare(path, *({name: np.shape(leaf) for name, leaf in weights.leaves(t)} for t in (tree, like)))
  return tree


def reader_of(model: str) -> Any:
  """The module that reads a folder in transformers' layout, vlm or eyes; None for anything else."""
  return next((reader for reader in (vlm, eyes) if reader.at(model)), None)


def of_hub(opened: hub.Model, like: Any, place: Any) -> dict:
  """The networks that `like` has, in its types; all of them as float32 if it is None."""
  types = {role: jax.tree.leaves(like[role])[0].dtype if like else "float32" for role in like or opened.parts}
  return {role: hub.load(opened, place, kind, (role,))[role] for role, kind in types.items()}


def save_talking(folder: Path, description: dict, net: dict) -> Path:
  """Writes a vision-language model of description["model"] in transformers' layout, and beside it policy.json."""
  vlm.save(vlm.open_(description["model"]), net, folder)
  return written(folder, "policy", {**description, "model": str(Path(folder).resolve())})


def save_public(folder: Path, description: dict, view: dict, rank: int = None, alpha: float = None) -> Path:
  """Writes an aligned public model of description["model"]: view["lora"], where there is one, as adapters that
  diffusers loads, else the whole folder in diffusers' layout, of which `view` needs to hold only what was trained; and
  beside it policy.json, which names the model by its absolute path."""
  folder, opened = Path(folder), hub.open_(description["model"])
  folder.mkdir(parents=True, exist_ok=True)
  if "lora" in view:
    adapters.save(folder, opened, view["lora"], rank, alpha)
  else:
    hub.save(opened, view, folder)
  return written(folder, "policy", {**description, "model": str(hub.folder_of(opened).resolve())})
