"""Components by name, signatures as schemas, and every refusal by its message, on a package made for the test."""
import sys
import textwrap
from typing import Any, Literal

import ml_collections
import numpy as np
import pytest

from align import build
from align.build import ConfigError, UserError

TOY = {
  "toynets/__init__.py": "",
  "toynets/small.py": '''
    def make(width: int = 8, act: str = "gelu", drop: float = 0.0): return ("small", width, act, drop)
  ''',
  "toynets/fields.py": '''
    import dataclasses
    @dataclasses.dataclass
    class Net:
      depth: int = 2
      wide: tuple = (1, 2)
      name: str = ""
    def make(**hparams) -> Net: return Net(**hparams)
  ''',
  "toynets/notes.py": "TEXT = 'no component'",
  "toypolicies/__init__.py": "",
  "toypolicies/diffusion.py": '''
    from typing import Any
    def make(net: Any, process: Any = "straight", kernel: str = "ode", pair: dict = None, steps: int = 10,
             eta: float | None = None):
      if steps < 1: raise ValueError(f"steps = {steps} must be positive; raise it")
      return ("diffusion", net, process, kernel, steps, eta)
  ''',
  "toyalgorithms/__init__.py": "",
  "toyalgorithms/grpo.py": '''
    def make(policy, reward=None, *, beta=0.1, clip=0.2): return ("grpo", policy, reward, beta, clip)
  ''',
  "toyalgorithms/nft.py": "def make(policy, reward=None, *, beta=1.0): return ('nft', policy, reward, beta)",
  "toyrewards/__init__.py": "",
  "toyrewards/exact.py": "def make(strict: bool = True): return ('exact', strict)",
  "toyrewards/mix.py": "def make(rewards: dict, weights: dict = None): return ('mix', rewards, weights)",
  "toyprocess.py": '''
    from typing import NamedTuple
    class Process(NamedTuple): kind: str
    def straight(shift: float = 1.0) -> Process: return Process(f"straight {shift}")
    def reversed_(process) -> Process: return Process(f"reversed {process.kind}")
    def curve(t): return t
  ''',
}
PLACES = {"policy": "toypolicies", "algorithm": "toyalgorithms", "reward": "toyrewards", "net": "toynets",
          "process": "toyprocess"}
GRID = {"rows": 2, "scale": 1.0}


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
  for name, source in TOY.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(textwrap.dedent(source))
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(build, "PACKAGES", {**build.PACKAGES, **PLACES})
  monkeypatch.setattr(build, "GROUPS", {"rewards": "toyrewards"})
  monkeypatch.setattr(build, "PROVIDED", {"toyalgorithms": ("policy", "reward")})
  yield
  for name in [m for m in sys.modules if m.startswith("toy")]:
    del sys.modules[name]


def train(workdir: str, *, steps: int, policy: dict, algorithm: dict = "grpo", reward: dict = None,
          rewards: dict = None, optim: dict = None, mesh: dict = None, seed: int = 0, trained: str = "^policy/",
          grid: dict = GRID):
  """Stands for a task."""


def shifted(workdir: str, *, process: dict = {"name": "straight", "shift": 2.0}):  # noqa: B006
  """A task with a default component that has options."""


SMALL = {"steps": 3, "policy": {"name": "diffusion", "net": "small"}}


def resolve(**more):
  return build.resolve({**SMALL, **more}, train)


def test_names():
  assert build.names("toynets") == ["fields", "small"]
  assert build.names("toyprocess") == ["reversed_", "straight"]


def test_build_nests_and_fills_in_defaults():
  spec = {"name": "diffusion", "net": {"name": "small", "width": 4}, "process": {"name": "straight", "shift": 3}}
  policy = build.build("toypolicies", spec, steps=5)
  assert policy == ("diffusion", ("small", 4, "gelu", 0.0), ("straight 3.0",), "ode", 5, None)
  assert build.component("algorithm", {"name": "grpo", "beta": 2}, policy) == ("grpo", policy, None, 2.0, 0.2)


def test_build_takes_a_default_component_and_an_object():
  made = object()
  assert build.build("toypolicies", "diffusion", made)[1:3] == (made, ("straight 1.0",))
  assert build.build("toypolicies", "diffusion", net=made)[1] is made
  assert build.build("toyprocess", {"name": "reversed_", "process": "straight"}).kind == "reversed straight 1.0"


