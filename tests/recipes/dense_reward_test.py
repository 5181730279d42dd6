"""The recipe of Dense Reward: arms of equal cost, discounts that mean what was published, and a reduced run."""
import json

import numpy as np
import pytest
from commands import command

from align import build, claims, config, discount
from launch import sweep

FILE = "configs/recipes/dense_reward.py"
ARMS = {"main": {"gamma_1", "gamma_09", "gamma_05"},
        "all": {"gamma_1", "gamma_095", "gamma_09", "gamma_08", "gamma_07", "gamma_05"}}


def runs(how):
  return build.resolve(config.load(f"{FILE}:{how}"))["runs"]


@pytest.mark.parametrize("how", ["multi", "single", "multi,all"])
def test_the_arms_differ_in_the_discount_alone(how):
  made = runs(how)
  arms = {name: made[name] for name in made if name.startswith("gamma")}
  assert set(arms) == ARMS["all" if "all" in how else "main"]
  rest = [{**run, "algorithm": {**run["algorithm"], "gamma": None}} for run in arms.values()]
  assert all(run == rest[0] for run in rest) and len({run["algorithm"]["gamma"] for run in arms.values()}) == len(arms)
  assert arms["gamma_1"]["algorithm"]["gamma"] == 1
  assert set(made["evaluate"]["arms"]) == {"base", "control", *arms}
  assert (made["evaluate"]["primary"], made["evaluate"]["baseline"]) == ("gamma_09", "base")


@pytest.mark.parametrize("how", ["multi", "single"])
def test_arms_and_control_have_as_many_passes(how):
  made = runs(how)
  one, control = made["gamma_09"], made["control"]
  method, stages = one["algorithm"], one["steps"] // one["algorithm"]["updates"]
  assert stages == 10 and one["steps"] % method["updates"] == 0  # the stages of the paper
  sampled = stages * one["batch"] * one["group"] * (method["steps"] + 1)
  learned = one["steps"] * method["tuples"] * method["tuple_size"] * method["draws"] * (3 + 1)
  assert 0 <= sampled + learned - control["steps"] * control["batch"] * 3 < control["batch"] * 3
  assert one["steps"] * method["tuples"] > 0 and one["batch"] * stages * one["group"] == {"multi": 3840,
                                                                                          "single": 4800}[how]


def test_a_step_has_the_weight_of_the_published_steps_in_its_place():
  for name, gamma in (("gamma_09", 0.9), ("gamma_05", 0.5), ("gamma_1", 1.0)):
    own = runs("multi")[name]["algorithm"]
    blocks = discount.chances(gamma, 50).reshape(own["steps"], -1).sum(1)
    np.testing.assert_allclose(discount.chances(own["gamma"], own["steps"]), blocks, rtol=1e-9)


def test_the_clip_and_the_scale_keep_their_meaning_at_this_size():
  for how, nats, per_nat in (("multi", 8.192, 12.5 / 16384), ("single", 1.6384, 10 / 16384)):
    method = runs(how)["gamma_09"]["algorithm"]
    elements = 16 * 16 * 3
    assert method["clip"] * elements == pytest.approx(nats, rel=2e-3)
    assert method["scale"] / elements == pytest.approx(per_nat)
    assert method["stored"] == 5


def test_seen_and_unseen_differ_in_one_thing():
  made = runs("single")
  seen, unseen = made["evaluate"]["data"]["combos"].values()
  assert made["gamma_1"]["data"]["combos"] == {"seen": seen}
  assert sum(a != b for a, b in zip(seen.split("/"), unseen.split("/"), strict=True)) == 1


def test_arguments_that_it_does_not_know_are_refused():
  with pytest.raises(build.ConfigError, match="'many' is not one of multi, single, main, all, tuning"):
    config.load(f"{FILE}:many")


SMALLER = [f"--config.runs.{arm}.{option}" for arm in ("gamma_1", "gamma_09", "gamma_05") for option in (
  "steps=4", "batch=2", "group=5", "algorithm.updates=2", "algorithm.tuples=2", "algorithm.steps=3",
  "algorithm.gamma=0.5")]  # one discount for all, so that they share their programs: compiling is what takes time
SMALLER += ["--config.runs.control.steps=2", "--config.runs.control.batch=4", "--config.runs.swap.data.count=12",
            "--config.runs.swap.steps=2", "--config.runs.swap.batch=12", "--config.runs.evaluate.samples=1",
            "--config.runs.evaluate.data.count=12", "--config.runs.evaluate.steps=2", "--config.runs.evaluate.batch=12"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("how", ["multi", "single"])
def test_a_reduced_run_from_end_to_end(how, tmp_path):
  code, said = command("align.main", f"--config={FILE}:{how}", "--workdir=w", *SMALLER, where=tmp_path)
  assert code == 0 and "report: " in said, said
  results = json.loads((tmp_path / "w/results.json").read_text())
  assert {f"gamma_09 - {other}" for other in ("base", "control", "gamma_1", "gamma_05")} == set(results["differences"])
  assert len(results["swapped"]["swap"]["first"]) == 3
  rows = [json.loads(line) for line in (tmp_path / "w/gamma_09/metrics.jsonl").read_text().splitlines()]
  first = next(row for row in rows if row["step"] == 1)
  assert first["train/on_policy_gap"] <= first["train/on_policy_limit"] and first["train/skipped"] == 0
  page = (tmp_path / "w/report.html").read_text()
  assert "Where the image is decided: swap" in page
  assert all(name in page for name in ("gamma_09", "gamma_1", "control", "experience/reward_mean"))
  figure = claims.Claim("", "", ["r"], ["differences", "gamma_09 - gamma_1", "overall", "difference"])
  sweep.keep(tmp_path, tmp_path / "records", "w", {})
  (tmp_path / "records/w.json").rename(tmp_path / "records/r.json")
  assert claims.of(figure, tmp_path / "records")[0][0] == (
    results["differences"]["gamma_09 - gamma_1"]["overall"]["difference"])
