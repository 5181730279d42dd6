"""A captioner and a generator in one: what the one says of a picture is what the other paints (UAE, 2509.09666).

  policy = {"name": "autoencoder", "captioner": {"model": DIR}, "generator": {"name": "generator", ...},
            "connector": {"name": "connector", ...}, "mode": "caption"}

A caption's last hidden states, as they arise while it is said, go through the connector to where the generator expects
the words of its text encoder; pooled text is that of the empty prompt. A prompt is read by the same language model, as
an answer to the same question without a picture. The modes of one set of parameters, captioner, connector and
generator:

  match    nothing yet: the connector learns to say what the generator's own text encoder says of prompts
  draw     pictures from the prompt; the captioner reads and stands still
  redraw   pictures from the likeliest caption of the record's picture; the captioner stands still
  caption  captions of the record's picture: tokens, of which `decode` paints a picture, so that rewards of pictures
           judge captions; connector and generator stand still
  answer   answers to the prompt about the record's picture, as policies/chat.py gives them

"match" learns from prompts by `sft`, whose loss is then the mean squared difference from the encoder's hidden states,
piece by piece; it needs a captioner and a generator that cut prompts into the same pieces, and in a minute brings a
generator that knows its own prompts near to what it was. "draw" learns from captioned pictures by `sft`, "redraw" from
pictures alone, "answer" from answers; these four by the algorithms for what they make. States differ much with and
without the picture in front of them, so that of captioned pictures every second one of a batch is read behind its own.
Behind their picture, states know more of it than the caption says, and the reward of a caption is then not that of its
words; with `alone` what was said is read once more without the picture, so that words are all that passes.
What a run leaves draws. Pictures may be larger than the generator's by a whole factor: the captioner sees them as they
are, and what is learned and compared with (entry "media") are the means of their squares. All captions of a picture are
painted with the same noise, which depends on the picture's number alone, as of their rewards little else would be what
they say.

Published: Qwen2.5-VL-3B, "Describe ..." at temperature 0.7 and up to 512 tokens; SD3.5-large; rewards are cosines of
CLIP (rewards/reconstruction.py); how captions are grouped, learning rates and clip ranges are not. Left out: guidance
away from a negative prompt, public generators, gradients of the painted picture in the caption's states.
"""
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from align.build import UserError
from align.core import Policy
from align.policies import chat, diffusion
from align.policies.autoregressive import refuse
from diffusion import decode, refiner, vlm
from diffusion.core import fold
from diffusion.generator import Generator

MODES = ("match", "draw", "redraw", "caption", "answer")
PAINTED = 1 << 22  # seed of the noise of painted pictures
AGAIN = "alone/"   # before the names of the question without its picture, among those of cond


def make(captioner: dict, generator: Any, connector: Any, mode: str = "draw",
         question: str | None = "Describe the image.", alone: bool = False, law: str = "logit_normal",
         law_mean: float = 0.0, law_std: float = 1.0, law_shift: float = 1.0) -> Policy:
  """Args:
    captioner: options of policies/chat.py. generator: a diffusion/generator.py. connector: a network of
      nets/connector.py, which makes the generator's width of text of the captioner's states.
    mode, alone: see above. question: what captions answer; in "answer", None asks the prompts. law*: of t in log_prob.

  Raises: ValueError for an unknown mode, where there is no question but captions, and for "match" of a generator whose
    text encoder stands still elsewhere.
  """
  if mode not in MODES:
    raise ValueError(f"mode = {mode!r} is not one of {', '.join(MODES)}; choose one of them")
  if question is None and mode != "answer":
    raise ValueError(f"question = None with mode = {mode!r}: captions answer a question; only 'answer' asks the "
                     "prompts: give a question, or choose that mode")
  talker = chat.make(**captioner, question=question, states=True)
  opened = vlm.open_(captioner["model"], **{name: captioner[name] for name in ("dtype", "remat") if name in captioner})
  read = reader(opened, talker)
  whole = joined(generator, connector, read, opened.net.width, talker.init)
  painter = diffusion.over(whole, diffusion.law_of_t(law, law_mean, law_std, law_shift))
  prepare = preparer(talker, generator.media, mode, alone)
  if mode == "match":
    return matching(generator, connector, read, painter, prepare, opened.chat.stop)
  if mode in ("draw", "redraw"):
    return painter._replace(prepare=prepare, still="captioner/")
  return speaking(talker, painter, prepare, read, opened.chat.stop, mode == "caption")