def test_build_makes_groups():
  mix = build.build("toyrewards", {"name": "mix", "rewards": {"a": "exact", "b": {"name": "exact", "strict": False}}})
  assert mix == ("mix", {"a": ("exact", True), "b": ("exact", False)}, None)


def test_code_from_elsewhere():
  assert build.build("toyalgorithms", {"name": "toyrewards.exact:make", "strict": False}) == ("exact", False)
  with pytest.raises(ConfigError, match="config.algorithm.name = 'nowhere:make': 'module:function' must be importable"):
    build.build("toyalgorithms", "nowhere:make")


def test_a_networks_fields_are_the_options_of_an_open_make():
  assert resolve(policy={"name": "diffusion", "net": {"name": "fields", "depth": 3}})["policy"]["net"] == {
    "name": "fields", "depth": 3, "wide": (1, 2)}
  with pytest.raises(ConfigError, match=r"config.policy.net.dept = 3: .*only depth, wide; .*nearest: 'depth'"):
    resolve(policy={"name": "diffusion", "net": {"name": "fields", "dept": 3}})


def test_resolve_writes_out_every_default():
  got = resolve(rewards={"judge": "exact"})
  assert got == {
    "task": "train", "steps": 3, "seed": 0, "trained": "^policy/", "reward": None, "grid": GRID,
    "policy": {"name": "diffusion", "net": {"name": "small", "width": 8, "act": "gelu", "drop": 0.0},
               "process": {"name": "straight", "shift": 1.0}, "kernel": "ode", "pair": None, "steps": 10, "eta": None},
    "algorithm": {"name": "grpo", "beta": 0.1, "clip": 0.2}, "rewards": {"judge": {"name": "exact", "strict": True}},
    "optim": {"name": "adamw", "lr": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": 1.0,
              "warmup_steps": 0, "decay": "constant", "total_steps": None, "no_decay": "bias|scale|norm"},
    "mesh": {"data": -1, "fsdp": 1, "model": 1},
  }
  assert build.resolve(got, train) == got


def test_resolve_takes_config_dicts_partial_dicts_and_numpy():
  config = ml_collections.ConfigDict({**SMALL, "mesh": {"fsdp": 2}, "grid": {"rows": 5}})
  config.steps = int(np.int64(7))
  got = build.resolve(config, train)
  assert (got["steps"], got["mesh"]["fsdp"], got["mesh"]["data"], got["grid"]) == (7, 2, -1, {"rows": 5, "scale": 1.0})
  assert build.resolve({**SMALL, "steps": np.int64(7)}, train)["steps"] == 7
  assert build.resolve({"process": {"shift": 3}}, shifted)["process"] == {"name": "straight", "shift": 3.0}
  assert build.resolve({}, shifted)["process"] == {"name": "straight", "shift": 2.0}
  assert resolve(optim={"lr": 1})["optim"]["lr"] == 1.0 and resolve(optim={"lr": 1})["optim"]["name"] == "adamw"


