"""What remat costs and saves, network by network: counted on programs at real sizes that are traced and never run.

For the supervised loss of one more sample: bytes that the forward pass keeps for the backward pass, and operations of
its gradient, as a multiple of those without remat. Both are differences between a batch of two and a batch of one, so
that weights, which are there anyway, cancel. The gradient is in the whole denoiser, in bfloat16. Left out: what the
compiler keeps or computes again by itself; how long a product takes, which depends on the device; adapters, whose
backward pass needs fewer products.
"""
import math

import jax

from align import costs, plan, standin
from align.policies import public

WAYS = (False, *plan.REMAT)  # of layers.remat, most is kept first
MODELS = {"sd15": 512, "sdxl": 1024, "sd35_medium": 512, "flux_dev": 720}  # shipped descriptions, pixels of a side


def run(repeats: int, models: dict = None) -> dict:
  """{"model, way": {"kept bytes", "times"}}; repeats are of no use, since nothing is timed."""
  return {f"{model}, {way}": each for model, size in (models or MODELS).items()
          for way, each in ways(model, size).items()}


def ways(model: str, size: int) -> dict:
  found = {way: sample(model, size, way) for way in WAYS}
  return {way: {"kept bytes": kept, "times": flops / found[False][1]} for way, (kept, flops) in found.items()}


def sample(model: str, size: int, way: bool | str) -> tuple[int, int]:
  """(bytes kept, operations) of one more sample."""
  options = {"size": size, "dtype": "bfloat16", "param_dtype": "bfloat16", "remat": way}
  with standin.opened({"policy": {"model": model, **options}}) as config:
    return one_more(public.make(**config["policy"]))


def one_more(policy) -> tuple[int, int]:
  """`measured` of a second sample."""
  one, two = (measured(policy, batch) for batch in (1, 2))
  return two[0] - one[0], two[1] - one[1]


def measured(policy, batch: int) -> tuple[int, int]:
  """(bytes that the backward pass is given, operations of both passes) for a batch."""
  params, keys = jax.eval_shape(lambda key: (policy.init(key), jax.random.split(key, batch)), jax.random.key(0))
  given = policy.prepare({"prompt": ["a"] * batch})["cond"]
  cond = jax.eval_shape(lambda p, cond, k: policy.embed(p, {"cond": cond}, k)["cond"], params, given, keys)
  x = jax.eval_shape(lambda *all: policy.sample(*all).output, params, cond, keys)

  def loss(net, frozen, cond, x, keys):
    return -policy.log_prob({**frozen, "net": net}, cond, x, keys).mean()
  args = params["net"], {role: tree for role, tree in params.items() if role != "net"}, cond, x, keys
  back = jax.eval_shape(lambda net, *rest: jax.vjp(lambda net: loss(net, *rest), net)[1], *args)
  return (sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(back)),
          costs.flops(jax.make_jaxpr(jax.grad(loss))(*args)))
