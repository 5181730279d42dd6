"""Scenes as data: on the fly, on disk, and as prompts."""
import json
import sys

import numpy as np
import pytest

from align.build import UserError
from align.data import batches
from align.datasets import scenes, scenes_builder, scenes_prompts, scenes_repeated
from rewards import scenes as world
from rewards.scenes import combos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return scenes_builder.prepare(str(tmp_path_factory.mktemp("data")), count=60, seed=2)


def content(record):
  return record["prompt"], record["media"].tobytes(), repr(record["meta"])


def test_records_are_renders_that_show_their_captions():
  source = scenes.make(count=50, seed=1)
  records = [source.record(i) for i in range(50)]
  media, texts, specs = world.batch(1, 0, 50)
  assert source.size == 50 and [r["prompt"] for r in records] == texts and [r["meta"] for r in records] == specs
  assert (np.stack([r["media"] for r in records]) == media).all()
  assert all(world.check(r["meta"], found) for r, found in zip(records, world.detect(media), strict=True))


def test_disk_holds_the_same_records_without_tensorflow(folder):
  source = scenes.make(count=60, data_dir=folder)
  drawn = scenes.make(count=60, seed=2)
  assert {content(source.record(i)) for i in range(60)} == {content(drawn.record(i)) for i in range(60)}
  held = scenes.make("test", count=3, data_dir=folder)
  keys = [{s.record(i)["meta"]["key"] for i in range(s.size)} for s in (source, held)]
  assert len(keys[1]) == 3 and not keys[0] & keys[1]
  assert "tensorflow" not in sys.modules
  before = {p: p.stat().st_mtime_ns for p in scenes_builder.Path(folder).iterdir()}
  assert any(".array_record-" in p.name for p in before)
  assert scenes_builder.prepare(str(scenes_builder.Path(folder).parents[2]), count=60, seed=2) == folder
  assert before == {p: p.stat().st_mtime_ns for p in scenes_builder.Path(folder).iterdir()}  # not written again


def test_streams_read_it(folder):
  for source in (scenes.make(count=60, data_dir=folder), scenes.make(count=60), scenes_prompts.make(count=60)):
    batch = batches(source, 8, group=2, threads=0).next()
    assert len(batch["prompt"]) == 16 and batch["prompt"][0] == batch["prompt"][1] and batch["meta"][0]["include"]
    assert ("media" in batch) == ("prompts" not in source.name)


def test_prompts_are_balanced_and_held_out():
  source = scenes_prompts.make(count=48)
  kinds = [source.record(i)["meta"]["category"] for i in range(48)]
  assert kinds == list(world.CATEGORIES) * 8 and "media" not in source.record(0)
  drawn = scenes.make(count=2000)
  held = {source.record(i)["meta"]["key"] for i in range(48)}
  assert not {drawn.record(i)["meta"]["key"] for i in range(2000)} & held


def test_a_few_prompts_come_again_in_the_same_words():
  keys = {"seen": "attribution/1/none/circle-red/square-blue", "unseen": "position/1/left_of/circle/square-red"}
  source = scenes_repeated.make(keys, count=5)
  made = [source.record(i) for i in range(5)]
  assert [r["meta"]["category"] for r in made] == ["seen", "unseen", "seen", "unseen", "seen"]
  assert [r["meta"]["key"] for r in made[:2]] == list(keys.values())
  assert made[0] == made[2] == made[4] and made[1] == made[3] and made[0]["prompt"] != made[1]["prompt"]
  assert {(c["class"], c["color"]) for c in made[0]["meta"]["include"]} == {("circle", "red"), ("square", "blue")}
  for kind in world.CATEGORIES:
    key = combos.combos(kind)[-1].key
    assert {scenes_repeated.make({"a": key}, 1, seed=s).record(0)["meta"]["key"] for s in range(3)} == {key}


