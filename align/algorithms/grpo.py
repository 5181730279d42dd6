"""GRPO over the steps of a sampler: Flow-GRPO (2505.05470), DanceGRPO (2505.07818), MixGRPO (2507.21802), GRPO-Guard
(2510.22319) and Flow-DPPO are options of this one file.

  loss = mean_{i,k} max(-A_i rho, -A_i clip(rho, 1 - clip, 1 + clip)) + beta KL,  rho = exp(log p - log p_old)

Published settings, with D = 65,536 elements and log-probabilities that are means over them:
  Flow-GRPO        flow_sde, eta .7, 10 steps, G 24, clip 1e-4, beta .04 ("code"), std "global" ddof 0, 2 updates
  Flow-GRPO-Fast   cps, eta .8, pick "window" of 2-3 with mixed, ratio "cps", clip 1e-5, beta 0
  DanceGRPO        dance_sde, eta .3, G 12, pick "random" 60 % of the steps, shared_noise, clip 1e-4,
                   std "group" ddof 1 delta 1e-8
  GRPO-Guard       ratio "norm", reweight
A clip range of 1e-4 on means is 6.6 nats on the sum: at another D, clip = 6.6 / D keeps the nats (8.5e-3 for D = 768),
and 1e-4 sqrt(65,536 / D) the relative change of one element (9e-4); between them is where to tune.
Left out: progressive windows over iterations, value networks, rollouts by an older policy.
"""
import math

import jax
import jax.numpy as jnp

from align import advantage
from align import ratio as ratios
from align.algorithms import base
from align.core import Algorithm
from align.tree import view
from diffusion.core import fold, normal

PICKS = ("all", "first", "window", "random")
RATIOS = ("plain", "gaussian", "cps", "norm")
KLS = ("code", "true", "mean", "v")


def picked(pick: str, size: int, steps: int, reach: float, keys):
  """Indices of the steps that are trained: [K], or [B K] for "random". Never the last one, which has no noise.

  "window": `size` steps in a row that start within the first `reach` of the chain, the same for the whole experience.
  """
  last = steps - 1
  if pick == "all":
    return jnp.arange(last)
  if pick == "first":
    return jnp.arange(size)
  if pick == "window":
    starts = max(1, min(last - size + 1, math.ceil(reach * steps)))
    return jax.random.randint(jax.random.fold_in(keys[0], 1 << 20), (), 0, starts) + jnp.arange(size)
  return jax.vmap(lambda k: jnp.sort(jax.random.permutation(k, last)[:size]))(fold(keys, 1 << 20))


def same_noise(policy, parameters, batch, keys, group: int):
  """x_1 [B ...] from the key of the first sample of each prompt, so that a group starts from one point."""
  shape = jax.eval_shape(policy.sample, parameters, batch["cond"], keys).output.shape[1:]
  first = keys.reshape(-1, group)[:, 0]
  return jnp.repeat(normal(fold(first, 0), shape), group, axis=0)


def best_and_worst(values, valid, group: int, count: int):
  """Indices [P * count] of the count / 2 highest and the count / 2 lowest valid values [B] of each prompt."""
  order = jnp.argsort(jnp.where(valid, values, jnp.nan).reshape(-1, group), axis=-1)  # nan sorts last
  good = valid.reshape(-1, group).sum(-1, keepdims=True)
  half = count // 2
  high = jnp.take_along_axis(order, jnp.maximum(good - 1 - jnp.arange(half), 0), axis=-1)
  chosen = jnp.concatenate([high, order[:, :count - half]], axis=-1)
  return (chosen + jnp.arange(chosen.shape[0])[:, None] * group).reshape(-1)


def advantages(scores, group: int, weights: dict | None, *, std: str, ddof: int, delta: float, clip: float):
  """[B] from a reward's total, or from its parts where weights are given (without parts, the total is the one)."""
  rows = lambda a: a.reshape(-1, group)
  valid = rows(scores.valid)
  if weights and scores.parts:
    parts = {name: rows(part) for name, part in scores.parts.items()}
    return advantage.gdpo(parts, weights, valid, ddof=ddof, delta=delta, clip=clip).reshape(-1)
  return advantage.group(rows(scores.total), valid, mode=std, ddof=ddof, delta=delta, clip=clip).reshape(-1)