def reader(opened: vlm.Model, talker: Policy) -> Callable:
  """(view, cond) -> {"states" [B L width], "mask" [B L]} of cond["said"] [B L], or else of the likeliest caption; read
  behind the question that entries "alone/..." of cond hold, where there are such, and else behind the one asked."""
  def read(view, cond):
    held, said, (question, again) = view["captioner"], cond.get("said"), parted(cond)
    if said is None:
      any_keys = jax.random.split(jax.random.key(0), len(question["tokens"]))  # the likeliest token needs no chance
      rollout = talker.sample(held, question, any_keys, eta=0.0)
      said = rollout.output
      if not again:
        return {"states": rollout.aux["states"], "mask": spoken(said, opened.chat.stop)}
    hidden, seen = decode.behind(opened.net, held["net"], vlm.prompt(opened.net, held["net"], again or question), said)
    return {"states": hidden[:, seen.shape[1]:], "mask": spoken(said, opened.chat.stop)}
  return read


def parted(cond: dict) -> tuple[dict, dict]:
  """(the question about the picture, the same without it or nothing), of what preparer made."""
  again = {name.removeprefix(AGAIN): a for name, a in cond.items() if name.startswith(AGAIN)}
  return {name: a for name, a in cond.items() if name not in ("said", "picture") and not name.startswith(AGAIN)}, again


def spoken(tokens, stop):
  """bool [B L]: up to and including the first token that ends an answer."""
  return decode.until_stop(tokens, stop) > 0


def joined(g: Generator, connector: Any, read: Callable, width: int, talker_init: Callable) -> Generator:
  """The generator whose cond are states and their mask, or what `read` makes them of."""
  def told(view, cond):
    cond = cond if "states" in cond else read(view, cond)
    return {"context": connector.apply({"params": view["connector"]}, cond["states"]), "mask": cond["mask"]}

  def init(key):
    first, second, third = jax.random.split(key, 3)
    return {"captioner": talker_init(first), "generator": g.init(third),
            "connector": connector.init(second, jnp.zeros((1, 1, width)))["params"]}

  return g._replace(
    init=init, embed=read,
    predictor=lambda view, cond, guided: g.predictor(view["generator"], told(view, cond), guided),
    sample=lambda view, cond, *more, **options: g.sample(view["generator"], told(view, cond), *more, **options),
    latents=lambda view, *more: g.latents(view["generator"], *more),
    decode=lambda view, x: g.decode(view["generator"], x))


def preparer(talker: Policy, shape: tuple, mode: str, alone: bool) -> Callable:
  """Policy.prepare: the question about the picture of each record, or, mostly without it, before the prompt as its
  answer."""
  def read(batch):
    small, given = reduced(batch, shape), {"prompt": list(batch["prompt"])}
    if "media" in batch and not alone:
      given |= {"media": np.asarray(batch["media"])[:, None], "shown": 1 - np.arange(len(given["prompt"])) % 2}
    asked = talker.prepare(given)
    return {**small, "cond": {**asked["cond"], "said": asked["x"]}}

  def see(batch):
    small = reduced(batch, shape, mode)
    blank = {"prompt": [""] * len(small["media"])}
    cond = talker.prepare({**blank, "media": batch["media"]})["cond"]
    again = {AGAIN + name: a for name, a in talker.prepare(blank)["cond"].items()} if alone else {}
    numbered = {"picture": batch["prompt_id"]} if mode == "caption" and "prompt_id" in batch else {}
    return {**small, "cond": {**cond, **again, **numbered}}

  prepare = {"match": read, "draw": read, "answer": talker.prepare}.get(mode, see)
  return lambda batch: prepare(batch) if "prompt" in batch else batch


