"""Several runs, each starting from what an earlier one left; resumable at every update of every run.

`runs` is {name: config}; a string "@name" or "@name/path" inside a config means the workdir of another run, which then
goes first (runs that need nothing of each other go by name). All configs are checked before the first one starts. Runs
share this process, so a program that two of them need is compiled once.
"""
import graphlib
import hashlib
import importlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from align import build, main, metrics, report
from align import config as options

EXAMINED = ("scores", "accuracy", "means")  # of an examination's results
TOLD = {"collect": "collected", "examine": "examined", "swap": "swapped"}  # where a task's results go in the pipeline's
UNTOLD = ("done", "config", "inputs")  # of a stage's record


def run(config: dict, workdir: str) -> dict:
  return pipeline(workdir, **{k: v for k, v in config.items() if k != "task"})


def pipeline(workdir: str, *, runs: dict, seed: int = 0, title: str = "Pipeline") -> dict:
  """Runs what is not done yet, in order, each in WORKDIR/NAME; the last evaluation becomes WORKDIR/report.html and
  WORKDIR/results.json, in which all examinations, collections and swaps are; without one the last of these does.

  `seed` is every run's seed unless that run's config sets one. UserError for a finished run of another config, or made
  of one, as two pipelines may share its folder.
  """
  workdir = Path(workdir)
  given = {name: {"seed": seed, **runs[name]} for name in ordered(runs)}
  configs = {name: linked(spec, workdir) for name, spec in given.items()}
  made = origins(given)
  for name, spec in given.items():
    unchanged(workdir / name, spec, {other: made[other] for other in sorted(references(spec))})
  for name, spec in configs.items():
    whole = build.resolve(spec, function(spec, name))
    model = main.awaited(runs[name])[1:].partition("/")[0]  # if it is not there yet, the run itself checks it
    if not stage(workdir / name / "stage.json").get("done") and (
        not model or stage(workdir / model / "stage.json").get("done")):
      check(whole, name)
  for number, (name, spec) in enumerate(configs.items(), 1):
    log = workdir / name / "stage.json"
    if not stage(log).get("done"):
      print(f"[{number}/{len(configs)}] {name}", flush=True)
      timed(log, spec, str(workdir / name), given[name], {other: made[other] for other in references(given[name])})
  return told(workdir, configs, {"title": title, "seed": seed})


