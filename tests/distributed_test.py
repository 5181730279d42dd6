"""Two processes on this machine train as one does: the same global batch, the same losses."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT

from align import tree
from diffusion import weights

RUN = {"task": "train", "steps": 3, "batch": 8, "group": 4, "policy": {"name": "toy:policy"}, "log_every": 1,
       "data": {"name": "toy:data", "media": False}, "algorithm": {"name": "nft", "levels": 2},
       "optim": {"name": "sgd", "lr": 0.1}}

NETWORK = {"task": "train", "steps": 3, "batch": 8, "algorithm": "sft", "data": {"name": "digits", "split": "train"},
           "policy": {"name": "diffusion", "size": 8, "channels": 1, "steps": 4, "length": 6, "process": "flow",
                      "net": {"name": "mmdit", "variant": "tiny", "channels": 1, "width": 64, "depth": 1},
                      "text": {"name": "text", "width": 16, "depth": 1}},
           "optim": {"name": "sgd", "lr": 0.1}, "log_every": 1}


# jax then refuses programs over both processes that another thread dispatches, since their order would be a race
GUARDED = """
import sys, jax
from align import main
with jax.thread_guard(True):
  sys.exit(main.main(sys.argv[1:]))
"""


def started(folder: Path, workdir: str, *more, devices: int = 1):
  environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  path = f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}"
  line = [sys.executable, "-c", GUARDED, f"--config={folder / 'mine.py'}", f"--workdir={folder / workdir}", *more]
  return subprocess.Popen(line, env={**environment, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


def losses(folder: Path) -> list:
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [row["train/loss"] for row in rows if "train/loss" in row]


def both(tmp_path: Path, config: dict, *mesh: str, devices: int = 1):
  """Runs a config in one process with one device as WORKDIR/one, and in two with `devices` each as WORKDIR/two."""
  (tmp_path / "mine.py").write_text(f"def get_config(): return {config!r}\n")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  together = [started(tmp_path, "two", f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}", *mesh,
                      devices=devices) for i in range(2)]
  alone = started(tmp_path, "one")
  for child in (*together, alone):
    _, said = child.communicate(timeout=550)
    assert child.returncode == 0, said
  assert len(losses(tmp_path / "two")) == 3
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  return [tree.flatten(weights.load(tmp_path / where / "export/policy.safetensors")) for where in ("one", "two")]


TOY = {"name": "toy:reward", "where": "host"}


@pytest.mark.parametrize("reward", [
  {"name": "mix", "rewards": {"a": TOY, "b": TOY}, "normalise": "frozen"},
  pytest.param({"name": "toy:reward", "where": "device"}, marks=pytest.mark.slow)], ids=["host", "device"])
def test_two_processes_are_one(tmp_path, reward):
  """In chunks, which a thread of its own judges where it runs no program over both."""
  one, two = both(tmp_path, {**RUN, "reward": reward, "chunks": 2})
  assert {name: leaf.shape for name, leaf in one.items()} == {name: leaf.shape for name, leaf in two.items()}


# a small one: processes that compile for half a minute more than the other lose each other
@pytest.mark.slow  # three processes compile a network
@pytest.mark.parametrize("adapters, mesh", [
  (False, {"data": 1, "fsdp": 4}), (False, {"data": 1, "fsdp": 2, "model": 2}),
  (True, {"data": 1, "fsdp": 2, "model": 2})])
def test_weights_in_parts_over_two_processes_are_those_of_one_device(tmp_path, adapters, mesh):
  more = {"lora": {"rank": 4, "alpha": 8.0}, "trained": "^policy/lora/"} if adapters else {"trained": "^policy/net/"}
  one, two = both(tmp_path, {**NETWORK, **more}, *(f"--config.mesh.{axis}={n}" for axis, n in mesh.items()), devices=2)
  for name, leaf in one.items():
    np.testing.assert_allclose(two[name], leaf, atol=1e-5, err_msg=name)
