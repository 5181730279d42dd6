"""PPO with a value network: advantages in closed form, the policy's part, and that the value learns."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import STEPS, G, P, batch_of, experience, gradient, params_of, policy, reward, scores_of

from align.algorithms import base, grpo, ppo
from diffusion.nets import value
from rewards.core import Scores


def with_value(method, params):
  return {**params, "value": method.nets["value"](jax.random.key(4))}


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_generalised_advantages_against_numpy(lam):
  v, r = np.random.default_rng(0).normal(size=(3, 4)), np.array([1.0, -2.0, 0.5])
  a, target = ppo.generalised(jnp.asarray(v, jnp.float32), jnp.asarray(r, jnp.float32), lam)
  after = np.concatenate([v[:, 1:], r[:, None]], 1)
  expected = np.array([[sum(lam ** (j - k) * (after[i, j] - v[i, j]) for j in range(k, 4)) for k in range(4)]
                       for i in range(3)])
  np.testing.assert_allclose(a, expected, atol=1e-6)
  np.testing.assert_allclose(target, expected + v, atol=1e-6)
  if lam == 1:  # DPOK: the return minus the value
    np.testing.assert_allclose(a, r[:, None] - v, atol=1e-6)


def test_the_value_begins_at_zero_and_the_policy_follows_reinforce():
  made = policy()
  params = params_of(made, 0.1)
  method = ppo.make(made, reward(), group=G, steps=STEPS, lam=1.0)
  params = with_value(method, params)
  batch, rollout, _ = experience(method, made, params)
  total = reward().score({}, {}, made.decode(params["base"], rollout.output), None).total
  np.testing.assert_allclose(batch["target"], jnp.broadcast_to(total[:, None], (P * G, STEPS - 1)), atol=1e-6)
  a = (total - total.mean()) / (total.std() + 1e-4)
  np.testing.assert_allclose(batch["advantage"][:, 0], jnp.clip(a, -5, 5), atol=1e-4)
  _, metrics, grads = gradient(method, params, batch)

  def reinforce(tree):
    return -(batch["advantage"] * made.replay({**params["base"], **tree}, batch["rollout"]).log_prob).mean()
  expected = jax.flatten_util.ravel_pytree(jax.grad(reinforce)(params["policy"]))[0]
  np.testing.assert_allclose(grads, expected, atol=2e-5 * float(jnp.abs(expected).max()) + 1e-7)
  assert metrics["on_policy_gap"] < 2e-6 and "kl_old" in metrics and "kl" not in metrics
  near = ppo.make(made, reward(), group=G, steps=STEPS, lam=1.0, beta=0.5)
  assert gradient(near, params, batch)[1]["kl"] > 0


def test_centred_rewards_are_compared_within_their_prompt_and_masked_ones_do_not_count():
  made = policy()
  params = params_of(made, 0.1)
  method = ppo.make(made, reward(), group=G, steps=STEPS, lam=1.0, centre=True)
  params = with_value(method, params)
  _, rollout, _ = experience(method, made, params)
  total = np.random.default_rng(0).normal(size=P * G).astype(np.float32)
  valid = np.ones(P * G, bool)
  valid[1] = False
  found = lambda total: method.select(params, (), rollout, Scores(jnp.asarray(total), {}, jnp.asarray(valid)),
                                      batch_of(made), jax.random.key(0))[0]
  kept = np.where(valid, total, np.nan).reshape(P, G)
  want = np.nan_to_num(kept - np.nanmean(kept, 1, keepdims=True)).reshape(-1)
  np.testing.assert_allclose(found(total)["target"][:, 0], want, atol=1e-6)
  shifted = total + np.repeat(np.arange(P, dtype=np.float32) * 10, G)  # prompts of other difficulty change nothing
  np.testing.assert_allclose(found(shifted)["advantage"], found(total)["advantage"], atol=1e-4)
  with pytest.raises(ValueError, match="group = 1 must be at least 2; 'ppo with centre' compares the samples"):
    ppo.make(made, reward(), group=1, centre=True)


def test_the_value_learns_its_targets_and_leaves_the_policy_alone():
  made = policy()
  method = ppo.make(made, reward(), group=G, steps=STEPS, value=1.0)
  params = with_value(method, params_of(made, 0.1))
  batch, _, _ = experience(method, made, params)
  still = {**batch, "advantage": jnp.zeros_like(batch["advantage"])}
  first = gradient(method, params, still)[1]["value_error"]
  assert (gradient(method, params, still)[2] == 0).all()
  tx = optax.adam(1e-2)
  opt, value = tx.init(params["value"]), params["value"]

  @jax.jit
  def step(value, opt):
    grads = jax.grad(lambda v: method.loss({**params, "value": v}, still, jax.random.key(0))[0])(value)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(value, updates), opt
  for _ in range(150):
    value, opt = step(value, opt)
  last = gradient(method, {**params, "value": value}, still)[1]["value_error"]
  assert last < 0.3 * first


def test_the_value_does_not_see_padding():
  made = policy()
  cond = batch_of(made)["cond"]
  net = value.make()
  x, t = jnp.ones((P * G, 4, 4, 1)), jnp.full(P * G, 0.5)
  weights = net.init(jax.random.key(0), x, t, cond)["params"]
  weights["out"] = jax.tree.map(jnp.ones_like, weights["out"])
  longer = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 3)), constant_values=a.dtype.type(0)), cond)
  apply = lambda cond: net.apply({"params": weights}, x, t, cond)
  np.testing.assert_allclose(apply(longer), apply(cond), rtol=1e-6)
  other = {**cond, "tokens": jnp.roll(cond["tokens"], G, axis=0)}
  assert not np.allclose(apply(other), apply(cond))


@pytest.mark.parametrize("name,micro", [("ppo", 1), ("ppo", 2 * (STEPS - 1)), ("grpo", 1), ("grpo", STEPS - 1),
                                        ("grpo", G)])
def test_old_values_from_a_replay(name, micro):
  """Whatever the sampler stored, the update starts from a ratio of 1, and what was wrong with it is told; in pieces
  that cut the samples, their decisions, or both."""
  made = policy()
  options = {"group": G, "steps": STEPS, "updates": 3, "micro": micro}
  make = ppo.make if name == "ppo" else grpo.make
  method = make(made, reward(), recompute=True, **options)
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(1)
  params = with_value(method, params) if name == "ppo" else params
  rollout = method.rollout(params, batch, base.sample_keys(key, batch))
  off = rollout._replace(log_prob=rollout.log_prob + 0.25 * rollout.mask, mean=rollout.mean + 1.0)
  scores = scores_of(made, params, rollout)
  memory, out = method.select(params, (), off, scores, batch, key)
  plain, _ = make(made, reward(), **options).select(params, (), rollout, scores, batch, key)
  assert out["sampling_gap"] == pytest.approx(0.25, rel=1e-4)
  for field in ("log_prob", "mean"):
    np.testing.assert_allclose(getattr(memory["rollout"], field), getattr(plain["rollout"], field), atol=2e-6)
  metrics = gradient(method, params, method.draw(memory, 0, key))[1]
  assert metrics["on_policy_gap"] < 2e-6


def test_invalid_samples_are_left_out():
  made = policy()
  method = ppo.make(made, reward(), group=G, steps=STEPS)
  params, batch = with_value(method, params_of(made, 0.1)), batch_of(made)
  rollout = method.rollout(params, batch, base.sample_keys(jax.random.key(1), batch))
  scores = scores_of(made, params, rollout)
  failed = scores._replace(valid=scores.valid.at[0].set(False), total=scores.total.at[0].set(jnp.nan))
  memory = method.draw(method.select(params, (), rollout, failed, batch, None)[0], 0, None)
  _, metrics, grads = gradient(method, params, memory)
  other = {**memory, "target": memory["target"].at[0].set(7.0), "advantage": memory["advantage"].at[0].set(7.0)}
  np.testing.assert_array_equal(gradient(method, params, other)[2], grads)
  assert memory["share"].mean() == pytest.approx(1) and np.isfinite(metrics["value_error"])
