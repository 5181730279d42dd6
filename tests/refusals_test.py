"""Bad input through the command line: exit code, a message that names the thing and what to do, nothing lost."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import HASTY

from align import checkpoint, main
from align.datasets import scenes_builder

SUPPORT = Path(__file__).parent / "support"
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
  ({"trained": "Dense"}, "config.trained = 'Dense' matches none"),
  ({"trained": "out"}, "matches the role 'base', which is not trained"),
  ({"micro": 3}, "config.micro = 3 does not divide the 8 samples"),
  ({"batch": 12}, "12 samples cannot be cut evenly"),
  ({"mesh": {"data": 3}}, "config.mesh"),
  ({"start": {"policy": "no/such/run"}}, "model = 'no/such/run' holds no policy.safetensors"),
  ({"start": {"judge": "x"}}, "config.start.judge"),
  ({"export": "emma"}, "config.export = 'emma'"),
  ({"data": {"name": "folder", "path": "no/such/folder", "size": 4}}, "no/such/folder"),
  ({"algorithm": {"name": "dpo"}}, "batch entry 'win' is missing"),
  ({"algorithm": {"name": "grpo"}}, "reward = None"),
  ({"data": {"name": "digits"}}, "data entry 'media' is 8 x 8 x 1, but the policy makes 4 x 4 x 1"),
])
def test_impossible_configs(command, change, message):
  code, said = command({**RUN, **change})
  assert code == 2 and message in said, said


@pytest.mark.parametrize("reward, message", [
  ("scenes", "allowed are specs of Scenes"), ("scenes_scorer", "specs of the six categories of Scenes"),
  ("classifier", "label")])
def test_prompts_that_a_reward_cannot_judge(command, tmp_path, reward, message):
  (tmp_path / "prompts.txt").write_text("one circle\ntwo circles\n" * 4)
  code, said = command({**ONLINE, "reward": {"name": reward, **({"size": 4} if reward == "classifier" else {})},
                        "data": {"name": "prompts", "path": str(tmp_path / "prompts.txt")}})
  assert code == 2 and "config.reward with config.data" in said and message in said, said


def test_an_empty_prompt_file(command, tmp_path):
  (tmp_path / "empty.txt").write_text("\n\n")
  code, said = command({**ONLINE, "data": {"name": "prompts", "path": str(tmp_path / "empty.txt")}})
  assert code == 2 and "empty.txt" in said and "one prompt a line is needed" in said


def test_held_out_prompts_that_cannot_be_read(command, tmp_path):
  (tmp_path / "held.txt").write_text("a handwritten one\n{nonsense\n")
  probe = {"every": 2, "data": {"name": "prompts", "path": str(tmp_path / "held.txt")}, "samples": 1, "batch": 2,
           "rewards": {"toy": {"name": "toy:reward"}}}
  code, said = command({**RUN, "evaluate": probe})
  assert code == 2 and "held.txt" in said and "1 of 2 records" in said and "line 2: not JSON" in said, said


def test_another_config_in_the_workdir(command, tmp_path):
  assert command({**RUN, "steps": 1})[0] == 0
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
  code, said = command({**RUN, "steps": 1, "optim": {"name": "adamw", "lr": 0.5}})
  assert code == 2 and "holds a run with another config" in said and "config.optim.lr" in said and "0.5" in said
  assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}


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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return Path(scenes_builder.prepare(str(tmp_path_factory.mktemp("data")), count=64))


DAMAGES = {
  "cut": ("*train*array_record*", lambda file: file.write_bytes(file.read_bytes()[:9000])),
  "emptied": ("*train*array_record*", lambda file: file.write_bytes(b"")),
  "missing": ("*train*array_record*", lambda file: file.unlink()),
  "described wrongly": ("dataset_info.json", lambda file: file.write_text("{nonsense")),
  "not described": ("features.json", lambda file: file.unlink()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_data_set_is_refused_by_name(command, tmp_path, prepared, damage):
  place = tmp_path / "data" / prepared.name
  shutil.copytree(prepared, place)
  name, break_ = DAMAGES[damage]
  file, = place.glob(name)
  break_(file)
  code, said = command({**RUN, "data": {"name": "tfds", "path": str(place)}})
  assert code == 2 and file.name in said and str(place) in said, said


def test_a_few_broken_records_are_skipped_counted_and_listed(command, tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("ALIGN_FAULT", "record:7:unreadable,record:70:unreadable")
  assert command({**RUN, "steps": 30, "save_every": 30, "data": {"name": "toy:data", "count": 240}})[0] == 0
  assert "skipped, 2 in all (record 7: a planted fault; record 70: a planted fault)" in caplog.text
  assert (tmp_path / "run/skipped_records.0.txt").read_text() == "7\ta planted fault\n70\ta planted fault\n"


def test_many_broken_records_stop_the_run(command, monkeypatch):
  monkeypatch.setenv("ALIGN_FAULT", ",".join(f"record:{i}:unreadable" for i in (7, 70, 170)))
  code, said = command({**RUN, "steps": 30, "data": {"name": "toy:data", "count": 240}})
  assert code == 2 and "3 of 2" in said and "at most 1.0% may be (record 7: a planted fault;" in said, said


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


def test_sigterm_outside_of_training_ends_as_ctrl_c_does(tmp_path, capsys):
  (tmp_path / "mine.py").write_text("import signal\ndef get_config(): signal.raise_signal(signal.SIGTERM)\n")
  before = signal.getsignal(signal.SIGTERM)
  assert main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]) == 75
  assert "the same command continues" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_has_a_message(number, tmp_path, capsys):
  text = f"def get_config(): raise OSError({number}, 'no', '/some/file')\n"
  (tmp_path / "mine.py").write_text(text)
  assert main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
  said = capsys.readouterr().err
  assert "/some/file" in said and "then the same command continues" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_finishes(tmp_path, number):
  """Interrupted by a user's signal, at a step that nobody chose."""
  config = {**RUN, "steps": 1500, "save_every": 1500}
  (tmp_path / "mine.py").write_text(f"def get_config(): return {config!r}\n")
  line = [sys.executable, "-m", "align.main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
  environment = {**os.environ, "PYTHONPATH": f"{SUPPORT.parent.parent}{os.pathsep}{SUPPORT}", "XLA_FLAGS": HASTY}
  child = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
  file, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 240
  while not (file.is_file() and file.read_text().count("train/loss") > 3) and time.monotonic() < deadline:
    time.sleep(0.02)
  child.send_signal(number)
  _, said = child.communicate(timeout=120)
  assert child.returncode == 75 and "Traceback" not in said and "same command" in said, said
  stopped = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
  assert 3 < stopped < 1500
  again = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
  assert again.returncode == 0, again.stderr
  steps = [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row]
  assert steps == list(range(1, 1501))
