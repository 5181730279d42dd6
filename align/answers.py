"""Answers that a policy of words gives to the questions of a source: several to each, at its own temperature."""
import functools
import math

import jax
import numpy as np

from align import build, evaluate, metrics, shard
from align import data as batches
from diffusion import chat, folder
from diffusion.mesh import batch_sharding, within
from rewards import verdict


@functools.lru_cache(maxsize=32)
def sampler(policy, mesh):
  """A jitted (view, cond, keys) -> tokens [B L], compiled once a policy."""
  return jax.jit(within(mesh, lambda view, cond, keys: policy.sample(view, cond, keys).output))


def sample_all(policy, view, source, *, samples: int, batch: int, seed: int, mesh, title: str = "sampling"):
  """All questions of a source x samples -> tokens int32 [P n L], and the records; as evaluate.sample_all of media."""
  records = batches.readable(source)
  total = len(records) * samples
  draw, root, out, batch = sampler(policy, mesh), jax.random.key(seed), [], evaluate.even(batch, mesh)
  progress = metrics.Progress(math.ceil(total / batch), title=title)
  for first in range(0, total, batch):
    index = np.minimum(np.arange(first, first + batch), total - 1)  # the last batch is padded: one shape for all
    prompt, sample = index // samples, index % samples
    keys = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(root, p), s))(prompt, sample)
    mine = [records[p] for p in prompt]
    given = {k: np.stack([r[k] for r in mine]) for k in mine[0] if k not in batches.HOST}
    cond = policy.prepare({"prompt": [r["prompt"] for r in mine], **given})["cond"]
    cond, keys = shard.put((cond, keys), batch_sharding(mesh))
    out.append(shard.to_host(draw(view, cond, keys)).astype(np.int32))
    progress.update(first // batch + 1)
  progress.close()
  tokens = np.concatenate(out)[:total]
  return tokens.reshape(len(records), samples, -1), records


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
