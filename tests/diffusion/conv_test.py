"""Our gradient of a convolution is lax's, wherever and however it is taken, and other devices get lax's own."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffusion.nets import conv, layers

SHAPES = [  # x, kernel, strides, padding
  ((2, 8, 8, 6), (3, 3, 6, 4), (1, 1), "SAME"),
  ((2, 8, 8, 4), (3, 3, 4, 6), (1, 1), "SAME"),
  ((2, 7, 9, 5), (3, 3, 5, 5), (1, 1), [(1, 1), (1, 1)]),
  ((2, 7, 9, 5), (3, 2, 5, 3), (1, 1), "VALID"),
  ((2, 7, 9, 3), (2, 3, 3, 5), (1, 1), [(0, 3), (2, 0)]),
  ((2, 8, 8, 4), (3, 3, 4, 2), (2, 2), [(1, 1), (1, 1)]),
  ((2, 9, 8, 2), (4, 4, 2, 4), (2, 2), "SAME"),
  ((1, 8, 10, 3), (3, 3, 3, 4), (2, 3), [(0, 1), (1, 0)]),
  ((2, 8, 8, 4), (8, 8, 4, 3), (8, 8), "VALID"),
  ((3, 5, 5, 4), (1, 1, 4, 2), (1, 1), "VALID"),
  ((2, 4, 4, 3), (3, 3, 3, 2), (1, 1), [(4, 4), (3, 3)]),  # more than the kernel reaches
]
DIMENSIONS = dict(dimension_numbers=lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), conv.LAYOUT))


def drawn(shape, seed, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def loss(how, strides, padding, x, kernel):
  return (how(x, kernel, strides, padding, **DIMENSIONS) ** 2 / 2).sum()


@pytest.mark.parametrize("shape, size, strides, padding", SHAPES)
def test_gradients_are_those_of_lax(shape, size, strides, padding):
  x, kernel = drawn(shape, 0), drawn(size, 1)
  found, wanted = (jax.grad(functools.partial(loss, how, strides, padding), (0, 1))(x, kernel)
                   for how in (conv.conv, lax.conv_general_dilated))
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("case", SHAPES[:2] + SHAPES[5:7])
def test_the_same_in_a_loop_of_many_and_of_gradients(case):
  shape, size, strides, padding = case
  xs, kernel = drawn((3, *shape), 0), drawn(size, 1)

  def all_ways(how):
    one = functools.partial(loss, how, strides, padding)
    looped = lambda kernel: lax.map(jax.checkpoint(lambda x: one(x, kernel)), xs).sum()
    many = lambda kernel: jax.vmap(one, (0, None))(xs, kernel).sum()
    twice = lambda kernel: (jax.grad(one, 1)(xs[0], kernel) ** 2).sum()
    return [jax.jit(jax.grad(f))(kernel) for f in (looped, many, twice)]
  for a, b in zip(all_ways(conv.conv), all_ways(lax.conv_general_dilated), strict=True):
    np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("dtype, summed", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32),
                                           (jnp.float64, jnp.float64)])
def test_a_gradient_has_its_kernel_s_type_and_is_summed_in_float32_at_least(dtype, summed):
  with jax.enable_x64(True):
    x, kernel = drawn((4, 16, 16, 8), 0, dtype), drawn((3, 3, 8, 8), 1, dtype)
    total = lambda how, x, kernel: loss(how, (1, 1), "SAME", x, kernel)
    found = jax.grad(total, 2)(conv.conv, x, kernel)
    wanted = jax.grad(total, 2)(lax.conv_general_dilated, *(a.astype(jnp.float64) for a in (x, kernel)))
    assert found.dtype == dtype and conv.products(x, x, (3, 3), (1, 1), ((1, 1), (1, 1))).dtype == summed
  near = {jnp.bfloat16: 0.02, jnp.float32: 1e-5, jnp.float64: 1e-12}[dtype]
  np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=near, atol=near * np.abs(wanted).max())


def test_policies_of_checkpoint_that_save_convolutions_find_them(capsys):
  x, kernel = drawn((2, 8, 8, 4), 0), drawn((3, 3, 4, 4), 1)

  def saved(how):
    net = lambda x: jnp.tanh(how(jnp.tanh(how(x, kernel, (1, 1), "SAME", **DIMENSIONS)), kernel, (1, 1), "SAME",
                                 **DIMENSIONS)).sum()
    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(net, policy=jax.checkpoint_policies.dots_saveable), x)
    return capsys.readouterr().out.count("f32[2,8,8,4] output of conv")
  assert saved(conv.conv) == saved(lax.conv_general_dilated) == 2


@pytest.mark.parametrize("remat", [False, True])
def test_where_the_kernel_stands_still_nothing_is_kept_for_its_gradient(remat):
  """A reward's gradient through frozen layers, in a loop, needs as much memory as with lax's own."""
  x, kernels = jax.ShapeDtypeStruct((4, 16, 16, 8), jnp.float32), drawn((6, 3, 3, 8, 8), 1)

  def memory(how):
    layer = lambda h, kernel: jnp.tanh(how(h, kernel, (1, 1), "SAME", **DIMENSIONS))
    step = jax.checkpoint(layer) if remat else layer
    total = lambda x: lax.scan(lambda h, kernel: (step(h, kernel), None), x, kernels)[0].sum()
    return jax.jit(jax.grad(total)).lower(x).compile().memory_analysis().temp_size_in_bytes
  assert memory(conv.conv) <= memory(lax.conv_general_dilated)


def convolutions(platform, how):
  """How many convolutions and products a gradient in the kernel has."""
  given = (jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((3, 3, 6, 4), jnp.float32))
  program = jax.jit(jax.grad(functools.partial(loss, how, (1, 1), "SAME"), 1)).trace(*given)
  said = program.lower(lowering_platforms=(platform,)).as_text()
  return said.count("stablehlo.convolution"), said.count("stablehlo.dot_general")


def test_only_cpus_get_products():
  assert convolutions("cpu", conv.conv) == (1, 3)  # the forward pass, and a row of the kernel each
  for platform in ("tpu", "cuda"):
    assert convolutions(platform, conv.conv) == convolutions(platform, lax.conv_general_dilated) == (2, 0)


@pytest.mark.parametrize("options", [dict(feature_group_count=2), dict(rhs_dilation=(2, 2)), dict(lhs_dilation=(2, 2))])
def test_what_is_unusual_is_left_to_lax(options):
  x, kernel = drawn((2, 8, 8, 4), 0), drawn((3, 3, 4 // options.get("feature_group_count", 1), 4), 1)
  f = lambda how, kernel: (how(x, kernel, (1, 1), "SAME" if "lhs_dilation" not in options else [(1, 1)] * 2,
                               **DIMENSIONS, **options) ** 2).sum()
  np.testing.assert_array_equal(*(jax.grad(f, 1)(how, kernel) for how in (conv.conv, lax.conv_general_dilated)))


def test_the_layer_takes_it_for_pictures_and_leaves_clips_to_lax():
  def products(shape, size):
    layer, x = layers.Conv(4, size, padding=1), drawn(shape, 0)
    params = layer.init(jax.random.key(0), x)
    said = jax.jit(jax.grad(lambda p: (layer.apply(p, x) ** 2).sum())).lower(params).as_text()
    return said.count("stablehlo.dot_general")
  assert products((2, 8, 8, 3), (3, 3)) == 3 and products((2, 4, 8, 8, 3), (3, 3, 3)) == 0
