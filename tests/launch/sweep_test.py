"""The sweep runner with commands that cost nothing; what it runs in earnest is tested by quickstart_test."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import sweep

RESULTS = {"arms": {"a": {"overall": {"rate": 0.5}}}, "stages": [{"name": "x", "seconds": 2.0, "peak_memory_bytes": 7,
                                                                  "note": "/a/path"}], "curves": {"a": "/a/path"}}


def made(runs=("s0", "s1", "s2")):
  return {"config": "c.py", "runs": {n: {"config.seed": i} for i, n in enumerate(runs)},
          "columns": {"rate": ["arms", "a", "overall", "rate"], "none": ["not", "there"]}}


def commands(codes, tmp_path):
  """A `make` that exits with codes[name] and leaves results of rate number / 10; notes what was called."""
  called = []

  def make(config, workdir, overrides):
    called.append(workdir.name)
    rate = overrides["config.seed"] / 10
    results = {**RESULTS, "arms": {"a": {"overall": {"rate": rate}}}}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results))
    return [sys.executable, "-c", f"raise SystemExit({codes.get(workdir.name, 0)})"]
  return make, called


def test_what_is_recorded_is_not_run_again(tmp_path):
  make, called = commands({}, tmp_path)
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", make) == {}
  assert called == ["s0", "s1", "s2"]
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", make) == {} and called == ["s0", "s1", "s2"]
  kept = json.loads((tmp_path / "r/s1.json").read_text())
  assert kept["overrides"] == {"config.seed": 1} and kept["seconds"] == 2.0 and kept["peak_memory_bytes"] == 7
  assert "/a/path" not in json.dumps(kept)


def test_a_failure_is_named_and_the_others_go_on(tmp_path):
  make, called = commands({"s1": 3}, tmp_path)
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", make) == {"s1": 3}
  assert called == ["s0", "s1", "s2"] and not (tmp_path / "r/s1.json").exists() and (tmp_path / "r/s2.json").exists()


def test_a_stopped_run_stops_the_sweep_and_is_the_next_to_go_on(tmp_path):
  codes = {"s1": 75}
  make, called = commands(codes, tmp_path)
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", make) == {"s1": 75} and called == ["s0", "s1"]
  codes.clear()
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", make) == {} and called == ["s0", "s1", "s1", "s2"]


STOPPABLE = """
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *a: asked.append(1))
pathlib.Path("up").touch()
while not asked:
  time.sleep(0.02)
