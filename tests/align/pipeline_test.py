"""Order, references and resumption of a pipeline; the runs themselves are in quickstart_test and digits_test."""
import json
import shutil

import numpy as np
import pytest

from align import main, pipeline
from align.build import UserError

DATA = {"task": "prepare", "dataset": {"name": "scenes", "count": 20}}


def test_runs_go_after_what_they_refer_to():
  runs = {"a": {"start": {"policy": "@z"}}, "b": {"arms": ["@a/export", "plain"]}, "z": {"data": {"path": "x@y"}}}
  assert pipeline.ordered(runs) == ["z", "a", "b"]
  assert pipeline.references(runs["b"]) == {"a"}


def test_references_become_paths_below_the_workdir(tmp_path):
  spec = {"start": {"policy": "@base"}, "list": ("@a/b", 3), "mail": "x@y"}
  assert pipeline.linked(spec, tmp_path) == {"start": {"policy": f"{tmp_path}/base"}, "list": (f"{tmp_path}/a/b", 3),
                                             "mail": "x@y"}


@pytest.mark.parametrize("runs, message", [
  ({"a": {"start": {"policy": "@bass"}}, "base": {}}, r"config\.runs\.a refers to '@bass'.*nearest: 'base'"),
  ({"a": {"x": "@b"}, "b": {"x": "@a"}}, "need each other"),
])
def test_references_that_cannot_be_are_refused(runs, message):
  with pytest.raises(UserError, match=message):
    pipeline.ordered(runs)


def test_a_wrong_run_stops_the_pipeline_before_the_first_one(tmp_path):
  runs = {"a": DATA, "b": {"task": "prepare", "dataset": {"name": "scenes", "cuont": 20}}}
  with pytest.raises(UserError, match=r"config\.runs\.b\.dataset\.cuont.*nearest: 'count'"):
    main.run({"task": "pipeline", "runs": runs}, tmp_path / "w")
  assert not (tmp_path / "w").exists()


TRAIN = {"task": "train", "steps": 1, "batch": 8, "policy": {"name": "toy:policy"}, "data": {"name": "toy:data"},
         "algorithm": {"name": "sft"}}
JUDGE = {"task": "evaluate", "arms": {"base": "scenes", "other": "@b"}, "primary": "other", "baseline": "base",
         "data": {"name": "scenes_prompts", "count": 6}, "rewards": {"scenes": {"name": "scenes"}},
         "success": "scenes/exact"}


@pytest.mark.parametrize("change, message", [
  ({"optim": {"name": "adamw", "decay": "linaer"}}, "config.runs.b: .*linaer"),
  ({"mesh": {"data": 3}}, "config.runs.b: config.mesh"),
  ({"batch": 9}, "config.runs.b: config.batch: 9 samples cannot be cut evenly"),
  ({"trained": "^polcy/"}, "config.runs.b: config.trained = .* matches none"),
  ({"micro": 0}, "config.runs.b: config.micro = 0 must be at least 1"),
  ({"algorithm": {"name": "dpo", "beta": -1.0}}, "config.runs.b: .*beta = -1.0"),
  ({**JUDGE, "success": "judge/exact"}, "config.runs.c: config.success = 'judge/exact' is of none of the rewards"),
  ({**JUDGE, "targets": {"gain over bass": 0.1}}, "config.runs.c: config.targets.gain over bass is not one of"),
  ({**JUDGE, "primary": "aligned"}, "config.runs.c: config.primary = 'aligned' is not one of the arms"),
  ({**JUDGE, "curves": {"aligned": "@b"}}, "config.runs.c: config.curves.aligned is not one of base, other"),
  ({**JUDGE, "rewards": {"scenes": {"name": "scenes", "strict": -1.0}}}, "config.runs.c: .*strict=-1.0"),
])
def test_an_impossible_value_stops_the_pipeline_before_the_first_run(change, message, tmp_path):
  wrong = {"c" if "arms" in change else "b": change if "arms" in change else {**TRAIN, **change}}
  runs = {"a": DATA, "b": TRAIN, **wrong}
  with pytest.raises(UserError, match=message):
    main.run({"task": "pipeline", "runs": runs}, tmp_path / "w")
  assert not (tmp_path / "w/a").exists()


