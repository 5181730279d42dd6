"""configs/judge_scenes.py at a reduced size: from nothing to a judge that the command line asks."""
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align import guard, main, train, tree
from align.build import UserError
from configs import judge_scenes
from diffusion import folder
from launch import sweep
from rewards import judge

BASE = ["model.dataset.width=16", "model.dataset.depth=1", "model.dataset.tower=1", "model.dataset.heads=2",
        "see.data.cells=2", "ask.data.cells=2",
        *(f"{run}.{option}" for run in ("see", "look", "match", "ask")
          for option in ("steps=2", "batch=8", "data.size=16", "data.count=64", "optim.warmup_steps=1", "log_every=1"))]
MADE = [f"{place}_{quality}.{option}" for place in judge_scenes.PROMPTS for quality in judge_scenes.QUALITIES
        for option in ("data.count=12", "batch=24")]
JUDGE = [*MADE, "exam.data.count=16", "exam.data.data.count=16", "exam.data.size=16", "exam.data.data.size=16",
         "exam.batch=8", "judge.optim.warmup_steps=1", "verdict.group=2", "verdict.batch=4",
         *(f"{run}.{option}" for run in ("judge", "verdict")
           for option in ("steps=2", "data.size=16", "data.data.size=16", "data.count=64", "log_every=1"))]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_judge_from_nothing(tmp_path, capsys):
  given = ["--config=configs/judge_scenes.py:base", *(f"--config.runs.{option}" for option in BASE)]
  assert main.main([*given, f"--workdir={tmp_path}/base"]) == 0, capsys.readouterr().err
  models = [f"{run}.model={tmp_path}/base/ask" for run in ("judge.policy", "verdict.policy", "verdict.reward")]
  config = ["--config=configs/judge_scenes.py:verdict", *(f"--config.runs.{option}" for option in (*JUDGE, *models))]
  assert main.main([*config, f"--workdir={tmp_path}/run"]) == 0, capsys.readouterr().err
  scores = json.loads((tmp_path / "run/results.json").read_text())["scores"]
  assert sum(one["count"] for one in scores.values()) == 16
  files = []
  for i in range(2):
    files.append(str(tmp_path / f"{i}.png"))
    Image.fromarray(np.full((16, 16, 3), 100 * i, np.uint8)).save(files[-1])
  for run in ("judge", "verdict"):
    capsys.readouterr()
    given = [f"--model={tmp_path}/run/{run}/export", "--prompts=rewards/judging/scenes.json",
             "--task=scenes_image_pair", "--prompt=a red circle", "--reading=probability", "--dtype=float32", *files]
    assert judge.main(given) == 0
    assert 0 < json.loads(capsys.readouterr().out)["probability_A"] < 1
  assert main.main([*config, f"--workdir={tmp_path}/run"]) == 0  # everything is done already
  options = [option.replace("verdict.", "preferred.") for option in (*JUDGE, *models[:2], "preferred.batch=8")
             if option not in ("verdict.group=2", "verdict.batch=4")]
  config = ["--config=configs/judge_scenes.py:preferred", *(f"--config.runs.{option}" for option in options)]
  assert main.main([*config, f"--workdir={tmp_path}/other"]) == 0, capsys.readouterr().err
  rows = [json.loads(line) for line in (tmp_path / "other/preferred/metrics.jsonl").read_text().splitlines()]
  assert rows[0]["train/loss"] == pytest.approx(np.log(2), rel=1e-3)


def test_the_shipped_network_answers_questions_about_scenes(tmp_path):
  """Its records are in the header of configs/judge_scenes.py; these are fewer."""
  data = {"name": "scenes_questions", "tasks": ("colour", "shape", "count"), "count": 60, "seed": 10_000, "most": 3}
  scores = main.run({"task": "examine", "model": "judge", "data": data, "batch": 20}, tmp_path)["scores"]
  assert np.mean([one["accuracy"] for one in scores.values()]) > 0.7 and len(scores) == 3


