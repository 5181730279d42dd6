"""Formats as data: what a question shows and says, in which order, and which files of a user are refused."""
import json

import numpy as np
import pytest

from rewards.judging import formats, questions
from rewards.judging.answers import READ
from rewards.judging.formats import TABLE
from rewards.judging.questions import Asked, conversation

RNG = np.random.default_rng(0)
A, B = (RNG.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(2))
CLIP = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)


def asked(question, prompt="a red dog"):
  media = {"image": (A, B), "video": (CLIP, CLIP[::-1])}[question.medium][:question.media]
  return Asked(prompt, media, ("first", "second")[:len(questions.FIELDS[question.task, questions.two(question)]) - 1])


def shown(talk):
  return [part[part["type"]] for part in talk[0]["content"][:-1]]


def said(talk):
  assert talk[0]["content"][-1]["type"] == "text"
  return talk[0]["content"][-1]["text"]


@pytest.mark.parametrize("name", TABLE)
def test_every_question_can_be_asked(name):
  question = TABLE[name]
  talk = conversation(question, asked(question))
  assert len(talk) == 1 and talk[0]["role"] == "user" and "a red dog" in said(talk) and "{prompt}" not in said(talk)
  count = question.frames if question.as_images else 1
  assert len(shown(talk)) == question.media * count
  assert {part.dtype for part in shown(talk)} == {np.dtype(np.uint8)}
  if question.side:
    assert {part.shape[-3:] for part in shown(talk)} == {(512, 512, 3)}
  for sentence in question.sentences:
    assert sentence in said(talk)
  for bounds in (question.range, question.part_range):
    assert all(str(b) in said(talk) for b in bounds)
  assert question.name == name and question.parser in READ


def test_the_table_has_every_format():
  kinds = {(q.medium, q.task, q.kind) for q in TABLE.values() if q.version in ("v1", "v1.5", "2.0")}
  assert kinds == {(m, "generation", k) for m in ("image", "video") for k in ("pair", "point", "pair_score")} | {
    (m, "understanding", k) for m in ("image", "video") for k in ("pair", "point")}
  assert {q.version for q in TABLE.values()} == {"v1", "v1.5", "2.0", "think", "flex", "seedream"}
  ranges = {"image_generation_point_v1": (1, 5), "image_generation_point_sift": (1, 10),
            "image_understanding_point_v1": (0, 100), "video_understanding_point_v1": (1, 5),
            "video_generation_point_v1_llava": (1, 10), "video_generation_point_v2": (1, 5)}
  assert {name: TABLE[name].range for name in ranges} == ranges


def test_candidates_are_swapped():
  question = TABLE["image_generation_pair_v1_qwen"]
  straight, turned = (conversation(question, Asked("x", (A, B)), swap) for swap in (False, True))
  assert (shown(straight)[0] == A).all() and (shown(straight)[1] == B).all()
  assert (shown(turned)[0] == B).all() and (shown(turned)[1] == A).all() and said(straight) == said(turned)
  question = TABLE["image_understanding_pair_v1_qwen"]
  straight, turned = (said(conversation(question, Asked("x", (A,), ("no", "two")), swap)) for swap in (False, True))
  assert "Answer 1: [no]\nAnswer 2: [two]" in straight and "Answer 1: [two]\nAnswer 2: [no]" in turned


def test_fields_are_replaced_once():
  question = TABLE["image_understanding_pair_v1_qwen"]
  text = said(conversation(question, Asked("{first} {second} {x} \\1", (A,), ("{prompt}", "{second}"))))
  assert "[{first} {second} {x} \\1]\nAnswer 1: [{prompt}]\nAnswer 2: [{second}]" in text
  assert '{"prompt": "..."' in said(conversation(TABLE["image_generation_pair_flex"], Asked("x", (A, B))))


@pytest.mark.parametrize("total, spread, wanted", [
  (20, "left", [0, 2, 5, 7, 10, 12, 15, 17]), (20, "ends", [0, 2, 5, 8, 10, 13, 16, 19]),
  (8, "left", list(range(8))), (8, "ends", list(range(8))), (3, "left", [0, 0, 0, 1, 1, 1, 2, 2]),
  (1, "ends", [0] * 8)])