def test_prompts_of_clips_are_held_out_and_of_their_world():
  source, drawn = (make(count=60, frames=6, most=1) for make in (scenes_prompts.make, scenes.make))
  specs = [source.record(i)["meta"] for i in range(60)]
  assert all(len(s["motion"]) == 1 and s["objects"] == [] and s["category"] == "clip" for s in specs)
  assert not {s["key"] for s in specs} & {drawn.record(i)["meta"]["key"] for i in range(60)}
  assert source.record(3) == scenes_prompts.make(count=60, frames=8, most=1).record(3)
  assert set(source.record(3)) == {"prompt", "meta"}
  assert source.record(3) != scenes_prompts.make(count=60, frames=6, most=1, seed=1).record(3)
  assert {len(scenes_prompts.make(count=60, frames=6).record(i)["meta"]["motion"]) for i in range(60)} == {1, 2}


def test_clips_and_sizes():
  assert scenes.make(count=2, frames=8).record(1)["media"].shape == (8, 16, 16, 3)
  assert scenes.make(count=2, size=32, categories=("long",)).record(1)["media"].shape == (32, 32, 3)


def test_a_world_of_ones_own(tmp_path):
  """Fewer shapes and colours, at most two objects: pictures, prompts, clips and what is on disk keep to it."""
  own = {"shapes": ("circle", "square"), "colors": ("red", "blue"), "most": 2}
  folder = scenes_builder.prepare(str(tmp_path), count=40, **own)
  assert folder != scenes_builder.prepare(str(tmp_path), count=40)
  drawn, stored = scenes.make(count=40, **own), scenes.make(count=40, data_dir=folder)
  for i in range(40):
    objects = drawn.record(i)["meta"]["objects"]
    assert len(objects) <= 2 and {o["shape"] for o in objects} <= set(own["shapes"])
    assert {o["color"] for o in objects} <= set(own["colors"])
  metas = lambda source: sorted(json.dumps(source.record(i)["meta"], sort_keys=True) for i in range(40))
  assert metas(stored) == metas(drawn)  # TFDS shuffles what it writes
  said = " ".join(scenes_prompts.make(count=60, **own).record(i)["prompt"] for i in range(60))
  assert "circle" in said and "triangle" not in said and "green" not in said and "three" not in said
  motion = scenes.make(count=1, frames=4, **own).record(0)["meta"]["motion"]
  assert {m["class"] for m in motion} <= set(own["shapes"])


@pytest.mark.parametrize("call, words", [
  (lambda f: scenes.make(shapes=("circle", "star")), ["star", "triangle"]),
  (lambda f: scenes_prompts.make(most=9), ["most is 9"]),
  (lambda f: scenes_builder.prepare("/tmp", colors=("red",)), ["colors", "two or more"]),
  (lambda f: scenes.make("dev"), ["'dev'"]),
  (lambda f: scenes.make(count=0), ["count=0"]),
  (lambda f: scenes.make(categories=("colors",)), ["'colors'", "color"]),
  (lambda f: scenes.make(count=61, data_dir=f), ["count=61", "60 records"]),
  (lambda f: scenes.make(count=10, frames=6, data_dir=f), ["frames=6", "only pictures"]),
  (lambda f: scenes.make(count=10, size=32, data_dir=f), ["size=32", "size=16"]),
  (lambda f: scenes.make("dev", count=10, data_dir=f), ["'dev'", "train"]),
  (lambda f: scenes_prompts.make("dev"), ["'dev'"]),
  (lambda f: scenes_prompts.make(count=0), ["count=0"]),
  (lambda f: scenes_prompts.make(frames=1), ["frames=1", "at least 2"]),
  (lambda f: scenes_prompts.make("dev", frames=6), ["'dev'"]),
  (lambda f: scenes_prompts.make(categories=("two",), frames=6), ["('two',)", "frames=6", "leave one"]),
  (lambda f: scenes_repeated.make({"a": "two/1/none/square/circle"}), ["'two/1/none/square/circle'", "alphabetical"]),
  (lambda f: scenes_repeated.make({"a": "red"}), ["called 'red'", "such as 'two/1/none/circle-red/square'"]),
  (lambda f: scenes_repeated.make({}), ["combos={}"]),
  (lambda f: scenes_builder.prepare("/tmp", count=0), ["count=0"]),
  (lambda f: scenes_builder.prepare("/dev/null/data"), ["/dev/null/data", "written"]),
])
def test_bad_input_is_named(call, words, folder):
  with pytest.raises(UserError) as error:
    call(folder)
  assert all(word in str(error.value) for word in words)
