"""Seedance's recipe: arms of equal cost, one composite for all, a refiner that begins as the base, and reduced runs of
both pipelines from end to end."""
import json

import numpy as np
import pytest
from commands import ROOT, command

from align import assemble, build, tree
from align.datasets import samples
from configs.recipes import seedance
from diffusion import folder


def passes(run: dict) -> int:
  """Forward passes of the network on one clip, from what a run does: a gradient is two more than its forward pass."""
  method, samples = run["algorithm"], run["batch"] * run.get("group", 1)
  steps, kind = method.get("steps"), method["name"]
  if kind in ("grpo", "ppo"):  # chains and their scores; every kept decision once, of PPO all that have noise
    learned = samples * 3 * (method["size"] if kind == "grpo" else steps - 1)
    return run["steps"] // method["updates"] * (samples * (steps + 1) + learned)
  each = {"refl": lambda: steps + 3 + 4, "dpo": lambda: 2 * (3 + 1), "sft": lambda: 3, "distill": lambda: 1 + 1 + 3}
  each = each[kind]()
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
  assert {**collected, "normalise": "frozen"} == online[0] and collected["normalise"] == "batch"
  assert set(config["pairs"]["models"]) == {f"judge/{name}" for name in online[0]["rewards"]}


def test_a_second_round_differs_from_a_longer_first_one_in_one_reward_alone():
  runs = seedance.get_config().to_dict()["runs"]
  second, longer = runs["second"], runs["longer"]
  assert second["start"].pop("reward/content") == "@content_2" and longer["start"].pop("reward/content") == "@content"
  labelled = runs["labels"]["data"]["count"] * runs["labels"]["samples"] * (second["policy"]["steps"] + 1)
  assert 0.95 < (passes(second) + labelled) / passes(longer) < 1.05  # clips to label are paid for
  assert 0.9 < 2 * passes(second) / passes(runs["maximised"]) <= 1
  assert second.pop("steps") < longer.pop("steps") and second == longer
  assert second["data"].pop("seed") and second["data"] == runs["maximised"]["data"]
  assert runs["labels"]["data"]["seed"] != runs["pairs"]["data"].get("seed", 0)
  assert runs["content_2"]["data"]["path"].startswith("@labels/") and runs["labels"]["model"] == "@maximised"


REFINERS = pytest.mark.parametrize("part, few", [("refiner", 2), ("refiner_1", 1)])


def runs_of(part: str) -> dict:
  return seedance.get_config(part).to_dict()["runs"]


def test_rates_are_tuned_on_the_arms_of_one_round():
  tuned, whole = runs_of("tuning"), runs_of("base")
  second = {"labels", "content_2", "second", "longer"}
  assert tuned["evaluate"].pop("arms").keys() == whole["evaluate"].pop("arms").keys() - second
  asked = tuned["evaluate"].pop("data")
  assert asked["split"] == "train" and asked["seed"] != tuned["maximised"]["data"].get("seed", 0)
  assert whole["evaluate"].pop("data")["split"] == "test"
  assert tuned == {name: run for name, run in whole.items() if name not in second}


def test_a_reward_alone_differs_from_all_in_that_alone_and_witnesses_are_maximised_by_none():
  runs = runs_of("single")
  assert runs["maximised"] == runs_of("base")["maximised"]
  for name, part in seedance.PARTS.items():
    run = runs[f"{name}_alone"]
    assert run.pop("reward") == {**seedance.COMPOSITE, "rewards": {name: part}, "weights": None}
    assert run.pop("start") == {"policy": "clips", f"reward/{name}": f"@{name}"}
    assert run == {key: value for key, value in runs["maximised"].items() if key not in ("reward", "start")}
  verdict = runs["evaluate"]
  for name, place in verdict["models"].items():
    own, witness = runs[name.removesuffix("_witness")], runs[place.removeprefix("@")]
    assert verdict["rewards"][name] == witness.pop("reward") == seedance.WITNESSES[name.removesuffix("_witness")]
    assert witness["data"].pop("seed") != own["data"].get("seed", 0) and witness.pop("seed")
    assert witness == {key: value for key, value in own.items() if key != "reward"}
    assert not any(place in run.get("start", {}).values() for run in runs.values())


@REFINERS
def test_the_refiner_s_control_costs_what_distillation_and_feedback_do(part, few):
  runs = runs_of(part)
  short, longer = runs[f"refined_{few}"], runs[f"refined_{few}_control"]
  spent = passes(short) + passes(runs[f"refined_{few}_rlhf"])
  assert 0.98 < passes(longer) / spent <= 1
  assert longer.pop("steps") > short.pop("steps") and longer == short


@REFINERS
def test_the_refiner_is_judged_by_the_composite_at_its_own_resolution(part, few):
  runs, small = runs_of(part), runs_of("base")
  fine, coarse = runs[f"refined_{few}_rlhf"]["reward"], small["maximised"]["reward"]
  sides = {run["data"]["size"] for run in runs.values() if "size" in run.get("data", {})}
  assert sides == {runs["refined_8"]["policy"]["size"]} == {32}
  for name in fine["rewards"]:
    assert runs[name]["reward"] == fine["rewards"][name] and small[name]["reward"] == coarse["rewards"][name]
  assert {**fine, "rewards": 0} == {**coarse, "rewards": 0} and set(fine["rewards"]) == set(coarse["rewards"])


