"""Scalar heads on a language model that sees: one number a dimension, read from the last token of the prompt.

The form of VideoReward (2501.13918, with one reading for all dimensions) and of most reward models of language: image,
then prompt, then a linear map of the last hidden state. `net` is any Linen module with the methods of nets/lm.py
(`see`, a call with a mask). The head begins near zero, N(0, 1 / (width + 1)^2) as ImageReward's, so that training
begins at undecided pairs. Trained by the algorithm `compare`. Left out: clips, a token of its own for each dimension,
stored statistics (a mixture with normalise "frozen" sets them).
"""
from typing import Any

import jax
import jax.numpy as jnp

from diffusion import decode, tokenizer
from rewards.core import Reward, Scores


def make(net: Any, tokens: str = "words", length: int = 16, size: int = 16, channels: int = 3,
         dims: tuple | list = ("overall",), weights: tuple | list | None = None) -> Reward:
  """Args: tokens: a tokenizer folder or shipped name; length: of prompts, padded or cut. size, channels: of images.
  dims: names of the numbers, the parts; weights: of their sum, the total; None: 1 each."""
  words, (dims, factors) = tokenizer.load(tokens), named(dims, weights)
  if not net.patch:
    raise ValueError("net: patch = 0, so that this judge cannot see; set net.patch to a divisor of size")
  if net.vocab < words.size:
    raise ValueError(f"net: vocab = {net.vocab} is smaller than the {words.size} tokens of tokens = {tokens!r}; set "
                     f"vocab to {words.size} or more")

  def init(key):
    body, own = jax.random.split(key)
    params = net.init(body, jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, size, size, channels)), method="start")
    return {"net": params["params"], "head": head(own, net.width, len(dims))}

  def prepare(batch):
    ids, mask = words.encode(list(batch["prompt"]), length)
    return {**batch, "asked": {"tokens": ids, "mask": mask}}

  def score(view, batch, media, keys):
    prefix = net.apply({"params": view["net"]}, 2 * media - 1, method="see")
    asked = decode.Prompt(prefix, batch["asked"]["tokens"], batch["asked"]["mask"])
    columns, before, seen = decode.laid(asked)
    hidden, _ = net.apply({"params": view["net"]}, columns, before, seen)
    return scores(view["head"], decode.last(hidden, seen), dims, factors)

  return Reward(init, prepare, score, "gradient", None)


def named(dims: tuple | list, weights: tuple | list | None) -> tuple[tuple, Any]:
  """(the names, the factors of their sum). ValueError where they do not fit together."""
  dims = tuple(dims)
  if not dims or len(set(dims)) != len(dims):
    raise ValueError(f"dims = {list(dims)} must be one or more different names; ('overall',) is usual")
  if weights is not None and len(weights) != len(dims):
    raise ValueError(f"weights = {list(weights)} must be {len(dims)} numbers, one for each of dims = {list(dims)}")
  return dims, jnp.ones(len(dims)) if weights is None else jnp.asarray(weights, jnp.float32)


def head(key: Any, width: int, count: int) -> dict:
  """A linear map to `count` numbers, near zero."""
  return {"kernel": jax.random.normal(key, (width, count)) / (width + 1), "bias": jnp.zeros(count)}


def scores(head: dict, state: Any, dims: tuple, factors: Any) -> Scores:
  """Of states [B width]."""
  found = state.astype(jnp.float32) @ head["kernel"] + head["bias"]
  total = found @ factors
  return Scores(total, {name: found[:, i] for i, name in enumerate(dims)}, jnp.isfinite(total))
