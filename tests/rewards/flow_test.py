"""Optical flow: against translations of known speed, nothing where nothing moves, gradients everywhere."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moving import texture

from rewards import flow

SPEEDS = [(0, 0), (0.25, 0), (0.5, -0.3), (1, 1.5), (-2, 1), (3, 0), (0, -4), (2.5, 2.5)]
estimate = jax.jit(flow.estimate)


@pytest.fixture(scope="module")
def pair():
  """One frame, and it after each of the speeds; [N 32 32 3] both."""
  first = np.repeat(texture([(0, 0)]), len(SPEEDS), 0)
  return first.astype(np.float32), texture(SPEEDS).astype(np.float32)


@pytest.fixture(scope="module")
def found(pair):
  return np.asarray(estimate(*pair))


@pytest.mark.parametrize("i", range(len(SPEEDS)))
def test_translations_are_found_to_a_tenth_of_a_pixel(found, i):
  error = np.hypot(*(found[i] - SPEEDS[i]).transpose(2, 0, 1))
  edge = 3 + int(np.abs(SPEEDS[i]).max())  # what leaves the picture cannot be found
  assert error[edge:-edge, edge:-edge].mean() < 0.1
  assert np.abs(found[i].mean((0, 1)) - SPEEDS[i]).max() < 0.1


def test_where_nothing_moves_the_flow_is_zero(pair):
  first = pair[0]
  assert (np.asarray(estimate(first, first)) == 0).all()
  assert (np.asarray(estimate(0 * first + 0.3, 0 * first + 0.3)) == 0).all()
  assert np.abs(estimate(first, first + 0.1)).max() < 1e-4        # brighter as a whole
  assert np.abs(estimate(0 * first, 0 * first + 0.7)).max() == 0  # cut from black to grey


def test_beyond_its_reach_it_is_too_small_and_not_wild():
  moved = np.asarray(estimate(*(np.repeat(texture([at], 32), len(SPEEDS), 0).astype(np.float32)
                                for at in ((0, 0), (12, 0)))))
  assert np.abs(moved).max() <= flow.STEP * 4 * (1 + 2 + 4)


def test_brightness_of_a_frame_and_order_of_the_batch_do_not_matter(pair, found):
  first, second = pair
  np.testing.assert_allclose(estimate(first, second + 0.2), found, atol=2e-3)
  np.testing.assert_allclose(estimate(first[::-1], second[::-1]), found[::-1], atol=1e-5)


def test_a_mirror_turns_the_flow_round(pair, found):
  mirrored = np.asarray(estimate(*(a[:, :, ::-1] for a in pair)))[:, :, ::-1] * [-1, 1]
  np.testing.assert_allclose(mirrored, found, atol=2e-3)


def test_warping_moves_back_what_the_flow_moved():
  image = np.random.default_rng(0).uniform(size=(1, 5, 7, 2)).astype(np.float32)
  one = jnp.broadcast_to(jnp.array([2.0, -1.0]), (1, 5, 7, 2))
  out = np.asarray(flow.warped(image, one))
  np.testing.assert_allclose(out[:, 1:, :5], image[:, :4, 2:], atol=1e-6)
  seen = np.asarray(flow.inside(one))[0]
  assert seen[1:, :5].all() and not seen[0].any() and not seen[:, 5:].any()
  half = np.asarray(flow.warped(image, one * 0 + 0.5))
  np.testing.assert_allclose(half[:, :4, :6], (image[:, :4, :6] + image[:, :4, 1:] + image[:, 1:, :6]
                                               + image[:, 1:, 1:]) / 4, atol=1e-6)


def test_structure_is_where_the_slope_is():
  flat = np.zeros((1, 9, 9, 1), np.float32)
  assert (np.asarray(flow.structure(flat)) == 0).all()
  flat[:, :, 5:] = 0.8
  trust = np.asarray(flow.structure(flat))[0]
  assert (trust[:, 4:6] > 0.9).all() and (trust[:, :4] == 0).all() and (trust[:, 6:] == 0).all()


@pytest.mark.parametrize("kind", ["constant", "noise", "same"])
def test_gradients_are_finite(kind):
  rng = np.random.default_rng(1)
  first = np.full((1, 13, 17, 3), 0.4, np.float32) if kind == "constant" else rng.uniform(size=(1, 13, 17, 3))
  second = first if kind in ("constant", "same") else rng.uniform(size=first.shape)
  weight = rng.normal(size=(1, 13, 17, 2))
  slope = jax.grad(lambda a, b: (weight * estimate(a, b)).sum(), (0, 1))(jnp.asarray(first), jnp.asarray(second))
  assert all(bool(jnp.isfinite(s).all()) for s in slope)
  assert kind == "constant" or max(float(jnp.abs(s).max()) for s in slope) > 0


def test_gradient_is_that_of_finite_differences():
  with jax.enable_x64(True):
    rng = np.random.default_rng(2)
    first, second = (jnp.asarray(texture([at], 13)) for at in ((0, 0), (0.7, -0.4)))
    weight, way = rng.normal(size=(1, 13, 13, 2)), rng.normal(size=second.shape)
    value = jax.jit(lambda e: (weight * flow.estimate(first - e * way, second + e * way)).sum())
    np.testing.assert_allclose(jax.grad(value)(0.0), (value(1e-6) - value(-1e-6)) / 2e-6, rtol=1e-4)
