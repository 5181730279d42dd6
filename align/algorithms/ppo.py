"""PPO over the steps of a sampler with a value network (1707.06347), as Seedance compares with; DPOK (2305.16381) is
a setting of it: lam 1, kl "v", one value per state of the chain.

  delta_k = V(x_{k+1}) - V(x_k), at the last kept step r - V(x_k);  A_k = sum_j lam^(j-k) delta_j
  loss = mean max(-A rho, -A clip(rho)) + beta KL + value mean (V(x_k) - target)^2,  target = A_k + V(x_k) at sampling

The reward comes at the end and is not discounted. Advantages are normalised over the experience. The role `value` is
trained with the policy: set trained to "^(policy|value)/"; it begins at V = 0, so that the first A is the reward
itself, normalised. Where prompts differ more than samples of one do, V is busy with the prompts for long: `centre`
takes the mean over its samples away from each prompt's rewards, and V learns the rest. Clip ranges are those of
grpo.py. Published: DPOK ddim eta 1, 50 steps, guidance 7.5, beta .01 with A scaled by 10, clip 1e-4, value lr 1e-4 with
updates of its own; PPO clip .2 on sums, lam .95.
Left out: separate updates, a replay buffer and a learning rate for the value, clipping of the value's own change,
DPOK's clamp without maximum.
"""
import jax
import jax.numpy as jnp
import numpy as np

from align import advantage
from align import ratio as ratios
from align.algorithms import base, grpo
from align.core import Algorithm
from align.tree import view
from diffusion.nets import value as values


def generalised(v, reward, lam: float):
  """(advantages, targets) [B K] from values v [B K] and final rewards [B] (1506.02438, undiscounted)."""
  after = jnp.concatenate([v[:, 1:], reward[:, None]], 1)

  def back(total, delta):
    total = delta + lam * total
    return total, total
  _, a = jax.lax.scan(back, jnp.zeros_like(reward), (after - v).T, reverse=True)
  return a.T, a.T + v


def example(policy) -> tuple:
  """Shapes of (x, cond) for one prompt; nothing is allocated."""
  low = {"low": np.zeros((1, *policy.low), np.uint8)} if policy.low else {}
  batch = policy.prepare({"prompt": ["a"], "meta": [{}], **low})
  arrays = {"cond": jax.tree.map(np.asarray, batch["cond"])}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  params = jax.eval_shape(policy.init, jax.random.key(0))
  cond = jax.eval_shape(policy.embed, params, arrays, keys)["cond"]
  return jax.eval_shape(policy.sample, params, cond, keys).output, cond


def make(policy, reward=None, *, group: int = 1, micro: int = 1, steps: int = 10, eta: float = 0.7, lam: float = 0.95,
         width: int = 32, value: float = 0.5, clip: float = 1e-4, ratio: str = "plain", beta: float = 0.0,
         kl: str = "code", updates: int = 1, epochs: int = 1, delta: float = 1e-4, advantage_clip: float = 5.0,
         centre: bool = False, recompute: bool = False, ema: float | None = None) -> Algorithm:
  """The policy's kernel must be noisy; with a deterministic one `on_policy_gap` is infinite and the run stops.

  Args: lam: of the generalised advantage; 1 is return minus value. width: of the value network. value: weight of its
    loss. group may be 1: nothing is compared within a prompt, but with `centre`. The others are those of grpo.
  """
  base.check_parts("ppo", policy=policy, reward=reward)
  base.check_diffusion("ppo", policy)
  for name, given, allowed in (("ratio", ratio, grpo.RATIOS), ("kl", kl, grpo.KLS)):
    base.check_choice(name, given, allowed)
  for name, given, least in (("updates", updates, 1), ("epochs", epochs, 1), ("width", width, 1), ("steps", steps, 2)):
    base.check_least(name, given, least, "see the defaults")
  if centre:
    base.check_group("ppo with centre", group)
  if not 0 <= lam <= 1:
    raise ValueError(f"lam = {lam} must be in [0, 1]; .95 is usual, 1 is DPOK")
  if not clip > 0 or not value > 0:
    raise ValueError(f"clip = {clip} and value = {value} must be positive; 1e-4 for D = 65,536, and .5")
  net = values.make(width)

  def init(key):
    x, cond = example(policy)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (x, cond))
    return {"net": net.init(key, zeros[0], jnp.zeros(1), zeros[1])["params"]}

  def valued(params, old):
    """V [B K] at the kept states."""
    b, k = old.std.shape
    x, t = old.x.reshape((b * k,) + old.x.shape[2:]), old.times[..., 0].reshape(-1)
    return net.apply({"params": params["value"]["net"]}, x, t, base.repeat(old.cond, k)).reshape(b, k)

  def rollout(params, batch, keys):
    return policy.sample(view(params, "policy"), batch["cond"], keys, steps=steps, eta=eta, keep=jnp.arange(steps - 1))

  def select(params, memory, rollout, scores, batch, key):
    total = jnp.where(scores.valid, scores.total, 0.0)
    if centre:
      mean, _ = advantage.moments(base.rows(total, group), base.rows(scores.valid, group), -1)
      total = jnp.where(scores.valid, (base.rows(total, group) - mean).reshape(-1), 0.0)
    a, target = generalised(valued(params, rollout), total, lam)
    valid = jnp.broadcast_to(scores.valid[:, None], a.shape)
    mean, std = advantage.moments(a, valid)
    scaled = jnp.where(valid, jnp.clip((a - mean) / (std + delta), -advantage_clip, advantage_clip), 0.0)
    memory, out = {"rollout": rollout._replace(output=None), "advantage": scaled, "target": target,
                   "valid": valid.astype(jnp.float32)}, grpo.summary(scores, scaled, group)
    if recompute:
      again = base.recomputed(policy, view(params, "policy"), memory["rollout"], updates, micro)
      memory["rollout"], out["sampling_gap"] = again
    return memory, out

  def draw(memory, step, key):
    batch = base.minibatches(memory, step, key, updates, group)
    return {**batch, "share": base.share(batch["rollout"].mask * batch["valid"])}

  def loss(params, batch, key):
    old, a = batch["rollout"], batch["advantage"]
    now = policy.replay(view(params, "policy"), old)
    change = grpo.log_ratio(ratio, now, old)
    far = grpo.divergence(kl, policy, params, now, old) if beta else None
    miss = (valued(params, old) - batch["target"]) ** 2
    mean = lambda v: (v * batch["share"]).mean()
    out = grpo.report(old, now, change, ratios.outside(change, a, clip), far, clip, grpo.noisy_levels(policy, steps))
    total = mean(ratios.clipped(change, a, clip)) + value * mean(miss) + (beta * mean(far) if beta else 0)
    return total, {**out, "value_error": mean(miss), "target": mean(batch["target"])}

  return Algorithm(rollout, select, draw, loss, {"value": init}, base.average(ema), updates * epochs,
                   decisions=True)
