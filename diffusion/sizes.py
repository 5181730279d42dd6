"""Published models at their real sizes, without their weights: the config.json of every component, shipped as data.

convert/sizes/MODEL.json holds {component: config} as published and, under "source", where each was read; "like" names
the model whose components are those that the file itself does not have. `hub.open_` takes such a name as it takes a
folder, so that plans of memory, benchmarks and tables of names need no download. convert/sizes/vlm/MODEL.json holds the
one config.json of a vision-language model in the same way, convert/sizes/eyes/MODEL.json that of an encoder of pictures
beside that of its processor, for `eyes.open_`. Weights and tokenizers are left out.
"""
import json
from pathlib import Path

SIZES = Path(__file__).parent / "convert" / "sizes"
NOTES = ("source", "like")


def shipped() -> list[str]:
  """Names of the models in the package."""
  return sorted(path.stem for path in SIZES.glob("*.json"))


def configs(name: str) -> dict:
  """{component: config}: of each network, as its config.json, of `scheduler`, and `model_index`.

  ValueError for a name that is not shipped.
  """
  if name not in shipped():
    raise ValueError(f"sizes: {name!r} is not one of {', '.join(shipped())}; choose one of them, or give hub.open_ a "
                     "folder")
  own = json.loads((SIZES / f"{name}.json").read_text())
  base = configs(own["like"]) if "like" in own else {}
  return {**base, **{part: config for part, config in own.items() if part not in NOTES}}


def vlms() -> list[str]:
  """Names of the vision-language models in the package."""
  return sorted(path.stem for path in (SIZES / "vlm").glob("*.json"))


def vlm(name: str) -> dict:
  """The config.json of one of `vlms()`. ValueError for a name that is not shipped."""
  if name not in vlms():
    raise ValueError(f"sizes: {name!r} is not one of {', '.join(vlms())}; choose one of them")
  return json.loads((SIZES / "vlm" / f"{name}.json").read_text())["config"]


def encoders() -> list[str]:
  """Names of the encoders of pictures in the package."""
  return sorted(path.stem for path in (SIZES / "eyes").glob("*.json"))


def encoder(name: str) -> tuple[dict, dict]:
  """(config.json, preprocessor_config.json) of one of `encoders()`. ValueError for a name that is not shipped."""
  if name not in encoders():
    raise ValueError(f"sizes: {name!r} is not one of {', '.join(encoders())}; choose one of them")
  held = json.loads((SIZES / "eyes" / f"{name}.json").read_text())
  return held["config"], held["preprocessor_config"]
