"""Preference pairs on disk: one documented TFDS schema, written by `collect` and read by DPO.

  prompt      text: a caption, or the question that answers were given to
  kind        text: what is preferred, "image", "video" or "text"
  win, lose   pictures and clips of one size, or answers. A picture is a PNG [H W C], a clip one with all of its frames
              below each other [F H, W C], an answer a text
  media       of answers only: the pictures that the question is about, as a clip is kept
  low         of a refiner's pairs only: what both are enlarged from, as they are kept
  frames      int64: of a clip; of answers how many pictures `media` has; 1 of a picture
  shown       int64: how many of these are there, the rest is black
  score_win, score_lose     float32, what was sifted by, NaN where nothing was scored
  scores_win, scores_lose   text, JSON {"reward/part": number or null}: all that was judged, dimension by dimension
  orders_win, orders_lose   float32 [2]: the judge's probability that the sample is better when it is shown first, and
                            when it is shown second; NaN where it was not compared, or with more than its neighbour
  judge       text, the score's name                  way   text, how pairs were sifted (rewards/judging/sift.py)
  seed, prompt_id           int64, with `sample_win`, `sample_lose`: the noise that made each sample
  provenance  text, JSON: what generated ("model"), what judged ("rewards"), where prompts come from ("data"), and the
              hash of the options that `collect` ran with ("config")
  meta        text, JSON of what the prompt's source knew

The split has the name of the prompts' one, so that pairs of held-out prompts cannot pass for others. ArrayRecord,
written and read without TensorFlow, which is why clips are one PNG. Version 1 had no kinds, dimensions or provenance.
"""
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from align.build import UserError
from align.data import Source

VERSION = "2.0.0"
NUMBERS = ("frames", "shown", "seed", "prompt_id", "sample_win", "sample_lose")
TEXTS = ("prompt", "kind", "judge", "way")
JSON = ("scores_win", "scores_lose", "provenance", "meta")