def test_finished_runs_are_not_repeated_and_an_interrupted_one_is(tmp_path, monkeypatch):
  calls, broken = [], {"b"}

  def run(spec, workdir):
    name = workdir.rsplit("/", 1)[1]
    calls.append(name)
    if name in broken:
      raise KeyboardInterrupt
  monkeypatch.setattr(main, "run", run)  # the runs are not what is tested here
  runs = {"a": DATA, "b": DATA, "c": DATA}
  with pytest.raises(KeyboardInterrupt):
    pipeline.pipeline(tmp_path, runs=runs)
  broken.clear()
  stages = pipeline.pipeline(tmp_path, runs=runs)["stages"]
  assert calls == ["a", "b", "b", "c"]
  assert [s["name"] for s in stages] == ["a", "b", "c"]
  assert json.loads((tmp_path / "b/stage.json").read_text())["done"]


def test_a_finished_run_of_another_config_is_refused_before_anything_runs(tmp_path, monkeypatch):
  """As of two pipelines that share a folder; where runs lie, and how often they log, does not matter."""
  calls = []
  monkeypatch.setattr(main, "run", lambda spec, workdir: calls.append(spec))  # the runs are not what is tested here
  runs = {"a": {**TRAIN, "log_every": 5}, "b": {**TRAIN, "start": {"policy": "@a"}}}
  pipeline.pipeline(tmp_path / "one", runs={"a": runs["a"]}, seed=1)
  (tmp_path / "two").mkdir()
  (tmp_path / "two/a").symlink_to(tmp_path / "one/a")
  for change, given, said in (({"seed": 2}, runs, r"a' holds a run with another config(.|\n)*seed +1 +2"),
                              ({"seed": 1}, {**runs, "a": {**TRAIN, "steps": 9}}, r"steps +1 +9")):
    with pytest.raises(UserError, match=said):
      pipeline.pipeline(tmp_path / "two", runs=given, **change)
  assert len(calls) == 1
  stages = pipeline.pipeline(tmp_path / "two", runs={"a": {**TRAIN, "log_every": 7}}, seed=1)["stages"]
  assert len(calls) == 1 and "config" not in stages[0]


def test_a_run_that_was_made_from_a_run_of_another_config_is_refused(tmp_path, monkeypatch):
  """Where what it begins from was made again with other options, in another folder or in this one; through several."""
  calls = []
  monkeypatch.setattr(main, "run", lambda spec, workdir: calls.append(workdir))  # the runs are not what is tested here
  chain = lambda **more: {"a": {**TRAIN, **more}, "b": {**TRAIN, "start": {"policy": "@a"}},
                          "c": {**TRAIN, "start": {"policy": "@b"}}}
  pipeline.pipeline(tmp_path / "one", runs=chain())
  pipeline.pipeline(tmp_path / "one", runs=chain(log_every=7))
  shutil.rmtree(tmp_path / "one/a")
  for name, run in (("one", "b"), ("two", "c")):
    if name == "two":
      (tmp_path / "two").mkdir()
      (tmp_path / "two/c").symlink_to(tmp_path / "one/c")
    with pytest.raises(UserError, match=rf"{name}/{run}' was made from '{'ab'[run == 'c']}' of another config.* "
                                        rf"remove .*{name}/{run}' to make it again"):
      pipeline.pipeline(tmp_path / name, runs=chain(steps=9))
  assert len(calls) == 3
  pipeline.pipeline(tmp_path / "one", runs=chain())
  assert len(calls) == 4 and calls[-1].endswith("one/a")


def test_examples_are_those_that_examinations_kept(tmp_path):
  (tmp_path / "told").mkdir()
  np.savez(tmp_path / "told/examples.npz", said=["a red circle"], shown=[1])
  found = pipeline.examples(tmp_path, ("told", "older"))
  assert set(found) == {"told"} and found["told"]["said"].tolist() == ["a red circle"]
  assert found["told"]["shown"].tolist() == [1]  # read whole, as the file is closed
