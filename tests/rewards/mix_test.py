"""Mixtures: what they add, what they are called on, what makes a sample invalid."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards import mix
from rewards.core import Reward, Scores

MEDIA = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
BATCH = {"sample_id": jnp.tile(jnp.arange(3), 2), "prompt": ["a"] * 6, "meta": [{}] * 6}


def part(scale, where="gradient", broken=(), params=None):
  def score(view, batch, media, keys):
    total = scale * media.mean((1, 2, 3)) + view.get("bias", 0.0)
    if where == "host":
      assert "prompt" in batch
    else:
      assert "prompt" not in batch
    return Scores(total, {"raw": total / scale}, jnp.asarray([i not in broken for i in range(len(media))]))
  return Reward(lambda key: params or {}, lambda b: {**b, f"seen_{scale}": True}, score, where, None)


def numeric(batch):
  return {k: v for k, v in batch.items() if k not in ("prompt", "meta")}


def test_weighted_sum_and_parts():
  made = mix.make({"a": part(1.0, params={"bias": 0.5}), "b": part(10.0)}, {"b": 0.2})
  scores = made.score({"a": {"bias": 0.5}}, numeric(BATCH), MEDIA, None)
  mean = MEDIA.mean((1, 2, 3))
  np.testing.assert_allclose(scores.total, 3 * mean + 0.5, rtol=1e-5)
  assert set(scores.parts) == {"a", "a/raw", "b", "b/raw"} and scores.valid.all()
  np.testing.assert_allclose(scores.parts["b"], 10 * mean, rtol=1e-5)
  assert made.init(jax.random.key(0)) == {"a": {"bias": 0.5}}
  assert {"seen_1.0", "seen_10.0"} <= set(made.prepare(BATCH))


@pytest.mark.parametrize("kinds, where", [(("gradient", "gradient"), "gradient"), (("gradient", "device"), "device"),
                                          (("host", "gradient"), "host")])
def test_the_least_capable_part_decides_where(kinds, where):
  made = mix.make({"a": part(1.0, kinds[0]), "b": part(2.0, kinds[1])})
  assert made.where == where
  batch = BATCH if where == "host" else numeric(BATCH)
  np.testing.assert_allclose(made.score({}, batch, MEDIA, None).total, 3 * MEDIA.mean((1, 2, 3)), rtol=1e-5)


def test_a_mixture_of_gradient_parts_has_a_gradient():
  made = mix.make({"a": part(1.0), "b": part(2.0)}, normalise="batch")
  assert jnp.abs(jax.grad(lambda m: made.score({}, numeric(BATCH), m, None).total[0])(jnp.asarray(MEDIA))).max() > 0


def test_one_broken_part_makes_a_sample_invalid_and_leaves_the_others_alone():
  made = mix.make({"a": part(1.0), "b": part(2.0, broken=(1,))}, normalise="batch")
  scores = made.score({}, numeric(BATCH), MEDIA, None)
  assert scores.valid.tolist() == [True, False, True, True, True, True]
  first = mix.make({"a": part(1.0, broken=(4,)), "b": part(2.0)}).score({}, numeric(BATCH), MEDIA, None)
  assert first.valid.tolist() == [True, True, True, True, False, True]
  z, mean = lambda v: (v - v.mean()) / v.std(), MEDIA.mean((1, 2, 3))
  expected = np.delete(z(mean), 1) + z(np.delete(2 * mean, 1))
  np.testing.assert_allclose(np.delete(np.asarray(scores.total), 1), expected, atol=1e-4)


def test_z_scores_of_groups_and_no_variance():
  made = mix.make({"a": part(5.0)}, normalise="group")
  total = np.asarray(made.score({}, numeric(BATCH), MEDIA, None).total).reshape(2, 3)
  np.testing.assert_allclose(total.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(total.std(-1), 1, atol=1e-4)
  same = np.broadcast_to(MEDIA[:1], MEDIA.shape)
  assert (made.score({}, numeric(BATCH), same, None).total == 0).all()


def test_equal_scores_have_a_finite_gradient():
  same = jnp.broadcast_to(jnp.asarray(MEDIA[:1]), MEDIA.shape)
  made = mix.make({"a": part(5.0)}, normalise="group")
  assert jnp.isfinite(jax.grad(lambda m: made.score({}, numeric(BATCH), m, None).total[0])(same)).all()


def test_frozen_statistics_are_leaves():
  made = mix.make({"a": part(5.0), "b": part(1.0)}, normalise="frozen")
  plain = made.score(made.init(jax.random.key(0)), numeric(BATCH), MEDIA, None)
  np.testing.assert_allclose(plain.total, 6 * MEDIA.mean((1, 2, 3)), rtol=1e-5)
  stats = mix.calibration({"a": plain.parts["a"], "b": plain.parts["b"]})
  assert jax.tree.structure(stats) == jax.tree.structure(made.init(jax.random.key(0))["mix"])
  total = np.asarray(made.score({"mix": stats}, numeric(BATCH), MEDIA, None).total)
  np.testing.assert_allclose([total.mean(), total.std()], [0, 2], atol=1e-3)


@pytest.mark.parametrize("call, message", [
  (lambda: mix.make({}), "rewards = {}: a mixture needs at least one reward"),
  (lambda: mix.make({"mix": part(1.0)}), "a part called 'mix'"),
  (lambda: mix.make({"a": part(1.0)}, {"b": 1.0}), "weights has 'b', which is none of the rewards a"),
  (lambda: mix.make({"a": part(1.0)}, normalise="std"), "normalise = 'std' is not one of none, batch, group, frozen"),
  (lambda: mix.calibration({"a": [1.0, 1.0]}), "calibration of 'a': 2 valid scores"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