REFUSED = [
  ({"stpes": 4}, "config.stpes = 4: config has no such option, only .*; rename or remove it (nearest: 'steps')"),
  ({"policy": {"name": "difusion", "net": "small"}},
   "config.policy.name = 'difusion': it must be one of diffusion; choose one of them (nearest: 'diffusion')"),
  ({"policy": {"name": "diffusion", "net": {"name": "small", "widht": 3}}},
   "config.policy.net.widht = 3: config.policy.net has no such option, only width, act, drop; rename or remove it "
   "(nearest: 'width')"),
  ({"policy": {"name": "diffusion"}}, "config.policy.net = None: it must be of type Any and has no default; set it"),
  ({"policy": {"net": "small"}}, "config.policy = {'net': 'small'}: a component is a name, or a dict with 'name'"),
  ({"algorithm": {"name": "grpo", "policy": 1}}, "config.algorithm.policy = 1: config.algorithm has no such option"),
  ({"algorithm": {"name": "grpo", "beta": "big"}},
   "config.algorithm.beta = 'big': it must be of type float, but is of type str; give a value of that type, such as "
   "the default 0.1"),
  ({"steps": 1.5}, "config.steps = 1.5: it must be of type int, but is of type float"),
  ({"steps": True}, "config.steps = True: it must be of type int, but is of type bool"),
  ({"steps": None}, "config.steps = None: it must be of type int, but is of type NoneType"),
  ({"trained": 3}, "config.trained = 3: it must be of type str"),
  ({"rewards": {"judge": "exat"}}, "config.rewards.judge.name = 'exat': it must be one of exact, mix"),
  ({"mesh": {"fdsp": 2}}, "config.mesh.fdsp = 2: config.mesh has no such option, only data, fsdp, model"),
  ({"mesh": {"devices": 2}}, "config.mesh.devices = 2: config.mesh has no such option"),
  ({"mesh": 8}, "config.mesh = 8: it must be of type dict"),
  ({"grid": {"row": 2}}, "config.grid.row = 2: config.grid has no such option, only rows, scale"),
  ({"grid": {"rows": "two"}}, "config.grid.rows = 'two': it must be of type int"),
  ({"policy": {"name": "diffusion", "net": "small", "kernel": {"name": "ode"}}},
   "config.policy.kernel = {'name': 'ode'}: it must be of type str"),
  ({"policy": 3}, "config.policy = 3: a component is a name, or a dict"),
  ({"seed": object}, "config.seed = <class 'object'>: a config holds plain data"),
  ({"task": "trian"}, "config.task = 'trian': it must be one of prepare, train, sample, collect, "
   "evaluate, examine, swap, pipeline, claims; choose one of them (nearest: 'train')"),
]


@pytest.mark.parametrize("change,message", REFUSED, ids=lambda x: str(x)[:40])
def test_refusals(change, message):
  function = None if "task" in change else train
  with pytest.raises(ConfigError) as e:
    build.resolve({**SMALL, **change}, function)
  start, _, end = message.partition(".*")
  assert str(e.value).startswith(start) and end in str(e.value)


def test_a_missing_option_is_named():
  with pytest.raises(ConfigError, match="config.steps = None: it must be of type int and has no default; set it"):
    build.resolve({"policy": SMALL["policy"]}, train)
  with pytest.raises(ConfigError, match="it must be a dict or ConfigDict of options; return one from get_config"):
    build.resolve([1], train)


def test_build_refuses_unknown_options_and_passes_on_what_a_function_refuses():
  with pytest.raises(ConfigError, match="config.algorithm.clip = 1: config.algorithm has no such option, only beta"):
    build.build("toyalgorithms", "nft", None, None, clip=1)
  with pytest.raises(ConfigError, match="config.policy: steps = 0 must be positive; raise it"):
    build.build("toypolicies", "diffusion", net="small", steps=0)
  with pytest.raises(ConfigError, match="config.policy.net = None: .* has no default; set it"):
    build.build("toypolicies", "diffusion")
  assert issubclass(ConfigError, UserError) and issubclass(UserError, ValueError)


@pytest.mark.parametrize("value,kind,fits", [
  (1, int, True), (1, float, True), (1.0, int, False), (True, int, False), (True, float, False), (True, bool, True),
  (1, bool, False), ("a", str, True), (None, str, False), (None, str | None, True), (None, None, True),
  ((1, 2), tuple, True), ([1, 2], tuple, True), ([1, 2], tuple[int, int], True), ([1], tuple[int, int], False),
  ([1, 2.0], tuple[int, ...], False), ([1, 2], list[float], True), ("a", tuple, False), ({}, dict, True),
  ("x", Any, True),
  ("v", Literal["v", "eps"], True), ("w", Literal["v", "eps"], False), (3, int | tuple[int, int], True),
  ((3, 4), int | tuple[int, int], True), ("3", int | tuple[int, int], False), ({}, "Forward", True),
])
def test_types(value, kind, fits):
  assert build.accepts(value, kind) is fits


def test_lists_become_tuples_where_tuples_are_meant():
  def f(a: tuple[int, ...] = (), b=(1,), c: list = None, d: int | tuple[int, int] = 1, e: float | None = None): ...
  got = build.options({"a": [1, 2], "b": [3], "c": [4], "d": [5, 6], "e": 2}, f, "config")
  assert got == {"a": (1, 2), "b": (3,), "c": [4], "d": (5, 6), "e": 2.0} and type(got["e"]) is float


def test_table_aligns():
  assert build.table([("a", 1), ("long", 22, "x")]) == "a     1\nlong  22  x"
  assert build.table([]) == ""
