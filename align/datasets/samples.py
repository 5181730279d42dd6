"""What a generator made, on disk: a TFDS data set that the task `sample` writes, for runs that begin from it.

  prompt     text                       media   a picture as a PNG [H W C], a clip as one with all of its frames below
  frames     int64, 1 of a picture              each other [F H, W C]
  seed, prompt_id, sample_id   int64: the noise that made it
  provenance text, JSON: what generated ("model", "steps") and where prompts come from ("data")
  meta       text, JSON of what the prompt's source knew

ArrayRecord, written and read without TensorFlow.
"""
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets

from align.build import UserError
from align.data import Source
from align.datasets import pairs, tfds

NUMBERS = ("frames", "seed", "prompt_id", "sample_id")
JSON = ("provenance", "meta")
ENTRIES = ("media", "low")


class Samples(tensorflow_datasets.core.GeneratorBasedBuilder):
  """The records that `write` hands over, as a TFDS dataset."""
  VERSION = tensorflow_datasets.core.Version("1.0.0")

  def __init__(self, records=(), **kwargs):
    self.records = records
    super().__init__(file_format="array_record", **kwargs)

  def _info(self):
    features = tensorflow_datasets.features
    channels = self.records[0]["media"].shape[-1] if self.records else 3
    entries = {"media": features.Image(shape=(None, None, channels), encoding_format="png"),
               **dict.fromkeys(("prompt", *JSON), features.Text()), **dict.fromkeys(NUMBERS, np.int64)}
    return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(entries),
                                                disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, record in enumerate(self.records):
      frames = len(record["media"]) if record["media"].ndim == 4 else 1
      yield i, {**record, "frames": frames, "media": pairs.encoded(record["media"]),
                **{name: json.dumps(record[name]) for name in JSON}}


def write(folder: str, records: list) -> Path:
  """Writes records with the entries above, `frames` excepted; media are uint8 [H W C] or [F H W C]."""
  builder = Samples(records, data_dir=str(folder))
  builder.download_and_prepare(download_config=tensorflow_datasets.download.DownloadConfig(try_download_gcs=False))
  return Path(builder.data_dir)


def make(path: str, entry: str = "media") -> Source:
  """Records with "prompt", the samples as `entry`, uint8 [H W C] or [F H W C], and "meta".

  entry: "media", to learn from, or "low", for a refiner to enlarge. path: WORKDIR/samples of a `sample` run.
  """
  if entry not in ENTRIES:
    raise UserError(f"entry = {entry!r} is not one of {', '.join(ENTRIES)}; choose one of them")
  source = tfds.make(path, "train", caption="prompt", image="media", entries=("frames",))

  def record(index):
    row = source.record(index)
    tall, frames = row["media"], int(row["frames"])
    media = tall if frames == 1 else tall.reshape(frames, -1, *tall.shape[1:])
    return {"prompt": row["prompt"], entry: media, "meta": row["meta"]}
  return source._replace(record=record)
