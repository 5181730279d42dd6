"""One update: gradients, in pieces added up, a step of the optimiser, and what follows the parameters. Needs jax and
optax alone.
"""
import functools
import math

import jax
import jax.numpy as jnp
import optax

from align import tree
from align.core import State
from diffusion.core import piece


def make_train_step(loss, tx, micro: int = 1, trained: str = "^policy/", follow=None, decisions: bool = False):
  """(state, frozen, batch, key) -> (state, metrics): one update, skipped inside jit when it is not finite.

  micro: the batch is cut into that many pieces, see `cut`; their gradients are added up in float32, so that memory does
  not grow with their number. decisions: see core.Algorithm.
  """
  follow = follow or {}

  def gradients(chosen, rest, batch, key):
    def scalar(chosen, batch, key):
      return loss(tree.merge(chosen, rest), batch, key)
    return jax.value_and_grad(scalar, has_aux=True)(chosen, batch, key)

  def accumulated(chosen, rest, batch, key):
    if micro == 1:
      return gradients(chosen, rest, batch, key)

    def add(total, i):
      seen, grads = gradients(chosen, rest, cut(batch, micro, i, decisions), key)
      return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads), seen
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), chosen)
    total, (value, out) = jax.lax.scan(add, zeros, jnp.arange(micro))
    worst = {name: worst_of(out.pop(name)) for name in ("on_policy_gap",) if name in out}
    # a metric by noise level is nan where a piece has no sample at that level
    out = {**jax.tree.map(lambda a: jnp.nanmean(a, 0), out), **worst}
    return (value.astype(jnp.float32).mean(), out), jax.tree.map(lambda g: g / micro, total)

  def step(state, frozen, batch, key):
    chosen, others = tree.partition(state.params, trained)
    (value, out), grads = accumulated(chosen, tree.merge(others, frozen), batch, key)
    norm = optax.global_norm(grads)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, opt = tx.update(grads, state.opt, chosen)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
    params = tree.merge(keep(optax.apply_updates(chosen, updates), chosen), others)
    params = keep(followed(params, follow, "step", state.step), {k: params[k] for k in params})
    out = {**out, "loss": value, "grad_norm": norm, "update_norm": optax.global_norm(updates),
           "skipped": 1.0 - good.astype(jnp.float32)}
    return State(state.step + 1, params, keep(opt, state.opt), state.memory), out
  return step


def decisions_of(batch, decisions: bool) -> int:
  """How many of them a sample of a minibatch has, where they may be cut."""
  return batch["rollout"].std.shape[1] if decisions else 1


def divides(micro: int, samples: int, each: int) -> bool:
  """Whether a minibatch of `samples` with `each` decisions comes in `micro` equal pieces."""
  return samples % (micro // math.gcd(micro, each)) == 0


def cut(batch, count: int, i, decisions: bool):
  """Piece i of `count` of a minibatch: every so many samples, and where `decisions` says so, every so many of their
  decisions first, as far as their number divides: samples lie on devices, which are to have some of each piece.

  Leaves [B K ...] are of decisions, those [B] and what the rollout is conditioned on, which is not copied, of samples.
  """
  each = math.gcd(count, decisions_of(batch, decisions))
  batch = piece(batch, count // each, i // each)
  if each == 1:
    return batch
  rest = {name: leaf for name, leaf in batch.items() if name != "rollout"}
  return {**finer(rest, each, i % each), "rollout": fewer(batch["rollout"], each, i % each)}


def finer(tree, count: int, i):
  """Every so many decisions of the leaves [B K ...]; those [B] stay."""
  return jax.tree.map(lambda a: piece(a, count, i, 1) if a.ndim > 1 else a, tree)


def fewer(rollout, count: int, i):
  """Every so many decisions of a rollout."""
  rest = finer(rollout._replace(cond=None, aux=None), count, i)
  return rest._replace(cond=rollout.cond, aux=rollout.aux)


def worst_of(gaps):
  """The largest of a gap [pieces], which is infinite where a piece has none: that counts where all are so."""
  return jnp.abs(jnp.where(jnp.isposinf(gaps), -jnp.inf, gaps).max())


def followed(params: dict, follow: dict, when: str, count) -> dict:
  """Moves every follower of this clock: role <- decay role + (1 - decay) source, in float32."""
  def blend(decay, old, new):
    return (decay * old.astype(jnp.float32) + (1 - decay) * new.astype(jnp.float32)).astype(old.dtype)
  moved = {role: jax.tree.map(functools.partial(blend, decay(count)), params[role], params[source])
           for role, (source, decay, clock) in follow.items() if clock == when}
  return {**params, **moved}
