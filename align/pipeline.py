"""Several runs, each starting from what an earlier one left; resumable at every update of every run.

`runs` is {name: config}; a string "@name" or "@name/path" inside a config means the workdir of another run, which then
goes first (runs that need nothing of each other go by name). All configs are checked before the first one starts. Runs
share this process, so a program that two of them need is compiled once.
"""
import graphlib
import importlib
import json
import os
import time
from pathlib import Path

from align import build, main, metrics


def run(config: dict, workdir: str) -> dict:
  return pipeline(workdir, **{k: v for k, v in config.items() if k != "task"})


def pipeline(workdir: str, *, runs: dict, seed: int = 0, title: str = "Pipeline") -> dict:
  """Runs what is not done yet, in order, each in WORKDIR/NAME; the last evaluation becomes WORKDIR/report.html, and the
  last examination WORKDIR/results.json.

  `seed` is every run's seed unless that run's config sets one.
  """
  workdir = Path(workdir)
  configs = {name: {"seed": seed, **linked(runs[name], workdir)} for name in ordered(runs)}
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
      timed(log, spec, str(workdir / name))
  stages = [{"name": name, **{k: v for k, v in stage(workdir / name / "stage.json").items() if k != "done"}}
            for name in configs]
  last = [name for name, spec in configs.items() if spec.get("task") in ("evaluate", "examine")]
  if last and configs[last[-1]]["task"] == "examine":
    return passed(workdir, last[-1], stages, title, seed)
  return publish(workdir, last[-1] if last else None, stages, title, seed)


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


def timed(log: Path, spec: dict, workdir: str) -> None:
  """Runs one config; its seconds add up over restarts, its peak memory is the largest seen."""
  before, began = stage(log), time.monotonic()
  metrics.reset_peak_memory()
  done = False
  try:
    main.run(spec, workdir)
    done = True
  finally:
    log.parent.mkdir(parents=True, exist_ok=True)
    record = {"seconds": round(before.get("seconds", 0) + time.monotonic() - began, 1), "done": done,
              "peak_memory_bytes": max(before.get("peak_memory_bytes", 0), metrics.peak_memory())}
    held = metrics.device_memory()  # of this process so far: a backend does not start anew
    if held is not None:
      record["device_memory_bytes"] = max(before.get("device_memory_bytes", 0), held)
    log.with_suffix(".tmp").write_text(json.dumps(record))
    os.replace(log.with_suffix(".tmp"), log)


def publish(workdir: Path, evaluation: str | None, stages: list, title: str, seed: int) -> dict:
  """WORKDIR/report.html and results.json, from the last evaluation and the stages' costs."""
  from align import evaluate
  if evaluation is None:
    return {"stages": stages}
  config = json.loads((workdir / "config.json").read_text()) if (workdir / "config.json").is_file() else {}
  results = {**evaluate.read(workdir / evaluation), "stages": stages, "title": title, "seed": seed}
  path = evaluate.publish(workdir / evaluation, workdir, results, config)
  print(f"report: {path}", flush=True)
  return results


def passed(workdir: Path, examination: str, stages: list, title: str, seed: int) -> dict:
  """WORKDIR/results.json from the last examination and the stages' costs."""
  results = json.loads((workdir / examination / "results.json").read_text())
  results |= {"stages": stages, "title": title, "seed": seed}
  (workdir / "results.json").write_text(json.dumps(results, indent=1))
  return results
