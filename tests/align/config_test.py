"""Overrides, config files and the claim on a workdir; every refusal by its message."""
import json
from pathlib import Path

import ml_collections
import pytest

from align import build
from align import config as configs
from align.build import ConfigError, UserError


def train(workdir: str, *, steps: int = 10, process: dict = "flow", optim: dict = None, reward: dict = None,
          weights: dict = None, mesh: dict = None, title: str = "a", log_every: int = 1, flag: bool = False):
  """Stands for a task."""


def override(items, **config):
  return configs.override(config, items, train)


def test_values_are_read_as_literals_and_types_kept():
  got = override(["config.steps=20", "--config.title=run 5", "optim.lr=1", ("flag", "True"), ("log_every", 5)])
  assert (got["steps"], got["title"], got["optim"]["lr"], got["flag"], got["log_every"]) == (20, "run 5", 1.0, True, 5)
  assert type(got["optim"]["lr"]) is float
  assert override(["config.title=123"])["title"] == "123"


def test_options_that_only_a_signature_knows():
  got = override(["config.process.shift=3", "config.optim.b2=0.99", "config.mesh.fsdp=2"])
  assert got["process"]["shift"] == 3.0 and got["optim"]["b2"] == 0.99
  assert got["mesh"] == {"data": -1, "fsdp": 2, "model": 1}


def test_a_name_comes_first_wherever_it_stands():
  got = override(["config.process.schedule=cosine", "config.process.name=ddpm"])
  assert got["process"]["name"] == "ddpm" and got["process"]["schedule"] == "cosine"
  assert override(["config.optim=sgd", "config.optim.momentum=0.9"])["optim"]["momentum"] == 0.9


def test_outer_names_come_before_inner_ones(tmp_path, monkeypatch):
  (tmp_path / "toywrap.py").write_text("def wrap(kernel='ode', size: int = 1): ...")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(build, "PACKAGES", {**build.PACKAGES, "process": "toywrap"})
  got = override(["config.process.kernel=cps", "config.process=wrap"], process={"name": "wrap", "size": 3})
  assert got["process"] == {"name": "wrap", "kernel": {"name": "cps"}, "size": 1}


def test_a_new_name_keeps_the_options_that_it_has():
  assert override(["config.optim.name=sgd"], optim={"name": "adamw", "lr": 0.5})["optim"]["lr"] == 0.5
  with pytest.raises(ConfigError, match=r"config.optim.b1 = 0.5: 'sgd' has no such option, only lr, .*the config file "
                                        r"sets it for another component: .* drop all options by config.optim=sgd"):
    override(["config.optim.name=sgd"], optim={"name": "adamw", "b1": 0.5})
  assert "b1" not in override(["config.optim=sgd"], optim={"name": "adamw", "b1": 0.5})["optim"]


def test_entries_of_free_dicts():
  assert override(["config.weights.a=2"], weights={"a": 1.0})["weights"] == {"a": 2.0}
  assert override(["config.weights={'b': 1}"], weights={"a": 1.0})["weights"] == {"b": 1}


def test_a_switch_that_may_be_a_name():
  config = {"task": "train", "steps": 1, "data": {"name": "prompts", "path": "-"}, "algorithm": {"name": "sft"},
            "policy": {"name": "diffusion", "text": "text", "process": "flow",
                       "net": {"name": "unet", "variant": "tiny", "remat": True}}}
  assert configs.override(config, ["config.policy.net.remat=attention"])["policy"]["net"]["remat"] == "attention"
  assert configs.override(config, ["config.policy.net.remat=False"])["policy"]["net"]["remat"] is False
  named = configs.override(config, ["config.policy.net.remat=attention", "config.policy.net.remat=True"])
  assert named["policy"]["net"]["remat"] is True
  with pytest.raises(ConfigError, match="config.net: remat = 'all' is not True, False or one of attention, check"):
    build.component("net", {"name": "unet", "variant": "tiny", "remat": "all"})


@pytest.mark.parametrize("item,message", [
  ("config.stpes=3", "config.stpes = '3': config has no such option, only .*; correct the name .nearest: 'steps'"),
  ("config.optim.l=3", "config.optim.l = '3': config.optim has no such option"),
  ("config.steps=many", "config.steps = 'many': it must be of type int; give a value like 10"),
  ("config.steps=1.5", "config.steps = '1.5': it must be of type int"),
  ("config.flag=maybe", "config.flag = 'maybe': it must be of type bool, but is of type str"),
  ("config.optim=admw", "config.optim.name = 'admw': it must be one of .*nearest: 'adamw'"),
  ("config.optim.name=admw", "config.optim.name = 'admw': it must be one of"),
  ("config.steps.a=1", "config.steps.a = '1': config.steps is 10, which has no options; name it first, by"),
  ("config.reward.weight=1", "config.reward.weight = '1': config.reward is None, which has no options"),
  ("config.weights.c=1", "config.weights.c = '1': config.weights has no such option, only a"),
  ("config.steps", "config.steps = None: an override has the form config.a.b=value; add '='"),
  ("config.task=trin", "config.task = 'trin': it must be one of"),
])
def test_refused_overrides(item, message):
  with pytest.raises(ConfigError, match=message):
    configs.override({"weights": {"a": 1.0}}, [item], None if "task" in item else train)


