"""The command line: flags, exit codes, messages without tracebacks; the tasks are stand-ins."""
import errno
import json
import re
import subprocess
import sys
import types

import pytest

from align import build, guard, main

CONFIG = "def get_config(): return {'steps': 3}\n"


def train(workdir: str, *, steps: int, lr: float = 0.1, mesh: dict = None):
  """Stands for a task."""


@pytest.fixture
def task(monkeypatch, tmp_path):
  """A stand-in for align.train that notes how it is called, and raises `task.error` if that is set."""
  (tmp_path / "mine.py").write_text(CONFIG)
  module = types.ModuleType("align.train")
  module.calls, module.error, module.train = [], None, train

  def run(config, workdir):
    module.calls.append((config, workdir))
    if module.error:
      raise module.error
    return "result"

  module.run, module.plan = run, lambda config: f"plan of {config['steps']} steps"
  monkeypatch.setitem(sys.modules, "align.train", module)
  return module


def command(tmp_path, *more, workdir="run"):
  return main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / workdir}", *more])


def test_a_command_hands_over_the_resolved_config(task, tmp_path):
  assert command(tmp_path, "--config.lr=1") == 0
  (config, workdir), = task.calls
  assert config == {"task": "train", "steps": 3, "lr": 1.0, "mesh": {"data": -1, "fsdp": 1, "model": 1}}
  assert workdir == str(tmp_path / "run") and json.loads((tmp_path / "run" / "config.json").read_text()) == config


def test_flags_may_stand_apart_from_their_values():
  given, overrides = main.parse(["--config", "a.py", "--print", "--config.x.y", "3", "--workdir=w", "--config.z==1"])
  assert given == {"config": "a.py", "print": True, "workdir": "w"}
  assert overrides == [("config.x.y", "3"), ("config.z", "=1")]


def test_run_is_the_notebook_entry(task, tmp_path):
  assert main.run({"steps": 5}, tmp_path / "n") == "result"
  assert main.run(tmp_path / "mine.py", tmp_path / "m") == "result"
  assert [c["steps"] for c, _ in task.calls] == [5, 3]


def test_print_shows_the_plan_and_touches_nothing(task, tmp_path, capsys):
  assert main.main([f"--config={tmp_path / 'mine.py'}", "--print", "--config.steps=7"]) == 0
  assert capsys.readouterr().out == "plan of 7 steps\n" and not task.calls
  assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_the_plan_of_a_pipeline_is_that_of_its_runs(task):
  runs = {"a": {"task": "train", "steps": 1}, "b": {"task": "train", "steps": 2}}
  text = main.outline({"task": "pipeline", "runs": runs})
  assert text == "=== a\n\nplan of 1 steps\n\n=== b\n\nplan of 2 steps"


def test_another_config_in_the_workdir_is_refused(task, tmp_path, capsys):
  assert command(tmp_path) == 0 and command(tmp_path) == 0
  assert command(tmp_path, "--config.mesh.fsdp=2") == 0
  assert command(tmp_path, "--config.steps=4") == 2
  error = capsys.readouterr().err
  assert "holds a run with another config" in error and "config.steps  3      4" in error and len(task.calls) == 3


@pytest.mark.parametrize("arguments,message", [
  (["--confg=x"], "error: --confg is no flag; flags are config, workdir, .*; correct it .nearest: 'config'"),
  (["config=x"], "config is no flag"),
  (["--config"], "--config has no value; it must be configs/NAME.py.*write --config=VALUE"),
  (["--config.a", "--print"], "--config.a has no value"),
  (["--workdir=x"], "--config is missing; it must be configs/NAME.py"),
  (["--config=configs/nothing.py", "--workdir=x"], "--config = 'configs/nothing.py': there is no such file"),
  (["--config=x.py"], "--workdir is missing; it must be folder of the run"),
  (["--config=x.py", "--workdir=w", "--process=0"], "--process is given alone; .* go together, add the others"),
  (["--config=x.py", "--workdir=w", "--coordinator=h:1", "--processes=two", "--process=0"],
   "--processes = 'two', --process = '0': both must be whole numbers"),
  (["--config=x.py", "--workdir=w", "--plan_json=x"], "--plan_json is given without --plan; it is .*; add --plan"),
  (["--config=x.py", "--print", "--quick"], "--quick is given without --plan; it is of a plan for TPUs.*leave it out"),
  (["--config=x.py", "--plan=cpu:1", "--plan_json=nowhere/x"], "--plan_json = 'nowhere/x' must be a file in a folder"),
  (["--config=x.py", "--plan=cpu:1", "--plan_json=."], "--plan_json = '.' must be a file .*give another file"),
])
def test_refused_commands(arguments, message, capsys):
  assert main.main(arguments) == 2
  out, error = capsys.readouterr()
  assert re.search(message, error) and error.startswith("error: ") and "Traceback" not in error and not out


def test_misspelt_options_are_refused_before_anything_is_written(task, tmp_path, capsys):
  assert command(tmp_path, "--config.stpes=4") == 2
  assert "config.stpes = '4'" in (error := capsys.readouterr().err) and "nearest: 'steps'" in error
  assert not task.calls and not (tmp_path / "run").exists()


def test_exit_codes(task, tmp_path, capsys):
  task.error = guard.Stopped("stopped after update 12; the same command continues")
  assert command(tmp_path) == guard.RESUMABLE == 75 and "the same command continues" in capsys.readouterr().err
  task.error = KeyboardInterrupt()
  assert command(tmp_path) == 75 and "interrupted; the same command continues" in capsys.readouterr().err
  task.error = build.UserError("config.x = 1: no; change it")
  assert command(tmp_path) == 2 and capsys.readouterr().err == "error: config.x = 1: no; change it\n"
  task.error = OSError(errno.ENOSPC, "No space left on device")
  assert command(tmp_path) == 2 and "free some space, then the same command continues" in capsys.readouterr().err


def test_bugs_keep_their_traceback(task, tmp_path):
  task.error = ValueError("a bug")
  with pytest.raises(ValueError, match="a bug"):
    command(tmp_path)
  task.error = build.UserError("mine")
  with pytest.raises(build.UserError):
    command(tmp_path, "--debug")
  task.error = FileNotFoundError("a bug")
  with pytest.raises(FileNotFoundError):
    command(tmp_path)


def test_help(capsys):
  assert main.main([]) == 0 and "--workdir" in capsys.readouterr().out
  assert main.main(["--help"]) == 0


def test_the_command_itself_prints_no_traceback(tmp_path):
  done = subprocess.run([sys.executable, "-m", "align.main", "--config=configs/nothing.py", f"--workdir={tmp_path}"],
                        capture_output=True, text=True, timeout=120)
  assert done.returncode == 2 and "Traceback" not in done.stderr and "error: --config = " in done.stderr
