"""Sample, judge, sift, write: preference pairs from a policy and a reward.

Every prompt gets `samples` pictures or clips or, from a policy of words, as many answers. All are scored (`score`) and,
where a judge compares neighbours (`rank`, of scheme "adjacent"), ranked, once; of that each of `ways` makes its pairs
in WORKDIR/pairs/WAY (rewards/judging/sift.py: pair ranking then point sifting, as UnifiedReward's (2503.05236), its two
halves alone, random pairs). So that ways are compared at equal cost, `calls` is how many answers of the judge a prompt
may take: a score is one, a comparison two, since it is asked in both orders; a way looks at as many candidates as it
can pay for. With 20 these are 10 for two_stage, 20 for point, and 20, in 10 comparisons, for pair.

What judges write of the samples of the first prompts is kept in WORKDIR/answers.jsonl, a line a sample and judge:
{"reward", "prompt", "sample", "text"}. They are asked again for it.
"""
import hashlib
import json
import time
from pathlib import Path

import jax
import numpy as np

from align import answers, build, evaluate, protocols, shard
from align.datasets import pairs as dataset
from rewards.judging import sift

EXAMPLES = 3  # prompts of which is kept, or told, what a judge wrote


def run(config: dict, workdir: str) -> dict:
  return collect(workdir, **{k: v for k, v in config.items() if k != "task"})


def collect(workdir: str, *, model: str, data: dict, rewards: dict, score: str, policy: dict = None,
            models: dict = None, rank: str = None, ways: tuple[str, ...] = None, calls: int = None, samples: int = 8,
            pairs: int = 1, batch: int = 96, steps: int = None, margin: float = 0.0, failures: float = 0.2,
            audit: str = None, seed: int = 0, mesh: dict = None) -> dict:
  """Writes WORKDIR/pairs/WAY (datasets/pairs.py) for each way, WORKDIR/results.json and WORKDIR/answers.jsonl.
  "seconds" of the results are those of sampling and judging, with their compiling.

  Args: model: what generates. policy: its options, where they are not its own. score: "reward/part" that ranks. rank:
    "reward/part" that is a share of comparisons won, such as a judge's of pairs; `batch` must then be a multiple of
    `samples`. models: weights of trained rewards, {name: workdir}. ways, calls: see above; by default two_stage with a
    rank, else point, of all samples. samples, pairs: of a prompt. steps: of the sampler, of pictures and clips.
    margin: by how much the scores of a pair differ at least. failures: the largest share of samples that a judge may
    fail on. audit: "reward/part" that says what is really better, such as the exact detector's: results.json then says
    how often pairs are right. mesh: of the devices that sample and judge, as in training.

  Raises: UserError for impossible options, for a judge that fails too often, with what it wrote, and where a way leaves
    no pair.
  """
  options = {name: value for name, value in locals().items() if name != "workdir"}
  check(options)
  workdir, mesh = Path(workdir), shard.mesh(**(mesh or {}))
  source, judges = build.build("align.datasets", data), evaluate.load_rewards(rewards, models, seed, mesh)
  with build.blame("config.model"):
    made, view = evaluate.opened(model, mesh, {}, policy)
  drawn = {"samples": samples, "batch": batch, "seed": seed, "mesh": mesh, "title": "collecting"}
  times = [time.monotonic()]
  if made.process is None:
    media, records = answers.sample_all(made, view, source, **drawn)
    shown = answers.texts(model, media)
  else:
    media, records = evaluate.sample_all(made, view, source, steps=steps, **drawn)
    shown = media
  times.append(time.monotonic())
  values = evaluate.judge(judges, media, records, batch=batch, seed=seed, mesh=mesh)
  times.append(time.monotonic())
  usable = np.array([[one is not None for one in row] for row in shown])  # not so an answer that does not end
  values = {name: np.where(usable, value, np.nan) for name, value in values.items()}
  for name in ("score", "rank", "audit"):
    if options[name]:
      readable(name, options, judges, values, usable, media, records)
  keep_answers(workdir / "answers.jsonl", judges, media, records, seed)
  results = {way: written(workdir / "pairs" / way, way, count, options, shown, values, records)
             for way, count in looked(options).items()}
  out = {"prompts": len(records), "pairs": sum(one["pairs"] for one in results.values()), "ways": results,
         "failed_scores": int(np.isnan(values[score][usable]).sum()), "unusable": int((~usable).sum()),
         "mean_score": float(np.nanmean(values[score])),
         "seconds": dict(zip(("sampling", "judging"), np.diff(times).round(1).tolist(), strict=True)),
         "scores": {name: float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}}
  (workdir / "results.json").write_text(json.dumps(out, indent=1))
  return out


