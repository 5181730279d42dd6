"""The task that puts published claims beside what is found here: sweeps at fixed seeds, and one table of verdicts.

  {"task": "claims", "sweeps": ("configs/sweeps/dense_reward.py", ...), "into": "README.md"}

A sweep file (launch/sweep.py) has "claims", a list of
  {"text": what is claimed, "paper": the figure that was published, in words, "runs": [names of its runs],
   "path": [keys into a record], "minus": [keys of what is subtracted, or left out], "least": 0.03, "primary": bool,
   "against": [names of as many other runs, whose figure is subtracted, seed by seed, or left out]}
and "title", whose claims they are, which is the name of the file where it is left out.

A run that has its record is not run again. With x the values of the runs, one a seed, and the 95 % t-interval of their
mean: a claim holds where the interval lies above 0 and the mean is at least `least`; it does not hold where the
interval lies below `least`; else it is undecided. A claim of one run has its figure, with the bootstrap interval of its
record where there is one, and no verdict. Primary claims of a sweep make one, of which all must hold; it does not hold
where one of them does not. The others, and those of one run, are marked exploratory: nothing is corrected for their
number. Where a record is missing there is no figure, and the claim is only counted.
Left out: claims over the runs of several sweeps.
"""
import collections
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from align import build, config, guard, page, report

MARKS = "<!-- claims -->", "<!-- /claims -->"
RULE = ("Intervals are 95 %: over seeds by Student's t, of a single run by bootstrap over prompts. *Holds*: the "
        "interval is above 0 and the mean at least the least that counts, .03 where nothing else is said; *does not "
        "hold*: the interval is below that least.")


class Claim(NamedTuple):
  """An entry of "claims", see above."""
  text: str
  paper: str
  runs: list
  path: list
  minus: list = []
  least: float = 0.03
  primary: bool = False
  against: list = []


class Found(NamedTuple):
  """What the records say of a claim; None where a record is missing, and no verdict for one run."""
  recorded: int
  mean: Any = None
  interval: Any = None
  verdict: Any = None


def run(config: dict, workdir: str) -> dict:
  return claims(workdir, **{k: v for k, v in config.items() if k != "task"})


def check(config: dict) -> None:
  """Refuses what cannot be before anything is run."""
  for path in config["sweeps"]:
    read(path)
  if config["into"]:
    split(config["into"])


def claims(workdir: str, *, sweeps: tuple, records: str = "configs/records", into: str = None, jobs: int = 1,
           run_missing: bool = True) -> dict:
  """Prints and writes WORKDIR/claims.md, and claims.json: [{"system", "text", ..., "mean", "interval", "verdict"}].

  Args:
    sweeps: their files; what they run lies in WORKDIR/NAME. records: folder of their records' folders.
    into: a file whose text between <!-- claims --> and <!-- /claims --> becomes the table. jobs: runs at a time.
    run_missing: whether what has no record is run; else the table is made of what there is.

  Raises: UserError for a file that is no sweep with claims, a record of another run or without a claim's figure,
    missing marks, and, once the table is written, where runs failed. guard.Stopped where a run was stopped.
  """
  workdir = Path(workdir)
  check({"sweeps": sweeps, "into": into})
  failed = [path for path in sweeps if run_missing and not finished(path, workdir, Path(records), jobs)]
  rows = [row for path in sweeps for row in rows_of(path, Path(records) / Path(path).stem)]
  workdir.mkdir(parents=True, exist_ok=True)
  text = f"{table(rows)}\n\n{RULE}\n"
  report.atomic(workdir / "claims.md", text.encode())
  print(text, end="", flush=True)
  result = [{"system": title, **claim._asdict(), **found._asdict()} for title, claim, found in rows]
  report.atomic(workdir / "claims.json", json.dumps(result, indent=1).encode())
  if into:
    before, after = split(into)
    report.atomic(Path(into), f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}".encode())
  if failed:
    raise build.UserError(f"config.sweeps: runs of {', '.join(failed)} failed; their claims are incomplete in "
                          f"{workdir / 'claims.md'}: look at the sweep.log of each, then the same command tries again")
  return {"claims": result}


# --- running ---------------------------------------------------------------------------------------------------------


