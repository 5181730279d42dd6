"""The task that examines a model that answers, such as a judge: is what it says, greedily, the right answer?

  {"task": "examine", "model": "@judge", "data": {"name": "scenes_questions", "tasks": (...), "seed": 1}}

Records are held-out questions whose `win` is the right answer, which must be said word for word. Where a record's meta
names the format of a judge's question ("question", not ""), only the verdict counts, which rewards/verdict.py reads and
compares with "truth". Of a question about a pair this is the pairwise accuracy, in the one order in which the
candidates stand; of a score the share that is exact.
Left out: both orders of a pair, ties, answers in other words (rewards/judging/judge.py).
"""
import json
import math
from pathlib import Path

import jax
import numpy as np

from align import build, evaluate, metrics, protocols, shard
from align import data as batches
from diffusion import folder
from diffusion.mesh import batch_sharding, within
from rewards import verdict


def run(config: dict, workdir: str) -> dict:
  return examine(workdir, **{k: v for k, v in config.items() if k != "task"})


def examine(workdir: str, *, model: str, data: dict, batch: int = 50, seed: int = 0, mesh: dict = None) -> dict:
  """Writes WORKDIR/results.json: "scores" {a record's meta["task"]: {"accuracy", "interval", "count"}}.

  Args: model: the workdir of a run that trained a policy of tokens. data: the questions, each asked once. batch: asked
    at a time.

  Raises: UserError for a policy of media, and for records without a right answer.
  """
  workdir, mesh = Path(workdir), shard.mesh(**(mesh or {}))
  source = build.build("align.datasets", data)
  with build.blame("config.model"):
    policy, view = evaluate.opened(model, mesh, {})
  if policy.process is not None:
    raise build.UserError(f"config.model = {model!r} makes media, but an examination asks for answers; use the task "
                          "'evaluate', or a policy of tokens")
  name = folder.describe(model).get("model")
  kinds, right = asked(policy, view, name, source, evaluate.even(min(batch, source.size), mesh), mesh)
  found = {kind: protocols.measure(right[kinds == kind]) for kind in sorted(set(kinds))}
  results = {"scores": {kind: {"accuracy": one.value, "interval": one.interval, "count": one.count}
                        for kind, one in found.items()}, "seed": seed, "versions": evaluate.versions()}
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "results.json").write_text(json.dumps(results, indent=1))
  return results


def asked(policy, view, model: str | None, source, batch: int, mesh) -> tuple[np.ndarray, np.ndarray]:
  """(kind [N], bool [N] whether the right answer is said) of all N questions. model: whose tokenizer answers are in,
  where they are of judges."""
  say = jax.jit(within(mesh, lambda view, cond, keys: policy.sample(view, cond, keys, eta=0.0).output))
  stream = batches.batches(source, batch, shuffle=False, process=(0, 1), threads=0)
  keys = jax.random.split(jax.random.key(0), batch)  # of no effect: the likeliest token is taken
  kinds, right, rounds = [], [], math.ceil(source.size / batch)
  progress = metrics.Progress(rounds, title="examining")
  for i in range(rounds):
    given = policy.prepare(stream.next())
    if "win" not in given:
      raise build.UserError(f"data entry 'win' is missing, the batch has {', '.join(sorted(given))}; an examination "
                            "needs the right answers: choose a data set that has them")
    cond, keys = shard.put((given["cond"], keys), batch_sharding(mesh))
    right.append(agrees(model, shard.to_host(say(view, cond, keys)), given))
    kinds += [meta.get("task", "all") for meta in given["meta"]]
    progress.update(i + 1)
  progress.close()
  return np.array(kinds[:source.size]), np.concatenate(right)[:source.size]


def agrees(model: str | None, said: np.ndarray, given: dict) -> np.ndarray:
  """bool [B]: whether answers [B L] are right."""
  right = (said == given["win"]).all(1)
  judged = [i for i, meta in enumerate(given["meta"]) if meta.get("question")]
  if judged:
    talk, known = verdict.opened(model)
    right[judged] = [verdict.judged(known, given["meta"][i], verdict.said(talk, said[i]))[1] == 1 for i in judged]
  return right
