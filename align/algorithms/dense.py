"""Dense Reward (2402.08265): preference over stored denoising chains, each step's log-ratio discounted by gamma^k.

  h_i = mean_m clip(log p(i, k_m) - log p_ref(i, k_m), -clip, clip),  k_m ~ p_k = gamma^k / sum gamma^k,  m = 1 .. draws
  loss = -log PL(scale h),  Plackett-Luce of `tuple_size` chains of one prompt in the order of their final rewards

Log-probabilities are means over the D elements of a latent, so clip and scale belong to D; the steps k_m are the same
for the chains of a tuple, sampled and not multiplied in. The clip is a hard clamp: outside it the gradient is zero,
and the logits stay near 0, the loss near log 2 (K = 2): that is the published regime, a trust region around the
reference.

Published, D = 16,384, SD1.5, ddim at eta 1, 50 steps, guidance 7.5 in rollout and in both log-probabilities, AdamW:
  one prompt     scale 10, clip 1e-4 (1.64 nats), draws 3, group 5, stored 5, lr 3e-5, 4 tuples, 2,500 updates a stage
  many prompts   scale 12.5, clip 5e-4 (8.19 nats), draws 1, group 12, stored 5, lr 2e-5, 32 tuples, 4,000 updates
At another D keep the nats: clip 8.19 / D and scale 12.5 D / 16,384. A stage is one experience: its chains replace those
of the stage before. On a flow use the kernel ddim at eta 1.
Left out: the second ratio against the sampling policy (weight 0 in the released code), its warm-up without reference.
A tuple whose rewards are all equal, or not all valid, has weight 0; the released code breaks ties by chance.
"""
import jax
import jax.numpy as jnp
import numpy as np

from align import discount, ratio
from align.algorithms import base
from align.algorithms.grpo import summary
from align.core import Algorithm
from align.tree import view

KEPT = ("x", "nxt", "times", "log_prob", "std", "mask")  # of a rollout, one entry a step


def noisy_steps(policy, steps: int) -> int:
  """How many steps of a chain have noise: the last one has none where the grid ends at pure data."""
  end = float(policy.process.scales(jnp.float32(policy.process.times(steps)[-1]))[1])
  return steps - 1 if end == 0 else steps


def by_rank(scores, group: int, count: int):
  """Indices [P * count] into B: chains of each prompt at even ranks of the reward, lowest first (0 2 5 8 11 of 12)."""
  total = jnp.where(scores.valid, scores.total, -jnp.inf).reshape(-1, group)
  ranks = np.linspace(0, group - 1, count).astype(int)
  chosen = jnp.argsort(total, axis=-1)[:, ranks]
  return (chosen + jnp.arange(total.shape[0])[:, None] * group).reshape(-1)


def plackett_luce(logits, rewards, keys):
  """-log PL [P] of logits [P K], the highest of rewards [P K] first; equal rewards in the order that keys [P] draw."""
  chance = jax.vmap(lambda k: jax.random.uniform(k, rewards.shape[1:]))(keys)
  order = jnp.lexsort((chance, -rewards), axis=-1)
  ordered = jnp.take_along_axis(logits, order, -1)
  rest = jax.lax.cumlogsumexp(ordered, axis=1, reverse=True)
  return (rest - ordered).sum(-1)


def check(policy, reward, *, group, stored, tuple_size, tuples, updates, draws, scale, clip, eta):
  base.check_parts("dense", policy=policy, reward=reward)
  base.check_diffusion("dense", policy)
  base.check_group("dense", group)
  for name, value, advice in (("tuples", tuples, "32 is published"), ("updates", updates, "4000 is published"),
                              ("draws", draws, "1 to 3 are published")):
    base.check_least(name, value, 1, advice)
  if not 2 <= tuple_size <= stored <= group:
    raise ValueError(f"tuple_size = {tuple_size}, stored = {stored}, group = {group}: they must not fall, from 2 "
                     "upwards; 2, 5 and 12 are published")
  for name, value in (("scale", scale), ("clip", clip), ("eta", eta)):
    if not value > 0:
      raise ValueError(f"{name} = {value} must be positive; scale 12.5, clip 5e-4 for D = 16,384, eta 1 are published")


