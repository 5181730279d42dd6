"""GenEval's rules on made-up detections with known verdicts, at their boundaries, and on exact detections of Scenes."""
import json

import numpy as np
import pytest

from align import build
from align.datasets import geneval as prompts
from rewards import geneval, scenes
from rewards.core import CHUNKS

BLANK = np.full((1, 64, 64, 3), 0.5, np.float32)


def thing(name, x=0.0, y=0.0, color="red", score=0.99, size=10.0):
  """A square object whose centre is at x, y."""
  return {"class": name, "box": centred(x, y, size, size), "score": score, "color": color}


def centred(x, y, width, height):
  return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def spec(*include, exclude=(), tag="any"):
  return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def clause(name, count=1, **more):
  return {"class": name, "count": count, **more}


def judged(what, found, **options):
  """(correct, strict, soft)."""
  made = geneval.make(lambda pictures: [found] * len(pictures), **options)
  parts = made.score({}, {"meta": [what]}, BLANK, None).parts
  return tuple(float(parts[name][0]) for name in ("correct", "strict", "soft"))


DOG, CAT = thing("dog"), thing("cat", 40.0)
LEFT = spec(clause("cat"), clause("dog", position=["left of", 0]))
APPLES = spec(clause("apple", 3), exclude=[clause("apple", 4)], tag="counting")
TWO_RED = spec(clause("apple", 2, color="red"))
COLORED = spec(clause("dog", color="red"), clause("cat", color="blue"))


@pytest.mark.parametrize("what, found, expected", [
  # presence
  (spec(clause("dog")), [DOG], (1, 1, 1)),
  (spec(clause("dog")), [], (0, 0, 0)),
  (spec(clause("dog")), [CAT], (0, 0, 0)),
  (spec(clause("dog")), [DOG, CAT], (1, 1, 1)),                     # others may be there
  (spec(clause("dog")), [DOG, DOG], (1, 0, 0)),                     # GenEval allows more, exact counts do not
  (spec(clause("dog")), [DOG] * 5, (1, 0, -3)),                     # unclamped, as released
  (spec(clause("dog"), clause("cat")), [DOG], (0, 0, 0.5)),
  (spec(clause("dog"), clause("cat")), [DOG, CAT], (1, 1, 1)),
  # counts
  (APPLES, [thing("apple")] * 3, (1, 1, 1)),
  (APPLES, [thing("apple")] * 2, (0, 0, 2 / 3)),
  (APPLES, [thing("apple")] * 4, (0, 0, 2 / 3)),                    # excluded
  (APPLES, [thing("apple")] * 3 + [thing("apple", score=0.8)], (1, 1, 1)),
  # colours
  (TWO_RED, [thing("apple")] * 2, (1, 1, 1)),
  (TWO_RED, [thing("apple"), thing("apple", color="green")], (0, 0, 0.75)),
  (TWO_RED, [thing("apple", color="green")] * 2, (0, 0, 0.5)),
  (TWO_RED, [thing("apple")], (0, 0, 0.25)),                        # a wrong count adds a 0 for the colour
  (TWO_RED, [thing("apple")] * 2 + [thing("apple", color="green", score=0.5)], (1, 0, 0.25)),  # the most confident two
  (TWO_RED, [thing("apple", score=0.5)] * 2 + [thing("apple", color="green")], (0, 0, 0.25)),
  (COLORED, [DOG, thing("cat", 40.0, color="blue")], (1, 1, 1)),
  (COLORED, [thing("dog", color="blue"), CAT], (0, 0, 0.5)),        # swapped
  (COLORED, [DOG], (0, 0, 0.5)),
  (COLORED, [DOG, thing("cat", 40.0, color=None)], (0, 0, 0.75)),   # a colour that cannot be said
  # positions
  (LEFT, [DOG, CAT], (1, 1, 1)),
  (LEFT, [thing("dog", 80.0), CAT], (0, 0, 2 / 3)),                 # the released code would say 0.75
  (LEFT, [DOG], (0, 0, 1 / 3)),                                     # no target: of cat 0, of dog 1 and 0
  (LEFT, [CAT], (0, 0, 1 / 3)),                                     # of cat 1, of dog 0 and 0
  (LEFT, [DOG, CAT, thing("cat", -40.0, score=0.5)], (1, 0, 1 / 3)),  # of cats 0, since these are 2, of dog 1 and 0
  (LEFT, [DOG, CAT, thing("dog", 80.0, score=0.5)], (1, 0, 1 / 3)),
  # excluded classes that no clause includes
  (spec(clause("dog"), exclude=[clause("cat")]), [DOG], (1, 1, 1)),
  (spec(clause("dog"), exclude=[clause("cat")]), [DOG, CAT], (0, 0, 0.5)),
  (spec(exclude=[clause("cat", 2)]), [CAT], (1, 1, 1)),
  (spec(exclude=[clause("cat", 2)]), [CAT, CAT], (0, 0, 0)),
])
def test_verdicts(what, found, expected):
  np.testing.assert_allclose(judged(what, found), expected, atol=1e-6)


