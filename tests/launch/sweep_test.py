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


def test_holms_p_values():
  found = sweep.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
  assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})  # times 4, 3, 2, 1; never falling
  assert sweep.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_groups_have_rows_with_tests(tmp_path):
  make, _ = commands({}, tmp_path)
  names = ("s1", "s2", "s3", "s8", "s9")
  grouped = {**made(names), "groups": {"low": names[:3], "high": names[3:], "one": ["later"]},
             "runs": {**{n: {"config.seed": int(n[1])} for n in names}}, "test": {"column": "rate", "least": 0.3}}
  sweep.run(grouped, tmp_path / "w", tmp_path / "r", make)
  lines = sweep.table(grouped, tmp_path / "r").splitlines()
  assert lines[0] == "|  | runs | rate | none | Holm p of rate |"
  # .1, .2, .3: t = .2 / (.1 / sqrt 3) = 3.464, p(2) = .0742; .8, .9: t = 17, p(1) = .0374, twice that is .0748
  assert lines[2].startswith("| low | 3 | 0.200 ± 0.248 | – | 0.07") and lines[3].startswith("| high | 2 | 0.850")
  assert lines[4] == "| one | 0 | – | – | – |" and "*" not in "".join(lines)
  marked = {**grouped, "groups": {"high": names[3:]}}
  assert sweep.table(marked, tmp_path / "r").splitlines()[2].endswith("| 0.0374 * |")
  worse = {**marked, "runs": {n: {"config.seed": -int(n[1])} for n in names[3:]}}
  sweep.run(worse, tmp_path / "w2", tmp_path / "r2", make)
  assert sweep.table(worse, tmp_path / "r2").splitlines()[2].endswith("| 0.0374 |")  # told apart, and not better


def test_a_shared_stage_lies_in_one_place(tmp_path):
  shared = {**made(("a", "b")), "share": {n: {"base": "common/0/base"} for n in "ab"}}
  code = ("import json, pathlib, sys\nme = pathlib.Path(sys.argv[1])\n"
          "with open(me / 'base' / 'done', 'a') as f: f.write(me.name)\n(me / 'results.json').write_text('{}')")
  make = lambda config, workdir, overrides: [sys.executable, "-c", code, str(workdir)]
  assert sweep.run(shared, tmp_path / "w", tmp_path / "r", make) == {}
  assert (tmp_path / "w/common/0/base/done").read_text() == "ab"
  assert os.readlink(tmp_path / "w/a/base") == "../common/0/base"


def test_runs_at_a_time_never_write_a_shared_stage_at_once(tmp_path):
  """a and b share a stage, c does not: c joins a at once, b waits for the end of a."""
  shared = {**made(("a", "b", "c")), "share": {n: {"base": f"common/{n == 'c'}/base"} for n in "abc"}}
  code = ("import pathlib, sys, time\nme, end = pathlib.Path(sys.argv[1]), time.monotonic() + 30\n"
          "ended = lambda n: (me.parent / n / 'results.json').exists()\n"
          "assert me.name != 'b' or ended('a')\n"
          "while me.name == 'a' and not ended('c'):\n  assert time.monotonic() < end\n"
          "(me / 'results.json').write_text('{}')")
  make = lambda config, workdir, overrides: [sys.executable, "-c", code, str(workdir)]
  assert sweep.run(shared, tmp_path / "w", tmp_path / "r", make, jobs=2) == {}


def test_a_run_need_not_wait_for_more_than_the_stage_that_it_shares(tmp_path):
  """a notes the end of the shared stage, then waits for b, which began after that. Before, a sleeps for ten rounds of
  the sweep's loop, in which b would have begun if it did not wait."""
  shared = {**made(("a", "b")), "share": {n: {"base": "common/base"} for n in "ab"}}
  code = ("import json, pathlib, sys, time\nme, end = pathlib.Path(sys.argv[1]), time.monotonic() + 30\n"
          "note, other = me / 'base' / 'stage.json', me.parent / 'b' / 'results.json'\n"
          "if me.name == 'a':\n"
          "  note.write_text('{\"done\": false}')\n  time.sleep(0.5)\n  assert not other.exists()\n"
          "  note.write_text('{\"done\": true}')\n"
          "  while not other.exists():\n    assert time.monotonic() < end\n"
          "(me / 'results.json').write_text('{}')")
  make = lambda config, workdir, overrides: [sys.executable, "-c", code, str(workdir)]
  assert sweep.run(shared, tmp_path / "w", tmp_path / "r", make, jobs=2) == {}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind a process to cores")