def finished(path: str, workdir: Path, records: Path, jobs: int) -> bool:
  """Runs what a sweep has not recorded yet, in a process of its own; False where runs failed."""
  name = Path(path).stem
  print(f"sweep {name}", flush=True)
  code = waited([sys.executable, "-m", "launch.sweep", f"--sweep={located(path)}", f"--workdir={workdir / name}",
                 f"--records={records / name}", f"--jobs={jobs}"])
  if code == guard.RESUMABLE:
    raise guard.Stopped(f"sweep {name} was stopped and saved; the same command continues")
  if code not in (0, 1):
    raise build.UserError(f"config.sweeps: launch.sweep ended with exit code {code} on {path!r}; 0 or 1 is expected: "
                          "its message is above")
  return code == 0


def waited(arguments: list) -> int:
  """The exit code of a child in a group of its own: a terminal's Ctrl-C reaches it through us, once. A signal is passed
  on as SIGINT, and the child then saves."""
  with guard.signals():
    child = subprocess.Popen(arguments, process_group=0)
    told = False
    try:
      while child.poll() is None:
        if not told and guard.stop_requested():
          child.send_signal(signal.SIGINT)
          told = True
        time.sleep(0.05)
    finally:
      if child.poll() is None:  # a second Ctrl-C
        child.send_signal(signal.SIGINT)
  return guard.RESUMABLE if told else child.returncode


# --- reading ---------------------------------------------------------------------------------------------------------


def located(path: str) -> Path:
  """The sweep file as given, else that of the installed configs."""
  for candidate in (Path(path), config.shipped().parent / path):
    if candidate.is_file():
      return candidate
  raise build.UserError(f"config.sweeps: there is no file {path!r}; a sweep is a file that defines get_sweep(), "
                        "such as configs/sweeps/dense_reward.py: correct the path")


def opened(path: str) -> dict:
  """What a sweep file makes, refused without claims."""
  made = runpy.run_path(str(located(path))).get("get_sweep", dict)()
  if not made.get("claims") or not made.get("runs"):
    raise build.UserError(f"config.sweeps: {path!r} makes no claims; its get_sweep() must return \"runs\" and "
                          "\"claims\", at least one of each: add them")
  return made


def read(path: str) -> list:
  """The claims of a sweep file, checked."""
  made = opened(path)
  return [checked(entry, made["runs"], f"config.sweeps: claim {i + 1} of {path!r}")
          for i, entry in enumerate(made["claims"])]


def rows_of(path: str, records: Path) -> list:
  """[(whose claim, the claim, what the records say)] of a sweep file."""
  made = opened(path)
  for name, overrides in made["runs"].items():
    own(records / f"{name}.json", overrides)
  return [(made.get("title", Path(path).stem), claim, judged(claim, of(claim, records))) for claim in read(path)]


def own(path: Path, overrides: dict) -> None:
  """Refuses a record of a run with other overrides than the sweep has now."""
  there = loaded(path).get("overrides") if path.is_file() else None
  if there is not None and there != json.loads(json.dumps(overrides)):
    raise build.UserError(f"record {str(path)!r} was made with {there}, but the run {path.stem!r} of its sweep is "
                          f"{overrides}; both must be the same: remove the record to run it again")


def checked(entry: dict, runs: dict, at: str) -> Claim:
  needed = [name for name in Claim._fields if name not in Claim._field_defaults]
  for name in [*(n for n in needed if not entry.get(n)), *(n for n in entry if n not in Claim._fields)]:
    raise build.UserError(f"{at} has {', '.join(entry)}; {', '.join(needed)} are needed, {', '.join(Claim._fields)} "
                          f"are known: {'add' if name in needed else 'remove'} {name}")
  if "against" in entry and len(entry["against"]) != len(entry["runs"]):
    raise build.UserError(f"{at} compares {len(entry['runs'])} runs with {len(entry['against'])}; \"against\" must "
                          "name one for each of \"runs\": correct it")
  for name in [*entry["runs"], *entry.get("against", ())]:
    if name not in runs:
      raise build.UserError(f"{at} is about the run {name!r}, but the sweep's are {', '.join(runs)}; name one of them"
                            + build.nearest(name, runs))
  return Claim(**entry)


def of(claim: Claim, records: Path) -> list:
  """What the records say, one (value, interval or None) a run; None where a record is missing."""
  found, others = ([figure(claim, records / f"{name}.json") for name in names] for names in (claim.runs, claim.against))
  if not others:
    return found
  return [one and other and (one[0] - other[0], None) for one, other in zip(found, others, strict=True)]


def figure(claim: Claim, path: Path) -> tuple | None:
  if not path.is_file():
    return None
  record = loaded(path)
  value = reach(record, claim.path, path)
  if claim.minus:
    return value - reach(record, claim.minus, path), None
  beside = reach(record, claim.path[:-1], path, (dict,))
  return value, beside.get("interval")


