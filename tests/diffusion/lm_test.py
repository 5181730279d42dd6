"""The language model: causality, padding, the cache, prefixes, images as prefixes, sizes and refusals."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from diffusion import tokenizer
from diffusion.nets import lm

TOKENS = jnp.array([[1, 5, 6, 7, 9, 30], [1, 9, 2, 8, 4, 3]])


def made(**options):
  """A network whose weights are larger than the .02 that it begins with, and whose biases and norms are others."""
  net = lm.make("tiny", **options)
  return net, weights.drawn(functools.partial(net.init, method="start"), TOKENS, jnp.zeros((2, 8, 8, 3)))


def hidden(net, params, *inputs):
  return net.apply(params, *inputs)[0]


def test_only_what_came_before_is_seen():
  net, params = made()
  moved = np.abs(hidden(net, params, TOKENS.at[0, 3].set(20)) - hidden(net, params, TOKENS)).max(-1)
  assert not moved[1].any() and moved[0, :3].max() < 1e-6 and moved[0, 3:].min() > 1e-3


def test_order_matters_to_what_comes_after():
  net, params = made()
  swapped = TOKENS[:, jnp.array([1, 0, 2, 3, 4, 5])]
  assert np.abs(hidden(net, params, swapped) - hidden(net, params, TOKENS))[:, -1].max() > 1e-3


@pytest.mark.parametrize("place", [[0, 1], [6, 7], [2, 5]])
def test_padding_changes_nothing_wherever_it_stands(place):
  net, params = made()
  real = np.setdiff1d(np.arange(8), place)
  padded, mask = np.full((2, 8), 11), np.zeros((2, 8), bool)
  padded[:, real], mask[:, real] = TOKENS, True
  np.testing.assert_allclose(hidden(net, params, padded, None, mask)[:, real], hidden(net, params, TOKENS), atol=1e-5)


@pytest.mark.parametrize("place", [[0, 1], [2, 3], [1, 6]])
def test_a_cache_is_the_full_forward_with_padding_too(place):
  """Three columns, two, three, into a cache that is too large."""
  net, params = made(kv=4, tied=False)
  real = np.setdiff1d(np.arange(8), place)
  padded, mask = np.full((2, 8), 11), np.zeros((2, 8), bool)
  padded[:, real], mask[:, real] = TOKENS, True
  cache, found = lm.empty(net, 2, 10), []
  for cut in (slice(0, 3), slice(3, 5), slice(5, 8)):
    out, cache = net.apply(params, padded[:, cut], None, mask[:, cut], cache)
    found.append(out)
  np.testing.assert_allclose(jnp.concatenate(found, 1)[:, real], hidden(net, params, TOKENS), atol=1e-5)
  assert int(cache.used) == 8 and np.asarray(cache.seen.sum(1)).tolist() == [6, 6]


def test_axes_that_count_alike_are_plain_positions():
  """Text is at the same time, height and width, so that sections change nothing of it; given or counted."""
  net, params = made()
  axes, want = lm.make("tiny", sections=(1, 1, 0)), hidden(net, params, TOKENS)
  count = jnp.broadcast_to(jnp.arange(6)[:, None], (2, 6, 3))
  at = lambda net, positions: net.apply(params, TOKENS, positions=positions)[0]
  np.testing.assert_array_equal(hidden(axes, params, TOKENS), want)
  np.testing.assert_array_equal(at(axes, count), want)
  np.testing.assert_array_equal(at(net, count[..., 0]), want)
  np.testing.assert_allclose(at(axes, count + 50), want, atol=1e-4)  # distances count, not places


@pytest.mark.parametrize("sections", [(1, 1, 0), (0, 1, 1), (1, 0, 1)])
def test_sections_say_which_axes_turn(sections):
  net, params = made(sections=sections)
  count = jnp.broadcast_to(jnp.arange(6)[:, None], (2, 6, 3))
  at = lambda positions: net.apply(params, TOKENS, positions=positions)[0]
  for axis, turns in enumerate(sections):
    change = np.abs(at(count.at[:, 3:, axis].add(2)) - at(count)).max((0, 2))
    assert (change[3:].min() > 1e-3) == (turns > 0) and change[:3].max() < 1e-6


def test_a_cache_counts_on_from_the_highest_position():
  """Behind cells of an image, behind padding, and when positions are given again."""
  net, params = made(sections=(1, 1, 0))
  mask = jnp.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]], bool)
  place = jnp.array([[[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [3, 3, 3], [90, 0, 0]],
                     [[80, 0, 0], [0, 0, 0], [0, 7, 0], [0, 0, 0], [1, 1, 1], [2, 2, 2]]])
  _, cache = net.apply(params, TOKENS, None, mask, lm.empty(net, 2, 10), place)
  assert cache.next.tolist() == [4, 8] and cache.next.dtype == jnp.int32
  more = jnp.array([[7, 8], [7, 8]])
  free, after = net.apply(params, more, None, None, cache)
  given, again = net.apply(params, more, None, None, cache, jnp.array([[[4] * 3, [5] * 3], [[8] * 3, [9] * 3]]))
  np.testing.assert_array_equal(free, given)
  assert after.next.tolist() == again.next.tolist() == [6, 10]
  whole, _ = net.apply(params, jnp.concatenate([TOKENS, more], 1), None, jnp.pad(mask, ((0, 0), (0, 2)),
                       constant_values=True), None, jnp.concatenate([place, cache.next[:, None, None] + jnp.array(
                         [[[0] * 3, [1] * 3]])], 1))
  np.testing.assert_allclose(free, whole[:, 6:], atol=1e-5)
  assert net.apply(params, more, None, jnp.array([[1, 0], [0, 0]]), cache)[1].next.tolist() == [5, 8]


def test_epsilon_is_of_every_norm():
  net, params = made()
  small = jax.tree.map(lambda a: a * 1e-3, params)
  change = [np.abs(hidden(lm.make("tiny", epsilon=e), small, TOKENS)).max() for e in (1e-6, 1e-2)]
  assert change[0] > 2 * change[1] > 0
  assert lm.make("tiny", epsilon=1e-6) == lm.make("tiny") == net


def test_a_prefix_of_embeddings_is_as_good_as_the_tokens():
  net, params = made()
  table = params["params"]["token"]["embedding"]
  whole = hidden(net, params, TOKENS)
  np.testing.assert_allclose(hidden(net, params, TOKENS[:, 2:], table[TOKENS[:, :2]]), whole, atol=1e-6)
  np.testing.assert_allclose(hidden(net, params, None, table[TOKENS]), whole, atol=1e-6)
  np.testing.assert_array_equal(net.apply(params, TOKENS, method="embed"), table[TOKENS])


def test_logits_are_the_embedding_or_a_head_of_their_own():
  for tied in (True, False):
    net, params = made(tied=tied)
    kernel = params["params"]["token"]["embedding"].T if tied else params["params"]["head"]["kernel"]
    states = hidden(net, params, TOKENS)
    np.testing.assert_allclose(net.apply(params, states, method="logits"), states @ kernel, atol=1e-4)
    assert ("head" in params["params"]) != tied


def test_patches_are_rows_of_the_image():
  """Without layers a prefix vector depends on its patch alone; the last patch is at the bottom right."""
  net, params = made()
  image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  see = lambda image: net.apply(params, image, method="see")
  assert see(image).shape == (1, 4, 16)
  for corner, number in (((0, 0), 0), ((0, 7), 1), ((7, 0), 2), ((7, 7), 3)):
    moved = np.abs(see(image.at[0, *corner, 0].add(1)) - see(image)).max(-1)[0]
    assert np.flatnonzero(moved > 1e-4).tolist() == [number]


def test_layers_of_the_sight_look_at_the_whole_image_and_know_the_place():
  net, params = made(sight=1)
  see = lambda image: net.apply(params, image, method="see")
  image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  assert np.abs(see(image.at[0, 7, 7, 0].add(1)) - see(image)).max(-1)[0].min() > 1e-4
  even = see(jnp.ones((1, 8, 8, 3)))[0]
  assert np.abs(even[0] - even[1]).max() > 1e-2


def test_layers_are_stacked_and_start_differently():
  net = lm.make("tiny", depth=3)
  params = jax.jit(lambda key: net.init(key, TOKENS, method="start"))(jax.random.key(0))["params"]
  kernel = params["blocks"]["attn"]["q"]["kernel"]
  assert kernel.shape == (3, 16, 16) and jnp.abs(kernel[0] - kernel[1]).max() > 0.01
  assert set(params) == {"token", "blocks", "norm"}


def test_remat_changes_neither_names_nor_gradients():
  net, params = made()
  grad = lambda n: jax.jit(jax.grad(lambda p: (hidden(n, p, TOKENS) ** 2 * jnp.arange(16)).sum()))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grad(net),
               grad(lm.make("tiny", remat=True)))


def test_bfloat16_computes_near_float32_and_keeps_its_cache_small():
  net, params = made()
  low = lm.make("tiny", dtype="bfloat16")
  out, cache = low.apply(params, TOKENS, None, None, lm.empty(low, 2, 6))
  want = hidden(net, params, TOKENS)
  assert out.dtype == cache.k.dtype == jnp.bfloat16
  assert low.apply(params, out, method="logits").dtype == jnp.float32
  assert 0 < np.abs(out - want).max() < 0.08 * np.abs(want).max()


@pytest.mark.parametrize("name,count", [("qwen2_0.5b", 494_032_768), ("qwen2_1.5b", 1_543_714_304),
                                        ("qwen25_3b", 3_085_938_688), ("qwen2_7b", 7_615_616_512), ("tiny", None)])
def test_variants_trace(name, count):
  """The numbers are those of the public checkpoints."""
  net = lm.make(name)
  shapes = jax.eval_shape(lambda key: net.init(key, TOKENS, method="start"), jax.random.key(0))
  cache = jax.eval_shape(lambda: lm.empty(net, 2, 6))
  out, _ = jax.eval_shape(net.apply, shapes, TOKENS, None, None, cache)
  assert out.shape == (2, 6, net.width)
  assert count is None or sum(a.size for a in jax.tree.leaves(shapes)) == count


def test_the_size_for_scenes_is_small_and_holds_the_shipped_vocabulary():
  net = lm.make("scenes")
  shapes = jax.eval_shape(lambda key: net.init(key, TOKENS, jnp.zeros((2, 16, 16, 3)), method="start"),
                          jax.random.key(0))
  assert net.vocab >= tokenizer.load("words").size
  assert sum(a.size for a in jax.tree.leaves(shapes)) < 1_000_000


@pytest.mark.parametrize("options,words", [
  (dict(heads=3), "width = 16 must be an even multiple of heads = 3"),
  (dict(heads=16), "width = 16 must be an even multiple of heads = 16"),
  (dict(kv=3), "heads = 4 must be a multiple of kv = 3"),
  (dict(patch=3), "an image of 8x8 must be a multiple of patch = 3"),
  (dict(patch=0), "patch = 0, so that this network cannot see an image"),
  (dict(remat="all"), "remat = 'all' is not True, False or one of"),
  (dict(sections=(1, 1)), "sections = (1, 1) must be three numbers (time, height, width) with the sum 2"),
  (dict(sections=(1, 1, 1)), "sections = (1, 1, 1) must be three numbers (time, height, width) with the sum 2"),
  (dict(sections=(2, 1, -1)), "sections = (2, 1, -1) must be three numbers (time, height, width) with the sum 2"),
])
def test_refusals(options, words):
  with pytest.raises(ValueError) as error:
    made(**options)
  assert words in str(error.value)


@pytest.mark.parametrize("sections,shape,words", [
  ((), (2, 6, 3), "positions of shape (2, 6, 3) must be (2, 6), one for each column; pass such, or None to count"),
  ((1, 1, 0), (2, 6), "positions of shape (2, 6) must be (2, 6, 3), one for each column and axis (time, height"),
  ((), (2, 5), "positions of shape (2, 5) must be (2, 6)"),
])
def test_refuses_positions_of_another_shape(sections, shape, words):
  net = lm.make("tiny", sections=sections)
  with pytest.raises(ValueError) as error:
    jax.eval_shape(lambda: net.init(jax.random.key(0), TOKENS, None, None, None, jnp.zeros(shape, int)))
  assert words in str(error.value)