def test_each_of_several_runs_has_cores_of_its_own(tmp_path):
  every = os.sched_getaffinity(0)
  assert set.union(*(sweep.cores(k, 2) for k in range(2))) == every
  code = "import os, sys, time; time.sleep(0.5); print(sorted(os.sched_getaffinity(0)))"
  child = sweep.start([sys.executable, "-c", code], tmp_path / "log", {min(every)})
  assert child.wait(60) == 0 and (tmp_path / "log").read_text() == f"[{min(every)}]\n"
  if len(every) > 1:
    assert not sweep.cores(0, 2) & sweep.cores(1, 2)


def test_a_run_may_have_a_config_of_its_own_and_records_say_what_made_them(tmp_path):
  words = sweep.command("c.py", "w", {"config": "other.py", "config.seed": 3})
  assert words[-3:] == ["--config=other.py", "--workdir=w", "--config.seed=3"]
  make, _ = commands({}, tmp_path)
  sweep.run(made(("s0",)), tmp_path / "w", tmp_path / "r", make)
  kept = json.loads((tmp_path / "r/s0.json").read_text())
  assert len(kept["config"]) == 16 and kept["code"] and f"{os.cpu_count()} cores" in kept["machine"]


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


# --- alarms ---------------------------------------------------------------------------------------------------------

TRAIN = """
import json, pathlib, sys
me = pathlib.Path(sys.argv[1])
for stage, alarm in (("clean", None), ("exploited", {"step": int(sys.argv[2])})):
  (me / stage).mkdir(parents=True)
  (me / stage / "stage.json").write_text(json.dumps({"seconds": 3.0, "done": True, "peak_memory_bytes": 5}))
  rows = [{"step": step, "time": 1.5, "heldout/a": 1 / 3, "heldout/b/total": 1.0, "heldout/b/part": 1.0,
           "guard/std/b/total": 2.0, "guard/std/b/part": 2.0, "guard/alarm": 0.0} for step in (0, 4)]
  rows.insert(1, {"step": 1, "train/loss": 1.0})
  (me / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
  if alarm:
    (me / stage / "alarm.json").write_text(json.dumps(alarm))
"""


def alarming(runs):
  return {**made(runs), "traces": {n: ["clean", "exploited"] for n in runs},
          "alarms": {kind: [[n, kind] for n in (*runs, "later")] for kind in ("clean", "exploited")}}


def test_traces_are_recorded_and_alarms_are_counted(tmp_path):
  make = lambda config, workdir, overrides: [sys.executable, "-c", TRAIN, str(workdir), str(workdir.name[1])]
  counted = alarming(("s1", "s4", "s5"))
  assert sweep.run(counted, tmp_path / "w", tmp_path / "r", make) == {}
  kept = json.loads((tmp_path / "r/s4.json").read_text())
  columns = {"step": [0, 4], "heldout/a": [0.33333] * 2, "heldout/b/total": [1.0] * 2, "guard/std/b/total": [2.0] * 2,
             "guard/alarm": [0.0] * 2}
  assert kept["traces"] == {stage: {"alarm": alarm, "columns": columns}
                            for stage, alarm in (("clean", None), ("exploited", {"step": 4}))}
  assert kept["seconds"] == 6.0 and kept["peak_memory_bytes"] == 5 and "done" not in json.dumps(kept)
  lines = sweep.table(counted, tmp_path / "r").splitlines()
  # Clopper-Pearson: 0 of 3 is below 1 - .025^(1/3) = .708, 3 of 3 above .292
  assert lines[2] == "| clean | 3 | 0 | 0.000 (0.000 to 0.708) | – |"
  assert lines[3] == "| exploited | 3 | 3 | 1.000 (0.292 to 1.000) | 4 |"
  assert sweep.proportion(0, 0) == "–" and sweep.proportion(38, 40) == "0.950 (0.831 to 0.994)"


def test_a_run_that_left_no_traces_is_in_the_log(tmp_path):
  bare = lambda config, workdir, overrides: [sys.executable, "-c", ""]
  assert sweep.run(alarming(("s1",)), tmp_path / "w", tmp_path / "r", bare) == {"s1": 1}
  assert "s1: no results" in (log := (tmp_path / "w/sweep.log").read_text())
  assert "the stages clean, exploited must evaluate" in log and not (tmp_path / "r/s1.json").exists()