def loaded(path: Path) -> dict:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise build.UserError(f"record {str(path)!r} cannot be read ({error}); it must be JSON: remove it to run it "
                          "again") from error


def reach(record: dict, keys: list, path: Path, kinds: tuple = (int, float)) -> Any:
  """What stands behind keys in a record."""
  value = record
  for key in keys:
    value = value.get(key) if isinstance(value, dict) else None
  if not isinstance(value, kinds):
    raise build.UserError(f"record {str(path)!r} has {value!r} at {' / '.join(keys)}; a claim needs a number there: "
                          "correct the claim's path, or remove the record to run it again")
  return value


# --- judging ---------------------------------------------------------------------------------------------------------


def judged(claim: Claim, figures: list) -> Found:
  """The verdict on the figures of a claim's runs."""
  known = [f for f in figures if f is not None]
  if len(known) < len(figures):
    return Found(len(known))
  values = [value for value, _ in known]
  if len(values) == 1:
    return Found(1, *known[0])
  mean, low, high = interval(values)
  held = "holds" if low > 0 and mean >= claim.least else "does not hold" if high < claim.least else "undecided"
  return Found(len(known), mean, [low, high], held)


def interval(values: list) -> tuple:
  """(mean, low, high) of the mean's 95 % t-interval over at least two values."""
  n, mean = len(values), sum(values) / len(values)
  half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
  return mean, mean - half, mean + half


# --- writing ---------------------------------------------------------------------------------------------------------


def table(rows: list) -> str:
  """Markdown: the primary claims that have all of their runs, the verdicts on them, the exploratory ones, folded, and
  how many claims of a sweep have runs without a record."""
  recorded = [row for row in rows if row[2].mean is not None]
  primary, others = ([row for row in recorded if counts(row[1]) == first] for first in (True, False))
  return "\n\n".join(part for part in (lines(primary), verdicts(rows), folded(others), waiting(rows)) if part)


def lines(rows: list) -> str:
  """A Markdown table, a line a claim; "" of none."""
  if not rows:
    return ""
  cells = [["system", "claim", "published", "here", "verdict"], ["---"] * 5]
  cells += [[title, claim.text, claim.paper, ours(claim, found), found.verdict or "–"] for title, claim, found in rows]
  return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def folded(rows: list) -> str:
  """The table of exploratory claims, which a page of GitHub's opens at a click."""
  told = f"{len(rows)} exploratory claim{'s' * (len(rows) > 1)}"
  return f"<details><summary>{told}</summary>\n\n{lines(rows)}\n\n</details>" if rows else ""


def counts(claim: Claim) -> bool:
  return claim.primary and len(claim.runs) > 1


def verdicts(rows: list) -> str:
  """The verdict on each system's primary claim, which may have several parts; "" where there is none yet."""
  parts = {}
  for title, claim, found in rows:
    if counts(claim):
      parts.setdefault(title, []).append(found.verdict)
  known = {title: found for title, found in parts.items() if None not in found}
  told = "; ".join(f"{title} {whole(found)}" + f" ({found.count('holds')} of {len(found)} parts hold)"
                   * (len(found) > 1) for title, found in known.items())
  return f"Primary claims: {told}." if told else ""


def whole(found: list) -> str:
  """The verdict on a claim whose parts have these."""
  return next((word for word in ("does not hold", "undecided") if word in found), "holds")


def waiting(rows: list) -> str:
  """The claims that have no figure, as runs are missing; "" where there are none."""
  missing = collections.Counter(name for name, _, found in rows if found.mean is None)
  told = ", ".join(f"{count} of {name}" for name, count in missing.items())
  return f"Claims whose runs are not all recorded yet: {told}." if told else ""


def ours(claim: Claim, found: Found) -> str:
  total = len(claim.runs)
  span = f" ({page.span(found.interval, page.signed)})" if found.interval else ""
  return f"{page.signed(found.mean)}{span}, {total} seed{'s' * (total > 1)}"


def split(path: str) -> tuple[str, str]:
  """What stands before and after the two marks of a file."""
  text = Path(path).read_text() if Path(path).is_file() else ""
  if [text.count(mark) for mark in MARKS] != [1, 1] or text.index(MARKS[0]) > text.index(MARKS[1]):
    raise build.UserError(f"config.into = {path!r} must have the line {MARKS[0]} and after it {MARKS[1]}, once each; "
                          "what is between them is replaced: add them where the table belongs")
  return text.split(MARKS[0])[0], text.split(MARKS[1])[1]
