"""Pairs with planted defects: the better one is better in its dimension and no worse in any other, and shows it."""
import numpy as np
import pytest

from align.build import UserError
from align.datasets import scenes_flaws
from rewards import scenes

NAMES = scenes_flaws.DIMENSIONS


@pytest.fixture(scope="module")
def records():
  made = {name: scenes_flaws.make(dimension=name, count=60, chance=.5) for name in NAMES}
  return {name: [source.record(i) for i in range(60)] for name, source in made.items()}


def test_no_pair_is_worse_in_another_dimension(records):
  for name, found in records.items():
    graded = [r["meta"]["good"] for r in found]
    assert all(g["win"][name] and not g["lose"][name] for g in graded)
    assert all(g["win"][other] >= g["lose"][other] for g in graded for other in NAMES)
    for other in set(NAMES) - {name}:  # and all three kinds of pairs that are allowed occur
      assert len({(g["win"][other], g["lose"][other]) for g in graded}) == 3


def test_what_is_good_in_all_is_a_render_that_is_right_and_what_is_wrong_is_not(records):
  rows = [(r[side], r["meta"], r["meta"]["good"][side]) for found in records.values() for r in found
          for side in ("win", "lose")]
  right = np.array([scenes.clip.check(meta, seen) for (_, meta, _), seen in
                    zip(rows, scenes.clip.detect(np.stack([r[0] for r in rows])), strict=True)])
  whole, content, motion = (np.array([test(good) for _, _, good in rows]) for test in (
    lambda g: all(g.values()), lambda g: g["content"], lambda g: g["motion"]))
  assert right[whole].mean() > .97 and right[~content].mean() < .03 and right[~motion].mean() < .1


def test_a_record_is_a_function_of_its_number(records):
  again = scenes_flaws.make(dimension="motion", count=90, chance=.5).record(7)
  assert again["prompt"] == records["motion"][7]["prompt"] and (again["win"] == records["motion"][7]["win"]).all()
  assert again["win"].shape == (6, 16, 16, 3) and again["win"].dtype == np.uint8


@pytest.mark.parametrize("options,message", [
  ({"dimension": "move"}, "dimension = 'move' is not one of content, motion, looks; choose one of them"),
  ({"chance": 1.0}, "chance = 1.0, count = 10000; chance is 0 or more and below 1, count 1 or more"),
  ({"frames": 1}, "frames 1, allowed are 2 or more"),
])
def test_refusals(options, message):
  with pytest.raises(UserError, match=message):
    scenes_flaws.make(**options)
