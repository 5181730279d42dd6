"""Sample, judge, sift, write: preference pairs from a generator and a reward.

Every prompt gets `samples` images; the best and the worst by score make a pair, the second best and the second worst
another, up to `pairs` of them; a pair is dropped unless it differs by more than `margin`. Where a judge compared images
with each other first (`rank`), the best are looked for among those that won more than half of their comparisons, the
worst among those that lost more: with neighbours compared (scheme "adjacent") that is how UnifiedReward (2503.05236)
makes pairs, as rewards/judging/sift.py does with a judge at hand.
"""
import json
from pathlib import Path

import numpy as np

from align import build, evaluate, shard
from align.datasets import pairs as dataset


def run(config: dict, workdir: str) -> dict:
  return collect(workdir, **{k: v for k, v in config.items() if k != "task"})


def collect(workdir: str, *, model: str, data: dict, rewards: dict, score: str, policy: dict = None,
            models: dict = None, rank: str = None, samples: int = 8, pairs: int = 1, batch: int = 96, steps: int = None,
            margin: float = 0.0, seed: int = 0, mesh: dict = None) -> dict:
  """Writes WORKDIR/pairs (datasets/pairs.py) and WORKDIR/results.json.

  Args: model: what generates. policy: its options, where they are not its own. score: "reward/part" that ranks. rank:
    "reward/part" that is a share of comparisons won, such as a judge's of pairs; `batch` must then be a multiple of
    `samples`. models: weights of trained rewards, {name: workdir}.
    samples, pairs: of a prompt. mesh: of the devices that sample and judge, as in training.
  """
  if not 1 <= pairs <= samples // 2:
    raise build.UserError(f"config.pairs = {pairs} must be in 1 .. {samples // 2}, half of config.samples = {samples}, "
                          "since no image is in two pairs; change one of them")
  workdir, mesh = Path(workdir), shard.mesh(**(mesh or {}))
  if rank and evaluate.even(batch, mesh) % samples:
    raise build.UserError(f"config.batch = {batch}, on this mesh {evaluate.even(batch, mesh)}, must be a multiple of "
                          f"config.samples = {samples}, as a judge of pairs sees all samples of a prompt at once; "
                          "change one of them")
  source, judges = build.build("align.datasets", data), evaluate.load_rewards(rewards, models, seed, mesh)
  with build.blame("config.model"):
    made, view = evaluate.opened(model, mesh, {}, policy)
  images, records = evaluate.sample_all(made, view, source, samples=samples, batch=batch, seed=seed, steps=steps,
                                        mesh=mesh, title="collecting")
  values = evaluate.judge(judges, images, records, batch=batch, seed=seed, mesh=mesh)
  for name, wanted in {"score": score, **({"rank": rank} if rank else {})}.items():
    if wanted not in values:
      raise build.UserError(f"config.{name} = {wanted!r} is not one of the scores {', '.join(values)}; choose one of "
                            "them")
  kept = list(sift(images, records, values[score], margin, seed, score, pairs, values.get(rank)))
  if not kept:
    raise build.UserError(f"none of {len(records)} prompts gave a pair that differs by more than margin = {margin} in "
                          f"{score}; sample more images a prompt, or lower the margin")
  dataset.write(workdir / "pairs", kept)
  results = {"prompts": len(records), "pairs": len(kept), "failed_scores": int(np.isnan(values[score]).sum()),
             "mean_score": float(np.nanmean(values[score]))}
  (workdir / "results.json").write_text(json.dumps(results, indent=1))
  return results


def sift(images, records, scores, margin, seed, judge, pairs=1, won=None):
  """Pairs of each prompt: the i-th best against the i-th worst valid sample, dropped unless better by more than
  `margin`. won [P n]: shares of comparisons; the best are then of those above 1/2, the worst of those below."""
  for p, record in enumerate(records):
    valid = np.flatnonzero(~np.isnan(scores[p]))
    order = valid[np.argsort(-scores[p, valid], kind="stable")]
    if won is None:
      best, worst = order[:len(order) // 2], order[::-1]
    else:
      best, worst = order[won[p, order] > 0.5], order[::-1][won[p, order[::-1]] < 0.5]
    for win, lose in zip(best[:pairs], worst, strict=False):
      if scores[p, win] - scores[p, lose] > margin:
        yield {"prompt": record["prompt"], "win": images[p, win], "lose": images[p, lose], "score_win": scores[p, win],
               "score_lose": scores[p, lose], "judge": judge, "seed": seed, "prompt_id": p, "sample_win": win,
               "sample_lose": lose, "meta": record.get("meta", {})}
