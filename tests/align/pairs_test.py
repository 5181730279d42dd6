"""Pairs survive the disk, whatever they are of, and are read as DPO learns from them."""
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from align.build import UserError
from align.datasets import pairs

RNG = np.random.default_rng(0)


def media(*shape):
  return RNG.integers(0, 256, shape).astype(np.uint8)


def record(win, lose, i=0, **more):
  return pairs.pair("two red cubes", win, lose, **{
    "scores_win": {"points/total": 4.5, "points/style": np.nan, "rank/total": 1.0},
    "scores_lose": {"points/total": 1.25, "points/style": 2.0, "rank/total": 0.0}, "judge": "points/total",
    "way": "two_stage", "orders_win": (1.0, 0.5), "orders_lose": (0.5, 0.0), "seed": 3, "prompt_id": 10 + i,
    "sample_win": 4, "sample_lose": 7, "meta": {"category": "two", "n": [1]},
    "provenance": {"model": "scenes", "rewards": {"points": {"name": "unified"}}, "config": "0123"}, **more})


KINDS = {
  "image": lambda i=0: record(media(6, 5, 3), media(6, 5, 3), i),
  "grey": lambda i=0: record(media(6, 5, 1), media(6, 5, 1), i),
  "video": lambda i=0: record(media(3, 6, 5, 3), media(3, 6, 5, 3), i),
  "text": lambda i=0: record("two cubes", "eleven \"red\" cubés", i, media=media(2, 6, 5, 3), shown=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind, tmp_path):
  rows = [KINDS[kind](i) for i in range(3)]
  pairs.write(tmp_path, rows, "test")
  source = pairs.read(tmp_path)
  assert source.size == 3
  found = {row["prompt_id"]: row for row in map(source.record, range(3))}
  for wanted in rows:
    row = found[wanted["prompt_id"]]
    assert row.keys() == wanted.keys()
    for name, value in wanted.items():
      np.testing.assert_array_equal(row[name], value, err_msg=name)
  assert row["kind"] == {"grey": "image"}.get(kind, kind) and row["score_win"] == 4.5
  assert row["scores_win"] == {"points/total": 4.5, "points/style": None, "rank/total": 1.0}


def test_the_split_is_that_of_the_prompts(tmp_path):
  place = pairs.write(tmp_path, [KINDS["image"]()], "test")
  assert list(tfds.builder_from_directory(str(place)).info.splits) == ["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_from(kind, tmp_path):
  wanted = KINDS[kind]()
  pairs.write(tmp_path, [wanted])
  found = pairs.make(str(tmp_path)).record(0)
  if kind == "text":
    assert found.keys() == {"prompt", "media", "shown", "meta"} and found["shown"] == 1
    assert found["meta"] == {"category": "two", "n": [1], "win": "two cubes", "lose": "eleven \"red\" cubés"}
    np.testing.assert_array_equal(found["media"], wanted["media"])
  else:
    assert found.keys() == {"prompt", "win", "lose", "meta"} and found["win"].dtype == np.uint8
    np.testing.assert_array_equal(found["lose"], wanted["lose"])


def test_what_was_not_judged_is_no_number():
  row = pairs.pair("p", "a", "b", media=media(1, 4, 4, 3), scores_win={"x/total": 1.0}, judge="y/total")
  assert np.isnan(row["score_win"]) and np.isnan(row["orders_win"]).all() and row["scores_lose"] == {}
  assert (row["frames"], row["shown"], row["kind"]) == (1, 1, "text")


def test_pairs_of_the_first_version_are_read(tmp_path):
  """Folders that were written before there were kinds, dimensions and provenance."""
  class Older(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      image, text = tfds.features.Image(shape=(None, None, 3), encoding_format="png"), tfds.features.Text()
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "prompt": text, "judge": text, "meta": text, "win": image, "lose": image, "score_win": np.float32,
        "score_lose": np.float32, **dict.fromkeys(("seed", "prompt_id", "sample_win", "sample_lose"), np.int64)}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield 0, {"prompt": "a", "judge": "r/total", "meta": json.dumps({"k": 1}), "win": io.BytesIO(win.read()),
                "lose": pairs.encoded(shown), "score_win": 1.0, "score_lose": 0.0, "seed": 0, "prompt_id": 0,
                "sample_win": 0, "sample_lose": 1}

  shown = media(4, 4, 3)
  win = pairs.encoded(shown)
  Older(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
  found = pairs.make(str(tmp_path)).record(0)
  assert found["meta"] == {"k": 1} and found["prompt"] == "a"
  np.testing.assert_array_equal(found["win"], shown)


def test_a_folder_without_pairs_is_refused(tmp_path):
  with pytest.raises(UserError, match="holds no dataset_info.json; it must be the folder that a collect run wrote"):
    pairs.make(str(tmp_path))
