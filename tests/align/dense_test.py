"""Dense Reward: the printed numbers of the method, its loss worked out in NumPy, and what its buffer keeps."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STEPS, G, P, batch_of, experience, gradient, params_of, policy, reward

from align import discount
from align.algorithms import base, dense
from diffusion import kernels, process
from rewards.core import Scores

OPTIONS = {"group": G, "steps": STEPS, "stored": 3, "tuples": 6, "clip": 1.0, "scale": 3.0, "draws": 2}


def test_the_discount_has_the_printed_weights():
  p = discount.chances(0.9, 50)
  assert 0.9 ** np.arange(50) @ np.ones(50) == pytest.approx(9.9485, abs=5e-5)
  assert p.sum() == pytest.approx(1) and p[0] == pytest.approx(0.10052, abs=5e-6)
  assert p[49] == pytest.approx(5.76e-4, abs=5e-7) and p @ np.arange(50) == pytest.approx(8.74, abs=5e-3)
  assert p[:5].sum() == pytest.approx(0.412, abs=5e-4) and p[:10].sum() == pytest.approx(0.655, abs=5e-4)
  reached = np.searchsorted(p.cumsum(), [0.5, 0.75, 0.9, 0.95, 0.99]) + 1
  assert reached.tolist() == [7, 14, 22, 28, 40]
  assert (discount.chances(1.0, 7) == 1 / 7).all()


def test_the_weight_over_levels_has_mean_one_and_is_one_without_discount():
  grid = jnp.linspace(1, 0, 51)[:-1]
  assert (discount.weight(grid, 1.0, 50) == 1).all()
  np.testing.assert_allclose(discount.weight(grid, 0.9, 50), 50 * discount.chances(0.9, 50), rtol=1e-6)
  between = jnp.linspace(1, 0, 1000)
  assert (jnp.diff(discount.weight(between, 0.9, 50)) <= 0).all()
  np.testing.assert_allclose(discount.weight(grid, 0.8, 50).mean(), 1, rtol=1e-6)


TABLE = {0: (981, 0.45446, -0.23294), 1: (961, 0.44828, -0.22611), 7: (841, 0.41031, -0.18810),
         25: (481, 0.28769, -0.10808), 48: (21, 0.03948, -0.12929), 49: (1, 0.02065, -0.02071)}


@pytest.mark.parametrize("k", TABLE)
def test_ddim_at_eta_1_has_the_printed_std_and_slope(k):
  """SD1.5's schedule, 50 steps: timestep n is (n + 1) / 1000 here; below 0 its chain ends at timestep 0."""
  timestep, std, slope = TABLE[k]
  made, kernel = process.ddpm("eps"), kernels.ddim()
  t, t_next = jnp.float32((timestep + 1) / 1000), jnp.float32((max(timestep - 20, 0) + 1) / 1000)
  mean = lambda eps: kernel.step(made, jnp.float32(0.3), eps, t, t_next, 1.0, ())[0]
  assert kernel.step(made, jnp.float32(0.3), jnp.float32(0.1), t, t_next, 1.0, ())[1] == pytest.approx(std, abs=2e-5)
  assert jax.grad(mean)(0.1) == pytest.approx(slope, abs=2e-5)


def numpy_loss(logits, rewards):
  """-log of the chance to draw the items one by one in the order of their rewards, in float64."""
  order = np.argsort(-rewards)
  left, total = list(order), 0.0
  for i in order:
    total -= logits[i] - np.log(np.exp(logits[left]).sum())
    left.remove(i)
  return total


@pytest.mark.parametrize("count", [2, 3, 5])
def test_plackett_luce_against_numpy(count):
  rng = np.random.default_rng(count)
  logits, rewards = rng.normal(size=(7, count)) * 4, rng.normal(size=(7, count))
  keys = jax.random.split(jax.random.key(0), 7)
  value = dense.plackett_luce(jnp.asarray(logits, jnp.float32), jnp.asarray(rewards, jnp.float32), keys)
  np.testing.assert_allclose(value, [numpy_loss(x, r) for x, r in zip(logits, rewards, strict=True)],
                             rtol=2e-5, atol=1e-6)
  mixed = rng.permutation(count)
  both = (jnp.asarray(a[:, mixed], jnp.float32) for a in (logits, rewards))
  again = dense.plackett_luce(*both, keys)
  np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-6)
  if count == 2:
    gap = (logits[:, 0] - logits[:, 1]) * np.sign(rewards[:, 0] - rewards[:, 1])
    np.testing.assert_allclose(value, np.log1p(np.exp(-gap)), rtol=1e-4, atol=1e-6)


def test_equal_rewards_are_drawn_in_either_order():
  keys = jax.random.split(jax.random.key(1), 400)
  value = dense.plackett_luce(jnp.tile(jnp.array([[2.0, 0.0]]), (400, 1)), jnp.zeros((400, 2)), keys)
  first = np.asarray(value) < 1
  assert 0.4 < first.mean() < 0.6


