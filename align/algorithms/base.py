"""What several algorithms share: keys, minibatches of whole groups, followers, checks, and metrics by noise level."""
import math
from typing import Any, Callable

import jax
import jax.numpy as jnp

from align.build import UserError
from align.core import Algorithm
from align.update import divides, fewer
from diffusion.core import fold, piece

BANDS = ("low", "middle", "high")     # of noise
PARTS = ("early", "middle", "late")   # of a chain


def sample_keys(key: Any, batch: dict) -> Any:
  """[B] keys: one a sample, folded from its prompt and its number among the samples of that prompt."""
  return _sample_keys(key, batch["prompt_id"], batch["sample_id"])


@jax.jit  # once an experience it is called outside of any program
def _sample_keys(key, prompts, samples):
  return jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))(prompts, samples)


def offline(loss: Callable, **fields) -> Algorithm:
  """An algorithm that learns from the batch as it comes; `fields` replace those of Algorithm."""
  plain = {"rollout": None, "select": lambda params, memory, rollout, scores, batch, key: (batch, {}),
           "draw": lambda memory, step, key: memory, "nets": {}, "follow": {}, "updates": 1}
  return Algorithm(loss=loss, **{**plain, **fields})


def minibatches(memory: Any, step: Any, key: Any, count: int, group: int = 1, epochs: int = 1) -> Any:
  """The minibatch of update `step` out of count * epochs: whole groups, each in exactly one minibatch of an epoch.

  Args:
    memory: tree of arrays with leading B = P * group. key: the experience's, the same for all of its updates, which is
      what makes them a partition. With count = 1 nothing is permuted.

  Raises: ValueError where `count` does not divide the number of groups.
  """
  groups = jax.tree.leaves(memory)[0].shape[0] // group
  if groups % count:
    raise UserError(f"updates = {count} does not divide the {groups} groups of an experience into whole groups; "
                     "change updates, or the number of prompts (config.batch)")
  if count == 1:
    return memory
  order = jax.random.permutation(jax.random.fold_in(key, step // count), groups)
  size = groups // count
  chosen = jax.lax.dynamic_slice(order, ((step % count) * size,), (size,))
  index = (chosen[:, None] * group + jnp.arange(group)).reshape(-1)
  return jax.tree.map(lambda a: a[index], memory)


def average(decay: float | None, source: str = "policy") -> dict:
  """The follower `ema`, moved every update by min((1 + n) / (10 + n), decay), or {} where decay is None."""
  if decay is None:
    return {}
  if not 0 <= decay < 1:
    raise ValueError(f"ema = {decay} must be in [0, 1), or None for no average; 0.9 to 0.9999 are usual")
  return {"ema": (source, lambda n: jnp.minimum((1.0 + n) / (10.0 + n), decay), "step")}


def check_choice(name: str, value: Any, allowed: Any) -> None:
  if value not in allowed:
    raise ValueError(f"{name} = {value!r} is not one of {', '.join(map(str, allowed))}; choose one of them")


def check_least(name: str, value: Any, least: Any, advice: str) -> None:
  if not value >= least:
    raise ValueError(f"{name} = {value} must be at least {least}; {advice}")


def check_parts(algorithm: str, **parts: Any) -> None:
  """Refuses a policy or reward that is None where the algorithm needs one."""
  for name, part in parts.items():
    if part is None:
      raise ValueError(f"{name} = None: algorithm {algorithm!r} needs a {name}; add one to the config")


def check_group(algorithm: str, group: int) -> None:
  check_least("group", group, 2, f"{algorithm!r} compares the samples of a prompt: set config.group, 8 to 24 are usual")


def media_of(batch: dict, name: str, algorithm: str) -> Any:
  """batch[name], or a ValueError that says what data this algorithm learns from."""
  if name not in batch:
    raise UserError(f"batch entry {name!r} is missing, it has {', '.join(sorted(batch))}; {algorithm!r} learns from "
                     f"{'pairs (win, lose)' if name in ('win', 'lose') else 'captioned media'}, choose such a data set")
  return batch[name]


def levels(policy: Any, keys: Any) -> Any:
  """The noise levels [B] that policy.log_prob would draw from these keys, so that they can be reported; None of tokens,
  which have none."""
  return None if policy.law is None else policy.law(fold(keys, 0))


def check_diffusion(algorithm: str, policy: Any) -> None:
  """Refuses a policy of tokens where an algorithm needs noise levels."""
  if policy.process is None:
    raise ValueError(f"policy.process = None: {algorithm!r} works on noise levels, and this policy makes tokens; "
                     "choose a diffusion policy, or 'grpo', 'dpo', 'rwr' or 'sft', which serve tokens too")


def chain(policy: Any, steps: int, **more: Any) -> dict:
  """Options of policy.sample for a chain of `steps`; tokens have their own length and none of these."""
  return {} if policy.process is None else {"steps": steps, **more}


def rows(values: Any, group: int) -> Any:
  """[B ...] -> [B / group, group, ...]."""
  return values.reshape((-1, group) + values.shape[1:])


def repeat(tree: Any, times: int) -> Any:
  """Every leaf [B ...] -> [B * times ...], copies of a sample contiguous."""
  return jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), tree)


