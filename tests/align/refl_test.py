"""Reward gradients: each mode against a gradient written down independently, zero where stop-gradients say so."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STEPS, batch_of, gradient, params_of, policy, reward

from align.algorithms import base, refl
from diffusion.core import fold, normal


def test_refl_gradient_comes_from_one_step_only():
  """Equal to the gradient through a denoise at states that were sampled beforehand by other, fixed weights."""
  made = policy("ode")
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(5)
  method = refl.make(made, reward(), steps=STEPS, first=0.6, phi="linear", weight=1.0)
  _, metrics, grads = gradient(method, params, batch)
  keys = base.sample_keys(key, batch)
  x, t = refl.late(refl.chain(made, params["policy"], batch["cond"], keys, STEPS, 0.0), 3, STEPS)
  assert set(np.round(np.asarray(t) * STEPS).tolist()) <= {1.0, 2.0}

  def one(tree):
    x0 = made.denoise(tree, batch["cond"], x, t, True)
    return -reward().score({}, {}, made.decode(tree, x0), None).total.mean()
  expected = jax.flatten_util.ravel_pytree(jax.grad(one)(params["policy"]))[0]
  np.testing.assert_allclose(grads, expected, atol=1e-5 * float(jnp.abs(expected).max()))
  assert jnp.abs(grads).max() > 0 and "part_first" in metrics


@pytest.mark.parametrize("count", [2, STEPS])
def test_draft_gradient_is_that_of_the_last_steps(count):
  made = policy("ode")
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(5)
  method = refl.make(made, reward(), steps=STEPS, mode="draft", count=count, phi="linear", weight=1.0)
  value, _, grads = gradient(method, params, batch)
  keys, times = base.sample_keys(key, batch), np.asarray(made.process.times(STEPS))

  def chain(tree, fixed):
    x = made.sample(fixed, batch["cond"], keys, steps=times, keep=jnp.arange(STEPS)).x[:, STEPS - count]
    for i in range(STEPS - count, STEPS):
      x = made.step(tree, batch["cond"], x, times[i], times[i + 1], keys, 0.0).x
    return -reward().score({}, {}, made.decode(tree, x), None).total.mean()
  expected, slope = jax.value_and_grad(chain)(params["policy"], params["policy"])
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  slope = jax.flatten_util.ravel_pytree(slope)[0]
  np.testing.assert_allclose(grads, slope, atol=1e-5 * float(jnp.abs(slope).max()))


def test_refl_relu_stops_at_the_margin_and_sft_needs_media():
  made = policy("ode")
  params, batch = params_of(made), batch_of(made)
  done = refl.make(made, reward(), steps=STEPS, margin=-10.0)
  assert (gradient(done, params, batch)[2] == 0).all()
  both = refl.make(made, reward(), steps=STEPS, sft=1.0)
  assert "sft" in both.loss(params, batch, jax.random.key(0))[1]
  with pytest.raises(ValueError, match="batch entry 'x' is missing"):
    both.loss(params, {k: v for k, v in batch.items() if k != "x"}, jax.random.key(0))


def judged(made, tree, x0):
  return -reward().score({}, {}, made.decode(tree, x0), None).total


def case(eta=0.0, **options):
  """(policy, parameters, batch, keys, grid, gradient of the mode that the options choose)."""
  made = policy("ode" if eta == 0 else "flow_sde")
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(5)
  method = refl.make(made, reward(), steps=STEPS, eta=eta, phi="linear", weight=1.0, **options)
  value, metrics, grads = gradient(method, params, batch)
  times = np.asarray(made.process.times(STEPS))
  return made, params["policy"], batch, base.sample_keys(key, batch), times, value, grads


def close(grads, f, tree, tolerance=2e-5):
  expected = jax.flatten_util.ravel_pytree(jax.grad(f)(tree))[0]
  assert jnp.abs(expected).max() > 0
  np.testing.assert_allclose(grads, expected, atol=tolerance * float(jnp.abs(expected).max()))


def test_draft_lv_noises_the_sample_again_and_denoises_once():
  made, tree, batch, keys, times, value, grads = case(mode="draft_lv", count=3)
  x0 = made.sample(tree, batch["cond"], keys, steps=times).output
  t = times[-2]

  def f(tree):
    total = 0.0
    for i in range(3):
      xt = (1 - t) * x0 + t * normal(fold(fold(keys, 1 << 20), i), x0.shape[1:])
      total += judged(made, tree, made.denoise(tree, batch["cond"], xt, jnp.full(len(keys), t), True)).mean() / 3
    return total
  np.testing.assert_allclose(value, f(tree), rtol=1e-5)
  close(grads, f, tree)


@pytest.mark.parametrize("cut", refl.CUTS)
def test_alignprop_is_draft_with_the_number_of_steps_that_was_drawn(cut):
  made, tree, batch, keys, times, value, grads = case(eta=0.5, mode="alignprop", cut=cut)
  first = int(refl.random_cut(cut, STEPS, jax.random.key(5)))
  c = refl.chain(made, tree, batch["cond"], keys, STEPS, 0.5)

  def f(tree):
    x = refl.start(c)
    for i in range(STEPS):
      p = tree if i >= first else c.frozen
      x = made.step(p, batch["cond"], x, times[i], times[i + 1], fold(keys, i + (1 << 16)), 0.5).x
    return judged(made, tree, x).mean()
  np.testing.assert_allclose(value, f(tree), rtol=1e-5)
  close(grads, f, tree)


def test_alignprop_draws_its_cut_as_published():
  draws = [int(refl.random_cut("gaussian", 50, k)) for k in jax.random.split(jax.random.key(0), 400)]
  assert min(draws) >= 1 and max(draws) <= 49 and np.mean(draws) == pytest.approx(42, abs=1)
  assert np.std(draws) == pytest.approx(4.6, abs=0.6)  # 5, less what is cut off at 49
  even = [int(refl.random_cut("uniform", 10, k)) for k in jax.random.split(jax.random.key(0), 300)]
  assert set(even) == set(range(10))


def test_endpoint_scores_the_sample_and_sums_the_gradients_of_its_steps():
  """With every step chosen: x0 = x_1 + sum_k (t_{k+1} - t_k) v_k, each v_k differentiated at its stored state."""
  made, tree, batch, keys, times, value, grads = case(mode="endpoint", count=STEPS)
  rollout = made.sample(tree, batch["cond"], keys, steps=times, keep=jnp.arange(STEPS))

  def f(tree):
    x0 = rollout.x[:, 0]
    for i in range(STEPS):
      x, t = rollout.x[:, i], times[i]
      v = (x - made.denoise(tree, batch["cond"], x, jnp.full(len(keys), t), True)) / t
      x0 = x0 + (times[i + 1] - t) * v
    return judged(made, tree, x0).mean()
  np.testing.assert_allclose(value, judged(made, tree, rollout.output).mean(), rtol=1e-6)
  close(grads, f, tree, 1e-4)


def test_endpoint_with_fewer_steps_is_right_on_average():
  made, tree, batch, keys, times, _, whole = case(mode="endpoint", count=STEPS)
  params = {**params_of(made, 0.1), "policy": tree}
  method = refl.make(made, reward(), steps=STEPS, mode="endpoint", count=2, phi="linear", weight=1.0)
  seen = []
  for index in ([0, 1], [2, 3], [0, 4], [1, 2], [3, 4]):  # every step twice
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(refl, "some_steps", lambda *_, i=index: jnp.tile(jnp.array(i), (len(keys), 1)))
      seen.append(gradient(method, params, batch)[2])
  np.testing.assert_allclose(np.mean(seen, 0), whole, atol=1e-4 * float(jnp.abs(whole).max()))


@pytest.mark.parametrize("inversion", [0.0, 0.5])
def test_direct_takes_the_known_noise_out(inversion):
  made, tree, batch, keys, times, value, grads = case(mode="direct", first=0.2, inversion=inversion)
  c = refl.chain(made, tree, batch["cond"], keys, STEPS, 0.0)
  noise, index = refl.start(c), refl.some_steps(c, 1, STEPS, 1)[:, 0]
  x0 = made.sample(tree, batch["cond"], keys, x=noise, steps=times).output
  at = lambda t: jnp.asarray(t).reshape(-1, 1, 1, 1)
  high, low = at(times[index]), at(times[index + 1])

  def branch(tree, t, t_next):
    z = (1 - t) * x0 + t * noise
    safe = jnp.maximum(t, 1e-6)  # clean data have no noise in them, and there v is read off as -x0 + noise prediction
    v = (z - made.denoise(tree, batch["cond"], z, t.reshape(-1), True)) / safe
    return (z + (t_next - t) * v - t_next * noise) / (1 - t_next)

  def f(tree):
    down = judged(made, tree, branch(tree, high, low))
    if not inversion:
      return down.mean()
    up = -judged(made, tree, branch(tree, low, high))
    return ((down + inversion * up) / 2).mean()
  if not inversion or (low > 0).all():
    np.testing.assert_allclose(value, f(tree), rtol=1e-4)
    close(grads, f, tree, 1e-4)
  assert jnp.isfinite(grads).all() and jnp.abs(grads).max() > 0


def test_inversion_from_clean_data_is_finite_with_a_noisy_kernel():
  for seed in range(4):  # of some, the last step is drawn, which starts at t = 0 on the way back
    made = policy("flow_sde")
    params, batch = params_of(made, 0.1), batch_of(made)
    method = refl.make(made, reward(), steps=STEPS, mode="direct", first=0.6, inversion=0.5, weight=1.0)
    value, _, grads = gradient(method, params, batch, seed=seed)
    assert jnp.isfinite(value) and jnp.isfinite(grads).all()


def test_direct_recovers_x0_where_the_network_is_right():
  """Whatever the level: with v = noise - x0 the known noise comes out exactly, so the score is that of x0."""
  made = policy("ode")
  params, batch = params_of(made), batch_of(made)
  c = refl.chain(made, params["policy"], batch["cond"], base.sample_keys(jax.random.key(0), batch), STEPS, 0.0)
  noise = refl.start(c)
  x0 = c.policy.sample(c.frozen, c.cond, c.keys, x=noise, steps=c.times, eta=0.0).output
  right = lambda p, cond, x, t, t_next, keys, eta: type("Step", (), {"x": x + (at(t_next) - at(t)) * (noise - x0)})
  at = lambda t: t.reshape(-1, 1, 1, 1)
  oracle = c._replace(policy=made._replace(step=right))
  np.testing.assert_allclose(refl.recovered(oracle, 1, STEPS, False), x0, atol=2e-5)
  both = refl.recovered(oracle, 1, STEPS, True).reshape((-1, 2) + x0.shape[1:])
  np.testing.assert_allclose(both[:, 1], x0, atol=2e-5)


@pytest.mark.parametrize("mode, options", [("refl", {}), ("draft", {}), ("draft_lv", {}), ("direct", {})])
def test_memory_does_not_grow_with_the_steps_that_carry_no_gradient(mode, options):
  """Bytes of temporaries of the compiled gradient with 8 and with 64 steps."""
  made = policy("ode")
  params, batch = params_of(made), batch_of(made)

  def bytes_of(steps):
    method = refl.make(made, reward(), steps=steps, mode=mode, **options)
    f = lambda tree: method.loss({**params, "policy": tree}, batch, jax.random.key(0))[0]
    return jax.jit(jax.grad(f)).lower(params["policy"]).compile().memory_analysis().temp_size_in_bytes
  few, many = bytes_of(8), bytes_of(64)
  state = 4 * batch["x"].size
  assert many - few < 4 * state, (few, many, state)  # 56 more states would be 56 times that
