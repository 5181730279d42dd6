"""configs/recipes/uae.py: arms of equal rounds that change their own side alone, and reduced runs."""
import json

import numpy as np
import pytest

from align import build, main, pipeline
from configs.recipes import uae
from diffusion import folder


def test_arms_have_as_many_updates_of_a_side_and_change_no_other():
  runs = uae.get_config().to_dict()["runs"]
  steps = lambda arm, side: sum(run["steps"] for name, run in runs.items()
                                if name.startswith(arm) and name.endswith(side) and run["task"] == "train")
  for side in ("captioner", "generator"):
    assert steps(side, f"_{side}") == 2 * steps("both", f"_{side}") > 0
    assert uae.STEPS[side] == next(run["policy"]["generator"]["steps"] for name, run in runs.items()
                                   if name.endswith(f"_{side}"))
  for name, run in runs.items():
    if name.endswith(("_captioner", "_generator")):
      assert ("captioner" in run["trained"]) == name.endswith("_captioner") == (run["policy"]["mode"] == "caption")
  order = pipeline.ordered(runs)
  for arm in ("base", "both", "captioner", "generator"):
    assert {*order} >= {f"{arm}_{what}" for what in ("told", "told_unseen", "asked", "redrawn")}
  assert order.index("both_1_captioner") < order.index("both_2_generator") < order.index("both_3_captioner")
  assert all(runs[f"base_{what}"]["seed"] == 0 for what in ("told", "asked", "redrawn"))  # the same for all seeds
  assert set(runs["evaluate"]["arms"]) == {"base", "both", "generator"} and runs["evaluate"]["primary"] == "both"


def test_arms_begin_from_what_the_first_pipeline_ends_with():
  runs = uae.get_config("base").to_dict()["runs"]
  assert runs["evaluate"]["arms"] == {"scenes": "scenes", "base": "@draw"} and runs["draw"]["policy"] == uae.POLICY
  assert runs["draw"]["start"]["policy"] == "@match" and runs["match"]["start"]["policy/captioner"] == "@brief"
  assert (runs["brief"]["start"]["policy"], runs["describe"]["start"]["policy"]) == ("@describe", "judge")
  whole = uae.get_config().to_dict()["runs"]
  assert {run["start"]["policy"] for name, run in whole.items()
          if name.startswith(("both_1", "captioner_1", "generator_1"))} == {"uae"}
  assert whole["scorer"] == runs["scorer"] and not {*uae.base()} & {*whole}


def test_what_ships_is_what_the_recipe_makes():
  """Examinations and the verdict take its options from there."""
  made = build.resolve({**uae.base()["draw"], "start": None})["policy"]
  shipped = folder.describe(uae.MODEL)
  same = lambda policy: {name: policy[name] for name in ("captioner", "connector", "generator", "alone", "question")}
  assert same(made) == same(shipped) and shipped.get("mode", "draw") == "draw"


def test_an_arm_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="arms = 'boht' is not one of all, base, both, captioner, generator"):
    uae.get_config("boht")


def reduced(runs: dict) -> list:
  """Overrides that leave two updates of everything."""
  out = []
  for name, run in runs.items():
    more = {"train": {"steps": 2, "log_every": 1, "data.count": 48}, "examine": {"data.count": 8, "batch": 8},
            "evaluate": {"data.count": 12, "samples": 1, "batch": 12}}[run.get("task", "train")]
    if "group" in run:
      more = {**more, "batch": 4, "group": 2}
    elif run.get("task") == "train":
      more = {**more, "batch": 8}
    if run.get("optim", {}).get("warmup_steps"):
      more["optim.warmup_steps"] = 1
    out += [f"--config.runs.{name}.{option}={value}" for option, value in more.items()]
  return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arms, told, drawn", [("both", {"base", "both"}, {"base", "both"}),
                                               ("base", {"base"}, {"scenes", "base"})])
def test_a_reduced_run(tmp_path, capsys, arms, told, drawn):
  runs = uae.get_config(arms).to_dict()["runs"]
  given = [f"--config=configs/recipes/uae.py:{arms}", f"--workdir={tmp_path}", *reduced(runs)]
  assert main.main(given) == 0, capsys.readouterr().err
  results = json.loads((tmp_path / "results.json").read_text())
  report = (tmp_path / "report.html").read_text()
  assert set(results["arms"]) == drawn and "told/complete" in report
  kept = np.load(tmp_path / f"{arms}_redrawn/examples.npz")
  assert kept["made"].shape == (6, 16, 16, 3) and "painted: not" in report
  assert set(results["examined"]) == {f"{arm}_{what}" for arm in told
                                      for what in ("asked", "told", "told_unseen", "redrawn")}
  assert "told/complete" in results["examined"][f"{arms}_told"]["means"]
  assert 0 <= results["examined"][f"{arms}_asked"]["accuracy"] <= 1
  assert main.main(given) == 0  # everything is done already
