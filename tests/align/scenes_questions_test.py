"""Questions about Scenes: their answers are true of what is shown, read as judges read them, and balanced."""
import collections
import functools

import numpy as np
import pytest

from align import data
from align.build import UserError
from align.datasets import scenes_questions
from align.policies import chat
from diffusion import vlm, vlm_small
from rewards import scenes
from rewards.judging import answers
from rewards.scenes.combos import NUMBERS

TASKS = tuple(scenes_questions.PICTURES)
make = functools.partial(scenes_questions.make, tasks=TASKS, size=24)


@functools.cache
def records(task, count=120, split="train"):
  source = make(split, count, tasks=(task,))
  return [source.record(i) for i in range(count)]


def seen(record):
  """Objects that the exact detector finds in the first picture."""
  return scenes.detect(record["media"][:1])[0]


def told(task, prompt, objects):
  """The answers to a plain question that are true of these objects."""
  words = prompt.rstrip("?").split()
  if task in ("colour", "shape"):
    known, name = ("shape", "color") if task == "colour" else ("color", "shape")
    return {o[name] for o in objects if o[known] in words}
  if task == "side":
    return {"left" if o["x"] < .5 else "right" for o in objects if o["color"] in words}
  if task == "there":
    return {"yes" if (words[-2], words[-1]) in [(o["color"], o["shape"]) for o in objects] else "no"}
  if task == "list":
    return {" and ".join(f"a {o['color']} {o['shape']}" for o in sorted(objects, key=lambda o: o["x"]))}
  return {NUMBERS[len(objects)]}


@pytest.mark.parametrize("task", [t for t in scenes_questions.PLAIN if t != "caption"])
def test_plain_answers_are_what_the_detector_sees_and_balanced(task):
  rows = records(task)
  assert np.mean([told(task, r["prompt"], seen(r)) == {r["meta"]["caption"]} for r in rows]) > 0.95
  assert not [r for r in rows if r["meta"]["lose"] in told(task, r["prompt"], seen(r))]
  tally = collections.Counter(r["meta"]["caption"] for r in rows)
  assert task == "list" or min(tally.values()) > 0.5 * len(rows) / len(tally)


def test_talks_are_true_and_end_in_the_list():
  kinds = {text.split(" {")[0]: task for task, text in scenes_questions.PLAIN.items()}
  kind = lambda text: next(task for begun, task in kinds.items() if text.startswith(begun))
  rows = records("talk")
  for r in rows:
    texts = [r["prompt"], r["meta"]["caption"], *r["meta"]["more"]]
    asked = list(zip(texts[::2], texts[1::2], strict=True))
    right = [told(kind(question), question, seen(r)) == {answer} for question, answer in asked]
    assert all(right) or not told("list", "", seen(r)) == {asked[-1][1]}, texts  # the detector may be wrong
    assert kind(asked[-1][0]) == "list" and 2 <= len(asked) <= 1 + scenes_questions.TURNS
  tally = collections.Counter(kind(r["prompt"]) for r in rows)
  assert min(tally.values()) > 8 and len(tally) == 5


def test_cells_are_named_by_what_lies_there():
  source = make(tasks=("talk", "list"), size=32, cells=4)
  for i in range(20):
    r = source.record(i)
    words = np.array(r["meta"]["cells"]).reshape(4, 4)
    found = scenes.detect(r["media"][:1])[0]
    assert set(words.flat) <= {f"{o['color']} {o['shape']}" for o in found} | {"nothing"}
    for o in found:
      assert words[int(o["y"] * 4), int(o["x"] * 4)] == f"{o['color']} {o['shape']}"
    dark = r["media"][0].reshape(4, 8, 4, 8, 3).max((1, 3, 4)) < 30
    assert (words[dark] == "nothing").all()
  assert "cells" not in make(tasks=("talk",)).record(0)["meta"]
  assert make(tasks=("caption",), cells=4).record(0)["meta"]["cells"] == []


