"""LoRA: the identity at its start, the sum, every layout of kernels, and refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import lora
from diffusion.nets import mmdit

KEY = jax.random.key(0)
SHAPES = {"dense": (6, 4), "general": (6, 2, 5), "conv": (3, 3, 4, 8), "blocks": (3, 6, 4)}


def tree(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  leaf = lambda shape: {"kernel": jnp.asarray(rng.normal(size=shape), dtype), "bias": jnp.zeros(shape[-1], dtype)}
  return {"net": {name: {"q": leaf(shape)} for name, shape in SHAPES.items()}}


def filled(adapters):
  """Adapters whose B is not zero."""
  return jax.tree.map(lambda a: a + 0.5, adapters)


def test_starts_as_the_identity_and_shares_other_leaves():
  params = tree()
  out = lora.apply(params, lora.init(KEY, params, 2), 2.0)
  jax.tree.map(np.testing.assert_array_equal, out, params)
  assert out["net"]["dense"]["q"]["bias"] is params["net"]["dense"]["q"]["bias"]


@pytest.mark.parametrize("name,sides", [("dense", ((6, 2), (2, 4))), ("general", ((6, 2), (2, 10))),
                                        ("conv", ((36, 2), (2, 8))), ("blocks", ((3, 6, 2), (3, 2, 4)))])
def test_adds_the_product_in_every_layout(name, sides):
  params = tree()
  adapters = filled(lora.init(KEY, params, 2, f"{name}/"))
  part = adapters["net"][name]["q"]["kernel"]
  assert (part["a"].shape, part["b"].shape) == sides
  out, kernel = lora.apply(params, adapters, 3.0)["net"][name]["q"]["kernel"], params["net"][name]["q"]["kernel"]
  a, b = np.asarray(part["a"], np.float64), np.asarray(part["b"], np.float64)
  np.testing.assert_allclose(out, kernel + 3 * (a @ b).reshape(kernel.shape), rtol=1e-5, atol=1e-5)


def test_a_dense_layer_with_adapters_is_the_two_paths():
  params = tree()["net"]["dense"]["q"]
  adapters = filled(lora.init(KEY, params, 2))
  x = jax.random.normal(KEY, (5, 6))
  want = x @ params["kernel"] + 0.5 * (x @ adapters["kernel"]["a"]) @ adapters["kernel"]["b"]
  np.testing.assert_allclose(x @ lora.apply(params, adapters, 0.5)["kernel"], want, atol=1e-5)


def test_start_is_gaussian_of_std_one_over_rank_and_depends_on_the_name_alone():
  shapes = {"a": {"kernel": jax.ShapeDtypeStruct((500, 10), jnp.float32)},
            "b": {"kernel": jax.ShapeDtypeStruct((500, 10), jnp.float32)}}
  both, one = lora.init(KEY, shapes, 16), lora.init(KEY, shapes, 16, "^b/")
  assert abs(float(both["a"]["kernel"]["a"].std()) - 1 / 16) < 0.003
  np.testing.assert_array_equal(both["b"]["kernel"]["a"], one["b"]["kernel"]["a"])
  assert jnp.abs(both["a"]["kernel"]["a"] - both["b"]["kernel"]["a"]).max() > 0.01
  assert list(one) == ["b"]


def test_sums_in_float32_and_keeps_the_type():
  params = tree(jnp.bfloat16)
  adapters = filled(lora.init(KEY, params, 2))
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(adapters))
  out = lora.apply(params, adapters, 1e-2)["net"]["dense"]["q"]["kernel"]
  wide = lora.apply(jax.tree.map(lambda a: a.astype(jnp.float32), params), adapters, 1e-2)
  np.testing.assert_array_equal(out, wide["net"]["dense"]["q"]["kernel"].astype(jnp.bfloat16))


def tree_of(grads):
  return [(jax.tree_util.keystr(path), g) for path, g in jax.tree_util.tree_leaves_with_path(grads)]


def test_gradient_reaches_both_factors_of_a_real_network():
  net = mmdit.make("tiny", depth=3)
  normal = lambda *shape: jax.random.normal(jax.random.fold_in(KEY, len(shape)), shape)
  args = (normal(1, 4, 4, 3), jnp.ones(1), normal(1, 2, 5), None, normal(1, 4))
  params = jax.jit(net.init)(KEY, *args)["params"]
  params = jax.tree.map(lambda a: a + 0.1 * normal(*a.shape), params)  # some maps start at zero
  adapters = filled(lora.init(KEY, params, 2, r"_qkv/[qv]/kernel"))
  assert set(adapters) == {"blocks", "last_block"}
  assert adapters["blocks"]["x_qkv"]["q"]["kernel"]["a"].shape == (2, 16, 2)
  grads = jax.jit(jax.grad(lambda a: (net.apply({"params": lora.apply(params, a, 1.0)}, *args) ** 2).sum()))(adapters)
  dead = [name for name, g in tree_of(grads) if not jnp.abs(g).max() > 0]
  assert set(dead) == {f"['last_block']['c_qkv']['q']['kernel']['{f}']" for f in "ab"}  # it drops the text


def test_refusals():
  with pytest.raises(ValueError, match=r"targets = 'attention' matches none of the 4 kernels \(net/dense/q/kernel"):
    lora.init(KEY, tree(), 2, "attention")
  with pytest.raises(ValueError, match="rank = 0 must be at least 1"):
    lora.init(KEY, tree(), 0)
  with pytest.raises(ValueError, match="norm/kernel has shape .4,., but a kernel needs at least two axes"):
    lora.init(KEY, {"norm": {"kernel": jnp.zeros(4)}}, 2)
  adapters = lora.init(KEY, tree(), 2)
  with pytest.raises(ValueError, match="adapter for net/dense, but no such parameter"):
    lora.apply({"net": {"conv": {}}}, {"net": {"dense": adapters["net"]["dense"]}}, 1.0)
  other = {"net": {"dense": {"q": {"kernel": jnp.zeros((7, 4))}}}}
  with pytest.raises(ValueError, match=r"net/dense/q/kernel has shape \(7, 4\), but its adapter has sides"):
    lora.apply(other, {"net": {"dense": adapters["net"]["dense"]}}, 1.0)
