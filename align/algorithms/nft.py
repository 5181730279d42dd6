"""DiffusionNFT (2509.16117): reinforcement learning on the forward process, without log-probabilities or guidance.

  r = 1/2 + 1/2 clip(A / limit, -1, 1),  v+ = (1 - beta) v_old + beta v,  v- = (1 + beta) v_old - beta v
  loss = scale mean[(r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w-) / beta] + kl mean_D (v - v_ref)^2,
  w = sg(mean_D |x0+- - x0|), at least 1e-5, as released (scripts/train_nft_sd3.py)

x_t comes from the generated clean x0 with fresh noise; x0+- are the clean predictions behind v+-. The role `old`
samples and follows the policy after each experience. Published: 10 steps, G 24, 48 prompts, 1 update, levels 9, beta 1
(one reward) or .1 (several), kl 1e-4, lr 3e-4 LoRA r32, ema .9, old_rate .001, old_limit .5. Nothing depends on D: all
are means.

`objective` "awm" is Advantage Weighted Matching (2509.25050) in its clipped form: l = -mean_D |v - (noise - x0)|^2 is a
pseudo log-probability, rho = exp(l - l_old), and the loss that of PPO with `clip` (1e-5 is published); `anchor` "old"
takes the distance to the moving average `old` (kl .1) instead of the reference.
Left out: scores of intermediate states; timesteps truncated to integers, a slip of the released rollout; AWM's weights
over levels other than 1.
"""
import jax
import jax.numpy as jnp
import numpy as np

from align import advantage, ratio
from align.algorithms import base
from align.algorithms.grpo import advantages, summary
from align.core import Algorithm
from align.tree import view
from diffusion.core import expand, fold, mean_elements, normal


def some_levels(grid, count: int, keys):
  """[B count] noise levels of the sampling grid, drawn per sample without replacement."""
  grid = jnp.asarray(grid, jnp.float32)
  return jax.vmap(lambda k: jax.random.permutation(k, grid)[:count])(keys)


def decay(rate: float, limit: float, flat: int):
  """min(rate (n - flat), limit) after n updates, and 0 before `flat`: how much of itself `old` keeps."""
  return lambda n: jnp.clip(rate * (jnp.float32(n) - flat), 0.0, limit)


def scaled_error(prediction, x0):
  """mean_D (prediction - x0)^2 / sg(mean_D |prediction - x0|), [B]."""
  error = prediction - x0
  return mean_elements(error ** 2) / jnp.maximum(jax.lax.stop_gradient(mean_elements(jnp.abs(error))), 1e-5)


def implicit(a, now, old, x0, beta: float):
  """NFT's loss [B] of advantages a in [-1, 1], before its scale, and its two errors."""
  r = 0.5 + 0.5 * a
  good = scaled_error((1 - beta) * old + beta * now, x0)
  bad = scaled_error((1 + beta) * old - beta * now, x0)
  return (r * good + (1 - r) * bad) / beta, {"good": good, "bad": bad}


def matched(a, now, old, goal, clip: float):
  """AWM's loss [B] of velocities [B ...], and how far its pseudo log-probability has moved."""
  error = lambda v: mean_elements((v - goal) ** 2)
  change = error(old) - error(now)
  stop = ratio.outside(change, a, clip).astype(jnp.float32)
  return ratio.clipped(change, a, clip), {"log_ratio": change, "clip_fraction": stop}


def velocity(policy, clean, xt, t):
  return ratio.output(policy.process, clean, xt, expand(t, xt))


OBJECTIVES = ("nft", "awm")
ANCHORS = ("ref", "old")


def check(policy, reward, *, group, steps, levels, objective, anchor, updates, epochs, old_limit, **positive):
  base.check_parts("nft", policy=policy, reward=reward)
  base.check_diffusion("nft", policy)
  base.check_group("nft", group)
  base.check_choice("objective", objective, OBJECTIVES)
  base.check_choice("anchor", anchor, ANCHORS)
  base.check_least("updates", updates, 1, "1 is usual")
  base.check_least("epochs", epochs, 1, "1 is usual")
  if not 1 <= levels <= steps:
    raise ValueError(f"levels = {levels} must be in 1 .. {steps} (steps), the levels of the sampling grid; change it")
  for name, value in positive.items():
    if not value > 0:
      raise ValueError(f"{name} = {value} must be positive; beta 1, limit 5, scale 5 and clip 1e-5 are published")
  if not 0 <= old_limit < 1:
    raise ValueError(f"old_limit = {old_limit} must be in [0, 1): at 1 the sampler never moves; .5 is published")


