"""Identities that every algorithm must satisfy, on a tiny policy. That a run is finite says nothing about it."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import STEPS, G, P, batch_of, experience, gradient, params_of, policy, reward, scores_of

from align import ratio
from align.algorithms import base, dense, dpo, fit, grpo, nft, ppo, refl, rwr, sft
from align.core import State
from diffusion import process
from diffusion.core import expand, fold, mean_elements, normal
from rewards.core import Scores

# --- base ------------------------------------------------------------------------------------------------------------


def test_minibatches_partition_whole_groups():
  memory = {"a": jnp.arange(24), "b": jnp.arange(24.0)[:, None]}
  for epoch in range(2):
    parts = [base.minibatches(memory, 3 * epoch + u, jax.random.key(0), 3, 4, 2)["a"] for u in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(24))
    assert all((part.reshape(2, 4) == part.reshape(2, 4)[:, :1] // 4 * 4 + np.arange(4)).all() for part in parts)
  assert base.minibatches(memory, 0, jax.random.key(0), 1, 4) is memory
  with pytest.raises(ValueError, match="updates = 4 does not divide the 6 groups"):
    base.minibatches(memory, 0, jax.random.key(0), 4, 4)


def test_keys_belong_to_samples_not_to_places():
  ids = {"prompt_id": jnp.array([3, 3, 8]), "sample_id": jnp.array([0, 1, 0])}
  keys = jax.random.key_data(base.sample_keys(jax.random.key(0), ids))
  swapped = jax.random.key_data(base.sample_keys(jax.random.key(0), jax.tree.map(lambda a: a[::-1], ids)))
  np.testing.assert_array_equal(keys, swapped[::-1])
  assert len({tuple(k) for k in keys.tolist()}) == 3


def test_metrics_by_level_and_followers():
  out = base.by_level("e", jnp.array([1.0, 3, 5]), jnp.array([0.1, 0.2, 1.0]))
  assert out["e_low"] == 2 and out["e_high"] == 5 and jnp.isnan(out["e_middle"])
  levels, mask = jnp.array([1.0, 0.8, 0.6, 0.4]), jnp.array([[1.0, 1, 1, 0], [1, 0, 1, 0]])
  out = base.by_part("e", jnp.arange(8.0).reshape(2, 4), mask, jnp.stack([levels, levels]), levels)
  assert out["e_early"] == (0 + 1 + 4) / 3 and out["e_middle"] == (2 + 6) / 2 and jnp.isnan(out["e_late"])
  out = base.by_part("e", jnp.array([[1.0, 2]]), jnp.ones((1, 2)), levels[None, 1::2], levels)
  assert out["e_early"] == 1 and out["e_late"] == 2 and jnp.isnan(out["e_middle"])  # of some steps of the chain
  _, decay, clock = base.average(0.9)["ema"]
  assert decay(0) == pytest.approx(0.1) and decay(1000) == pytest.approx(0.9) and clock == "step"
  with pytest.raises(ValueError, match="ema = 1.0 must be in"):
    base.average(1.0)


# --- sft -------------------------------------------------------------------------------------------------------------


def test_sft_is_the_flow_matching_loss():
  made = policy()
  params, batch, key = params_of(made), batch_of(made), jax.random.key(2)
  value, metrics = sft.make(made).loss(params, batch, key)
  keys = base.sample_keys(key, batch)
  t = made.law(fold(keys, 0))
  noise = normal(fold(keys, 1), (4, 4, 1))
  xt = (1 - expand(t, noise)) * batch["x"] + expand(t, noise) * noise
  v = (xt - made.denoise(params["base"], batch["cond"], xt, t)) / expand(t, noise)
  np.testing.assert_allclose(value, ((v - noise + batch["x"]) ** 2).mean(), rtol=1e-4)
  assert set(metrics) == {"error_low", "error_middle", "error_high"}


# --- dpo -------------------------------------------------------------------------------------------------------------


def test_dpo_is_log_2_at_the_reference_and_prefers_the_winner_after_a_step():
  made = policy()
  params, batch = params_of(made), batch_of(made)
  method = dpo.make(made, beta=50.0)
  value, metrics = method.loss(params, batch, jax.random.key(0))  # compiled, policy and reference may round differently
  assert metrics["margin"] == 0 and metrics["accuracy"] == 0.5 and value == pytest.approx(np.log(2), abs=2e-7)
  grads = gradient(method, params, batch)[2]
  assert jnp.abs(grads).max() > 0
  flat, unravel = jax.flatten_util.ravel_pytree(params["policy"])
  after, metrics, _ = gradient(method, {**params, "policy": unravel(flat - 1e-3 * grads)}, batch)
  assert after < value and metrics["margin"] > 0 and metrics["gain_win"] > metrics["gain_lose"]


def test_dpo_swapping_winner_and_loser_flips_the_margin():
  made = policy()
  params, batch = params_of(made, 0.1), batch_of(made)
  for weighting in dpo.WEIGHTINGS:
    method = dpo.make(made, weighting=weighting)
    margin = method.loss(params, batch, jax.random.key(0))[1]["margin"]
    swapped = {**batch, "win": batch["lose"], "lose": batch["win"]}
    np.testing.assert_allclose(method.loss(params, swapped, jax.random.key(0))[1]["margin"], -margin, rtol=1e-5)


def test_dpo_with_sft_adds_the_loss_of_the_winners():
  made = policy()
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(0)
  batch = {**batch, "weight": jnp.arange(float(len(batch["win"])))}
  (plain, metrics), (more, same) = (dpo.make(made, sft=weight).loss(params, batch, key) for weight in (0.0, 3.0))
  keys = base.sample_keys(key, batch)
  winners = made.log_prob(params["policy"], batch["cond"], batch["win"], keys, made.law(fold(keys, 0)))
  np.testing.assert_allclose(more - plain, -3.0 * (winners * batch["weight"]).mean(), rtol=1e-5)
  assert metrics["margin"] == same["margin"]


def test_dpo_discounts_by_the_step_that_starts_at_t():
  """gamma = 1 changes no bit; otherwise the margin is the plain one times N p_k, k = floor((1 - t) N)."""
  made = policy()
  params, batch, key = params_of(made, 0.1), batch_of(made), jax.random.key(0)
  plain, same = (dpo.make(made, **o).loss(params, batch, key) for o in ({}, {"gamma": 1.0, "chain": 7}))
  assert plain[0] == same[0]
  t = made.law(fold(base.sample_keys(key, batch), 0))
  one = {k: jax.tree.map(lambda a: a[:1], v) for k, v in batch.items()}
  margin = [dpo.make(made, gamma=g, chain=5).loss(params, one, key)[1]["margin"] for g in (1.0, 0.5)]
  k = int((1 - float(t[0])) * 5)
  np.testing.assert_allclose(margin[1] / margin[0], 5 * 0.5 ** k / sum(0.5 ** j for j in range(5)), rtol=1e-4)


def test_dpo_shares_noise_so_that_equal_images_have_no_margin():
  made = policy()
  params, batch = params_of(made, 0.1), batch_of(made)
  same = {**batch, "lose": batch["win"]}
  assert dpo.make(made).loss(params, same, jax.random.key(0))[1]["margin"] == 0
  assert dpo.make(made, shared_noise=False).loss(params, same, jax.random.key(0))[1]["margin"] != 0


def test_online_dpo_pairs_best_with_worst_and_leaves_ties_out():
  made = policy("ode")
  params, batch = params_of(made), batch_of(made)
  method = dpo.make(made, reward(), online=True, group=G, steps=STEPS)
  rollout = method.rollout(params, batch, base.sample_keys(jax.random.key(0), batch))
  total = jnp.array([1.0, 4, 2, 9, 5, 5, 5, 5, 1, 2, 3, 4])
  valid = jnp.array([True, True, True, False] + [True] * 4 + [False] * 3 + [True])
  memory, out = method.select(params, (), rollout, Scores(total, {}, valid), batch, None)
  assert memory["weight"].tolist() == [1, 0, 0] and out["pairs"] == pytest.approx(1 / 3)
  np.testing.assert_array_equal(memory["win"][0], rollout.output[1])
  np.testing.assert_array_equal(memory["lose"][0], rollout.output[0])
  drawn = method.draw(memory, 0, None)
  assert drawn["weight"].tolist() == [3, 0, 0]  # the mean over pairs is that over those that count
  alone = {k: jax.tree.map(lambda a: a[:1], v) for k, v in memory.items()}
  grads, expected = gradient(method, params, drawn)[2], gradient(method, params, alone)[2]
  np.testing.assert_allclose(grads, expected, atol=2e-6 * float(jnp.abs(expected).max()) + 1e-6)


# --- grpo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel, kind", [("flow_sde", "plain"), ("flow_sde", "gaussian"), ("dance_sde", "gaussian"),
                                          ("cps", "cps"), ("ddim", "plain")])
def test_grpo_is_reinforce_on_policy(kernel, kind):
  made = policy(kernel)
  params = params_of(made, 0.1)
  method = grpo.make(made, reward(), group=G, steps=STEPS, ratio=kind)
  memory, rollout, _ = experience(method, made, params)
  value, metrics, grads = gradient(method, params, memory)
  a, old = memory["advantage"], memory["rollout"]

  def reinforce(tree):
    return -(a[:, None] * made.replay({**params["base"], **tree}, old).log_prob).mean()
  expected = jax.flatten_util.ravel_pytree(jax.grad(reinforce)(params["policy"]))[0]
  np.testing.assert_allclose(grads, expected, atol=2e-5 * float(jnp.abs(expected).max()) + 1e-7)
  assert metrics["on_policy_gap"] < 2e-6 and metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
  assert metrics["trained_steps"] == 1 and old.std.shape == (P * G, STEPS - 1)
  assert jnp.abs(grads).max() > 0 and abs(value) < 1e-5


def test_grpo_says_that_a_deterministic_policy_cannot_be_trained():
  made = policy("ode")
  method = grpo.make(made, reward(), group=G, steps=STEPS)
  _, metrics, grads = gradient(method, params_of(made), experience(method, made, params_of(made))[0])
  assert metrics["on_policy_gap"] == np.inf and metrics["trained_steps"] == 0


def test_grpo_clips_and_reports():
  made = policy()
  params = params_of(made)
  method = grpo.make(made, reward(), group=G, steps=STEPS, clip=1e-6)
  memory = experience(method, made, params)[0]
  _, metrics, _ = gradient(method, {**params, "policy": params_of(made, 0.1)["policy"]}, memory)
  assert metrics["clip_fraction"] > 0.3 and metrics["on_policy_gap"] > metrics["on_policy_limit"]
  assert float(metrics["clip_high"] + metrics["clip_low"]) == pytest.approx(float(metrics["clip_fraction"]), rel=1e-5)
  # four decisions a chain, of which the first two are the early third
  parts = [float(metrics[f"kl_old_{part}"]) for part in base.PARTS]
  assert (2 * parts[0] + parts[1] + parts[2]) / 4 == pytest.approx(float(metrics["kl_old"]), rel=1e-4)
  assert metrics["kl_old"] > 0 and not {"kl", *(f"kl_{part}" for part in base.PARTS)} & set(metrics)  # not measured
  loose = grpo.make(made, reward(), group=G, steps=STEPS, exact_kl=1e6)
  assert gradient(loose, params_of(made, 0.1), memory)[1]["clip_fraction"] == 0


def test_grpo_kl_forms_agree_with_each_other():
  made = policy()
  params = params_of(made, 0.1)
  memory = experience(grpo.make(made, reward(), group=G, steps=STEPS), made, params)[0]
  far = {}
  for kind in grpo.KLS:
    method = grpo.make(made, reward(), group=G, steps=STEPS, beta=1.0, kl=kind)
    metrics = gradient(method, params, memory)[1]
    far[kind] = float(metrics["kl"])
    parts = [float(metrics[f"kl_{part}"]) for part in base.PARTS]
    assert (2 * parts[0] + parts[1] + parts[2]) / 4 == pytest.approx(far[kind], rel=1e-4)
  old = memory["rollout"]
  gap = ratio.squared(made.replay(params["policy"], old).mean, made.replay(params["base"], old).mean)
  np.testing.assert_allclose(far["mean"], gap.mean(), rtol=1e-4)
  np.testing.assert_allclose(far["true"], (gap / (2 * old.std ** 2)).mean(), rtol=1e-4)
  np.testing.assert_allclose(far["code"], far["true"] / STEPS, rtol=1e-4)  # an even grid: Delta = 1 / STEPS
  t, t_next, eta = jnp.moveaxis(old.times, -1, 0)
  g = eta * jnp.sqrt(t / (1 - jnp.where(t == 1, t_next, t)))
  in_v = gap / ((t - t_next) * (1 + g ** 2 * (1 - t) / (2 * t))) ** 2
  np.testing.assert_allclose(far["v"], in_v.mean(), rtol=1e-3)


@pytest.mark.parametrize("pick, size", [("first", 2), ("window", 2), ("random", 3)])
def test_grpo_trains_the_steps_that_were_picked(pick, size):
  keys = base.sample_keys(jax.random.key(0), {"prompt_id": jnp.arange(40), "sample_id": jnp.arange(40)})
  index = np.asarray(grpo.picked(pick, size, 10, 0.5, keys))
  assert index.shape == ((40, size) if pick == "random" else (size,)) and index.max() < 9
  assert (np.diff(index, axis=-1) > 0).all()
  starts = {int(grpo.picked("window", 2, 10, 0.5, None, i, seed=3)[0]) for i in range(40)}
  assert starts == set(range(5))


def test_grpo_progressive_windows_hold_move_on_and_begin_anew():
  first = [int(grpo.picked("progressive", 3, 10, 0.5, None, jnp.int32(e), 2)[0]) for e in range(18)]
  assert first == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 0, 0, 1, 1]  # windows 0..2 to 6..8: step 9 has no noise
  made = policy()
  method = grpo.make(made, reward(), group=G, steps=STEPS, pick="progressive", fraction=0.4, hold=1, mixed=True)
  batch = {**batch_of(made), "experience": jnp.full(P * G, 1, jnp.int32)}
  rollout = jax.jit(method.rollout)(params_of(made), batch, base.sample_keys(jax.random.key(0), batch))
  np.testing.assert_allclose(rollout.times[0, :, 0], np.asarray(made.process.times(STEPS))[1:3])


def test_grpo_buffer_lives_in_the_memory_and_is_never_drawn():
  made = policy()
  params, batch, key = params_of(made), batch_of(made), jax.random.key(0)
  method = grpo.make(made, reward(), group=G, steps=STEPS, prompts=P, buffer=8)
  rollout = jax.jit(method.rollout)(params, batch, base.sample_keys(key, batch))
  memory, total = (), np.arange(12.0, dtype=np.float32)
  for number in range(3):
    scores = Scores(jnp.asarray(total + 100 * number), {}, jnp.ones(12, bool))
    memory, _ = method.select(params, memory, rollout, scores, batch, key)
  assert memory["buffer"].count.tolist() == [12, 12, 12]
  assert sorted(memory["buffer"].values[1].tolist()) == [104, 105, 106, 107, 204, 205, 206, 207]
  last = np.array([*total[4:8] + 100, *total[4:8] + 200], np.float64)
  expected = (total[4:8] + 200 - last.mean()) / (last.std() + 1e-4)
  np.testing.assert_allclose(memory["advantage"][4:8], expected, rtol=1e-5)
  assert set(method.draw(memory, 0, key)) == {"rollout", "advantage", "share"}


def test_grpo_shares_give_the_mean_over_decisions_or_over_samples():
  mask = jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
  values = jnp.array([[1.0, 2, 3, 4], [10, 99, 99, 99], [99, 99, 99, 99]])
  np.testing.assert_allclose((values * grpo.shares(mask, "decision")).mean(), 20 / 5, rtol=1e-6)
  np.testing.assert_allclose((values * grpo.shares(mask, "sample")).mean(), (2.5 + 10) / 2, rtol=1e-6)


def test_grpo_mixed_noise_and_shared_noise():
  made = policy()
  params = params_of(made, 0.1)
  method = grpo.make(made, reward(), group=G, steps=STEPS, pick="first", size=1, mixed=True, shared_noise=True)
  batch, rollout, _ = experience(method, made, params)
  first = rollout.x[:, 0].reshape(P, G, -1)
  np.testing.assert_array_equal(first, jnp.broadcast_to(first[:, :1], first.shape))
  assert not np.allclose(first[0], first[1])
  keys = base.sample_keys(jax.random.key(77), batch_of(made))  # after the picked step nothing is drawn any more
  times = made.process.times(STEPS)[1:]
  rest = made.sample(params["policy"], rollout.cond, keys, x=rollout.nxt[:, 0], eta=0.0, steps=times)
  np.testing.assert_allclose(rest.output, rollout.output, atol=1e-5)
  assert gradient(method, params, batch)[1]["on_policy_gap"] < 2e-6


def test_grpo_best_of_takes_both_ends_and_no_invalid_sample():
  values = jnp.array([3.0, 1, 2, 0, 9, 8, 7, 6])
  assert grpo.best_and_worst(values, jnp.ones(8, bool), 4, 2).tolist() == [0, 3, 4, 7]
  valid = jnp.array([False, True, True, True, True, True, True, False])
  assert grpo.best_and_worst(values, valid, 4, 2).tolist() == [2, 3, 4, 6]


def test_grpo_updates_use_each_group_once():
  made = policy()
  params, batch, key = params_of(made), batch_of(made), jax.random.key(0)
  method = grpo.make(made, reward(), group=G, steps=STEPS, updates=3)
  rollout = method.rollout(params, batch, base.sample_keys(key, batch))
  memory, _ = method.select(params, (), rollout, scores_of(made, params, rollout), batch, key)
  seen = jnp.concatenate([method.draw(memory, u, key)["advantage"] for u in range(3)])
  np.testing.assert_allclose(np.sort(seen), np.sort(memory["advantage"]))
  assert method.updates == 3


def test_grpo_experience_metrics():
  total = jnp.array([1.0, 1, 1, 1, 0, 1, 2, 3, 0, 0, 1, 9])
  valid = jnp.array([True] * 11 + [False])
  out = grpo.summary(Scores(total, {"p": total}, valid), jnp.ones(12), G)
  assert out["zero_std_ratio"] == pytest.approx(1 / 3) and out["valid"] == pytest.approx(11 / 12)
  assert out["reward_mean"] == pytest.approx(1) and out["part_p"] == pytest.approx(1)


# --- nft -------------------------------------------------------------------------------------------------------------


def nft_case(r, moved=0.1, **options):
  made = policy("ode")
  params = params_of(made, moved)
  method = nft.make(made, reward(), group=G, steps=STEPS, levels=3, **options)
  batch, _, _ = experience(method, made, params)
  return made, params, method, {**batch, "advantage": jnp.full(P * G, 5.0 * (2 * r - 1))}  # limit 5


def test_nft_gradient_vanishes_at_one_half():
  _, params, method, batch = nft_case(0.5, moved=0.0)  # policy = old = reference
  size = jnp.abs(gradient(method, params, {**batch, "advantage": batch["advantage"] + 5})[2]).max()
  assert size > 1e-3 and jnp.abs(gradient(method, params, batch)[2]).max() < 1e-5 * size


def test_nft_gradient_at_one_is_that_of_flow_matching():
  """Towards x0, with factor scale t^2 / w as coded."""
  made, params, method, batch = nft_case(1.0, kl=0.0)
  key, x0 = jax.random.key(5), batch["x0"]
  keys = base.sample_keys(key, batch)
  t = nft.some_levels(np.asarray(made.process.times(STEPS))[:-1], 3, fold(keys, 0))

  def matching(tree):
    total = 0.0
    for i in range(3):
      noise = normal(fold(fold(keys, 1), i), x0.shape[1:])
      level = expand(t[:, i], x0)
      xt = (1 - level) * x0 + level * noise
      predicted = made.denoise({**params["base"], **tree}, batch["cond"], xt, t[:, i])
      v = (xt - predicted) / level
      weight = t[:, i] ** 2 / jax.lax.stop_gradient(mean_elements(jnp.abs(predicted - x0)))
      total += 5 * (weight * mean_elements((v - (noise - x0)) ** 2)).mean() / 3
    return total
  expected = jax.flatten_util.ravel_pytree(jax.grad(matching)(params["policy"]))[0]
  _, metrics, grads = gradient(method, params, batch)
  np.testing.assert_allclose(grads, expected, atol=1e-4 * float(jnp.abs(expected).max()))
  assert "kl" not in metrics and "moved" in metrics


@pytest.mark.parametrize("anchor", nft.ANCHORS)
def test_nft_logs_the_distance_that_it_adds(anchor):
  losses, far = [], 0.0
  for kl in (0.0, 0.5):
    _, params, method, batch = nft_case(1.0, kl=kl, anchor=anchor)
    value, metrics, _ = gradient(method, {**params, "old": params["base"]}, batch)
    losses, far = [*losses, value], metrics.get("kl")
  assert far > 0 and losses[1] - losses[0] == pytest.approx(0.5 * float(far), rel=1e-3)


def test_nft_optimality_and_levels():
  made = policy("ode")
  method = nft.make(made, reward(), group=G, steps=STEPS, levels=STEPS)
  batch, rollout, out = experience(method, made, params_of(made))
  assert batch["advantage"].min() < 0 < batch["advantage"].max()
  assert batch["advantage"].mean() == pytest.approx(0, abs=1e-5)
  keys = base.sample_keys(jax.random.key(0), batch)
  grid = np.asarray(made.process.times(STEPS))[:-1]
  np.testing.assert_allclose(np.sort(nft.some_levels(grid, STEPS, keys)), np.tile(np.sort(grid), (P * G, 1)))
  role, decay, clock = method.follow["old"]
  assert (role, clock) == ("policy", "experience")
  assert [float(decay(n)) for n in (0, 100, 10000)] == pytest.approx([0, 0.1, 0.5])


def test_nft_leaves_invalid_samples_out():
  _, params, method, batch = nft_case(1.0)
  masked = {**batch, "weight": batch["weight"].at[0].set(0), "x0": batch["x0"].at[0].set(1e3)}
  assert gradient(method, params, masked)[0] < 1e2


def test_awm_on_policy_is_reinforce_with_the_pseudo_log_probability():
  made, params, method, batch = nft_case(1.0, kl=0.0, objective="awm")
  key, x0 = jax.random.key(5), batch["x0"]
  keys, a = base.sample_keys(key, batch), jax.random.normal(jax.random.key(8), (P * G,))
  t = nft.some_levels(np.asarray(made.process.times(STEPS))[:-1], 3, fold(keys, 0))

  def reinforce(tree):
    total = 0.0
    for i in range(3):
      noise, level = normal(fold(fold(keys, 1), i), x0.shape[1:]), expand(t[:, i], x0)
      xt = (1 - level) * x0 + level * noise
      v = (xt - made.denoise({**params["base"], **tree}, batch["cond"], xt, t[:, i])) / level
      total += (a * mean_elements((v - noise + x0) ** 2)).mean() / 3
    return total
  expected = jax.flatten_util.ravel_pytree(jax.grad(reinforce)(params["policy"]))[0]
  value, metrics, grads = gradient(method, params, {**batch, "advantage": a})
  np.testing.assert_allclose(grads, expected, atol=1e-4 * float(jnp.abs(expected).max()))
  np.testing.assert_allclose(value, -a.mean(), rtol=1e-5)
  assert metrics["log_ratio"] == 0 and metrics["clip_fraction"] == 0


# --- fit --------------------------------------------------------------------------------------------------------------


def test_fit_trains_what_the_reward_says():
  corner = lambda batch: batch["x"][:, 0, 0, 0]
  judge = reward()._replace(fit=lambda v, b, k: ((v["w"] - corner(b)) ** 2, {"size": jnp.abs(corner(b))}))
  batch = batch_of(policy())
  value, metrics = fit.make(None, judge).loss({"reward": {"w": 1.0}}, batch, jax.random.key(0))
  np.testing.assert_allclose(value, ((1 - batch["x"][:, 0, 0, 0]) ** 2).mean(), rtol=1e-6)
  assert metrics["size"] > 0


# --- all of them -----------------------------------------------------------------------------------------------------


METHODS = {"sft": (sft, {}), "dpo": (dpo, {}), "refl": (refl, {"steps": STEPS}),
           "grpo": (grpo, {"group": G, "steps": STEPS, "clip": 1e-2}),
           "nft": (nft, {"group": G, "steps": STEPS, "levels": 2}),
           "online": (dpo, {"group": G, "steps": STEPS, "online": True}),
           "rwr": (rwr, {"group": G, "steps": STEPS}),
           "dense": (dense, {"group": G, "steps": STEPS, "stored": 3, "tuples": 2 * P, "clip": 1.0, "draws": 2}),
           "awm": (nft, {"group": G, "steps": STEPS, "levels": 2, "objective": "awm", "clip": 1.0})}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"nft", "refl"}))  # those stop gradients inside their losses
def test_gradient_is_that_of_the_loss_by_finite_differences(name):
  module, options = METHODS[name]
  made = policy()
  params, method = params_of(made, 0.05), module.make(made, reward(), **options)
  batch = experience(method, made, params)[0] if method.rollout else batch_of(made)
  value, metrics, grads = gradient(method, params, batch)
  flat, unravel = jax.flatten_util.ravel_pytree(params["policy"])
  step = grads / jnp.linalg.norm(grads)
  after = gradient(method, {**params, "policy": unravel(flat - 1e-3 * step)}, batch)[0]
  np.testing.assert_allclose(value - after, 1e-3 * jnp.linalg.norm(grads), rtol=0.1)
  assert all(np.shape(v) == () for v in metrics.values())


def test_states_of_all_methods_are_arrays():
  made = policy()
  tx = optax.sgd(1.0)
  for module, options in METHODS.values():
    params, method = params_of(made), module.make(made, reward(), **options)
    memory = experience(method, made, params)[0] if method.rollout else batch_of(made)
    state = State(jnp.int32(0), params, tx.init(params), memory)
    assert all(hasattr(leaf, "dtype") and leaf.shape[0] in (P, 2 * P, P * G) for leaf in jax.tree.leaves(state.memory))


MADE = policy()


@pytest.mark.parametrize("call, message", [
  (lambda: sft.make(None), "policy = None: algorithm 'sft' needs a policy; add one"),
  (lambda: grpo.make(MADE, None, group=4), "reward = None: algorithm 'grpo' needs a reward"),
  (lambda: grpo.make(MADE, reward()), "group = 1 must be at least 2; 'grpo' compares the samples of a prompt"),
  (lambda: grpo.make(MADE, reward(), group=4, pick="last"), "pick = 'last' is not one of all, first, window, progr"),
  (lambda: grpo.make(MADE, reward(), group=4, pick="first", size=10), "size = 10 of pick = 'first' must be in 1 .. 9"),
  (lambda: grpo.make(MADE, reward(), group=4, pick="random", mixed=True), "mixed = True with pick = 'random'"),
  (lambda: grpo.make(MADE, reward(), group=4, best_of=3), "best_of = 3 must be even and in 2 .. 4"),
  (lambda: grpo.make(MADE, reward(), group=4, clip=0.0), "clip = 0.0 must be positive"),
  (lambda: grpo.make(MADE, reward(), group=4, std="local"), "mode = 'local' is not one of"),
  (lambda: nft.make(MADE, reward(), group=4, levels=11), "levels = 11 must be in 1 .. 10"),
  (lambda: nft.make(MADE, reward(), group=4, beta=0.0), "beta = 0.0 must be positive"),
  (lambda: nft.make(MADE, reward(), group=4, old_limit=1.0), "old_limit = 1.0 must be in"),
  (lambda: dpo.make(MADE, sft=-1.0), "sft = -1.0 must be at least 0"),
  (lambda: dpo.make(MADE, weighting="late"), "weighting = 'late' is not one of constant, time"),
  (lambda: dpo.make(MADE, online=True, group=4), "reward = None: algorithm 'dpo with online' needs a reward"),
  (lambda: refl.make(MADE, reward("host")), "reward.where = 'host': 'refl' differentiates the reward"),
  (lambda: refl.make(MADE, reward(), count=41), "count = 41 must be in 1 .. 40"),
  (lambda: refl.make(MADE, reward(), phi="abs"), "phi = 'abs' is not one of relu, linear"),
  (lambda: refl.make(MADE, reward(), mode="last"), "mode = 'last' is not one of refl, draft, draft_lv"),
  (lambda: refl.make(MADE, reward(), first=0.9, last=0.9), "first = 0.9, last = 0.9 must be shares of the chain"),
  (lambda: refl.make(MADE, reward(), mode="direct", first=0.0, inversion=1.0), "inversion = 1.0 with first = 0.0"),
  (lambda: refl.make(policy("ddim", process.ddpm()), reward(), mode="endpoint"), "adds up the steps of a rectified"),
  (lambda: dpo.make(MADE, gamma=1.5), "gamma = 1.5 must be in .0, 1."),
  (lambda: dense.make(MADE, reward(), group=8, gamma=0.0), "gamma = 0.0 must be in .0, 1."),
  (lambda: dense.make(MADE, reward(), group=4, stored=6), "tuple_size = 2, stored = 6, group = 4: they must not fall"),
  (lambda: dense.make(MADE, reward(), group=8, clip=0.0), "clip = 0.0 must be positive"),
  (lambda: rwr.make(MADE, reward(), group=4, temperature=0.0), "temperature = 0.0 must be positive"),
  (lambda: rwr.make(MADE, None, group=4), "reward = None: algorithm 'rwr' needs a reward"),
  (lambda: ppo.make(MADE, reward(), lam=1.1), "lam = 1.1 must be in .0, 1."),
  (lambda: grpo.make(MADE, reward(), group=4, buffer=16), "buffer = 16 with prompts = 0"),
  (lambda: grpo.make(MADE, reward(), group=4, win_margin=-1.0), "win_margin = -1.0 must be at least 0"),
  (lambda: dpo.make(MADE, reward(), online=True, group=4, updates=0), "updates = 0 must be at least 1"),
  (lambda: experience(grpo.make(MADE, reward(), group=4, weights={"al": 1.0}), MADE, params_of(MADE)),
   "config.algorithm.weights: the reward has no part 'al', it has all, first"),
  (lambda: grpo.make(MADE, reward(), group=4, buffer=16, prompts=3, win_margin=0.0), "buffer = 16 with weights = None"),
  (lambda: nft.make(MADE, reward(), group=4, objective="ppo"), "objective = 'ppo' is not one of nft, awm"),
  (lambda: sft.make(MADE, of="best"), "of = 'best' is not one of x, win, lose"),
  (lambda: fit.make(None, reward()), "reward.fit = None: 'fit' trains rewards that say how they learn"),
  (lambda: sft.make(MADE).loss({}, {"prompt_id": jnp.zeros(1, int), "sample_id": jnp.zeros(1, int)}, jax.random.key(0)),
   "batch entry 'x' is missing"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


