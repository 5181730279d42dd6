"""A learned opinion of pictures: it learns from pairs, inside key frames of clips too, and refuses what cannot be."""
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slopes

from align.algorithms import compare
from rewards import keyframes, look, scenes
from rewards.scenes import defects


def test_it_learns_from_pairs_of_clips():
  reward = keyframes.make({"look": look.make(width=8)}, count=2, total=3)
  algorithm, tx = compare.make(reward=reward), optax.adam(1e-2)
  media = scenes.clip.batch(0, 0, 16, frames=3)[0]
  worse = np.stack([defects.looking_badly(random.Random(i), clip) for i, clip in enumerate(media)])
  batch = {"win": jnp.asarray(media), "lose": jnp.asarray(worse), "prompt_id": jnp.arange(16),
           "sample_id": jnp.zeros(16, jnp.int32), "experience": jnp.zeros(16, jnp.int32)}
  view = reward.init(jax.random.key(0))
  opt, key = tx.init(view), jax.random.key(1)

  @jax.jit
  def step(view, opt):
    drawn = algorithm.draw(batch, 0, key)
    (loss, metrics), grads = jax.value_and_grad(lambda v: algorithm.loss({"reward": v}, drawn, key), has_aux=True)(view)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(view, updates), opt, loss, metrics["accuracy"]

  seen = []
  for _ in range(40):
    view, opt, loss, accuracy = step(view, opt)
    seen.append((float(loss), float(accuracy)))
  assert seen[-1][0] < .5 < seen[0][0] and seen[-1][1] > .8


def test_the_gradient_is_that_of_finite_differences():
  made, media = look.make(width=8), jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
  view = jax.jit(made.init)(jax.random.key(0))
  slopes.agree(lambda m: made.score(view, {}, m, None), media, 1e-3, 1e-2)


def test_refusals():
  with pytest.raises(ValueError, match="size = 2 must be at least 4; change it"):
    look.make(size=2)
  with pytest.raises(ValueError, match="width = 12 must be below 8 or a multiple of it"):
    look.make(width=12)