# --- what cannot be ---------------------------------------------------------------------------------------------------


def looked(options: dict) -> dict:
  """{way: how many of a prompt's samples it looks at}."""
  ways = options["ways"] or (("two_stage",) if options["rank"] else ("point",))
  return {way: affordable(way, options["samples"], options["calls"]) for way in ways}


def affordable(way: str, samples: int, calls: int | None) -> int:
  if way not in sift.CALLS:
    raise build.UserError(f"config.ways has {way!r}, which is not one of {', '.join(sift.CALLS)}; choose of them"
                          f"{build.nearest(way, sift.CALLS)}")
  if calls is None or not sift.CALLS[way]:
    return samples
  count = calls // sift.CALLS[way]
  if calls % sift.CALLS[way] or not 2 <= count <= samples or way != "point" and count % 2:
    raise build.UserError(f"config.calls = {calls} pays for {calls / sift.CALLS[way]:g} candidates of {way}; they must "
                          f"be 2 to config.samples = {samples}, and an even number where neighbours are compared; "
                          "change one of the two")
  return count


def check(config: dict) -> None:
  """Refuses what cannot be before anything is sampled."""
  pairs, samples, counts = config["pairs"], config["samples"], looked(config)
  if not 1 <= pairs <= min(counts.values()) // 2:
    raise build.UserError(f"config.pairs = {pairs} must be in 1 .. {min(counts.values()) // 2}, half of config.samples "
                          f"= {samples}, or of what config.calls pays for, since no image is in two pairs; change one "
                          "of them")
  for way in counts:
    if way in ("two_stage", "pair") and not config["rank"]:
      raise build.UserError(f"config.ways has {way!r}, but config.rank is None; it needs the share of comparisons that "
                            "a sample won, \"reward/part\": name one, or leave the way out")
  if not 0 <= config["failures"] <= 1:
    raise build.UserError(f"config.failures = {config['failures']} must be a share, 0 to 1; 0.2 is the default")
  batch = evaluate.even(config["batch"], shard.mesh(**(config["mesh"] or {})))
  if config["rank"] and batch % samples:
    raise build.UserError(f"config.batch = {config['batch']}, on this mesh {batch}, must be a multiple of "
                          f"config.samples = {samples}, as a judge of pairs sees all samples of a prompt at once; "
                          "change one of them")


def readable(name: str, options: dict, judges: dict, values: dict, usable: np.ndarray, media: np.ndarray,
             records: list) -> None:
  """Refuses a score that there is not, and one that is missing for too many samples, with what the judge wrote."""
  part, failures = options[name], options["failures"]
  if part not in values:
    raise build.UserError(f"config.{name} = {part!r} is not one of the scores {', '.join(values)}; choose one of them")
  failed = usable & np.isnan(values[part])
  share = failed.sum() / max(usable.sum(), 1)
  if share > failures:
    told = examples(*judges[part.split("/")[0]], failed, media, records, options["seed"])
    raise build.UserError(f"config.{name} = {part!r}: the judge failed on {share:.3f} of {usable.sum()} samples, "
                          f"allowed is config.failures = {failures}; mend the judge or what it is asked, or raise it. "
                          f"{'; '.join(told)}")


def examples(reward, view, failed: np.ndarray, media: np.ndarray, records: list, seed: int) -> list:
  """The first samples that failed, one of a prompt, and what the judge writes of them when it is asked again."""
  out = []
  for p in np.flatnonzero(failed.any(1))[:EXAMPLES]:
    i = int(failed[p].argmax())
    said = "" if reward.explain is None else f": {told(reward, view, media, records, p, seed)[i]!r}"
    out.append(f"prompt {records[p]['prompt']!r}, sample {i}{said}")
  return out


def told(reward, view, media: np.ndarray, records: list, p: int, seed: int) -> list:
  """What a judge that is asked again writes of each sample of prompt p."""
  n, flat = media.shape[1], media.reshape((-1, *media.shape[2:]))
  batch, shown = evaluate.asked(reward, flat, records, n, np.arange(p * n, (p + 1) * n))
  return reward.explain(view, batch, shown, jax.random.split(jax.random.key(seed), n))


