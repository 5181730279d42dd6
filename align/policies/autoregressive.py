"""A language model or a captioner as a Policy: tokens instead of denoising steps, over diffusion/decode.py.

A decision is one token, K = L. There is no noise: `process` and `law` are None, `denoise` and `step` refuse. The
policy is softmax(logits / temperature), and `log_prob` (the exact sum over an answer), rollouts and replay all speak of
it: leave temperature at 1 where a likelihood is learned from data. top_p < 1 cuts what is sampled, not what is scored
(decode.py says why).

  cond "image"   captions of `media` [B size size channels]: cond {"image"}; media stay in the batch for rewards
       "prompt"  answers to `prompt`: cond {"tokens", "mask"} of `prompt_length`
       "none"    texts after the first token alone, cond as above

An answer x is int32 [B L]: its tokens with <eos>, then <pad>; what comes after the first <eos> counts for nothing.
Texts to learn from are `caption`, and `win` and `lose` of pairs: lists of strings in the batch, or strings in every
record's `meta`; where there is no caption, captioners and "none" take the `prompt` itself. Media are the tokens:
strings are made on the host, by tokenizer.load(tokens).decode. Left out: answers that start midway, chat templates,
several images.
"""
from typing import Any, Callable

import jax.numpy as jnp
import numpy as np

from align.build import UserError
from align.core import Policy, Rollout, Step
from diffusion import decode, tokenizer

CONDITIONS = ("image", "prompt", "none")


def texts(batch: dict, name: str) -> list | None:
  """The strings `name` of a batch, from itself or from every record's meta; None where it has none."""
  if isinstance(batch.get(name), list):
    return batch[name]
  meta = batch.get("meta") or []
  return [m[name] for m in meta] if meta and all(isinstance(m.get(name), str) for m in meta) else None


def image_of(batch: dict, shape: tuple) -> Any:
  """The images [B H W C] that are to be captioned. UserError where there are none, or of another size."""
  if "media" not in batch:
    raise UserError(f"data entry 'media' is missing, the batch has {', '.join(sorted(batch))}; a captioner (cond = "
                    "'image') needs pictures: choose a data set with media")
  found = np.shape(batch["media"])[1:]
  if found != shape:
    raise UserError(f"data entry 'media' is {' x '.join(map(str, found))}, but the policy reads "
                    f"{' x '.join(map(str, shape))} (height x width x channels); make config.data and "
                    "config.policy.size, config.policy.channels agree")
  return batch["media"]


def scaled(image):
  """Bytes, or floats in [0, 1] -> [-1, 1]."""
  is_float = jnp.issubdtype(image.dtype, jnp.floating)
  return 2 * image - 1 if is_float else image.astype(jnp.float32) / 127.5 - 1


def check_answers(name: str, ids: Any, length: int) -> None:
  """Refuses what is no array [B length] of token ids."""
  if np.ndim(ids) != 2 or np.shape(ids)[1] != length or not np.issubdtype(ids.dtype, np.integer):
    raise UserError(f"data entry {name!r} is {ids.dtype} of shape {np.shape(ids)}, but answers are strings, or token "
                    f"ids [B {length}] (config.policy.length); give one of them")


def refuse(name: str):
  def function(*args, **kwargs):
    raise UserError(f"policy.{name}: this policy makes tokens, which have no noise levels; only log_prob, sample and "
                    "replay are defined: choose an algorithm that needs no more (grpo, dpo, rwr, sft), or a diffusion "
                    "policy")
  return function


def check_whole(**given) -> None:
  for name, value in given.items():
    if value is not None:
      raise UserError(f"policy.sample: {name} = {value}: tokens are drawn from the first to the last and all are kept, "
                      f"{name} must be None; leave it out, or set config.policy.length")


def check(net, cond: str, tokens: str, size: int, temperature: float) -> None:
  if cond not in CONDITIONS:
    raise ValueError(f"policy: cond = {cond!r} is not one of {', '.join(CONDITIONS)}; choose one of them")
  if cond == "image" and not net.patch:
    raise ValueError("policy: cond = 'image', but the network has patch = 0 and cannot see; set net.patch to a divisor "
                     "of size, or cond to 'prompt' or 'none'")
  if net.vocab < size:                           # a lookup beyond the table would be NaN, without a word
    raise ValueError(f"net: vocab = {net.vocab} is smaller than the {size} tokens of tokens = {tokens!r}; set vocab to "
                     f"{size} or more")
  if not temperature > 0:
    raise ValueError(f"policy: temperature = {temperature} must be positive, since greedy tokens have no density; 1 is "
                     "the network's own distribution (to sample greedily, give `sample` eta = 0)")