def test_stored_chains_have_even_ranks():
  total = jnp.asarray(np.random.default_rng(0).permutation(24).astype(np.float32))
  chosen = np.asarray(dense.by_rank(Scores(total, {}, jnp.ones(24, bool)), 12, 5)).reshape(2, 5)
  mine = [sorted(total[12 * p:12 * p + 12].tolist()) for p in range(2)]
  ranks = [[mine[p].index(float(total[i])) for i in row] for p, row in enumerate(chosen)]
  assert ranks == [[0, 2, 5, 8, 11]] * 2


def test_log_2_at_the_reference_and_gradient_is_half_scale_of_the_log_ratio_there():
  made = policy("ddim")
  params, method = params_of(made), dense.make(made, reward(), **OPTIONS)
  batch, _, _ = experience(method, made, params)
  value, metrics, grads = gradient(method, params, batch)
  assert value == pytest.approx(np.log(2), abs=1e-6) and metrics["accuracy"] == 0.5
  assert metrics["on_policy_gap"] < 2e-6 and metrics["clip_fraction"] == 0 and metrics["tuples"] == 1
  best = batch["reward"].argmax(-1)
  sign = jnp.where(jnp.arange(2) == best[:, None], 1.0, -1.0)
  old = jax.tree.map(lambda a: a.reshape((-1,) + a.shape[2:]), batch["rollout"])

  def linear(tree):
    h = (made.replay({**params["base"], **tree}, old).log_prob * old.mask).mean(-1).reshape(-1, 2)
    return -(0.5 * 3.0 * sign * h).sum(-1).mean()
  expected = jax.flatten_util.ravel_pytree(jax.grad(linear)(params["policy"]))[0]
  np.testing.assert_allclose(grads, expected, atol=2e-4 * float(jnp.abs(expected).max()))
  assert jnp.abs(grads).max() > 0


def test_the_clip_is_a_hard_clamp():
  made = policy("ddim")
  params, method = params_of(made, 0.3), dense.make(made, reward(), **{**OPTIONS, "clip": 1e-7})
  batch, _, _ = experience(method, made, params)
  value, metrics, grads = gradient(method, params, batch)
  assert metrics["clip_fraction"] == 1 and (grads == 0).all() and value == pytest.approx(np.log(2), abs=1e-5)


def test_the_loss_against_numpy():
  made = policy("ddim")
  params, method = params_of(made, 0.3), dense.make(made, reward(), **{**OPTIONS, "clip": 0.02, "tuple_size": 3})
  batch, _, _ = experience(method, made, params)
  old = jax.tree.map(lambda a: a.reshape((-1,) + a.shape[2:]), batch["rollout"])
  ours, other = (np.asarray(made.replay(params[r], old).log_prob, np.float64) for r in ("policy", "base"))
  h = np.clip(ours - other, -0.02, 0.02).mean(-1).reshape(-1, 3)
  expected = np.mean([numpy_loss(3.0 * row, np.asarray(r)) for row, r in zip(h, batch["reward"], strict=True)])
  np.testing.assert_allclose(method.loss(params, batch, jax.random.key(0))[0], expected, rtol=1e-5)


def test_steps_are_shared_and_drawn_by_gamma():
  made = policy("ddim")
  params, method = params_of(made), dense.make(made, reward(), **{**OPTIONS, "gamma": 0.5, "draws": 1, "tuples": 4})
  batch, key = batch_of(made), jax.random.key(1)
  rollout = method.rollout(params, batch, base.sample_keys(key, batch))
  memory, _ = method.select(params, (), rollout, Scores(jnp.arange(12.0), {}, jnp.ones(12, bool)), batch, key)
  draw = jax.jit(method.draw)
  drawn = [draw(memory, u, key) for u in range(600)]
  times = np.array([np.asarray(d["rollout"].times[..., 0]) for d in drawn])
  assert (times == times[:, :, :1]).all()  # shared by the chains that are compared
  step = np.round((1 - times[:, :, 0, 0]) * STEPS).astype(int)
  assert (step != step[:, :1]).any()
  share = np.bincount(step.reshape(-1), minlength=STEPS - 1) / step.size
  np.testing.assert_allclose(share, discount.chances(0.5, STEPS - 1), atol=4 * 0.5 / np.sqrt(step.size))
  for d in drawn[:50]:  # two different chains of one prompt
    a, b = np.asarray(d["reward"]).T
    assert (a != b).all() and (a // G == b // G).all()


def test_ties_and_invalid_chains_teach_nothing():
  made = policy("ddim")
  params, method = params_of(made), dense.make(made, reward(), **OPTIONS)
  batch, key = batch_of(made), jax.random.key(1)
  rollout = method.rollout(params, batch, base.sample_keys(key, batch))
  total = jnp.array([1.0] * 4 + [1, 2, 3, 4] + [5, 6, 7, 8])
  valid = jnp.array([True] * 8 + [False] * 3 + [True])
  memory, _ = method.select(params, (), rollout, Scores(total, {}, valid), batch, key)
  drawn = method.draw(memory, 0, key)
  weight = drawn["valid"].all(-1) & (drawn["reward"].max(-1) > drawn["reward"].min(-1))
  assert float(method.loss(params, drawn, key)[1]["tuples"]) == pytest.approx(float(weight.mean()))
  assert (np.asarray(drawn["reward"])[np.asarray(weight)] <= 4).all() and P == 3
