"""Weights of a regression on one's own samples."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STEPS, G, batch_of, experience, gradient, params_of, policy, reward

from align.algorithms import rwr, sft
from rewards.core import Scores


def test_exp_weights_are_those_of_a_softmax_with_mean_one():
  values = jnp.array([0.0, 1.0, -2.0, 0.5])
  w = rwr.weights_of("exp", values, Scores(values, {}, jnp.array([True, True, True, False])), 0.5, 4)
  e = np.exp(np.array([0.0, 2.0, -4.0]))
  np.testing.assert_allclose(w, [*(3 * e / e.sum()), 0], rtol=1e-5)


def test_best_weights_take_the_best_valid_sample_of_prompts_that_differ():
  total = jnp.array([1.0, 5, 3, 9, 2, 2, 2, 2])
  valid = jnp.array([True, True, True, False] + [True] * 4)
  w = rwr.weights_of("best", None, Scores(total, {}, valid), 1.0, 4)
  np.testing.assert_allclose(w, [0, 7, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("weighting", rwr.WEIGHTINGS)
def test_an_experience_is_a_weighted_sft(weighting):
  made = policy("ode")
  params, method = params_of(made, 0.1), rwr.make(made, reward(), group=G, steps=STEPS, weighting=weighting)
  batch, rollout, out = experience(method, made, params)
  np.testing.assert_array_equal(batch["x"], rollout.output)
  assert batch["weight"].mean() == pytest.approx(1, rel=1e-5) and out["zero_std_ratio"] == 0
  flat = {**batch, "weight": jnp.ones_like(batch["weight"])}
  plain = gradient(sft.make(made), params, batch)
  np.testing.assert_allclose(gradient(method, params, flat)[2], plain[2], atol=1e-7)
  assert not np.allclose(gradient(method, params, batch)[2], plain[2])


def test_offline_weights_come_from_the_scores_of_the_data():
  made = policy("ode")
  params, method, batch = params_of(made), rwr.make(made, online=False, temperature=2.0), batch_of(made)
  drawn = method.draw({**batch, "score": jnp.arange(12.0)}, 0, None)
  value = method.loss(params, drawn, jax.random.key(0))[0]
  w = np.exp(np.arange(12) / 2.0)
  alone = [jax.tree.map(lambda a, i=i: a[i:i + 1], batch) for i in range(12)]
  errors = [float(sft.make(made).loss(params, one, jax.random.key(0))[0]) for one in alone]
  np.testing.assert_allclose(value, (w / w.mean() * errors).mean(), rtol=1e-5)
  with pytest.raises(ValueError, match="batch entry 'score' is missing"):
    method.draw(batch, 0, None)
