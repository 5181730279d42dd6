"""A diffusion or flow generator as a Policy: any network x process x kernel of diffusion/generator.py.

Guidance acts in `step`, `sample` and `replay` only; `log_prob` is the bound of Diffusion-DPO and of forward-process RL
and stays unguided, as in the papers. Its mean-convention makes published betas apply: -0.5 beta (error_w - ...) is
beta (log_prob_w - ...).
"""
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from align.build import UserError, blame
from align.core import Policy, Rollout, Step
from diffusion import generator, refiner, sample
from diffusion.core import expand, fold, mean_elements, normal
from diffusion.process import shifted
from rewards.mix import looked

LAWS = ("uniform", "logit_normal", "levels")


def law_of_t(name: str, mean: float, std: float, shift: float, levels: tuple = ()):
  """(keys) -> t [B]: uniform on (0, 1), sigmoid of a normal (2403.03206), or one of `levels`; shifted towards 1."""
  def one(key):
    if name == "levels":
      return jax.random.choice(key, jnp.asarray(levels, jnp.float32))
    return (jax.random.uniform(key, minval=1e-3) if name == "uniform" else
            jax.nn.sigmoid(mean + std * jax.random.normal(key)))

  draw = lambda keys: shifted(jax.vmap(one)(keys), shift)
  if name not in LAWS:
    raise ValueError(f"policy: law = {name!r} is not one of {', '.join(LAWS)}; choose one of them")
  for option, value in (("law_std", std), ("law_shift", shift)):
    if value <= 0:
      raise ValueError(f"policy: {option} = {value} must be positive; 1 is the plain law")
  if bool(levels) != (name == "levels") or not all(0 < t <= 1 for t in levels):
    raise ValueError(f"policy: law_levels = {tuple(levels)} with law = {name!r} must be noise levels in (0, 1] for the "
                     "law 'levels', and () for others; a network of four steps has (0.25, 0.5, 0.75, 1.0)")
  return draw


def check_shape(name: str, batch: dict, shape: tuple) -> None:
  """Refuses media of another shape than the policy's own, (H, W, C) or of a clip (F, H, W, C)."""
  found = np.shape(batch[name])[1:] if name in batch else shape
  if found != shape:
    axes = "height x width x channels" if len(shape) == 3 else "frames x height x width x channels"
    raise UserError(f"data entry {name!r} is {' x '.join(map(str, found))}, but the policy makes "
                    f"{' x '.join(map(str, shape))} ({axes}); make config.data and config.policy.size, "
                    "config.policy.channels, config.policy.frames agree")


def make(net: Any, text: Any, process: Any, kernel: str = "ode", tokens: str = "words", length: int = 16,
         size: int = 16, channels: int = 3, steps: int = 10, eta: float = 0.0, guidance: float = 1.0, frames: int = 0,
         law: str = "logit_normal", law_mean: float = 0.0, law_std: float = 1.0, law_shift: float = 1.0,
         law_levels: tuple[float, ...] = (), refines: int = 0, law_low: float = 0.1) -> Policy:
  """The options up to `frames`, and `refines`, are generator.make's; `law*` is the law of t in log_prob. law_low: the
  largest standard deviation of the noise that what a refiner enlarges has where it learns from media, in [-1, 1], so
  that it bears what a generator gets wrong (2106.15282)."""
  if law_low < 0:
    raise ValueError(f"policy: law_low = {law_low} must be at least 0; 0 adds no noise, .1 is usual")
  g = generator.make(net, text, process, kernel, tokens, length, size, channels, steps, eta, guidance, frames, refines)
  return over(g, law_of_t(law, law_mean, law_std, law_shift, law_levels), law_low)