@pytest.mark.parametrize("tag, score, counts", [
  ("single_object", 0.3, False), ("single_object", np.nextafter(0.3, 1), True),  # above, not at
  ("counting", 0.9, False), ("counting", np.nextafter(0.9, 1), True), ("colors", 0.9, True),
])
def test_confidence_counts_above_the_threshold_of_the_task(tag, score, counts):
  assert judged(spec(clause("dog"), tag=tag), [thing("dog", score=score)]) == ((1, 1, 1) if counts else (0, 0, 0))


def test_sixteen_of_a_class_and_overlaps():
  many = [thing("dog")] * 20
  assert judged(spec(clause("dog", 16)), many)[:2] == (1, 1)
  assert judged(spec(clause("dog", 3)), many, most=3)[:2] == (1, 1)
  assert judged(spec(clause("dog", 20)), many)[:2] == (0, 0)
  near = [thing("dog"), thing("dog", 1.0, score=0.8), thing("cat", 1.0), thing("dog", 30.0, score=0.7)]
  assert judged(spec(clause("dog", 3)), near)[1] == 1                # published: nothing is suppressed
  assert judged(spec(clause("dog", 2)), near, overlap=0.5)[1] == 1
  assert geneval.iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1
  assert geneval.iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
  assert geneval.iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0
  assert judged(spec(clause("dog", 2)), near[:2], overlap=geneval.iou(near[0]["box"], near[1]["box"]))[1] == 0  # at it


@pytest.mark.parametrize("a, b, expected", [
  (centred(0, 0, 10, 10), centred(20, 0, 10, 10), {"left of"}),
  (centred(20, 0, 10, 10), centred(0, 0, 10, 10), {"right of"}),
  (centred(0, 0, 10, 10), centred(0, 20, 10, 10), {"above"}),      # y runs downwards
  (centred(0, 20, 10, 10), centred(0, 0, 10, 10), {"below"}),
  (centred(0, 0, 10, 10), centred(0, 0, 10, 10), set()),           # one place
  (centred(0, 0, 10, 10), centred(2, 0, 10, 10), set()),           # within the dead band, 0.1 (10 + 10)
  (centred(0, 0, 10, 10), centred(2.0009, 0, 10, 10), set()),      # clear of it by less than 1e-3 pixels
  (centred(0, 0, 0, 0), centred(9e-4, 0, 0, 0), set()),            # and so of points
  (centred(0, 0, 0, 0), centred(2e-3, 0, 0, 0), {"left of"}),
  (centred(0, 0, 10, 10), centred(4, 0, 10, 10), set()),           # (4 - 2) / 4 is not above 1/2
  (centred(0, 0, 10, 10), centred(4.01, 0, 10, 10), {"left of"}),
  (centred(0, 0, 10, 10), centred(40, 40, 10, 10), {"left of", "above"}),   # 38 / 56.6 each
  (centred(0, 0, 10, 10), centred(40, 18, 10, 10), {"left of"}),   # (18 - 2) / 43.9 is not above 1/2
  (centred(0, 0, 60, 10), centred(20, 0, 60, 10), set()),          # wide boxes: (20 - 12) / 20
  (centred(0, 0, 10, 60), centred(20, 0, 10, 60), {"left of"}),    # high ones do not matter
  (centred(0, 0, 10, 10), centred(10, 10, 40, 10), {"above"}),     # (10 - 5) / 14.1 left, (10 - 2) / 14.1 above
])
def test_positions(a, b, expected):
  assert geneval.relations(a, b) == expected
  opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
  assert geneval.relations(b, a) == {opposite[name] for name in expected}


def test_several_objects_must_all_stand_right():
  what = spec(clause("cat", 2), clause("dog", position=["left of", 0]))
  assert judged(what, [DOG, CAT, thing("cat", 60.0)])[0] == 1
  assert judged(what, [DOG, CAT, thing("cat", -60.0)]) == (0, 0, pytest.approx(2 / 3))


def test_the_order_of_detections_changes_nothing():
  found = [DOG, CAT, thing("cat", -60.0, score=0.6), thing("dog", 5.0, color="blue", score=0.4)]
  for what in (LEFT, COLORED, spec(clause("cat", 2))):
    assert judged(what, found) == judged(what, found[::-1])


@pytest.mark.parametrize("score", geneval.SCORES)
def test_the_total_is_the_score_that_was_chosen(score):
  made = geneval.make(lambda pictures: [[DOG, DOG], None, [DOG]], score=score)
  media = np.repeat(BLANK, 3, 0)
  media[2, 0, 0] = np.inf
  found = made.score({}, {"meta": [spec(clause("dog"))] * 3}, media, None)
  assert set(found.parts) == set(geneval.SCORES) and found.total.dtype == np.float32
  np.testing.assert_array_equal(found.total, found.parts[score])
  assert found.valid.tolist() == [True, False, False] and found.total[1:].tolist() == [0, 0]


