"""The U-Net: shapes, conditioning, masks, precision, rematerialisation and refusals."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from diffusion.nets import layers, unet


def inputs(batch=2, size=8, channels=3, length=5, width=12, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.array([[length], [2]])[np.arange(batch) % 2]
  return (jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32), jnp.linspace(10, 900, batch),
          jnp.asarray(rng.normal(size=(batch, length, width)), jnp.float32), jnp.asarray(mask),
          jnp.asarray(rng.normal(size=(batch, 6)), jnp.float32))


def made(**options):
  net = unet.make("tiny", **options)
  return net, weights.drawn(net.init, *inputs())


@pytest.mark.slow
def test_output_has_the_size_and_channels_asked_for():
  net, params = made(channels=5)
  assert net.apply(params, *inputs()).shape == (2, 8, 8, 5)
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))


def test_everything_given_matters_and_padding_does_not():
  net, params = made(pooled=True)
  x, t, context, mask, pooled = inputs()
  out = net.apply(params, x, t, context, mask, pooled)
  for other in ((x + 1, t, context, mask, pooled), (x, t + 50, context, mask, pooled), (x, t, -context, mask, pooled),
                (x, t, context, mask, -pooled)):
    assert jnp.abs(net.apply(params, *other) - out).max() > 1e-3
  padding = jnp.where(mask[..., None], context, 100.0)
  np.testing.assert_allclose(net.apply(params, x, t, padding, mask, pooled), out, atol=1e-6)
  no_mask = net.apply(params, x, t, context, None, pooled)
  np.testing.assert_allclose(no_mask[0], out[0], atol=1e-5)  # sample 0 has no padding
  assert jnp.abs(no_mask[1] - out[1]).max() > 1e-4


def test_samples_do_not_see_each_other():
  net, params = made()
  args = inputs(4)
  whole = net.apply(params, *args)
  np.testing.assert_allclose(net.apply(params, *(a[1:2] for a in args)), whole[1:2], atol=2e-5)


def test_group_norm_is_flax_group_norm():
  x = jax.random.normal(jax.random.key(0), (3, 4, 6, 16)) * 3 + 2
  params = {"params": {"scale": jnp.arange(16.0), "bias": -jnp.arange(16.0)}}
  want = nn.GroupNorm(4, epsilon=1e-5).apply(params, x)
  np.testing.assert_allclose(layers.GroupNorm(4).apply(params, x), want, atol=1e-4)


def test_sinusoid_starts_with_cosines():
  np.testing.assert_allclose(layers.sinusoid(jnp.zeros(1), 8), [[1] * 4 + [0] * 4])
  np.testing.assert_allclose(layers.sinusoid(jnp.array([2.0]), 4)[0],
                             [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [True, "dots_with_no_batch_dims_saveable"])
def test_remat_changes_neither_names_nor_gradients(how):
  net, params = made()
  again = unet.make("tiny", remat=how)
  assert jax.tree.structure(jax.eval_shape(again.init, jax.random.key(0), *inputs())) == jax.tree.structure(params)
  grad = lambda n: jax.grad(lambda p: (n.apply(p, *inputs()) ** 2).sum())(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grad(net), grad(again))
  primitives = str(jax.make_jaxpr(jax.grad(lambda p: again.apply(p, *inputs()).sum()))(params))
  assert "remat" in primitives or "checkpoint" in primitives


def test_bfloat16_computes_near_float32_with_float32_params():
  net, params = made()
  half = unet.make("tiny", dtype="bfloat16")
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), *inputs())))
  out, want = half.apply(params, *inputs()), net.apply(params, *inputs())
  assert out.dtype == jnp.bfloat16
  assert jnp.abs(out - want).max() < 0.05 * jnp.abs(want).max()


@pytest.mark.parametrize("name", unet.VARIANTS)
def test_variants_trace(name):
  net = unet.make(name)
  x = jnp.zeros((1, 16, 16, net.channels))
  args = (x, jnp.zeros(1), jnp.zeros((1, 4, 8)), None, jnp.zeros((1, 6)))
  assert jax.eval_shape(lambda k: net.init_with_output(k, *args)[0], jax.random.key(0)).shape == x.shape


def test_published_sizes():
  """Parameters of the public U-Nets: 859,520,964 and 2,567,463,684."""
  count = lambda net, *args: sum(a.size for a in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), *args)))
  x, t = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1)
  assert count(unet.make("sd15"), x, t, jnp.zeros((1, 77, 768))) == 859_520_964
  assert count(unet.make("sdxl"), x, t, jnp.zeros((1, 77, 2048)), None, jnp.zeros((1, 2816))) == 2_567_463_684


@pytest.mark.parametrize("options,words", [
  (dict(depth=(1,)), "depth = (1,) must have 2 entries"),
  (dict(widths=(8, 18)), "multiple of groups = 4"),
  (dict(remat="everything"), "remat = 'everything' is not True, False or one of"),
  (dict(pooled=True), "pooled is None"),
])
def test_refusals(options, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(unet.make("tiny", **options).init, jax.random.key(0), *inputs()[:4])
  assert words in str(error.value)


def test_refuses_a_size_that_cannot_be_halved_and_an_unknown_variant():
  with pytest.raises(ValueError, match="input of 7x7 must be a multiple of 2"):
    jax.eval_shape(unet.make("tiny").init, jax.random.key(0), *inputs(size=7))
  with pytest.raises(ValueError, match="variant = 'scene' is not one of .* \\(nearest: 'scenes'\\)"):
    unet.make("scene")
