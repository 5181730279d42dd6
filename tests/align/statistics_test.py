"""Intervals: closed forms, scipy, and coverage on simulated data whose truth is known."""
import numpy as np
import pytest

from align import statistics


def clustered(rng, prompts, images, mean=0.6, spread=6.):
  """Prompts of Beta-distributed difficulty: images of one prompt are correlated."""
  p = rng.beta(mean * spread, (1 - mean) * spread, prompts)
  return rng.random((prompts, images)) < p[:, None]


def test_rates_counts_and_the_unweighted_overall():
  success = np.array([[1, 1], [1, 0], [0, 0]], bool)
  found = statistics.rates(success, ["one", "one", "two"])
  assert found["categories"]["one"]["successes"] == 3 and found["categories"]["one"]["count"] == 4
  assert found["categories"]["one"]["rate"] == 0.75 and found["categories"]["two"]["rate"] == 0.
  assert found["overall"]["rate"] == 0.375  # (3/4 + 0/2) / 2, not 3/6
  assert found["overall"]["successes"] == 3 and found["overall"]["count"] == 6
  assert found["categories"]["two"]["interval"] is None and found["overall"]["interval"] is None  # a single prompt


def test_invalid_samples_are_not_counted():
  success = np.array([[1, 1], [0, 0], [1, 0]], bool)
  valid = np.array([[1, 0], [1, 1], [1, 1]], bool)
  found = statistics.rates(success, ["a"] * 3, valid=valid)["categories"]["a"]
  assert (found["successes"], found["count"], found["rate"]) == (2, 5, 0.4)
  nothing = statistics.rates(success, ["a"] * 3, valid=np.zeros_like(valid))
  assert nothing["overall"]["rate"] is None and nothing["overall"]["interval"] is None


def test_the_same_seed_gives_the_same_interval():
  success = clustered(np.random.default_rng(0), 40, 4)
  category = ["a", "b"] * 20
  assert statistics.rates(success, category) == statistics.rates(success, category)
  assert statistics.rates(success, category) != statistics.rates(success, category, seed=1)


def test_width_is_the_analytic_one_for_independent_bernoulli():
  success = np.random.default_rng(0).random((2000, 1)) < 0.3
  found = statistics.rates(success, ["a"] * 2000, resamples=4000)["overall"]
  analytic = 2 * 1.96 * (found["rate"] * (1 - found["rate"]) / 2000) ** 0.5
  assert found["interval"][1] - found["interval"][0] == pytest.approx(analytic, rel=0.06)


def test_stratified_width_is_the_analytic_one():
  rng = np.random.default_rng(0)
  category = ["a"] * 1500 + ["b"] * 300
  success = rng.random((1800, 1)) < np.repeat([0.2, 0.5], [1500, 300])[:, None]
  found = statistics.rates(success, category, resamples=4000)
  parts = [entry["rate"] * (1 - entry["rate"]) / entry["count"] for entry in found["categories"].values()]
  analytic = 2 * 1.96 * (sum(parts) / 4) ** 0.5
  low, high = found["overall"]["interval"]
  assert high - low == pytest.approx(analytic, rel=0.06)


def test_copies_of_an_image_add_no_information():
  once = np.random.default_rng(0).random((100, 1)) < 0.5
  single, repeated = (statistics.rates(x, ["a"] * 100)["overall"]["interval"] for x in (once, np.repeat(once, 8, 1)))
  assert single == pytest.approx(repeated)


def test_coverage_on_clustered_data():
  rng = np.random.default_rng(0)
  category, inside, trials = ["a", "b"] * 40, 0, 400
  for trial in range(trials):
    found = statistics.rates(clustered(rng, 80, 4), category, seed=trial, resamples=500)["overall"]
    inside += found["interval"][0] <= 0.6 <= found["interval"][1]
  # 0.95 within three binomial errors below, and the small-sample loss of a percentile bootstrap
  assert 0.90 < inside / trials < 0.985