def make(policy, reward=None, *, group: int = 1, steps: int = 10, objective: str = "nft", beta: float = 1.0,
         clip: float = 1e-5, kl: float = 1e-4, anchor: str = "ref", levels: int = 9, updates: int = 1, epochs: int = 1,
         old_rate: float = 0.001, old_limit: float = 0.5, old_flat: int = 0,
         std: str = "global", ddof: int = 0, delta: float = 1e-4, limit: float = 5.0,
         scale: float = 5.0, weights: dict | None = None, ema: float | None = None) -> Algorithm:
  """Samples with the policy's kernel at eta 0; its guidance should be 1, as in the paper.

  Args:
    group: samples of a prompt. steps: of the rollout. levels: noise levels per sample and update, from its grid.
    updates, epochs: minibatches of an experience, and how often each is used. beta: sharper implicit policies if small.
    objective, clip: see above. kl, anchor: weight of the distance, to what; 0 saves a forward. old_*: see `decay`.
    limit: the largest advantage, that of r = 1.
    std, ddof, delta, weights: as in grpo.
  """
  check(policy, reward, group=group, steps=steps, levels=levels, objective=objective, anchor=anchor, updates=updates,
        epochs=epochs, old_limit=old_limit, beta=beta, limit=limit, scale=scale, clip=clip)
  advantage.group(jnp.zeros((1, 2)), mode=std, ddof=ddof)  # refuses what it does not know before any work

  def rollout(params, batch, keys):
    return policy.sample(view(params, "old"), batch["cond"], keys, steps=steps, eta=0.0)

  def select(params, memory, rollout, scores, batch, key):
    a = advantages(scores, group, weights, std=std, ddof=ddof, delta=delta, clip=limit)
    memory = {"cond": rollout.cond, "x0": rollout.output, "advantage": jnp.clip(a, -limit, limit),
              "weight": scores.valid.astype(jnp.float32), "prompt_id": batch["prompt_id"],
              "sample_id": batch["sample_id"]}
    return memory, summary(scores, a, group)

  def draw(memory, step, key):
    batch = base.minibatches(memory, step, key, updates, group)
    return {**batch, "weight": base.share(batch["weight"])}

  def noised(batch, key):
    keys = base.sample_keys(key, batch)
    t = some_levels(np.asarray(policy.process.times(steps))[:-1], levels, fold(keys, 0)).reshape(-1)
    many = base.repeat(batch, levels)
    index = jnp.tile(jnp.arange(levels), batch["advantage"].shape[0])
    noise = normal(fold(fold(jnp.repeat(keys, levels), 1), index), batch["x0"].shape[1:])
    a, s = policy.process.scales(expand(t, noise))
    return many, a * many["x0"] + s * noise, t

  def loss(params, batch, key):
    many, xt, t = noised(batch, key)
    predict = lambda role: policy.denoise(view(params, role), many["cond"], xt, t)
    now, old = predict("policy"), jax.lax.stop_gradient(predict("old"))
    if objective == "nft":
      each, metrics = implicit(many["advantage"] / limit, now, old, many["x0"], beta)
      each = scale * each
    else:
      moved = lambda clean: velocity(policy, clean, xt, t)
      each, metrics = matched(many["advantage"], moved(now), moved(old), moved(many["x0"]), clip)
    mean = lambda v: (v * many["weight"]).mean()
    metrics = {**{name: mean(v) for name, v in metrics.items()}, "moved": mean(mean_elements((now - old) ** 2)),
               **base.by_level("loss", each, t)}
    if not kl:
      return mean(each), metrics
    still = old if anchor == "old" else jax.lax.stop_gradient(predict("ref"))
    far = mean(mean_elements((velocity(policy, now, xt, t) - velocity(policy, still, xt, t)) ** 2))
    return mean(each) + kl * far, {**metrics, "kl": far}

  follow = {"old": ("policy", decay(old_rate, old_limit, old_flat), "experience"), **base.average(ema)}
  return Algorithm(rollout, select, draw, loss, {}, follow, updates * epochs)
