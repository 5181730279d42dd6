"""The classifier: what it scores, that it is differentiable, that its fit learns."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slopes

from rewards import classifier


@pytest.fixture(scope="module")
def case():
  """Three classes of 8x8 images that differ by where they are bright, noisy."""
  r, label = np.random.default_rng(0), np.arange(48) % 3
  media = 60 * r.uniform(size=(48, 8, 8, 1))
  for i, c in enumerate(label):
    media[i, 2 * c:2 * c + 3, 2:6] += 150
  return {"media": jnp.asarray(media, jnp.uint8), "label": jnp.asarray(label)}


def keys(n, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def test_score_is_the_probability_of_the_label(case):
  made = classifier.make(3, 8, 1, width=8)
  params, media = jax.jit(made.init)(jax.random.key(0)), case["media"] / 255
  every = [made.score(params, {"label": jnp.full(48, c)}, media, None) for c in range(3)]
  np.testing.assert_allclose(sum(s.total for s in every), 1, atol=1e-5)
  np.testing.assert_allclose(sum(s.parts["accuracy"] for s in every), 1)
  logs = classifier.make(3, 8, 1, width=8, output="log_probability").score(params, case, media, None)
  np.testing.assert_allclose(jnp.exp(logs.total), logs.parts["probability"], rtol=1e-5)
  slopes.agree(lambda m: made.score(params, case, m, None), media, 1e-3, 1e-2)
  assert made.where == "gradient"


def test_fit_learns(case):
  made, tx = classifier.make(3, 8, 1, width=8), optax.adam(1e-2)
  params = jax.jit(made.init)(jax.random.key(0))

  @jax.jit
  def step(carry, i):
    params, opt = carry
    loss = lambda p: made.fit(p, case, keys(48, i))[0].mean()
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt = tx.update(grads, opt)
    return (optax.apply_updates(params, updates), opt), value

  carry = (params, tx.init(params))
  values = []
  for i in range(25):
    carry, value = step(carry, i)
    values.append(float(value))
  assert values[0] == pytest.approx(np.log(3), abs=0.5) and values[-1] < 0.3
  assert made.score(carry[0], case, case["media"] / 255, None).parts["accuracy"].mean() > 0.9


def test_augmentation_belongs_to_the_sample_and_training_only(case):
  media, shifted = case["media"][:4] / 255, functools.partial(classifier.augmented, shift=1, noise=0.0)
  out = shifted(keys(4), media)
  np.testing.assert_array_equal(out[::-1], shifted(keys(4)[::-1], media[::-1]))
  assert (np.asarray(shifted(keys(4, 3), media)) != np.asarray(out)).any()
  np.testing.assert_allclose(classifier.augmented(keys(4), media, 0, 0.0), media)


def test_other_sizes_and_channels():
  made = classifier.make(5, 17, 3, width=8)
  params = jax.jit(made.init)(jax.random.key(0))
  scores = jax.jit(made.score)(params, {"label": jnp.zeros(2, int)}, jnp.zeros((2, 17, 17, 3)), None)
  assert scores.total.shape == (2,) and scores.valid.all()


@pytest.mark.parametrize("call, message", [
  (lambda: classifier.make(1), "classes = 1 must be at least 2"),
  (lambda: classifier.make(output="logit"), "output = 'logit' is not one of probability, log_probability"),
  (lambda: classifier.make(width=12), "width = 12 must be below 8 or a multiple of it"),
  (lambda: classifier.make().score({}, {"prompt_id": 1}, None, None), "batch entry 'label' is missing, it has prompt"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