def test_the_sweep_asks_every_arm_about_its_own_tasks():
  made = sweep.load("configs/sweeps/judge_scenes.py")
  assert len(made["runs"]) == 45 and {len(runs) for runs in made["groups"].values()} == {5}
  for arm, runs in judge_scenes.arms().items():
    if arm in made["groups"]:
      learned, asked = (runs[run]["data"] for run in ("judge", "exam"))
      parts = lambda data: [data, data["data"]] if "data" in data else [data]
      assert parts(learned)[-1]["tasks"] == parts(asked)[-1]["tasks"]
      assert all(a["seed"] != b["seed"] for a, b in zip(parts(learned), parts(asked), strict=True))
      generators = "image_generation" in arm or arm == "joint"
      assert ("path" in learned) == ("path" in asked) == generators
      if generators:  # of other prompts, which no training caption of the generator names
        learnt, held = ([runs[path.strip("@").removesuffix("/pairs")] for path in data["path"]] for data in
                        (learned, asked))
        assert {(run["data"]["split"], run["seed"]) for run in learnt} == {("train", 3)}
        assert {(run["data"]["split"], run["seed"]) for run in held} == {("test", 4)}
      kinds = len(asked["data"]["tasks"] if generators else asked["tasks"])
      assert asked["count"] == 1100 * (kinds + 2 * generators)
      assert runs["judge"]["steps"] == judge_scenes.STEPS * (4 if "longer" in arm or arm == "joint" else 1)


def test_the_table_of_the_readme_is_that_of_the_records():
  made, root = sweep.load("configs/sweeps/judge_scenes.py"), Path(__file__).parent.parent
  shown = (root / "README.md").read_text()
  title, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")]
                     for line in sweep.table(made, root / "configs/records/judge_scenes").splitlines() if "|" in line]
  found = {row[0]: dict(zip(title[1:], row[2:], strict=True)) for row in rows}
  tasks = {kind: name for name, (kinds, *_) in judge_scenes.TASKS.items() for kind in kinds}
  tasks |= dict.fromkeys(judge_scenes.SAMPLES, "image_generation")
  said = runpy.run_path("configs/sweeps/judge_scenes.py")["SAID"]
  assert set(said) == set(tasks)
  for kind, (words, _) in said.items():
    cells = [found[arm][kind] for arm in ("joint", tasks[kind], f"{tasks[kind]}_longer")]
    assert all("±" in cell for cell in cells) and f"| {words} | {' | '.join(cells)} |" in shown, kind


@pytest.mark.slow  # every shape is compiled, three times
def test_batches_of_several_shapes_are_learned_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
  config = {**judge_scenes.learned(4, ("count", "talk"), 1e-3, (32, 48), (8, 32, 52), batch=8, data={"count": 64}),
            "alike": 4, "log_every": 1, "save_every": 100, "optim": {"name": "adamw", "lr": 1e-3}}
  shapes, prepared = set(), train.prepared

  def watched(*given):
    arrays, host = prepared(*given)
    shapes.add((arrays["cond"]["tokens"].shape[1], arrays["x"].shape[1]))
    return arrays, host
  monkeypatch.setattr(train, "prepared", watched)
  main.run(config, tmp_path / "whole")
  assert len(shapes) > 1
  monkeypatch.setenv("ALIGN_FAULT", "stop:2:now")
  with pytest.raises(guard.Stopped):
    main.run(config, tmp_path / "parts")
  monkeypatch.delenv("ALIGN_FAULT")
  main.run(config, tmp_path / "parts")
  whole, parts = (tree.flatten(folder.load(str(tmp_path / name))) for name in ("whole", "parts"))
  assert whole.keys() == parts.keys() and all(np.array_equal(whole[name], parts[name]) for name in whole)
  exam = {"task": "examine", "model": str(tmp_path / "whole"), "batch": 4, "data": {**config["data"], "count": 20}}
  plain = {**exam, "options": {"columns": 48, "length": 52}}
  found, wanted = (main.run(one, tmp_path / name)["scores"] for name, one in (("exam", exam), ("plain", plain)))
  assert found == wanted and max(one["accuracy"] for one in found.values()) > 0
  started = tree.flatten(folder.load("judge"))
  assert any(not np.array_equal(whole[name], started[name]) for name in whole)


def test_several_shapes_are_refused_where_an_experience_is_kept(tmp_path):
  config = {**judge_scenes.verdict()["verdict"], "data": {"name": "scenes_questions"},
            "policy": {"name": "chat", "model": "judge", "columns": (32, 64)},
            "start": {}}
  with pytest.raises(UserError, match=r"config.policy.columns = \(32, 64\): only methods that sample nothing .* as 64"):
    main.run(config, tmp_path)


def test_an_arm_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="'jont' is not one of base, image_generation"):
    judge_scenes.get_config("jont")
