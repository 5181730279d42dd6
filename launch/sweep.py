"""A sweep that resumes: run after run, each a command, each leaving one JSON record that is small enough to commit.

  python -m launch.sweep --sweep=configs/sweeps/NAME.py --workdir=DIR [--records=configs/records/NAME] [--jobs=1]
  python -m launch.sweep --sweep=configs/sweeps/NAME.py --table

A sweep file has get_sweep() -> {"config": FILE, "runs": {NAME: {"config.seed": 0, ...}}, "columns": {TITLE: PATH}};
PATH is a list of keys into a record, and a run's "config" replaces FILE. A run that has its record is not run again,
one that was interrupted goes on where it was, one that fails is noted in WORKDIR/sweep.log and the others go on. Ctrl-C
and SIGTERM are passed on to the runs, which save. Nothing of the packages is imported: a run is what anybody would
type. Optional keys:

  "share"   {RUN: {STAGE: PLACE}}: the pipeline's stage lies in WORKDIR/PLACE, where other runs find it done
  "groups"  {TITLE: [RUN, ...]}: the table has a row a group, means over its runs with t-intervals
  "test"    {"column": TITLE, "least": 0.03}: that column's mean against 0 in every group, a t-test over runs; p-values
            are Holm's over all groups, and what is below .05 with a mean of at least `least` is marked
  "traces"  {RUN: [STAGE, ...]}: in place of results.json the record keeps what the held-out evaluations of these stages
            found, and their alarm (align/health.py), so that its rule can be asked again
  "alarms"  {TITLE: [[RUN, STAGE], ...]}: the table counts alarms, with Clopper-Pearson intervals
"""
import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import runpy
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scipy import stats

RESUMABLE = 75  # exit code of a run that saved and stopped
KEPT = ("arms", "alarms", "collected", "traces", "differences", "diversity_ratio", "examined", "scores", "targets",
        "prompts", "samples", "seed", "success", "swapped", "versions")


def load(path: str) -> dict:
  """The sweep of a file. ValueError on what is no sweep."""
  if not Path(path).is_file():
    raise ValueError(f"--sweep = {path!r}: there is no such file; give a file that defines get_sweep()")
  made = runpy.run_path(path).get("get_sweep")
  if made is None:
    raise ValueError(f"--sweep = {path!r} defines no get_sweep(); it must return config, runs and columns")
  sweep = made()
  missing = {"config", "runs", "columns"} - set(sweep)
  if missing or not sweep["runs"]:
    raise ValueError(f"--sweep = {path!r}: get_sweep() must return config, runs (at least one) and columns; add "
                     f"{', '.join(sorted(missing)) or 'runs'}")
  return sweep


def record(results: dict, overrides: dict, config: str = "") -> dict:
  """What is kept of a run's results: figures and their intervals, no samples, no curves, no paths.

  config: the resolved config as text, of which the hash is kept."""
  costs = [{k: stage[k] for k in ("name", "seconds", "peak_memory_bytes") if k in stage}
           for stage in results.get("stages", [])]
  origin = {"config": hashlib.sha256(config.encode()).hexdigest()[:16], "code": code(), "machine": machine()}
  return {"overrides": overrides, **origin, **{k: results[k] for k in KEPT if k in results}, "stages": costs,
          "seconds": round(sum(c.get("seconds", 0) for c in costs), 1),
          "peak_memory_bytes": max((c.get("peak_memory_bytes", 0) for c in costs), default=0)}


