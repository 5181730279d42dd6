"""Bad input through the command line: exit code, a message that names the thing and what to do, nothing lost."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from align import checkpoint, main
from align.datasets import scenes_builder

TESTS = Path(__file__).parent / "support"
RUN = {"task": "train", "steps": 4, "batch": 8, "policy": {"name": "toy:policy"}, "data": {"name": "toy:data"},
       "algorithm": {"name": "sft"}, "log_every": 1, "save_every": 1}
ONLINE = {**RUN, "group": 4, "reward": {"name": "toy:reward"}, "data": {"name": "toy:data", "media": False},
          "algorithm": {"name": "nft", "levels": 2}, "patience": 2}


@pytest.fixture
def command(tmp_path, capsys):
  """(config, *arguments) -> (exit code, what was printed to stderr, checked to hold no traceback)."""
  def run(config, *arguments, workdir="run"):
    (tmp_path / "mine.py").write_text(f"def get_config(): return {config!r}\n")
    code = main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / workdir}", *arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said
  return run


def rows(path):
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("change, message", [
  ({"optim": {"name": "adamw", "lrr": 1.0}}, "config.optim.lrr"),
  ({"optim": {"name": "adamw", "lr": "fast"}}, "config.optim.lr = 'fast'"),
  ({"algorithm": {"name": "stf"}}, "nearest: 'sft'"),
  ({"trained": "^polcy/"}, "config.trained = '^polcy/' matches none"),
  ({"micro": 3}, "config.micro = 3 does not divide the 8 samples"),
  ({"batch": 12}, "12 samples cannot be cut evenly"),
  ({"mesh": {"data": 3}}, "config.mesh"),
  ({"start": {"policy": "no/such/run"}}, "model = 'no/such/run' holds no policy.safetensors"),
  ({"start": {"judge": "x"}}, "config.start.judge"),
  ({"export": "emma"}, "config.export = 'emma'"),
  ({"data": {"name": "folder", "path": "no/such/folder", "size": 4}}, "no/such/folder"),
  ({"algorithm": {"name": "dpo"}}, "batch entry 'win' is missing"),
  ({"algorithm": {"name": "grpo"}}, "reward = None"),
])
def test_impossible_configs(command, change, message):
  code, said = command({**RUN, **change})
  assert code == 2 and message in said, said


def test_an_empty_prompt_file(command, tmp_path):
  (tmp_path / "empty.txt").write_text("\n\n")
  code, said = command({**ONLINE, "data": {"name": "prompts", "path": str(tmp_path / "empty.txt")}})
  assert code == 2 and "empty.txt" in said and "one prompt a line is needed" in said


def test_a_workdir_that_cannot_be_made(command, tmp_path):
  (tmp_path / "file").write_text("")
  code, said = command(RUN, workdir="file/run")
  assert code == 2 and "file" in said


def test_a_full_disk_keeps_what_was_saved_and_the_same_command_goes_on(command, tmp_path, monkeypatch):
  monkeypatch.setenv("ALIGN_FAULT", "save:3:oserror")  # on the way the run goes on, the next save tries again
  assert command(RUN, workdir="on the way")[0] == 0
  monkeypatch.setenv("ALIGN_FAULT", "save:4:oserror")
  code, said = command(RUN)
  assert code == 2 and "disk is full" in said and "free some space" in said
  monkeypatch.delenv("ALIGN_FAULT")
  assert command(RUN)[0] == 0
  steps = [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row]
  assert steps == [1, 2, 3, 4] and (tmp_path / "run/export/policy.safetensors").is_file()


def test_a_damaged_shard_is_refused_by_name(command, tmp_path):
  place = scenes_builder.prepare(str(tmp_path / "data"), count=64)
  shard, = Path(place).glob("*train*array_record*")
  held = shard.read_bytes()
  shard.write_bytes(held[:len(held) // 2])
  code, said = command({**RUN, "policy": {"name": "toy:policy"}, "data": {"name": "tfds", "path": place}})
  assert code == 2 and shard.name in said, said


def test_broken_records_are_skipped_and_listed_and_many_stop_the_run(command, tmp_path, monkeypatch):
  big = {**RUN, "data": {"name": "toy:data", "count": 800}}
  monkeypatch.setenv("ALIGN_FAULT", "record:*:unreadable")
  code, said = command(big, workdir="all")
  assert code == 2 and "broken" in said and "record" in said


def test_one_experience_without_a_score_is_skipped_and_counted(command, tmp_path):
  assert command({**ONLINE, "reward": {"name": "toy:reward", "where": "host", "failing": 1}})[0] == 0
  found = rows(tmp_path / "run")
  assert [row["step"] for row in found if row.get("experience/valid") == 0.0] == [1]
  assert [row["step"] for row in found if "train/loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["device", "host"])
def test_rewards_that_are_never_finite_stop_the_run(command, tmp_path, monkeypatch, where):
  monkeypatch.setenv("ALIGN_FAULT", "reward:*:nan")
  code, said = command({**ONLINE, "reward": {"name": "toy:reward", "where": where}})
  assert code == 2 and "every reward" in said and "2 updates in a row" in said


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(command, tmp_path):
  spec = {**RUN, "steps": 12, "patience": 3, "optim": {"name": "sgd", "lr": 1e30}}
  code, said = command(spec)
  assert code == 2 and "3 updates in a row were skipped" in said and "is good and was kept" in said
  assert sum(row.get("train/skipped", 0) for row in rows(tmp_path / "run")) >= 3
  saved = checkpoint.open_(tmp_path / "run", keep=2)
  assert saved.steps()
  saved.close()


def test_sigterm_saves_and_the_same_command_finishes(tmp_path):
  config = {**RUN, "steps": 3000}
  (tmp_path / "mine.py").write_text(f"def get_config(): return {config!r}\n")
  line = [sys.executable, "-m", "align.main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
  environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent.parent}{os.pathsep}{TESTS}"}
  environment.pop("XLA_FLAGS", None)
  child = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
  file, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 240
  while not (file.is_file() and file.read_text().count("train/loss") > 3) and time.monotonic() < deadline:
    time.sleep(0.2)
  child.send_signal(signal.SIGTERM)
  _, said = child.communicate(timeout=120)
  assert child.returncode == 75 and "Traceback" not in said and "same command" in said, said
  stopped = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
  assert 3 < stopped < 3000
  environment["ALIGN_FAULT"] = f"stop:{stopped + 2}:sigterm"
  again = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
  assert again.returncode == 75, again.stderr
  steps = [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row]
  assert steps == list(range(1, stopped + 3)) and np.all(np.diff(steps) == 1)