time.sleep(1)
pathlib.Path("saved").touch()
sys.exit(75)
"""
DRIVER = """
import pathlib, sys
from launch import sweep
here = pathlib.Path()
runs = {"config": "c", "runs": {"a": {}, "b": {}}, "columns": {}}
failed = sweep.run(runs, here, here / "r", lambda *given: [sys.executable, "-c", sys.argv[1]])
print(failed)
sys.exit(max(failed.values()))
"""


@pytest.mark.parametrize("number, to_all", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_a_signal_reaches_the_run_which_saves_before_the_sweep_ends(number, to_all, tmp_path):
  """Ctrl-C goes to the terminal's whole group, a cluster's signal to the sweep alone."""
  env = {**os.environ, "PYTHONPATH": os.getcwd()}
  job = subprocess.Popen([sys.executable, "-c", DRIVER, STOPPABLE], cwd=tmp_path, env=env, start_new_session=True,
                         stdout=subprocess.PIPE, text=True)
  began = time.monotonic()
  while not (tmp_path / "up").exists() and time.monotonic() < began + 60:
    time.sleep(0.02)
  (os.killpg if to_all else os.kill)(job.pid, number)
  said = job.communicate(timeout=60)[0]
  assert job.returncode == 75 and "{'a': 75}" in said and (tmp_path / "saved").exists() and "(2/2)" not in said


def test_several_at_a_time_each_with_its_own_output(tmp_path):
  """Each waits until the other is there too, so in turn they would never end well."""
  code = ("import json, pathlib, sys, time\nme, end = pathlib.Path(sys.argv[1]), time.monotonic() + 30\n"
          "me.mkdir(parents=True)\nprint('I am', me.name)\n"
          "while not all((me.parent / n).exists() for n in 'ab'):\n  assert time.monotonic() < end\n"
          "(me / 'results.json').write_text('{}')")
  make = lambda config, workdir, overrides: [sys.executable, "-c", code, str(workdir)]
  assert sweep.run(made("ab"), tmp_path / "w", tmp_path / "r", make, jobs=2) == {}
  assert [(tmp_path / f"w/{n}.log").read_text() for n in "ab"] == ["I am a\n", "I am b\n"]


def test_a_failure_is_in_the_log_and_so_is_a_run_that_left_no_results(tmp_path, capfd):
  make, _ = commands({"s0": 3}, tmp_path)
  bare = lambda config, workdir, overrides: [sys.executable, "-c", ""]
  choose = lambda *given: (bare if given[1].name == "s1" else make)(*given)
  assert sweep.run(made(), tmp_path / "w", tmp_path / "r", choose) == {"s0": 3, "s1": 1}
  log = (tmp_path / "w/sweep.log").read_text()
  assert "s0 ended with exit code 3" in log and "s1: no results in" in log and "must end in an evaluation" in log
  assert "s2" not in log and (tmp_path / "r/s2.json").exists()


def test_a_record_of_another_run_is_refused_rather_than_counted(tmp_path):
  make, called = commands({}, tmp_path)
  sweep.run(made(("s0",)), tmp_path / "w", tmp_path / "r", make)
  changed = {**made(("s0",)), "runs": {"s0": {"config.seed": 7}}}
  for use in (lambda: sweep.run(changed, tmp_path / "w", tmp_path / "r", make),
              lambda: sweep.table(changed, tmp_path / "r")):
    with pytest.raises(ValueError, match="'config.seed': 0.*'config.seed': 7.*remove the record"):
      use()
  (tmp_path / "r/s0.json").write_text('{"overrides": ')
  with pytest.raises(ValueError, match="s0.json.*cannot be read"):
    sweep.table(changed, tmp_path / "r")
  assert called == ["s0"]


def test_the_table_has_the_t_interval(tmp_path):
  make, _ = commands({}, tmp_path)
  sweep.run(made(("s0", "s1", "s2")), tmp_path / "w", tmp_path / "r", make)
  lines = sweep.table(made(("s0", "s1", "s2", "s3")), tmp_path / "r").splitlines()
  # rates 0, .1, .2: mean .1, standard deviation .1, t(.975, 2) = 4.3027, half width 4.3027 * .1 / sqrt(3) = .2484
  assert lines[0] == "| run | rate | none |" and lines[3] == "| s1 | 0.100 | – |"
  assert lines[5] == "| mean and 95 % t-interval | 0.100 ± 0.248 | – |" and lines[-1] == "Not run yet: s3."


@pytest.mark.parametrize("text, message", [(None, "no such file"), ("x = 1", "no get_sweep"),
                                           ("def get_sweep(): return {'config': 'a', 'columns': {}}", "add runs")])
def test_a_file_that_is_no_sweep_is_refused(text, message, tmp_path, capsys):
  path = tmp_path / "s.py"
  if text:
    path.write_text(text)
  assert sweep.main([f"--sweep={path}"]) == 2 and message in capsys.readouterr().err


def test_no_jobs_are_refused(capsys):
  assert sweep.main(["--sweep=configs/sweeps/quickstart.py", "--jobs=0"]) == 2
  assert "--jobs = 0 must be at least 1" in capsys.readouterr().err


def test_the_shipped_sweep_fixes_its_seeds():
  found = sweep.load("configs/sweeps/quickstart.py")
  assert [r["config.seed"] for r in found["runs"].values()] == [0, 1, 2, 3, 4]
  assert sweep.command(found["config"], "w", found["runs"]["seed3"])[-1] == "--config.seed=3"