def test_the_exact_detector_of_scenes_through_the_same_rules():
  images, _, specs = scenes.batch(0, 0, 120, size=32)
  strict = geneval.make("scenes", score="strict")
  rules = lambda c: set(c) <= geneval.CLAUSE and c["class"] != "object"
  known = [i for i, s in enumerate(specs) if all(map(rules, s["include"]))]
  tasks = {specs[i]["category"] for i in known}
  assert {"count", "two", "position"} <= tasks
  media, metas = images[known] / np.float32(255), [specs[i] for i in known]
  right = strict.score({}, {"meta": metas}, media, None)
  assert np.mean(right.parts["correct"]) > 0.97
  turned = metas[1:] + metas[:1]  # captions of other pictures
  wrong = strict.score({}, {"meta": turned}, media, None)
  ours = np.array([scenes.check(s, objects) for s, objects in zip(turned, scenes.detect(media), strict=True)])
  assert (wrong.parts["correct"] == ours).mean() > 0.9  # that rule is freer about which of several objects is meant
  assert np.mean(wrong.parts["correct"]) < 0.5


# --- the metadata -----------------------------------------------------------------------------------------------------


LINES = [
  {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
  {"tag": "counting", "include": [{"class": "bench", "count": 3}], "exclude": [{"class": "bench", "count": 4}],
   "prompt": "a photo of three benches"},
  {"tag": "position", "include": [{"class": "dog", "count": 1},
                                  {"class": "cat", "count": 1, "position": ["right of", 0]}],
   "prompt": "a photo of a cat right of a dog"},
  {"tag": "color_attr", "include": [{"class": "cow", "count": 1, "color": "red"},
                                    {"class": "cup", "count": 1, "color": "blue"}],
   "prompt": "a photo of a red cow and a blue cup"},
]


def written(folder, lines):
  file = folder / "evaluation_metadata.jsonl"
  file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
  return str(file)


def test_metadata_is_read_and_judged(tmp_path):
  source = build.build("align.datasets", {"name": "geneval", "path": written(tmp_path, LINES)})
  records = [source.record(i) for i in range(source.size)]
  assert [r["prompt"] for r in records] == [line["prompt"] for line in LINES]
  assert [r["meta"]["category"] for r in records] == [line["tag"] for line in LINES]
  assert records[1]["meta"]["exclude"] == LINES[1]["exclude"]
  found = [[thing("bench")], [thing("bench")] * 3, [thing("dog"), thing("cat", 40.0)], [thing("cow")]]
  made = geneval.make(lambda pictures: found)
  scores = made.score({}, {"meta": [r["meta"] for r in records]}, np.repeat(BLANK, 4, 0), None)
  assert scores.parts["correct"].tolist() == [1, 1, 1, 0] and scores.total.tolist() == [1, 1, 1, 0.5]


@pytest.mark.parametrize("line, message", [
  ({"tag": "x"}, "must have clauses under 'include' or 'exclude'"),
  ({"tag": "x", "include": [{"class": "dog"}]}, "must have 'class' and 'count', 1 or more, and may have nothing"),
  ({"tag": "x", "include": [{"class": "dog", "count": 0}]}, "must have 'class' and 'count', 1 or more"),
  ({"tag": "x", "include": [{"class": "dog", "count": 1, "place": "left"}]}, "nothing besides color, position"),
  ({"tag": "x", "exclude": [{"class": "dog", "count": 1, "color": "red"}]}, "may have nothing besides these"),
  ({"tag": "x", "include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "index of an earlier clause"),
  ({"tag": "x", "include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["over", 0]}]},
   "position must be one of left of, right of, above, below"),
  ({"include": [{"class": "dog", "count": 1}]}, "tag = None must be a text"),
])
def test_lines_that_are_none_of_genevals(tmp_path, line, message):
  with pytest.raises(build.UserError, match=message):
    prompts.make(written(tmp_path, [{**line, "prompt": "a dog"}]))


@pytest.mark.parametrize("call, message", [
  (lambda: geneval.make("scenes", score="exact"), "score = 'exact' is not one of soft, strict, correct"),
  (lambda: geneval.make("scenes", threshold=1.5), "threshold = 1.5 must be in 0 .. 1"),
  (lambda: geneval.make("scenes", most=0), "most = 0 must be at least 1"),
  (lambda: geneval.make("mask2former"), "detector = 'mask2former' must be 'module:function', or a function"),
  (lambda: geneval.make("scenes").score({}, {"meta": []}, BLANK, None), r"batch\['meta'\] has 0 specs for 1 samples"),
  (lambda: geneval.make("scenes").score({}, {"meta": [LEFT]}, BLANK[None], None), "but pictures are .B H W C. with"),
  (lambda: geneval.make(lambda p: []).score({}, {"meta": [LEFT]}, BLANK, None), "detector gave 0 results for 1 pict"),
  (lambda: judged(LEFT, [{"class": "dog"}]), "detector gave .* an object must have class, box"),
  (lambda: judged(COLORED, [{k: v for k, v in DOG.items() if k != "color"}]), "without a color, which clause"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_detector_looks_at_one_chunk_while_the_next_is_sampled():
  assert geneval.make(lambda pictures: []).chunks == CHUNKS and geneval.make("scenes").chunks == 1
