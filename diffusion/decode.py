"""Prefill and decode loops over a causal language model, and the log-probabilities of given tokens.

`net` is any Linen module with the interface of nets/lm.py (a call with a cache, `logits`). Policies draw from it, and
judges read their verdict from it; nothing here knows of training. A whole answer is one `while_loop` inside the
caller's jit, which ends when every sample has stopped. Left out: beams, penalties for repetition, speculative tokens,
logits in pieces of the vocabulary.

Log-probabilities are those of softmax(logits / temperature) over the whole vocabulary, also where top_p < 1 cuts it.
That is what `score` can compute again for tokens that another network drew: inside a nucleus, a token that falls out of
it under changed weights would have probability 0, and the ratio of two policies would have no bound and no gradient.
The price is that with top_p < 1 samples do not come from the distribution whose density is given. Greedy tokens
(temperature 0) have no density; theirs is that at temperature 1.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.core import fold
from diffusion.nets import lm


class Prompt(NamedTuple):
  """What stands before an answer: embeddings, then tokens. One of the two may be None."""
  prefix: Any = None     # [B N width]
  tokens: Any = None     # [B P], padding anywhere
  mask: Any = None       # [B P] or [B N+P], of the last columns; False is padding, columns before them are seen
  positions: Any = None  # [B N+P], or [B N+P 3] of time, height and width, as the network takes them; None: counted


class Decoded(NamedTuple):
  """An answer of at most L tokens."""
  tokens: Any    # [B L] int32, `pad` after the stop token
  log_prob: Any  # [B L] float32, 0 after the stop token
  mask: Any      # [B L] float32, 1 up to and including the stop token
  states: Any    # [B L width], the last hidden state of each token, 0 after the stop token; None unless asked for


def until_stop(tokens, stop):
  """mask [B L] float32 of tokens [B L]: 1 up to and including the first token of `stop` (an id, or several)."""
  stopped = jnp.cumsum(stops(tokens, stop), 1) - stops(tokens, stop)
  return (stopped == 0).astype(jnp.float32)


def spoken(tokens, stop):
  """(ids, mask) [B L] of answers that others interrupt: a token t below 0 is told, stands for ~t, and is read without
  being learned; what comes after a stop counts for nothing until something is told. Without such tokens, `until_stop`.
  """
  told = tokens < 0
  before = jnp.cumsum(stops(tokens, stop), 1) - stops(tokens, stop)
  since = before - jax.lax.cummax(jnp.where(told, before, 0), 1)
  return jnp.where(told, ~tokens, tokens), ((since == 0) & ~told).astype(jnp.float32)


def stops(tokens, stop):
  return jnp.isin(tokens, jnp.atleast_1d(jnp.asarray(stop, jnp.int32))).astype(jnp.int32)


def log_probs(logits, tokens, temperature=1.0):
  """ln softmax(logits / temperature) of tokens: [... V], [...] -> [...], float32. temperature: broadcasts to [...]; 0,
  which has no density, counts as 1."""
  temperature = jnp.asarray(temperature, jnp.float32)
  scaled = logits.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1.0)[..., None]
  return jnp.take_along_axis(jax.nn.log_softmax(scaled), tokens[..., None], -1)[..., 0]


def nucleus(logits, top_p: float):
  """logits [... V] with -inf outside the smallest set of tokens whose probability reaches top_p (1904.09751).

  Tokens as likely as the last one of the set stay too, so that the cut does not depend on the order of a sort."""
  ordered = jnp.flip(jnp.sort(logits, -1), -1)
  chances = jax.nn.softmax(ordered)
  inside = jnp.cumsum(chances, -1) - chances < top_p
  least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
  return jnp.where(logits < least, -jnp.inf, logits)


def choose(logits, keys, temperature: float = 1.0, top_p: float = 1.0):
  """One token [B] from logits [B V], a key a sample; the most likely one at temperature 0."""
  if temperature == 0:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  scaled = logits.astype(jnp.float32) / temperature
  scaled = scaled if top_p == 1 else nucleus(scaled, top_p)
  return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)


def laid(prompt: Prompt):
  """(tokens or None, prefix or None, mask [B N+P]) of a prompt, as a network is called."""
  if prompt.prefix is None and prompt.tokens is None:
    raise ValueError("prompt: prefix and tokens are both None, but the first token must follow something; give one of "
                     "them, such as the token that begins every text")
  batch, *_ = (prompt.prefix if prompt.tokens is None else prompt.tokens).shape
  count = sum(part.shape[1] for part in (prompt.prefix, prompt.tokens) if part is not None)
  mask = jnp.ones((batch, count), bool) if prompt.mask is None else prompt.mask.astype(bool)
  if mask.shape[0] != batch or mask.shape[1] > count:
    raise ValueError(f"prompt: mask of shape {mask.shape} must be [B M] with B = {batch} and M at most {count}, the "
                     "columns of prefix and tokens; pass such")
  return prompt.tokens, prompt.prefix, jnp.pad(mask, ((0, 0), (count - mask.shape[1], 0)), constant_values=True)


def last(hidden, mask):
  """[B width], the hidden state of the last column of each sample that is no padding."""
  index = mask.shape[1] - 1 - jnp.argmax(jnp.flip(mask, 1), 1)
  return jnp.take_along_axis(hidden, index[:, None, None], 1)[:, 0]


def prefill(net, params, prompt: Prompt, room: int = 0, shared: int = 0):
  """(hidden [B width] from which the next token is read, a cache with `room` for as many more tokens).

  shared: how many of the first columns are the same in all samples, whose rest is not empty: they are read once.
  """
  tokens, prefix, mask = laid(prompt)
  room_for = lambda batch: lm.empty(net, batch, mask.shape[1] + room)
  if not shared:
    hidden, cache = net.apply({"params": params}, tokens, prefix, mask, room_for(len(mask)), prompt.positions)
    return last(hidden, mask), cache
  words = [] if tokens is None else [net.apply({"params": params}, tokens, method="embed")]
  columns = jnp.concatenate(([] if prefix is None else [prefix]) + words, 1), mask, prompt.positions
  first, rest = (jax.tree.map(lambda a, at=at: a[at], columns)
                 for at in ((slice(1), slice(shared)), (slice(None), slice(shared, None))))
  read = lambda x, mask, positions, cache: net.apply({"params": params}, None, x, mask, cache, positions)
  _, cache = repeated(*read(*first, room_for(1)), len(mask))
  hidden, cache = read(*rest, cache)
  return last(hidden, rest[1]), cache


def onward(prompt: Prompt, mask, count: int):
  """Positions of a prompt, whose columns are mask [B N+P], and of `count` tokens after it, as sampling places them."""
  if prompt.positions is None:
    return None
  given = prompt.positions
  start = lm.placed(mask, 0, given)[1]
  more = (start[:, None] + jnp.arange(count)).reshape(*start.shape, count, *[1] * (given.ndim - 2))
  return jnp.concatenate([given, jnp.broadcast_to(more, (*more.shape[:2], *given.shape[2:]))], 1)


def sample(net, params, prompt: Prompt, keys, *, length: int, stop, pad: int = 0, temperature: float = 1.0,
           top_p: float = 1.0, states: bool = False) -> Decoded:
  """Draws an answer to each prompt.

  Args:
    params: of `net`. keys: [B] typed keys; token i is drawn with fold(keys, i), so that an answer depends neither on
      the batch nor on when others stop. length: L, the most tokens.
    stop: the id that ends an answer, or several, or (). pad: the id that follows it.
    temperature: a Python number; 0 is greedy. top_p: 1 is off. states: whether hidden states are kept.

  Raises: ValueError for a length, a temperature or a top_p that is impossible, and for an empty prompt.
  """
  check(length, temperature, top_p)
  hidden, cache = prefill(net, params, prompt, length)
  return carry_on(net, params, hidden, cache, keys, length=length, stop=stop, pad=pad, temperature=temperature,
                  top_p=top_p, states=states)


def carry_on(net, params, hidden, cache, keys, *, length: int, stop, pad: int = 0, temperature: float = 1.0,
             top_p: float = 1.0, states: bool = False) -> Decoded:
  """The same from what `prefill` returned, whose cache must have room for `length` tokens."""
  check(length, temperature, top_p)
  batch = hidden.shape[0]
  zeros = jnp.zeros((batch, length))
  out = Decoded(jnp.full((batch, length), pad, jnp.int32), zeros, zeros,
                jnp.zeros((batch, length, hidden.shape[-1]), hidden.dtype) if states else None)

  def one(state):
    i, hidden, cache, alive, out = state
    logits = net.apply({"params": params}, hidden, method="logits")
    token = jnp.where(alive, choose(logits, fold(keys, i), temperature, top_p), pad)
    log_prob = jnp.where(alive, log_probs(logits, token, temperature), 0.0)
    hidden, cache = net.apply({"params": params}, token[:, None], None, alive[:, None], cache)
    hidden = hidden[:, 0]
    new = Decoded(token, log_prob, alive, jnp.where(alive[:, None], hidden, 0) if states else None)
    out = jax.tree.map(lambda a, b: a.at[:, i].set(b.astype(a.dtype)), out, new)
    return i + 1, hidden, cache, alive & (stops(token, stop) == 0), out

  going = lambda state: (state[0] < length) & state[3].any()
  return jax.lax.while_loop(going, one, (jnp.int32(0), hidden, cache, jnp.ones(batch, bool), out))[-1]


def follow(net, params, hidden, cache, tokens, mask=None):
  """log_prob [B L] float32 of given tokens [B L] after what `prefill` returned, whose cache must have room for L.

  mask: [B L], 0 where a log-probability is 0, such as behind the end of a shorter answer; None: all count.
  """
  states, _ = net.apply({"params": params}, tokens, None, None, cache)
  read = jnp.concatenate([hidden[:, None], states[:, :-1]], 1)
  found = log_probs(net.apply({"params": params}, read, method="logits"), tokens)
  return found if mask is None else jnp.where(mask > 0, found, 0.0)


def repeated(hidden, cache: lm.Cache, count: int) -> tuple:
  """What `prefill` returned, each sample `count` times in a row, for several answers to one prompt."""
  again = lambda a, axis=0: jnp.repeat(a, count, axis)
  return again(hidden), cache._replace(k=again(cache.k, 1), v=again(cache.v, 1), seen=again(cache.seen),
                                       next=again(cache.next))


def score(net, params, prompt: Prompt, tokens, mask=None, temperature=1.0):
  """(log_prob [B L] float32, states [B L width]) of given answers [B L], by one call with all tokens at once.

  mask: [B L], 0 where a log-probability is not wanted and is 0, such as after the stop token; None: all are.
  temperature: a number or [B]. Differentiable in params and in the prompt's prefix.
  """
  return scored(net, params, *behind(net, params, prompt, tokens), tokens, mask, temperature)


def behind(net, params, prompt: Prompt, tokens):
  """(hidden [B N+P+L width], seen [B N+P]): states of a prompt and of given answers, and what of the prompt is seen."""
  before, prefix, seen = laid(prompt)
  whole = tokens if before is None else jnp.concatenate([before, tokens], 1)
  columns = jnp.concatenate([seen, jnp.ones(tokens.shape, bool)], 1)
  hidden, _ = net.apply({"params": params}, whole, prefix, columns, None, onward(prompt, seen, tokens.shape[1]))
  return hidden, seen


def scored(net, params, hidden, seen, tokens, mask=None, temperature=1.0):
  """What `score` returns, from what `behind` did."""
  states = hidden[:, seen.shape[1]:]
  read = jnp.concatenate([last(hidden[:, :seen.shape[1]], seen)[:, None], states[:, :-1]], 1)
  logits = net.apply({"params": params}, read, method="logits")
  temperature = jnp.asarray(temperature, jnp.float32)
  found = log_probs(logits, tokens, temperature[:, None] if temperature.ndim else temperature)
  return (found if mask is None else jnp.where(mask > 0, found, 0.0)), states


def named(net, params, hidden, words):
  """[B] float32: ln p of words [B P W], -1 for none, each read where its column [B P width] of a prompt stands."""
  log_p = jax.nn.log_softmax(net.apply({"params": params}, hidden, method="logits").astype(jnp.float32))
  found = jnp.take_along_axis(log_p, jnp.maximum(words, 0), -1)
  return jnp.where(words >= 0, found, 0.0).sum((1, 2))


def check(length: int, temperature: float, top_p: float) -> None:
  if length < 1:
    raise ValueError(f"length = {length} must be at least 1, the most tokens of an answer; raise it")
  if not temperature >= 0:
    raise ValueError(f"temperature = {temperature} must be at least 0; 1 is the network's own distribution, 0 is "
                     "greedy")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p = {top_p} must be in (0, 1]; 1 keeps every token, 0.9 is usual")
