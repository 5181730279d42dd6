"""FLUX: shapes, conditioning, masks, its identity start, places, packing, stacks, rematerialisation, the table of its
public weights, and refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from diffusion.convert import flux as table
from diffusion.nets import flux


def inputs(batch=2, size=(8, 4), channels=3, length=5, guided=False, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(length) < np.array([[length], [2]])[np.arange(batch) % 2]
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return (draw(batch, *size, channels), jnp.linspace(10, 900, batch), draw(batch, length, 12), jnp.asarray(mask),
          draw(batch, 6), jnp.linspace(1, 5, batch) if guided else None)


def made(**options):
  """A small network whose gates are open: at its start every block is the identity."""
  net = flux.make("tiny", **{"depth": 1, "single": 1, **options})
  return net, weights.drawn(net.init, *inputs(guided=net.guided))


@pytest.fixture(scope="module")
def started():
  """A network as it starts; 16 = 2 x 2 x 4 channels are its width."""
  net = flux.make("tiny", channels=4)
  return net, jax.jit(net.init)(jax.random.key(0), *inputs(channels=4))


def test_everything_given_matters_and_padding_does_not():
  net, params = made(guided=True)
  apply = jax.jit(net.apply)
  x, t, context, mask, pooled, guidance = inputs(guided=True)
  out = apply(params, x, t, context, mask, pooled, guidance)
  assert out.shape == x.shape
  for other in ((x + 1, t, context, mask, pooled, guidance), (x, t + 50, context, mask, pooled, guidance),
                (x, t, -context, mask, pooled, guidance), (x, t, context, mask, -pooled, guidance),
                (x, t, context, mask, pooled, guidance + 1)):
    assert jnp.abs(apply(params, *other) - out).max() > 1e-3
  padding = jnp.where(mask[..., None], context, 100.0)
  np.testing.assert_allclose(apply(params, x, t, padding, mask, pooled, guidance), out, atol=1e-5)
  short = apply(params, x, t, context[:, :2], None, pooled, guidance)  # the second sample's text, without padding
  np.testing.assert_allclose(short[1], out[1], atol=1e-5)
  assert jnp.abs(short[0] - out[0]).max() > 1e-4


def test_text_has_no_order_and_patches_have_one():
  """Text stands at one place; of patches, only where they are relative to the text and to each other is known."""
  net, params = made()
  apply = jax.jit(net.apply)
  x, t, context, _, pooled, _ = inputs()
  out = apply(params, x, t, context, None, pooled)
  np.testing.assert_allclose(apply(params, x, t, context[:, ::-1], None, pooled), out, atol=1e-5)
  rolled = apply(params, jnp.roll(x, 2, 1), t, context, None, pooled)  # by one patch
  assert jnp.abs(jnp.roll(rolled, -2, 1) - out).max() > 1e-3


def test_blocks_start_as_the_identity(started):
  net, params = started
  x, t, context, mask, pooled, _ = inputs(channels=4)
  apply = jax.jit(net.apply)
  out = apply(params, x, t, context, mask, pooled)
  np.testing.assert_array_equal(out, apply(params, x, t, -context, mask, pooled))
  assert jnp.abs(out).max() > 0


def test_layers_of_a_stack_start_differently(started):
  stacks = started[1]["params"]
  for kernel in (stacks["double_blocks"]["x_qkv"]["q"]["kernel"], stacks["single_blocks"]["mlp"]["kernel"]):
    assert jnp.abs(kernel[0] - kernel[1]).max() > 0.01


def test_equal_blocks_are_stacked():
  shapes = lambda **o: jax.eval_shape(flux.make("tiny", **o).init, jax.random.key(0), *inputs())["params"]
  tree = shapes(depth=5, single=3)
  assert tree["double_blocks"]["x_qkv"]["q"]["kernel"].shape == (5, 16, 16)
  assert tree["double_blocks"]["c_qkv"]["k_norm"]["scale"].shape == (5, 8)
  assert tree["single_blocks"]["out"]["kernel"].shape == (3, 80, 16)
  assert "guidance" not in tree
  assert "double_blocks" not in shapes(depth=0) and "single_blocks" not in shapes(single=0)


def test_the_program_does_not_grow_with_depth():
  def lines(blocks):
    net = flux.make("tiny", depth=blocks, single=blocks)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs())
    return len(jax.jit(net.apply).lower(shapes, *inputs()).as_text().splitlines())
  assert lines(6) == lines(24)


def test_turns_in_closed_form():
  cos, sin = flux.turns((2, 4, 2), 3, 2, 3)
  assert cos.shape == sin.shape == (9, 4)
  np.testing.assert_array_equal([cos[:4], sin[:4]], [np.ones((4, 4)), np.zeros((4, 4))])  # text, and patch (0, 0)
  place = np.array([0, 1, 1 / 100, 2])  # patch (1, 2), the last: index, row at two frequencies, column
  np.testing.assert_allclose([cos[-1], sin[-1]], [np.cos(place), np.sin(place)], atol=1e-6)


def test_turns_are_near_float64():
  cos, sin = flux.turns((16, 56, 56), 0, 128, 128)
  turn = np.concatenate([10000.0 ** (-np.arange(0, d, 2) / d) for d in (56, 56)])
  row, column = np.divmod(np.arange(128 * 128), 128)
  angles = np.concatenate([row[:, None] * turn[:28], column[:, None] * turn[28:]], 1)
  np.testing.assert_allclose([cos[:, 8:], sin[:, 8:]], [np.cos(angles), np.sin(angles)], atol=1e-5)


def test_turned_is_a_product_of_complex_numbers():
  x = np.random.default_rng(0).normal(size=(2, 9, 3, 8)).astype(np.float32)
  angles = flux.turns((2, 4, 2), 3, 2, 3)
  want = (x[..., ::2] + 1j * x[..., 1::2]) * np.asarray(angles[0] + 1j * angles[1])[:, None]
  out = flux.turned(jnp.asarray(x), angles)
  np.testing.assert_allclose(out[..., ::2] + 1j * out[..., 1::2], want, atol=1e-5)


def test_patches_go_back_where_they_came_from(started):
  """With identity maps at both ends and no effect of the blocks, only the norm is between x and the output."""
  net, params = started
  x, t, context, mask, pooled, _ = inputs(channels=4)
  eye = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
  params = {"params": {**params["params"], "patch_in": eye, "patch_out": eye}}
  patches = x.reshape(2, 4, 2, 2, 2, 4)  # rows, row in a patch, columns, column in a patch
  mean, var = patches.mean((2, 4, 5), keepdims=True), patches.var((2, 4, 5), keepdims=True)
  want = ((patches - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape)
  np.testing.assert_allclose(jax.jit(net.apply)(params, x, t, context, mask, pooled), want, atol=1e-5)


def test_a_condition_may_stand_behind_the_latents():
  net = flux.make("tiny")
  args = inputs(channels=7)
  params = jax.eval_shape(net.init, jax.random.key(0), *args)
  assert params["params"]["patch_in"]["kernel"].shape == (28, 16)
  assert jax.eval_shape(net.apply, params, *args).shape == (2, 8, 4, 3)


def test_remat_changes_neither_names_nor_gradients():
  net, params = made(depth=0)
  again = flux.make("tiny", depth=0, single=1, remat=True)
  loss = lambda n: lambda p: (n.apply(p, *inputs()) ** 2).sum()
  grads = [jax.jit(jax.grad(loss(n)))(params) for n in (net, again)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *grads)
  programs = [str(jax.make_jaxpr(loss(n))(params)) for n in (net, again)]
  assert ["remat" in p or "checkpoint" in p for p in programs] == [False, True]


def test_bfloat16_computes_near_float32():
  net, params = made()
  low = flux.make("tiny", depth=1, single=1, dtype="bfloat16")
  out, want = (jax.jit(n.apply)(params, *inputs()) for n in (low, net))
  assert out.dtype == jnp.bfloat16
  assert jnp.abs(out - want).max() < 0.08 * jnp.abs(want).max()


@pytest.mark.parametrize("name,count", [("flux_dev", 11_901_408_320), ("flux_schnell", 11_891_178_560)])
def test_variants_trace(name, count):
  """The counts are those of the public transformers."""
  net = flux.make(name)
  args = (jnp.zeros((1, 8, 8, 16)), jnp.zeros(1), jnp.zeros((1, 4, 4096)), None, jnp.zeros((1, 768)),
          jnp.zeros(1) if net.guided else None)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
  assert jax.eval_shape(net.apply, shapes, *args).shape == args[0].shape
  assert sum(a.size for a in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("options,size,words", [
  (dict(), (7, 8), "input of shape (2, 7, 8, 3) must be [B H W C] with H and W multiples of patch = 2"),
  (dict(), (8, 7), "input of shape (2, 8, 7, 3) must be [B H W C] with H and W multiples of patch = 2"),
  (dict(), (8,), "input of shape (2, 8, 3) must be [B H W C]"),
  (dict(heads=3), (8, 8), "width = 16 must be a multiple of heads = 3"),
  (dict(heads=4), (8, 8), "axes = (2, 2, 4) must be three even numbers (index, row, column) with the sum 4"),
  (dict(axes=(4, 4)), (8, 8), "axes = (4, 4) must be three even numbers"),
  (dict(axes=(1, 3, 4)), (8, 8), "axes = (1, 3, 4) must be three even numbers"),
  (dict(axes=(-2, 6, 4)), (8, 8), "axes = (-2, 6, 4) must be three even numbers"),
  (dict(depth=-1), (8, 8), "depth = -1 and single = 2 must be at least 0"),
  (dict(single=-1), (8, 8), "depth = 2 and single = -1 must be at least 0"),
  (dict(remat="all"), (8, 8), "remat = 'all' is not True, False or one of"),
])
def test_refuses_sizes(options, size, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(flux.make("tiny", **options).init, jax.random.key(0), *inputs(size=size))
  assert words in str(error.value)


@pytest.mark.parametrize("change,guided,words", [
  ({"pooled": None}, False, "pooled is None"),
  ({"guidance": None}, True, "guidance is None, but with guided = True it must be given"),
  ({"guidance": jnp.ones(2)}, False, "guidance is given, but with guided = False it must be None"),
  ({"guidance": jnp.ones(1)}, True, "guidance of shape (1,) must be [B]"),
  ({"t": jnp.ones((2, 1))}, False, "t of shape (2, 1) must be [B]"),
  ({"context": jnp.ones((2, 12))}, False, "context of shape (2, 12) must be [B L D]"),
  ({"context": jnp.ones((1, 5, 12))}, False, "context of shape (1, 5, 12) must be [B L D]"),
  ({"mask": jnp.ones((2, 4))}, False, "mask of shape (2, 4) must be [B L]"),
  ({"pooled": jnp.ones(6)}, False, "pooled of shape (6,) must be [B E]"),
])
def test_refuses_inputs(change, guided, words):
  names = ("x", "t", "context", "mask", "pooled", "guidance")
  args = {**dict(zip(names, inputs(guided=guided), strict=True)), **change}
  with pytest.raises(ValueError) as error:
    jax.eval_shape(flux.make("tiny", guided=guided).init, jax.random.key(0), **args)
  assert words in str(error.value)


def test_refuses_other_variants():
  with pytest.raises(ValueError, match="Flux: variant = 'flux' is not one of flux_dev, flux_schnell, tiny"):
    flux.make("flux")


def test_published_options_are_the_variants():
  """Options that FLUX.1-schnell's config.json gives, and what -dev's, without axes_dims_rope too, has otherwise."""
  config = {"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": False}
  assert table.make(config).net == flux.make("flux_schnell")
  assert table.make({**config, "guidance_embeds": True}, remat=True).net == flux.make("flux_dev", remat=True)
  fill = table.make({**config, "in_channels": 384, "out_channels": 64})
  assert fill.net.channels == 16 and fill.example()[0].shape == (1, 2, 2, 96)


@pytest.mark.parametrize("config,words", [
  ({"patch_size": 2}, "FluxTransformer2DModel: patch_size = 2 in config.json is not supported, only 1"),
  ({"in_channels": 6}, "FluxTransformer2DModel: in_channels = 6 in config.json must be a multiple of 4"),
  ({"out_channels": 6}, "FluxTransformer2DModel: out_channels = 6 in config.json must be a multiple of 4"),
])
def test_the_table_refuses(config, words):
  with pytest.raises(ValueError) as error:
    table.make(config)
  assert words in str(error.value)
