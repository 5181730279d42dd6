"""A sweep that resumes: run after run, each a command, each leaving one JSON record that is small enough to commit.

  python -m launch.sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/sweep [--records=configs/records] [--table]

A sweep file has get_sweep() -> {"config": FILE, "runs": {NAME: {"config.seed": 0, ...}}, "columns": {TITLE: PATH}};
PATH is a list of keys into a record. A run that has its record is not run again, one that was interrupted goes on
where it was. Nothing of the packages is imported: a run is what anybody would type.
"""
import argparse
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

from scipy import stats

RESUMABLE = 75  # exit code of a run that saved and stopped
KEPT = ("arms", "differences", "diversity_ratio", "scores", "targets", "prompts", "samples", "seed", "success",
        "versions")


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


def record(results: dict, overrides: dict) -> dict:
  """What is kept of a run's results: figures and their intervals, no samples, no curves, no paths."""
  costs = [{k: stage[k] for k in ("name", "seconds", "peak_memory_bytes") if k in stage}
           for stage in results.get("stages", [])]
  return {"overrides": overrides, **{k: results[k] for k in KEPT if k in results}, "stages": costs,
          "seconds": round(sum(c.get("seconds", 0) for c in costs), 1),
          "peak_memory_bytes": max((c.get("peak_memory_bytes", 0) for c in costs), default=0)}


def command(config: str, workdir: Path, overrides: dict) -> list:
  given = [f"--{key}={value}" for key, value in overrides.items()]
  return [sys.executable, "-m", "align.main", f"--config={config}", f"--workdir={workdir}", *given]


def run(sweep: dict, workdir: Path, records: Path, make=command) -> dict:
  """Runs what has no record yet -> {name: exit code} of those that did not finish. `make` makes a run's command."""
  failed = {}
  for number, (name, overrides) in enumerate(sweep["runs"].items(), 1):
    if (records / f"{name}.json").is_file():
      continue
    print(f"({number}/{len(sweep['runs'])}) {name}", flush=True)
    code = subprocess.run(make(sweep["config"], workdir / name, overrides)).returncode
    if code:
      failed[name] = code
      if code == RESUMABLE:
        break
      continue
    write(records / f"{name}.json", record(json.loads((workdir / name / "results.json").read_text()), overrides))
  return failed


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


def table(sweep: dict, records: Path) -> str:
  """Markdown: a row a run, and the mean over runs with its t-interval."""
  found = {name: json.loads((records / f"{name}.json").read_text()) for name in sweep["runs"]
           if (records / f"{name}.json").is_file()}
  titles, rows = list(sweep["columns"]), []
  for name, one in found.items():
    values = [reach(one, sweep["columns"][title]) for title in titles]
    rows.append([name, *("–" if v is None else f"{v:.3f}" for v in values)])
  last = ["mean and 95 % t-interval"]
  for title in titles:
    values = [v for one in found.values() if (v := reach(one, sweep["columns"][title])) is not None]
    mean, half = interval(values) if values else (None, None)
    last.append("–" if mean is None else f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}"))
  lines = [["run", *titles], ["---"] * (len(titles) + 1), *rows, last]
  missing = [name for name in sweep["runs"] if name not in found]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
    f"\n\nNot run yet: {', '.join(missing)}." if missing else "")


def main(argv: list | None = None) -> int:
  """Exit code 0 when every run has its record, 75 when one was stopped, 1 when one failed, 2 on bad input."""
  parser = argparse.ArgumentParser(prog="python -m launch.sweep", description=__doc__.splitlines()[0])
  parser.add_argument("--sweep", required=True, help="file that defines get_sweep()")
  parser.add_argument("--workdir", default="runs/sweep", help="folder of the runs")
  parser.add_argument("--records", help="folder of the records, by default configs/records/NAME OF THE SWEEP")
  parser.add_argument("--table", action="store_true", help="print the table of what is recorded and run nothing")
  args = parser.parse_args(argv)
  try:
    sweep = load(args.sweep)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  records = Path(args.records or Path("configs/records") / Path(args.sweep).stem)
  failed = {} if args.table else run(sweep, Path(args.workdir), records)
  print(table(sweep, records))
  for name, code in failed.items():
    print(f"{name} ended with exit code {code}" + ("; the same command continues" if code == RESUMABLE else ""),
          file=sys.stderr)
  return (RESUMABLE if RESUMABLE in failed.values() else 1) if failed else 0


if __name__ == "__main__":
  sys.exit(main())
