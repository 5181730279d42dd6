"""GRPO over the decisions of a sampler: Flow-GRPO (2505.05470), DanceGRPO (2505.07818), MixGRPO (2507.21802),
GRPO-Guard (2510.22319), Flow-DPPO, DDPO (2305.13301), and GRPO over tokens (2402.03300) are options of this one file.

  loss = mean_{i,k} max(-A_i rho, -A_i clip(rho, 1 - clip, 1 + clip)) + beta KL,  rho = exp(log p - log p_old)

Published settings, with D = 65,536 elements and log-probabilities that are means over them:
  Flow-GRPO        flow_sde, eta .7, 10 steps, G 24, clip 1e-4, beta .04 ("code"), std "global" ddof 0, 2 updates
  Flow-GRPO-Fast   cps, eta .8, pick "window" of 2-3 with mixed, ratio "cps", clip 1e-5, beta 0
  DanceGRPO        dance_sde, eta .3, G 12, pick "random" 60 % of the steps, shared_noise, clip 1e-4,
                   std "group" ddof 1 delta 1e-8
  MixGRPO          flow_sde, eta .7, 25 steps, G 12, pick "progressive" 4 with mixed, hold 25, shared_noise, std "group"
                   ddof 1 delta 1e-8
  GRPO-Guard       ratio "norm", reweight
  DDPO             a ddpm process with ddim, eta 1, 50 steps, guidance 5, buffer 16 (32 in JAX), clip 1e-4, 4 updates
  Pref-GRPO        win_margin 0, ratio "norm", std "group" ddof 1 delta 1e-8, flow_sde eta .7, 25 steps of which 60 %
                   (pick "random"), G 8, shared_noise
  GDPO             weights {part: weight}: of a reward's parts as they are logged, such as those of a mixture, whose own
                   weights, gates and scales then do not count (advantage.gdpo)
  tokens           clip .2, kl "k3" beta .04, std "group", per "sample" (a log-probability is that of one token)
A clip range of 1e-4 on means is 6.6 nats on the sum: at another D, clip = 6.6 / D keeps the nats (8.5e-3 for D = 768),
and 1e-4 sqrt(65,536 / D) the relative change of one element (9e-4); between them is where to tune.
Left out: value networks (ppo.py), rollouts by an older policy, windows of uneven duration.
"""
import math

import jax
import jax.numpy as jnp

from align import advantage
from align import ratio as ratios
from align.algorithms import base
from align.build import UserError
from align.core import Algorithm
from align.tree import view
from diffusion.core import fold, normal

PICKS = ("all", "first", "window", "progressive", "random")
RATIOS = ("plain", "gaussian", "cps", "norm")
KLS = ("code", "true", "mean", "v", "k3")
PER = ("decision", "sample")


