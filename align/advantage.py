"""From the rewards of P prompts x G samples to advantages.

  group     (r - mean of the prompt) / (std + delta); std of the prompt (DanceGRPO 2505.07818: ddof 1, delta 1e-8),
            of all samples (Flow-GRPO 2505.05470, DiffusionNFT 2509.16117: ddof 0, delta 1e-4), or 1 ("none", Dr. GRPO
            2503.20783)
  gdpo      per reward a z-score in the group, weighted sum, then a z-score over the batch (2601.05242)
  buffered  against the last rewards of the same prompt (DDPO, 2305.13301)

A masked sample gets 0 and is left out of the statistics. Where the rewards of a prompt are all equal the advantage is 0
exactly: in float32 their mean rounds, and dividing that by std + 1e-8 would turn it into values of order 1.
  win_rate  the share of the prompt's other samples that a sample beats, a tie counts half (Pref-GRPO, 2508.20751): a
            reward in [0, 1] whose spread no longer depends on how finely a judge scores

Left out: win rates of pairwise judges, which are rewards of their own.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MODES = ("group", "global", "none")


def moments(r: Any, valid: Any, axis: Any = None, ddof: int = 0) -> tuple:
  """(mean, std) of the valid entries, axes kept. Centred before squaring; 0 where there are too few."""
  n = valid.sum(axis, keepdims=True)
  mean = jnp.where(valid, r, 0).sum(axis, keepdims=True) / jnp.maximum(n, 1)
  square = jnp.where(valid, (r - mean) ** 2, 0).sum(axis, keepdims=True)
  return mean, jnp.sqrt(square / jnp.maximum(n - ddof, 1))


def flat(r: Any, valid: Any) -> Any:
  """[P 1] bool: whether the valid rewards of a prompt are all equal (or none, or one)."""
  high = jnp.where(valid, r, -jnp.inf).max(-1, keepdims=True)
  low = jnp.where(valid, r, jnp.inf).min(-1, keepdims=True)
  return high <= low


def group(rewards: Any, valid: Any = None, *, mode: str = "group", ddof: int = 0, delta: float = 1e-4,
          clip: float | None = 5.0) -> Any:
  """[P G] -> advantages [P G] float32.

  mode: whose standard deviation divides: "group", "global" (all samples) or "none". ddof: 0 as numpy, 1 as torch.
  """
  if mode not in MODES:
    raise ValueError(f"advantage mode = {mode!r} is not one of {', '.join(MODES)}; choose one of them")
  if ddof not in (0, 1):
    raise ValueError(f"ddof = {ddof} is not 0 (numpy) or 1 (torch); choose one of them")
  r = jnp.asarray(rewards, jnp.float32)
  valid = jnp.ones(r.shape, bool) if valid is None else jnp.asarray(valid, bool)
  r = jnp.where(valid, r, 0)
  mean, std = moments(r, valid, -1, ddof)
  if mode == "global":
    std = moments(r, valid, None, ddof)[1]
  scale = 1.0 if mode == "none" else 1 / (std + delta)
  advantage = jnp.where(valid & ~flat(r, valid), (r - mean) * scale, 0.0)
  return advantage if clip is None else jnp.clip(advantage, -clip, clip)


def gdpo(rewards: dict, weights: dict | None = None, valid: Any = None, *, ddof: int = 0, delta: float = 1e-4,
         clip: float | None = 5.0) -> Any:
  """{name: [P G]} -> advantages [P G]: no reward dominates for its variance alone. weights: 1 each by default.

  A sample of which one of these rewards is not finite is masked. Of a single reward the advantages are those of
  `group`, divided by their std over the batch, which is below 1 where some prompts have no difference."""
  weights = dict.fromkeys(rewards, 1.0) if weights is None else weights
  unknown = [name for name in weights if name not in rewards]
  if unknown:
    raise ValueError(f"weights of {unknown[0]!r}: there is no such reward, only {', '.join(rewards)}; rename it")
  finite = jnp.stack([jnp.isfinite(rewards[name]) for name in weights]).all(0)
  valid = finite if valid is None else finite & jnp.asarray(valid, bool)
  total = sum(w * group(rewards[name], valid, ddof=ddof, delta=delta, clip=None) for name, w in weights.items())
  mean, std = moments(total, valid, None, ddof)
  same = jnp.where(valid, total, -jnp.inf).max() <= jnp.where(valid, total, jnp.inf).min()
  moved = (total != 0).any(-1, keepdims=True)  # a prompt without a difference stays at 0
  advantage = jnp.where(valid & moved & ~same, (total - mean) / (std + delta), 0.0)
  return advantage if clip is None else jnp.clip(advantage, -clip, clip)


def win_rate(rewards: Any, valid: Any = None, *, margin: float = 0.0) -> Any:
  """[P G] -> [P G]: the share of valid others of the prompt that score lower; differences up to `margin` are ties.

  A sample without valid others has 1/2, an invalid one 0."""
  if margin < 0:
    raise ValueError(f"win margin = {margin} must be at least 0, in units of the reward; 0 counts exact ties only")
  r = jnp.asarray(rewards, jnp.float32)
  valid = jnp.ones(r.shape, bool) if valid is None else jnp.asarray(valid, bool)
  r = jnp.where(valid, r, 0)
  difference = r[:, :, None] - r[:, None, :]
  won = jnp.where(jnp.abs(difference) <= margin, 0.5, difference > 0)
  others = valid[:, None, :] & ~jnp.eye(r.shape[-1], dtype=bool)
  count = others.sum(-1)
  rate = jnp.where(others, won, 0).sum(-1) / jnp.maximum(count, 1)
  return jnp.where(valid, jnp.where(count > 0, rate, 0.5), 0.0)


class Buffer(NamedTuple):
  """The last rewards of each prompt: values [N size], and how many were ever added [N]."""
  values: Any
  count: Any


def buffer(prompts: int, size: int = 32) -> Buffer:
  return Buffer(jnp.zeros((prompts, size), jnp.float32), jnp.zeros(prompts, jnp.int32))


def buffered(state: Buffer, prompt_id: Any, rewards: Any, valid: Any = None, *, least: int = 16, ddof: int = 0,
             delta: float = 1e-6, clip: float | None = 5.0) -> tuple:
  """Adds rewards [B] of prompts prompt_id [B]; (state, advantages [B]) against each prompt's buffer.

  A prompt with fewer than `least` rewards so far is measured against the batch. `state` belongs in an algorithm's
  memory.
  """
  r = jnp.asarray(rewards, jnp.float32)
  valid = jnp.ones(r.shape, bool) if valid is None else jnp.asarray(valid, bool)

  def add(state, one):
    i, value, good = one
    row = state.values.at[i, state.count[i] % state.values.shape[1]].set(value)
    new = Buffer(row, state.count.at[i].add(1))
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), None

  state, _ = jax.lax.scan(add, state, (jnp.asarray(prompt_id), r, valid))
  rows, count = state.values[prompt_id], state.count[prompt_id][:, None]
  filled = jnp.arange(rows.shape[1]) < count
  mean, std = moments(rows, filled, -1, ddof)
  all_mean, all_std = moments(r, valid, None, ddof)
  enough = count >= least
  mean, std = jnp.where(enough, mean, all_mean)[:, 0], jnp.where(enough, std, all_std)[:, 0]
  same = jnp.where(enough[:, 0], flat(rows, filled)[:, 0], flat(r[None], valid[None])[0, 0])
  advantage = jnp.where(valid & ~same, (r - mean) / (std + delta), 0.0)
  return state, advantage if clip is None else jnp.clip(advantage, -clip, clip)
