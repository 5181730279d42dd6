"""What a reward server and those who ask it exchange: a JSON header and arrays, in one body.

  body      length of the header (4 bytes, big-endian) | header (JSON, UTF-8) | arrays (npz, not compressed)
  question  header {"version": 1, "prompt": [n texts], "meta": [n objects]}
            arrays ids int64 [n]; media [n H W C], of clips [n F H W C], float32 in [0, 1] or uint8 of 255ths;
                   where there are such, keys uint32 [n 2] of jax and batch.NAME [n], further numbers of the samples
  answer    header {"version": 1, "parts": [P names]}
            arrays ids int64 [n]; total float32 [n]; valid bool [n]; parts float32 [P n]

A question is the body of POST /score, an answer that of status 200, both of content type TYPE; any other status comes
with {"error": text} as JSON. `ids` name the samples of one question; its answer has them in any order. Text is JSON, so
tuples inside `meta` arrive as lists.

Nothing is unpickled, and nothing is allocated by what a header claims: arrays are not compressed, so that they hold no
more bytes than the body does, and their types and shapes are checked against those bytes before they are looked at.
Everything that cannot be read is a ValueError. Left out: compression, which gains little on pictures.
"""
import io
import json
import math
import tokenize
import zipfile
from typing import Any, NamedTuple

import numpy as np

VERSION = 1
TYPE = "application/x-align-reward"
KINDS = "biuf"        # of arrays: bool, integers, floats
HEADER = 1 << 24      # bytes of a header
DIRECTORY = 1 << 16   # bytes of the table of contents of arrays, enough for hundreds of them
NUMBER = "batch."     # begins the names of further numbers


class Asked(NamedTuple):
  """A question about n samples."""
  ids: Any
  prompt: list
  meta: list
  media: Any
  keys: Any        # uint32 [n 2], or None
  numbers: dict    # {name: [n]}


class Answer(NamedTuple):
  """An answer about the samples `ids`; they need not be all that were asked about."""
  ids: Any
  total: Any
  valid: Any
  parts: dict      # {name: float32 [n]}


# --- any header, any arrays -----------------------------------------------------------------------------------------


def pack(header: dict, arrays: dict) -> bytes:
  """The body. ValueError for a header that JSON cannot hold."""
  try:
    head = json.dumps(header).encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f"body: prompts and meta must be data that JSON can hold ({error}); keep numbers, texts, lists "
                     "and dicts in meta, and nothing else") from error
  out = io.BytesIO()
  out.write(len(head).to_bytes(4, "big") + head)
  with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
    for name, array in arrays.items():
      with packed.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
  return out.getvalue()


def unpack(body: bytes) -> tuple[dict, dict]:
  """(header, {name: array}); arrays are read-only views."""
  end = 4 + int.from_bytes(body[:4], "big")
  if len(body) < 4 or end > min(len(body), HEADER):
    raise ValueError(f"body: {len(body)} bytes do not hold a header of the length that the first 4 say, {end - 4}, "
                     f"or it is above {HEADER}; send the whole body, of fewer samples")
  try:
    header = json.loads(body[4:end])
  except (ValueError, RecursionError) as error:
    raise ValueError(f"body: its header is not JSON ({error}); it must be an object in UTF-8, correct it") from error
  if not isinstance(header, dict) or header.get("version") != VERSION:
    found = header.get("version") if isinstance(header, dict) else type(header).__name__
    raise ValueError(f"body: its header is of version {found!r}, only {VERSION} is known here; use the same version of "
                     "this package on both sides")
  return header, unzipped(body[end:])


def unzipped(payload: bytes) -> dict:
  """{name: array} of an npz file of stored entries."""
  refuse = lambda what: ValueError(f"body: its arrays {what}; they must be an npz file without compression, as "
                                   "numpy.savez writes it: correct them")
  end, size = payload[-22:], int.from_bytes(payload[-10:-6], "little")
  if end[:4] != b"PK\5\6" or payload[-42:-38] == b"PK\6\7" or size > DIRECTORY:
    raise refuse(f"({len(payload)} bytes) do not end as such a file does")
  try:
    with zipfile.ZipFile(io.BytesIO(payload)) as packed:
      entries = packed.infolist()
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise refuse("are compressed")
      if sum(entry.file_size for entry in entries) > len(payload):
        raise refuse("claim more bytes than there are")
      return {entry.filename.removesuffix(".npy"): unsaved(entry.filename, packed.read(entry)) for entry in entries}
  except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OverflowError) as error:
    raise refuse(f"cannot be read ({error})") from error


