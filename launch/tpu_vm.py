"""A run on a TPU slice, from nothing to its exit code, also where the slice is taken away in between.

  python -m launch.tpu_vm run NAME --slice=v5e:4x4 --zone=ZONE [--spot] -- --config=configs/NAME.py --workdir=PLACE
  python -m launch.tpu_vm status NAME --zone=ZONE
  python -m launch.tpu_vm stop NAME --zone=ZONE [--keep]

`run` asks for the slice as a queued resource, waits for it, copies the checkout's committed files to all workers,
installs them and starts align.main on every worker with what stands behind `--`. Then it watches: a slice that was
preempted is asked for again, a run that stopped resumably (exit code 75) is started again, and any other exit code is
passed on with the end of the log. PLACE must outlive the slice, such as a bucket that --setup mounts on each worker.
The same command continues what was interrupted, also this program itself. `stop` ends the run and gives the slice back;
a `run` that still watches would start it again, so end that one first.

Everything is done by gcloud, whose login and project are used; --dry-run prints each command and runs none. Slices have
the names that --plan takes. Left out: several slices as one job, GKE.
"""
import argparse
import contextlib
import difflib
import math
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

RESUMABLE = 75                   # exit code of a run that saved and stopped
HOME = "align-run"               # a worker's folder: the checkout, log and exit code of the run
PROCESS = "^[^ ]*/python -m align[.]main"  # as pgrep finds it, and neither itself nor the shell that waits for it
PYTHON = "3.12"                  # images have an older one
GONE = ("SUSPENDED", "SUSPENDING", "DELETING")  # what a preempted slice comes to
ABSENT = "NOT_FOUND"             # what gcloud says of a name that nothing has
TRIES = 10                       # of what must not be guessed where gcloud fails


class Kind(NamedTuple):
  """A kind of TPU. prefix: of gcloud's accelerator types, whose number counts `unit` a chip. version: its image.
  shapes: on offer, as in align/topology.py."""
  prefix: str
  unit: int
  version: str
  shapes: tuple


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
         "16x16x24")
KINDS = {"v5e": Kind("v5litepod", 1, "v2-alpha-tpuv5-lite", FLAT), "v5p": Kind("v5p", 2, "v2-alpha-tpuv5", CUBES),
         "v6e": Kind("v6e", 1, "v2-alpha-tpuv6e", FLAT)}


class Failed(Exception):
  """What ends this program: a message, and its exit code."""

  def __init__(self, message: str, code: int = 2):
    super().__init__(message)
    self.code = code


class Absent(Failed):
  """There is nothing of the name that gcloud was asked about."""


class Refused(Failed):
  """gcloud ended with an error, which may be a moment's."""


def accelerator(slice_: str) -> tuple[str, str]:
  """"v5e:4x4" -> (accelerator type, image of its machines)."""
  kind, _, shape = slice_.partition(":")
  if kind not in KINDS:
    near = difflib.get_close_matches(kind, KINDS, 1)
    raise Failed(f"--slice = {slice_!r} must be a kind of {', '.join(KINDS)} with its shape, such as v5e:4x4, "
                 f"v5p:2x2x4 or v6e:2x4{f' (nearest kind: {near[0]!r})' if near else ''}; correct it")
  found = KINDS[kind]
  if shape not in found.shapes:
    raise Failed(f"--slice = {slice_!r}: {kind} comes as {', '.join(found.shapes)}; choose one of them"
                 f"{like(kind, shape)}")
  return f"{found.prefix}-{found.unit * chips(shape)}", found.version