def test_only_the_picture_that_is_named_shows_it():
  rows = records("compare", 60)
  texts = [[r["prompt"], r["meta"]["caption"], *r["meta"]["more"]] for r in rows]
  for r, said in zip(rows, texts, strict=True):
    for question, answer in zip(said[::2], said[1::2], strict=True):
      thing = question.split(" a ")[1].rstrip("?")
      shown = [any(thing in (f"{o['color']} {o['shape']}", o["shape"], f"{o['color']} object") for o in found)
               for found in scenes.detect(r["media"][:2])]
      assert shown == [answer == "Image 1", answer == "Image 2"], said
  tally = collections.Counter(answer for said in texts for answer in said[1::2])
  assert set(tally) == {"Image 1", "Image 2"} and min(tally.values()) > 60


def test_motions_are_those_of_the_clip():
  for r in records("moves", 40):
    texts = [r["prompt"], r["meta"]["caption"], *r["meta"]["more"]]
    assert texts[-2] == "Describe the video." and len(texts) == 6
    for question, answer in zip(texts[:-2:2], texts[1:-2:2], strict=True):
      thing = question.split(" the ")[1].removesuffix(" move?")
      part = next(part for part in texts[-1].split(" and ") if thing in part)
      assert answer in part.split(thing)[1]


@pytest.mark.parametrize("task", [t for t in TASKS if "_" in t])
def test_answers_are_read_as_the_truth_and_balanced(task):
  question = scenes_questions.ASKED[records(task)[0]["meta"]["question"]]
  for r in records(task):
    value = answers.parse(question, r["meta"]["caption"]).value
    wrong = answers.parse(question, r["meta"]["lose"]).value
    assert value == r["meta"]["truth"] and np.isfinite(wrong) and wrong != value
  tally = collections.Counter(r["meta"]["truth"] for r in records(task))
  assert len(tally) in (2, 3) and min(tally.values()) > 0.6 * len(records(task)) / len(tally)


def test_scores_and_the_verdict_agree():
  for task in ("image_pair", "video_pair"):
    for r in records(task):
      *lines, verdict = r["meta"]["caption"].split("\n")
      scores = [int(line.split(". Score: ")[1]) for line in lines]
      assert verdict.split(" is ")[0] == lines[scores[1] > scores[0]].split(":")[0] and scores[0] != scores[1]
      assert r["meta"]["lose"].split("\n")[:-1] == lines and r["meta"]["lose"].split("\n")[-1] != verdict


def test_judges_say_first_what_is_there():
  right = []
  for task in ("image_point", "image_pair"):
    for r in records(task):
      for media, line in zip(r["media"], r["meta"]["caption"].split("\n")[:-1], strict=True):
        text = line.split(". ")[0].split(": ")[-1]
        score = line[-1] if task == "image_pair" else r["meta"]["caption"][-1]
        assert (text == "no good image") == (score == "3")
        right += [told("list", "", scenes.detect(media[None])[0]) == {text}] * (score != "3")
  assert np.mean(right) > 0.95 and len(right) > 100
  for r in records("video_point"):
    seen, score = r["meta"]["caption"].split("\nFinal Score: ")
    said = sorted(" ".join(sorted(part.split())) for part in seen.split(" and "))
    asked = r["prompt"].split("Caption: ")[1].removeprefix("a clip of ").removeprefix("a video of ").split(" and ")
    assert score != "5" or said == sorted(" ".join(sorted(part.split())) for part in asked)
    assert score != "1" or "moving" in seen
  for r in records("image_answer"):
    own, score = r["meta"]["caption"].split("\nFinal Score: ")
    assert "Describe" in r["prompt"] or r["prompt"].endswith(f"Answer: {own}") == (score == "5")


def test_better_pictures_show_their_caption(monkeypatch):
  """With nothing but wrong contents to choose from, the detector tells which of a pair is better."""
  monkeypatch.setattr(scenes_questions, "LEVELS", (5, 1))
  source = make(tasks=("image_pair",), categories=("color",))
  for i in range(60):
    r = source.record(i)
    colour = r["prompt"].split("Caption: ")[1]
    shown = [any(thing["color"] in colour and (thing["shape"] in colour or "object" in colour) for thing in found)
             for found in scenes.detect(r["media"])]
    assert shown == [r["meta"]["truth"] == 1, r["meta"]["truth"] == 0]


