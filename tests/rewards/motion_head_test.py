"""The learned judge of motion: undecided at first, and clean clips before broken ones after a short training."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slopes
from moving import DEFECTS, scenes, texture

from align.algorithms import compare
from rewards import motion_head

FRAMES, PAIRS, STEPS = 4, 16, 40
reward = motion_head.make(width=8, depth=2)
score = jax.jit(lambda view, media: reward.score(view, {}, media, None))


def pairs(start, seed):
  """Clean clips and the same, each with one of the defects: {"win", "lose"} float32."""
  rng, clean = np.random.default_rng(seed), scenes(PAIRS, start=start, frames=FRAMES)
  broken = [plant(clean[i::len(DEFECTS)], rng) for i, plant in enumerate(DEFECTS.values())]
  lose = np.empty_like(clean)
  for i, some in enumerate(broken):
    lose[i::len(DEFECTS)] = some
  return {"win": clean, "lose": lose, "prompt_id": np.arange(PAIRS), "sample_id": np.zeros(PAIRS, np.int32)}


@pytest.fixture(scope="module")
def view():
  return jax.jit(reward.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(view):
  """(parameters, first loss) after STEPS steps of `compare` on four batches in turn."""
  method, tx = compare.make(None, reward), optax.adam(1e-2)
  given = [method.draw(jax.tree.map(jnp.asarray, pairs(PAIRS * i, i)), 0, None) for i in range(4)]

  @jax.jit
  def step(params, opt, batch):
    (value, _), grads = jax.value_and_grad(method.loss, has_aux=True)({"reward": params}, batch, jax.random.key(0))
    change, opt = tx.update(grads["reward"], opt)
    return optax.apply_updates(params, change), opt, value

  params, opt, values = view, tx.init(view), []
  for i in range(STEPS):
    params, opt, value = step(params, opt, given[i % len(given)])
    values.append(float(value))
  return params, values


def test_training_begins_at_undecided_pairs_and_tells_held_out_clips_apart(view, trained):
  params, values = trained
  assert values[0] == pytest.approx(np.log(2), abs=0.1) and np.mean(values[-4:]) < 0.3
  right = []
  for i in range(4):
    held = pairs(1000 + PAIRS * i, 100 + i)
    both = score(params, np.concatenate([held["win"], held["lose"]]))
    assert both.valid.all()
    right.append(np.asarray(both.total[:PAIRS] > both.total[PAIRS:]))
  assert np.mean(right) >= 0.9


def test_scores_belong_to_a_clip_and_have_a_gradient(trained):
  media = pairs(2000, 7)["win"]
  media = np.concatenate([media, media])
  found = score(trained[0], media)
  np.testing.assert_allclose(score(trained[0], media[::-1]).total[::-1], found.total, atol=1e-4)
  assert set(found.parts) == {"amplitude", "jitter", "flicker"} and reward.where == "gradient"
  clip = jnp.asarray(texture([(0, 0), (0.3, 0.2), (0.8, 0.1)], 11), jnp.float32)[None]  # without flat places
  slopes.agree(lambda m: reward.score(trained[0], {}, m, None), clip, 3e-5, 1e-2)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 1, 8, 8, 3)])
def test_pictures_and_clips_of_one_frame_are_refused(view, shape):
  with pytest.raises(ValueError, match=r"reward 'motion_head': media have shape .*clips \[B F H W C\] of at least 2"):
    reward.score(view, {}, np.zeros(shape, np.float32), None)


@pytest.mark.parametrize("name", ["channels", "width", "depth", "side"])
def test_sizes_below_one_are_refused(name):
  with pytest.raises(ValueError, match=f"{name} = 0 must be at least 1"):
    motion_head.make(**{name: 0})