def picked(pick: str, size: int, steps: int, reach: float, keys, experience=0, hold: int = 25, seed: int = 0):
  """Indices of the steps that are trained: [K], or [B K] for "random". Never the last one, which has no noise.

  "window": `size` steps in a row that start within the first `reach` of the chain, the same for the whole experience,
  which may be sampled in chunks, so that seed and experience decide alone.
  "progressive": such a window that moves on by one step every `hold` experiences and begins anew at the end.
  """
  last = steps - 1
  if pick == "all":
    return jnp.arange(last)
  if pick == "first":
    return jnp.arange(size)
  if pick == "progressive":
    return (experience // hold) % (last - size + 1) + jnp.arange(size)
  if pick == "window":
    starts = max(1, min(last - size + 1, math.ceil(reach * steps)))
    return jax.random.randint(jax.random.fold_in(jax.random.key(seed), experience), (), 0, starts) + jnp.arange(size)
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
    for name in set(weights) - set(scores.parts):
      raise UserError(f"config.algorithm.weights: the reward has no part {name!r}, it has "
                      f"{', '.join(sorted(scores.parts))}; rename it")
    parts = {name: rows(part) for name, part in scores.parts.items()}
    return advantage.gdpo(parts, weights, valid, ddof=ddof, delta=delta, clip=clip).reshape(-1)
  return advantage.group(rows(scores.total), valid, mode=std, ddof=ddof, delta=delta, clip=clip).reshape(-1)


def from_buffer(memory, prompts: int, size: int, batch, scores, *, ddof: int, delta: float, clip: float):
  """(advantages [B] against the last `size` rewards of each prompt, the buffer with these added)."""
  state = memory["buffer"] if memory else advantage.buffer(prompts, size)
  state, values = advantage.buffered(state, batch["prompt_id"], scores.total, scores.valid, least=min(16, size),
                                     ddof=ddof, delta=delta, clip=clip)
  return values, state


def ranked(scores, group: int, margin: float | None):
  """Scores whose total is the win rate in the group, or as they are where margin is None."""
  if margin is None:
    return scores
  rate = advantage.win_rate(base.rows(scores.total, group), base.rows(scores.valid, group), margin=margin)
  return scores._replace(total=rate.reshape(-1))


def shares(mask, per: str):
  """[B K] weights whose mean over the minibatch makes the mean over decisions, or over samples of their mean decision.

  They are set before accumulation cuts the minibatch, so that pieces with fewer tokens do not weigh more."""
  return base.share(mask / jnp.maximum(mask.sum(-1, keepdims=True), 1) if per == "sample" else mask)


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
  if kind == "k3":
    return ratios.k3(now.log_prob, policy.replay(reference, old).log_prob)
  other = policy.replay(reference, old).mean
  if kind == "mean":
    return ratios.squared(now.mean, other)
  return ratios.kl(now.mean, other, old.std) if kind == "true" else ratios.kl_code(now.mean, other, old.std, old.times)


def check_tokens(pick, ratio_, kl, *needs_noise):
  """Refuses what only chains of denoising steps have."""
  for name, value, only in (("pick", pick, "all"), ("ratio", ratio_, "plain"), ("kl", kl, "k3")):
    if value != only:
      raise ValueError(f"{name} = {value!r}: this policy makes tokens, for which only {only!r} is defined; choose "
                       "that, or a diffusion policy")
  for name, value in needs_noise:
    if value:
      raise ValueError(f"{name} = {value}: this policy makes tokens, which have no noise; leave it out, or choose a "
                       "diffusion policy")


def check(policy, reward, *, group, steps, size, pick, mixed, ratio_, kl, best_of, updates, epochs, clip, hold, per,
          buffer, prompts, weights, win_margin):
  base.check_parts("grpo", policy=policy, reward=reward)
  base.check_group("grpo", group)
  for name, value, allowed in (("pick", pick, PICKS), ("ratio", ratio_, RATIOS), ("kl", kl, KLS), ("per", per, PER)):
    base.check_choice(name, value, allowed)
  for name, value in (("updates", updates), ("epochs", epochs), ("hold", hold)):
    base.check_least(name, value, 1, "1 is an on-policy update")
  if buffer and (weights or win_margin is not None):
    raise ValueError(f"buffer = {buffer} with weights = {weights}, win_margin = {win_margin}: a buffer compares one "
                     "reward over time; leave one of them out")
  if buffer and prompts < 1:
    raise ValueError(f"buffer = {buffer} with prompts = {prompts}: it must know how many prompts there are, which a "
                     "config's data says; set prompts")
  if weights and win_margin is not None:
    raise ValueError(f"weights = {weights} with win_margin = {win_margin}: win rates are those of the reward's total, "
                     "but weights take its parts, each on its own scale; leave one of them out")
  base.check_least("steps", steps, 2, "the last step of a chain has no noise and is not trained; 10 is usual")
  if win_margin is not None:
    base.check_least("win_margin", win_margin, 0, "in units of the reward; 0 counts exact ties only")
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


def make(policy, reward=None, *, group: int = 1, prompts: int = 0, micro: int = 1, seed: int = 0, steps: int = 10,
         eta: float = 0.7, pick: str = "all", size: int = 2, fraction: float = 0.0, reach: float = 0.5,
         hold: int = 25, mixed: bool = False, shared_noise: bool = False, best_of: int = 0, updates: int = 1,
         epochs: int = 1, std: str = "global", ddof: int = 0, delta: float = 1e-4, advantage_clip: float = 5.0,
         buffer: int = 0, weights: dict | None = None, win_margin: float | None = None, ratio: str = "plain",
         clip: float = 1e-4, per: str = "decision", reweight: bool = False, exact_kl: float | None = None,
         beta: float = 0.0, kl: str | None = None, recompute: bool = False, ema: float | None = None) -> Algorithm:
  """The policy's kernel must be noisy; with a deterministic one `on_policy_gap` is infinite and the run stops.

  Args:
    group: samples of a prompt; prompts: how many the data have; micro: pieces of an update; seed: of the run; all are
      taken from the config. steps, eta: of the rollout (an evaluation may take more steps, and no noise).
    pick, size, reach, hold: which steps are trained, see `picked`; a `fraction` above 0 of the steps replaces size.
    mixed: noise in those steps only, elsewhere the ODE.
    shared_noise: a group starts from one x_1. best_of: train on that many of a group, the best and the worst half.
    updates, epochs: minibatches of an experience, and how often each is used.
    std: whose standard deviation divides, "group", "global" or "none". buffer: compare with that many last rewards of
      the same prompt instead. weights: {part: weight} for GDPO. win_margin: replace rewards by win rates in the group,
      where smaller differences are ties.
    ratio: "plain" (difference of log-probabilities, any policy; float32 costs 2e-7 at D = 65,536), "gaussian" or "cps"
      (element by element, exact; for kernels with that log-probability) or "norm" (RatioNorm). reweight: loss / Delta.
    clip: range of the ratio. exact_kl: this KL per element masks instead of the clip (Flow-DPPO). per: a mean over
      "decision"s, or over the mean decision of each "sample" (which differ where samples have different lengths).
    beta, kl: penalty towards the reference, "code" (the default), "true", "mean" (no std), "v" (two forwards more) or
      "k3", which serves tokens (their default).
    recompute: old values from a replay before the first update, in pieces like the update's, one forward more: for
      networks in bfloat16, where sampling and replay differ by rounding, which is then logged as `sampling_gap`.
  """
  tokens = policy is not None and policy.process is None
  kl = kl or ("k3" if tokens else "code")
  size = max(1, round(fraction * steps)) if fraction else size
  check(policy, reward, group=group, steps=steps, size=size, pick=pick, mixed=mixed, ratio_=ratio, kl=kl, per=per,
        best_of=best_of, updates=updates, epochs=epochs, clip=clip, hold=hold, buffer=buffer, prompts=prompts,
        weights=weights, win_margin=win_margin)
  advantage.group(jnp.zeros((1, 2)), mode=std, ddof=ddof)  # refuses what it does not know before any work
  if tokens:
    check_tokens(pick, ratio, kl, ("mixed", mixed), ("shared_noise", shared_noise), ("reweight", reweight),
                 ("exact_kl", exact_kl))

  def rollout(params, batch, keys):
    if tokens:
      return policy.sample(view(params, "policy"), batch["cond"], keys)
    parameters = view(params, "policy")
    keep = picked(pick, size, steps, reach, keys, batch["experience"][0], hold, seed)
    x = same_noise(policy, parameters, batch, keys, group) if shared_noise else None
    etas = jnp.zeros(steps).at[keep].set(eta) if mixed else eta
    return policy.sample(parameters, batch["cond"], keys, x=x, steps=steps, eta=etas, keep=keep)

  def select(params, memory, rollout, scores, batch, key):
    kept = {}
    if buffer:
      values, kept["buffer"] = from_buffer(memory, prompts, buffer, batch, scores, ddof=ddof, delta=delta,
                                           clip=advantage_clip)
    else:
      values = advantages(ranked(scores, group, win_margin), group, weights, std=std, ddof=ddof, delta=delta,
                          clip=advantage_clip)
    memory, out = {"rollout": rollout._replace(output=None), "advantage": values}, summary(scores, values, group)
    if best_of:
      chosen = best_and_worst(scores.total, scores.valid, group, best_of)
      memory = jax.tree.map(lambda a: a[chosen], memory)
    if recompute:
      again = base.recomputed(policy, view(params, "policy"), memory["rollout"], updates, micro)
      memory["rollout"], out["sampling_gap"] = again
    return {**memory, **kept}, out

  def draw(memory, step, key):
    samples = {name: memory[name] for name in ("rollout", "advantage")}
    batch = base.minibatches(samples, step, key, updates, best_of or group)
    return {**batch, "share": shares(batch["rollout"].mask, per)}

  def loss(params, batch, key):
    old, a = batch["rollout"], batch["advantage"][:, None]
    now = policy.replay(view(params, "policy"), old)
    change = log_ratio(ratio, now, old)
    value, stop = objective(old, now, a, change, clip, exact_kl)
    value = value / (old.times[..., 0] - old.times[..., 1]) if reweight else value
    far = divergence(kl, policy, params, now, old) if beta else None
    mean = lambda v: (v * batch["share"]).mean()
    total = mean(value) + (beta * mean(far) if beta else 0)
    return total, report(old, now, change, stop, far, clip, noisy_levels(policy, steps))

  return Algorithm(rollout, select, draw, loss, {}, base.average(ema), updates * epochs,
                   decisions=not tokens)


def objective(old, now, a, change, clip: float, exact_kl: float | None):
  """(loss [B K], where a decision no longer counts [B K]): clipped, or masked by the exact KL (Flow-DPPO)."""
  if exact_kl is None:
    return ratios.clipped(change, a, clip), ratios.outside(change, a, clip)
  stop = ratios.away(change, a, kl_to_old(now, old), exact_kl)
  return jnp.where(jax.lax.stop_gradient(stop), 0.0, -a * jnp.exp(change)), stop


def kl_to_old(now, old):
  return ratios.k3(now.log_prob, old.log_prob) if old.mean is None else ratios.kl(now.mean, old.mean, old.std)


def noisy_levels(policy, steps: int):
  """The levels at which the steps of a chain begin that have noise, falling; None of tokens."""
  return None if policy.process is None else jnp.asarray(policy.process.times(steps)[:-2], jnp.float32)


def report(old, now, change, stop, far, clip: float, levels) -> dict:
  """Metrics of one update, or of a piece of one, nan where nothing is trained. `on_policy_gap` is against what was
  stored at sampling time; 5 % of the clip is allowed. far: how far the reference is, None where nothing asks. levels:
  as of `noisy_levels`, for divergences by noise."""
  some = old.mask.sum() > 0
  mean = lambda v: jnp.where(some, base.weighted(v, old.mask), jnp.nan)
  gap = jnp.where(some, jnp.abs((now.log_prob - old.log_prob) * old.mask).max(), jnp.inf)
  kls = {**({} if far is None else {"kl": far}), "kl_old": kl_to_old(now, old)}
  parts = {} if levels is None else {k: v for name, kl in kls.items()
                                     for k, v in base.by_part(name, kl, old.mask, old.times[..., 0], levels).items()}
  share = lambda which: mean(which.astype(jnp.float32))
  return {"ratio_mean": mean(jnp.exp(change)), "ratio_spread": jnp.sqrt(mean(change ** 2)),
          "clip_fraction": share(stop), "clip_high": share(stop & (change > 0)), "clip_low": share(stop & (change < 0)),
          **{name: mean(kl) for name, kl in kls.items()}, **parts,
          "trained_steps": old.mask.mean(), "on_policy_gap": gap, "on_policy_limit": jnp.float32(0.05 * clip)}