def origins(given: dict) -> dict:
  """{run: hash of its config and, through all that it begins from, of theirs}; given: in the order of `ordered`."""
  out = {}
  for name, spec in given.items():
    parts = [options.bound(spec), {other: out[other] for other in references(spec)}]
    out[name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
  return out


def unchanged(folder: Path, spec: dict, inputs: dict) -> None:
  """Refuses a run that was done, or begun, with another config or from runs of others; older records have no inputs."""
  found = stage(folder / "stage.json")
  if found.get("config"):
    options.same(found["config"], spec, folder)
  for name, now in inputs.items():
    if found.get("inputs", {}).get(name, now) != now:
      raise build.UserError(f"--workdir: {str(folder)!r} was made from {name!r} of another config ({name} is "
                            f"{found['inputs'][name]} there and {now} now); what begins from a run must begin from "
                            f"this one: remove {str(folder)!r} to make it again, or use another --workdir")


def told(workdir: Path, configs: dict, more: dict) -> dict:
  """The results of a pipeline that is done, with its stages' costs, and its report where there is something to tell."""
  of_task = lambda task: [name for name, spec in configs.items() if spec.get("task") == task]
  more["stages"] = [{"name": name, **{k: v for k, v in stage(workdir / name / "stage.json").items() if k not in UNTOLD}}
                    for name in configs]
  found = {key: {name: json.loads((workdir / name / "results.json").read_text()) for name in of_task(task)}
           for task, key in TOLD.items()}
  more |= {key: results for key, results in found.items() if results}
  if "examined" in more:
    more["examined"] = {name: {k: one[k] for k in EXAMINED if k in one} for name, one in more["examined"].items()}
  if of_task("evaluate"):
    return publish(workdir, of_task("evaluate")[-1], more)
  last = [name for name, spec in configs.items() if spec.get("task") in TOLD][-1:]
  if not last:
    return {"stages": more["stages"]}
  return publish(workdir, None, {**next(one[last[0]] for one in found.values() if last[0] in one), **more})


def check(spec: dict, name: str) -> None:
  """What a task can say of its config before it runs, where it says something."""
  task = importlib.import_module(f"align.{spec.get('task', 'train')}")
  if hasattr(task, "check"):
    try:
      task.check(spec)
    except build.UserError as error:
      raise build.UserError(f"config.runs.{name}: {error}") from error


def function(spec: dict, name: str):
  """The task function that a run's options are checked against."""
  task = spec.get("task", "train")
  if task not in build.TASKS:
    raise build.UserError(f"config.runs.{name}.task = {task!r} is not one of {', '.join(build.TASKS)}; choose one of "
                          "them")
  return getattr(importlib.import_module(f"align.{task}"), task)


def ordered(runs: dict) -> list:
  """Names of the runs, each after those that it refers to."""
  needs = {name: references(spec) for name, spec in runs.items()}
  for name, wanted in needs.items():
    missing = sorted(wanted - set(runs))
    if missing:
      raise build.UserError(f"config.runs.{name} refers to '@{missing[0]}', but the runs are {', '.join(runs)}; name "
                            "one of them"
                            + build.nearest(missing[0], runs))
  try:
    return list(graphlib.TopologicalSorter({name: sorted(needs[name]) for name in sorted(runs)}).static_order())
  except graphlib.CycleError as error:
    raise build.UserError(f"config.runs: {' -> '.join(error.args[1])} need each other; a run can only start from what "
                          "another one left, remove a reference") from None


def references(value) -> set:
  """Names behind the "@name" strings of a config."""
  if isinstance(value, str):
    return {value[1:].partition("/")[0]} if value.startswith("@") else set()
  parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
  return set().union(*(references(part) for part in parts))


def linked(value, workdir: Path):
  """A config with its "@name" references replaced by paths."""
  if isinstance(value, dict):
    return {k: linked(v, workdir) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(linked(v, workdir) for v in value)
  return str(workdir / value[1:]) if isinstance(value, str) and value.startswith("@") else value


def stage(path: Path) -> dict:
  return json.loads(path.read_text()) if path.is_file() else {}


def timed(log: Path, spec: dict, workdir: str, given: dict, inputs: dict) -> None:
  """Runs one config; its seconds add up over restarts, its peak memory is the largest seen. given: as it stands in the
  pipeline, with names in place of paths; inputs: {run that it begins from: hash}."""
  before, began = stage(log), time.monotonic()
  metrics.reset_peak_memory()
  done = False
  try:
    main.run(spec, workdir)
    done = True
  finally:
    log.parent.mkdir(parents=True, exist_ok=True)
    record = {"seconds": round(before.get("seconds", 0) + time.monotonic() - began, 1), "done": done, "config": given,
              "inputs": inputs, "peak_memory_bytes": max(before.get("peak_memory_bytes", 0), metrics.peak_memory())}
    held = metrics.device_memory()  # of this process so far: a backend does not start anew
    if held is not None:
      record["device_memory_bytes"] = max(before.get("device_memory_bytes", 0), held)
    log.with_suffix(".tmp").write_text(json.dumps(record))
    os.replace(log.with_suffix(".tmp"), log)


def publish(workdir: Path, evaluation: str | None, more: dict) -> dict:
  """WORKDIR/report.html and results.json, from the last evaluation, if any, and `more`: title, seed, the stages' costs,
  and what was collected, examined and swapped."""
  from align import evaluate
  config = json.loads((workdir / "config.json").read_text()) if (workdir / "config.json").is_file() else {}
  shown = examples(workdir, more.get("examined", ()))
  if evaluation is None:
    results = {"versions": evaluate.versions(), **more}
    path = report.without_arms(workdir, results, config=config, examples=shown)
  else:
    results = {**evaluate.read(workdir / evaluation), **more}
    path = evaluate.publish(workdir / evaluation, workdir, results, config, shown)
  print(f"report: {path}", flush=True)
  return results


def examples(workdir: Path, names: Iterable) -> dict:
  """{examination: what it kept}; older ones kept nothing."""
  out = {}
  for name in names:
    if (path := workdir / name / "examples.npz").is_file():
      with np.load(path) as kept:
        out[name] = dict(kept)
  return out
