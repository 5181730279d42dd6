"""The chain against a plain loop, what it keeps, its random numbers, and guidance as one batch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import kernels, process, sample
from diffusion.core import fold, normal

FLOW, SHAPE = process.flow(shift=2.0), (3, 4, 4, 2)
TIMES, ETA = FLOW.times(5), 0.6


def network(x, t):
  """Any function of x and t, each sample on its own."""
  return jnp.tanh(1.3 * x) - 0.4 * x + t[:, None, None, None]


def start(seed=0, batch=3):
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))
  return keys, normal(fold(keys, 99), SHAPE[1:])


def looped(kernel, x, times, etas, keys):
  """What chain is, one step at a time: every Move, and the last state."""
  moves, carry = [], kernel.carry(x)
  for i in range(len(times) - 1):
    y = network(x, jnp.full(x.shape[0], times[i]))
    moved, carry = sample.move(FLOW, kernel, x, y, times[i], times[i + 1], fold(keys, i + 1), etas[i], carry=carry)
    moves.append(moved)
    x = moved.nxt
  return x, jax.tree.map(lambda *a: jnp.stack(a, 1), *moves)      # [B S ...]


@pytest.mark.parametrize("name", kernels.NAMES)
def test_chain_is_the_loop_of_single_steps(name):
  kernel, (keys, x) = getattr(kernels, name)(), start()
  etas = np.linspace(0.2, 0.8, 5)
  expected, every = looped(kernel, x, TIMES, etas, keys)
  out, moves = jax.jit(lambda x: sample.chain(network, FLOW, kernel, x, TIMES, etas, keys, jnp.arange(5)))(x)
  np.testing.assert_allclose(out, expected, atol=2e-5)
  for ours, theirs in zip(moves, every, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)
  assert sample.chain(network, FLOW, kernel, x, TIMES, etas, keys)[1] is None
  np.testing.assert_array_equal(moves.x[:, 0], x)
  np.testing.assert_array_equal(moves.nxt[:, :-1], moves.x[:, 1:])
  np.testing.assert_array_equal(moves.nxt[:, -1], out)


def test_keep_is_one_list_or_one_a_sample():
  kernel, (keys, x) = kernels.cps(), start()
  run = lambda keep: sample.chain(network, FLOW, kernel, x, TIMES, ETA, keys, keep)[1]
  every = run(jnp.arange(5))
  same, own = run(jnp.array([3, 1])), run(jnp.array([[0, 2], [4, 1], [3, 3]]))
  for all_of, two, rows in zip(every, same, own, strict=True):
    np.testing.assert_array_equal(two, np.asarray(all_of)[:, [3, 1]])
    np.testing.assert_array_equal(rows, np.take_along_axis(
      np.asarray(all_of), np.array([[0, 2], [4, 1], [3, 3]]).reshape((3, 2) + (1,) * (all_of.ndim - 2)), 1))
  assert own.x.shape == (3, 2, 4, 4, 2) and own.std.shape == own.log_prob.shape == (3, 2)


def test_a_chain_may_start_and_stop_midway():
  kernel, (keys, x) = kernels.ode(), start()
  whole, moves = sample.chain(network, FLOW, kernel, x, TIMES, 0.0, keys, jnp.arange(5))
  head, _ = sample.chain(network, FLOW, kernel, x, TIMES[:3], 0.0, keys)
  np.testing.assert_allclose(head, moves.x[:, 2], atol=1e-6)
  tail, _ = sample.chain(network, FLOW, kernel, head, TIMES[2:], 0.0, keys)
  np.testing.assert_allclose(tail, whole, atol=1e-6)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps", "ddim"])
def test_a_sample_depends_on_its_own_key_alone(name):
  kernel, (keys, x) = getattr(kernels, name)(), start()
  run = lambda keys, x: sample.chain(network, FLOW, kernel, x, TIMES, ETA, keys, jnp.arange(5))
  out, moves = run(keys, x)
  order = jnp.array([2, 0, 1])
  permuted, alone = run(keys[order], x[order]), run(keys[1:2], x[1:2])
  np.testing.assert_allclose(permuted[0], out[order], atol=1e-6)
  np.testing.assert_allclose(permuted[1].log_prob, moves.log_prob[order], atol=1e-5)
  np.testing.assert_allclose(alone[0], out[1:2], atol=1e-6)
  other, _ = run(start(1)[0], x)
  assert np.abs(np.asarray(other - out)).max() > 0.1
  z = (moves.nxt - moves.mean)[:, :4] / moves.std[:, :4, None, None, None]
  z = np.asarray(z).reshape(3 * 4, -1)
  assert np.abs(np.corrcoef(z) - np.eye(12)).max() < 0.6 and abs(z.std() - 1) < 0.15   # fresh in every step and sample


@pytest.mark.parametrize("name", ["ode", "dpm2m"])
def test_deterministic_kernels_ignore_keys_and_eta(name):
  kernel, (keys, x) = getattr(kernels, name)(), start()
  one, two = (sample.chain(network, FLOW, kernel, x, TIMES, eta, k)[0] for eta, k in ((0.0, keys), (0.9, start(7)[0])))
  np.testing.assert_array_equal(one, two)


def test_the_noise_of_a_move_has_the_std_it_reports():
  keys, _ = start()
  x, kernel = normal(keys, (256, 256, 1)), kernels.flow_sde()
  moved, _ = sample.move(FLOW, kernel, x, -x, 0.6, jnp.array([0.5, 0.3, 0.1]), fold(keys, 1), jnp.array([0.2, 0.7, 1.]))
  z = np.asarray(moved.nxt - moved.mean)
  np.testing.assert_allclose(z.std((1, 2, 3)), moved.std, rtol=0.02)
  assert moved.std.shape == (3,) and np.unique(np.asarray(moved.std)).size == 3


def test_a_given_next_state_is_scored_and_returned():
  keys, x = start()
  given, kernel = x + 0.1, kernels.flow_sde()
  moved, _ = sample.move(FLOW, kernel, x, -x, 0.6, 0.5, None, 0.7, given=given)
  np.testing.assert_array_equal(moved.nxt, given)
  np.testing.assert_allclose(moved.log_prob, kernels.gaussian(given, moved.mean, moved.std), rtol=1e-6)


def test_arithmetic_stays_float32_whatever_the_network_answers():
  keys, x = start()
  half = lambda x, t: network(x, t).astype(jnp.bfloat16)
  out, moves = sample.chain(half, FLOW, kernels.cps(), x, TIMES, ETA, keys, jnp.arange(5))
  assert {a.dtype for a in (out, *moves)} == {jnp.dtype(jnp.float32)}


def test_guidance_as_one_batch_is_two_separate_calls():
  keys, x = start()
  call = lambda context, x, t: network(x, t) * context["scale"][:, None, None, None]
  given, null = ({"scale": jnp.array(a)} for a in ([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]))
  t = jnp.array([0.2, 0.5, 0.9])
  y, y0 = call(given, x, t), call(null, x, t)
  np.testing.assert_allclose(sample.guided(call, 3.0)((given, null), x, t), y0 + 3 * (y - y0), atol=1e-5)
  np.testing.assert_array_equal(sample.guided(call, 1)((given, None), x, t), y)
  np.testing.assert_allclose(sample.guided(call, 0.0)((given, null), x, t), y0, atol=1e-6)