def unsaved(name: str, data: bytes) -> np.ndarray:
  """The array in the bytes of an npy file, which must be as many as its header says."""
  refuse = lambda what: ValueError(f"body: array {name!r} {what}; it must be an npy file of bool, integers or "
                                   "floats, in C order and the byte order of most machines: correct it")
  stream, headers = io.BytesIO(data), np.lib.format
  try:
    known = {(1, 0): headers.read_array_header_1_0, (2, 0): headers.read_array_header_2_0}
    shape, fortran, dtype = known[headers.read_magic(stream)](stream)
  except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
    raise refuse(f"cannot be read ({error!r})") from error
  rest = len(data) - stream.tell()
  if dtype.kind not in KINDS or fortran or not dtype.isnative:
    raise refuse(f"is of type {dtype}{', in Fortran order' * fortran}")
  if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != rest:
    raise refuse(f"of shape {shape} and type {dtype} has {rest} bytes")
  try:
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape) if rest else np.zeros(shape, dtype)
  except ValueError as error:
    raise refuse(f"is of shape {shape}, which cannot be") from error


def entry(arrays: dict, name: str, dtypes: tuple, shape: tuple) -> np.ndarray:
  """An array that must be there; None in `shape` is any size."""
  array = arrays.get(name)
  fits = array is not None and array.dtype.name in dtypes and len(array.shape) == len(shape) and all(
    want in (None, have) for want, have in zip(shape, array.shape, strict=True))
  if not fits:
    found = "missing" if array is None else f"{array.dtype.name} {list(array.shape)}"
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    raise ValueError(f"body: array {name!r} is {found}; it must be {' or '.join(dtypes)} [{wanted}], correct it")
  return array


def listed(header: dict, name: str, kind: type, count: int | None) -> list:
  found = header.get(name)
  if not isinstance(found, list) or count not in (None, len(found)) or not all(isinstance(v, kind) for v in found):
    size = f"{len(found)} entries" if isinstance(found, list) else type(found).__name__
    raise ValueError(f"body: {name!r} of the header is {size}; it must be a list of "
                     f"{'as many as there are parts' if count is None else count} of type {kind.__name__}, correct it")
  return found


# --- questions and answers ------------------------------------------------------------------------------------------


def ask(asked: Asked) -> bytes:
  keys = {} if asked.keys is None else {"keys": asked.keys}
  numbers = {NUMBER + name: values for name, values in asked.numbers.items()}
  return pack({"version": VERSION, "prompt": asked.prompt, "meta": asked.meta},
              {"ids": asked.ids, "media": asked.media, **keys, **numbers})


def asked(body: bytes) -> Asked:
  header, arrays = unpack(body)
  ids = entry(arrays, "ids", ("int64",), (None,))
  count = len(ids)
  if not count or len(np.unique(ids)) < count:
    raise ValueError(f"body: {count} ids{', some of them twice' * bool(count)}; a question is about 1 sample or more, "
                     "each with an id of its own: correct them")
  clip = "media" in arrays and arrays["media"].ndim == 5
  media = entry(arrays, "media", ("uint8", "float32"), (count, *[None] * (4 if clip else 3)))
  if not media.size:
    raise ValueError(f"body: array 'media' of shape {media.shape} has no pixels; send pictures or clips")
  keys = entry(arrays, "keys", ("uint32",), (count, 2)) if "keys" in arrays else None
  unknown = sorted(name for name in arrays if name not in ("ids", "media", "keys") and not name.startswith(NUMBER))
  if unknown:
    raise ValueError(f"body: array {unknown[0]!r} is none of ids, media, keys and {NUMBER}NAME; rename or remove it")
  numbers = {name: entry(arrays, name, (arrays[name].dtype.name,), (count,)) for name in arrays
             if name.startswith(NUMBER)}
  return Asked(ids, listed(header, "prompt", str, count), listed(header, "meta", dict, count), media, keys,
               {name.removeprefix(NUMBER): values for name, values in numbers.items()})


def answer(found: Answer) -> bytes:
  rows = [np.asarray(part, np.float32) for part in found.parts.values()]
  parts = np.stack(rows) if rows else np.zeros((0, len(found.ids)), np.float32)
  return pack({"version": VERSION, "parts": list(found.parts)},
              {"ids": np.asarray(found.ids, np.int64), "total": np.asarray(found.total, np.float32),
               "valid": np.asarray(found.valid, bool), "parts": parts})


def answered(body: bytes) -> Answer:
  header, arrays = unpack(body)
  ids = entry(arrays, "ids", ("int64",), (None,))
  total, valid = entry(arrays, "total", ("float32",), ids.shape), entry(arrays, "valid", ("bool",), ids.shape)
  names = listed(header, "parts", str, None)
  parts = entry(arrays, "parts", ("float32",), (len(names), *ids.shape))
  return Answer(ids, total, valid, dict(zip(names, parts, strict=True)))