def chips(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


def like(kind: str, shape: str) -> str:
  """" (nearest: 'v5e:2x4')", the slice with about as many chips as a shape has, the larger of two; or nothing."""
  if not re.fullmatch(r"\d+(x\d+)*", shape):
    return ""
  found = min(reversed(KINDS[kind].shapes), key=lambda each: abs(chips(each) - chips(shape)))
  return f" (nearest: {f'{kind}:{found}'!r})"


class Cloud:
  """gcloud for one slice; with `dry` commands are printed, and all goes well."""

  def __init__(self, args: argparse.Namespace):
    self.name, self.dry, self.poll = args.name, args.dry_run, args.poll
    self.where = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]

  def call(self, *words: str, dry: str = "", fails: bool = True) -> str | None:
    """What `gcloud compute tpus WORDS` printed; None where it failed and `fails` is False. dry: what is printed in its
    place on a dry run."""
    command = ["gcloud", "compute", "tpus", *words, *self.where]
    if self.dry:
      print(shlex.join(command))
      return dry
    try:
      done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
      raise Failed("gcloud is not installed, or not on PATH; install Google Cloud's command line, then run gcloud auth "
                   "login and gcloud config set project PROJECT") from error
    if done.returncode and fails:
      said = done.stderr.strip() or done.stdout.strip()
      raise (Absent if ABSENT in said else Refused)(f"{shlex.join(command)} failed: {said}")
    return None if done.returncode else done.stdout.strip()

  def insisted(self, ask: Callable) -> str:
    """What `ask` returns, which is asked again where gcloud refuses for a moment. Failed where it goes on to, or there
    is nothing of this name."""
    for left in reversed(range(TRIES)):
      try:
        return ask()
      except Refused as error:
        if not left:
          raise
        print(f"{error}; asked again", file=sys.stderr, flush=True)
        time.sleep(self.poll)

  def state(self) -> str | None:
    """Of the queued resource, None where there is none."""
    try:
      return self.insisted(lambda: self.call("queued-resources", "describe", self.name, "--format=value(state.state)",
                                             dry="ACTIVE"))
    except Absent:
      return None

  def create(self, slice_: str, spot: bool) -> None:
    kind, version = accelerator(slice_)
    self.call("queued-resources", "create", self.name, f"--node-id={self.name}", f"--accelerator-type={kind}",
              f"--runtime-version={version}", *(["--spot"] if spot else []))

  def delete(self) -> None:
    """Failed where it may still be there, and cost; that there is none is well."""
    with contextlib.suppress(Absent):
      self.insisted(lambda: self.call("queued-resources", "delete", self.name, "--force", "--quiet"))

  def copy(self, file: Path) -> None:
    self.call("tpu-vm", "scp", str(file), f"{self.name}:{file.name}", "--worker=all", "--quiet")

  def everywhere(self, script: str, dry: str = "", fails: bool = True) -> str | None:
    """Runs a line of shell on all workers."""
    return self.call("tpu-vm", "ssh", self.name, "--worker=all", "--quiet", f"--command={script}", dry=dry,
                     fails=fails)

  def busy(self) -> bool:
    """Whether a run is alive on a worker. Failed where they do not answer: a second run must not start beside it."""
    script = f"pgrep -f '{PROCESS}' > /dev/null && echo busy || echo idle"
    return "busy" in self.insisted(lambda: self.everywhere(script, dry="idle"))

  def end(self) -> None:
    """Asks the run to save and stop."""
    self.everywhere(f"pkill -TERM -f '{PROCESS}' || true", fails=False)


def packed(folder: str, dry: bool) -> Path:
  """The checkout's committed files as one archive."""
  file = Path(folder) / "checkout.tar.gz"
  command = ["git", "archive", "--format=tar.gz", f"--output={file}", "HEAD"]
  if dry:
    print(shlex.join(command))
    return file
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise Failed(f"{shlex.join(command)} failed: {done.stderr.strip()}; start this in a checkout of the repository")
  return file


def acquired(cloud: Cloud, args: argparse.Namespace) -> None:
  """Returns when the slice is there; asks for it where there is none, or none that lives."""
  while True:
    state = cloud.state()
    if state == "ACTIVE" and not cloud.dry:
      return
    if state == "FAILED":
      raise Failed(f"the queued resource {args.name} is FAILED: gcloud compute tpus queued-resources describe "
                   f"{args.name} says why; then: python -m launch.tpu_vm stop {args.name} --zone={args.zone}")
    if state in GONE:
      cloud.delete()
    if state is None or cloud.dry:
      cloud.create(args.slice, args.spot)
    if cloud.dry:
      return
    print(f"{args.name}: {state or 'asked for'}", flush=True)
    time.sleep(args.poll)


def installed(cloud: Cloud, args: argparse.Namespace) -> None:
  """The checkout and what it needs, on all workers."""
  with tempfile.TemporaryDirectory() as folder:
    cloud.copy(packed(folder, cloud.dry))
  uv, python = "$HOME/.local/bin/uv", f"{HOME}/venv/bin/python"
  steps = [f"mkdir -p {HOME}/code", f"tar -xzf checkout.tar.gz -C {HOME}/code",
           "python3 -m pip install --quiet --user uv",
           f"(test -x {python} || {uv} venv --quiet --python {PYTHON} {HOME}/venv)",
           f"{uv} pip install --quiet --python {python} '{HOME}/code[tpu]'", *([args.setup] if args.setup else [])]
  cloud.everywhere(" && ".join(steps))


def started(cloud: Cloud, args: argparse.Namespace) -> None:
  """align.main on all workers, in the background, so that a lost connection does not end it."""
  command = shlex.join(["../venv/bin/python", "-m", "align.main", "--distributed", *args.arguments])
  inner = f"{command} >> ../log 2>&1; echo $? > ../exit"
  cloud.everywhere(f"cd {HOME}/code && rm -f ../exit && (setsid nohup bash -c {shlex.quote(inner)} > /dev/null 2>&1 &)")