def given_low(batch: dict, g: generator.Generator) -> dict:
  """A refiner's batch with what it enlarges [B h w C] in its cond, in [-1, 1]: the data's `low`, or the area means of
  their media. UserError where there is neither."""
  if "low" not in batch and "media" not in batch:
    raise UserError(f"data entry 'low' is missing, there is {', '.join(sorted(batch))}; this policy enlarges "
                    f"{' x '.join(map(str, g.low))} (config.policy.refines), which must be in the data as 'low', or "
                    "'media' that they are the means of; choose such data, the task 'sample' writes them")
  check_shape("low", batch, g.low)
  low = batch["low"] if "low" in batch else refiner.reduced(batch["media"], g.shape[-2] // g.low[-2])
  cond = {**batch["cond"], "low": np.asarray(low, np.float32) / 127.5 - 1}
  return {**{k: v for k, v in batch.items() if k != "low"}, "cond": cond}


def over(g: generator.Generator, draw_t: Callable, law_low: float = 0.0) -> Policy:
  """The policy of a generator; draw_t(keys [B]) -> t [B], the law of log_prob. law_low: see `make`."""
  def prepare(batch):
    for name in ("media", "win", "lose"):
      check_shape(name, batch, g.media)
    if "prompt" not in batch:
      return batch
    batch = {**batch, "cond": g.encode(batch["prompt"])}
    return given_low(batch, g) if g.low else batch

  def shaken(low, keys):
    keys = fold(keys, 1 << 24)
    level = law_low * jax.vmap(jax.random.uniform)(keys)
    return low + expand(level, low) * normal(fold(keys, 1), low.shape[1:])

  def embed(view, batch, keys):
    # winner and loser of a pair are encoded with the same noise
    as_x = lambda media: g.latents(view, media.astype(jnp.float32) / 127.5 - 1, keys)
    media = {("x" if k == "media" else k): as_x(batch[k]) for k in ("media", "win", "lose") if k in batch}
    cond = {"cond": g.embed(view, batch["cond"])} if "cond" in batch else {}
    if g.low and law_low and "media" in batch:
      cond["cond"] = {**cond["cond"], "low": shaken(cond["cond"]["low"], keys)}
    return {**{k: v for k, v in batch.items() if k != "media"}, **cond, **media}

  def log_prob(view, cond, x, keys, t=None):
    t = draw_t(fold(keys, 0)) if t is None else jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
    noise, level = normal(fold(keys, 1), x.shape[1:]), expand(t, x)
    a, s = g.process.scales(level)
    y = g.predictor(view, cond, False)(a * x + s * noise, t)
    return -0.5 * mean_elements(g.process.weight(level) * (y - g.process.target(x, noise, level)) ** 2)

  def denoise(view, cond, xt, t, guided=False):
    return generator.clean(g, view, cond, xt, t, guided)

  def step(view, cond, x, t, t_next, keys, eta, given=None, carry=None):
    y = g.predictor(view, cond, True)(x, jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1]))
    carry = g.kernel.carry(x) if carry is None else carry
    moved, carry = sample.move(g.process, g.kernel, x, y, t, t_next, keys, eta, given, carry)
    return Step(moved.nxt, moved.mean, moved.std, moved.log_prob, carry)

  def run(view, cond, keys, x=None, steps=None, eta=None, keep=None):
    out, moves, times, etas = g.sample(view, cond, keys, x, steps, eta, keep)
    if moves is None:
      return Rollout(cond, None, None, None, None, None, None, None, out, {})
    table = jnp.stack([times[:-1], times[1:], etas], -1)[jnp.asarray(keep)]
    table = jnp.broadcast_to(table, moves.std.shape + (3,))
    mask = (moves.std > 0).astype(jnp.float32)
    return Rollout(cond, moves.x, moves.nxt, table, moves.log_prob, moves.mean, moves.std, mask, out, {})

  def replay(view, rollout):
    b, k = rollout.times.shape[:2]
    flat = lambda a: a.reshape((b * k,) + a.shape[2:])
    cond = jax.tree.map(lambda a: jnp.repeat(a, k, axis=0), rollout.cond)
    t, t_next, eta = jnp.moveaxis(flat(rollout.times), -1, 0)
    out = step(view, cond, flat(rollout.x), t, t_next, None, eta, given=flat(rollout.nxt))
    back = lambda a: a.reshape((b, k) + a.shape[1:])
    return Step(back(out.x), back(out.mean), back(out.std), back(out.log_prob), None)

  def decode(view, x, frames=None):
    with blame("config.reward with config.policy"):
      chosen = looked(x, None, frames)  # pixels and latents here are made frame by frame
    return g.decode(view, chosen)

  return Policy(g.init, prepare, embed, g.process, draw_t, log_prob, denoise, step, run, replay, decode,
                low=g.low)
