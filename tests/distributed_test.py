"""Two processes on this machine train as one does: the same global batch, the same losses."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from commands import ROOT

RUN = {"task": "train", "steps": 3, "batch": 8, "group": 4, "policy": {"name": "toy:policy"}, "log_every": 1,
       "data": {"name": "toy:data", "media": False}, "reward": {"name": "toy:reward", "where": "host"},
       "algorithm": {"name": "nft", "levels": 2}, "optim": {"name": "sgd", "lr": 0.1}}


def started(folder: Path, workdir: str, *more):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  path = f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}"
  line = [sys.executable, "-m", "align.main", f"--config={folder / 'mine.py'}", f"--workdir={folder / workdir}", *more]
  return subprocess.Popen(line, env={**environment, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


def losses(folder: Path) -> list:
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [row["train/loss"] for row in rows if "train/loss" in row]


def test_two_processes_are_one(tmp_path):
  (tmp_path / "mine.py").write_text(f"def get_config(): return {RUN!r}\n")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  together = [started(tmp_path, "two", f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}")
              for i in range(2)]
  alone = started(tmp_path, "one")
  for child in (*together, alone):
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
  assert len(losses(tmp_path / "two")) == 3
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  weights = [(tmp_path / where / "export/policy.safetensors").stat().st_size for where in ("one", "two")]
  assert weights[0] == weights[1]
