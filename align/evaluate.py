"""Fixed prompts and fixed keys -> samples -> every reward -> tables, grids and a report.

Arms that are compared see the same prompts and the same noise (a key depends on the seed, the prompt and the sample),
so differences are paired. Evaluation samples without noise on the way (eta = 0), whatever the training rollout does.
"""
import functools
import importlib.metadata
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align import build, health, metrics, report, shard, statistics, tree
from align import data as batches
from diffusion import folder
from diffusion.generator import to_uint8
from diffusion.mesh import BATCH, batch_sharding, places, ways, within
from rewards.core import Scores
from rewards.mix import looked


class Outcome(NamedTuple):
  """P prompts x n samples of one arm."""
  images: Any   # uint8 [P n H W C], or clips [P n F H W C]
  parts: dict   # {name: float [P n]}, NaN where a score failed
  prompts: list
  meta: list


def run(config: dict, workdir: str) -> dict:
  return evaluate(workdir, **{k: v for k, v in config.items() if k != "task"})


def blank_scores(count: int) -> Scores:
  """Scores of the right shapes, for tracing."""
  return Scores(jnp.zeros(count), {}, jnp.ones(count, bool))


@functools.lru_cache(maxsize=32)
def sampler(policy, steps, mesh):
  """A jitted (view, cond, keys) -> media, compiled once a policy, however many arms it serves."""
  def sample(view, cond, keys):
    return policy.decode(view, policy.sample(view, cond, keys, steps=steps, eta=0.0).output, None)
  return jax.jit(within(mesh, sample))


def check_images(policy) -> None:
  """Refuses a policy whose samples are no images, and none."""
  if policy is None or policy.process is None:
    raise build.UserError("config.policy: evaluation, probes and calibration judge images, and "
                          f"{'there is no policy' if policy is None else 'this policy makes tokens'}; leave them out, "
                          "or choose a diffusion policy")