def summary(scores, values, group: int) -> dict:
  """What one experience was like: rewards, parts, advantages, and the share of prompts that taught nothing."""
  valid, rows = scores.valid, lambda a: a.reshape(-1, group)
  mean, std = advantage.moments(scores.total, valid)
  total = rows(jnp.where(valid, scores.total, 0.0))
  out = {"reward_mean": mean[0], "reward_std": std[0], "valid": valid.mean(),
         "reward_group_std": advantage.moments(total, rows(valid), -1)[1].mean(),
         "advantage_size": jnp.abs(values).mean(), "advantage_max": jnp.abs(values).max(),
         "zero_std_ratio": advantage.flat(total, rows(valid)).mean()}
  return out | {f"part_{name}": advantage.moments(part, valid)[0][0] for name, part in scores.parts.items()}


def log_ratio(kind: str, now, old):
  """[B K] of a replayed Step against the stored rollout."""
  if kind == "plain":
    return ratios.plain(now.log_prob, old.log_prob)
  if kind == "gaussian":
    return ratios.gaussian(now.mean, old.mean, old.nxt, old.std)
  if kind == "cps":
    return ratios.cps(now.mean, old.mean, old.nxt)
  return ratios.normalised(now.mean, old.mean, old.nxt, old.std)


def clean(policy, parameters, rollout):
  """Guided clean predictions [B K ...] at the stored states."""
  b, k = rollout.std.shape
  x, t = rollout.x.reshape((b * k,) + rollout.x.shape[2:]), rollout.times[..., 0].reshape(-1)
  x0 = policy.denoise(parameters, base.repeat(rollout.cond, k), x, t, True)
  return ratios.output(policy.process, x0, x, t.reshape((-1,) + (1,) * (x.ndim - 1))).reshape(rollout.x.shape)


def divergence(kind: str, policy, params, now, old):
  """[B K]: how far the policy is from the reference at the stored states."""
  reference = jax.lax.stop_gradient(view(params, "ref"))
  if kind == "v":
    return ratios.squared(clean(policy, view(params, "policy"), old), clean(policy, reference, old))
  other = policy.replay(reference, old).mean
  if kind == "mean":
    return ratios.squared(now.mean, other)
  return ratios.kl(now.mean, other, old.std) if kind == "true" else ratios.kl_code(now.mean, other, old.std, old.times)


def check(policy, reward, *, group, steps, size, pick, mixed, ratio_, kl, best_of, updates, epochs, clip):
  base.check_parts("grpo", policy=policy, reward=reward)
  base.check_group("grpo", group)
  for name, value, allowed in (("pick", pick, PICKS), ("ratio", ratio_, RATIOS), ("kl", kl, KLS)):
    base.check_choice(name, value, allowed)
  for name, value in (("updates", updates), ("epochs", epochs)):
    base.check_least(name, value, 1, "1 is an on-policy update")
  base.check_least("steps", steps, 2, "the last step of a chain has no noise and is not trained; 10 is usual")
  if pick != "all" and not 1 <= size < steps:
    raise ValueError(f"size = {size} of pick = {pick!r} must be in 1 .. {steps - 1} (steps - 1, the last one has no "
                     "noise); change size or steps")
  if mixed and pick == "random":
    raise ValueError("mixed = True with pick = 'random': each sample has steps of its own, but the noise is set for "
                     "all of them; allowed are 'first' and 'window', choose one of them")
  if best_of and (best_of % 2 or not 2 <= best_of <= group):
    raise ValueError(f"best_of = {best_of} must be even and in 2 .. {group} (group), half of it best and half worst; "
                     "change it, or 0 for all samples")
  if not clip > 0:
    raise ValueError(f"clip = {clip} must be positive, in units of the mean log-probability; 1e-4 for D = 65,536")


