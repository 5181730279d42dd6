"""Labelled pictures become questions whose answers are true of them, and can be read as judges are read."""
import random
import re

import numpy as np
import pytest

from align import data
from align.build import UserError
from align.datasets import pairs, scenes_labels, scenes_questions
from align.policies import chat
from configs import judge_scenes
from diffusion import vlm
from rewards import scenes
from rewards.judging import answers, formats
from rewards.scenes import caption, combos

KNOWN = formats.known()


def written(place, made):
  """Pairs of renders: one that shows its caption and another scene, each twice."""
  media, texts, specs = made
  rows = [pairs.pair(text, win, lose, meta=spec, prompt_id=i) for i, (text, win, lose, spec) in enumerate(
    zip(texts, media, np.roll(media, 1, 0), specs, strict=True)) for _ in range(2)]
  pairs.write(place, rows)
  return str(place)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """Pictures of 16 pixels."""
  return written(tmp_path_factory.mktemp("labels"), scenes.batch(3, 0, 64))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Clips of six frames of 16 pixels, in which one thing moves."""
  return written(tmp_path_factory.mktemp("clips"), moved(24))


def moved(count, seed=3):
  return scenes.clip.batch(seed, 0, count, "train", 16, 6, scenes.make_world(most=1))


@pytest.fixture(scope="module", params=[("image", 0.0), ("image", 1.0), ("video", 0.0)],
                ids=["collected", "rendered", "clips"])
def source(request, path, clips):
  """(medium, where its labels are, share of renders)."""
  medium, rendered = request.param
  return medium, path if medium == "image" else clips, rendered


def records(path, count=60, **options):
  source = scenes_labels.make(path, count, **options)
  return [source.record(i) for i in range(count)]


def test_answers_are_true_and_read_as_such(source):
  medium, place, rendered = source
  found = records(place, rendered=rendered)
  assert {r["meta"]["task"] for r in found} == {f"{medium}_pair", f"{medium}_point"}
  frames = 1 if medium == "image" else scenes_questions.FRAMES
  for row in found:
    question, meta = KNOWN[row["meta"]["question"]], row["meta"]
    assert answers.parse(question, meta["win"]).value == meta["truth"] != answers.parse(question, meta["lose"]).value
    assert row["shown"] == frames * (1 + ("pair" in meta["task"])) and row["media"].shape == (2 * frames, 32, 32, 3)
    for text, picture in zip(re.split("\n.* 2:", meta["win"]), row["media"][::frames], strict=False):
      said, score = re.findall(": (yes|no)", text), int(re.search("[Ss]core: ([1-5])", text)[1])
      assert said and (score == 5) == ("no" not in said) and picture.any()


def test_pairs_are_often_equal_and_then_neither_is_preferred(source):
  medium, place, rendered = source
  found = [row["meta"] for row in records(place, 300, rendered=rendered) if row["meta"]["task"] == f"{medium}_pair"]
  scores = np.array([[int(s) for s in re.findall("Score: ([1-5])", meta["win"])] for meta in found])
  first, equal = np.array([meta["truth"] for meta in found]), scores[:, 0] == scores[:, 1]
  assert 0.2 < equal.mean() < 0.6 and 0.3 < first[equal].mean() < 0.7
  np.testing.assert_array_equal(first[~equal], (scores[:, 0] > scores[:, 1])[~equal])


def test_kinds_are_tasks_and_known_before_a_record_is_made(source):
  medium, place, rendered = source
  plain = scenes_questions.make(tasks=("video_pair", "colour"), count=50)
  made = scenes_labels.make(place, 50, data=plain, share=0.6, rendered=rendered)
  kinds = [made.kind(i) for i in range(50)]
  assert kinds == [made.record(i)["meta"]["task"] for i in range(50)]
  assert {f"{medium}_pair", f"{medium}_point", "colour"} <= set(kinds)
  assert scenes_labels.make(place, data=plain._replace(kind=None)).kind is None


def test_renders_are_of_a_training_combination_a_near_one_and_any_of_its_category():
  world, rng = scenes.make_world(size=16), random.Random(0)
  held = {caption.caption(combo, random.Random(wording))[0] for kind in scenes.CATEGORIES
          for combo in combos.split(kind, "test", world) for wording in range(20)}
  levels = []
  for _ in range(60):
    text, labels = scenes_labels.drawn(rng, world)
    assert text not in held and len(labels) == 4
    levels.append([level for *_, level in labels])
  levels = np.array(levels)
  assert (levels[:, :2] == 5).all() and 5 > levels[:, 2].mean() > levels[:, 3].mean()  # what is near keeps more of it
  own = combos.split("attribution", "train", world)[0]
  near = [scenes_labels.shared(own, c) for c in combos.split("attribution", "train", world)]
  assert near[0] == max(near) == 8


def test_all_that_a_picture_shows_is_said_from_left_to_right_with_places():
  thing = lambda color, shape, x, y: {"color": color, "shape": shape, "x": x, "y": y, "score": 1.0}
  objects = [thing("cyan", "circle", 0.8, 0.5), thing("red", "square", 0.2, 0.3), thing("blue", "junk", 0.5, 0.55)]
  assert scenes_labels.pictured(objects) == "a red square top left and a blue object middle and a cyan circle right"
  assert scenes_labels.pictured([]) == "nothing"
  assert scenes_labels.pictured(objects * 3).count(" and ") == scenes_labels.NAMED - 1
  media, _, specs = scenes.batch(4, 0, 60)
  same = [scenes_labels.pictured(found) == scenes_labels.pictured(spec["objects"])
          for found, spec in zip(scenes.detect(media), specs, strict=True)]
  assert np.mean(same) > 0.95


def test_what_moves_is_said_as_it_is():
  media, _, specs = moved(40, seed=5)
  for clip, spec in zip(media, specs, strict=True):
    (_, said, score), = scenes_labels.labelled(spec, [clip])
    assert said.startswith(f"{scenes_questions.told(spec)}. a ") and score == 5
  right = next(i for i, spec in enumerate(specs) if spec["motion"][0]["direction"] == "right")
  thing = specs[right]["motion"][0]
  name = f"a {thing['color']} {thing['class']}"
  back, still = media[right][::-1], np.repeat(media[right][:1], 6, 0)
  backwards, resting, none = scenes_labels.labelled(specs[right], [back, still, np.full_like(back, media[0, 0, 0, 0])])
  asked = lambda holds: f"{name}: {holds}. moving right: no. moving right {thing['speed']}: no"
  assert backwards[1:] == (f"{name} moving left {thing['speed']}. {asked('yes')}", 2)
  assert resting[1:] == (f"{name}. {asked('yes')}", 2) and none[1:] == (f"nothing. {asked('no')}", 1)


def test_what_moves_in_a_shape_that_is_seen_too_seldom_is_an_object():
  thing = lambda t, shape, color: {"shape": shape, "color": color, "x": 0.2 + 0.08 * t, "y": 0.5}
  frames = [[thing(t, ("circle", "junk")[t % 2], "red"), *[thing(t, "square", "blue")] * (t < 4)] for t in range(6)]
  assert scenes_labels.moving(frames) == "a red object moving right quickly"  # and of the square there is too little
  assert scenes_labels.moving([one[:1] for one in frames[::2]]) == "a red circle moving right quickly"


def test_elements_are_what_the_caption_asks_for():
  include = [{"class": "circle", "count": 1, "color": "orange"}, {"class": "triangle", "count": 3, "place": "top left"},
             {"class": "square", "count": 1, "position": ["above", 0]}, {"class": "object", "count": 1, "color": "red"}]
  assert [scenes_labels.element(clause, include) for clause in include] == [
    "an orange circle", "three triangles top left", "a square above a circle", "a red object"]


def test_scores_of_a_render_and_of_an_empty_picture():
  media, _, specs = scenes.batch(1, 0, 30, size=32)
  for picture, spec in zip(media, specs, strict=True):
    shown, empty = scenes_labels.labelled(spec, [picture, np.full_like(picture, picture[0, 0])])
    assert shown[2] == 5 and ": no" not in shown[1]
    assert empty[2] == 1 and ": yes" not in empty[1] and empty[1].startswith("nothing. ")


def test_a_count_that_is_exceeded_does_not_hold():
  media, _, specs = scenes.batch(2, 0, 60, size=32, categories=("count",))
  three = next(i for i, s in enumerate(specs) if s["include"][0]["count"] == 3 and "color" not in s["include"][0])
  shape = specs[three]["include"][0]["class"]
  asked = {"category": "count", "include": [{"class": shape, "count": 2}], "exclude": [{"class": shape, "count": 3}]}
  found, = scenes.detect(media[three:three + 1])
  seen = lambda spec: (scenes_labels.seen(spec, found)[0].split(". ")[1], scenes_labels.seen(spec, found)[1])
  assert seen(asked) == (f"two {shape}s: no", 3)
  assert seen({**asked, "exclude": []}) == (f"two {shape}s: yes", 5)


def test_records_are_a_function_of_their_number(path):
  first, again, other = records(path, 8), records(path, 8), records(path, 8, seed=1)
  assert [r["meta"]["win"] for r in first] == [r["meta"]["win"] for r in again] != [r["meta"]["win"] for r in other]


@pytest.mark.parametrize("tasks, room", [(("video_pair", "colour"), 6), (("colour",), 2)])
def test_a_mixture_has_room_for_the_most_pictures_of_both(path, tasks, room):
  plain = scenes_questions.make(tasks=tasks, count=50)
  source = scenes_labels.make(path, 50, data=plain, share=0.4)
  batch = data.batches(source, 50, shuffle=False).next()
  assert batch["media"].shape == (50, room, 32, 32, 3)
  share = np.mean([m["task"].startswith("image_p") for m in batch["meta"]])
  assert 0.2 < share < 0.6
  row = next(i for i in range(50) if batch["meta"][i]["task"] == "colour")
  assert batch["prompt"][row] == plain.record(row)["prompt"]


def test_labels_of_clips_are_mixed_with_those_of_pictures(path, clips):
  inner = scenes_labels.make(path, 400, data=scenes_questions.make(tasks=("video_pair", "colour")), share=0.5)
  mixed = scenes_labels.make(clips, 400, data=inner, share=0.5)
  kinds = [mixed.kind(i) for i in range(400)]
  share = lambda *names: np.mean([kind in names for kind in kinds])
  assert abs(share("image_pair", "image_point") - 0.25) < 0.07 and abs(share("colour") - 0.125) < 0.05  # independent


def test_answers_are_words_that_the_shipped_judge_knows(source):
  talk = vlm.open_("judge").chat
  for row in records(source[1], rendered=source[2]):
    words = row["meta"]["win"].replace("\n", " ").split()
    assert len(talk.encode(row["meta"]["win"])) <= 2 * len(words)  # in bytes it would be five times as long


@pytest.mark.parametrize("options, message", [
  ({"share": 0.0}, "share = 0.0, size = 32 beside data whose media are"),
  ({"data": ("colour",), "size": 16}, r"size = 16 beside data whose media are \(1, 32, 32, 3\); share must be above 0 "
                                      "and at most 1, and media pictures of that size"),
])
def test_refusals(path, options, message):
  given = {**options, **({"data": scenes_questions.make(tasks=options["data"])} if "data" in options else {})}
  with pytest.raises(UserError, match=message):
    scenes_labels.make(path, **given)


def test_clips_have_no_renders(clips):
  with pytest.raises(UserError, match="rendered = 0.3 must be a share, 0 to 1, of pictures, and 0 of clips and of "
                                      "brief labels; these are videos, brief = False"):
    scenes_labels.make(clips, rendered=0.3)


@pytest.fixture(scope="module")
def qualities(tmp_path_factory):
  """Collections of two generators for the same prompts: one right half of the time, one that sees but noise."""
  media, texts, specs = scenes.batch(3, 0, 64)
  place, noise = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
  pairs.write(place, [pairs.pair(text, *noise.integers(0, 255, (2, 16, 16, 3), np.uint8), meta=spec, prompt_id=i)
                      for i, (text, spec) in enumerate(zip(texts, specs, strict=True))])
  return written(tmp_path_factory.mktemp("fine"), (media, texts, specs)), str(place)


def test_brief_labels_are_as_those_of_renders_and_pairs_differ(qualities):
  plain = scenes_questions.make(tasks=("image_pair",), count=50)
  source = scenes_labels.make(qualities, 300, data=plain, share=0.8, brief=True, called="sample")
  found = [source.record(i) for i in range(300)]
  assert [source.kind(i) for i in range(300)] == [row["meta"]["task"] for row in found]
  kinds = {kind: [r["meta"] for r in found if r["meta"]["task"] == kind] for kind in ("sample_pair", "sample_point")}
  assert all(len(metas) > 80 for metas in kinds.values()) and {r["meta"]["task"] for r in found} > {*kinds}
  line = r"((a|an) \w+ \w+( and (a|an) \w+ \w+)*|nothing)"
  for meta in kinds["sample_pair"]:
    said = re.fullmatch(rf"Image 1: {line}. Score: ([135])\nImage 2: {line}. Score: ([135])\nImage ([12]) is better",
                        meta["win"])
    first, second, better = int(said[5]), int(said[10]), int(said[11])
    assert first != second and better == 1 + (second > first) and meta["truth"] == (first > second)
    assert meta["question"] == "scenes_image_pair"
  scores = [meta["truth"] for meta in kinds["sample_point"]]
  assert all(re.fullmatch(rf"{line}\nFinal Score: [135]", meta["win"]) for meta in kinds["sample_point"])
  assert {1, 3, 5} == {*scores} and 0.4 < np.mean([meta["truth"] for meta in kinds["sample_pair"]]) < 0.6


def test_a_brief_score_says_whether_all_or_half_of_a_caption_holds():
  media, _, specs = scenes.batch(3, 0, 60)
  for spec, objects in zip(specs, scenes.detect(media), strict=True):
    assert scenes_labels.seen_briefly(spec, objects)[1] == 5
    assert scenes_labels.seen_briefly(spec, []) == ("nothing", 1)
  thing = lambda color, shape, x: {"color": color, "shape": shape, "x": x, "y": 0.5, "r": 0.1, "score": 1.0}
  two = {"category": "attribution", "exclude": [], "include": [
    {"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}]}
  circle, square = thing("red", "circle", 0.8), thing("blue", "square", 0.2)
  assert scenes_labels.seen_briefly(two, [circle, square]) == ("a blue square and a red circle", 5)
  assert scenes_labels.seen_briefly(two, [circle, thing("green", "square", 0.2)])[1] == 3
  assert scenes_labels.seen_briefly(two, [thing("green", "triangle", 0.2)])[1] == 1
  clip, _, (spec, *_) = moved(1)
  said, score = scenes_labels.seen_briefly(spec, scenes.clip.detect(clip)[0])
  assert score == 5 and "moving" in said


def test_the_longest_brief_answer_has_room():
  thing = {"color": "purple", "shape": "junk", "x": 0.5, "y": 0.5, "score": 1.0}
  spec = {"category": "single", "exclude": [], "include": [{"class": "circle", "count": 1, "color": "red"}]}
  one = (np.zeros((16, 16, 3), np.uint8), *scenes_labels.seen_briefly(spec, [thing] * 6))
  said = scenes_labels.item("image", "pair", random.Random(0), "a caption", [one, one], 32).answer
  assert said.count(" and ") == 2 * (scenes_labels.NAMED - 1)
  columns = len(chat.turns(vlm.open_("judge").chat, [said]))
  assert columns <= judge_scenes.TASKS["image_generation"][2] < columns + 3


def test_what_cannot_be_compared_is_refused(path, clips, qualities, tmp_path):
  other = written(tmp_path / "other", scenes.batch(9, 0, 8))
  with pytest.raises(UserError, match=r"its prompt 3 is .* with media \(16, 16, 3\), but in .* the same `data`"):
    scenes_labels.make((path, other), brief=True)
  larger = written(tmp_path / "larger", scenes.batch(3, 0, 8, size=32))
  with pytest.raises(UserError, match=r"with media \(32, 32, 3\), but in the paths before it is .* with \(16, 16, 3\)"):
    scenes_labels.make((path, larger))
  media, texts, specs = scenes.batch(3, 0, 4)
  same = str(tmp_path / "same")
  pairs.write(tmp_path / "same", [pairs.pair(text, one, one, meta=spec, prompt_id=i)
                                  for i, (text, one, spec) in enumerate(zip(texts, media, specs, strict=True))])
  with pytest.raises(UserError, match="of no prompt two pictures have different scores, .* generators that differ"):
    scenes_labels.make(same, brief=True)
  assert {row["meta"]["task"] for row in records(same)} == {"image_pair", "image_point"}  # equal ones are labels, too
  with pytest.raises(UserError, match="rendered = 0.5 must be .* of brief labels; these are images, brief = True"):
    scenes_labels.make(path, brief=True, rendered=0.5)