def make(policy, reward=None, *, group: int = 1, steps: int = 50, eta: float = 1.0, gamma: float = 0.9,
         scale: float = 12.5, clip: float = 5e-4, draws: int = 1, stored: int = 5, tuple_size: int = 2,
         tuples: int = 32, updates: int = 1, ema: float | None = None) -> Algorithm:
  """The policy's kernel must be noisy; with a deterministic one `on_policy_gap` is infinite and the run stops.

  Args:
    group: chains sampled per prompt. stored: how many of them are kept, at even ranks of the reward. steps, eta: of the
      rollout. gamma, draws: of the steps that are trained. scale, clip: see above (C and the ratio clip of the code).
    tuple_size, tuples: chains that are compared, and how many such tuples an update draws. updates: of one stage.
  """
  check(policy, reward, group=group, stored=stored, tuple_size=tuple_size, tuples=tuples, updates=updates, draws=draws,
        scale=scale, clip=clip, eta=eta)
  discount.check(gamma, steps)
  kept = noisy_steps(policy, steps)
  chances = jnp.asarray(discount.chances(gamma, kept), jnp.float32)

  def rollout(params, batch, keys):
    return policy.sample(view(params, "policy"), batch["cond"], keys, steps=steps, eta=eta, keep=jnp.arange(kept))

  def select(params, memory, rollout, scores, batch, key):
    chosen = by_rank(scores, group, stored)
    memory = {"rollout": rollout._replace(output=None, mean=None), "reward": jnp.where(scores.valid, scores.total, 0.0),
              "valid": scores.valid}
    memory = jax.tree.map(lambda a: a[chosen], memory)
    return memory, summary(scores, jnp.zeros_like(scores.total), group)

  def draw(memory, step, key):
    prompts, some, when = jax.random.split(jax.random.fold_in(key, step), 3)
    prompt = jax.random.randint(prompts, (tuples,), 0, memory["reward"].shape[0] // stored)
    chains = jax.vmap(lambda k: jax.random.permutation(k, stored)[:tuple_size])(jax.random.split(some, tuples))
    batch = jax.tree.map(lambda a: a[prompt[:, None] * stored + chains], memory)  # [tuples tuple_size ...]
    when = jax.random.choice(when, kept, (tuples, draws), p=chances)
    cut = {name: jax.vmap(lambda a, i: a[:, i])(getattr(batch["rollout"], name), when) for name in KEPT}
    told = batch["valid"].all(-1) & (batch["reward"].max(-1) > batch["reward"].min(-1))
    return {**batch, "rollout": batch["rollout"]._replace(**cut), "weight": base.share(told),
            "chance": jax.random.split(jax.random.fold_in(some, 1), tuples)}

  def loss(params, batch, key):
    old = jax.tree.map(lambda a: a.reshape((-1,) + a.shape[2:]), batch["rollout"])
    now = policy.replay(view(params, "policy"), old)
    other = policy.replay(jax.lax.stop_gradient(view(params, "ref")), old)
    change = ratio.gaussian(now.mean, other.mean, old.nxt, old.std)
    h = base.rows(jnp.clip(change, -clip, clip) * old.mask, tuple_size).mean(-1)
    rewards, weight = batch["reward"], batch["weight"]
    each = plackett_luce(scale * h, rewards, batch["chance"])
    return (each * weight).mean(), report(old, now, change, h, rewards, weight, clip)

  return Algorithm(rollout, select, draw, loss, {}, base.average(ema), updates)


def report(old, now, change, h, rewards, weight, clip: float) -> dict:
  """How much is clipped (near 1, training has stopped), whether the order is right, and the on-policy gap."""
  mean = lambda v: base.weighted(v, old.mask)
  best = jnp.take_along_axis(h, rewards.argmax(-1)[:, None], -1)[:, 0]
  worst = jnp.take_along_axis(h, rewards.argmin(-1)[:, None], -1)[:, 0]
  right = jnp.where(best == worst, 0.5, best > worst)
  gap = jnp.where(old.mask.sum() > 0, jnp.abs((now.log_prob - old.log_prob) * old.mask).max(), jnp.inf)
  return {"clip_fraction": mean((jnp.abs(change) > clip).astype(jnp.float32)), "log_ratio": mean(change),
          "log_ratio_size": mean(jnp.abs(change)), "accuracy": (right * weight).mean(), "tuples": (weight > 0).mean(),
          "on_policy_gap": gap, "on_policy_limit": jnp.float32(0.05 * clip)}
