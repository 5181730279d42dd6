"""The sweep runner with commands that cost nothing; what it runs in earnest is tested by quickstart_test."""
import json
import sys

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


def test_the_shipped_sweep_fixes_its_seeds():
  found = sweep.load("configs/sweeps/quickstart.py")
  assert [r["config.seed"] for r in found["runs"].values()] == [0, 1, 2, 3, 4]
  assert sweep.command(found["config"], "w", found["runs"]["seed3"])[-1] == "--config.seed=3"
