"""A composite reward calibrated on what the run begins from."""
import json

import numpy as np
import pytest

from align import main
from align.build import UserError

MIX = {"name": "mix", "normalise": "frozen", "weights": {"b": 0.5},
       "rewards": {"a": {"name": "toy:reward"}, "b": {"name": "toy:reward", "where": "host"}}}
RUN = {"task": "train", "steps": 2, "batch": 8, "group": 4, "policy": {"name": "toy:policy"}, "reward": MIX,
       "data": {"name": "toy:data", "media": False}, "algorithm": {"name": "grpo", "clip": 1.0},
       "optim": {"name": "sgd", "lr": 0.0}, "log_every": 1, "calibrate": 64, "mesh": {"data": 8}}


def first_row(workdir):
  return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])


def test_scores_of_the_base_have_mean_zero_and_both_parts_count_as_weighted(tmp_path):
  main.run(RUN, tmp_path / "run")
  found = json.loads((tmp_path / "run/calibration.json").read_text())
  assert set(found) == {"a", "b"} and found["a"]["std"] > 0
  assert found["a"]["mean"] == pytest.approx(found["b"]["mean"], abs=1e-3)  # the same reward, on the host
  row = first_row(tmp_path / "run")
  expected = 1.5 * (row["experience/part_a"] - found["a"]["mean"]) / found["a"]["std"]
  assert row["experience/reward_mean"] == pytest.approx(expected, abs=2e-2)
  assert abs(row["experience/reward_mean"]) < 1


def test_a_run_that_continues_keeps_its_statistics(tmp_path):
  (tmp_path / "run").mkdir()
  mine = {"a": {"mean": 0.0, "std": 0.5}, "b": {"mean": 0.0, "std": 0.25}}
  (tmp_path / "run/calibration.json").write_text(json.dumps(mine))
  main.run(RUN, tmp_path / "run")
  row = first_row(tmp_path / "run")
  np.testing.assert_allclose(row["experience/reward_mean"], row["experience/part_a"] * (2 + 0.5 * 4), rtol=1e-4)


def test_statistics_of_another_reward_are_refused(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/calibration.json").write_text('{"a": {"mean": 0}}')
  with pytest.raises(UserError, match="calibration.json' is not the calibration of this reward.*remove it"):
    main.run(RUN, tmp_path / "run")
