"""Advantages: closed forms, exact zeros, masks."""
import jax.numpy as jnp
import numpy as np
import pytest
from small import policy, reward

from align import advantage
from align.algorithms import grpo
from rewards.core import Scores

R = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_is_the_z_score_of_numpy(ddof):
  expected = (R - R.mean(-1, keepdims=True)) / (R.std(-1, ddof=ddof, keepdims=True) + 1e-4)
  np.testing.assert_allclose(advantage.group(R, ddof=ddof), expected, atol=1e-5)


def test_global_divides_by_the_std_of_all_and_none_by_one():
  centred = R - R.mean(-1, keepdims=True)
  np.testing.assert_allclose(advantage.group(R, mode="global"), centred / (R.std() + 1e-4), atol=1e-5)
  np.testing.assert_allclose(advantage.group(R, mode="none"), centred, atol=1e-6)


@pytest.mark.parametrize("mode", advantage.MODES)
def test_equal_rewards_give_exactly_zero(mode):
  r = np.array([[0.1] * 7, [1 / 3] * 7, list(range(7))], np.float32)
  out = np.asarray(advantage.group(r, mode=mode, delta=1e-8))
  assert (out[:2] == 0).all() and (out[2] != 0).sum() == 6
  assert (np.asarray(advantage.gdpo({"a": r[:2], "b": 2 * r[:2]}, delta=1e-8)) == 0).all()


def test_masked_samples_are_zero_and_change_nothing():
  valid = np.ones(R.shape, bool)
  valid[:, 2] = False
  rest = np.delete(R, 2, axis=1)
  for mode in advantage.MODES:
    out = np.asarray(advantage.group(np.where(valid, R, np.nan), valid, mode=mode))
    np.testing.assert_allclose(np.delete(out, 2, axis=1), advantage.group(rest, mode=mode), atol=1e-6)
    assert (out[:, 2] == 0).all()
  assert (np.asarray(advantage.group(R, np.zeros(R.shape, bool))) == 0).all()


def test_clip():
  r = np.zeros((1, 64), np.float32)
  r[0, 0] = 1
  assert advantage.group(r).max() == 5 and advantage.group(r, clip=None).max() > 7


def test_gdpo_does_not_depend_on_the_scale_of_a_reward():
  parts = {"a": R, "b": np.random.default_rng(1).normal(size=R.shape)}
  out = advantage.gdpo(parts, delta=1e-8, clip=None)
  np.testing.assert_allclose(out, advantage.gdpo({**parts, "b": 100 * parts["b"]}, delta=1e-8, clip=None), atol=1e-4)
  np.testing.assert_allclose([out.mean(), out.std()], [0, 1], atol=1e-5)
  only = advantage.gdpo(parts, {"a": 2.0}, delta=1e-8, clip=None)
  np.testing.assert_allclose(only, advantage.group(R, delta=1e-8, clip=None), atol=1e-4)


def test_gdpo_of_one_reward_is_grpo_up_to_the_batch():
  one = advantage.group(R, delta=0.0, clip=None)
  np.testing.assert_allclose(advantage.gdpo({"a": R}, delta=0.0, clip=None), one, atol=1e-5)
  still = np.where(np.arange(5)[:, None] < 2, 0.5, R).astype(np.float32)  # 2 of 5 prompts without a difference
  one = np.asarray(advantage.group(still, delta=0.0, clip=None))
  out = np.asarray(advantage.gdpo({"a": still}, delta=0.0, clip=None))
  np.testing.assert_allclose(out, one / np.sqrt(3 / 5), atol=1e-5)
  assert (out[:2] == 0).all()


def test_gdpo_against_numpy():
  parts = {"a": R.astype(np.float64), "b": np.random.default_rng(1).normal(size=R.shape), "c": np.ones(R.shape)}
  z = lambda v: (v - v.mean(-1, keepdims=True)) / (v.std(-1, keepdims=True) + 1e-4)
  total = 2 * z(parts["a"]) - 0.5 * z(parts["b"])
  out = advantage.gdpo(parts, {"a": 2.0, "b": -0.5, "c": 7.0}, clip=None)
  np.testing.assert_allclose(out, (total - total.mean()) / (total.std() + 1e-4), atol=1e-4)


def test_gdpo_keeps_apart_what_a_sum_confuses():
  # two binary rewards of two samples: GRPO gives (0, 1) and (0, 2) the same advantages, GDPO does not (figure 2)
  a, b = np.array([[0.0, 1], [0, 1]]), np.array([[0.0, 0], [0, 1]])
  summed = np.asarray(advantage.group(a + b, delta=0.0))
  np.testing.assert_allclose(summed[0], summed[1])
  out = np.asarray(advantage.gdpo({"a": a, "b": b}, delta=0.0))
  np.testing.assert_allclose(out[1], 2 * out[0], rtol=1e-5)