@pytest.mark.parametrize("shape", [(24, 24, 3), (3, 24, 24, 3)])
def test_damage_keeps_the_form_and_changes_the_picture(shape):
  media = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  found = [scenes_questions.damaged(scenes_questions.random.Random(i), media) for i in range(20)]
  assert all(a.shape == shape and a.dtype == np.uint8 and (a != media).any() for a in found)
  assert len({a.tobytes() for a in found}) > 4


def test_records_are_repeatable_and_have_one_shape():
  stream = data.batches(make(count=400), 40, threads=0, shuffle=False)
  batch, again = stream.next(), data.batches(make(count=400), 40, threads=0, shuffle=False).next()
  np.testing.assert_array_equal(batch["media"], again["media"])
  assert batch["meta"] == again["meta"] and batch["media"].shape == (40, 6, 24, 24, 3)
  for media, shown, meta in zip(batch["media"], batch["shown"], batch["meta"], strict=True):
    assert shown == scenes_questions.PICTURES[meta["task"]] and not media[shown:].any() and media[:shown].any()
  other = data.batches(make(count=400, seed=1), 40, threads=0, shuffle=False).next()
  assert other["prompt"] != batch["prompt"]


def test_the_kind_of_a_record_is_its_task():
  source = make("train", 40)
  assert [source.kind(i) for i in range(40)] == [source.record(i)["meta"]["task"] for i in range(40)]


def test_no_held_out_caption_is_trained_on():
  captions = lambda split: {r["meta"]["caption"] for r in records("caption", 200, split)}
  assert not captions("train") & captions("test")


def test_the_tokenizer_knows_every_word_and_pictures_that_are_not_there_take_no_room(tmp_path):
  vlm_small.write(tmp_path, tuple(scenes_questions.texts()), width=16, depth=1, tower=1, heads=1)
  model = vlm.open_(tmp_path)
  policy = chat.make(str(tmp_path), columns=160, length=48)
  for task in TASKS:
    for r in records(task, 30):
      for text in (r["prompt"], r["meta"]["caption"], r["meta"]["lose"]):
        pieces = [model.chat.decode([i]) for i in model.chat.encode(text)]
        assert not [p for p in pieces if len(p) == 1 and p.isalpha() and p not in "aA"], text
  rows = [records("colour")[0], records("video_pair")[0]]
  media = np.zeros((2, 6, 24, 24, 3), np.uint8)
  for i, r in enumerate(rows):
    media[i, :len(r["media"])] = r["media"]
  made = policy.prepare({"prompt": [r["prompt"] for r in rows], "media": media, "meta": [r["meta"] for r in rows],
                         "shown": np.array([1, 6])})
  pads = (made["cond"]["tokens"] == model.chat.image).sum(1).tolist()
  assert pads == [9, 54] and made["cond"]["pixels"].shape[:2] == (2, 6) and made["win"].shape == (2, 48)
  with pytest.raises(ValueError, match="slices = 1 must be at least 2"):
    vlm.each(model, [vlm.row(model, chat.conversations(["a"], records("image_pair")[0]["media"][None])[0])], slices=1)


@pytest.mark.parametrize("options, message", [
  ({"tasks": ("color",)}, "tasks holds 'color', allowed are one or more of caption, colour.*nearest: 'colour'"),
  ({"tasks": ()}, "allowed are one or more of"),
  ({"weights": (1.0,)}, "weights = \\(1.0,\\) for 19 tasks"),
  ({"count": 0}, "count = 0"),
  ({"cells": 5}, "cells = 5 must divide size = 24"),
  ({"split": "dev"}, "split 'dev'"),
  ({"size": 8}, "size is 8, allowed is 12 or more"),
])
def test_refusals(options, message):
  with pytest.raises(UserError, match=message):
    make(**options)


def test_a_world_without_wrong_scenes_is_refused():
  with pytest.raises(UserError, match="200 scenes all show"):
    source = make("test", 50, tasks=("yes_no",), categories=("color",), shapes=("circle", "square"),
                  colors=("red", "blue"))
    for i in range(50):
      source.record(i)
