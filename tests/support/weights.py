"""Weights of a network that nothing has to compile: its shapes, filled by NumPy."""
import math

import jax
import jax.numpy as jnp
import numpy as np


def drawn(init, *arguments, seed=1):
  """What init(key, *arguments) gives, but drawn: of a variance of 1 / fan-in, scales about 1, and nothing at zero, so
  that gates are open which a network begins with closed. Compiling `init` takes longer than most tests of it."""
  shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
  rng = np.random.default_rng(seed)
  fan = lambda a: math.prod(a.shape[-4:-1]) if a.ndim > 3 else a.shape[-2]
  draw = lambda path, a: ("scale" in str(path[-1])) + rng.normal(0, fan(a) ** -0.5 if a.ndim > 1 else 0.1, a.shape)
  return jax.tree_util.tree_map_with_path(lambda path, a: jnp.asarray(draw(path, a), jnp.float32), shapes)
