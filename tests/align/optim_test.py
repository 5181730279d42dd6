"""Schedules in closed form, one table over every optimiser, decay by name."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align import build, optim
from align.build import UserError


@pytest.mark.parametrize("decay,expected", [
  ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]), ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]),
  ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.5 + 0.5 ** 1.5, 0.5, 0.5 - 0.5 ** 1.5, 0]),
])
def test_schedule(decay, expected):
  rate = optim.schedule(2.0, 4, decay, 8)
  np.testing.assert_allclose([rate(i) for i in range(9)], 2 * np.array(expected), atol=1e-6)
  np.testing.assert_allclose(rate(100), 2 * expected[-1], atol=1e-6)


def test_no_warm_up_starts_at_the_full_rate():
  assert float(optim.schedule(3.0, 0, "constant", None)(0)) == 3.0


@pytest.mark.parametrize("options,message", [
  ({"decay": "cosin"}, "config.optim.decay = 'cosin' is not one of constant, linear, cosine; choose"),
  ({"decay": "linear"}, "to total_steps = None, which must be later; set total_steps"),
  ({"decay": "cosine", "warmup_steps": 10, "total_steps": 10}, "from warmup_steps = 10 to total_steps = 10"),
  ({"lr": -1.0}, "lr = -1.0 and warmup_steps = 0 must not be negative"),
])
@pytest.mark.parametrize("name", build.names("align.optim"))
def test_impossible_schedules_are_refused(name, options, message):
  with pytest.raises(UserError, match=message):
    build.build("align.optim", name, **options)


@pytest.mark.parametrize("name", build.names("align.optim"))
def test_every_optimiser_descends(name):
  optimizer = build.build("align.optim", name, lr=0.05, warmup_steps=5)
  loss = lambda p: jnp.sum((p["w"] - 3.0) ** 2) / 2
  params = {"w": jnp.zeros(4)}
  state = optimizer.tx.init(params)

  @jax.jit
  def step(params, state):
    updates, state = optimizer.tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  before = loss(params)
  for _ in range(100):
    params, state = step(params, state)
  assert loss(params) < 0.05 * before


def test_there_are_three_optimisers():
  assert build.names("align.optim") == ["adafactor", "adamw", "sgd"]


def test_adamw_is_optax_adamw():
  params = {"w": jnp.arange(1.0, 5.0)}
  ours, theirs = optim.adamw(lr=1e-2, weight_decay=0.1, clip=None).tx, optax.adamw(1e-2, weight_decay=0.1)
  grads = {"w": jnp.array([0.3, -2.0, 0.0, 1.0])}
  a, _ = ours.update(grads, ours.init(params), params)
  b, _ = theirs.update(grads, theirs.init(params), params)
  np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


def test_weights_decay_by_name():
  params = {"policy": {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "norm_1": {"scale": jnp.ones(2)}}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = optim.adamw(lr=0.5, weight_decay=0.1).tx
  updates, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(updates["policy"]["conv"]["kernel"], -0.05, rtol=1e-6)
  assert not updates["policy"]["conv"]["bias"].any() and not updates["policy"]["norm_1"]["scale"].any()


def test_clipping_bounds_the_global_norm():
  tx = optim.sgd(lr=1.0, clip=1.0).tx
  grads = {"a": jnp.full(3, 10.0), "b": jnp.full(1, -10.0)}
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(optax.global_norm(updates), 1.0, rtol=1e-6)


def test_the_reported_rate_is_the_one_that_is_used():
  optimizer = optim.sgd(lr=0.1, warmup_steps=4, decay="linear", total_steps=10)
  state, grads = optimizer.tx.init({"w": jnp.ones(())}), {"w": jnp.ones(())}
  for i in range(10):
    updates, state = optimizer.tx.update(grads, state)
    np.testing.assert_allclose(-updates["w"], optimizer.lr(i), rtol=1e-5)
