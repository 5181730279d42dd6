"""UnifiedReward (2503.05236) and its kind: a vision-language model that is asked about what was generated.

  reward = {"name": "unified", "model": DIR, "question": "image_generation_point_v2"}

DIR is a folder of a Qwen2.5-VL, Qwen2-VL or LLaVA-OneVision in transformers' layout, whose weights are taken unless
`start` names others. The question is one of
judging/formats.py, or of JSON files of one's own (`prompts`), for the exact prompt of a checkpoint. `reading` says
how an answer is read: "text" as written, "expected" the mean score under the probabilities of the numbers,
"probability" that of sentences (judging/judge.py). Pairs are asked in both orders; a sample's score is the share of its
comparisons within the prompt's group that it wins (`scheme`). Questions about understanding judge the answers of a
policy of words (policies/chat.py), whose tokens `answers` reads. What is read from probabilities is normalised over the
answers that can be read; part `mass` is how probable these are.

On the host any question can be asked. With `size`, the side of the pictures that the generator makes, questions about
one picture are read inside the mesh: nothing leaves the device, and the score has a gradient in the picture. Left out
there: clips, pairs, what the judge writes.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import vlm
from rewards import verdict
from rewards.core import Reward, Scores
from rewards.judging import formats, judge, questions
from rewards.judging.reward import make_host

READ = ("expected", "probability")


def make(model: str, question: str, reading: str = "text", scheme: str = "all", prompts: str = None, size: int = None,
         frames: int = None, rate: float = None, side: int = None, answers: str = None, columns: int = 2048,
         length: int = 512, temperature: float = 0.7, at_once: int = 8, dtype: str = "bfloat16",
         remat: bool | str = False) -> Reward:
  """Args:
    question: its name. prompts: a JSON file or a folder of them with further ones. reading, scheme: see above.
    size: pixels of a side; then the score is computed inside the mesh, of `columns` tokens at most.
    frames: of a clip that are shown, evenly spread over it; None: as many as the question says, 8 or 16 as published.
    rate: frames a second of the clips, so that a judge hears how fast they are; then about two a second are shown where
      neither `frames` nor the question says how many.
    side: of the squares as which media are shown, such as 32 for a judge that learned from pictures of that size; None:
      as the question says.
    answers: of questions about understanding, the folder whose tokenizer the samples are in.
    length: the most tokens of a written answer; temperature: of the second try, where the first cannot be read.
    at_once: conversations in a batch, on the host. dtype: of the network and its parameters; remat: see layers.remat.
  """
  opened, asked = vlm.open_(model, dtype=dtype, remat=remat), formats.question(question, prompts)
  given = {name: value for name, value in (("frames", frames), ("rate", rate), ("side", side)) if value is not None}
  asked = questions.check(asked._replace(**given), f"question {question!r}")
  init = lambda key: {"net": vlm.fresh(opened, key, dtype)}
  if size is not None:
    return inside(opened, asked, reading, size, columns, init)
  if jax.process_count() > 1:
    raise ValueError(f"question {question!r} is asked on the host, which {jax.process_count()} processes cannot do "
                     "together; set size, the pixels of a side, so that it is asked inside the mesh, or run one")
  said = None if answers is None else functools.partial(verdict.said, verdict.opened(answers)[0])
  return make_host(answerer(opened, length, temperature, at_once), asked, reading, scheme, init, said)


def answerer(model: vlm.Model, length: int = 512, temperature: float = 0.7, at_once: int = 8) -> judge.Answerer:
  """The network as a judge; a view is {"net": parameters}."""
  if at_once < 1:
    raise ValueError(f"at_once = {at_once} must be at least 1, conversations in a batch; raise it")
  speaker = vlm.speaker(model)
  groups = lambda items: [items[i:i + at_once] for i in range(0, len(items), at_once)]

  def say(view, conversations, keys):
    heat = 0.0 if keys is None else temperature
    keys = jax.random.split(jax.random.key(0), len(conversations)) if keys is None else keys
    said = [one for talks, own in zip(groups(conversations), groups(keys), strict=True)
            for one in speaker.answer(view["net"], talks, own, length, heat)]
    return [judge.Said(*one, bool(np.isin(one.tokens[-1:], model.chat.stop).any())) for one in said]

  def read(view, conversations, begun, options):
    return np.concatenate([speaker.chances(view["net"], talks, begun, options) for talks in groups(conversations)])

  return judge.Answerer(say, read)


def inside(model: vlm.Model, question: questions.Question, reading: str, size: int, columns: int,
           init: Any) -> Reward:
  """The score of one picture as a traceable function of it."""
  if questions.two(question) or question.medium != "image" or question.task != "generation":
    raise ValueError(f"question {question.name!r} with size = {size}: inside the mesh a question is about one "
                     "generated picture; choose such a point or yes question, or leave size out")
  judge.check_reading(question, reading)
  if reading not in READ:
    raise ValueError(f"reading = {reading!r} with size = {size}: what the judge writes is read on the host; choose "
                     f"{' or '.join(READ)}, or leave size out")
  wordings, options, values = judge.wordings(question)
  spelled = {name: vlm.spelled(model.chat, begun, options) for name, begun in wordings.items()}
  picture, values = np.zeros((size, size, 3), np.uint8), jnp.asarray(values, jnp.float32)

  def arrays(prompts, blank=True):
    """{name: arrays of the questions about a picture that is not there yet}."""
    seen = {}
    talks = [questions.conversation(question, questions.Asked(prompt, (picture,))) for prompt in prompts]
    return {name: vlm.each(model, [vlm.row(model, talk, first, seen) for talk in talks], columns, blank=blank)
            for name, (first, _, _) in spelled.items()}

  _, *shape = next(iter(arrays(["a picture"], False).values()))["pixels"].shape   # [S T H W 3] of each sample
  entry = f"asked of {model.root}: {question.name}, {columns} columns"             # several judges share a batch

  def prepare(batch):
    return {**batch, entry: arrays(list(batch["prompt"]))}

  def score(view, batch, media, keys):
    asked, parts, mass = batch[entry], {}, []
    shown = {"pixels": pictures(model, media, question.side, size, shape),
             "extents": next(iter(asked.values()))["extents"]}
    seen = vlm.features(model.net, view["net"], shown)
    for name, (_, tokens, mask) in spelled.items():
      log_p = vlm.apart(vlm.continued(model.net, view["net"], asked[name], tokens, mask, seen=seen), tokens, mask)
      parts[name] = jax.nn.softmax(log_p) @ values
      mass.append(jnp.exp(log_p).sum(-1))
    total = sum(parts.values()) / len(parts)
    parts = {**(parts if len(parts) > 1 else {}), "mass": jnp.stack(mass).min(0)}
    return Scores(total, parts, jnp.isfinite(total))

  return Reward(init, prepare, score, "gradient", None)


def pictures(model: vlm.Model, media: Any, side: int | None, size: int, shape: list) -> Any:
  """media [B size size C] in [0, 1] -> [B S T H W 3], of `shape` behind B, as the tower takes them."""
  if media.shape[1:3] != (size, size):
    raise ValueError(f"media of {media.shape[1]} x {media.shape[2]} pixels reach a judge that was made for size = "
                     f"{size}; set size to the side of the pictures")
  media = jnp.broadcast_to(media, (*media.shape[:3], 3))
  if side is not None and side != size:
    media = jax.image.resize(media, (media.shape[0], side, side, 3), "cubic")
  cut = model.processor.differentiable(jnp.clip(media, 0, 1))
  cut = cut.reshape(media.shape[0], -1, *cut.shape[1:])
  return jnp.pad(cut, [(0, 0), *((0, most - least) for most, least in zip(shape, cut.shape[1:], strict=True))])
