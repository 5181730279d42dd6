"""JSON lines: {"image": "cat.png", "caption": "a cat"}, one record a line.

Also {"prompt": ...} without a picture (alignment needs none) and {"win": ..., "lose": ...} pairs for preference losses.
What a line holds besides travels in `meta`. Paths are relative to the file and may not leave its folder: a manifest
from elsewhere must not reach other files of this machine.
"""
import json
from pathlib import Path

import numpy as np

from align.build import UserError
from align.data import Source, Unreadable, clean, existing
from align.datasets import folder

PICTURES = {"image": "media", "win": "win", "lose": "lose"}
TEXTS = ("prompt", "caption", "text")


def make(path: str, images: str | None = None, size: int | tuple[int, int] | None = None, *, channels: int = 3,
         pixels: int = folder.PIXELS) -> Source:
  """Records of the file at `path`; only its line offsets are held in memory.

  Args:
    path: the .jsonl file.
    images: folder that picture paths are relative to, by default that of the file.
    size, channels, pixels: as `folder.make`.

  Raises: UserError if a path does not exist or the file has no lines. A bad line is Unreadable, by line number.
  """
  file = existing(path, "file")
  root = (existing(images, "folder") if images else file.parent).resolve()
  numbers, offsets = _lines(file)
  if not offsets:
    raise UserError(f"file {str(file)!r} is empty; a JSON object a line is needed, such as "
                    '{"image": "cat.png", "caption": "a cat"}: write some or correct the path')

  def record(index):
    with file.open("rb") as lines:
      lines.seek(offsets[index])
      return parse(lines.readline(), numbers[index], root, size, channels, pixels)

  return Source(len(offsets), record, str(file))


def parse(line: bytes, number: int, root: Path, size=None, channels: int = 3, pixels: int = folder.PIXELS) -> dict:
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
  label = entry.pop("label", None)
  if isinstance(label, int):
    record["label"] = np.int32(label)
  extra = entry.pop("meta", {})
  return {**record, "meta": {**entry, **(extra if isinstance(extra, dict) else {"meta": extra})}}


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