def even(batch: int, mesh) -> int:
  """A number of samples that the mesh cuts evenly, at least `batch`; what is too many is thrown away."""
  parts = ways(BATCH, mesh)
  return -(-batch // parts) * parts


def sample_all(policy, view, source, *, samples: int, batch: int, seed: int, mesh, steps=None, title: str = "sampling"):
  """All prompts of a source x samples -> images uint8 [P n H W C], and the records, whole in every process. `batch`
  samples a call, over the devices of the mesh."""
  check_images(policy)
  records = batches.readable(source)
  shown = [name for name in ("low", "media") if policy.low and name in records[0]]  # what a refiner enlarges
  images = drawn_for(records, policy, view, sampler(policy, steps, mesh), shown, samples=samples, batch=batch,
                     seed=seed, mesh=mesh, title=title, keep=to_uint8)
  return images, records


def drawn_for(records: list, policy, view, draw, shown, *, samples: int, batch: int, seed: int, mesh, title: str,
              keep=np.asarray):
  """[P n ...] of draw(view, cond, keys) for every record, whose entries `shown` go with its prompt; keep: of what is
  drawn [B ...], on the host."""
  total = len(records) * samples
  root, out, batch = jax.random.key(seed), [], even(batch, mesh)
  progress = metrics.Progress(math.ceil(total / batch), title=title)
  for first in range(0, total, batch):
    index = np.minimum(np.arange(first, first + batch), total - 1)  # the last batch is padded: one shape for all
    prompt, sample = index // samples, index % samples
    keys = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(root, p), s))(prompt, sample)
    given = {name: np.stack([records[p][name] for p in prompt]) for name in shown}
    cond = policy.prepare({"prompt": [records[p]["prompt"] for p in prompt], **given})["cond"]
    cond, keys = shard.put((cond, keys), batch_sharding(mesh))
    out.append(keep(shard.to_host(draw(view, cond, keys))))
    progress.update(first // batch + 1)
  progress.close()
  made = np.concatenate(out)[:total]
  return made.reshape((len(records), samples) + made.shape[1:])


def judge(rewards: dict, images, records, *, batch: int, seed: int, mesh) -> dict:
  """{reward/part: [P n]} for {name: (reward, view)}; NaN where a score failed. Rewards that run on devices do so over
  those of the mesh."""
  (p, n), batch = images.shape[:2], even(batch, mesh)
  flat, out = images.reshape((p * n,) + images.shape[2:]), {}
  for name, (reward, view) in rewards.items():
    score = reward.score if reward.where == "host" else on_mesh(reward.score, mesh)
    found = [scored(reward, score, view, flat, records, n, slice(i, min(i + batch, p * n)), batch, seed)
             for i in range(0, p * n, batch)]
    for part in found[0]:
      out[f"{name}/{part}"] = np.concatenate([f[part] for f in found]).reshape(p, n)
  return out


@functools.lru_cache(maxsize=32)
def on_mesh(score, mesh):
  """A reward's jitted `score`, of host arrays whole in every process, with host arrays as its result."""
  program = jax.jit(within(mesh, score))

  def run(view, batch, media, keys):
    return jax.tree.map(shard.to_host, program(view, *shard.put((batch, media, keys), batch_sharding(mesh))))
  return run


def asked(reward, flat, records, n, index) -> tuple[dict, Any]:
  """(batch, media) of the samples `index` of flat [P n ...], as a reward on the host takes them: media are floats in
  [0, 1], or tokens. The media of the records are seen by the reward's `prepare`, and stay beside tokens."""
  mine, is_media = [records[i // n] for i in index], flat.dtype == np.uint8
  numbers = {k: np.stack([r[k] for r in mine]) for k in mine[0] if k not in ("prompt", "meta")}
  ids = {"prompt_id": (index // n).astype(np.int32), "sample_id": (index % n).astype(np.int32)}
  texts = {"prompt": [r["prompt"] for r in mine], "meta": [r.get("meta", {}) for r in mine]}
  media = looked(flat[index], None, reward.frames).astype(np.float32) / 255 if is_media else flat[index]
  whole = reward.prepare({**texts, **numbers, **ids})
  return {k: v for k, v in whole.items() if not (is_media and k == "media")}, media


def scored(reward, score, view, flat, records, n, rows, batch, seed) -> dict:
  index = np.minimum(np.arange(rows.start, rows.start + batch), rows.stop - 1)
  whole, media = asked(reward, flat, records, n, index)
  passed = whole if reward.where == "host" else batches.numeric(whole)[0]
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
  result = score(view, passed, media, keys)
  keep = rows.stop - rows.start
  valid = np.asarray(result.valid)[:keep]
  values = {"total": result.total, **result.parts}
  return {k: np.where(valid, np.asarray(v, np.float64)[:keep], np.nan) for k, v in values.items()}


def check_models(rewards: dict, models: dict) -> None:
  """Refuses weights for a reward that there is not."""
  for name in sorted(models or {}):
    if name.split("/")[0] not in rewards:
      raise build.UserError(f"config.models.{name} names no reward; the rewards are {', '.join(rewards)}; rename it")


def load_rewards(rewards: dict, models: dict, seed: int, mesh) -> dict:
  """{name: component} -> {name: (reward, view)}, with the trained weights that models = {name: workdir}, or of a part
  of a mixture {"name/part": workdir}, points to, on the mesh. Rewards that ask one public model share its parameters.
  """
  check_models(rewards, models)
  out, held = {}, {}
  for name, spec in rewards.items():
    reward = build.build("rewards", spec)
    shapes = jax.eval_shape(reward.init, jax.random.key(seed))
    laid = places(shapes, mesh)
    with build.blame(f"config.models.{name}"):
      found = trained(name, models or {}, spec, shapes, laid, held)
    found, flat = tree.flatten(found), tree.flatten(laid)
    found |= drawn(reward, seed, {leaf: place for leaf, place in flat.items() if leaf not in found})
    out[name] = reward, tree.unflatten({leaf: shard.settled(found[leaf], place) for leaf, place in flat.items()})
  return out


def trained(name: str, models: dict, spec: dict, shapes: dict, laid: dict, held: dict) -> dict:
  """What workdirs, or else public models, hold of a reward's parameters."""
  if name in models:
    return folder.load(models[name], "reward", like=shapes, place=laid)
  parts = {key.removeprefix(f"{name}/"): model for key, model in models.items() if key.startswith(f"{name}/")}
  for part in parts:
    if part not in shapes:
      raise build.UserError(f"config.models.{name}/{part}: reward {name!r} has no part {part!r} with parameters, only "
                            f"{', '.join(shapes) or 'none'}; rename or remove it")
  own = {part: folder.load(model, "reward", like=shapes[part], place=laid[part]) for part, model in parts.items()}
  return {**published(spec, shapes, laid, held), **own}


def published(spec: dict, shapes: dict, laid: dict, held: dict) -> dict:
  """What the public models that a reward's description names hold of its parameters. held: models that were read."""
  if spec.get("reward"):
    return published(spec["reward"], shapes, laid, held)
  if "net" in shapes and spec.get("model"):
    key = spec["model"], str(shapes["net"])  # names, shapes and types
    if key not in held:
      held[key] = folder.load(spec["model"], "reward", like=shapes, place=laid)
    return held[key]
  return {name: published(part, shapes[name], laid[name], held) for name, part in (spec.get("rewards") or {}).items()
          if name in shapes}


def drawn(reward, seed: int, laid: dict) -> dict:
  """The leaves of a reward's init that laid = {leaf: sharding} names."""
  init = lambda key: {leaf: value for leaf, value in tree.flatten(reward.init(key)).items() if leaf in laid}
  return jax.jit(init, out_shardings=laid)(jax.random.key(seed)) if laid else {}


# --- held-out curves while training -----------------------------------------------------------------------------------


def probe(policy, seed: int, mesh, reward=None, *, every: int, data: dict, rewards: dict, models: dict = None,
          samples: int = 4, batch: int = 96, steps: int = None, diversity: dict = None, success: str = None,
          role: str = None, show: int = 8, guard: dict = None):
  """(params) -> (scalars, images): a small held-out evaluation with fixed keys, for curves, each `every` updates.

  Args:
    reward: what is trained on, scored beside `rewards`. diversity: a component of rewards/diversity.py, among samples
      whose `success`, "name/part", is above 0.5, or among all.
    guard: options of health.rule, which looks at the scalars.
  """
  check_images(policy)
  source, judges = build.build("align.datasets", data), load_rewards(rewards, models, seed, mesh)
  spread = build.build("rewards.diversity", diversity).measure if diversity else None
  with build.blame("config.evaluate.guard"):
    trained = health.rule(**(guard or {})).trained
  if "trained" in judges:
    raise build.UserError("config.evaluate.rewards.trained: that is what the reward of the run is called; rename it")

  def measure(params):
    chosen = role or ("ema" if "ema" in params else "policy")
    images, records = sample_all(policy, tree.view(params, chosen), source, samples=samples, batch=batch, seed=seed,
                                 steps=steps, mesh=mesh, title="evaluating")
    values = judge(judges, images, records, batch=batch, seed=seed, mesh=mesh)
    if reward and trained == "trained":
      own = {trained: (reward, params.get("reward", {}))}
      values[trained] = judge(own, images, records, batch=batch, seed=seed, mesh=mesh)["trained/total"]
    scalars = {f"heldout/{k}": float(np.nanmean(v)) for k, v in values.items()}
    scalars |= health.spreads(values) | {f"heldout/{k}": v for k, v in health.monitors(images).items()}
    if spread:
      right = values[success] > 0.5 if success else np.ones(images.shape[:2], bool)
      with np.errstate(all="ignore"):
        scalars["heldout/diversity"] = float(np.nanmean(spread(images, [r.get("meta", {}) for r in records], right)))
    return scalars, {"heldout/samples": images[:show].reshape((-1,) + images.shape[2:])}
  return measure


# --- the task --------------------------------------------------------------------------------------------------------


def evaluate(workdir: str, *, arms: dict, data: dict, rewards: dict, success: str, models: dict = None,
             samples: int = 4, batch: int = 96, steps: int = None, diversity: dict = None, seed: int = 0,
             title: str = "Evaluation", curves: dict = None, targets: dict = None, primary: str = None,
             baseline: str = None, mesh: dict = None) -> dict:
  """Compares arms {name: model folder or workdir} on held-out prompts and writes results.json and report.html.

  Args:
    arms: {"model": folder or workdir, "steps": its own} for one that is sampled in other steps than the rest.
    rewards: {name: component}. models: {name: workdir of a trained one}. success: "name/part", above 0.5 is correct.
    steps: sampling steps, None for the policy's own. diversity: a component of rewards/diversity.py.
    primary: the arm that is compared with all others. baseline: the arm whose diversity it is measured against. Both
      are needed where there are several arms.
    mesh: of the devices that sample and judge, as in training.
    targets: {"gain over ARM" or "diversity ratio": at least}. curves: {arm: workdir} whose curves are drawn.
  """
  arms, mesh = spelled(arranged(arms, primary, baseline), steps), shard.mesh(**(mesh or {}))
  source, judges = build.build("align.datasets", data), load_rewards(rewards, models, seed, mesh)
  spread = build.build("rewards.diversity", diversity).measure if diversity else None
  outcomes, seconds, made = {}, {}, {}
  for name, (model, count) in arms.items():
    began = time.monotonic()
    with build.blame(f"config.arms.{name}"):
      policy, view = opened(model, mesh, made)
    images, records = sample_all(policy, view, source, samples=samples, batch=batch, seed=seed, steps=count, mesh=mesh,
                                 title=name)
    values = judge(judges, images, records, batch=batch, seed=seed, mesh=mesh)
    if success not in values:
      raise build.UserError(f"config.success = {success!r} is not one of the scores {', '.join(values)}; choose one "
                            "of them")
    outcomes[name] = Outcome(images, values, [r["prompt"] for r in records], [r.get("meta", {}) for r in records])
    seconds[name] = time.monotonic() - began
  results = summarise(outcomes, success, spread, seed)
  results.update(title=title, targets=judged(results, targets or {}), evaluation_seconds=seconds,
                 scores=means(outcomes), versions=versions())
  results["curves"] = curves or {}
  results["alarms"] = {name: found for name, (model, _) in arms.items() if (found := health.read(model))}
  store_samples(Path(workdir), outcomes, success)
  publish(Path(workdir), Path(workdir), results, {})
  return results


def opened(model: str, mesh, made: dict, options: dict = None) -> tuple:
  """(policy, its parameters on the mesh) of a folder. made: policies by description, so that arms share programs.
  options: of the policy, in place of the folder's own."""
  found = folder.describe(model)
  description = {**options, **({"model": model} if "model" in found else {})} if options else found
  key = json.dumps(description, sort_keys=True)
  policy = made.setdefault(key, build.build("align.policies", description))
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  laid = places(shapes, mesh)
  return policy, jax.tree.map(shard.settled, folder.load(model, like=shapes, place=laid), laid)


def check(config: dict) -> None:
  """Refuses what cannot be before anything is sampled."""
  arms = spelled(arranged(config["arms"], config["primary"], config["baseline"]), config["steps"])
  for spec in config["rewards"].values():
    build.build("rewards", spec)
  if config["success"].split("/")[0] not in config["rewards"]:
    raise build.UserError(f"config.success = {config['success']!r} is of none of the rewards "
                          f"{', '.join(config['rewards'])}; it must be REWARD/PART")
  check_models(config["rewards"], config["models"])
  for name in sorted(set(config["curves"] or {}) - set(arms)):
    raise build.UserError(f"config.curves.{name} is not one of {', '.join(arms)}; rename or remove it")
  check_targets(config["targets"] or {}, [f"gain over {arm}" for arm in arms if arm != config["primary"]]
                + ["diversity ratio"] * bool(config["diversity"]))


def check_targets(targets: dict, known) -> None:
  for name in targets:
    if name not in known:
      raise build.UserError(f"config.targets.{name} is not one of {', '.join(known)}; rename or remove it")


def arranged(arms: dict, primary: str | None, baseline: str | None) -> dict:
  """The arms, baseline first and primary last, so that no table depends on how a config happened to order them."""
  for name, value in (("primary", primary), ("baseline", baseline)):
    if len(arms) > 1 and value not in arms:
      raise build.UserError(f"config.{name} = {value!r} is not one of the arms {', '.join(arms)}; name the arm that is "
                            f"{'the result' if name == 'primary' else 'compared with'}")
  if len(arms) > 1 and primary == baseline:
    raise build.UserError(f"config.primary and config.baseline are both {primary!r}; compare two different arms")
  place = {baseline: 0, primary: 2}
  return dict(sorted(arms.items(), key=lambda item: place.get(item[0], 1)))


def spelled(arms: dict, steps: int | None) -> dict:
  """{name: (folder, sampling steps or None for the policy's own)} of arms. UserError for one that is neither form."""
  out = {}
  for name, arm in arms.items():
    whole = {"model": arm, "steps": steps} if isinstance(arm, str) else arm
    if not isinstance(whole, dict) or set(whole) != {"model", "steps"}:
      raise build.UserError(f"config.arms.{name} = {arm!r} must be a folder, or one with steps of its own, "
                            "{'model': folder, 'steps': number}; correct it")
    out[name] = whole["model"], whole["steps"]
  return out


def publish(samples: Path, workdir: Path, results: dict, config: dict, examples: dict | None = None):
  """Writes results.json and report.html into `workdir` from what an evaluation left in `samples`; returns the path.
  examples: of examinations, see report.write."""
  arms, first = {}, None
  for name in results["arms"]:
    with np.load(samples / f"samples_{name}.npz") as saved:
      arms[name] = {"images": saved["images"], "success": saved["success"]}
      first = first or {"prompts": saved["prompts"].tolist(), "categories": saved["categories"].tolist()}
  drawn = {name: heldout_curves(Path(model)) for name, model in results.get("curves", {}).items()}
  return report.write(workdir, results, arms=arms, curves=drawn, config=config, examples=examples, **first)


def heldout_curves(workdir: Path) -> dict:
  """{metric: (steps, values)} of what a run logged about held-out prompts, its training reward, and how far it went
  from its reference."""
  rows, out = metrics.read(workdir), {}
  for row in rows:
    for name, value in row.items():
      if (name.startswith("heldout/") or name in ("experience/reward_mean", *health.KL)) and value is not None:
        steps, values = out.setdefault(name, ([], []))
        steps.append(row["step"])
        values.append(value)
  return out


def read(workdir: Path) -> dict:
  """The results.json of an evaluation."""
  return json.loads((Path(workdir) / "results.json").read_text())


def categories(meta: list) -> list:
  return [m.get("category", "all") for m in meta]


def judged(results: dict, targets: dict) -> list:
  """[{"name", "value", "at_least"}] for the targets of a config."""
  known = {f"gain over {k.split(' - ')[1]}": v["overall"]["difference"] for k, v in results["differences"].items()}
  if "diversity_ratio" in results:
    known["diversity ratio"] = results["diversity_ratio"]["value"]
  check_targets(targets, known)
  return [{"name": name, "value": known[name], "at_least": bound} for name, bound in targets.items()]


PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict:
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def means(outcomes: dict) -> dict:
  return {arm: {k: float(np.nanmean(v)) for k, v in o.parts.items()} for arm, o in outcomes.items()}


def summarise(outcomes: dict, success: str, spread, seed: int) -> dict:
  """Rates, differences from the last arm and diversity against the first; bootstrap clustered by prompt."""
  first = next(iter(outcomes.values()))
  kinds = categories(first.meta)
  right = {n: np.where(np.isnan(o.parts[success]), 0.0, o.parts[success] > 0.5) for n, o in outcomes.items()}
  diverse = {n: spread(o.images, o.meta, right[n] > 0.5) for n, o in outcomes.items()} if spread else {}
  names = list(outcomes)
  main, others = names[-1], names[:-1]
  valid = {n: ~np.isnan(o.parts[success]) for n, o in outcomes.items()}
  return {
    "arms": {n: {**statistics.rates(right[n], kinds, valid=valid[n], seed=seed), "failed": int((~valid[n]).sum()),
                 **({"diversity": statistics.mean(diverse[n], seed=seed)} if spread else {})} for n in names},
    "differences": {f"{main} - {n}": statistics.paired(right[main], right[n], kinds, valid=valid[main] & valid[n],
                                                       seed=seed) for n in others},
    **({"diversity_ratio": statistics.ratio(diverse[main], diverse[names[0]], seed=seed)} if spread and others else {}),
    "primary": main, "seed": seed, "success": success, "prompts": len(kinds), "samples": int(right[names[0]].shape[1]),
  }


def store_samples(workdir: Path, outcomes: dict, success: str) -> None:
  """Every sample and score, so that a table or a report can be made again without sampling."""
  workdir.mkdir(parents=True, exist_ok=True)
  for name, o in outcomes.items():
    np.savez_compressed(workdir / f"samples_{name}.npz", images=o.images, prompts=np.array(o.prompts),
                        categories=np.array(categories(o.meta)), success=o.parts[success] > 0.5,
                        **{k.replace("/", "."): v for k, v in o.parts.items()})
