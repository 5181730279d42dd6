"""Preference pairs on disk: one documented TFDS schema, written by `collect` and read by DPO.

  prompt   text                        win, lose   images of the same size, PNG
  score_win, score_lose   float32, the judge's totals       judge   text, who scored
  seed, prompt_id         int64, with `sample_win`, `sample_lose`: the noise that made each image
  meta     text, JSON of what the prompt's source knew

ArrayRecord, written and read without TensorFlow.
"""
import io
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from align.build import UserError
from align.data import Source

VERSION = "1.0.0"
NUMBERS = ("seed", "prompt_id", "sample_win", "sample_lose")


class Pairs(tfds.core.GeneratorBasedBuilder):
  """The records that `write` hands over, as a TFDS dataset."""
  VERSION = tfds.core.Version(VERSION)

  def __init__(self, records=(), **kwargs):
    self.records = records
    super().__init__(file_format="array_record", **kwargs)

  def _info(self):
    channels = np.shape(self.records[0]["win"])[-1] if self.records else 3
    image = tfds.features.Image(shape=(None, None, channels), encoding_format="png")
    text = tfds.features.Text()
    features = {"prompt": text, "judge": text, "meta": text, "win": image, "lose": image,
                "score_win": np.float32, "score_lose": np.float32, **dict.fromkeys(NUMBERS, np.int64)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, record in enumerate(self.records):
      yield i, {**record, "win": png(record["win"]), "lose": png(record["lose"]), "meta": json.dumps(record["meta"])}


def png(image: np.ndarray) -> io.BytesIO:
  """uint8 [H W C] -> an encoded file; handing TFDS an array would need TensorFlow."""
  out = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, format="PNG")
  out.seek(0)
  return out


def write(folder: str, records: list) -> Path:
  """Writes pairs; `folder` is what `make(path=...)` reads."""
  builder = Pairs(records, data_dir=str(folder))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return Path(builder.data_dir)


def make(path: str) -> Source:
  """Pairs that `collect` wrote to WORKDIR/pairs: records with "prompt", "win", "lose" (uint8 [H W C]), "meta"."""
  found = sorted(Path(path).glob("**/dataset_info.json"))
  if not found:
    raise UserError(f"path = {str(path)!r} holds no dataset_info.json; it must be the folder that a collect run wrote "
                    "(WORKDIR/pairs): run it first or correct the path")
  rows = tfds.builder_from_directory(str(found[-1].parent)).as_data_source(split="train")

  def record(index):
    row = rows[index]
    text = lambda name: row[name].decode() if isinstance(row[name], bytes) else str(row[name])
    return {"prompt": text("prompt"), "win": np.asarray(row["win"]), "lose": np.asarray(row["lose"]),
            "meta": json.loads(text("meta"))}
  return Source(len(rows), record, f"pairs at {path}")