def test_frames(total, spread, wanted):
  question = TABLE["video_generation_point_sift"]._replace(spread=spread, side=None)
  assert questions.places(question, total).tolist() == wanted
  if total > 1:
    images = shown(conversation(question, Asked("x", (CLIP[:total],))))
    assert all((image == CLIP[i]).all() for image, i in zip(images, wanted, strict=True))


def test_a_video_that_is_shown_whole():
  talk = conversation(TABLE["video_generation_pair_v1_qwen"], Asked("x", (CLIP, CLIP[:3])))
  assert [part["type"] for part in talk[0]["content"]] == ["video", "video", "text"]
  assert (shown(talk)[0] == CLIP).all() and len(shown(talk)[1]) == 3
  eight = TABLE["video_generation_pair_v1_qwen"]._replace(frames=4, side=8)
  assert [video.shape for video in shown(conversation(eight, Asked("x", (CLIP, CLIP))))] == [(4, 8, 8, 3)] * 2


def test_a_video_of_a_known_rate_is_shown_at_two_frames_a_second():
  """Three seconds, as Qwen2-VL and Qwen2.5-VL see them, and the rate of what is shown."""
  clip, question = np.repeat(CLIP[:1], 48, 0), TABLE["video_generation_point_v1_qwen"]
  clip[:, 0, 0, 0] = np.arange(48)
  part = lambda **given: conversation(question._replace(**given), Asked("x", (clip,)))[0]["content"][0]
  assert part(rate=16.0)["fps"] == 2 and part(rate=16.0)["video"][:, 0, 0, 0].tolist() == [0, 8, 16, 24, 32, 40]
  assert len(part(rate=16.0, frames=8)["video"]) == 8 and part(rate=16.0, frames=8)["fps"] == 8 / 3
  assert len(part()["video"]) == 48 and "fps" not in part()


@pytest.mark.parametrize("name, one, message", [
  ("image_generation_pair_v1_qwen", Asked("x", (A,)), "1 media are given, 2 are needed"),
  ("image_generation_point_v2", Asked("x", (A, B)), "2 media are given, 1 are needed"),
  ("image_generation_point_v2", Asked("  ", (A,)), "prompt = '  ' is empty"),
  ("image_generation_point_v2", Asked(None, (A,)), "prompt = None is empty"),
  ("image_understanding_pair_v1_qwen", Asked("x", (A,), ("one",)), "but 2 texts are needed"),
  ("image_understanding_point_v1", Asked("x", (A,), (3,)), "but 1 texts are needed"),
  ("image_generation_point_v2", Asked("x", (A,), ("one",)), "but 0 texts are needed"),
  ("video_generation_point_v2", Asked("x", (CLIP[:0],)), "a video of 0 frames; at least two"),
  ("video_generation_point_v2", Asked("x", (CLIP[:1],)), "a video of 1 frame; at least two"),
  ("video_generation_point_v2", Asked("x", (A,)), r"\[frames H W 3\] uint8 .*question about images"),
  ("image_generation_point_v2", Asked("x", (CLIP,)), r"\[H W 3\] uint8 is needed.*question about videos"),
  ("image_generation_point_v2", Asked("x", (A / 255,)), "type float64, but"),
  ("image_generation_point_v2", Asked("x", (A[..., :1],)), r"shape \(6, 5, 1\)"),
])
def test_what_cannot_be_asked(name, one, message):
  with pytest.raises(ValueError, match=message) as error:
    conversation(TABLE[name], one)
  assert f"question {name!r}" in str(error.value)


def test_a_single_candidate_has_no_order():
  with pytest.raises(ValueError, match="swap = True, but a point question has one candidate"):
    conversation(TABLE["image_generation_point_v2"], Asked("x", (A,)), swap=True)


def test_an_unknown_question():
  with pytest.raises(ValueError, match="nearest: 'image_generation_pair_v1_qwen'"):
    formats.question("image_generation_pair_v1_gwen")


# --- files of a user --------------------------------------------------------------------------------------------------

OWN = {"name": "mine", "medium": "image", "task": "generation", "kind": "point", "version": "v1", "media": 1,
       "text": "Rate [{prompt}] from 0 to 9.", "parser": "score", "label": "Score", "range": [0, 9]}


