"""The guided network call and the chain of steps, for any network, process and kernel.

A sampler here is one `lax.scan` over steps inside the caller's jit: no dispatch a step, differentiable, and it may
start and stop midway. Policies wrap it; nothing here knows of training.
"""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.core import Kernel, Process, expand, fold, normal


class Move(NamedTuple):
  """One step of a chain: states before and after, the mean and std [B] between, and the log density [B]."""
  x: Any
  nxt: Any
  mean: Any
  std: Any
  log_prob: Any


def guided(call: Callable, scale: float) -> Callable:
  """Classifier-free guidance as one batch of 2B (2207.12598): call(context, x, t) with contexts (with, without)."""
  if scale == 1:
    return lambda pair, x, t: call(pair[0], x, t)

  def both(pair, x, t):
    twice = lambda a: jnp.concatenate([a, a])
    context = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pair)
    y, null = jnp.split(call(context, twice(x), twice(t)), 2)
    return null + scale * (y - null)
  return both


def move(process: Process, kernel: Kernel, x, y, t, t_next, keys, eta, given=None, carry=()):
  """The step t -> t_next from the network's output y; noise from keys [B], or the stored next state `given`."""
  t, t_next, eta = (expand(jnp.broadcast_to(jnp.asarray(a, jnp.float32), x.shape[:1]), x) for a in (t, t_next, eta))
  mean, std, carry = kernel.step(process, x, y.astype(jnp.float32), t, t_next, eta, carry)
  if given is None:
    given = mean + std * normal(keys, x.shape[1:]) if kernel.noisy else mean
  std = std.reshape(x.shape[0])
  return Move(x, given, mean, std, kernel.log_prob(given, mean, std)), carry


def chain(predict: Callable, process: Process, kernel: Kernel, x, times, etas, keys, keep=None):
  """Runs x [B ...] along times [S + 1] with etas [S].

  predict(x, t [B]) -> y. `keep`: step indices [K] or [B K] whose moves are returned, with leading [B K]; None keeps
  none. The noise of step i comes from fold(keys, i + 1), so a chain started midway is not the tail of a whole one: pass
  the times, not the seed, on. Returns x at times[-1], and the kept moves or None.
  """
  batch, steps = x.shape[0], len(times) - 1
  times, etas = jnp.asarray(times, jnp.float32), jnp.broadcast_to(jnp.asarray(etas, jnp.float32), (steps,))
  x = x.astype(jnp.float32)

  def one(x, carry, i):
    t = jnp.broadcast_to(times[i], (batch,))
    return move(process, kernel, x, predict(x, t), t, times[i + 1], fold(keys, i + 1), etas[i], None, carry)

  few = keep is not None and 2 * jnp.shape(keep)[-1] < steps  # then a place for each beats a stack of all
  place = jnp.broadcast_to(jnp.asarray(keep), (batch, jnp.shape(keep)[-1])) if few else None

  def body(state, i):
    x, carry, held = state
    moved, carry = one(x, carry, i)
    held = jax.tree.map(lambda h, m: put(h, m, place == i), held, moved) if few else ()
    return (moved.nxt, carry, held), (moved if keep is not None and not few else None)

  held = () if not few else jax.tree.map(lambda s: jnp.zeros((batch, place.shape[1]) + s.shape[1:], s.dtype),
                                         jax.eval_shape(one, x, kernel.carry(x), 0)[0])
  (x, _, held), moves = jax.lax.scan(body, (x, kernel.carry(x), held), jnp.arange(steps))
  return x, (None if keep is None else held if few else kept(moves, keep))


def put(held, moved, here):
  """held [B K ...] with moved [B ...] in the places where here [B K] is true."""
  return jnp.where(here.reshape(here.shape + (1,) * (moved.ndim - 1)), moved[:, None], held)


def kept(moves: Move, keep) -> Move:
  """[S B ...] -> [B K ...]."""
  keep = jnp.asarray(keep)
  if keep.ndim == 1:
    return jax.tree.map(lambda a: jnp.moveaxis(a[keep], 0, 1), moves)
  take = jax.vmap(lambda a, i: a[i], (1, 0))
  return jax.tree.map(lambda a: take(a, keep), moves)