def code() -> str:
  """The commit of the checkout that runs, with + where files differ from it; "unknown" outside of one."""
  def ask(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
  try:
    return ask("rev-parse", "--short=12", "HEAD") + "+" * bool(ask("status", "--porcelain", "--untracked-files=no"))
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def machine() -> str:
  return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def command(config: str, workdir: Path, overrides: dict) -> list:
  config = overrides.get("config", config)
  given = [f"--{key}={value}" for key, value in overrides.items() if key != "config"]
  return [sys.executable, "-m", "align.main", f"--config={config}", f"--workdir={workdir}", *given]


def link(workdir: Path, run: str, places: dict) -> None:
  """WORKDIR/RUN/STAGE -> WORKDIR/PLACE for every shared stage; what another run finished there is not done again."""
  for stage, place in places.items():
    there, here = workdir / place, workdir / run / stage
    for folder in (there, here.parent):
      folder.mkdir(parents=True, exist_ok=True)
    if not here.exists():
      here.symlink_to(os.path.relpath(there, here.parent), target_is_directory=True)


def recorded(records: Path, name: str, overrides: dict) -> dict | None:
  """The record of a run, None where it has none. ValueError on one that cannot be read or is of another run."""
  path = records / f"{name}.json"
  if not path.is_file():
    return None
  try:
    found = json.loads(path.read_text())
    made = found["overrides"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"record {str(path)!r} cannot be read ({error!r}); it must be JSON with its overrides: remove it "
                     "to run it again") from error
  if made != json.loads(json.dumps(overrides)):
    raise ValueError(f"record {str(path)!r} was made with {made}, but run {name!r} of the sweep is {overrides}; both "
                     "must be the same: rename the run, or remove the record")
  return found


@contextlib.contextmanager
def listening():
  """Within it Ctrl-C and SIGTERM are only noted; yields the list of those that came."""
  asked = []
  before = {number: signal.signal(number, lambda n, frame: asked.append(n)) for number in (signal.SIGINT,
                                                                                           signal.SIGTERM)}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def interrupt(running: dict) -> None:
  """Asks every child to save and stop, by SIGINT whichever signal came: a run answers it also outside training."""
  for child in running.values():
    child.send_signal(signal.SIGINT)


def run(sweep: dict, workdir: Path, records: Path, make=command, jobs: int = 1) -> dict:
  """Runs what has no record yet, `jobs` at a time -> {name: exit code} of those that did not finish.

  After a run that was stopped none is started. `make` makes a run's command. With several jobs each has its share of
  the cores and writes its output to WORKDIR/NAME.log; of runs that share a stage others start when it is finished."""
  runs, share, running, seats, failed, told = sweep["runs"], sweep.get("share", {}), {}, {}, {}, 0
  traces = sweep.get("traces", {})
  places, done = lambda names: {place for n in names for place in share.get(n, {}).values()}, set()
  waiting = [name for name, overrides in runs.items() if recorded(records, name, overrides) is None]
  with listening() as asked:
    try:
      while running or waiting and not asked and RESUMABLE not in failed.values():
        done |= {place for place in places(running) - done if finished(workdir / place)}
        held = places(running) - done
        free = next((name for name in waiting if not held & places([name])), None)
        if free and len(running) < jobs and not asked and RESUMABLE not in failed.values():
          waiting.remove(free)
          print(f"({list(runs).index(free) + 1}/{len(runs)}) {free}", flush=True)
          link(workdir, free, share.get(free, {}))
          arguments, log = make(sweep["config"], workdir / free, runs[free]), workdir / f"{free}.log"
          seat = min(set(range(jobs)) - set(seats.values()))
          running[free], seats[free] = start(arguments, log if jobs > 1 else None, cores(seat, jobs)), seat
          continue
        if len(asked) > told:
          told = len(asked)
          interrupt(running)
        time.sleep(0.05)
        for name in [name for name, child in running.items() if child.poll() is not None]:
          code = running.pop(name).returncode
          seats.pop(name)
          failed[name] = RESUMABLE if code and asked else code or keep(workdir, records, name, runs[name],
                                                                      traces.get(name))
          done |= set() if failed[name] else places([name])
          if failed[name]:
            note(workdir, f"{name} ended with exit code {code or failed[name]}")
    finally:
      interrupt(running)  # none is left, unless something above raised
  if asked and waiting and RESUMABLE not in failed.values():  # it came between two runs
    failed[waiting[0]] = RESUMABLE
  return {name: code for name, code in failed.items() if code}


def finished(stage: Path) -> bool:
  """Whether a pipeline has noted the end of this stage."""
  with contextlib.suppress(OSError, ValueError):
    return json.loads((stage / "stage.json").read_text()).get("done") is True
  return False


def cores(seat: int, seats: int) -> set:
  """The cores of one of several runs at a time; all of them where the system cannot tell (macOS) or they are too few.

  Small networks fill one core better than two: two runs of a core each do twice the work of one that has both."""
  if not hasattr(os, "sched_setaffinity"):
    return set()
  every = sorted(os.sched_getaffinity(0))
  return set(every[seat::seats]) or set(every)


def start(arguments: list, log: Path | None, where: set) -> subprocess.Popen:
  """A child on the cores `where`, in a group of its own, so that a terminal's Ctrl-C reaches it through us, once. Its
  output goes to the log, or to ours."""
  if log is None:
    child = subprocess.Popen(arguments, process_group=0)
  else:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
      child = subprocess.Popen(arguments, process_group=0, stdout=out, stderr=subprocess.STDOUT)
  if where:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
      os.sched_setaffinity(child.pid, where)
  return child


def keep(workdir: Path, records: Path, name: str, overrides: dict, stages: list | None = None) -> int:
  """Writes the record of a run that ended well; 1 where it left no results that can be read. stages: those whose
  traces are the results."""
  path = workdir / name / "results.json"
  try:
    results = traced(workdir / name, stages) if stages else json.loads(path.read_text())
  except (OSError, ValueError) as error:
    missing = f"the stages {', '.join(stages)} must evaluate" if stages else "the config must end in an evaluation"
    note(workdir, f"{name}: no results in {str(path)!r} ({error}); {missing}, correct it")
    return 1
  config = workdir / name / "config.json"
  write(records / f"{name}.json", record(results, overrides, config.read_text() if config.is_file() else ""))
  return 0


def traced(workdir: Path, stages: list) -> dict:
  """{"traces": {stage: {"alarm", "columns": {metric: [evaluations]}}}, "stages": costs} of the training runs in a
  workdir: totals of scores, without their parts, and monitors."""
  short = lambda value: float(f"{value:.5g}") if isinstance(value, float) else value
  traces, costs = {}, []
  for stage in stages:
    rows = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    held = [row for row in rows if any(k.startswith("heldout/") for k in row)]
    if not held:
      raise ValueError(f"{stage} has no held-out evaluation")
    names = [name for name in held[0] if re.search(r"^(step|guard/alarm|(heldout|guard/std)/([^/]+|.*/total))$", name)]
    alarm = workdir / stage / "alarm.json"
    traces[stage] = {"alarm": json.loads(alarm.read_text()) if alarm.is_file() else None,
                     "columns": {name: [short(row.get(name)) for row in held] for name in names}}
    cost = json.loads((workdir / stage / "stage.json").read_text())
    costs.append({"name": stage, **{k: v for k, v in cost.items() if k != "config"}})
  return {"traces": traces, "stages": costs}


def note(workdir: Path, text: str) -> None:
  """A line for WORKDIR/sweep.log."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / "sweep.log", "a") as log:
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def write(path: Path, value: dict) -> None:
  """A file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".tmp")
  partial.write_text(json.dumps(value, indent=1) + "\n")
  os.replace(partial, path)


