"""Pairs by four constructions: closed forms on small tables, what ties and failures may not do, and what is counted."""
import numpy as np
import pytest

from rewards.judging.sift import sift

NAN = np.nan


def of_one(way, scores=None, won=None, **options):
  """(pairs of a single prompt, why it was dropped)."""
  size = len(scores or won)
  found = sift(way, [scores or [NAN] * size], [won or [NAN] * size], **options)
  assert all(p == 0 for p, *_ in found.chosen)
  return [tuple(pair) for _, *pair in found.chosen], [name for name, count in found.dropped.items() if count]


TABLE = [
  # the best by points of all lost its comparison, and the worst won it: neither is where it is looked for
  ("two_stage", [9, 2, 7, 4, 1, 5], [0, 1, 1, 0, 1, 0], [(2, 3)], []),
  ("point", [9, 2, 7, 4, 1, 5], [0, 1, 1, 0, 1, 0], [(0, 4)], []),
  ("two_stage", [10, 2, 9, 3], [1, 0, 1, 0], [(0, 1)], []),                  # 10 is more than 9
  ("two_stage", [9, 1, 7, 4], [.5, .5, NAN, NAN], [], ["undecided"]),        # ties and failures are nobody's
  ("two_stage", [9, 1, 7, 4], [.5, .5, 1, 0], [(2, 3)], []),
  ("two_stage", [NAN, 1, 7, 4], [1, 0, 1, 0], [(2, 1)], []),                 # a winner without a score
  ("two_stage", [NAN, 1, NAN, 4], [1, 0, 1, 0], [], ["unscored"]),
  ("two_stage", [3, 3, 2, 3], [1, 0, 1, 0], [], ["close"]),                  # no winner is above a loser
  ("two_stage", [5, 1, 5, 1], [1, 0, 1, 0], [(0, 3)], []),                   # of equals the first wins, the last loses
  ("point", [.2, NAN, .9, .1], None, [(2, 3)], []),
  ("point", [1, 1], None, [], ["close"]),
  ("point", [NAN, 1], None, [], ["unscored"]),
  ("point", [NAN, NAN], None, [], ["unscored"]),
  ("pair", None, [0, 1, .5, .5], [(1, 0)], []),
  ("pair", None, [.5, .5, NAN, NAN], [], ["undecided"]),
  ("pair", None, [.5, .5, .75, .25], [(2, 3)], []),                          # decided by one order alone
  ("random", [1, NAN], None, [], ["unscored"]),
]


@pytest.mark.parametrize("way, scores, won, pairs, dropped", TABLE)
def test_closed_forms(way, scores, won, pairs, dropped):
  assert of_one(way, scores, won) == (pairs, dropped)


def test_a_pair_differs_by_more_than_the_margin():
  assert of_one("point", [0, 0.5], margin=0.5) == ([], ["close"])
  assert of_one("point", [0, 0.5], margin=0.4) == ([(1, 0)], [])
  assert of_one("two_stage", [9, 8, 3, 2], [1, 0, 1, 0], margin=7) == ([], ["close"])
  assert of_one("two_stage", [9, 8, 3, 2], [1, 0, 1, 0], margin=6.9) == ([(0, 3)], [])


def test_more_pairs_are_the_next_best_and_the_next_worst():
  assert of_one("point", [5, 1, 3, NAN, 4, 2], pairs=3)[0] == [(0, 1), (4, 5)]
  assert of_one("point", [1, 1, 1, 1, 2, NAN], pairs=3)[0] == [(4, 3)]
  assert of_one("two_stage", [9, 2, 7, 4], [1, 0, 1, 0], pairs=2)[0] == [(0, 1), (2, 3)]
  for way in ("pair", "random"):
    found, _ = of_one(way, [1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0], pairs=3)
    assert sorted(i for pair in found for i in pair) == list(range(6))


def test_random_pairs_know_nothing_of_the_score():
  scores = np.tile([0.0, 1.0, 2.0, NAN], (4000, 1))
  found = sift("random", scores, scores, seed=1)
  assert len(found.chosen) == 4000 and not sum(found.dropped.values())
  tally = np.zeros((4, 4))
  for _, win, lose in found.chosen:
    tally[win, lose] += 1
  assert (tally[3] == 0).all() and (tally[:, 3] == 0).all() and (np.diag(tally) == 0).all()
  np.testing.assert_allclose(tally[:3, :3][~np.eye(3, dtype=bool)] / 4000, 1 / 6, atol=0.03)


def test_a_random_comparison_is_any_that_was_decided():
  won = np.tile([1, 0, .5, .5, 0, 1, NAN, NAN], (2000, 1))
  found = [pair for _, *pair in sift("pair", np.full_like(won, NAN), won).chosen]
  assert {*map(tuple, found)} == {(0, 1), (5, 4)} and 0.45 < np.mean([pair == [0, 1] for pair in found]) < 0.55


def test_random_choices_depend_on_the_seed_and_the_prompt_alone():
  scores = np.random.default_rng(0).normal(size=(50, 8))
  found = lambda s, seed: sift("random", s, s, seed=seed).chosen
  assert found(scores, 3) == found(scores, 3) != found(scores, 4)
  assert found(scores[:20], 3) == found(scores, 3)[:20]


def test_what_is_dropped_is_counted_by_prompt():
  scores, won = [[5, 1], [1, 5], [NAN, 1], [3, 1], [2, 1]], [[1, 0], [1, 0], [1, 0], [.5, .5], [NAN, NAN]]
  found = sift("two_stage", scores, won)
  assert found.chosen == [(0, 0, 1)] and found.dropped == {"undecided": 2, "unscored": 1, "close": 1}


@pytest.mark.parametrize("way, won, options, message", [
  ("twostage", [1, 0], {}, "way = 'twostage' is not one of two_stage, point, pair, random; choose one of them"),
  ("point", [1, 0], {"margin": -1}, "margin = -1 must be at least 0, in units of the score; 0 drops equal scores only"),
  ("pair", [1, 0, 1], {}, "are not those of neighbours.*an even number of samples"),
  ("pair", [1, .5, .5, 0], {}, r"shares \[1.0, 0.5, 0.5, 0.0\] are not those of neighbours.*scheme 'adjacent'"),
])
def test_refusals(way, won, options, message):
  with pytest.raises(ValueError, match=message):
    sift(way, [[1.0] * len(won)], [won], **options)