def written(folder, data, name="mine.json"):
  (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
  return folder / name


def test_a_file_and_a_folder(tmp_path):
  file = written(tmp_path, OWN)
  found = formats.question("mine", file)
  assert found == questions.Question(**{**OWN, "range": (0, 9)})
  exact = {"name": "exact", "like": "image_generation_pair_v1_qwen", "text": "Which? {prompt}"}
  written(tmp_path, [exact], "other.json")
  like = formats.question("exact", tmp_path)
  assert like == TABLE["image_generation_pair_v1_qwen"]._replace(name="exact", text="Which? {prompt}")
  assert said(conversation(like, Asked("a {dog}", (A, B)))) == "Which? a {dog}"
  assert formats.question("image_generation_pair_v1_qwen", tmp_path) is TABLE["image_generation_pair_v1_qwen"]


def test_the_table_survives_its_own_file(tmp_path):
  file = written(tmp_path, [q._asdict() for q in TABLE.values()])
  assert questions.published(file, {}) == TABLE


@pytest.mark.parametrize("change, message", [
  ({"medium": "imagen"}, "medium = 'imagen' is not one of image, video; choose one of them .nearest: 'image'"),
  ({"task": "generate"}, "task = 'generate' is not one of generation, understanding.*nearest: 'generation'"),
  ({"kind": "points"}, "kind = 'points' is not one of pair, pair_score, point, yes.*nearest: 'point'"),
  ({"parser": "sentence"}, "parser = 'sentence' does not read a point question: score, elements, words do"),
  ({"media": 2}, "media = 2 must be 1"),
  ({"media": "1"}, "media = '1' must be a whole number"), ({"media": True}, "media = True must be a whole number"),
  ({"range": [9, 0]}, r"range = \[9, 0\] must be two numbers"), ({"range": ["0", "9"]}, "must be two numbers"),
  ({"range": 5}, "range = 5 must be a list"), ({"range": []}, r"range = \[\] is needed"),
  ({"part_range": [1]}, "part_range"), ({"label": ""}, "dimensions = .* must name one or more scores"),
  ({"dimensions": ["Style", "style"]}, "must differ"), ({"dimensions": "Style"}, "must be a list"),
  ({"begun": "{dimension}: "}, "begun = .* where, and only where, there is no label"),
  ({"text": "Rate it."}, "has no place {prompt}"), ({"text": "{prompt} {promt}"}, "has {promt}.*nearest: 'prompt'"),
  ({"text": None}, "text = None must be a text"), ({"frames": 8}, "shows images"), ({"side": 0}, "side = 0 must be at"),
  ({"spread": "righ"}, "spread = 'righ' is not one of"), ({"sentences": ["Yes", "No"]}, "sentences"),
  ({"sentence": []}, "there is no field 'sentence'.*nearest: 'sentences'"),
  ({"like": "image_generation_point_v9"}, "like: question = 'image_generation_point_v9' is not one of.*nearest"),
  ({"kind": "pair", "parser": "sentence", "media": 2, "sentences": ["A is", "A is better"]}, "none part of another"),
  ({"kind": "pair", "parser": "sentence", "media": 2}, r"sentences = \[\] must be 2 or 3 texts"),
])
def test_broken_questions(tmp_path, change, message):
  with pytest.raises(ValueError, match=message) as error:
    questions.published(written(tmp_path, [OWN, {**OWN, "name": "second", **change}]), TABLE)
  assert "mine.json, question 2" in str(error.value)


@pytest.mark.parametrize("data, message", [
  ("{", "is not JSON"), ("[]", r"found \[\]"), ("[3]", "an object with the fields"), ('"x"', "an object"),
  ([OWN, OWN], "name = 'mine' is there twice"),
  ({k: v for k, v in OWN.items() if k != "parser"}, "'parser' is missing")])
def test_broken_files(tmp_path, data, message):
  with pytest.raises(ValueError, match=message) as error:
    questions.published(written(tmp_path, data), TABLE)
  assert "mine.json" in str(error.value)


def test_no_file(tmp_path):
  for path in (tmp_path, tmp_path / "none.json"):
    with pytest.raises(ValueError, match="there is no such JSON file, nor a folder with any"):
      questions.published(path, TABLE)