class Pairs(tfds.core.GeneratorBasedBuilder):
  """The records that `write` hands over, as a TFDS dataset."""
  VERSION = tfds.core.Version(VERSION)

  def __init__(self, records=(), split="train", **kwargs):
    self.records, self.split = records, split
    super().__init__(file_format="array_record", **kwargs)

  def _info(self):
    first = self.records[0] if self.records else {"win": np.zeros((1, 1, 3), np.uint8)}
    text = tfds.features.Text()
    picture = lambda a: tfds.features.Image(shape=(None, None, np.shape(a)[-1]), encoding_format="png")
    media = text if isinstance(first["win"], str) else picture(first["win"])
    features = {**dict.fromkeys((*TEXTS, *JSON), text), "win": media, "lose": media,
                **{name: picture(first[name]) for name in ("media", "low") if name in first},
                **dict.fromkeys(("score_win", "score_lose"), np.float32),
                **{name: tfds.features.Tensor(shape=(2,), dtype=np.float32) for name in ("orders_win", "orders_lose")},
                **dict.fromkeys(NUMBERS, np.int64)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {self.split: self._generate_examples()}

  def _generate_examples(self):
    for i, record in enumerate(self.records):
      yield i, {**record, **{name: encoded(record[name]) for name in ("win", "lose", "media", "low") if name in record},
                **{name: json.dumps(record[name]) for name in JSON}}


def encoded(media: Any) -> Any:
  """uint8 [H W C] or [F H W C] -> an encoded file, since handing TFDS an array would need TensorFlow; a text stays."""
  if isinstance(media, str):
    return media
  tall = media.reshape((-1, *media.shape[-2:]))
  out = io.BytesIO()
  Image.fromarray(tall[..., 0] if tall.shape[-1] == 1 else tall).save(out, format="PNG")
  out.seek(0)
  return out


def pair(prompt: str, win: Any, lose: Any, *, media: np.ndarray = None, low: np.ndarray = None, shown: int = None,
         scores_win: dict = None, scores_lose: dict = None, judge: str = "", way: str = "", orders_win: Any = None,
         orders_lose: Any = None, seed: int = 0, prompt_id: int = 0, sample_win: int = 0, sample_lose: int = 1,
         provenance: dict = None, meta: dict = None) -> dict:
  """A record of the schema. win, lose: uint8 [H W C], [F H W C], or texts, about `media` [n H W C]. judge: the name
  among the scores that was sifted by. NaN in the scores becomes null."""
  seen = win if media is None else media
  frames = len(seen) if np.ndim(seen) == 4 else 1
  none = np.full(2, np.nan, np.float32)
  plain = lambda scores: {k: None if math.isnan(v) else float(v) for k, v in (scores or {}).items()}
  number = lambda scores: np.float32((scores or {}).get(judge, np.nan))
  kind = "text" if isinstance(win, str) else "video" if np.ndim(win) == 4 else "image"
  beside = {name: value for name, value in {"media": media, "low": low}.items() if value is not None}
  return {"prompt": prompt, "kind": kind, "win": win, "lose": lose, **beside,
          "frames": frames, "shown": frames if shown is None else int(shown), "score_win": number(scores_win),
          "score_lose": number(scores_lose), "scores_win": plain(scores_win), "scores_lose": plain(scores_lose),
          "orders_win": none if orders_win is None else np.asarray(orders_win, np.float32),
          "orders_lose": none if orders_lose is None else np.asarray(orders_lose, np.float32), "judge": judge,
          "way": way, "seed": seed, "prompt_id": prompt_id, "sample_win": sample_win, "sample_lose": sample_lose,
          "provenance": provenance or {}, "meta": meta or {}}


def write(folder: str, records: list, split: str = "train") -> Path:
  """Writes pairs (see `pair`), all of one kind; `folder` is what `make(path=...)` reads."""
  builder = Pairs(records, split, data_dir=str(folder))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return Path(builder.data_dir)


def read(path: str) -> Source:
  """All that the schema holds, decoded: records as `pair` makes them."""
  found = sorted(Path(path).resolve().glob("**/dataset_info.json"))
  if not found:
    raise UserError(f"path = {str(path)!r} holds no dataset_info.json; it must be the folder that a collect run wrote "
                    "(WORKDIR/pairs): run it first or correct the path")
  ways = sorted({file.parents[2].name for file in found})
  if len(ways) > 1:
    raise UserError(f"path = {str(path)!r} holds the pairs of {', '.join(ways)}; one of them must be named: add it to "
                    "the path")
  builder = tfds.builder_from_directory(str(found[-1].parent))
  rows = builder.as_data_source(split=next(iter(builder.info.splits)))

  def record(index):
    row = {name: v.decode() if isinstance(v, bytes) else v for name, v in rows[index].items()}
    row |= {name: json.loads(row[name]) for name in JSON if name in row}
    flat = lambda a: a.reshape((int(row["frames"]), -1, *a.shape[1:]))
    if "media" in row:
      row["media"] = flat(np.asarray(row["media"]))
    elif row.get("kind") == "video":
      row |= {name: flat(np.asarray(row[name])) for name in ("win", "lose", "low") if name in row}
    return row
  return Source(len(rows), record, f"pairs at {path}")


def make(path: str) -> Source:
  """Pairs that `collect` wrote to WORKDIR/pairs, or WORKDIR/pairs/WAY: records with "prompt", "win", "lose" (uint8
  [H W C] or [F H W C]) and "meta"; of answers with "media" [n H W C] and "shown", and `win` and `lose` in "meta"."""
  source = read(path)

  def record(index):
    row = source.record(index)
    if row.get("kind") == "text":
      return {"prompt": row["prompt"], "media": row["media"], "shown": np.int32(row["shown"]),
              "meta": {**row["meta"], "win": row["win"], "lose": row["lose"]}}
    seen = {name: np.asarray(row[name]) for name in ("win", "lose", "low") if name in row}
    return {"prompt": row["prompt"], **seen, "meta": row["meta"]}
  return source._replace(record=record)
