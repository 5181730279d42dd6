"""Answers that a policy of words gives to the questions of a source: several to each, at its own temperature."""
import functools

import jax
import numpy as np

from align import build, evaluate
from align import data as batches
from diffusion import chat, folder
from diffusion.mesh import within
from rewards import verdict


@functools.lru_cache(maxsize=32)
def sampler(policy, mesh):
  """A jitted (view, cond, keys) -> tokens [B L], compiled once a policy."""
  return jax.jit(within(mesh, lambda view, cond, keys: policy.sample(view, cond, keys).output))


def sample_all(policy, view, source, *, samples: int, batch: int, seed: int, mesh, title: str = "sampling"):
  """All questions of a source x samples -> tokens int32 [P n L], and the records; as evaluate.sample_all of media."""
  records = batches.readable(source)
  shown = [name for name in records[0] if name not in batches.HOST]
  tokens = evaluate.drawn_for(records, policy, view, sampler(policy, mesh), shown, samples=samples, batch=batch,
                              seed=seed, mesh=mesh, title=title)
  return tokens.astype(np.int32), records


def texts(model: str, tokens: np.ndarray) -> list:
  """[P][n] what was said, None where an answer does not end, or where its text would be cut into other tokens than were
  drawn: what is learned later must be what was said. model: the folder or workdir of a chat policy."""
  described = folder.describe(model)
  if described.get("name") != "chat":
    raise build.UserError(f"config.model = {model!r} is a policy {described.get('name')!r}, but answers are collected "
                          "from a policy 'chat', whose tokenizer is known; choose such a model")
  talk, _ = verdict.opened(described["model"])

  def text(ids):
    said = verdict.said(talk, ids)
    again = None if said is None else talk.encode(chat.escaped(said, talk.special))
    return said if again is not None and again == ids[:len(again)].tolist() and ids[len(again)] in talk.stop else None
  return [[text(ids) for ids in row] for row in tokens]
