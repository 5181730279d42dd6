"""Public encoders of pictures from folders in transformers' layout: CLIP with its text tower, DINOv2, ImageReward.

config.json names the class, preprocessor_config.json says how a picture is scaled, cut and normalised; the host's way
to do that is transformers' (PIL, 256 levels), the device's is the same in JAX without rounding, so that scores have a
gradient in the picture. Weights are read and written under their public names. Left out: other classes, sub-models of
other models, padding of pictures that are smaller than the cut.
"""
import functools
import json
import traceback
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import hub, pixels, prompts, sizes, vlm, weights
from diffusion.convert import blip, clip_vision, core, dinov2
from diffusion.nets.clip import Clip
from diffusion.pictures import rgb

NETWORKS = {clip_vision.CLASS: clip_vision, clip_vision.PICTURES: clip_vision, dinov2.CLASS: dinov2,
            dinov2.REGISTERS: dinov2, blip.CLASS: blip}
PROCESSORS = {"CLIPImageProcessor": True, "CLIPFeatureExtractor": True, "BitImageProcessor": True,
              "BlipImageProcessor": False}  # whether they cut where their file does not say
FRAMES = ("crop", "stretch", "pad")
FILE = "preprocessor_config.json"
WORDS = ("tokenizer.json", "vocab.json", "vocab.txt")


class Processor(NamedTuple):
  """From a picture of any sides to what a network takes, normalised; ValueError for what is no picture."""
  host: Callable    # (uint8 [H W 3] or a PIL image) -> float32 [h w 3]
  device: Callable  # (media [B H W C] floats in 0..1, C 1 or 3) -> float32 [B h w 3], traceable
  sides: tuple      # (h, w)


class Model(NamedTuple):
  """An opened folder; no weights are read yet."""
  root: Path
  config: dict
  layout: core.Layout
  processor: Processor

  @property
  def net(self):
    return self.layout.net


# --- folders ----------------------------------------------------------------------------------------------------------
def is_public(folder: Any) -> bool:
  """Whether this is a folder in transformers' layout of a class that is known here."""
  path = Path(folder) / "config.json"
  return path.is_file() and vlm.kind(json.loads(path.read_text())) in NETWORKS


def at(model: Any) -> Path | None:
  """The folder that `model` is, or that a run left in it; None where neither is one."""
  return next((folder for folder in (Path(model), Path(model) / "export") if is_public(folder)), None)


def open_(model: Any, classes: tuple = tuple(NETWORKS), frame: str = None, dtype: str = "float32",
          remat: bool | str = False) -> Model:
  """model: a folder, a workdir in which one was left, or a description in sizes.py, which has shapes alone. classes:
  those that will do. frame: how a picture that is not
  square becomes so: by a "crop" of its middle, "stretch", or "pad" (see `framed`); None as the folder says.

  ValueError names what is no such folder, another class, or an option that is not supported.
  """
  root, shipped = at(model) or Path(model), is_described(model)
  if not shipped and not (root / "config.json").is_file():
    raise ValueError(f"model: {root / 'config.json'} cannot be read; it must be a JSON file of a folder in "
                     "transformers' layout: correct the path, or copy the folder again; without weights, there are "
                     f"{', '.join(sizes.encoders())}")
  config, look = sizes.encoder(model) if shipped else (hub.described(root / "config.json"), None)
  kind = vlm.kind(config)
  if kind not in classes:
    raise ValueError(f"model: architectures = {config.get('architectures')} in {root / 'config.json'} is not one of "
                     f"{', '.join(classes)}; use a checkpoint of one of these classes")
  try:
    layout = NETWORKS[kind].make(config, dtype=dtype, remat=remat)
  except KeyError as error:
    raise ValueError(f"model: {root / 'config.json'} has no entry {error}, which {kind} needs; copy the folder "
                     "again") from error
  if not shipped:
    core.matched(weights.component(root, vlm.STEM), layout)
    look = pixels.described(root)["image_processor"]
  made = Model(root, config, layout, processor(look, frame))
  check(made)
  return made


def is_described(model: Any) -> bool:
  """Whether `model` is a description without weights, and no folder."""
  return at(model) is None and str(model) in sizes.encoders()


def check(model: Model) -> None:
  """Refuses a processor whose pictures the network does not take."""
  tower = getattr(model.net, "vision", model.net)
  if tower.places == "fixed" and model.processor.sides != (tower.image, tower.image):
    raise ValueError(f"model: {model.root / FILE} makes pictures of {model.processor.sides[0]} x "
                     f"{model.processor.sides[1]} pixels, but image_size = {tower.image} in config.json; they must be "
                     "the same: copy both files from one model")


fresh, load, save = vlm.fresh, vlm.load, vlm.save  # a folder of one network is read and written alike


def words(model: Model, length: int = None) -> Callable:
  """([prompt] -> int32 [B L]) by the folder's tokenizer: both ends stand, padded and cut to `length`, by default the
  text tower's; a prompt that is cut is logged. ValueError for a folder without a tokenizer."""
  length = length or model.net.text.length
  if prompts.STORE.get() and is_described(model.root):  # only shapes count
    return lambda asked: np.zeros((len(asked), length), np.int32)
  if not any((model.root / name).is_file() for name in WORDS):  # else an empty vocabulary would be made
    raise ValueError(f"model: {model.root} holds no tokenizer, one of {', '.join(WORDS)}; copy it there, for a CLIP "
                     f"from any CLIP, for {blip.CLASS} from bert-base-uncased")
  from transformers import AutoTokenizer  # seconds of import
  try:
    made = AutoTokenizer.from_pretrained(str(model.root), local_files_only=True)
  except Exception as error:  # the library raises whatever it stumbles over
    said = traceback.format_exception_only(error)[0].splitlines()[0]
    raise ValueError(f"model: the tokenizer of {model.root} cannot be read ({said}); the folder must hold a whole one: "
                     "copy its files again") from error
  return prompts.tokenizer(made, length, str(model.root))