def test_coverage_of_paired_differences():
  rng = np.random.default_rng(1)
  inside, trials = 0, 400
  for trial in range(trials):
    p = rng.uniform(0.1, 0.7, (60, 1))
    a, b = rng.random((60, 4)) < p + 0.2, rng.random((60, 4)) < p
    found = statistics.paired(a, b, ["a"] * 60, seed=trial, resamples=500)["overall"]
    inside += found["interval"][0] <= 0.2 <= found["interval"][1]
  assert 0.90 < inside / trials < 0.985


def test_pairing_removes_what_prompts_share():
  rng = np.random.default_rng(0)
  level = rng.normal(size=(200, 1)) * 10
  a, b = level + 1 + rng.normal(size=(200, 4)) * 0.1, level + rng.normal(size=(200, 4)) * 0.1
  found = statistics.paired(a, b, ["a", "b"] * 100)["overall"]
  assert found["difference"] == pytest.approx(1, abs=0.02) and found["prompts"] == 200
  assert found["interval"][1] - found["interval"][0] < 0.05
  back = statistics.paired(b, a, ["a", "b"] * 100)["overall"]
  assert back["difference"] == pytest.approx(-found["difference"])


def test_a_prompt_without_a_valid_pair_is_left_out():
  a, b = np.array([[1., 0.], [1., 1.], [0., 1.]]), np.zeros((3, 2))
  valid = np.array([[0, 0], [1, 1], [1, 0]], bool)
  found = statistics.paired(a, b, ["a"] * 3, valid=valid)["overall"]
  assert found["prompts"] == 2 and found["difference"] == 0.5


def test_paired_agrees_with_the_difference_of_rates():
  rng = np.random.default_rng(0)
  a, b, category = clustered(rng, 60, 4), clustered(rng, 60, 4), ["a", "b", "c"] * 20
  gain = statistics.paired(a, b, category)
  rates = [statistics.rates(x, category) for x in (a, b)]
  assert gain["overall"]["difference"] == pytest.approx(rates[0]["overall"]["rate"] - rates[1]["overall"]["rate"])


def test_ratio_uses_prompts_with_values_in_both_arms():
  found = statistics.ratio([1., 2., np.nan, 9.], [2., 4., 5., np.nan])
  assert found["value"] == pytest.approx(0.5) and found["prompts"] == 2
  assert found["interval"] == pytest.approx([0.5, 0.5])


def test_ratio_width_is_that_of_the_delta_method():
  rng = np.random.default_rng(0)
  a, b = rng.normal(8, 1, 1000), rng.normal(10, 1, 1000)
  found = statistics.ratio(a, b, resamples=4000)
  r = a.mean() / b.mean()
  analytic = 2 * 1.96 * (a - r * b).std() / b.mean() / 1000 ** 0.5
  assert found["interval"][1] - found["interval"][0] == pytest.approx(analytic, rel=0.06)


def test_ratio_to_nothing_is_none():
  assert statistics.ratio([1., 2.], [0., 0.]) == {"value": None, "interval": None, "prompts": 2}
  assert statistics.ratio([np.nan], [1.])["value"] is None


def test_mean_ignores_prompts_without_a_value():
  found = statistics.mean([1., np.nan, 3.])
  assert found["value"] == 2. and found["prompts"] == 2


@pytest.mark.parametrize("call, words", [
  (lambda: statistics.rates(np.ones((2, 3)), ["a"]), "success: shape"),
  (lambda: statistics.rates(np.ones((2, 3)), ["a", "a"], valid=np.ones((2, 2))), "valid: shape"),
  (lambda: statistics.rates(np.full((1, 1), np.nan), ["a"]), "mark failed ones"),
  (lambda: statistics.paired(np.ones((2, 3)), np.ones((2, 2)), ["a", "a"]), "b: shape"),
  (lambda: statistics.ratio(np.ones(2), np.ones(3)), "one value a prompt"),
])
def test_refusals_say_what_to_do(call, words):
  with pytest.raises(ValueError, match=words):
    call()
