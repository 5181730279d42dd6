"""Ratios and divergences against the densities they come from."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import ratio
from diffusion import kernels, process

B, K, SHAPE = 3, 2, (4, 4, 2)


@pytest.fixture(scope="module")
def case():
  r = np.random.default_rng(0)
  old = r.normal(size=(B, K) + SHAPE)
  mean, std = old + 0.05 * r.normal(size=old.shape), r.uniform(0.1, 0.9, size=(B, K))
  z = r.normal(size=old.shape)
  nxt = old + std[..., None, None, None] * z
  return [jnp.asarray(a, jnp.float32) for a in (mean, old, nxt, std, z)]


def density(kind, x, mean, std):
  flat = lambda a: a.reshape((B * K,) + a.shape[2:])
  return kind(flat(x), flat(mean), flat(std)).reshape(B, K)


def test_elementwise_ratio_is_the_difference_of_log_densities(case):
  mean, old, nxt, std, _ = case
  expected = density(kernels.gaussian, nxt, mean, std) - density(kernels.gaussian, nxt, old, std)
  np.testing.assert_allclose(ratio.gaussian(mean, old, nxt, std), expected, atol=1e-5)
  expected = density(kernels.published_cps, nxt, mean, std) - density(kernels.published_cps, nxt, old, std)
  np.testing.assert_allclose(ratio.cps(mean, old, nxt), expected, atol=1e-5)


def test_elementwise_ratio_keeps_what_the_difference_loses():
  r = np.random.default_rng(1)
  old, z = r.normal(size=(1, 1, 65536)), r.normal(size=(1, 1, 65536))
  nxt, mean, std = old + 0.7 * z, old + 1e-5 * r.normal(size=old.shape), np.full((1, 1), 0.7)
  f = [np.asarray(a, np.float32) for a in (mean, old, nxt, std)]
  exact = ((f[0].astype(float) - f[1]) * (2 * f[2].astype(float) - f[0] - f[1])).mean() / (2 * 0.7 ** 2)
  assert abs(float(ratio.gaussian(*map(jnp.asarray, f))[0, 0]) - exact) < 2e-9


def test_ratio_norm_is_the_mean_of_noise_times_shift(case):
  mean, old, nxt, std, z = case
  np.testing.assert_allclose(ratio.normalised(mean, old, nxt, std), ratio.elements(z * (mean - old)), atol=1e-6)
  long = std * (ratio.gaussian(mean, old, nxt, std) + ratio.kl(mean, old, std))
  np.testing.assert_allclose(ratio.normalised(mean, old, nxt, std), long, atol=1e-6)


def test_kl_is_the_closed_form_in_v():
  """KL = Delta / 2 (g (1 - t) / (2 t) + 1 / g)^2 |v - v_ref|^2, eq. of Flow-GRPO; the code's form lacks 1 / Delta."""
  t, t_next, eta, flow = 0.7, 0.6, 0.8, process.flow()
  r = np.random.default_rng(2)
  x, v, other = (jnp.asarray(r.normal(size=(1, 8, 8, 1)), jnp.float32) for _ in range(3))
  step = lambda y: kernels.flow_sde().step(flow, x, y, jnp.float32(t), jnp.float32(t_next), eta, ())
  (mean, std, _), (mean_ref, _, _) = step(v), step(other)
  g, gap = eta * np.sqrt(t / (1 - t)), float(((v - other) ** 2).mean())
  expected = (t - t_next) / 2 * (g * (1 - t) / (2 * t) + 1 / g) ** 2 * gap
  times = jnp.asarray([[[t, t_next, eta]]])
  true = ratio.kl(mean[:, None], mean_ref[:, None], std.reshape(1, 1))
  np.testing.assert_allclose(true, [[expected]], rtol=1e-4)
  np.testing.assert_allclose(ratio.kl_code(mean[:, None], mean_ref[:, None], std.reshape(1, 1), times),
                             true * (t - t_next), rtol=1e-4)


def test_output_is_what_the_network_said():
  r = np.random.default_rng(3)
  xt, y, t = jnp.asarray(r.normal(size=(2, 4, 4, 1))), jnp.asarray(r.normal(size=(2, 4, 4, 1))), jnp.float32(0.4)
  for made in (process.flow(), process.ddpm(), process.ddpm("v")):
    np.testing.assert_allclose(ratio.output(made, made.clean(y, xt, t), xt, t), y, atol=1e-4)


def test_clipped_gradient_stops_only_where_the_ratio_ran_ahead():
  gradient = jax.vmap(jax.grad(lambda change, a: ratio.clipped(change, a, 0.1)))
  change, a = jnp.asarray([0.0, 0.2, -0.2, 0.2, -0.2]), jnp.asarray([1.0, 1, 1, -1, -1])
  grads = np.asarray(gradient(change, a))
  np.testing.assert_array_equal(grads == 0, np.asarray(ratio.outside(change, a, 0.1)))
  np.testing.assert_allclose(grads[[0, 2, 3]], -np.exp([0, -0.2, 0.2]) * [1, 1, -1], rtol=1e-6)


def test_exact_kl_mask_stops_only_beyond_the_limit_and_outwards():
  change, a = jnp.asarray([0.2, 0.2, -0.2, -0.2, 0.2]), jnp.asarray([1.0, -1, 1, -1, 1])
  far = jnp.asarray([2.0, 2, 2, 2, 0.5])
  assert ratio.away(change, a, far, 1.0).tolist() == [True, False, False, True, False]


def test_k3_is_an_unbiased_kl_and_never_negative():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
  each = np.asarray(ratio.k3(jnp.log(p), jnp.log(q)))
  assert (each > 0).all() and ratio.k3(jnp.float32(-1.0), jnp.float32(-1.0)) == 0
  np.testing.assert_allclose((p * each).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)


def test_deterministic_steps_give_no_nan():
  x, std = jnp.ones((1, 1, 4)), jnp.zeros((1, 1))
  for f in (ratio.gaussian, ratio.normalised):
    assert jnp.isfinite(jax.grad(lambda m, f=f: f(m, x, x, std).sum())(x)).all()
