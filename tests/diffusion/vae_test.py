"""The autoencoder: shapes, latents, tiles, precision, rematerialisation and refusals."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from diffusion.nets import vae


def pictures(height=8, width=8, batch=2):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (batch, height, width, 3)), jnp.float32)


@functools.cache
def made(**options):
  net = vae.make("tiny", **options)
  return net, weights.drawn(net.init, pictures())


def methods(net, params):
  """(encode, decode) as functions of arrays."""
  return tuple(jax.jit(lambda x, how=how: net.apply(params, x, method=how)) for how in ("encode", "decode"))


def test_shapes_and_that_samples_do_not_see_each_other():
  net, params = made(channels=5, widths=(8, 8, 16))
  encode, decode = methods(net, params)
  x = pictures(16, 8, 3)
  mean, logvar = encode(x)
  assert net.factor == 4 and mean.shape == logvar.shape == (3, 4, 2, 5) and decode(mean).shape == x.shape
  np.testing.assert_allclose(jax.jit(net.apply)(params, x), decode(mean), atol=1e-5)
  np.testing.assert_allclose(encode(x[1:2])[0], mean[1:2], atol=1e-5)


def test_log_variances_are_clipped():
  net, params = made()
  far = {**params["params"]["quant_out"], "bias": jnp.array([0.0] * 4 + [-50, 50, 0, 0])}
  mean, logvar = methods(net, {"params": {**params["params"], "quant_out": far}})[0](pictures())
  assert jnp.abs(mean).max() < 10
  assert (logvar[..., 0] == -30).all() and (logvar[..., 1] == 20).all() and jnp.abs(logvar[..., 2:]).max() < 10


def test_latents_of_a_generator():
  z = jnp.linspace(-3, 3, 8).reshape(1, 1, 2, 4)
  for name, want in (("sd15", 0.18215 * z), ("sdxl", 0.13025 * z), ("sd3", 1.5305 * (z - 0.0609)),
                     ("flux", 0.3611 * (z - 0.1159))):
    net = vae.make(name)
    np.testing.assert_allclose(net.to_latents(z), want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(net.from_latents(net.to_latents(z)), z, atol=1e-6)


def test_an_option_changes_what_is_there():
  names = lambda net: set(jax.eval_shape(net.init, jax.random.key(0), pictures())["params"])
  assert names(vae.make("tiny")) == {"encoder", "decoder", "quant_in", "quant_out"}
  assert names(vae.make("tiny", quant=False)) == {"encoder", "decoder"}
  middle = lambda net: jax.eval_shape(net.init, jax.random.key(0), pictures())["params"]["decoder"]["mid"]
  assert set(middle(vae.make("tiny"))) == {"res_0", "attn", "res_1"}
  assert set(middle(vae.make("tiny", attention=False))) == {"res_0", "res_1"}


GROW = lambda x: jnp.repeat(jnp.repeat(x, 4, 1), 4, 2)
SHRINK = lambda x: x.reshape(x.shape[0], x.shape[1] // 4, 4, x.shape[2] // 4, 4, -1).mean((2, 4))


@pytest.mark.parametrize("height,width,overlap", [(8, 8, 0.25), (9, 8, 0.25), (12, 3, 0), (19, 13, 0.25), (14, 33, 0.5),
                                                  (11, 9, 0.75)])
def test_tiles_of_what_looks_at_no_neighbour_are_the_whole(height, width, overlap):
  """Overlapping tiles agree then, so that fading must change nothing and every pixel be there once."""
  x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
  decode = jax.jit(lambda x: vae.decode_tiled(GROW, x, 8, overlap))
  np.testing.assert_allclose(decode(x), GROW(x), atol=1e-6)
  encode = jax.jit(lambda x: vae.encode_tiled(lambda x: (SHRINK(x), {"more": -SHRINK(x)}), x, 32, overlap))
  both = encode(GROW(x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, (x, {"more": -x}))


def test_tiles_fade_linearly():
  """Tiles of 4 that start at 0, 2, 4, 6 and are as bright as that: each is told by the half that fades in."""
  bright = lambda x: jnp.broadcast_to(x[:, :, :1], x.shape)
  row = vae.decode_tiled(bright, jnp.broadcast_to(jnp.arange(7.0)[:, None], (1, 1, 7, 1)), 4, 0.5)
  np.testing.assert_allclose(row[0, 0, :, 0], [0, 0, 0, 1, 2, 3, 4], atol=1e-6)


def test_a_single_tile_is_the_network_and_tiles_share_programs():
  net, params = made()
  encode, decode = methods(net, params)
  z = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
  np.testing.assert_array_equal(vae.decode_tiled(decode, z, 8), decode(z))
  jax.tree.map(np.testing.assert_array_equal, vae.encode_tiled(encode, pictures(), 8), encode(pictures()))
  plain = lambda z: net.apply(params, z, method="decode")
  tiled = lambda side: str(jax.make_jaxpr(lambda z: vae.decode_tiled(plain, z, 8))(jnp.zeros((1, side, side, 4))))
  convolutions = [tiled(side).count("conv_general_dilated") for side in (14, 20, 50)]
  assert convolutions[0] == convolutions[1] == convolutions[2] > 0, convolutions


@pytest.mark.parametrize("how", [True, "dots_with_no_batch_dims_saveable"])
def test_remat_changes_neither_names_nor_gradients(how):
  net, params = made()
  again = vae.make("tiny", remat=how)
  assert jax.tree.structure(jax.eval_shape(again.init, jax.random.key(0), pictures())) == jax.tree.structure(params)
  grad = lambda n: jax.jit(jax.grad(lambda p: (n.apply(p, pictures()) ** 2).sum()))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grad(net), grad(again))
  primitives = str(jax.make_jaxpr(jax.grad(lambda p: again.apply(p, pictures()).sum()))(params))
  assert "remat" in primitives or "checkpoint" in primitives


def test_bfloat16_computes_near_float32_with_float32_params_and_latents():
  net, params = made()
  half = vae.make("tiny", dtype="bfloat16")
  shapes = jax.eval_shape(half.init, jax.random.key(0), pictures())
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(shapes))
  (encode, decode), (encode32, decode32) = methods(half, params), methods(net, params)
  (mean, logvar), (want, _) = encode(pictures()), encode32(pictures())
  assert mean.dtype == logvar.dtype == jnp.float32 and jnp.abs(mean - want).max() < 0.05 * jnp.abs(want).max()
  out, want = decode(want), decode32(want)
  assert out.dtype == jnp.bfloat16 and jnp.abs(out - want).max() < 0.05 * jnp.abs(want).max()


@pytest.mark.parametrize("name,count", [("sd15", 83_653_863), ("sdxl", 83_653_863), ("sd3", 83_819_683),
                                        ("flux", 83_819_683), ("tiny", None)])
def test_variants_have_their_published_sizes(name, count):
  net, x = vae.make(name), jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)
  assert count in (None, sum(a.size for a in jax.tree.leaves(shapes)))
  assert jax.eval_shape(net.apply, shapes, x).shape == x.shape


@pytest.mark.parametrize("options,x,words", [
  (dict(groups=3), pictures(), "widths = (8, 16) must each be a multiple of groups = 3, but 8 is not"),
  (dict(scale=0.0), pictures(), "scale = 0.0 must not be 0"),
  (dict(remat="everything"), pictures(), "remat = 'everything' is not True, False or one of"),
  (dict(), pictures(8, 7), "media of 8x7 must be a multiple of 2, which 2 levels halve them by"),
  (dict(), pictures()[..., :1], "media of shape (2, 8, 8, 1) must be [B H W 3]"),
])
def test_refusals(options, x, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(vae.make("tiny", **options).init, jax.random.key(0), x)
  assert words in str(error.value)


def test_refuses_other_latents_and_an_unknown_variant():
  net, params = made()
  with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 4, 16\) must be \[B H W 4\]"):
    net.apply(params, jnp.zeros((1, 4, 4, 16)), method="decode")
  with pytest.raises(ValueError, match="variant = 'sd14' is not one of .* \\(nearest: 'sd15'\\)"):
    vae.make("sd14")


@pytest.mark.parametrize("tile,overlap,words", [
  (6, 0.25, "overlap = 0.25 of a tile must be whole pixels and latents, but a tile has 6 and 24 a side"),
  (8, 1.0, "overlap = 1.0 in [0, 1)"),
  (0, 0.25, "tile = 0 must be at least 1"),
])
def test_refuses_tiles_that_do_not_fit(tile, overlap, words):
  with pytest.raises(ValueError) as error:
    vae.decode_tiled(GROW, jnp.zeros((1, 16, 16, 3)), tile, overlap)
  assert words in str(error.value)


def test_refuses_tiles_of_pixels_whose_latents_are_no_whole_number():
  with pytest.raises(ValueError, match="a tile has 3 and 12 a side"):
    vae.encode_tiled(SHRINK, jnp.zeros((1, 64, 64, 3)), 12, 0.25)