def recomputed(policy: Any, parameters: Any, rollout: Any, updates: int, micro: int) -> tuple:
  """(the rollout with the old values that a replay gives, largest |log ratio| between the two).

  In bfloat16 the sampler and the update round differently, and so do batches of different sizes: the replay is cut into
  minibatches and these into pieces as `update.cut` does, which is also what the memory of an update allows. What is
  left is how XLA fuses the update itself.
  """
  samples, kept = rollout.std.shape
  if samples % updates or not divides(micro, samples // updates, kept):
    updates = micro = 1  # only shapes are asked for: such an experience is refused before it is sampled
  each = math.gcd(micro, kept)
  count = updates * (micro // each)

  def replayed(i):
    now = policy.replay(parameters, fewer(piece(rollout, count, i // each), each, i % each))
    return now.log_prob, now.mean

  def whole(a):  # [count * each, b, k ...]: sample b * count + i // each, decision k * each + i % each
    a = a.reshape((count, each) + a.shape[1:])
    return jnp.moveaxis(a, (2, 0, 3, 1), (0, 1, 2, 3)).reshape((samples, kept) + a.shape[4:])

  log_prob, mean = jax.tree.map(whole, jax.lax.map(replayed, jnp.arange(count * each)))
  log_prob, mean = jax.lax.stop_gradient((log_prob, mean))
  gap = jnp.abs((log_prob - rollout.log_prob) * rollout.mask).max()
  return rollout._replace(log_prob=log_prob, mean=mean), gap


def by_level(name: str, values: Any, t: Any) -> dict:
  """Means of `values` [B] over the thirds of t in [0, 1]; nan where a third is empty."""
  third = jnp.clip((t * 3).astype(jnp.int32), 0, 2)
  inside = third[None] == jnp.arange(3)[:, None]
  means = (values * inside).sum(1) / inside.sum(1)
  return {f"{name}_{band}": means[i] for i, band in enumerate(BANDS)}


def by_part(name: str, values: Any, mask: Any, t: Any, levels: Any) -> dict:
  """Means of `values` [B K] of decisions at t [B K] over the thirds of a chain, under `mask` [B K]; nan where a third
  has none. levels: those of all decisions that a chain could keep, falling."""
  third = jnp.sum(levels > t[..., None] + 1e-5, -1) * len(PARTS) // len(levels)
  counted = lambda i: mask * (third == i)
  return {f"{name}_{part}": (values * counted(i)).sum() / counted(i).sum() for i, part in enumerate(PARTS)}


def share(weights: Any) -> Any:
  """`weights` of mean 1, or all 0: set in `draw`, before accumulation cuts the minibatch, they make the mean of
  (values * share) over pieces the weighted mean over all."""
  weights = weights.astype(jnp.float32)
  return weights * weights.size / jnp.maximum(weights.sum(), 1e-8)


def weighted(values: Any, weights: Any) -> Any:
  """Mean of `values` under `weights` of the same shape; 0 where all weights are."""
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-8)