def keep_answers(file: Path, judges: dict, media: np.ndarray, records: list, seed: int) -> None:
  """Nothing where no judge writes."""
  lines = [{"reward": name, "prompt": records[p]["prompt"], "sample": i, "text": text}
           for name, (reward, view) in judges.items() if reward.explain for p in range(min(EXAMPLES, len(records)))
           for i, text in enumerate(told(reward, view, media, records, p, seed)) if text]
  if lines:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


# --- pairs of one way -------------------------------------------------------------------------------------------------


def written(folder: Path, way: str, count: int, options: dict, shown, values: dict, records: list) -> dict:
  """Sifts the first `count` samples of each prompt, writes the pairs and says what there is of them."""
  score, rank, audit = values[options["score"]], values.get(options["rank"]), values.get(options["audit"])
  won = np.full_like(score, np.nan) if rank is None else rank
  with build.blame("config.ways"):
    found = sift.sift(way, score[:, :count], won[:, :count], pairs=options["pairs"], margin=options["margin"],
                      seed=options["seed"])
  if not found.chosen:
    why = ", ".join(f"{number} {name}" for name, number in found.dropped.items())
    raise build.UserError(f"none of {len(records)} prompts gave a pair that differs by more than margin = "
                          f"{options['margin']} in {options['score']} ({way}: {why}); sample more images a prompt, or "
                          "lower the margin")
  rows = [record(shown, values, records, chosen, way, options) for chosen in found.chosen]
  dataset.write(folder, rows, options["data"].get("split") or "train")
  return {"pairs": len(rows), "dropped": found.dropped, "candidates": count, "calls": sift.CALLS[way] * count,
          **({} if audit is None else {"audit": audited(audit, found.chosen, options["seed"])})}


def record(shown, values: dict, records: list, chosen: tuple, way: str, options: dict) -> dict:
  """One pair as datasets/pairs.py has it."""
  p, win, lose = chosen
  scores = lambda i: {name: value[p, i] for name, value in values.items()}
  told = json.dumps({name: value for name, value in options.items() if name not in ("ways", "mesh")}, sort_keys=True)
  beside = ("media", "shown") if isinstance(shown[p][win], str) else ("low",) if "low" in records[p] else ()
  asked = {name: records[p][name] for name in beside}
  return dataset.pair(
    records[p]["prompt"], shown[p][win], shown[p][lose], **asked, scores_win=scores(win), scores_lose=scores(lose),
    orders_win=orders(scores(win), options), orders_lose=orders(scores(lose), options), judge=options["score"], way=way,
    seed=options["seed"], prompt_id=p, sample_win=win, sample_lose=lose, meta=records[p].get("meta", {}),
    provenance={**{name: options[name] for name in ("model", "data", "rewards")},
                "config": hashlib.sha256(told.encode()).hexdigest()[:16]})


def orders(scores: dict, options: dict) -> tuple | None:
  """The probabilities that a sample is better when it is shown first and second, from their mean, the share of its one
  comparison, and the mean probability of what is shown first; None where there were other comparisons."""
  reward = (options["rank"] or "").split("/")[0]
  if f"{reward}/first" not in scores or options["rewards"][reward].get("scheme") != "adjacent":
    return None
  share, first = scores[f"{reward}/total"], scores[f"{reward}/first"]
  return share + first - 0.5, share - first + 0.5


def audited(truth: np.ndarray, chosen: list, seed: int) -> dict:
  """How often the preferred sample is really better: shares of pairs, {"share", "interval", "count"} each, the interval
  a bootstrap over prompts; `right` is that of pairs of which one is better."""
  prompt, win, lose = np.array(chosen).T
  gain = truth[prompt, win] - truth[prompt, lose]
  known = np.isfinite(gain)
  share = lambda correct, valid: protocols.measure(correct, valid, cluster=prompt.tolist(), seed=seed)
  found = {"better": share(gain > 0, known), "equal": share(gain == 0, known), "worse": share(gain < 0, known),
           "right": share(gain > 0, known & (gain != 0))}
  return {name: {"share": one.value, "interval": one.interval, "count": one.count} for name, one in found.items()}
