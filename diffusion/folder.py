"""Self-describing folders of weights: PART.safetensors beside PART.json, the resolved description that builds the part.

A run leaves one as WORKDIR/export; `locate` accepts such a workdir, the folder itself, or the name of a base that ships
with the package. A description is nested {"name": ..., option: ...} dicts, so a folder needs no code of its own.
"""
import json
import os
from pathlib import Path
from typing import Any

from diffusion import weights

BASES = Path(__file__).parent / "bases"


def shipped() -> list[str]:
  """Names of the bases in the package."""
  return sorted(p.name for p in BASES.iterdir() if p.is_dir()) if BASES.is_dir() else []


def locate(model: str, part: str = "policy") -> Path:
  """The folder that holds `part`. Raises ValueError naming what was looked for."""
  tried = [Path(model), Path(model) / "export", BASES / model]
  for folder in tried:
    if (folder / f"{part}.safetensors").is_file() and (folder / f"{part}.json").is_file():
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
  text = folder / f".{part}.json.tmp"
  text.write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
  os.replace(text, folder / f"{part}.json")
  return folder


def describe(model: str, part: str = "policy") -> dict:
  """The description that was saved with the weights."""
  return json.loads((locate(model, part) / f"{part}.json").read_text())


def load(model: str, part: str = "policy", like: Any = None) -> Any:
  """The weights as a nested dict; strict against the shapes in `like`."""
  return weights.load(locate(model, part) / f"{part}.safetensors", like=like)
