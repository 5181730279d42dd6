"""The vision transformer: what it sees, places for other sides, rematerialisation, precision, sizes and refusals."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.nets import vit

PIXELS = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(1, 9, 14, 3)).astype(np.float32)
ALL = dict(places="bicubic", registers=2, scale=True, mask=True, before=True, patch_bias=False)


@functools.cache
def made(**options):
  net = vit.make("tiny", **options)
  return net, jax.jit(net.init)(jax.random.key(0), PIXELS)


def test_shapes():
  net, params = made(**ALL)
  out = jax.jit(net.apply)(params, PIXELS)
  assert out.shape == (2, 1 + 2 + 4, 16) and jnp.isfinite(out).all()
  assert jax.eval_shape(net.apply, params, OTHER).shape == (1, 1 + 2 + 2 * 3, 16)
  assert set(params["params"]) == {"class", "position", "registers", "mask", "patch_in", "pre_norm", "blocks", "norm"}
  assert set(params["params"]["patch_in"]) == {"kernel"} and "gain1" in params["params"]["blocks"]
  assert set(made()[1]["params"]) == {"class", "position", "patch_in", "blocks", "norm"}
  np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)  # the last norm is behind every vector


def test_pixels_that_fill_no_patch_are_not_looked_at():
  net, params = made(**ALL)
  run, other = jax.jit(net.apply), OTHER.copy()
  out = run(params, other)
  other[:, 8:], other[:, :, 12:] = 9, 9
  np.testing.assert_array_equal(run(params, other), out)
  other[:, 7, 11] += 9
  assert np.abs(run(params, other) - out).max(-1).min() > 1e-4  # every vector saw it


def test_places_lie_where_they_lay():
  """Interpolation to twice the side keeps their order, and to the same side changes nothing."""
  table = jnp.arange(1 + 9.0)[:, None]
  for antialias in (False, True):
    np.testing.assert_array_equal(vit.placed(table, 3, 3, 3, antialias), table)
    made = vit.placed(table, 3, 6, 3, antialias)
    assert made.shape == (19, 1) and made[0] == 0
    assert (np.diff(made[1:].reshape(6, 3), axis=0) > 0).all() and (np.diff(made[1:].reshape(6, 3), axis=1) > 0).all()


@pytest.mark.parametrize("old,new", [(4, 9), (9, 4), (3, 3), (1, 2)])
def test_taps_sum_to_one(old, new):
  np.testing.assert_allclose(vit.taps(new, old).sum(1), 1, atol=1e-6)


def test_what_has_no_effect():
  net, params = made(**ALL)
  gradient = jax.jit(jax.grad(lambda p: (net.apply(p, PIXELS)[:, 0] ** 3).sum()))(params)["params"]
  still = {name for name, part in gradient.items() if not any(np.any(leaf) for leaf in jax.tree.leaves(part))}
  assert still == {"mask"}


def test_remat_changes_neither_names_nor_gradients():
  net, params = made()
  again = vit.make("tiny", remat=True)
  assert jax.tree.structure(jax.eval_shape(again.init, jax.random.key(0), PIXELS)) == jax.tree.structure(params)
  grad = lambda n: jax.jit(jax.grad(lambda p: (n.apply(p, PIXELS) ** 3).sum()))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grad(net), grad(again))
  program = str(jax.make_jaxpr(jax.grad(lambda p: again.apply(p, PIXELS).sum()))(params))
  assert "remat" in program or "checkpoint" in program


def test_half_precision_computes_near_float32():
  net, params = made()
  out, want = jax.jit(vit.make("tiny", dtype="bfloat16").apply)(params, PIXELS), jax.jit(net.apply)(params, PIXELS)
  assert out.dtype == jnp.bfloat16 and jnp.abs(out - want).max() < 0.05 * jnp.abs(want).max()


@pytest.mark.parametrize("name,count", [("clip_b32", 87_456_000), ("clip_l14", 303_179_776), ("clip_h14", 630_766_080),
                                        ("dinov2_s14", 22_056_576), ("dinov2_b14", 86_580_480),
                                        ("dinov2_l14", 304_368_640)])
def test_public_sizes(name, count):
  net = vit.make(name)
  pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), pixels)
  assert sum(a.size for a in jax.tree.leaves(shapes)) == count
  assert jax.eval_shape(net.apply, shapes, pixels).shape == (1, 1 + (224 // net.patch) ** 2, net.width)


@pytest.mark.parametrize("options,shape,words", [
  (dict(activation="relu"), PIXELS.shape, "activation = 'relu' is not one of quick_gelu, gelu"),
  (dict(places="linear"), PIXELS.shape, "places = 'linear' is not one of fixed, bicubic, antialias"),
  (dict(heads=3), PIXELS.shape, "width = 16 must be a multiple of heads = 3"),
  (dict(patch=9), PIXELS.shape, "patch = 9 must be positive and at most image = 8"),
  (dict(), (2, 8, 8), "pixels of shape (2, 8, 8) must be [B H W 3] with sides of at least patch = 4"),
  (dict(), (2, 8, 3, 3), "pixels of shape (2, 8, 3, 3) must be [B H W 3]"),
  (dict(), (2, 8, 12, 3), "pixels of shape (2, 8, 12, 3) must be [B 8 8 3], the side that the places were learned for; "
   "scale the pictures to it, or set places to 'bicubic'"),
  (dict(remat="everything"), PIXELS.shape, "remat = 'everything' is not True, False or one of"),
])
def test_refusals(options, shape, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(vit.make("tiny", **options).init, jax.random.key(0), np.zeros(shape, np.float32))
  assert words in str(error.value)


def test_refuses_an_unknown_variant():
  with pytest.raises(ValueError, match="variant = 'dinov2_g14' is not one of clip_b32, .*; choose one of them"):
    vit.make("dinov2_g14")
