"""The task that examines a model that answers, such as a judge: is what it says, greedily, the right answer?

  {"task": "examine", "model": "@judge", "data": {"name": "scenes_questions", "tasks": (...), "seed": 1}}

Records are held-out questions whose `win` is the right answer, which must be said word for word. Where a record's meta
names the format of a judge's question ("question", not ""), only the verdict counts, which rewards/verdict.py reads and
compares with "truth". Of a question about a pair this is the pairwise accuracy, in the one order in which the
candidates stand; of a score the share that is exact. What is said, or what the policy's `decode` makes of it, may
also be judged by rewards. The first examples are kept in WORKDIR/examples.npz, for the report: "prompt" and "said" [N]
texts, "right" [N] where answers can be, and where the records have pictures "media" uint8 [N H W C] or [N n H W C], of
which "shown" [N] are there; where there are rewards and the policy paints what it says (UAE), "made" [N H W C].
Left out: both orders of a pair, ties, answers in other words (rewards/judging/judge.py).
"""
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from align import build, evaluate, metrics, protocols, shard
from align import data as batches
from diffusion import folder, tokenizer
from diffusion.generator import to_uint8
from diffusion.mesh import batch_sharding, within
from rewards import verdict

EXAMPLES = 6


def run(config: dict, workdir: str) -> dict:
  return examine(workdir, **{k: v for k, v in config.items() if k != "task"})


def examine(workdir: str, *, model: str, data: dict, batch: int = 50, seed: int = 0, mesh: dict = None,
            options: dict = None, rewards: dict = None, models: dict = None) -> dict:
  """Writes WORKDIR/results.json: "scores" {a record's meta["task"]: {"accuracy", "interval", "count"}}, "accuracy",
  their mean, and "means" {"reward/part": mean} where there are rewards; and WORKDIR/examples.npz.

  Args:
    model: the workdir of a run that trained a policy of tokens. options: of the policy, in place of those that it was
      saved with, such as the mode of an autoencoder. data: the questions, each asked once. batch: asked at a time.
    rewards: {name: component}; then records need no right answer. models: {name: workdir of a trained one}.

  Raises: UserError for a policy of media, and for records without a right answer.
  """
  workdir, mesh = Path(workdir), shard.mesh(**(mesh or {}))
  source = build.build("align.datasets", data)
  with build.blame("config.model"):
    described = folder.describe(model)
    policy, view = evaluate.opened(model, mesh, {}, {**described, **options} if options else None)
  if policy.process is not None:
    raise build.UserError(f"config.model = {model!r} makes media, but an examination asks for answers; use the task "
                          "'evaluate', or a policy of tokens")
  judges, size = evaluate.load_rewards(rewards or {}, models, seed, mesh), evaluate.even(min(batch, source.size), mesh)
  right, tokens, said, records = asked(policy, view, described.get("model"), source, size, mesh, bool(judges))
  kinds = np.array([r["meta"].get("task", "all") for r in records])
  found = {kind: protocols.measure(right[kinds == kind]) for kind in sorted(set(kinds))} if right.size else {}
  results = {"scores": {kind: {"accuracy": one.value, "interval": one.interval, "count": one.count}
                        for kind, one in found.items()}, "seed": seed, "versions": evaluate.versions()}
  if found:
    results["accuracy"] = float(np.mean([one.value for one in found.values()]))
  if judges:
    values = evaluate.judge(judges, said[:, None], records, batch=size, seed=seed, mesh=mesh)
    results["means"] = {part: float(np.nanmean(found)) for part, found in values.items()}
  workdir.mkdir(parents=True, exist_ok=True)
  text = worded({**described, **(options or {})})
  np.savez_compressed(workdir / "examples.npz", **examples(text, right, tokens, said, records))
  (workdir / "results.json").write_text(json.dumps(results, indent=1))
  return results


def worded(described: dict) -> Callable:
  """ids [L] -> the text of an answer, of a policy of this description, whether or not it ends; the ids themselves where
  it does not say whose words they are."""
  model = described.get("model") or (described.get("captioner") or {}).get("model")
  if model:
    talk = verdict.opened(model)[0]
    return lambda ids: verdict.spoken(talk, ids)
  return tokenizer.load(described["tokens"]).decode if "tokens" in described else lambda ids: " ".join(map(str, ids))


def examples(text: Callable, right: np.ndarray, tokens: np.ndarray, made: np.ndarray, records: list) -> dict:
  """What is kept of the first questions, see above."""
  first = records[:EXAMPLES]
  out = {"prompt": [one.get("prompt", "") for one in first], "said": [text(ids) for ids in tokens[:EXAMPLES]]}
  if right.size:
    out["right"] = right[:EXAMPLES]
  if first and "media" in first[0]:
    media = np.stack([one["media"] for one in first])
    out["media"] = media if media.dtype == np.uint8 else to_uint8(media)
    out["shown"] = [int(one.get("shown", len(one["media"]) if media.ndim == 5 else 1)) for one in first]
  if made.ndim > 2:
    out["made"] = made[:EXAMPLES]
  return out


def asked(policy, view, model: str | None, source, batch: int, mesh, judged: bool = False) -> tuple:
  """(bool [N] whether the right answer is said, answers [N L], what the policy makes of them [N ...], the records) of
  all N questions. model: whose tokenizer answers are in, where they are of judges. judged: what the policy makes is
  kept, and records need no right answer."""
  @jax.jit
  @functools.partial(within, mesh)
  def say(view, cond, keys):
    output = policy.sample(view, cond, keys, eta=0.0).output
    return output["tokens"] if isinstance(output, dict) else output, policy.decode(view, output) if judged else ()

  stream = batches.batches(source, batch, shuffle=False, process=(0, 1), threads=0)
  keys = jax.random.split(jax.random.key(0), batch)  # the likeliest token is taken: of effect on what is decoded only
  right, said, made, records, rounds = [], [], [], [], math.ceil(source.size / batch)
  progress = metrics.Progress(rounds, title="examining")
  for i in range(rounds):
    given = policy.prepare(stream.next())
    if "win" not in given and not judged:
      raise build.UserError(f"data entry 'win' is missing, the batch has {', '.join(sorted(given))}; an examination "
                            "needs the right answers: choose a data set that has them")
    cond, keys = shard.put((given.pop("cond"), keys), batch_sharding(mesh))
    tokens, media = jax.tree.map(shard.to_host, say(view, cond, keys))
    right += [agrees(model, tokens, given)] if "win" in given else []
    said += [tokens]
    made += [to_uint8(media) if media.ndim > 2 else media] if judged else []
    records += [{name: column[k] for name, column in given.items()} for k in range(batch)]
    progress.update(i + 1)
  progress.close()
  whole = lambda parts: np.concatenate(parts)[:source.size] if parts else np.zeros(0)
  return whole(right), whole(said), whole(made), records[:source.size]


def agrees(model: str | None, said: np.ndarray, given: dict) -> np.ndarray:
  """bool [B]: whether answers [B L] are right."""
  right = (said[:, :given["win"].shape[1]] == given["win"]).all(1)  # which has an end, behind which all is padding
  judged = [i for i, meta in enumerate(given["meta"]) if meta.get("question")]
  if judged and not model:
    raise build.UserError("config.data asks questions of judges, but the examined policy has no option 'model', in "
                          "whose words a verdict could be read; examine a policy 'chat', or leave such questions out")
  if judged:
    talk, known = verdict.opened(model)
    right[judged] = [verdict.judged(known, given["meta"][i], verdict.said(talk, said[i]))[1] == 1 for i in judged]
  return right