def test_gdpo_masks_samples_and_scores_that_are_not_finite():
  b = np.random.default_rng(1).normal(size=R.shape).astype(np.float32)
  valid = np.ones(R.shape, bool)
  valid[:, 2] = False
  expected = advantage.gdpo({"a": np.delete(R, 2, axis=1), "b": np.delete(b, 2, axis=1)})
  for out in (advantage.gdpo({"a": R, "b": b}, None, valid), advantage.gdpo({"a": np.where(valid, R, np.nan), "b": b})):
    np.testing.assert_allclose(np.delete(np.asarray(out), 2, axis=1), expected, atol=1e-5)
    assert (out[:, 2] == 0).all()
  everywhere = advantage.gdpo({"a": R, "b": np.where(valid, b, np.nan)}, {"a": 1.0})  # b has no weight
  np.testing.assert_allclose(everywhere, advantage.gdpo({"a": R}), atol=1e-6)


def test_gdpo_moves_with_samples_and_prompts():
  parts = {"a": R, "b": np.random.default_rng(1).normal(size=R.shape).astype(np.float32)}
  out = np.asarray(advantage.gdpo(parts))
  for order in ((slice(None), [3, 0, 5, 1, 2, 4]), ([4, 2, 0, 1, 3],)):
    np.testing.assert_allclose(advantage.gdpo({k: v[order] for k, v in parts.items()}), out[order], atol=1e-5)


def test_grpo_aggregates_the_parts_that_have_weights():
  b = np.random.default_rng(1).normal(size=R.shape).astype(np.float32)
  valid = jnp.arange(30) != 7
  scores = Scores(jnp.asarray(R).reshape(-1), {"a": jnp.asarray(R).reshape(-1), "b": b.reshape(-1)}, valid)
  options = {"std": "group", "ddof": 1, "delta": 1e-8, "clip": 2.0}
  out = grpo.advantages(scores, 6, {"b": 0.5, "a": 1.0}, **options)
  expected = advantage.gdpo({"a": R, "b": b}, {"a": 1.0, "b": 0.5}, valid.reshape(5, 6), ddof=1, delta=1e-8, clip=2.0)
  np.testing.assert_allclose(out, expected.reshape(-1), atol=1e-6)
  assert jnp.abs(out - grpo.advantages(scores, 6, None, **options)).max() > 0.1


def test_buffered_falls_back_on_the_batch_until_it_has_seen_enough():
  state, prompts = advantage.buffer(2, size=4), np.array([0, 0, 1, 1])
  state, first = advantage.buffered(state, prompts, [1.0, 2, 3, 4], least=3)
  np.testing.assert_allclose(first, (np.arange(1, 5) - 2.5) / np.std([1, 2, 3, 4]), atol=1e-4)
  state, second = advantage.buffered(state, prompts, [3.0, 4, 5, 6], least=3)
  np.testing.assert_allclose(second[:2], (np.array([3, 4]) - 2.5) / np.std([1, 2, 3, 4]), atol=1e-4)
  state, third = advantage.buffered(state, prompts, [7.0, 7, 7, 7], np.array([True, False, True, True]), least=3)
  np.testing.assert_array_equal(np.sort(state.values[0]), [2, 3, 4, 7])  # 1 is gone, the invalid one never came
  assert third[1] == 0 and list(state.count) == [5, 6]


def test_win_rates_against_a_loop():
  valid = np.random.default_rng(3).random(R.shape) > 0.2
  rounded = np.round(R, 0)  # with ties
  for margin in (0.0, 1.0):
    out = advantage.win_rate(rounded, valid, margin=margin)
    for p in range(5):
      for i in range(6):
        others = [j for j in range(6) if j != i and valid[p, j]]
        gap = [rounded[p, i] - rounded[p, j] for j in others]
        won = [0.5 if abs(g) <= margin else float(g > 0) for g in gap]
        assert out[p, i] == pytest.approx(np.mean(won) if valid[p, i] else 0, abs=1e-6)
  alone = advantage.win_rate(np.ones((1, 2)), np.array([[True, False]]))
  assert alone.tolist() == [[0.5, 0.0]]
  np.testing.assert_allclose(advantage.win_rate(R), advantage.win_rate(1e-6 * R))  # no scale, no illusion


def test_refusals():
  with pytest.raises(ValueError, match="weights = {'a': 1.0} with win_margin = 0.0: win rates are those of"):
    small = {"policy": policy(), "reward": reward(), "group": 4}
    grpo.make(**small, weights={"a": 1.0}, win_margin=0.0)
  with pytest.raises(ValueError, match="win margin = -1 must be at least 0"):
    advantage.win_rate(R, margin=-1)
  with pytest.raises(ValueError, match="mode = 'std' is not one of group, global, none; choose"):
    advantage.group(R, mode="std")
  with pytest.raises(ValueError, match="ddof = 2 is not 0"):
    advantage.group(R, ddof=2)
  with pytest.raises(ValueError, match="weights of 'c': there is no such reward, only a; rename"):
    advantage.gdpo({"a": jnp.asarray(R)}, {"c": 1.0})
