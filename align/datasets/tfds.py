"""Data sets prepared by TensorFlow Datasets, read without TensorFlow.

Only what can be read at random works here: `file_format="array_record"` or "parquet" (`as_data_source`). TFRecord needs
to be prepared again.
"""
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets
from array_record.python import array_record_module
from google.protobuf import json_format

from align.build import UserError
from align.data import Source, Unreadable, clean


def make(path: str, split: str = "train", *, caption: str | None = "caption", image: str | None = "image",
         entries: tuple[str, ...] = ()) -> Source:
  """One split of a prepared data set.

  Args:
    path: the folder of a prepared version (it holds dataset_info.json), or a name such as "mnist" that was prepared
    before.
    split: one of its splits, also sliced: "train[:1000]".
    caption: feature with the prompt, None for none (prompts are then "").
    image: feature with the picture, None for prompts alone.
    entries: features that are batched as numbers, such as ("label",). All others become `meta`; a string `meta` feature
      that holds a JSON object is opened.

  Raises: UserError if the data set, the split or a feature does not exist.
  """
  builder = _builder(path)
  try:
    rows = builder.as_data_source(split=split)
  except (ValueError, NotImplementedError, AssertionError) as error:
    known = ", ".join(builder.info.splits)
    raise UserError(f"split={split!r} of {path!r} cannot be read ({error}); splits are {known}, the "
                    "file format must be array_record or parquet: correct the split or prepare it again") from None
  check_shards(builder, split)
  names = set(builder.info.features)
  for name in (*entries, *(n for n in (caption, image) if n)):
    if name not in names:
      raise UserError(f"feature {name!r} is not in {path!r}; it has {', '.join(sorted(names))}: "
                      "set caption, image or entries")

  def record(index):
    try:
      row = dict(rows[index])
    except (OSError, ValueError, RuntimeError) as error:
      raise Unreadable(f"cannot be decoded ({error})") from None
    out = {"prompt": clean(_plain(row.pop(caption))) if caption else ""}
    if image:
      out["media"] = np.asarray(row.pop(image), np.uint8)
    out.update({name: _narrow(row.pop(name)) for name in entries})
    return {**out, "meta": _meta({name: _plain(value) for name, value in row.items()})}

  return Source(len(rows), record, f"{builder.info.full_name}/{split}")


def check_shards(builder, split: str) -> None:
  """Refuses, by name, a shard that is missing, cut short, or holds another number of records than it was written with.

  Without this a damaged ArrayRecord file reads as records of garbage."""
  whole = builder.info.splits.get(split.partition("[")[0])
  if whole is None or builder.info.file_format is not tensorflow_datasets.core.FileFormat.ARRAY_RECORD:
    return
  for path, count in zip(whole.filepaths, whole.shard_lengths, strict=True):
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records() if reader.ok() else None  # closing one that is not ok raises
    if found != count:
      state = "cannot be read" if found is None else f"holds {found} records"
      raise UserError(f"shard {str(path)!r} {state}, but was written with {count} records; copy it again, or prepare "
                      "the data set anew")


def _builder(path):
  if Path(path).is_dir():
    found = [p for depth in range(4) for p in sorted(Path(path).glob("*/" * depth + "dataset_info.json"))]
    if len(found) != 1:
      raise UserError(f"folder {str(path)!r} holds {len(found) or 'no'} prepared data "
                      f"set{'s' if len(found) > 1 else ''}; give the folder of one version, with its dataset_info.json")
    try:
      return tensorflow_datasets.builder_from_directory(found[0].parent)
    except (ValueError, OSError, json_format.ParseError) as error:
      raise UserError(f"data set {str(found[0].parent)!r}: dataset_info.json or features.json is damaged or missing "
                      f"({error}); copy them again, or prepare the data set anew") from None
  try:
    return tensorflow_datasets.builder(path)
  except (tensorflow_datasets.core.DatasetNotFoundError, ValueError):
    raise UserError(f"data set {path!r} is neither a folder nor a name that tensorflow_datasets knows; prepare it, or "
                    "correct the path") from None


def _plain(value) -> Any:
  """What json can write."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value


def _narrow(value) -> np.ndarray:
  """Entries at the precision that jax keeps."""
  value = np.asarray(value)
  return value.astype({"i": np.int32, "u": np.uint32, "f": np.float32}.get(value.dtype.kind, value.dtype))


def _meta(row) -> dict:
  opened = row.get("meta")
  if isinstance(opened, str) and opened.startswith("{"):
    row = {**row, **json.loads(opened)}
    del row["meta"]
  return row