def codes(cloud: Cloud) -> tuple[list[int], bool]:
  """Exit codes of the workers' runs that have ended, and whether one has not."""
  said = cloud.everywhere(f"cat {HOME}/exit 2> /dev/null || echo running", dry="0", fails=False)
  words = (said or "running").split()
  return [int(word) for word in words if word.isdigit()], "running" in words


def watched(cloud: Cloud, args: argparse.Namespace) -> int | None:
  """The run's exit code, the worst of its workers; None where the slice was taken away."""
  while True:
    if cloud.state() != "ACTIVE":
      return None
    ended, going = codes(cloud)
    failed = [code for code in ended if code not in (0, RESUMABLE)]
    if failed and going:
      cloud.end()  # the others would wait for the one that failed
    if failed or not going:
      return failed[0] if failed else max(ended)
    time.sleep(args.poll)


def run(args: argparse.Namespace) -> int:
  """See the head of this file. Returns the run's exit code."""
  accelerator(args.slice)
  cloud = Cloud(args)
  for _ in range(args.restarts + 1):
    acquired(cloud, args)
    if not cloud.busy():  # else this program was interrupted, and the run was not
      installed(cloud, args)
      started(cloud, args)
    code = watched(cloud, args)
    if code is None:
      print(f"{args.name}: the slice is gone, it is asked for again", flush=True)
    elif code == RESUMABLE:
      print(f"{args.name}: stopped resumably, it is started again", flush=True)
    else:
      if code:
        print(cloud.everywhere(f"tail -n 30 {HOME}/log", fails=False) or "")
      return code
  raise Failed(f"{args.name} was restarted --restarts = {args.restarts} times and is not done; the same command "
               "continues it", RESUMABLE)


def status(args: argparse.Namespace) -> int:
  cloud = Cloud(args)
  state = cloud.state()
  print(f"{args.name}: {state or 'there is no such slice'}")
  if state == "ACTIVE":
    print(cloud.everywhere(f"cat {HOME}/exit 2> /dev/null || echo running; tail -n 3 {HOME}/log", fails=False) or "")
  return 0


def stop(args: argparse.Namespace) -> int:
  """Ends the run, which saves, and gives the slice back unless --keep."""
  cloud = Cloud(args)
  if cloud.state() == "ACTIVE":
    cloud.end()
    until = time.monotonic() + args.patience
    with contextlib.suppress(Failed):  # of workers that do not answer, which are given back all the same
      while not cloud.dry and cloud.busy() and time.monotonic() < until:
        time.sleep(args.poll)
  if not args.keep:
    cloud.delete()
  return 0


def parser() -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(prog="python -m launch.tpu_vm", description=__doc__.splitlines()[0])
  verbs = made.add_subparsers(dest="verb", required=True)
  for verb, about in (("run", "get a slice, run on it, watch"), ("status", "of slice and run"),
                      ("stop", "end the run, give the slice back")):
    own = verbs.add_parser(verb, help=about)
    own.add_argument("name", help="of the queued resource and of its node")
    own.add_argument("--zone", required=True)
    own.add_argument("--project", help="by default gcloud's own")
    own.add_argument("--poll", type=float, default=30, help="seconds between looks")
    own.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    if verb == "run":
      own.add_argument("--slice", required=True, help="such as v5e:4x4")
      own.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
      own.add_argument("--setup", help="a line of shell for each worker, before the run starts, such as a mount")
      own.add_argument("--restarts", type=int, default=100)
    if verb == "stop":
      own.add_argument("--keep", action="store_true", help="keep the slice")
      own.add_argument("--patience", type=float, default=300, help="seconds that the run has to save")
  return made


def main(argv: list | None = None) -> int:
  """The command line; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  cut = argv.index("--") if "--" in argv else len(argv)
  args = parser().parse_args(argv[:cut])
  args.arguments = argv[cut + 1:]
  try:
    if args.verb == "run" and not any(word.startswith("--config") for word in args.arguments):
      raise Failed("nothing stands behind --; give the arguments of align.main there, at least --config and --workdir")
    return {"run": run, "status": status, "stop": stop}[args.verb](args)
  except Failed as error:
    print(f"error: {error}", file=sys.stderr)
    return error.code
  except KeyboardInterrupt:
    print("\nno longer watched; the run goes on, and the same command watches it again", file=sys.stderr)
    return 130


if __name__ == "__main__":
  sys.exit(main())
