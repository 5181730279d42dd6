"""A tiny policy, its parameters and batches, one experience, one gradient: what tests of algorithms have in common."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align.algorithms import base
from align.policies import diffusion
from diffusion import process
from diffusion.core import expand, normal
from rewards.core import Reward, Scores

G, P, STEPS = 4, 3, 5


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, t, context, mask, pooled):
    h = jnp.concatenate([jnp.broadcast_to(pooled[:, None, None], x.shape[:3] + pooled.shape[-1:]), x,
                         jnp.broadcast_to(expand(t / 1000, x), x.shape)], -1)
    return nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(8)(h)))


class Text(nn.Module):
  @nn.compact
  def __call__(self, tokens, mask):
    context = nn.Embed(200, 4)(tokens)
    return context, context.mean(1)


def policy(kernel="flow_sde", noise=None, **options):
  options = {"law": "uniform", **options}
  return diffusion.make(Net(), Text(), noise or process.flow(), kernel, length=6, size=4, channels=1, steps=STEPS,
                        **options)


def reward(where="gradient"):
  score = lambda media: media.mean((1, 2, 3)) - (media ** 2).mean((1, 2, 3))
  return Reward(lambda key: {}, lambda b: b,
                lambda v, b, media, k: Scores(score(media), {"first": media[:, 0, 0, 0], "all": score(media)},
                                              jnp.ones(len(media), bool)), where, None)


def params_of(made, moved=0.0):
  """Roles whose networks differ by `moved`: base = ref, policy, old = policy."""
  tree = jax.jit(made.init)(jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(9), 100))
  other = jax.tree.map(lambda a: a + moved * jax.random.normal(next(keys), a.shape), tree)
  return {"base": tree, "policy": other, "old": jax.tree.map(jnp.copy, other)}


def batch_of(made, group=G):
  out = made.prepare({"prompt": [f"a handwritten {w}" for w in ("one", "two", "three") for _ in range(group)]})
  ids = {"prompt_id": np.repeat(np.arange(P, dtype=np.int32), group),
         "sample_id": np.tile(np.arange(group, dtype=np.int32), P)}
  x = jnp.tanh(normal(base.sample_keys(jax.random.key(3), ids), (4, 4, 1)))
  ids["experience"] = np.zeros(P * group, np.int32)
  arrays = jax.tree.map(jnp.asarray, {"cond": out["cond"], **ids})
  return {**arrays, "x": x, "win": x, "lose": -x}


def scores_of(made, params, rollout, judge=None):
  return (judge or reward()).score({}, {}, made.decode(params["base"], rollout.output), None)


def experience(method, made, params, seed=1):
  batch, key = batch_of(made), jax.random.key(seed)
  rollout = jax.jit(method.rollout)(params, batch, base.sample_keys(key, batch))
  memory, out = method.select(params, (), rollout, scores_of(made, params, rollout), batch, key)
  return jax.jit(method.draw)(memory, 0, key), rollout, out


def gradient(method, params, batch, seed=5, role="policy"):
  f = lambda tree: method.loss({**params, role: tree}, batch, jax.random.key(seed))
  (value, metrics), grads = jax.jit(jax.value_and_grad(f, has_aux=True))(params[role])
  return value, metrics, jax.flatten_util.ravel_pytree(grads)[0]
