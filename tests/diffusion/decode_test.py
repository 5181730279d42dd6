"""Decoding: cached loops equal teacher forcing, distributions in closed form, stops, keys and refusals."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import decode
from diffusion.core import fold
from diffusion.nets import lm

VOCAB, LENGTH = 12, 7
NET = lm.make("tiny", vocab=VOCAB)
TOKENS = jnp.array([[1, 5, 6, 7], [1, 9, 2, 0], [1, 0, 0, 0], [1, 5, 6, 7]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
PROMPT = decode.Prompt(tokens=TOKENS, mask=MASK)
KEYS = jax.random.split(jax.random.key(5), 4)


@pytest.fixture(scope="module")
def params():
  """Weights with which the distributions of tokens are neither flat nor certain."""
  init = jax.jit(lambda key: NET.init(key, TOKENS, jnp.zeros((4, 8, 8, 3)), method="start"))
  leaves, tree = jax.tree.flatten(init(jax.random.key(0))["params"])
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten([a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


def sample(params, prompt=PROMPT, keys=KEYS, **options):
  options = {"length": LENGTH, "stop": (3, 4), **options}
  return jax.jit(lambda p: decode.sample(NET, p, prompt, keys, **options))(params)


def score(params, tokens, mask=None, prompt=PROMPT, **options):
  return jax.jit(lambda p: decode.score(NET, p, prompt, tokens, mask, **options))(params)


def with_image(params, tokens=TOKENS, mask=MASK):
  image = jax.random.normal(jax.random.key(3), (4, 8, 8, 3))
  return decode.Prompt(NET.apply({"params": params}, image, method="see"), tokens, mask)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_the_cached_loop_is_teacher_forcing(params, temperature, top_p):
  """Behind an image and prompts of different lengths; log-probabilities are those before the cut, too."""
  prompt = with_image(params)
  out = sample(params, prompt, temperature=temperature, top_p=top_p, states=True)
  found, states = score(params, out.tokens, out.mask, prompt, temperature=temperature)
  np.testing.assert_allclose(out.log_prob, found, atol=1e-4)
  np.testing.assert_allclose(out.states, states * out.mask[..., None], atol=1e-4)
  assert out.states.shape == (4, LENGTH, 16) and np.abs(out.log_prob).max() > 1


@pytest.mark.parametrize("sections", [(), (1, 1, 0)])
def test_positions_that_are_given_go_on(params, sections):
  """The cached loop is teacher forcing behind them, too; counted ones are the same as none."""
  net = NET.clone(sections=sections)
  place = jnp.maximum(jnp.cumsum(MASK, 1) - 1, 0)
  place = jnp.stack([place] * 3, -1) if sections else place

  def both(p, positions):
    prompt = decode.Prompt(tokens=TOKENS, mask=MASK, positions=positions)
    out = decode.sample(net, p, prompt, KEYS, length=LENGTH, stop=())
    return out, decode.score(net, p, prompt, out.tokens)[0]
  run = jax.jit(both)
  out, found = run(params, place)
  np.testing.assert_array_equal(out.tokens, sample(params, stop=()).tokens)
  np.testing.assert_allclose(out.log_prob, found, atol=1e-4)
  far = place.at[:, 0].add(4)
  out, found = run(params, far)
  np.testing.assert_allclose(out.log_prob, found, atol=1e-4)
  want = score(params, out.tokens)[0]
  assert np.abs(found - want).max() > 1e-2


def test_a_mask_may_cover_embeddings(params):
  """Embeddings of tokens and padding are as good as the tokens; a shorter mask is of the last columns."""
  words = params["token"]["embedding"][TOKENS]
  tokens = jnp.array([[5, 6], [7, 8], [9, 10], [1, 2]])
  want = score(params, tokens)[0]
  np.testing.assert_allclose(score(params, tokens, prompt=decode.Prompt(words, None, MASK))[0], want, atol=1e-5)
  for mask in (MASK, MASK[:, 1:]):
    prompt = decode.Prompt(words[:, :1], TOKENS[:, 1:], mask)
    np.testing.assert_allclose(score(params, tokens, prompt=prompt)[0], want, atol=1e-5)


def test_every_temperature_of_a_batch_is_its_own(params):
  out = sample(params)
  each = jnp.array([1.0, 0.5, 0.0, 2.0])
  found = score(params, out.tokens, temperature=each)[0]
  for i, one in enumerate((1.0, 0.5, 1.0, 2.0)):
    np.testing.assert_allclose(found[i], score(params, out.tokens, temperature=one)[0][i], rtol=1e-5)


def test_greedy_tokens_are_the_most_likely_ones(params):
  """By one full forward a token, of the prompt without its padding; what is not said yet, and not seen, is zero."""
  out = sample(params, temperature=0.0, stop=())
  last = lambda p, said, at: NET.apply(p, NET.apply(p, said[None])[0][0, at], method="logits")
  ahead = jax.jit(lambda said, at: last({"params": params}, said, at))
  for row, (tokens, n) in enumerate(zip(TOKENS, MASK.sum(1), strict=True)):
    said = jnp.zeros(TOKENS.shape[1] + LENGTH, int).at[:n].set(tokens[:n])
    for i in range(LENGTH):
      logits = ahead(said, n + i - 1)
      assert int(out.tokens[row, i]) == int(jnp.argmax(logits))
      np.testing.assert_allclose(out.log_prob[row, i], jax.nn.log_softmax(logits).max(), atol=1e-5)
      said = said.at[n + i].set(out.tokens[row, i])
  assert len(set(map(tuple, np.asarray(out.tokens[:3]).tolist()))) == 3


def test_the_probabilities_of_all_answers_add_up_to_one(params):
  answers = jnp.array(list(itertools.product(range(VOCAB), repeat=2)))
  one = lambda a: jnp.repeat(a[1:2], len(answers), 0)
  prompt = decode.Prompt(tokens=one(TOKENS), mask=one(MASK))
  total = jnp.exp(score(params, answers, prompt=prompt, temperature=0.7)[0].sum(1))
  assert float(total.sum()) == pytest.approx(1, abs=1e-5) and float(total.max()) < 0.5


def test_samples_have_the_frequencies_of_their_probabilities(params):
  """20000 answers of two tokens to one prompt: the first, and the second after the most frequent first one."""
  count = 20000
  one = lambda a: jnp.repeat(a[:1], count, 0)
  prompt = decode.Prompt(tokens=one(TOKENS), mask=one(MASK))
  keys = jax.random.split(jax.random.key(2), count)
  out = sample(params, prompt, keys, length=2, stop=(), temperature=0.8)
  ids, mask = TOKENS[:1], MASK[:1]
  every = decode.Prompt(tokens=jnp.repeat(ids, VOCAB, 0), mask=jnp.repeat(mask, VOCAB, 0))
  want = jnp.exp(score(params, jnp.arange(VOCAB)[:, None], prompt=every, temperature=0.8)[0][:, 0])
  found = np.bincount(out.tokens[:, 0], minlength=VOCAB) / count
  np.testing.assert_allclose(found, want, atol=0.015)
  top = int(found.argmax())
  pairs = jnp.stack([jnp.full(VOCAB, top), jnp.arange(VOCAB)], 1)
  want = jnp.exp(score(params, pairs, prompt=every, temperature=0.8)[0][:, 1])
  after = np.asarray(out.tokens[:, 1])[np.asarray(out.tokens[:, 0]) == top]
  np.testing.assert_allclose(np.bincount(after, minlength=VOCAB) / len(after), want, atol=0.03)


@pytest.mark.parametrize("top_p,kept", [(1.0, [0, 1, 2, 3]), (0.9, [0, 1, 2]), (0.79, [0, 1]), (0.49, [0]),
                                        (1e-6, [0])])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
  order = np.array([2, 0, 3, 1])  # where the likely ones stand
  logits = np.zeros(4, np.float32)
  logits[order] = np.log([0.5, 0.3, 0.15, 0.05])
  found = np.asarray(decode.nucleus(jnp.asarray(logits), top_p))
  assert sorted(np.flatnonzero(np.isfinite(found))) == sorted(order[kept])
  np.testing.assert_array_equal(found[order[kept]], logits[order[kept]])


def test_top_p_cuts_after_the_temperature(params):
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))[None].repeat(4000, 0)
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = lambda **o: set(np.unique(decode.choose(logits, keys, **o)).tolist())
  assert drawn(temperature=1.0, top_p=0.6) == {0, 1}
  assert drawn(temperature=4.0, top_p=0.6) == {0, 1, 2} and drawn(temperature=0.25, top_p=0.6) == {0}
  found = np.bincount(decode.choose(logits, keys, temperature=1.0, top_p=0.6)) / 4000
  np.testing.assert_allclose(found, [0.625, 0.375], atol=0.03)


def test_nothing_counts_after_a_stop(params):
  out = sample(params, length=20, states=True, pad=8, prompt=with_image(params))
  tokens, ended = np.asarray(out.tokens), 0
  for row, mask in zip(tokens, np.asarray(out.mask), strict=True):
    stops = np.flatnonzero(np.isin(row, (3, 4)))
    end = stops[0] if len(stops) else 19
    ended += len(stops) > 0 and end < 18
    assert mask.tolist() == [1.0] * (end + 1) + [0.0] * (19 - end) and (row[end + 1:] == 8).all()
  assert ended >= 2
  np.testing.assert_array_equal(decode.until_stop(out.tokens, (3, 4)), out.mask)
  after = np.asarray(out.mask) == 0
  assert not np.asarray(out.log_prob)[after].any() and not np.asarray(out.states)[after].any()
  assert (np.asarray(out.log_prob)[~after] < 0).all()


def test_one_stop_is_as_good_as_a_list_of_it(params):
  jax.tree.map(np.testing.assert_array_equal, sample(params, stop=3), sample(params, stop=(3,)))
  assert sample(params, stop=()).mask.all()


def test_a_sample_depends_on_neither_batch_nor_length_nor_padding(params):
  whole = sample(params, stop=3)
  order = jnp.array([2, 0, 3, 1])
  permuted = sample(params, decode.Prompt(tokens=TOKENS[order], mask=MASK[order]), KEYS[order], stop=3)
  np.testing.assert_array_equal(permuted.tokens, whole.tokens[order])
  alone = sample(params, decode.Prompt(tokens=TOKENS[1:2, :3]), KEYS[1:2], stop=3)
  np.testing.assert_array_equal(alone.tokens, whole.tokens[1:2])
  np.testing.assert_allclose(alone.log_prob, whole.log_prob[1:2], atol=1e-5)
  longer = sample(params, stop=3, length=LENGTH + 5)
  np.testing.assert_array_equal(longer.tokens[:, :LENGTH], whole.tokens)
  assert (np.asarray(whole.tokens[0]) != np.asarray(whole.tokens[3])).any()  # the same prompt, another key


def test_token_i_is_drawn_with_the_key_folded_with_i(params):
  out = sample(params, stop=(), length=3, temperature=0.9)
  hidden, _ = NET.apply({"params": params}, jnp.concatenate([TOKENS, out.tokens[:, :2]], 1)[:1])
  logits = NET.apply({"params": params}, hidden[0, 3:], method="logits")
  for i in range(3):
    key = fold(KEYS[:1], i)[0]
    assert int(jax.random.categorical(key, logits[i] / 0.9)) == int(out.tokens[0, i])


def test_prefill_gives_the_distribution_of_the_next_token(params):
  hidden, cache = decode.prefill(NET, params, PROMPT)
  logits = NET.apply({"params": params}, hidden, method="logits")
  found = decode.log_probs(logits, jnp.array([3, 7, 1, 0]))
  np.testing.assert_allclose(found, score(params, jnp.array([[3], [7], [1], [0]]))[0][:, 0], atol=1e-5)
  assert cache.k.shape[2] == 4 and decode.prefill(NET, params, PROMPT, 6)[1].k.shape[2] == 10


@pytest.mark.parametrize("sections", [(), (1, 1, 0)])
def test_columns_that_all_share_are_read_once(params, sections):
  """Over the end of a prefix, with padding inside, and with positions that are given."""
  net = NET.clone(sections=sections)
  prefix = jnp.broadcast_to(jax.random.normal(jax.random.key(7), (1, 3, 16)), (4, 3, 16))
  tokens, mask = TOKENS.at[:, 1].set(5), MASK.at[:, 1:3].set(True).at[:, 0].set(False)
  place = jnp.broadcast_to(3 * jnp.arange(7), (4, 7))
  prompt = decode.Prompt(prefix, tokens, mask, jnp.stack([place] * 3, -1) if sections else None)
  wanted, cache = jax.jit(lambda p: decode.prefill(net, p, prompt, 2))(params)
  for shared in (2, 5):
    hidden, found = jax.jit(lambda p, n=shared: decode.prefill(net, p, prompt, 2, n))(params)
    np.testing.assert_allclose(hidden, wanted, atol=1e-5)
    kept = np.asarray(cache.seen)[None, :, :, None, None]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 found._replace(k=found.k * kept, v=found.v * kept), cache._replace(k=cache.k * kept, v=cache.v * kept))


def test_log_probs_are_those_of_numpy():
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  tokens = np.array([[0, 1, 2], [3, 4, 0]])
  chances = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(-1, keepdims=True)
  want = np.log(np.take_along_axis(chances, tokens[..., None], -1))[..., 0]
  np.testing.assert_allclose(decode.log_probs(jnp.asarray(logits), tokens, 0.5), want, rtol=1e-5)


def test_a_masked_score_is_zero_and_has_no_gradient(params):
  tokens, mask = sample(params, stop=()).tokens, jnp.ones((4, LENGTH)).at[:, 3:].set(0)
  masked = score(params, tokens, mask)[0]
  assert not np.asarray(masked[:, 3:]).any()
  np.testing.assert_allclose(masked[:, :3], score(params, tokens)[0][:, :3], rtol=1e-6)
  slope = lambda t, m: jax.grad(lambda p: decode.score(NET, p, PROMPT, t, m)[0].sum())(params)
  short = slope(tokens[:, :3], None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), slope(tokens, mask), short)
  assert np.abs(short["blocks"]["attn"]["q"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("options,words", [
  (dict(length=0), "length = 0 must be at least 1"),
  (dict(temperature=-0.5), "temperature = -0.5 must be at least 0"),
  (dict(top_p=0.0), "top_p = 0.0 must be in (0, 1]"),
  (dict(top_p=1.5), "top_p = 1.5 must be in (0, 1]"),
  (dict(prompt=decode.Prompt()), "prefix and tokens are both None"),
  (dict(prompt=decode.Prompt(tokens=TOKENS[:, 1:], mask=MASK)), "mask of shape (4, 4) must be [B M] with B = 4 and M"),
])
def test_refusals(params, options, words):
  with pytest.raises(ValueError) as error:
    sample(params, **options)
  assert words in str(error.value)


def test_told_tokens_are_read_and_what_follows_them_counts_until_the_next_stop():
  tokens = jnp.array([[5, 3, ~7, ~3, 6, 4, 0, 0], [5, 6, 3, 0, 0, 0, 0, 0], [~1, 5, 3, 0, ~2, 3, 3, ~0]])
  ids, mask = decode.spoken(tokens, (3, 4))
  assert ids.tolist() == [[5, 3, 7, 3, 6, 4, 0, 0], [5, 6, 3, 0, 0, 0, 0, 0], [1, 5, 3, 0, 2, 3, 3, 0]]
  assert mask.tolist() == [[1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1, 0, 0]]
  np.testing.assert_array_equal(mask[1:2], decode.until_stop(tokens[1:2], (3, 4)))
