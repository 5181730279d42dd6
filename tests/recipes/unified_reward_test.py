"""The recipe of UnifiedReward: constructions that cost and learn the same, labels for the judge, and a reduced run."""
import json
import shutil
from pathlib import Path

import judges
import numpy as np
import pytest
from commands import command

from align import build, claims, config
from align.datasets import pairs
from configs.recipes import unified_reward as recipe
from launch import sweep

FILE = "configs/recipes/unified_reward.py"
SWEEP = "configs/sweeps/unified_reward.py"


@pytest.fixture(scope="module")
def runs():
  return build.resolve(config.load(FILE))["runs"]


def test_constructions_differ_in_their_pairs_alone(runs):
  arms = {way: runs[way] for way in recipe.WAYS}
  assert {way: run["data"].pop("path") for way, run in arms.items()} == {
    way: f"@pairs/pairs/{way}" for way in recipe.WAYS}
  assert all(run == arms["random"] for run in arms.values())
  assert set(runs["evaluate"]["arms"]) == {"base", "control", *recipe.WAYS}
  assert (runs["evaluate"]["primary"], runs["evaluate"]["baseline"]) == ("two_stage", "base")


def test_all_are_judged_at_equal_cost_and_the_control_trains_as_long(runs):
  found, learned, control = runs["pairs"], runs["two_stage"], runs["control"]
  assert found["calls"] == 20 == found["samples"] and found["rewards"]["rank"]["scheme"] == "adjacent"
  assert found["ways"] == recipe.WAYS and found["pairs"] == 1
  sampled = found["data"]["count"] * found["samples"] * (8 + 1)
  passes = sampled + learned["steps"] * learned["batch"] * 2 * (3 + 1)
  assert 0 <= passes - control["steps"] * control["batch"] * 3 < control["batch"] * 3


def test_prompts_and_scenes_are_never_those_of_another_stage(runs):
  seeds = [runs["labels"]["data"]["seed"], runs["pairs"]["data"]["seed"]]
  assert len(set(seeds)) == 2 and runs["evaluate"]["data"]["split"] == "test"
  assert {runs[name]["data"]["split"] for name in ("labels", "pairs", "control")} == {"train"}
  asked = [runs[name]["data"]["seed"] for name in ("answers", "asked")] + [runs["judge"]["data"]["data"]["seed"]]
  assert len(set(asked)) == 3 and runs["asked"]["data"] == runs["asked_again"]["data"]


def test_every_seed_has_the_same_judge(runs):
  made = sweep.load(SWEEP)
  assert len(made["runs"]) == 5 and all(runs[name]["seed"] == 0 for name in ("labels", "judge", "talker"))
  assert [one["config.seed"] for one in made["runs"].values()] == [*range(5)]
  assert {tuple(places) for places in made["share"].values()} == {("labels", "judge", "talker")}
  first, *_ = claims.read(SWEEP)
  assert first.primary and first.path == ["differences", "two_stage - random", "overall", "difference"]


TINY = {
  "labels": {"data.count": 12, "samples": 4, "pairs": 2, "batch": 48},
  "judge": {"steps": 2, "batch": 8, "optim.warmup_steps": 1},
  "pairs": {"data.count": 12, "samples": 4, "calls": 4, "batch": 48},
  **{way: {"steps": 2, "batch": 8} for way in recipe.WAYS}, "control": {"steps": 2, "batch": 8},
  "talker": {"steps": 2, "batch": 8, "optim.warmup_steps": 1}, "answerer": {"steps": 2, "batch": 8},
  "answers": {"data.count": 12, "samples": 4, "batch": 48, "policy.temperature": 2.0},
  "asked": {"data.count": 8, "batch": 8}, "asked_again": {"data.count": 8, "batch": 8},
  "evaluate": {"data.count": 12, "samples": 1, "batch": 16},
}


def reduced():
  """The recipe at a reduced size, with judges that learned nothing replaced by others."""
  made = config.override(config.load(FILE), [f"config.runs.{run}.{name}={value}" for run, values in TINY.items()
                                             for name, value in values.items()])
  rank = {"kind": "pair_v1_qwen", "scheme": "adjacent"}
  truth = {name: made["runs"][name]["rewards"]["truth"] for name in ("pairs", "answers")}
  answers = {"name": "judges:answers", "model": "judge"}
  made["runs"]["pairs"]["rewards"] = {"points": {"name": "judges:media"}, "rank": {"name": "judges:media", **rank},
                                      "truth": truth["pairs"]}
  made["runs"]["answers"]["rewards"] = {"points": answers, "rank": {**answers, **rank}, "truth": truth["answers"]}
  return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reduced_run_ends_in_a_report_and_goes_on_where_it_was(tmp_path):
  (tmp_path / "reduced.json").write_text(json.dumps(reduced()))
  (tmp_path / "reduced.py").write_text("import json\n\n\ndef get_config():\n  return json.load(open('reduced.json'))\n")
  shutil.copy(Path(judges.__file__), tmp_path)

  def run():
    code, said = command("align.main", "--config=reduced.py", "--workdir=w", where=tmp_path)
    assert code == 0 and "report: " in said, said
    return json.loads((tmp_path / "w/results.json").read_text())
  results, place = run(), tmp_path / "w"
  assert set(results["arms"]) == {"base", "control", *recipe.WAYS}
  kept = sweep.record(results, {})
  for way in recipe.WAYS:
    found = kept["collected"]["pairs"]["ways"][way]
    assert found["calls"] == (0 if way == "random" else 4) and found["audit"]["right"]["count"] <= found["pairs"]
    assert pairs.make(str(place / "pairs/pairs" / way)).size == found["pairs"]
  for entry in sweep.load(SWEEP)["claims"]:
    value = sweep.reach(kept, entry["path"])
    assert value is None and entry["path"][0] == "examined" or np.isfinite(value)
  stage = place / "two_stage/stage.json"
  stage.write_text(json.dumps({**json.loads(stage.read_text()), "done": False}))  # as if it had been interrupted
  (place / "evaluate/stage.json").unlink()
  assert run()["arms"]["two_stage"]["overall"] == results["arms"]["two_stage"]["overall"]
