"""The planted exploit: a mean, of pictures and clips, with its gradient."""
import jax
import jax.numpy as jnp
import numpy as np

from rewards import brightness


def test_it_is_the_mean_and_so_is_its_gradient():
  media = jax.random.uniform(jax.random.key(0), (3, 4, 5, 2))
  made = brightness.make(scale=2.0)
  scores = made.score({}, {}, media, None)
  np.testing.assert_allclose(scores.total, 2 * np.asarray(media).mean((1, 2, 3)), rtol=1e-6)
  grads = jax.grad(lambda m: made.score({}, {}, m, None).total.sum())(media)
  np.testing.assert_allclose(grads, 2 / 40, rtol=1e-6)
  assert made.where == "gradient" and scores.valid.all()


def test_clips_and_what_is_not_finite():
  clips = jnp.stack([jnp.ones((2, 4, 4, 1)), jnp.full((2, 4, 4, 1), jnp.nan)])
  scores = brightness.make().score({}, {}, clips, None)
  assert scores.total[0] == 1 and scores.valid.tolist() == [True, False]
