"""Seedance's recipe: arms of equal cost, one composite for all, and a reduced run from end to end."""
import json

import pytest
from commands import ROOT, command

from configs.recipes import seedance


def updates_of(run: dict) -> int:
  return run["algorithm"].get("updates", 1)


def test_arms_cost_the_same():
  per, spent = seedance.costs(), {}
  for name, run in seedance.arms().items():
    spent[name] = run["steps"] // updates_of(run) * per[name] + (seedance.COLLECTED if name == "dpo" else 0)
  assert all(0.94 < passes / seedance.BUDGET <= 1 for passes in spent.values()), spent


def test_all_methods_are_judged_by_the_same_sum():
  config = seedance.get_config().to_dict()["runs"]
  online = [config[name]["reward"] for name in ("maximised", "grpo", "ppo")]
  assert all(reward == online[0] for reward in online)
  collected = config["pairs"]["rewards"]["judge"]
  assert collected["rewards"] == online[0]["rewards"] and collected["clip"] == online[0]["clip"]
  assert set(config["pairs"]["models"]) == {f"judge/{name}" for name in online[0]["rewards"]}


SMALL = (
  *(f"--config.runs.{name}.steps=2" for name in ("seen", "content", "motion", "looks", "maximised", "dpo", "control")),
  *(f"--config.runs.{name}.optim.warmup_steps=0" for name in ("seen", "content", "motion", "looks")),
  *(f"--config.runs.{name}.steps=4" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.batch=2" for name in ("maximised", "dpo", "control")),
  *(f"--config.runs.{name}.batch=4" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.group=2" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.calibrate=8" for name in ("maximised", "grpo", "ppo")),
  "--config.runs.pairs.data.count=6", "--config.runs.pairs.samples=4", "--config.runs.pairs.batch=24",
  "--config.runs.evaluate.data.count=6", "--config.runs.evaluate.batch=12")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reduced_run_from_end_to_end(tmp_path):
  """It ends in a report that shows clips of all arms, and the same command does nothing again."""
  print("at a reduced size:", *SMALL)
  line = ("align.main", f"--config={ROOT}/configs/recipes/seedance.py", "--workdir=w", *SMALL)
  code, said = command(*line, where=tmp_path)
  assert code == 0 and "Traceback" not in said, said
  results = json.loads((tmp_path / "w/results.json").read_text())
  assert set(results["arms"]) == {"base", "maximised", "dpo", "ppo", "grpo", "control"}
  assert {"scenes/shape", "scenes/color", "scenes/motion"} <= set(results["scores"]["maximised"])
  assert (tmp_path / "w/report.html").read_text().count("data:image") >= 6
  code, said = command(*line, where=tmp_path)
  assert code == 0 and "[1/" not in said, said
