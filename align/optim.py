"""Optimisers: optax chains with clipping, warm-up, decay of the learning rate and of the weights.

Non-finite updates are the loop's business, which skips them whole. Left out: per-layer learning rates.
"""
import re
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import optax

from align import tree
from align.build import UserError

DECAYS = ("constant", "linear", "cosine")


class Optimizer(NamedTuple):
  """What trains, and what it trains with at a step (counted from 0)."""
  tx: Any        # optax.GradientTransformation
  lr: Callable   # (step) -> learning rate, float32


def schedule(lr: float, warmup_steps: int, decay: str, total_steps: int | None) -> Callable:
  """step -> learning rate: lr (step + 1) / warmup_steps at first, then constant or down to 0 at `total_steps`."""
  if decay not in DECAYS:
    raise UserError(f"config.optim.decay = {decay!r} is not one of {', '.join(DECAYS)}; choose one of them")
  if lr < 0 or warmup_steps < 0:
    raise UserError(f"config.optim: lr = {lr} and warmup_steps = {warmup_steps} must not be negative; correct them")
  if decay != "constant" and (total_steps is None or total_steps <= warmup_steps):
    raise UserError(f"config.optim.decay = {decay!r} goes from warmup_steps = {warmup_steps} to total_steps = "
                    f"{total_steps}, which must be later; set total_steps, shorten warmup_steps, or decay='constant'")

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
    if decay == "constant":
      return lr * warm
    done = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
    return lr * warm * (1 - done if decay == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return rate


def decayed(no_decay: str) -> Callable:
  """params -> tree of bool: which leaves' weights decay."""
  def mask(params):
    return tree.unflatten({name: not re.search(no_decay, name) for name in tree.flatten(params)})
  return mask


def chain(rate: Callable, clip: float | None, *transforms: Any) -> Optimizer:
  """Clip the global norm (None or 0: leave it), transform, step down the gradient."""
  first = (optax.clip_by_global_norm(clip),) if clip else ()
  return Optimizer(optax.chain(*first, *transforms, optax.scale_by_learning_rate(rate)), rate)


def adamw(lr: float = 1e-4, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
          clip: float | None = 1.0, warmup_steps: int = 0, decay: str = "constant", total_steps: int | None = None,
          no_decay: str = "bias|scale|norm") -> Optimizer:
  """AdamW (Loshchilov & Hutter 2019): weights decay by lr * weight_decay, except leaves whose name has `no_decay`."""
  rate = schedule(lr, warmup_steps, decay, total_steps)
  weights = (optax.add_decayed_weights(weight_decay, decayed(no_decay)),) if weight_decay else ()
  return chain(rate, clip, optax.scale_by_adam(b1, b2, eps), *weights)


def sgd(lr: float = 1e-2, momentum: float = 0.0, nesterov: bool = False, clip: float | None = None,
        warmup_steps: int = 0, decay: str = "constant", total_steps: int | None = None) -> Optimizer:
  """Stochastic gradient descent, with momentum if that is not 0."""
  rate = schedule(lr, warmup_steps, decay, total_steps)
  return chain(rate, clip, *((optax.trace(momentum, nesterov),) if momentum else ()))


def adafactor(lr: float = 1e-3, decay_rate: float = 0.8, weight_decay: float = 0.0, clip: float | None = 1.0,
              warmup_steps: int = 0, decay: str = "constant", total_steps: int | None = None,
              no_decay: str = "bias|scale|norm") -> Optimizer:
  """Adafactor (Shazeer & Stern 2018) with a given learning rate and without scaling by the parameters' size: factored
  second moments, for networks whose Adam moments do not fit. `clip` is on the root mean square of an update."""
  rate = schedule(lr, warmup_steps, decay, total_steps)
  block = (optax.clip_by_block_rms(clip),) if clip else ()
  weights = (optax.add_decayed_weights(weight_decay, decayed(no_decay)),) if weight_decay else ()
  return chain(rate, None, optax.scale_by_factored_rms(decay_rate=decay_rate), *block, *weights)
