"""Labelled pictures become questions whose answers are true of them, and can be read as judges are read."""
import random
import re

import numpy as np
import pytest

from align import data
from align.build import UserError
from align.datasets import pairs, scenes_labels, scenes_questions
from diffusion import vlm
from rewards import scenes
from rewards.judging import answers, formats
from rewards.scenes import combos

KNOWN = formats.known()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """Pairs of renders of 16 pixels: one that shows its caption and another scene, each twice."""
  place = tmp_path_factory.mktemp("labels")
  media, texts, specs = scenes.batch(3, 0, 64)
  rows = [pairs.pair(text, win, lose, meta=spec, prompt_id=i) for i, (text, win, lose, spec) in enumerate(
    zip(texts, media, np.roll(media, 1, 0), specs, strict=True)) for _ in range(2)]
  pairs.write(place, rows)
  return str(place)


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["collected", "rendered"])
def rendered(request):
  return request.param


def records(path, count=60, **options):
  source = scenes_labels.make(path, count, **options)
  return [source.record(i) for i in range(count)]


def test_answers_are_true_and_read_as_such(path, rendered):
  found = records(path, rendered=rendered)
  assert {r["meta"]["task"] for r in found} == {"image_pair", "image_point"}
  for row in found:
    question, meta = KNOWN[row["meta"]["question"]], row["meta"]
    assert answers.parse(question, meta["win"]).value == meta["truth"] != answers.parse(question, meta["lose"]).value
    assert row["shown"] == (2 if meta["task"] == "image_pair" else 1) and row["media"].shape == (2, 32, 32, 3)
    for text, picture in zip(re.split("\nImage 2", meta["win"]), row["media"], strict=False):
      said, score = re.findall(": (yes|no)", text), int(re.search("[Ss]core: ([1-5])", text)[1])
      assert said and (score == 5) == ("no" not in said) and picture.any()


def test_pairs_are_often_equal_and_then_neither_is_preferred(path, rendered):
  found = [row["meta"] for row in records(path, 300, rendered=rendered) if row["meta"]["task"] == "image_pair"]
  scores = np.array([[int(s) for s in re.findall("Score: ([1-5])", meta["win"])] for meta in found])
  first, equal = np.array([meta["truth"] for meta in found]), scores[:, 0] == scores[:, 1]
  assert 0.2 < equal.mean() < 0.6 and 0.3 < first[equal].mean() < 0.7
  np.testing.assert_array_equal(first[~equal], (scores[:, 0] > scores[:, 1])[~equal])


def test_renders_are_of_a_training_combination_a_near_one_and_any_of_its_category():
  world, rng = scenes.make_world(size=16), random.Random(0)
  trained = {c.key for kind in scenes.CATEGORIES for c in combos.split(kind, "train", world)}
  levels = []
  for _ in range(60):
    text, spec, pictures = scenes_labels.drawn(rng, world)
    assert spec["key"] in trained and len(pictures) == 4 and text
    levels.append([scenes_labels.seen(spec, picture)[1] for picture in pictures])
  levels = np.array(levels)
  assert (levels[:, :2] == 5).all() and 5 > levels[:, 2].mean() > levels[:, 3].mean()  # what is near keeps more of it
  own = combos.split("attribution", "train", world)[0]
  near = [scenes_labels.shared(own, c) for c in combos.split("attribution", "train", world)]
  assert near[0] == max(near) == 8


def test_elements_are_what_the_caption_asks_for():
  include = [{"class": "circle", "count": 1, "color": "orange"}, {"class": "triangle", "count": 3, "place": "top left"},
             {"class": "square", "count": 1, "position": ["above", 0]}, {"class": "object", "count": 1, "color": "red"}]
  assert [scenes_labels.element(clause, include) for clause in include] == [
    "an orange circle", "three triangles top left", "a square above an orange circle", "a red object"]


def test_scores_of_a_render_and_of_an_empty_picture():
  media, _, specs = scenes.batch(1, 0, 30, size=32)
  for picture, spec in zip(media, specs, strict=True):
    said, score = scenes_labels.seen(spec, picture)
    assert score == 5 and ": no" not in said
    said, score = scenes_labels.seen(spec, np.full_like(picture, picture[0, 0]))
    assert score == 1 and ": yes" not in said


def test_a_count_that_is_exceeded_does_not_hold():
  media, _, specs = scenes.batch(2, 0, 60, size=32, categories=("count",))
  three = next(i for i, s in enumerate(specs) if s["include"][0]["count"] == 3 and "color" not in s["include"][0])
  shape = specs[three]["include"][0]["class"]
  asked = {"category": "count", "include": [{"class": shape, "count": 2}], "exclude": [{"class": shape, "count": 3}]}
  assert scenes_labels.seen(asked, media[three]) == (f"two {shape}s: no", 3)
  assert scenes_labels.seen({**asked, "exclude": []}, media[three]) == (f"two {shape}s: yes", 5)


def test_records_are_a_function_of_their_number(path):
  first, again, other = records(path, 8), records(path, 8), records(path, 8, seed=1)
  assert [r["meta"]["win"] for r in first] == [r["meta"]["win"] for r in again] != [r["meta"]["win"] for r in other]


def test_a_mixture_has_the_shape_of_the_other_questions(path):
  plain = scenes_questions.make(tasks=("video_pair", "colour"), count=50)
  source = scenes_labels.make(path, 50, data=plain, share=0.4)
  batch = data.batches(source, 50, shuffle=False).next()
  assert batch["media"].shape == (50, 6, 32, 32, 3)
  share = np.mean([m["task"].startswith("image_p") for m in batch["meta"]])
  assert 0.2 < share < 0.6
  row = next(i for i in range(50) if batch["meta"][i]["task"] == "colour")
  assert batch["prompt"][row] == plain.record(row)["prompt"]


def test_answers_are_words_that_the_shipped_judge_knows(path):
  talk = vlm.open_("judge").chat
  for row in records(path):
    assert len(talk.encode(row["meta"]["win"])) <= 60  # in bytes it would be three times as long


@pytest.mark.parametrize("options, message", [
  ({"share": 0.0}, "share = 0.0, size = 32 beside data whose media are"),
  ({"data": ("colour",)}, r"whose media are \(1, 32, 32, 3\); share must be above 0 and at most 1, and media at least"),
])
def test_refusals(path, options, message):
  given = {**options, **({"data": scenes_questions.make(tasks=options["data"])} if "data" in options else {})}
  with pytest.raises(UserError, match=message):
    scenes_labels.make(path, **given)