# --- pictures ---------------------------------------------------------------------------------------------------------
def processor(config: dict, frame: str = None) -> Processor:
  """From the contents of preprocessor_config.json. frame: as in `open_`; another one than the file's has its sides."""
  kind = config.get("image_processor_type", config.get("feature_extractor_type"))
  name = str(kind).removesuffix("Fast").removesuffix("Pil")
  if name not in PROCESSORS:
    raise ValueError(f"model: image_processor_type = {kind!r} in {FILE} is not supported, only "
                     f"{', '.join(PROCESSORS)}; use a model with one of them")
  cuts = config.get("do_center_crop", PROCESSORS[name])
  core.refuse("model: its image processor", config, {**pixels.FIXED, "do_center_crop": (cuts,)}, FILE)
  size = config.get("size", 224)
  short = size if isinstance(size, int) else size.get("shortest_edge")
  sides = sides_of(config.get("crop_size", 224)) if cuts else sides_of(size)
  if not sides or (cuts and (not short or short < max(sides))):
    raise ValueError(f"model: size = {size} and crop_size = {config.get('crop_size')} in {FILE} must be a shortest "
                     "edge and no more than it, or, without a crop, a height and a width; use a model where they are")
  frame = frame or ("crop" if cuts else "stretch")
  if frame not in FRAMES:
    raise ValueError(f"frame = {frame!r} is not one of {', '.join(FRAMES)}; choose one of them, or None for the "
                     "model's own")
  look = pixels.Look(config.get("resample", pixels.BICUBIC), *(np.array(config.get(n, pixels.SAME[n]), np.float32)
                                                               for n in ("image_mean", "image_std")))
  cut = functools.partial(framed, frame=frame, short=short or min(sides), sides=sides, resample=look.resample)

  def host(picture):
    return np.asarray(pixels.normal(cut(rgb(picture)[None], where=pixels.HOST), look)[0])

  def device(media):
    return pixels.normal(cut(coloured(media) * 255, where=pixels.DEVICE), look)

  return Processor(host, device, sides)


def sides_of(size: Any) -> tuple | None:
  """(height, width) of a size that is a number or has both."""
  if isinstance(size, int):
    return size, size
  return (size["height"], size["width"]) if {"height", "width"} <= set(size) else None


def coloured(media: Any) -> Any:
  """Pictures [B H W 1 or 3], floats, as float32 [B H W 3]. ValueError for other arrays."""
  if media.ndim != 4 or media.shape[-1] not in (1, 3) or not jnp.issubdtype(media.dtype, jnp.floating):
    raise ValueError(f"media of shape {media.shape} and type {media.dtype} must be pictures, floats [B H W C] in 0..1 "
                     "with 1 or 3 channels; choose a policy that makes such, or of clips the frames to look at")
  return jnp.broadcast_to(jnp.asarray(media, jnp.float32), (*media.shape[:3], 3))


def framed(media: Any, frame: str, short: int, sides: tuple, resample: int, where: tuple) -> Any:
  """[B H W 3] in 0..255 -> [B *sides 3]. where: pixels.HOST or pixels.DEVICE.

  crop      the shorter side is scaled to `short`, and the middle is cut out (CLIP, PickScore, DINOv2)
  stretch   both sides are scaled by themselves (BLIP)
  pad       the longer side is scaled to fit, with black bars beside the picture (HPSv2); bicubic with antialiasing,
            not rounded and not clamped, on the host too. The release makes no bars where the longer side fits already
  """
  xp, resize = where
  high, wide = media.shape[1:3]
  if frame == "stretch":
    return resize(media, *sides, resample)
  if frame == "pad":
    factor = min(sides) / max(high, wide)
    scaled = (max(round(high * factor), 1), max(round(wide * factor), 1))
    media = jax.image.resize(jnp.asarray(media, jnp.float32), (len(media), *scaled, 3), "cubic")
    return pixels.padded(media, *sides, (0, 0, 0), jnp)
  scaled = (short, short * wide // high) if high <= wide else (short * high // wide, short)
  media = resize(media, *scaled, resample)
  top, left = ((own - side) // 2 for own, side in zip(scaled, sides, strict=True))
  return media[:, top:top + sides[0], left:left + sides[1]]


# --- what the networks make of them -----------------------------------------------------------------------------------
def see(model: Model, params: dict, media: Any) -> Any:
  """media [B H W C] in 0..1 -> [B D] float32 of unit length: CLIP's projection, DINOv2's vector of the picture."""
  shown = model.processor.device(media)
  if isinstance(model.net, Clip):
    return unit(model.net.apply({"params": params}, shown, method="see"))
  return unit(model.net.apply({"params": params}, shown)[:, 0])


def read(model: Model, params: dict, tokens: Any) -> Any:
  """tokens [... L] of `words` -> [... D] float32 of unit length."""
  found = model.net.apply({"params": params}, tokens.reshape(-1, tokens.shape[-1]), method="read")
  return unit(found).reshape(*tokens.shape[:-1], -1)


def unit(x: Any) -> Any:
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
