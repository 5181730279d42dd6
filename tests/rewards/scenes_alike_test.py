"""Scenes that show the same are more alike than scenes that do not, however things were moved about."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from rewards import scenes, scenes_alike, scenes_scorer

RNG = np.random.default_rng(0)
MEDIA, _, SPECS = scenes.batch(0, 0, 3)
REWARD = scenes_alike.make(width=8)
VIEW = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32),
                    jax.eval_shape(REWARD.init, jax.random.key(0)))
GIVEN = REWARD.prepare({"media": MEDIA})
SCORE = jax.jit(lambda media: REWARD.score(VIEW, GIVEN, media, None))


def test_a_picture_is_most_alike_itself():
  own = SCORE(MEDIA / np.float32(255))
  np.testing.assert_allclose(own.total, 1, atol=1e-5)
  assert (np.asarray(SCORE(MEDIA[[1, 2, 0]] / np.float32(255)).total) < 0.999).all()
  assert not SCORE(np.full(MEDIA.shape, np.nan, np.float32)).valid.any()


def test_the_parts_are_what_they_say():
  media = MEDIA[[1, 2, 0]] / np.float32(255)
  found = SCORE(media)
  away = np.arange(16)[:, None] - np.arange(16)
  kernel = np.exp(-0.5 * (away / 4) ** 2) / (4 * np.sqrt(2 * np.pi))
  smooth = np.einsum("yi,xj,bijc->byxc", kernel, kernel, media - MEDIA / 255)
  np.testing.assert_allclose(found.parts["pixels"], (smooth ** 2).mean((1, 2, 3)), rtol=1e-4)
  np.testing.assert_allclose(found.total, found.parts["cells"] - 200 * found.parts["pixels"], atol=1e-5)
  probabilities = lambda x: jax.nn.softmax(scenes_scorer.Net(8).apply({"params": VIEW["net"]}, 2 * x - 1))[..., 1:]
  away = np.arange(8)[:, None] - np.arange(8)
  kernel = np.exp(-0.5 * (away / 2) ** 2) / (2 * np.sqrt(2 * np.pi))
  a, b = (np.einsum("yi,xj,bijc->byxc", kernel, kernel, probabilities(x)).reshape(3, -1) for x in (media, MEDIA / 255))
  cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  np.testing.assert_allclose(found.parts["cells"], cosine, atol=1e-4)


def test_what_moved_a_little_is_nearer_than_what_is_another_colour():
  """Pixels alone say so, since this network has learned nothing."""
  media = MEDIA[:1] / np.float32(255)
  moved, other = np.roll(media, 1, 2), media[..., [2, 0, 1]]
  apart = lambda x: float(REWARD.score(VIEW, {k: v[:1] for k, v in GIVEN.items()}, x, None).parts["pixels"][0])
  assert apart(moved) < apart(other)
  plain = lambda x: ((x - media) ** 2).mean()
  assert apart(moved) / apart(other) < plain(moved) / plain(other)


def test_the_gradient_is_that_of_finite_differences():
  slopes.agree(SCORE, jnp.asarray(MEDIA[[1, 2, 0]] / np.float32(255)), 1e-3, 1e-2)


def test_refusals():
  with pytest.raises(ValueError, match="blur = 0 must be positive"):
    scenes_alike.make(blur=0)
  with pytest.raises(ValueError, match="compared with 'media' of shape .*; they must be the same"):
    REWARD.score(VIEW, GIVEN, np.zeros((3, 8, 8, 3), np.float32), None)
  with pytest.raises(ValueError, match="batch entry 'media' is"):
    REWARD.prepare({"prompt": ["a"]})
