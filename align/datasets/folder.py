"""A user's own pictures: a folder of image files, each with its caption in a .txt file of the same stem.

Files are untrusted: their header is read first, and a picture that would be too large is refused before a pixel is
decoded. What cannot be used is `Unreadable` with the reason; the stream skips and lists it.
"""
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from align.build import UserError
from align.data import Source, Unreadable, clean, existing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PIXELS = 1 << 26  # 64 megapixels: above every camera, 200 MB decoded
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def make(path: str, size: int | tuple[int, int] | None = None, *, channels: int = 3, pixels: int = PIXELS) -> Source:
  """Pictures below `path`, also in subfolders, in the order of their names.

  Args:
    path: the folder.
    size: side, or (height, width); the picture is scaled to cover it and cut around its centre. None keeps it as it is,
      which needs pictures of one size.
    channels: 3, or 1 for grey.
    pixels: the largest picture that is decoded.

  Raises: UserError if the folder does not exist or holds no picture.
  """
  root = existing(path, "folder")
  files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
  if not files:
    raise UserError(f"folder {str(root)!r} holds no picture; one of {', '.join(SUFFIXES)} is needed, each with its "
                    "caption in a .txt file of the same name: correct the path")

  def record(index):
    file = files[index]
    name = file.relative_to(root).as_posix()
    return {"prompt": caption(file.with_suffix(".txt"), name), "meta": {"file": name},
            "media": picture(file, name, size, channels=channels, pixels=pixels)}

  return Source(len(files), record, str(root))


def caption(file: Path, name: str) -> str:
  """The text beside a picture."""
  try:
    text = clean(file.read_bytes().decode("utf-8-sig"))
  except FileNotFoundError:
    raise Unreadable(f"{name}: {file.name} is missing; put the caption there") from None
  except (OSError, UnicodeDecodeError) as error:
    raise Unreadable(f"{name}: {file.name} cannot be read ({error})") from None
  if not text:
    raise Unreadable(f"{name}: {file.name} is empty; put the caption there")
  return text


def picture(file: Path | bytes, name: str, size: int | tuple[int, int] | None = None, *, channels: int = 3,
            pixels: int = PIXELS) -> np.ndarray:
  """uint8 [H W channels] of an image file or its bytes; raises Unreadable with the reason.

  Turned as EXIF says, transparency over white, CMYK and palettes to RGB, 16-bit grey scaled down. Animations and
  floating-point pictures are refused. Colour profiles are ignored.
  """
  try:
    data = file if isinstance(file, bytes) else file.read_bytes()
    if not data:
      raise Unreadable(f"{name}: the file is empty")
    with Image.open(io.BytesIO(data)) as image:
      _refuse(image, name, pixels)
      image.load()
      image = _eight_bit(ImageOps.exif_transpose(image), name)
  except Unreadable:
    raise
  except BROKEN as error:
    raise Unreadable(f"{name}: cannot be decoded ({str(error).replace('<_io.BytesIO', '<file')})") from None
  image = image.convert("L" if channels == 1 else "RGB")
  if size is not None:
    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
  return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def _refuse(image, name, pixels):
  """Judges by the header alone; nothing has been decoded yet."""
  width, height = image.size
  if width * height > pixels:
    raise Unreadable(f"{name}: {width} x {height} pixels, at most {pixels} are decoded; scale it down")
  if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a phone's JPEG with a preview attached
    raise Unreadable(f"{name}: an animation of {image.n_frames} frames; still pictures are needed here")


def _eight_bit(image, name):
  if image.mode.startswith("I;16"):
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
  if image.mode in ("I", "F"):
    raise Unreadable(f"{name}: {image.mode} pixels have no known range; save it with 8 or 16 bits")
  if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image