def make(policy, reward=None, *, group: int = 1, steps: int = 10, eta: float = 0.7, pick: str = "all", size: int = 2,
         reach: float = 0.5, mixed: bool = False, shared_noise: bool = False, best_of: int = 0, updates: int = 1,
         epochs: int = 1, std: str = "global", ddof: int = 0, delta: float = 1e-4, advantage_clip: float = 5.0,
         weights: dict | None = None, ratio: str = "plain", clip: float = 1e-4, reweight: bool = False,
         exact_kl: float | None = None, beta: float = 0.0, kl: str = "code", ema: float | None = None) -> Algorithm:
  """The policy's kernel must be noisy; with a deterministic one `on_policy_gap` is infinite and the run stops.

  Args:
    group: samples of a prompt. steps, eta: of the rollout (an evaluation may take more steps, and no noise).
    pick, size, reach: which steps are trained, see `picked`. mixed: noise in those steps only, elsewhere the ODE.
    shared_noise: a group starts from one x_1. best_of: train on that many of a group, the best and the worst half.
    updates, epochs: minibatches of an experience, and how often each is used.
    std: whose standard deviation divides, "group", "global" or "none". weights: {part: weight} for GDPO.
    ratio: "plain" (difference of log-probabilities, any policy; float32 costs 2e-7 at D = 65,536), "gaussian" or "cps"
      (element by element, exact; for kernels with that log-probability) or "norm" (RatioNorm). reweight: loss / Delta.
    clip: range of the ratio. exact_kl: this KL per element masks instead of the clip (Flow-DPPO).
    beta, kl: penalty towards the reference, "code", "true", "mean" (no std) or "v" (two forwards more).
  """
  check(policy, reward, group=group, steps=steps, size=size, pick=pick, mixed=mixed, ratio_=ratio, kl=kl,
        best_of=best_of, updates=updates, epochs=epochs, clip=clip)
  advantage.group(jnp.zeros((1, 2)), mode=std, ddof=ddof)  # refuses what it does not know before any work

  def rollout(params, batch, keys):
    parameters, keep = view(params, "policy"), picked(pick, size, steps, reach, keys)
    x = same_noise(policy, parameters, batch, keys, group) if shared_noise else None
    etas = jnp.zeros(steps).at[keep].set(eta) if mixed else eta
    return policy.sample(parameters, batch["cond"], keys, x=x, steps=steps, eta=etas, keep=keep)

  def select(params, memory, rollout, scores, batch, key):
    values = advantages(scores, group, weights, std=std, ddof=ddof, delta=delta, clip=advantage_clip)
    memory = {"rollout": rollout._replace(output=None), "advantage": values}
    if best_of:
      chosen = best_and_worst(scores.total, scores.valid, group, best_of)
      memory = jax.tree.map(lambda a: a[chosen], memory)
    return memory, summary(scores, values, group)

  def draw(memory, step, key):
    return base.minibatches(memory, step, key, updates, best_of or group)

  def objective(old, now, a, change):
    if exact_kl is not None:
      value = -a * jnp.exp(change)
      stop = ratios.away(change, a, kl_to_old(now, old), exact_kl)
      value = jnp.where(jax.lax.stop_gradient(stop), 0.0, value)
    else:
      value, stop = ratios.clipped(change, a, clip), ratios.outside(change, a, clip)
    return (value / (old.times[..., 0] - old.times[..., 1]) if reweight else value), stop

  def loss(params, batch, key):
    old, a = batch["rollout"], batch["advantage"][:, None]
    now = policy.replay(view(params, "policy"), old)
    change = log_ratio(ratio, now, old)
    value, stop = objective(old, now, a, change)
    far = divergence(kl, policy, params, now, old) if beta else jnp.zeros_like(change)
    mean = lambda v: base.weighted(v, old.mask)
    return mean(value) + beta * mean(far), report(old, now, change, stop, far, clip)

  return Algorithm(rollout, select, draw, loss, {}, base.average(ema), updates * epochs)


def kl_to_old(now, old):
  return ratios.kl(now.mean, old.mean, old.std)


def report(old, now, change, stop, far, clip: float) -> dict:
  """Metrics of one update. `on_policy_gap` is against what was stored at sampling time; 5 % of the clip is allowed."""
  mean = lambda v: base.weighted(v, old.mask)
  some = old.mask.sum() > 0
  gap = jnp.where(some, jnp.abs((now.log_prob - old.log_prob) * old.mask).max(), jnp.inf)
  return {"ratio_mean": mean(jnp.exp(change)), "ratio_spread": jnp.sqrt(mean(change ** 2)),
          "clip_fraction": mean(stop.astype(jnp.float32)), "kl": mean(far), "kl_old": mean(kl_to_old(now, old)),
          "trained_steps": old.mask.mean(), "on_policy_gap": gap, "on_policy_limit": jnp.float32(0.05 * clip)}
