"""JSON lines: {"image": "cat.png", "caption": "a cat"}, one record a line.

Also {"prompt": ...} without a picture (alignment needs none) and {"win": ..., "lose": ...} pairs for preference losses.
A judge or another model that answers (policies/chat.py) learns from a question about one picture or, with `several`,
about many, such as two candidates or the frames of a clip, and from its answer or a better and a worse one:

  {"prompt": "Which image shows ...?", "images": ["a.png", "b.png"], "meta": {"caption": "Image 1 is better."}}
  {"prompt": "What is it?", "images": ["a.png"], "meta": {"win": "A cat.", "lose": "A dog."}}

What a line holds besides travels in `meta`. The kind of a record, which keeps long ones apart from short ones, is the
number of its pictures and the magnitude of its length. Paths are relative to the file and may not leave its folder: a
manifest from elsewhere must not reach other files of this machine.
"""
import contextlib
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np

from align.build import UserError
from align.data import Source, Unreadable, clean, existing
from align.datasets import folder

PICTURES = {"image": "media", "win": "win", "lose": "lose"}
TEXTS = ("prompt", "caption", "text")


def make(path: str, images: str | None = None, size: int | tuple[int, int] | None = None, *, channels: int = 3,
         pixels: int = folder.PIXELS, several: int = 0) -> Source:
  """Records of the file at `path`; only its line offsets are held in memory.

  Args:
    path: the .jsonl file.
    images: folder that picture paths are relative to, by default that of the file.
    size, channels, pixels: as `folder.make`.
    several: the most pictures of a line's "images"; then "media" is [several H W C], of which the first "shown" are
      there and the others black. 0: lines have "image", or none.

  Raises: UserError if a path does not exist or the file has no lines. A bad line is Unreadable, by line number.
  """
  file = existing(path, "file")
  root = (existing(images, "folder") if images else file.parent).resolve()
  numbers, offsets = _lines(file)
  if several < 0:
    raise UserError(f"config.data.several = {several} must be 0 or more, the most pictures of a line; correct it")
  if not offsets:
    raise UserError(f"file {str(file)!r} is empty; a JSON object a line is needed, such as "
                    '{"image": "cat.png", "caption": "a cat"}: write some or correct the path')

  def record(index):
    with file.open("rb") as lines:
      lines.seek(offsets[index])
      return parse(lines.readline(), numbers[index], root, size, channels, pixels, several)

  def kind(index):
    with file.open("rb") as lines:
      lines.seek(offsets[index])
      line = lines.readline()
    with contextlib.suppress(Unreadable):
      names = fields(line, numbers[index]).get("images")
      return f"{len(names) if isinstance(names, list) else 1} pictures, {2 ** len(line).bit_length()} bytes"
    return ""

  return Source(len(offsets), record, str(file), kind)


def parse(line: bytes, number: int, root: Path, size=None, channels: int = 3, pixels: int = folder.PIXELS,
          several: int = 0) -> dict:
  """One line to one record."""
  entry = fields(line, number)
  texts = [entry.pop(key) for key in TEXTS if key in entry]
  if not texts or not isinstance(texts[0], str) or not clean(texts[0]):
    raise Unreadable(f"line {number}: no text; one of {', '.join(TEXTS)} must be a string that is not empty")
  record = {"prompt": clean(texts[0])}
  for key, name in PICTURES.items():
    if key in entry:
      record[name] = folder.picture(_inside(root, entry[key], number), f"line {number}: {entry[key]}", size,
                                    channels=channels, pixels=pixels)
  if several:
    record |= listed(entry.pop("images", []), several, number, lambda name: folder.picture(
      _inside(root, name, number), f"line {number}: {name}", size, channels=channels, pixels=pixels))
  label = entry.pop("label", None)
  if isinstance(label, int):
    record["label"] = np.int32(label)
  extra = entry.pop("meta", {})
  return {**record, "meta": {**entry, **(extra if isinstance(extra, dict) else {"meta": extra})}}


def listed(names: Any, several: int, number: int, opened: Callable) -> dict:
  """The pictures of "images", behind which black ones make up the number."""
  if not isinstance(names, list) or not 0 < len(names) <= several:
    raise Unreadable(f"line {number}: images = {names!r} must be a list of 1 to {several} paths (config.data.several)")
  media = [opened(name) for name in names]
  if len({one.shape for one in media}) > 1:
    raise Unreadable(f"line {number}: pictures of {len({one.shape for one in media})} sizes; set config.data.size")
  return {"media": np.stack([*media, *[np.zeros_like(media[0])] * (several - len(media))]),
          "shown": np.int32(len(media))}


def fields(line: bytes, number: int) -> dict:
  """The JSON object of a line."""
  try:
    entry = json.loads(line.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise Unreadable(f"line {number}: not JSON ({error})") from None
  if not isinstance(entry, dict):
    raise Unreadable(f"line {number}: {type(entry).__name__}, but a JSON object is needed")
  return entry


def _inside(root, name, number) -> Path:
  if not isinstance(name, str):
    raise Unreadable(f"line {number}: the path {name!r} is no string")
  path = (root / name).resolve()
  if not path.is_relative_to(root):
    raise Unreadable(f"line {number}: {name!r} lies outside {str(root)!r}; set `images` to the folder of the pictures")
  return path


def _lines(file) -> tuple[list[int], list[int]]:
  """Numbers and byte offsets of the lines that are not blank."""
  numbers, offsets, at = [], [], 0
  with file.open("rb") as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        numbers.append(number)
        offsets.append(at)
      at += len(line)
  return numbers, offsets
