"""Win rates of functions that compare: closed forms, no preference for a place, subsets of comparisons."""
import numpy as np
import pytest

from rewards import pairwise
from rewards.core import CHUNKS
from rewards.judging import judge

LEVELS = np.array([10, 60, 200, 120, 30, 30, 90], np.float32) / 255
MEDIA = np.broadcast_to(LEVELS[:, None, None, None], (7, 4, 4, 1)).copy()
BATCH = {"prompt": list("aaaabbb"), "prompt_id": [0, 0, 0, 0, 1, 1, 1], "sample_id": [0, 1, 2, 3, 0, 1, 2]}


def gap(first, second):
  assert first.dtype == second.dtype == np.uint8 and first.shape[-1] == 3
  mean = lambda media: media.reshape(len(media), -1).mean(-1)
  return mean(first) - mean(second)


def hard(first, second, prompts):
  """Which is brighter."""
  return np.where(gap(first, second) == 0, 0.5, gap(first, second) > 0)


def brighter(bias=0.0, calls=None):
  """How much brighter the first is; with a preference for what comes first."""
  def compare(first, second, prompts):
    if calls is not None:
      calls.append(prompts)
    return 1 / (1 + np.exp(-gap(first, second) / 50)) + bias
  return compare


def score(compare, batch=BATCH, media=MEDIA, **options):
  return pairwise.make(compare, **options).score({}, batch, media, None)


def test_win_rates_are_the_share_of_others_that_are_beaten():
  found = score(hard)
  np.testing.assert_allclose(found.total, [0, 1 / 3, 1, 2 / 3, 1 / 4, 1 / 4, 1])  # a tie counts half
  np.testing.assert_allclose(found.total[:4].mean(), 0.5)
  assert found.valid.all() and (found.parts["first"] == 0.5).all() and (found.parts["flips"] == 0).all()


def test_one_chunk_is_compared_while_the_next_is_sampled():
  assert pairwise.make(hard).chunks == CHUNKS


def test_rates_of_probabilities_against_a_loop():
  found, p = score(brighter()).total, lambda i, j: 1 / (1 + np.exp(-(LEVELS[i] - LEVELS[j]) * 255 / 50))
  for rows in (range(4), range(4, 7)):
    np.testing.assert_allclose(found[rows], [np.mean([p(i, j) for j in rows if j != i]) for i in rows], atol=1e-6)


def test_a_preference_for_the_first_place_cancels_and_is_reported():
  plain, biased = score(brighter()), score(brighter(0.01))  # small, so that nothing is cut at 1
  np.testing.assert_allclose(biased.total, plain.total, atol=1e-6)
  np.testing.assert_allclose(biased.parts["first"], plain.parts["first"] + 0.01, atol=1e-6)
  always = score(lambda first, second, prompts: np.ones(len(first)))
  assert (always.total == 0.5).all() and (always.parts["first"] == 1).all() and (always.parts["flips"] == 1).all()


@pytest.mark.parametrize("scheme, expected, asked", [
  ("all", [0, 1 / 3, 1, 2 / 3, 1 / 4, 1 / 4, 1], 2 * (6 + 3)),
  ("ring", [0, 0.5, 1, 0.5, 1 / 4, 1 / 4, 1], 2 * (4 + 3)),  # of three all are compared
  ("reference", [0, 1, 1, 1, 0, 0, 1], 2 * 7),
])
def test_subsets_of_comparisons(scheme, expected, asked):
  calls = []
  batch = {**BATCH, "reference": np.full((7, 4, 4, 1), 50, np.uint8)}
  counted = lambda first, second, prompts: calls.append(len(prompts)) or hard(first, second, prompts)
  np.testing.assert_allclose(score(counted, batch, scheme=scheme).total, expected)
  assert sum(calls) == asked


def test_comparisons_of_every_scheme():
  assert judge.comparisons(4, "ring") == [(0, 1), (1, 2), (2, 3), (3, 0)]
  assert judge.comparisons(2, "ring") == judge.comparisons(2, "all") == [(0, 1)]
  assert judge.comparisons(1, "ring") == [] and judge.comparisons(4, "adjacent") == [(0, 1), (2, 3)]
  assert {tuple(sorted(pair)) for pair in judge.comparisons(3, "ring")} == set(judge.comparisons(3, "all"))


def test_prompts_go_with_their_pairs_in_calls_of_any_size():
  calls = []
  whole, cut = score(brighter()), score(brighter(calls=calls), at_once=4)
  np.testing.assert_array_equal(whole.total, cut.total)
  assert sum(calls, []) == ["a"] * 12 + ["b"] * 6 and max(map(len, calls)) == 4


def test_order_of_samples_and_of_prompts_only_moves_the_rates():
  order = [2, 0, 3, 1, 6, 4, 5]
  plain = score(brighter()).total
  np.testing.assert_allclose(score(brighter(), media=MEDIA[order]).total, plain[order], atol=1e-6)


def test_what_cannot_be_compared_counts_nowhere():
  def blind(first, second, prompts):  # cannot see the brightest where it comes second
    return np.where(second.reshape(len(second), -1).max(-1) >= 199, np.nan, hard(first, second, prompts))
  found = score(blind)
  assert found.valid.tolist() == [True, True, False, True, True, True, True]
  np.testing.assert_allclose(found.total, [0, 0.5, 0, 1, 1 / 4, 1 / 4, 1])
  media = MEDIA.copy()
  media[2, 0, 0] = np.nan
  again = score(hard, media=media)
  assert again.valid.tolist() == found.valid.tolist()
  np.testing.assert_allclose(again.total, found.total)


def test_clips_and_copies():
  clips = np.repeat(MEDIA[:, None], 3, 1)
  np.testing.assert_array_equal(score(hard, media=clips).total, score(hard).total)
  more = {name: [*entries, entries[-1]] for name, entries in BATCH.items()}
  filled = score(hard, more, np.concatenate([MEDIA, MEDIA[-1:]])).total  # a batch filled up with its last sample
  np.testing.assert_allclose(filled, [*score(hard).total, filled[6]])


@pytest.mark.parametrize("call, message", [
  (lambda: pairwise.make(hard, "rings"), "scheme = 'rings' is not one of all, ring, adja.*nearest: 'ring'"),
  (lambda: pairwise.make(hard, at_once=0), "at_once = 0 must be at least 1"),
  (lambda: pairwise.make("judge"), "compare = 'judge' must be 'module:function'"),
  (lambda: score(hard, {**BATCH, "sample_id": [0] * 7}), "compares the samples of a prompt, but prompts have 1"),
  (lambda: score(hard, {**BATCH, "sample_id": [1, 2, 3, 0, 1, 2, 3]}), "samples of a prompt must come together"),
  (lambda: score(hard, scheme="reference"), "batch entry 'reference' is missing"),
  (lambda: score(lambda a, b, p: np.full(len(a), 2.0)), "one probability in 0 .. 1 each, or NaN, mend it"),
  (lambda: score(lambda a, b, p: np.zeros(3)), "compare gave .* for 18 pairs"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
