"""Diffusion-DPO (2311.12908) and Flow-DPO (2501.13918), from a data set of pairs or from own samples.

  loss = -log sigmoid(beta_t [(l_w - l_w^ref) - (l_l - l_l^ref)]),  l = policy.log_prob = -0.5 mean_D(weight error^2)

so that the factor -0.5 beta of the released code is in l, and errors are means, as there. Winner and loser share noise
level and noise. Published beta on means: 2000 (SD1.5), 5000 (SDXL), 100 (Flow-DPO in flow_grpo's code); a beta on sums
is beta_mean / D, so that 500 on the sum over a latent of D = 65,536 would be 3.3e7 here. `weighting` "time" is
Flow-DPO's derived beta (1 - t)^2, which its authors found to hack the reward; they keep "constant". `gamma` < 1 weighs
beta_t by the discount of Dense Reward (2402.08265) at the step of a chain of `chain` steps that starts at t: the
discounted return of the chain, with Jensen's inequality moving the mean over steps out of the logarithm as in
Diffusion-DPO. `sft` adds that much of -l_w, which keeps what is preferred likely where DPO alone makes both less so
(RPO, 2404.19733; of tokens .2 to 1 of the mean over an answer, which here is a sum); `error_win` logs -2 l_w. Tokens
have no t: their log-probability is an exact sum, and a published beta is .1 (2305.18290).

Online (flow_grpo's OnlineDPO): the best and the worst of each prompt's samples are a pair, no pair where all are equal.
Left out: guidance in the loss, the variant on |y - y_ref|, independent flips of the two images.
"""
import jax
import jax.numpy as jnp

from align import discount
from align.algorithms import base
from align.algorithms.grpo import summary
from align.core import Algorithm
from align.tree import view
from diffusion.core import fold

WEIGHTINGS = ("constant", "time")


def extremes(scores, group: int):
  """Indices [P] into B of the best and the worst valid sample of each prompt, and [P] 1 where they differ, else 0."""
  total, valid = scores.total.reshape(-1, group), scores.valid.reshape(-1, group)
  high, low = jnp.where(valid, total, -jnp.inf), jnp.where(valid, total, jnp.inf)
  start = jnp.arange(total.shape[0]) * group
  return start + high.argmax(-1), start + low.argmin(-1), (high.max(-1) > low.min(-1)).astype(jnp.float32)


def pair(rollout, scores, batch, group: int) -> dict:
  """A batch of pairs [P ...] from samples [P * group ...]."""
  win, lose, weight = extremes(scores, group)
  first = jax.tree.map(lambda a: a[::group], {"cond": batch["cond"], "prompt_id": batch["prompt_id"],
                                              "sample_id": batch["sample_id"]})
  return {**first, "win": rollout.output[win], "lose": rollout.output[lose], "weight": weight}


def weighed(batch: dict) -> dict:
  """A batch whose weights of pairs, where it has some, have mean 1."""
  return {**batch, "weight": base.share(batch["weight"])} if "weight" in batch else batch


def strength(weighting: str, gamma: float, chain: int, t):
  """beta_t / beta [B], or 1 where there is no t."""
  if t is None:
    return 1.0
  return (1.0 if weighting == "constant" else (1 - t) ** 2) * discount.weight(t, gamma, chain)


def make(policy, reward=None, *, beta: float = 100.0, weighting: str = "constant", gamma: float = 1.0, chain: int = 50,
         shared_noise: bool = True, sft: float = 0.0, online: bool = False, group: int = 1, steps: int = 10,
         updates: int = 1, epochs: int = 1, ema: float | None = None) -> Algorithm:
  """group (samples of a prompt), steps (of the sampler), updates (minibatches of pairs), epochs: online only."""
  base.check_parts("dpo", policy=policy)
  base.check_choice("weighting", weighting, WEIGHTINGS)
  discount.check(gamma, chain)
  if policy.process is None and (weighting != "constant" or gamma != 1):
    raise ValueError(f"weighting = {weighting!r}, gamma = {gamma}: this policy makes tokens, which have no noise "
                     "levels; use weighting 'constant' and gamma 1, or a diffusion policy")
  if not beta > 0:
    raise ValueError(f"beta = {beta} must be positive; 100 to 5000 are published for means over elements")
  base.check_least("sft", sft, 0, "0 is DPO alone")

  def gains(params, batch, t, keys):
    """[2 B]: log_prob of policy over reference, winners first, losers after them."""
    both = lambda a: jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), a)
    x = jnp.concatenate([base.media_of(batch, "win", "dpo"), base.media_of(batch, "lose", "dpo")])
    pairs = jnp.concatenate([keys, keys if shared_noise else fold(keys, 2)])
    level = None if t is None else both(t)
    score = lambda parameters: policy.log_prob(parameters, both(batch["cond"]), x, pairs, level)
    now = score(view(params, "policy"))
    return now - score(jax.lax.stop_gradient(view(params, "ref"))), now

  def loss(params, batch, key):
    keys = base.sample_keys(key, batch)
    t = base.levels(policy, keys)
    gain, now = gains(params, batch, t, keys)
    win, lose = jnp.split(gain, 2)
    margin = beta * strength(weighting, gamma, chain, t) * (win - lose)
    weight = batch.get("weight", jnp.ones_like(margin))
    value = -jax.nn.log_sigmoid(margin) - sft * jnp.split(now, 2)[0]
    return (value * weight).mean(), report(margin, win, lose, -2 * now, weight, t, beta)

  if not online:
    return base.offline(loss, draw=lambda memory, step, key: weighed(memory), follow=base.average(ema))
  base.check_parts("dpo with online", reward=reward)
  base.check_group("dpo with online", group)
  for name, value in (("updates", updates), ("epochs", epochs)):
    base.check_least(name, value, 1, "1 is an on-policy update")

  def rollout(params, batch, keys):
    return policy.sample(view(params, "policy"), batch["cond"], keys, **base.chain(policy, steps))

  def select(params, memory, rollout, scores, batch, key):
    memory = pair(rollout, scores, batch, group)
    return memory, {**summary(scores, jnp.zeros_like(scores.total), group), "pairs": memory["weight"].mean()}

  def draw(memory, step, key):
    return weighed(base.minibatches(memory, step, key, updates))

  return Algorithm(rollout, select, draw, loss, {}, base.average(ema), updates * epochs)


def report(margin, win, lose, errors, weight, t, beta) -> dict:
  """Implicit accuracy (a margin of 0 counts half), margin, and what happens to chosen and rejected separately."""
  right = jnp.where(margin == 0, 0.5, margin > 0)
  chosen, rejected = jnp.split(errors, 2)
  mean = lambda v: (v * weight).mean()
  out = {"accuracy": mean(right), "margin": mean(margin), "gain_win": beta * mean(win), "gain_lose": beta * mean(lose),
         "error_win": mean(chosen), "error_lose": mean(rejected)}
  for name, values in (("accuracy", right), ("error_win", chosen), ("error_lose", rejected)):
    out |= {} if t is None else base.by_level(name, values, t)
  return out