def reach(value, path):
  """The value behind a list of keys, None where there is none."""
  for key in path:
    value = value.get(key) if isinstance(value, dict) else None
  return value


def interval(values: list) -> tuple:
  """(mean, half width of its 95 % t-interval); the width is None below two runs."""
  n, mean = len(values), sum(values) / len(values)
  if n < 2:
    return mean, None
  std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
  return mean, float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)


def holm(chances: dict) -> dict:
  """p-values that hold over all of them together (Holm 1979): {name: p} -> {name: adjusted p}."""
  out, least = {}, 0.0
  for i, name in enumerate(sorted(chances, key=chances.get)):
    least = max(least, min(1.0, (len(chances) - i) * chances[name]))
    out[name] = least
  return out


def table(sweep: dict, records: Path) -> str:
  """Markdown: a row a run and the mean over runs with its t-interval, or a row a group."""
  every = {name: recorded(records, name, overrides) for name, overrides in sweep["runs"].items()}
  found = {name: one for name, one in every.items() if one is not None}
  form = by_alarm if "alarms" in sweep else by_group if "groups" in sweep else by_run
  lines = form(sweep, found)
  missing = [name for name in sweep["runs"] if name not in found]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
    f"\n\nNot run yet: {', '.join(missing)}." if missing else "")


