"""python -m align.main --config=configs/NAME.py --workdir=DIR [--config.any.key=value] [--print | --plan=v5e:4x4]

In a notebook: `main.run(config, workdir)`. Exit codes: 0 done, 2 something for the user to mend, 3 stopped by the
guard against reward hacking, 75 stopped and resumable by the same command.
"""
import errno
import importlib
import json
import sys
from pathlib import Path

import jax
from absl import flags

from align import build, guard, topology
from align import config as configs
from align.build import UserError

FLAGS = {
  "config": "configs/NAME.py, or FILE.py:argument", "workdir": "folder of the run; the same command continues it",
  "print": "show what would run (config, parameters, batches), then exit",
  "plan": "a TPU slice such as v5e:4x4, v5e for the smallest that is enough, or cpu:64: show what the run would need "
          "there, by compiling it, then exit",
  "plan_json": "file for the numbers of the plan",
  "quick": "of a plan for TPUs: the compiler does not look for speed, which takes most of its time; memory is some "
           "percent off",
  "debug": "show tracebacks of user errors",
  "distributed": "join the job that the cluster's environment describes",
  "coordinator": "host:port of process 0", "processes": "number of processes", "process": "number of this process",
}
SWITCHES = ("print", "quick", "debug", "distributed", "help")


def parse(arguments: list, known: dict = FLAGS, switches: tuple = SWITCHES) -> tuple[dict, list]:
  """["--workdir=x", "--config.a=1"] -> ({"workdir": "x"}, [("a", "1")]). Raises UserError on an unknown flag."""
  given, overrides, rest = {}, [], list(arguments)
  while rest:
    name, equals, value = rest.pop(0).partition("=")
    bare = name.removeprefix("--")
    if name == bare or bare not in (*known, "help") and not bare.startswith("config."):
      raise UserError(f"{name} is no flag; flags are {', '.join(known)} and config.any.key, written --name=value; "
                      f"correct it{build.nearest(bare, known)}")
    if not equals and bare not in switches:
      if not rest or rest[0].startswith("--"):
        raise UserError(f"{name} has no value; it must be {known.get(bare, 'a value for this option')}; "
                        f"write {name}=VALUE")
      value = rest.pop(0)
    if bare.startswith("config."):
      overrides.append((bare, value))
    else:
      given[bare] = value.lower() not in ("false", "0") if bare in switches else value
  return given, overrides


def join(given: dict) -> None:
  """Joins the distributed job that the flags describe, if any; before jax touches a device."""
  named = [k for k in ("coordinator", "processes", "process") if k in given]
  if named and len(named) < 3:
    raise UserError(f"--{named[0]} is given alone; --coordinator, --processes and --process go together, "
                    "add the others")
  if named:
    try:
      count, index = int(given["processes"]), int(given["process"])
    except ValueError as e:
      raise UserError(f"--processes = {given['processes']!r}, --process = {given['process']!r}: both must be whole "
                      "numbers; correct them") from e
    jax.distributed.initialize(given["coordinator"], count, index)
  elif given.get("distributed"):
    jax.distributed.initialize()


def prepare() -> None:
  """Compiled programs are kept on disk, and absl's flags count as parsed (Grain's workers ask for them)."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "align" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  flags.FLAGS.mark_as_parsed()


def run(config, workdir, print_only: bool = False):
  """Runs a config (a dict, a ConfigDict or a path) in `workdir` and returns what its task returns.

  Resolves it, claims the workdir, hands over. Raises UserError before any work for what cannot be right."""
  config = build.resolve(configs.load(config) if isinstance(config, (str, Path)) else config)
  if print_only:
    return print(outline(config))
  prepare()
  configs.claim(config, workdir, jax.process_index() == 0)
  return importlib.import_module(f"align.{config['task']}").run(config, str(workdir))


def outline(config: dict) -> str:
  """What --print shows: the task's own plan, that of every run of a pipeline, else the resolved config."""
  if isinstance(config.get("runs"), dict):
    return "\n\n".join(f"=== {name}\n\n{outline(spec)}" for name, spec in config["runs"].items())
  module = importlib.import_module(f"align.{config['task']}")
  return module.plan(config) if hasattr(module, "plan") and not awaited(config) else json.dumps(config, indent=1)


def awaited(config: dict) -> str:
  """"@name" where another run of the pipeline writes the folder of this run's model, without which its parameters are
  not known; else ""."""
  model = config.get("model") or (config.get("policy") or {}).get("model") or ""
  return model if model.startswith("@") else ""


def plan(given: dict, overrides: list) -> None:
  """--plan: shows what every training run of a config would need on a topology. UserError where one does not fit."""
  file = given.get("plan_json")
  if file and (Path(file).is_dir() or not Path(file).parent.is_dir()):  # before minutes of compiling
    raise UserError(f"--plan_json = {file!r} must be a file in a folder that is there; make the folder, or give "
                    "another file")
  topology.ready(given["plan"])
  from align import plan as planning  # which imports what must not be touched before
  config = configs.override(configs.load(given["config"]), overrides)
  source = {"config": given["config"], "overrides": [f"{key}={value}" for key, value in overrides]}
  planning.show(config, given["plan"], source, file, given.get("quick", False))


def command(arguments: list) -> None:
  given, overrides = parse(arguments)
  if given.get("help") or not arguments:
    return print(__doc__ + "\n" + build.table([(f"  --{k}", v) for k, v in FLAGS.items()]))
  for name in ("config",) if given.get("print") or given.get("plan") else ("config", "workdir"):
    if name not in given:
      raise UserError(f"--{name} is missing; it must be {FLAGS[name]}; add --{name}=...")
  if given.get("plan"):
    return plan(given, overrides)
  for name in ("plan_json", "quick"):
    if given.get(name):
      raise UserError(f"--{name} is given without --plan; it is {FLAGS[name]}; add --plan=..., or leave it out")
  join(given)
  run(configs.override(configs.load(given["config"]), overrides), given.get("workdir"), given.get("print", False))


LOST = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "make it writable",
        errno.EACCES: "allow access to it", errno.EPERM: "allow access to it", errno.EIO: "look at the disk"}


def main(arguments: list | None = None) -> int:
  """The command line; returns the exit code."""
  arguments = sys.argv[1:] if arguments is None else arguments
  try:
    with guard.interruptible():
      command(arguments)
    return 0
  except (guard.Stopped, KeyboardInterrupt) as e:
    print(f"\n{e if isinstance(e, guard.Stopped) else 'interrupted; the same command continues'}", file=sys.stderr)
    return guard.RESUMABLE
  except (UserError, OSError) as e:
    known = isinstance(e, UserError) or e.errno in LOST
    if "--debug" in arguments or not known:
      raise
    more = "" if isinstance(e, UserError) else f"; {LOST[e.errno]}, then the same command continues"
    print(f"error: {e}{more}", file=sys.stderr)
    return getattr(e, "code", 2)


if __name__ == "__main__":
  sys.exit(main())
