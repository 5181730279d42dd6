"""Adapters as a wrapper: the reference is untouched, the start is the base, merging is applying."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import build, lora, tree
from align.policies import diffusion
from diffusion import process
from diffusion.core import expand


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, t, context, mask, pooled):
    x = x + pooled.mean() + expand(t / 1000, x)
    return nn.Dense(x.shape[-1], name="out")(jnp.tanh(nn.Dense(8, name="inside")(x)))


class Text(nn.Module):
  @nn.compact
  def __call__(self, tokens, mask):
    context = nn.Embed(200, 4)(tokens)
    return context, context.mean(1)


PLAIN = diffusion.make(Net(), Text(), process.flow(), "ode", length=6, size=4, channels=1, steps=3)
ADAPTED = lora.wrap(PLAIN, rank=2, alpha=4.0, targets=r"net/.*kernel$")
COND = jax.tree.map(jnp.asarray, PLAIN.prepare({"prompt": ["a handwritten one"] * 2})["cond"])
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(2))


@pytest.fixture(scope="module")
def params():
  whole = jax.jit(ADAPTED.init)(jax.random.key(0))
  moved = jax.tree.map(lambda a: a + 0.3, whole["lora"])
  base = {k: v for k, v in whole.items() if k != "lora"}
  return {"base": base, "policy": {"lora": moved}, "start": {"lora": whole["lora"]}}


def sample(policy, view):
  return policy.sample(view, COND, KEYS).output


def test_the_start_is_the_base_and_the_reference_needs_no_leaves(params):
  plain = sample(PLAIN, params["base"])
  np.testing.assert_array_equal(sample(ADAPTED, tree.view(params, "ref")), plain)
  np.testing.assert_allclose(sample(ADAPTED, tree.view(params, "start")), plain, atol=1e-6)
  assert jnp.abs(sample(ADAPTED, tree.view(params, "policy")) - plain).max() > 1e-3


def test_merged_weights_are_what_the_adapted_policy_applies(params):
  view = tree.view(params, "policy")
  merged = lora.merged(ADAPTED, view)
  assert set(merged) == {"net", "text"} and lora.merged(PLAIN, params["base"]) is params["base"]
  np.testing.assert_allclose(sample(PLAIN, merged), sample(ADAPTED, view), atol=1e-6)
  part = view["lora"]["net"]["inside"]["kernel"]
  expected = params["base"]["net"]["inside"]["kernel"] + 2 * part["a"] @ part["b"]
  np.testing.assert_allclose(merged["net"]["inside"]["kernel"], expected, atol=1e-6)
  np.testing.assert_array_equal(merged["net"]["inside"]["bias"], params["base"]["net"]["inside"]["bias"])


def test_every_function_sees_the_adapters(params):
  view, x = tree.view(params, "policy"), jnp.ones((2, 4, 4, 1))
  merged = lora.merged(ADAPTED, view)
  t = jnp.full(2, 0.5)
  same = lambda a, b: jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-5), a, b)
  same(ADAPTED.log_prob(view, COND, x, KEYS), PLAIN.log_prob(merged, COND, x, KEYS))
  same(ADAPTED.denoise(view, COND, x, t), PLAIN.denoise(merged, COND, x, t))
  same(ADAPTED.step(view, COND, x, 0.5, 0.4, KEYS, 0.0).x, PLAIN.step(merged, COND, x, 0.5, 0.4, KEYS, 0.0).x)
  kept = ADAPTED.sample(view, COND, KEYS, keep=jnp.arange(2))
  same(ADAPTED.replay(view, kept).mean, PLAIN.replay(merged, kept).mean)


def test_gradient_reaches_the_adapters(params):
  x = jnp.ones((2, 4, 4, 1))
  loss = lambda policy: -ADAPTED.log_prob(tree.view({**params, "policy": policy}, "policy"), COND, x, KEYS).mean()
  grads = jax.grad(loss)(params["policy"])
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads)) and len(jax.tree.leaves(grads)) == 4


@pytest.mark.parametrize("options, message", [
  ({"rank": 0}, "rank = 0 must be at least 1"),
  ({"alpha": 0.0}, "alpha = 0.0 must be positive"),
])
def test_refusals(options, message):
  with pytest.raises(ValueError, match=message):
    lora.wrap(PLAIN, **options)


def test_targets_that_match_nothing_are_refused():
  with pytest.raises(ValueError, match="targets = 'nowhere' matches none"):
    jax.eval_shape(lora.wrap(PLAIN, targets="nowhere").init, jax.random.key(0))


def built(net):
  """(adapted policy, plain policy, view with adapters, loss of a part of the view)."""
  policy = build.build("align.policies", {
    "name": "diffusion", "net": net, "text": {"name": "text", "width": 16, "depth": 1, "heads": 2}, "process": "flow",
    "length": 6, "size": 4, "steps": 2})
  adapted = lora.wrap(policy, rank=2, alpha=4.0, targets="^net/.*kernel$")
  view = jax.tree.map(lambda a: a + 0.05, jax.jit(adapted.init)(jax.random.key(0)))
  x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3))
  return adapted, policy, view, lambda whole, policy: policy.log_prob(whole, COND, x, KEYS).sum()


@pytest.mark.slow
@pytest.mark.parametrize("net", [{"name": "unet", "variant": "tiny", "layers": 1, "widths": [8], "depth": [1],
                                  "alone": [False], "head": [8]}])
def test_convolutions_and_scanned_blocks_are_adapted(net):
  adapted, plain, view, loss = built(net)
  value = jax.jit(lambda view: loss(view, adapted))(view)
  np.testing.assert_allclose(value, jax.jit(lambda view: loss(view, plain))(lora.merged(adapted, view)), rtol=1e-4)


def test_dense_layers_take_the_factors_as_they_are():
  """What is applied is the merged network; neither the sum nor its gradient is made."""
  adapted, plain, view, loss = built({"name": "mmdit", "variant": "tiny", "width": 48})
  whole = {k: v for k, v in view.items() if k != "lora"}
  of_part = lambda part: loss({**whole, "lora": part}, adapted)
  value, gradient = jax.jit(jax.value_and_grad(of_part))(view["lora"])
  expected, dense = jax.jit(jax.value_and_grad(lambda view: loss(view, plain)))(lora.merged(adapted, view))
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  leaf = lambda tree: functools.reduce(lambda t, k: t[k], ("net", "blocks", "x_mlp", "in", "kernel"), tree)
  factor = jnp.swapaxes(leaf(view["lora"])["a"], -1, -2)
  np.testing.assert_allclose(leaf(gradient)["b"], 2 * factor @ leaf(dense), rtol=2e-3, atol=1e-4)
  assert "[48,192] = dot_general" not in str(jax.make_jaxpr(jax.grad(of_part))(view["lora"]))
  assert "[48,192] = dot_general" in str(jax.make_jaxpr(jax.grad(lambda view: loss(view, plain)))(whole))