def make(net: Any, cond: str = "image", tokens: str = "words", length: int = 16, prompt_length: int = 16,
         size: int = 16, channels: int = 3, temperature: float = 1.0, top_p: float = 1.0,
         states: bool = False) -> Policy:
  """net: a Linen module (nets/lm.py). tokens: a tokenizer folder or shipped name.

  Args:
    cond: what an answer is conditioned on, see above. length: L, the most tokens of an answer with its <eos>.
    prompt_length: tokens that a prompt is padded or cut to, with both ends. size, channels: of images.
    temperature, top_p: of sampling; `sample`'s eta replaces the temperature, 0 is greedy and is not trained on.
    states: whether a rollout's `aux` holds "states" [B L width], the last hidden state of each token.
  """
  words = tokenizer.load(tokens)
  check(net, cond, tokens, words.size, temperature)
  decode.check(length, temperature, top_p)
  first, stop, pad = map(int, words.encode([""], 3)[0][0])

  def init(key):
    image = jnp.zeros((1, size, size, channels)) if cond == "image" else None
    return {"net": net.init(key, jnp.zeros((1, 2), jnp.int32), image, method="start")["params"]}

  def answers(said):
    return words.encode(said, length + 1)[0][:, 1:]

  def prepare(batch):
    if "prompt" not in batch:
      return batch
    out = dict(batch)
    said = texts(batch, "caption") or (None if cond == "prompt" else batch["prompt"])
    for name, found in (("x", said), ("win", texts(batch, "win")), ("lose", texts(batch, "lose"))):
      if found is not None and not isinstance(batch.get(name), np.ndarray):
        out[name] = answers(found)
      if name in out:
        check_answers(name, out[name], length)
    return {**out, "cond": conditions(batch)}

  def conditions(batch):
    if cond == "image":
      return {"image": image_of(batch, (size, size, channels))}
    prompts = list(batch["prompt"])
    ids, mask = words.encode(prompts, prompt_length) if cond == "prompt" else begin(len(prompts), np)
    return {"tokens": ids, "mask": mask}

  def begin(count, lib=jnp):
    return lib.full((count, 1), first, lib.int32), lib.ones((count, 1), bool)

  def prompt(view, given):
    if cond != "image":
      return decode.Prompt(None, given["tokens"], given["mask"])
    prefix = net.apply({"params": view["net"]}, scaled(given["image"]), method="see")
    return decode.Prompt(prefix, *begin(prefix.shape[0]))

  return over(net, init, prepare, prompt, first=first, stop=stop, pad=pad, length=length, temperature=temperature,
              top_p=top_p, states=states)


def over(net: Any, init: Callable, prepare: Callable, prompt: Callable, *, first: int, stop: int | tuple, pad: int,
         length: int, temperature: float, top_p: float, states: bool) -> Policy:
  """The policy of answers of at most `length` tokens to prompt(view, cond), a decode.Prompt. first: what counts as the
  token before an answer; stop: ids that end one; pad: what follows it."""
  def log_prob(view, cond, x, keys, t=None):
    if t is not None:
      refuse("log_prob at a noise level")()
    ids, mask = decode.spoken(x, stop)
    return decode.score(net, view["net"], prompt(view, cond), ids, mask, temperature)[0].sum(-1)

  def sample(view, cond, keys, x=None, steps=None, eta=None, keep=None):
    check_whole(x=x, steps=steps, keep=keep)
    heat = temperature if eta is None else eta
    out = decode.sample(net, view["net"], prompt(view, cond), keys, length=length, stop=stop, pad=pad,
                        temperature=heat, top_p=top_p, states=states)
    before = jnp.concatenate([jnp.full_like(out.tokens[:, :1], first), out.tokens[:, :-1]], 1)
    mask = out.mask * float(heat > 0)  # greedy decisions have no density
    times = jnp.broadcast_to(jnp.array([0.0, 0.0, heat], jnp.float32), mask.shape + (3,))
    return Rollout(cond, before, out.tokens, times, out.log_prob * mask, None, jnp.zeros_like(mask), mask, out.tokens,
                   {"states": out.states} if states else {})

  def replay(view, rollout):
    heat = rollout.times[:, 0, 2]
    found, _ = decode.score(net, view["net"], prompt(view, rollout.cond), rollout.nxt, rollout.mask, heat)
    return Step(rollout.nxt, None, rollout.std, found, None)

  return Policy(init, prepare, lambda view, batch, keys: batch, None, None, log_prob, refuse("denoise"), refuse("step"),
                sample, replay, lambda view, x, frames=None: x)
