"""The MMDiT: shapes, conditioning, masks, its identity start, rematerialisation and refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from diffusion.nets import mmdit


def inputs(batch=2, size=8, channels=3, length=5, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.array([[length], [2]])[np.arange(batch) % 2]
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return (draw(batch, size, size, channels), jnp.linspace(10, 900, batch), draw(batch, length, 12), jnp.asarray(mask),
          draw(batch, 6))


def made(**options):
  """A network whose gates are open: at its start every block is the identity."""
  net = mmdit.make("tiny", **options)
  return net, weights.drawn(net.init, *inputs())


def test_everything_given_matters_and_padding_does_not():
  net, params = made(depth=3, norm=True)
  x, t, context, mask, pooled = inputs()
  out = net.apply(params, x, t, context, mask, pooled)
  assert out.shape == x.shape
  for other in ((x + 1, t, context, mask, pooled), (x, t + 50, context, mask, pooled), (x, t, -context, mask, pooled),
                (x, t, context, mask, -pooled)):
    assert jnp.abs(net.apply(params, *other) - out).max() > 1e-3
  padding = jnp.where(mask[..., None], context, 100.0)
  np.testing.assert_allclose(net.apply(params, x, t, padding, mask, pooled), out, atol=1e-5)
  assert jnp.abs(net.apply(params, x, t, context, None, pooled)[1] - out[1]).max() > 1e-4


def test_blocks_start_as_the_identity():
  net = mmdit.make("tiny", depth=3)
  args = inputs()
  params = jax.jit(net.init)(jax.random.key(0), *args)
  np.testing.assert_array_equal(net.apply(params, *args), net.apply(params, args[0], args[1], -args[2], *args[3:]))
  assert jnp.abs(net.apply(params, *args)).max() > 0


def test_equal_blocks_are_stacked():
  shapes = lambda **o: jax.eval_shape(mmdit.make("tiny", **o).init, jax.random.key(0), *inputs())["params"]
  tree = shapes(depth=5, dual=1)
  assert tree["blocks"]["x_qkv"]["q"]["kernel"].shape == (3, 16, 16)
  assert tree["dual_blocks"]["dual_qkv"]["q"]["kernel"].shape == (1, 16, 16)
  assert "c_mlp" not in tree["last_block"] and "c_out" not in tree["last_block"]
  assert "blocks" not in shapes(depth=1)


def test_layers_of_a_stack_start_differently():
  net = mmdit.make("tiny", depth=3)
  kernel = jax.jit(net.init)(jax.random.key(0), *inputs())["params"]["blocks"]["x_qkv"]["q"]["kernel"]
  assert jnp.abs(kernel[0] - kernel[1]).max() > 0.01


def test_positions_are_cropped_from_the_middle():
  places = mmdit.waves(16, 8, 4)
  whole = mmdit.positions(places, 8, 8)
  np.testing.assert_array_equal(mmdit.positions(places, 4, 2), whole[2:6, 3:5])
  np.testing.assert_array_equal(mmdit.positions(places, 3, 8), whole[2:5])
  np.testing.assert_allclose(whole[0, 0], [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)
  np.testing.assert_allclose(whole[0, 2, 0], np.sin(1), rtol=1e-6)  # two columns of this finer table are one unit
  np.testing.assert_allclose(whole[2, 0, 8], np.sin(1), rtol=1e-6)


def test_places_may_be_given():
  net, params = made()
  out, own = net.apply(params, *inputs()), mmdit.waves(16, 16, 8)
  np.testing.assert_array_equal(net.clone(places=own).apply(params, *inputs()), out)
  other = mmdit.Places(own.across, own.down + 1)
  assert jnp.abs(net.clone(places=other).apply(params, *inputs()) - out).max() > 1e-3


def test_patches_go_back_where_they_came_from():
  """With identity maps at both ends and no effect of the blocks, only the norm is between x and the output."""
  net = mmdit.make("tiny", width=16, channels=4, depth=1, table=4, base=4)
  x, t, context, mask, pooled = inputs(channels=4)
  params = jax.jit(net.init)(jax.random.key(0), x, t, context, mask, pooled)
  inner = params["params"]
  inner["patch_in"]["kernel"], inner["patch_out"]["kernel"] = jnp.eye(16), jnp.eye(16)
  place = mmdit.positions(mmdit.waves(16, 4, 4), 4, 4)
  tokens = x.reshape(2, 4, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 16) + place
  tokens = (tokens - tokens.mean(-1, keepdims=True)) / jnp.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
  want = tokens.reshape(2, 4, 4, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
  np.testing.assert_allclose(net.apply(params, x, t, context, mask, pooled), want, atol=1e-5)


def test_remat_changes_neither_names_nor_gradients():
  net, params = made()
  again = mmdit.make("tiny", remat=True)
  grad = lambda n: jax.jit(jax.grad(lambda p: (n.apply(p, *inputs()) ** 2).sum()))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grad(net), grad(again))


def test_bfloat16_computes_near_float32():
  net, params = made()
  out, want = mmdit.make("tiny", dtype="bfloat16").apply(params, *inputs()), net.apply(params, *inputs())
  assert out.dtype == jnp.bfloat16
  assert jnp.abs(out - want).max() < 0.08 * jnp.abs(want).max()


@pytest.mark.parametrize("name,count", [("sd3_medium", 2_028_328_000), ("sd35_medium", None), ("sd35_large", None),
                                        ("digits", None)])
def test_variants_trace(name, count):
  """2,028,328,000 is the public SD3-medium transformer without its table of positions, which is computed here."""
  net = mmdit.make(name)
  args = (jnp.zeros((1, 8, 8, net.channels)), jnp.zeros(1), jnp.zeros((1, 4, 4096)), None, jnp.zeros((1, 2048)))
  shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
  assert jax.eval_shape(net.apply, shapes, *args).shape == args[0].shape
  if count:
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("options,size,words", [
  (dict(), 7, "input of 7x7 must be a multiple of patch = 2"),
  (dict(table=2), 8, "input of 4x4 patches must not exceed table = 2"),
  (dict(heads=3), 8, "width = 16 must be a multiple of 4 and of heads = 3"),
  (dict(remat="all"), 8, "remat = 'all' is not True, False or one of"),
])
def test_refusals(options, size, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(mmdit.make("tiny", **options).init, jax.random.key(0), *inputs(size=size))
  assert words in str(error.value)


def test_refuses_without_pooled_text():
  with pytest.raises(ValueError, match="pooled is None"):
    jax.eval_shape(mmdit.make("tiny").init, jax.random.key(0), *inputs()[:4])