def test_runs_of_a_pipeline(monkeypatch):
  def pipeline(workdir: str, *, runs: dict, seed: int = 0): ...
  def inner(workdir: str, *, process: dict = "flow", steps: int = 1, seed: int = 0): ...
  monkeypatch.setattr(build, "task_function", lambda config, at="config": inner)
  config = {"task": "pipeline", "runs": {"a": {"steps": 2}, "b": {"task": "train", "seed": 9}}}
  items = ["config.runs.a.process=ddpm", "config.runs.b.process.shift=3", "config.seed=4"]
  got = configs.override(config, items, pipeline)
  assert got["runs"]["a"]["process"]["name"] == "ddpm" and got["runs"]["b"]["process"]["shift"] == 3.0
  assert (got["runs"]["a"]["seed"], got["runs"]["b"]["seed"]) == (4, 9)
  assert configs.override(config, ["config.runs.a.seed=7"], pipeline)["runs"]["a"]["seed"] == 7
  with pytest.raises(ConfigError, match="config.runs.a.stps = 3: config.runs.a has no such option, only"):
    build.resolve({"runs": {"a": {"stps": 3}}}, pipeline)
  with pytest.raises(ConfigError, match="config.runs.c = '3': config.runs has no such option, only a, b"):
    configs.override(config, ["config.runs.c.steps=3"], pipeline)


def test_overriding_leaves_the_config_alone():
  config = ml_collections.ConfigDict({"optim": {"name": "adamw", "lr": 0.1}})
  configs.override(config, ["config.optim.lr=0.5", "config.steps=3"], train)
  assert config.to_dict() == {"optim": {"name": "adamw", "lr": 0.1}}


SOURCE = """
import ml_collections
def get_config(n='1'): return ml_collections.ConfigDict({'steps': int(n), 'a': {'b': (1,)}})
"""


def test_load(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(SOURCE)
  assert configs.load(path) == {"steps": 1, "a": {"b": (1,)}}
  assert configs.load(f"{path}:12")["steps"] == 12


def test_load_falls_back_to_the_installed_configs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(configs, "shipped", lambda: tmp_path / "site" / "configs")
  (tmp_path / "site" / "configs").mkdir(parents=True)
  (tmp_path / "site" / "configs" / "digits.py").write_text(SOURCE)
  assert configs.available() == ["configs/digits.py"]
  assert configs.load("configs/digits.py")["steps"] == 1
  with pytest.raises(ConfigError, match="--config = 'configs/digit.py': there is no such file; shipped are "
                                        "configs/digits.py; correct the path .nearest: 'configs/digits.py'"):
    configs.load("configs/digit.py")


@pytest.mark.parametrize("source,argument,message", [
  ("def config(): pass", "", r"a config file defines get_config\(\), .*; define it .nearest: 'config'"),
  ("def get_config(): return {}", ":5", r"its get_config\(\) takes no argument; leave out ':5'"),
])
def test_config_files_that_are_none(tmp_path, source, argument, message):
  (tmp_path / "mine.py").write_text(source)
  with pytest.raises(ConfigError, match=message):
    configs.load(f"{tmp_path / 'mine.py'}{argument}")


def test_every_shipped_config_is_listed():
  here = Path(configs.shipped())
  assert all((here.parent / name).is_file() for name in configs.available())


def test_difference():
  old = {"steps": 1, "a": {"b": (1, 2), "c": 1}, "mesh": {"fsdp": 1}, "runs": {"x": {"log_every": 1}}}
  new = {"steps": 2, "a": {"b": [1, 2], "d": None}, "mesh": {"fsdp": 8}, "runs": {"x": {"log_every": 7}}}
  assert configs.difference(old, new) == [
    ("config.steps", 1, 2), ("config.a.c", 1, "(absent)"), ("config.a.d", "(absent)", None)]
  assert configs.difference({"a": {"keep": 1}}, {"a": {"keep": 2}}) == [("config.a.keep", 1, 2)]
  assert configs.difference(old, old) == []


def test_claim(tmp_path):
  workdir = tmp_path / "a" / "b"
  configs.claim({"steps": 1, "mesh": {"fsdp": 1}, "t": (1, 2)}, workdir)
  assert json.loads((workdir / "config.json").read_text()) == {"steps": 1, "mesh": {"fsdp": 1}, "t": [1, 2]}
  configs.claim({"steps": 1, "mesh": {"fsdp": 2}, "t": (1, 2)}, workdir)
  with pytest.raises(UserError, match=r"holds a run with another config:\noption +there +now\nconfig.steps +1 +2\n"
                     r"a run continues with its own config only; use it, or another --workdir"):
    configs.claim({"steps": 2, "mesh": {"fsdp": 1}, "t": (1, 2)}, workdir)
  assert sorted(p.name for p in workdir.iterdir()) == ["config.json"]


def test_only_the_first_process_writes(tmp_path):
  configs.claim({"steps": 1}, tmp_path, is_writer=False)
  assert not list(tmp_path.iterdir())


def test_claim_refuses_what_it_cannot_write_or_read(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"--workdir = '.*file/run' cannot be written: Not a directory; it must"):
    configs.claim({}, tmp_path / "file" / "run")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json is not JSON .* restore it or choose another --workdir"):
    configs.claim({}, tmp_path)

  def full(*_, **__):
    raise OSError(28, "No space left on device")
  monkeypatch.setattr(Path, "write_text", full)
  with pytest.raises(UserError, match="cannot be written: No space left on device"):
    configs.claim({}, tmp_path / "new")
