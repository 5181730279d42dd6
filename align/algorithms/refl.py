"""Direct reward back-propagation: ReFL (2304.05977) and DRaFT-K (2309.17400), chosen by `truncate`.

  truncate 0   ReFL: sample to a random late step without gradient, predict x0 there in one call, decode, score
  truncate K   DRaFT-K: the last K steps of the sampler carry gradient, also through the chain; K = 1 is VADER's default

  loss = weight mean phi(r) + sft mean_D(weight error^2) on the batch's own media;  phi = relu(margin - r) or -r

Published: ReFL 40 steps, late steps 30..39 (.75 to 1 of the chain), margin 2, weight 1e-3, lr 1e-5, the sft term 1:1 in
the paper and absent from its SD1.4 release; DRaFT 50 steps, K 1, LoRA, lr 4e-4. Nothing here depends on D.
Left out: DRaFT-LV's renoising, SRPO's known-noise recovery, straight-through endpoints, multistep solvers inside the
last K steps (each starts afresh). Guidance is that of the policy; both branches carry gradient.
"""
import jax
import jax.numpy as jnp
import numpy as np

from align.algorithms import base
from align.core import Algorithm
from align.tree import view
from diffusion.core import fold

PHIS = ("relu", "linear")


def late(policy, parameters, cond, keys, times, first: int, eta: float):
  """(x_t, t [B]) at a random step first .. len(times) - 2 of each sample, and no gradient."""
  steps = len(times) - 1
  index = jax.vmap(lambda k: jax.random.randint(k, (1,), first, steps))(fold(keys, 1 << 20))
  frozen = jax.lax.stop_gradient(parameters)
  rollout = policy.sample(frozen, cond, keys, steps=times, eta=eta, keep=index)
  return jax.lax.stop_gradient(rollout.x[:, 0]), rollout.times[:, 0, 0]


def last_steps(policy, parameters, cond, keys, times, count: int, eta: float):
  """x0 after the whole chain; only its last `count` steps carry gradient, each recomputed in the backward pass."""
  cut = len(times) - 1 - count
  frozen = jax.lax.stop_gradient(parameters)
  if cut:
    x = policy.sample(frozen, cond, keys, steps=times[:cut + 1], eta=eta).output
  else:
    x = policy.sample(frozen, cond, keys, steps=times[:2], eta=eta, keep=jnp.zeros(1, jnp.int32)).x[:, 0]

  @jax.checkpoint
  def body(x, i):
    t, t_next = jnp.asarray(times, jnp.float32)[i], jnp.asarray(times, jnp.float32)[i + 1]
    return policy.step(parameters, cond, x, t, t_next, fold(keys, i + (1 << 16)), eta).x, None

  return jax.lax.scan(body, jax.lax.stop_gradient(x), cut + jnp.arange(count))[0]


def make(policy, reward=None, *, steps: int = 40, first: float = 0.75, truncate: int = 0, eta: float = 0.0,
         phi: str = "relu", margin: float = 2.0, weight: float = 1e-3, sft: float = 0.0,
         ema: float | None = None) -> Algorithm:
  """The reward must be differentiable in the media (where = "gradient").

  Args:
    steps, eta: of the sampler. first: ReFL's random step lies in this part of the chain and later. truncate: see above.
    phi, margin: "relu" stops pushing at r = margin, "linear" never does. weight: of the reward. sft: of the plain loss,
      for batches with media.
  """
  base.check_parts("refl", policy=policy, reward=reward)
  base.check_choice("phi", phi, PHIS)
  base.check_least("steps", steps, 1, "40 is published")
  if reward.where != "gradient":
    raise ValueError(f"reward.where = {reward.where!r}: 'refl' differentiates the reward, it must be 'gradient'; "
                     "choose such a reward (a classifier, a learned scorer), or 'grpo' or 'nft', which need scores")
  if not 0 <= truncate <= steps:
    raise ValueError(f"truncate = {truncate} must be in 0 .. {steps} (steps); 0 is ReFL, 1 is usual for DRaFT")
  if not 0 <= first < 1:
    raise ValueError(f"first = {first} must be in [0, 1), a share of the chain; .75 is published")

  def predicted(parameters, cond, keys):
    times = np.asarray(policy.process.times(steps))
    if truncate:
      return last_steps(policy, parameters, cond, keys, times, truncate, eta)
    x, t = late(policy, parameters, cond, keys, times, int(first * steps), eta)
    return jax.checkpoint(lambda p, x, t: policy.denoise(p, cond, x, t, True))(parameters, x, t)

  def judge(params, parameters, batch, x0, keys):
    score = lambda x0: reward.score(view(params, "reward"), batch, policy.decode(parameters, x0), keys)
    return jax.checkpoint(score)(x0)

  def loss(params, batch, key):
    keys, parameters = base.sample_keys(key, batch), view(params, "policy")
    scores = judge(params, parameters, batch, predicted(parameters, batch["cond"], keys), keys)
    total = jnp.where(scores.valid, scores.total, 0.0)
    shaped = jax.nn.relu(margin - total) if phi == "relu" else -total
    valid = scores.valid.astype(jnp.float32)
    mean = lambda v: base.weighted(v, valid)
    parts = {f"part_{name}": mean(part) for name, part in scores.parts.items()}
    metrics = {"reward_mean": mean(total), "valid": valid.mean(), **parts}
    if not sft:
      return weight * mean(shaped), metrics
    error = -2 * policy.log_prob(parameters, batch["cond"], base.media_of(batch, "x", "refl with sft"), fold(keys, 3))
    return weight * mean(shaped) + sft * error.mean(), {**metrics, "sft": error.mean()}

  return base.offline(loss, follow=base.average(ema))
