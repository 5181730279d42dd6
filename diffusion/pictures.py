"""Picture files and arrays as RGB, and which frames of a clip a model looks at. Files are untrusted: their header is
read first, and a picture that would be too large is refused, or decoded smaller, before a pixel is decoded.

Left out: colour profiles, decoding of video files.
"""
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MOST = 1 << 26  # 64 megapixels: above every camera, 200 MB decoded
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def read(source: Any, most: int = MOST) -> np.ndarray:
  """uint8 [H W 3] of a picture's file or of its bytes, turned as EXIF says; of an animation the first frame.

  most: pixels that are decoded at the most. A JPEG that has more is decoded at 1/2, 1/4 or 1/8 of its sides.

  Raises: ValueError for a file that is missing, too large, no picture, damaged or cut short.
  """
  name = f"picture of {len(source)} bytes" if isinstance(source, bytes) else f"picture {str(source)!r}"
  try:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source)) as image:
      bounded(image, most)
      return rgb(ImageOps.exif_transpose(image))
  except Image.DecompressionBombError as error:  # before `bounded` can ask, where the header says far too much
    raise ValueError(f"{name} cannot be read (far more than the {most} pixels that are decoded at most); scale it "
                     "down") from error
  except BROKEN as error:
    raise ValueError(f"{name} cannot be read ({str(error).replace('<_io.BytesIO', '<file')}); replace it") from error


def bounded(image: Image.Image, most: int) -> None:
  """Judges by the header alone, and tells a JPEG's decoder to halve."""
  width, height = image.size
  if width * height > most:
    halved = next((k for k in (2, 4) if -(-width // k) * -(-height // k) <= most), 8)
    image.draft(None, (max(1, width // halved), max(1, height // halved)))  # does nothing in other formats
  if image.width * image.height > most:
    raise ValueError(f"{height} x {width} pixels (height x width), at most {most} are decoded; scale it down")


def rgb(picture: Any) -> np.ndarray:
  """uint8 [H W 3] of a PIL image, transparency over white, 16-bit grey scaled down; an array must be such already.

  Raises: ValueError for any other array, for pixels without a known range and for an empty picture.
  """
  picture = np.asarray(opaque(picture) if isinstance(picture, Image.Image) else picture)
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
    raise ValueError(f"picture is {picture.dtype} of shape {picture.shape}, it must be a PIL image or uint8 [H W 3]; "
                     "convert it")
  if not picture.size:
    raise ValueError(f"picture of shape {picture.shape} holds no pixel; replace it")
  return picture


def opaque(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16"):
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
  if image.mode in ("I", "F"):
    raise ValueError(f"picture has {image.mode} pixels, whose range is not known; save it with 8 or 16 bits")
  if image.mode in ALPHA or "transparency" in image.info:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("RGB")


def uniform(total: int, count: int, last: bool = False) -> np.ndarray:
  """[count] indices of frames: the first of each of `count` equal parts of a clip (UnifiedReward), or, with `last`,
  from the first to the last one (LLaVA-OneVision). Frames repeat where the clip has fewer."""
  counted(total, count)
  return np.linspace(0, total - 1, count).astype(int) if last else np.arange(count) * total // count


def at_rate(total: int, rate: float, fps: float = 2.0, least: int = 4, most: int = 768, factor: int = 2) -> np.ndarray:
  """Indices of the frames that Qwen2-VL and Qwen2.5-VL look at in a clip of `total` frames, `rate` a second: about
  `fps` a second, between `least` and `most`, and a multiple of `factor`; all of a clip of fewer frames than that.

  Their own rate is len(indices) / total * rate frames a second.
  """
  counted(total, factor)
  if not (rate > 0 and fps > 0):
    raise ValueError(f"rate = {rate} and fps = {fps} must be more than 0, frames a second; give the clip's own rate")
  most = min(most, total) // factor * factor
  count = int(min(max(total / rate * fps, least), most)) // factor * factor
  return uniform(total, count) if count else np.arange(total)


def counted(total: int, count: int) -> None:
  if total < 1 or count < 1:
    raise ValueError(f"{count} frames of a clip of {total}: both must be at least 1; give a clip that has frames")
