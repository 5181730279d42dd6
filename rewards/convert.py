"""Released reward checkpoints as what the rewards read.

  python -m rewards.convert HPS_v2.1_compressed.pt --tokenizer=CLIP [--out=DIR]     a folder for rewards/hps.py
  python -m rewards.convert ImageReward.pt --tokenizer=BERT [--out=DIR]             a folder for rewards/image_reward.py
  python -m rewards.convert sac+logos+ava1-l14-linearMSE.pth [--out=DIR]            a file for rewards/aesthetic.py

What a file is, its names of tensors tell; any CLIP in OpenCLIP's names does for the first. Folders are in transformers'
layout; --tokenizer is a folder whose tokenizer goes with them: of any CLIP, or of bert-base-uncased. Pickles are read
with weights_only=True, in which nothing that they hold is run, and need PyTorch; .safetensors are read too.
"""
import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from diffusion import eyes, pixels, weights
from diffusion.convert import blip, open_clip, pickles
from rewards.aesthetic import NAMES

ACTIVATIONS = ("gelu", "quick_gelu")
TOKENIZER = (*eyes.WORDS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def tensors(file: Path) -> dict:
  """{name: array} of a file, without the prefix that training on several devices leaves."""
  if not file.is_file():
    raise ValueError(f"convert: {str(file)!r} is no file; give a .pt, .pth, .bin or .safetensors file")
  found = dict(weights.leaves(weights.load(file))) if file.suffix == ".safetensors" else pickles.unpickled(file)
  return {re.sub(r"^module\.", "", name): array for name, array in found.items()}


def folder(out: Path, config: dict, held: dict, tokenizer: Path | None) -> Path:
  """Writes weights, config.json, preprocessor_config.json and the tokenizer's files."""
  side = config["vision_config"]["image_size"]
  look = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
          "resample": pixels.BICUBIC, "do_center_crop": True, "crop_size": {"height": side, "width": side},
          "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": pixels.MEAN,
          "image_std": pixels.STD, "do_convert_rgb": True}
  weights.save(out / "model.safetensors", held, {"format": "pt"})
  for name, value in (("config.json", config), (eyes.FILE, look)):
    weights.write(out / name, json.dumps(value, indent=2) + "\n")
  for file in (tokenizer / name for name in TOKENIZER) if tokenizer else ():
    if file.is_file():
      shutil.copyfile(file, out / file.name)
  eyes.open_(out)  # compares names and shapes with the network's
  return out


def convert(file: str, out: str = None, tokenizer: str = None, activation: str = "gelu") -> Path:
  """Args:
    file: see above. out: a folder; None: beside the file, named as it is without its ending (a head: the file's own).
    tokenizer: a folder. activation: of a CLIP, which its weights do not tell: "gelu" (HPS, OpenCLIP) or "quick_gelu"
      (OpenAI's, DFN's).

  Returns: what was written. Raises ValueError for a file that is none of these or cannot be read safely, and for a
  folder that holds no tokenizer.
  """
  file, words = Path(file), Path(tokenizer) if tokenizer else None
  if words and not any((words / name).is_file() for name in eyes.WORDS):
    raise ValueError(f"convert: --tokenizer = {tokenizer!r} holds none of {', '.join(eyes.WORDS)}; give the folder of "
                     "a CLIP, or of bert-base-uncased for ImageReward")
  held = tensors(file)
  target = Path(out) if out else file.with_suffix("")
  if open_clip.MARK in held:
    return folder(target, open_clip.describe(held, activation), open_clip.renamed(held), words)
  if any(name.startswith(blip.VISION) for name in held):
    return folder(target, blip.describe(held), blip.renamed(held), words)
  if set(held) == NAMES:
    return weights.save((Path(out) if out else file.parent) / f"{file.stem}.safetensors", held, {"format": "pt"})
  raise ValueError(f"convert: {str(file)!r} holds {len(held)} tensors, {', '.join(sorted(held)[:3])} ..., which are "
                   "none of: a CLIP in OpenCLIP's names (HPSv2), ImageReward, LAION's linear aesthetic head; other "
                   "models become safetensors by python -m diffusion.convert import")


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m rewards.convert", description=__doc__.splitlines()[0])
  parser.add_argument("file")
  parser.add_argument("--out", help="a folder; by default beside the file")
  parser.add_argument("--tokenizer", help="a folder with the tokenizer that goes with the weights")
  parser.add_argument("--activation", choices=ACTIVATIONS, default="gelu", help="of a CLIP: HPS has gelu")
  args = parser.parse_args(argv)
  try:
    made = convert(args.file, args.out, args.tokenizer, args.activation)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  bare = made.is_dir() and not any((made / name).is_file() for name in eyes.WORDS)
  print(f"{made}{'; copy a tokenizer there before it reads prompts' if bare else ''}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
