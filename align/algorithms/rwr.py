"""Learning from one's own best samples: reward-weighted regression and rejection sampling.

  loss = mean_i w_i mean_D(weight error^2),  samples from the policy itself, fresh t and noise

  "exp"    w = exp(A / temperature), A the advantage in the prompt's group: RWR of DDPO (2305.13301), Flow-RWR
           (2501.13918) is std "none" with temperature 1 and weights exp(r) up to a factor a prompt
  "best"   w = 1 for the best sample of each prompt, 0 for the others: SFT on chosen samples (RAFT, 2304.06767)

Weights are divided by their mean over the experience, so that the learning rate keeps its meaning. With data of its own
(`online` False) a batch has captioned media and `score` [B], and A = score. For tokens the error is -2 log p, a sum.
Published: DDPO temperature .2 in units of its rewards; Flow-RWR 1 on the mean of z-scored rewards, lr 5e-6, batch 64.
Left out: weights by a learned value, importance weights for samples of older policies. Nothing depends on D.
"""
import jax
import jax.numpy as jnp

from align import advantage
from align.algorithms import base
from align.algorithms.grpo import advantages, summary
from align.core import Algorithm
from align.tree import view

WEIGHTINGS = ("exp", "best")
LARGEST = 20.0  # of an exponent: e^20 of the mean weight is one sample


def weights_of(weighting: str, values, scores, temperature: float, group: int):
  """[B] weights of mean 1 over the valid samples, 0 of invalid ones and, for "best", of prompts whose scores are all
  equal."""
  valid = scores.valid
  if weighting == "best":
    total = jnp.where(valid, scores.total, -jnp.inf).reshape(-1, group)
    chosen = jax.nn.one_hot(total.argmax(-1), group)
    moved = ~advantage.flat(base.rows(scores.total, group), base.rows(valid, group))
    raw = (chosen * moved).reshape(-1)
  else:
    raw = jnp.exp(jnp.clip(values / temperature, -LARGEST, LARGEST))
  raw = jnp.where(valid, raw, 0.0)
  return raw * valid.sum() / jnp.maximum(raw.sum(), 1e-8)


def make(policy, reward=None, *, online: bool = True, group: int = 1, steps: int = 10, weighting: str = "exp",
         temperature: float = 1.0, std: str = "group", ddof: int = 0, delta: float = 1e-4, updates: int = 1,
         epochs: int = 1, ema: float | None = None) -> Algorithm:
  """group (samples of a prompt), steps, std, ddof, delta, updates, epochs: as in grpo, online only."""
  base.check_parts("rwr", policy=policy)
  base.check_choice("weighting", weighting, WEIGHTINGS)
  if not temperature > 0:
    raise ValueError(f"temperature = {temperature} must be positive; 1 is usual for advantages")

  def loss(params, batch, key):
    keys, x = base.sample_keys(key, batch), base.media_of(batch, "x", "rwr")
    t = base.levels(policy, keys)
    error = -2 * policy.log_prob(view(params, "policy"), batch["cond"], x, keys, t)
    weight = batch["weight"]
    return (weight * error).mean(), {"error": error.mean(), "weight_max": weight.max(),
                                     **({} if t is None else base.by_level("error", error, t))}

  def offline_weights(batch):
    score = base.media_of(batch, "score", "rwr offline")
    raw = jnp.exp(jnp.clip((score - score.max()) / temperature, -LARGEST, 0.0))
    return {**batch, "weight": base.share(raw)}

  if not online:
    return base.offline(loss, draw=lambda memory, step, key: offline_weights(memory), follow=base.average(ema))
  base.check_parts("rwr", reward=reward)
  base.check_group("rwr", group)
  for name, value in (("updates", updates), ("epochs", epochs)):
    base.check_least(name, value, 1, "1 is an on-policy update")
  advantage.group(jnp.zeros((1, 2)), mode=std, ddof=ddof)  # refuses what it does not know before any work

  def rollout(params, batch, keys):
    return policy.sample(view(params, "policy"), batch["cond"], keys, **base.chain(policy, steps, eta=0.0))

  def select(params, memory, rollout, scores, batch, key):
    values = advantages(scores, group, None, std=std, ddof=ddof, delta=delta, clip=None)
    weight = weights_of(weighting, values, scores, temperature, group)
    memory = {"cond": rollout.cond, "x": rollout.output, "weight": weight, "prompt_id": batch["prompt_id"],
              "sample_id": batch["sample_id"]}
    return memory, summary(scores, values, group)

  def draw(memory, step, key):
    return base.minibatches(memory, step, key, updates, group)

  return Algorithm(rollout, select, draw, loss, {}, base.average(ema), updates * epochs)