@REFINERS
def test_few_steps_are_those_that_it_learns_feedback_and_is_sampled_in(part, few):
  runs = runs_of(part)
  own = {runs[f"refined_{few}{more}"]["policy"]["steps"] for more in ("", "_rlhf", "_control")}
  distilled, fed = runs[f"refined_{few}"]["algorithm"], runs[f"refined_{few}_rlhf"]["algorithm"]
  arms = runs["evaluate"]["arms"]
  assert {*own, distilled["segments"], fed["steps"], arms[f"undistilled_{few}"]["steps"]} == {few}
  assert distilled["steps"] == runs["refined_8"]["policy"]["steps"] == 8 and runs["evaluate"].get("steps") is None
  assert set(arms) == {"base", f"undistilled_{few}", *(name for name in runs if name.startswith("refined_"))}


def test_the_refiner_begins_as_the_base_that_does_not_look_at_what_it_enlarges():
  run = build.resolve(seedance.get_config("refiner"))["runs"]["refined_8"]
  made, where = assemble.prospect({k: v for k, v in run.items() if k != "task"})
  found = assemble.load_start(where.shapes, run["start"], where.shardings, made.policy.low[-1])
  base = {f"base/{name}": leaf for name, leaf in tree.flatten(folder.load("clips")).items()}
  stem = "base/net/stem/kernel"  # inputs: (frame before, this, after), each with (what is denoised, the low resolution)
  looked = found.pop(stem).reshape(3, 3, 3, 2, 3, -1)
  assert found.keys() == base.keys() - {stem} == tree.flatten({"base": where.shapes["base"]}).keys() - {stem}
  np.testing.assert_array_equal(looked[..., 0, :, :].reshape(base[stem].shape), base[stem])
  assert not looked[..., 1, :, :].any() and all((found[name] == base[name]).all() for name in found)


def test_a_pipeline_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="how = 'refine': 'refine' is not one of base, tuning, single, "
                                         "refiner, refiner_1;"):
    seedance.get_config("refine")


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


def ran(where, part: str, options: tuple) -> dict:
  """The results of a reduced run, whose report shows clips; the same command does nothing again."""
  print("at a reduced size:", *options)
  line = ("align.main", f"--config={ROOT}/configs/recipes/seedance.py:{part}", "--workdir=w", *options)
  code, said = command(*line, where=where)
  assert code == 0 and "Traceback" not in said, said
  assert (where / "w/report.html").read_text().count("data:image") >= 6
  code, said = command(*line, where=where)
  assert code == 0 and "[1/" not in said, said
  return json.loads((where / "w/results.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reduced_run_from_end_to_end(tmp_path):
  results = ran(tmp_path, "base", SMALL)
  assert set(results["arms"]) == {"base", "maximised", "second", "longer", "dpo", "ppo", "grpo", "control"}
  assert {"scenes/shape", "scenes/color", "scenes/motion"} <= set(results["scores"]["maximised"])


ALONE = tuple(f"{name}_alone" for name in seedance.PARTS)
WITNESSES = tuple(f"{name}_witness" for name in seedance.WITNESSES)
SINGLE = (
  *(f"--config.runs.{name}.steps=2" for name in ("seen", *seedance.PARTS, *WITNESSES, "maximised", *ALONE)),
  *(f"--config.runs.{name}.optim.warmup_steps=0" for name in ("seen", *seedance.PARTS, *WITNESSES)),
  *(f"--config.runs.{name}.{option}" for name in ("maximised", *ALONE) for option in ("batch=2", "calibrate=8")),
  "--config.runs.evaluate.data.count=6", "--config.runs.evaluate.batch=12")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reduced_run_of_each_reward_alone(tmp_path):
  results = ran(tmp_path, "single", SINGLE)
  assert set(results["arms"]) == {"base", "maximised", *ALONE}
  assert all({f"{name}/total" for name in WITNESSES} < set(results["scores"][arm]) for arm in results["arms"])


def fine(refined: tuple) -> tuple:
  """Overrides that leave two updates of everything."""
  return (
    *(f"--config.runs.{name}.steps=2" for name in ("seen", "content", "motion", "looks", *refined)),
    *(f"--config.runs.{name}.optim.warmup_steps=0" for name in ("seen", "content", "motion", "looks", "refined_8")),
    *(f"--config.runs.{name}.batch=2" for name in ("content", "motion", "looks", *refined)),
    f"--config.runs.{refined[-1]}.calibrate=4", "--config.runs.low.data.count=4", "--config.runs.held.data.count=6",
    *(f"--config.runs.{name}.batch={size}" for name, size in (("seen", 4), ("low", 4), ("held", 6), ("evaluate", 6))))


@REFINERS
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reduced_run_of_the_refiner_from_end_to_end(part, few, tmp_path):
  """All arms enlarge the same clips, those of the arm `base`."""
  refined, plain = ("refined_8", *(f"refined_{few}{what}" for what in ("", "_control", "_rlhf"))), f"undistilled_{few}"
  results = ran(tmp_path, part, fine(refined))
  assert set(results["arms"]) == {"base", plain, *refined} and results["primary"] == f"refined_{few}_rlhf"
  images = {arm: np.load(tmp_path / f"w/evaluate/samples_{arm}.npz")["images"].astype(int) for arm in results["arms"]}
  low = samples.make(str(tmp_path / "w/held/samples"), "low")
  shown = np.stack([low.record(i)["low"] for i in range(low.size)])[:, None]
  np.testing.assert_allclose(images["base"], shown, atol=1)
  assert all(images[arm].shape == (6, 1, 6, 32, 32, 3) for arm in (plain, *refined))
  assert all((images[plain] != images[arm]).any() for arm in refined)
