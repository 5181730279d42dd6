"""Gradients of rewards in their media against finite differences."""
import jax
import jax.numpy as jnp
import numpy as np


def agree(score, media, step: float, rtol: float, of=slice(None)):
  """(slope, Scores): the gradient of the sum of score(media).total[of], checked against a central difference, and what
  was scored.

  The direction is random and leads uphill, so that rounding is small beside the difference; entries that seem to have
  no gradient move too. step: how far an entry moves, in standard deviations of a normal."""
  def summed(shown):
    found = score(shown)
    return found.total[of].sum(), found
  both = jax.jit(jax.value_and_grad(summed, has_aux=True))
  (_, found), slope = both(media)
  way = jnp.abs(jax.random.normal(jax.random.key(2), media.shape)) * jnp.where(slope < 0, -1, 1)
  up, down = (np.asarray(both(media + s * way)[0][1].total[of], np.float64).sum() for s in (step, -step))
  along = np.vdot(np.asarray(slope, np.float64), np.asarray(way, np.float64))
  assert np.isfinite(slope).all() and along > 0
  np.testing.assert_allclose((up - down) / (2 * step), along, rtol=rtol)
  return np.asarray(slope), found