def by_run(sweep: dict, found: dict) -> list:
  titles = list(sweep["columns"])
  values = {name: [reach(one, sweep["columns"][title]) for title in titles] for name, one in found.items()}
  rows = [[name, *("–" if v is None else f"{v:.3f}" for v in row)] for name, row in values.items()]
  return [["run", *titles], ["---"] * (len(titles) + 1), *rows,
          ["mean and 95 % t-interval", *(cell(column(sweep, found, title)) for title in titles)]]


def by_group(sweep: dict, found: dict) -> list:
  groups, titles, test = sweep["groups"], list(sweep["columns"]), sweep.get("test")
  some = {title: {name: found[name] for name in runs if name in found} for title, runs in groups.items()}
  rows = {group: [group, str(len(ones)), *(cell(column(sweep, ones, title)) for title in titles)]
          for group, ones in some.items()}
  if test:
    values = {group: column(sweep, ones, test["column"]) for group, ones in some.items()}
    chances = holm({group: float(stats.ttest_1samp(v, 0).pvalue) for group, v in values.items() if len(set(v)) > 1})
    for group, row in rows.items():
      p, mean = chances.get(group), sum(values[group]) / max(1, len(values[group]))
      row.append("–" if p is None else f"{p:.3g}" + " *" * (p < 0.05 and mean >= test["least"]))
  extra = [f"Holm p of {test['column']}"] if test else []
  return [["", "runs", *titles, *extra], ["---"] * (2 + len(titles) + len(extra)), *rows.values()]


def by_alarm(sweep: dict, found: dict) -> list:
  rows = [["", "runs", "alarms", "share and its 95 % interval", "median step"], ["---"] * 5]
  for title, places in sweep["alarms"].items():
    some = [found[run]["traces"][stage]["alarm"] for run, stage in places if run in found]
    at = sorted(alarm["step"] for alarm in some if alarm)
    middle = f"{statistics.median(at):g}" if at else "–"
    rows.append([title, str(len(some)), str(len(at)), proportion(len(at), len(some)), middle])
  return rows


def proportion(count: int, total: int) -> str:
  """count / total with its Clopper-Pearson interval (1934)."""
  if not total:
    return "–"
  low, high = stats.binomtest(count, total).proportion_ci(0.95, "exact")
  return f"{count / total:.3f} ({low:.3f} to {high:.3f})"


def column(sweep: dict, found: dict, title: str) -> list:
  return [v for one in found.values() if (v := reach(one, sweep["columns"][title])) is not None]


def cell(values: list) -> str:
  mean, half = interval(values) if values else (None, None)
  return "–" if mean is None else f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}")


def main(argv: list | None = None) -> int:
  """Exit code 0 when every run has its record, 75 when one was stopped, 1 when one failed, 2 on bad input."""
  parser = argparse.ArgumentParser(prog="python -m launch.sweep", description=__doc__.splitlines()[0])
  parser.add_argument("--sweep", required=True, help="file that defines get_sweep()")
  parser.add_argument("--workdir", default="runs/sweep", help="folder of the runs")
  parser.add_argument("--records", help="folder of the records, by default configs/records/NAME OF THE SWEEP")
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
  parser.add_argument("--table", action="store_true", help="print the table of what is recorded and run nothing")
  args = parser.parse_args(argv)
  try:
    if args.jobs < 1:
      raise ValueError(f"--jobs = {args.jobs} must be at least 1; use 1, or the number of cores for networks as small "
                       "as those of digits and Scenes")
    sweep = load(args.sweep)
    records = Path(args.records or Path("configs/records") / Path(args.sweep).stem)
    failed = {} if args.table else run(sweep, Path(args.workdir), records, jobs=args.jobs)
    print(table(sweep, records))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for name, code in failed.items():
    print(f"{name} ended with exit code {code}" + ("; the same command continues" if code == RESUMABLE else ""),
          file=sys.stderr)
  return (RESUMABLE if RESUMABLE in failed.values() else 1) if failed else 0


if __name__ == "__main__":
  sys.exit(main())
