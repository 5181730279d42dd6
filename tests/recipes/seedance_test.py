"""Seedance's recipe: arms of equal cost, one composite for all, and a reduced run from end to end."""
import json

import pytest
from commands import ROOT, command

from configs.recipes import seedance


def passes(run: dict) -> int:
  """Forward passes of the network on one clip, from what a run does: a gradient is two more than its forward pass."""
  method, samples = run["algorithm"], run["batch"] * run.get("group", 1)
  steps, kind = method.get("steps"), method["name"]
  if kind in ("grpo", "ppo"):  # chains and their scores; every kept decision once, of PPO all that have noise
    learned = samples * 3 * (method["size"] if kind == "grpo" else steps - 1)
    return run["steps"] // method["updates"] * (samples * (steps + 1) + learned)
  each = {"refl": lambda: steps + 3 + 4, "dpo": lambda: 2 * (3 + 1), "sft": lambda: 3}[kind]()
  return run["steps"] * samples * each


def test_arms_cost_the_same():
  runs = seedance.get_config().to_dict()["runs"]
  pairs = runs["pairs"]
  collected = pairs["data"]["count"] * pairs["samples"] * (runs["dpo"]["policy"]["steps"] + 1)
  spent = {name: passes(runs[name]) + (collected if name == "dpo" else 0)
           for name in ("maximised", "dpo", "ppo", "grpo", "control")}
  assert all(0.94 < count / seedance.BUDGET <= 1 for count in spent.values()), spent


def test_all_methods_are_judged_by_the_same_sum():
  config = seedance.get_config().to_dict()["runs"]
  online = [config[name]["reward"] for name in ("maximised", "grpo", "ppo")]
  assert all(reward == online[0] for reward in online)
  collected = config["pairs"]["rewards"]["judge"]
  assert collected["rewards"] == online[0]["rewards"] and collected["clip"] == online[0]["clip"]
  assert set(config["pairs"]["models"]) == {f"judge/{name}" for name in online[0]["rewards"]}


def test_a_second_round_differs_from_a_longer_first_one_in_one_reward_alone():
  runs = seedance.get_config().to_dict()["runs"]
  second, longer = runs["second"], runs["longer"]
  assert second["start"].pop("reward/content") == "@content_2" and longer["start"].pop("reward/content") == "@content"
  assert second == longer and 0.9 < 2 * passes(second) / passes(runs["maximised"]) <= 1
  assert runs["labels"]["data"]["seed"] != runs["pairs"]["data"].get("seed", 0)
  assert runs["content_2"]["data"]["path"].startswith("@labels/") and runs["labels"]["model"] == "@maximised"


FEEDBACK = ("maximised", "second", "longer")
SMALL = (
  *(f"--config.runs.{name}.steps=2" for name in ("seen", "content", "motion", "looks", "content_2", *FEEDBACK, "dpo",
                                                "control")),
  *(f"--config.runs.{name}.optim.warmup_steps=0" for name in ("seen", "content", "motion", "looks", "content_2")),
  *(f"--config.runs.{name}.steps=4" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.batch=2" for name in (*FEEDBACK, "dpo", "control", "content_2")),
  *(f"--config.runs.{name}.batch=4" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.group=2" for name in ("grpo", "ppo")),
  *(f"--config.runs.{name}.calibrate=8" for name in (*FEEDBACK, "grpo", "ppo")),
  *(f"--config.runs.{name}.{option}" for name in ("pairs", "labels") for option in ("data.count=6", "samples=4",
                                                                                    "batch=24")),
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
  assert set(results["arms"]) == {"base", "maximised", "second", "longer", "dpo", "ppo", "grpo", "control"}
  assert {"scenes/shape", "scenes/color", "scenes/motion"} <= set(results["scores"]["maximised"])
  assert (tmp_path / "w/report.html").read_text().count("data:image") >= 6
  code, said = command(*line, where=tmp_path)
  assert code == 0 and "[1/" not in said, said