def matching(g: Generator, connector: Any, read: Callable, painter: Policy, prepare: Callable, stop: tuple) -> Policy:
  """The policy of a connector that learns what the generator's text encoder says; log_prob is -.5 of the mean squared
  difference. A text encoder's first piece, which begins every prompt, has no counterpart in an answer."""
  if g.read is None:
    raise ValueError("mode = 'match' needs a generator whose text encoder is among its parameters, and this one has it "
                     "elsewhere; choose mode 'draw'")

  def pieces(batch):
    made = prepare({name: column for name, column in batch.items() if name != "media"})
    if "prompt" not in batch:
      return made
    said, text = made["cond"]["said"], g.encode(batch["prompt"])
    counts = np.asarray(spoken(said, stop)).sum(1), np.asarray(text["mask"]).sum(1) - 1
    for prompt, own, theirs in zip(batch["prompt"], *counts, strict=True):
      if own != theirs:
        raise UserError(f"prompt {prompt!r} is {own} pieces with its end for the captioner, but {theirs} for the "
                        "generator's text encoder; mode 'match' needs the same ones: choose shorter prompts, or other "
                        "words, or mode 'draw'")
    return {**made, "x": said, "cond": {**made["cond"], "text": text}}

  def log_prob(view, cond, x, keys, t=None):
    told = read(view, {name: a for name, a in cond.items() if name != "text"})
    hidden, _, mask = g.read(view["generator"], cond["text"])
    n = min(told["mask"].shape[1], mask.shape[1] - 1)
    made = connector.apply({"params": view["connector"]}, told["states"][:, :n])
    apart = ((made - jax.lax.stop_gradient(hidden[:, 1:n + 1].astype(jnp.float32))) ** 2).mean(-1)
    both = told["mask"][:, :n] & mask[:, 1:n + 1]
    return -0.5 * (apart * both).sum(1) / jnp.maximum(both.sum(1), 1)

  def nothing(*args, **kwargs):
    raise UserError("policy: mode 'match' makes nothing; train it by 'sft', and evaluate or align in another mode")

  return Policy(painter.init, pieces, lambda view, batch, keys: batch, None, None, log_prob, nothing, nothing, nothing,
                nothing, painter.decode, "captioner/|generator/")


def reduced(batch: dict, shape: tuple, needed: str = "") -> dict:
  """The batch with its media, uint8 [B H W C], at the generator's size. UserError where the mode `needed` has none, and
  for media of a size that is no multiple."""
  if "media" not in batch:
    if needed:
      raise UserError(f"data entry 'media' is missing, the batch has {', '.join(sorted(batch))}; mode {needed!r} needs "
                      "pictures: choose a data set with media, or mode 'draw'")
    return batch
  found = np.shape(batch["media"])[1:]
  factors = {a // b for a, b in zip(found[:2], shape[:2], strict=False)}
  if len(found) != 3 or found[2] != shape[2] or len(factors) > 1 or found[0] % shape[0] or found[1] % shape[1]:
    raise UserError(f"data entry 'media' is {' x '.join(map(str, found))}, but the generator makes "
                    f"{' x '.join(map(str, shape))} (height x width x channels); the media must be one picture of this "
                    "size or of a whole multiple: change config.data.size or config.policy.generator.size")
  small = refiner.reduced(np.asarray(batch["media"], np.float32), factors.pop())
  return {**batch, "media": np.rint(small).astype(np.uint8)}


def speaking(talker: Policy, painter: Policy, prepare: Callable, read: Callable, stop: tuple, painted: bool) -> Policy:
  """The policy of captions, whose output is painted, or of answers."""
  def sample(view, cond, keys, x=None, steps=None, eta=None, keep=None):
    question, again = parted(cond)
    rollout = talker.sample(view["captioner"], question, keys, x, steps, eta, keep)
    states = read(view, {**cond, "said": rollout.output})["states"] if again else rollout.aux["states"]
    noise = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(PAINTED), number))
    output = {"tokens": rollout.output, "states": states, "mask": spoken(rollout.output, stop),
              "keys": jax.random.key_data(noise(cond["picture"]) if "picture" in cond else fold(keys, PAINTED))}
    return rollout._replace(output=output if painted else rollout.output, aux={})

  def paint(view, output, frames=None):
    cond, keys = {name: output[name] for name in ("states", "mask")}, jax.random.wrap_key_data(output["keys"])
    return painter.decode(view, painter.sample(view, cond, keys, eta=0.0).output, frames)

  def log_prob(view, cond, x, keys, t=None):
    return talker.log_prob(view["captioner"], parted(cond)[0], x["tokens"] if isinstance(x, dict) else x, keys, t)

  return Policy(painter.init, prepare, lambda view, batch, keys: batch, None, None, log_prob, refuse("denoise"),
                refuse("step"), sample, lambda view, rollout: talker.replay(view["captioner"], rollout),
                paint if painted else talker.decode, "connector/|generator/")
