"""The commands of a run on a TPU slice: printed, and what follows from what a stand-in for gcloud answers."""
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import ROOT, command

from align import topology
from launch import tpu_vm

RUN = ["run", "mine", "--slice=v5e:4x4", "--zone=zone-a", "--poll=0", "--", "--config=configs/digits.py",
       "--workdir=/mnt/x y"]
GCLOUD = """#!{python}
import json, sys
log = "{log}"
calls = [json.loads(line) for line in open(log)]
words = sys.argv[1:]
verb = next(w for w in words if w in ("describe", "create", "delete", "scp", "ssh"))
line = next((w for w in words if w.startswith("--command=")), "")
if verb == "ssh":
  verb = next((k for k in ("pgrep", "pkill", "cat ", "tail", "nohup") if k in line), "install")
asked = verb
answers = json.load(open("{answers}")).get(asked.strip(), [])
seen = sum(call[0] == asked.strip() for call in calls)
with open(log, "a") as file:
  file.write(json.dumps([asked.strip(), words]) + "\\n")
answer = answers[min(seen, len(answers) - 1)] if answers else ""
if answer is None:
  sys.exit("NOT_FOUND")
if answer is False:
  sys.exit("UNAVAILABLE")
print(answer)
"""


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
  """(answers by what is asked, one after another, the last one again; None: there is none, False: it fails) -> (exit
  code, what was asked)."""
  log = tmp_path / "log"
  log.write_text("")
  script = tmp_path / "gcloud"
  script.write_text(GCLOUD.format(python=sys.executable, log=log, answers=tmp_path / "answers"))
  script.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{ROOT}:/usr/bin:/bin")
  monkeypatch.chdir(ROOT)

  def call(arguments, **answers):
    (tmp_path / "answers").write_text(json.dumps(answers))
    code = tpu_vm.main(arguments)
    return code, [json.loads(line) for line in log.read_text().splitlines()]
  return call


@pytest.fixture(autouse=True)
def archive(monkeypatch):
  """A checkout of which git makes an archive, also where the tests' own files were copied without one."""
  run = subprocess.run
  monkeypatch.setattr(tpu_vm.subprocess, "run", lambda words, **more: (
    subprocess.CompletedProcess(words, 0, "", "") if words[0] == "git" else run(words, **more)))


@pytest.mark.parametrize("slice_, expected", [
  ("v5e:4x4", ("v5litepod-16", "v2-alpha-tpuv5-lite")), ("v5e:1x1", ("v5litepod-1", "v2-alpha-tpuv5-lite")),
  ("v5p:2x2x4", ("v5p-32", "v2-alpha-tpuv5")), ("v6e:16x16", ("v6e-256", "v2-alpha-tpuv6e"))])
def test_slices_are_called_as_plans_call_them(slice_, expected):
  assert tpu_vm.accelerator(slice_) == expected


def test_the_same_slices_are_on_offer_as_plans_know():
  assert {name: kind.shapes for name, kind in tpu_vm.KINDS.items()} == {
    name: chip.slices for name, chip in topology.CHIPS.items()}


def test_a_dry_run_prints_every_command_and_runs_none(capsys, monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert tpu_vm.main([*RUN[:5], "--dry-run", "--spot", "--setup=gcsfuse mine /mnt/x", *RUN[5:]]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert all(line.startswith(("gcloud compute tpus ", "git archive ")) for line in lines)
  asked = [line for line in lines if line.startswith("gcloud")]
  assert all("--zone=zone-a" in line for line in asked)
  created, = [line for line in asked if " create " in line]
  assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot" in created
  assert "--node-id=mine" in created
  installing = next(line for line in asked if "pip install" in line)
  assert "--worker=all" in installing and "code[tpu]" in installing and "gcsfuse mine /mnt/x" in installing
  starting = next(line for line in asked if "nohup" in line)
  assert "--distributed --config=configs/digits.py" in starting and "/mnt/x y" in starting
  assert [k for line in lines for k in ("create", "archive", "scp", "pip install", "nohup", "cat ") if k in line] == [
    "create", "archive", "scp", "pip install", "nohup", "cat "]


def test_what_runs_on_a_worker_is_what_was_asked_for(tmp_path):
  """The line of shell that starts a run, run here, with a Python that notes its arguments."""
  home = tmp_path / tpu_vm.HOME
  (home / "code").mkdir(parents=True)
  (home / "venv" / "bin").mkdir(parents=True)
  python = home / "venv" / "bin" / "python"
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > ../arguments\nexit 75\n')
  python.chmod(0o755)
  given = []
  cloud = type("Here", (), {"everywhere": lambda self, script: given.append(script)})()
  tpu_vm.started(cloud, tpu_vm.argparse.Namespace(arguments=RUN[6:]))
  subprocess.Popen(["bash", "-c", given[0]], cwd=tmp_path).wait()
  assert awaited(lambda: (home / "exit").exists() and (home / "exit").read_text()) == "75\n"
  assert (home / "arguments").read_text().splitlines() == ["-m", "align.main", "--distributed", *RUN[6:]]


@pytest.mark.skipif(not (shutil.which("pgrep") and os.path.exists("/proc")), reason="needs pgrep and /proc")
def test_a_run_is_found_without_the_shell_that_notes_its_exit_code(tmp_path):
  """Of the processes that pgrep finds here, which are not ended by its pattern, those of this folder count."""
  code = tmp_path / tpu_vm.HOME / "code"
  (code / "align").mkdir(parents=True)
  (code / "align" / "__init__.py").touch()  # else a PYTHONPATH's package goes before it
  (code / "align" / "main.py").write_text("import signal, sys, time\n"
                                          "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
                                          "open('ready', 'w').close()\ntime.sleep(30)\n")
  (code.parent / "venv" / "bin").mkdir(parents=True)
  (code.parent / "venv" / "bin" / "python").symlink_to(sys.executable)
  cloud = type("Here", (), {"everywhere": lambda self, script: subprocess.run(["bash", "-c", script], cwd=tmp_path)})()
  tpu_vm.started(cloud, tpu_vm.argparse.Namespace(arguments=RUN[6:]))

  def found():
    pids = subprocess.run(["pgrep", "-f", tpu_vm.PROCESS], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in pids if within(pid, code)]
  assert awaited((code / "ready").exists)
  run, = found()
  os.kill(run, signal.SIGTERM)
  assert awaited(lambda: (code.parent / "exit").exists() and (code.parent / "exit").read_text()) == "75\n"
  assert not found()


def within(pid, folder):
  try:
    return os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve())
  except OSError:  # it has ended
    return False


def awaited(look):
  """What `look` returns, once it is something; for a minute at most, as a busy machine starts processes slowly."""
  for _ in range(1200):
    if found := look():
      return found
    tpu_vm.time.sleep(0.05)
  return None


def test_a_slice_is_awaited_used_and_its_exit_code_passed_on(gcloud):
  code, asked = gcloud(RUN, describe=[None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], pgrep=["idle\nidle"],
                       cat=["running\nrunning", "0\nrunning", "0\n0"])
  assert code == 0
  assert [name for name, _ in asked] == ["describe", "create", "describe", "describe", "describe", "pgrep", "scp",
                                         "install", "nohup", *["describe", "cat"] * 3]


def test_a_preempted_slice_is_asked_for_again(gcloud, capsys):
  code, asked = gcloud(RUN, describe=["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", None, "ACTIVE"], pgrep=["idle"],
                       cat=["running", "0"])
  assert code == 0 and "the slice is gone, it is asked for again" in capsys.readouterr().out
  names = [name for name, _ in asked]
  assert names.index("delete") < names.index("create") and names.count("nohup") == 2


def test_a_run_that_stopped_resumably_is_started_again_but_not_for_ever(gcloud, capsys):
  code, asked = gcloud([*RUN[:5], "--restarts=2", *RUN[5:]], describe=["ACTIVE"], pgrep=["idle"], cat=["75\n0"])
  assert code == 75 and [name for name, _ in asked].count("nohup") == 3
  assert "was restarted --restarts = 2 times" in capsys.readouterr().err


def test_a_failure_of_one_worker_ends_the_others(gcloud, capsys):
  code, asked = gcloud(RUN, describe=["ACTIVE"], pgrep=["idle"], cat=["2\nrunning"], tail=["error: config.steps"])
  assert code == 2 and [name for name, _ in asked][-3:] == ["cat", "pkill", "tail"]
  assert "error: config.steps" in capsys.readouterr().out


def test_a_run_that_lives_is_watched_and_not_started_twice(gcloud):
  code, asked = gcloud(RUN, describe=["ACTIVE"], pgrep=["busy\nidle"], cat=["0"])
  assert code == 0 and [name for name, _ in asked] == ["describe", "pgrep", "describe", "cat"]


def test_a_moment_without_an_answer_changes_nothing(gcloud):
  code, asked = gcloud(RUN, describe=["ACTIVE", False, False, "ACTIVE"], pgrep=[False, "busy"], cat=[False, "0"])
  assert code == 0 and [name for name, _ in asked] == [
    "describe", "pgrep", "pgrep", "describe", "describe", "describe", "cat", "describe", "cat"]


@pytest.mark.parametrize("answers, last", [({"describe": [*[False] * 10, "FAILED"]}, "describe"),
                                           ({"describe": ["ACTIVE"], "pgrep": [False], "cat": ["0"]}, "pgrep")])
def test_without_any_answer_nothing_is_started_or_given_up(answers, last, gcloud, capsys):
  code, asked = gcloud(RUN, **answers)
  assert code == 2 and "failed: UNAVAILABLE" in capsys.readouterr().err
  assert [name for name, _ in asked].count(last) == tpu_vm.TRIES
  assert not {name for name, _ in asked} & {"create", "delete", "install", "nohup"}


def test_a_slice_whose_workers_do_not_answer_is_given_back(gcloud):
  code, asked = gcloud(["stop", "mine", "--zone=z", "--poll=0"], describe=["ACTIVE"], pgrep=[False])
  assert code == 0 and asked[-1][0] == "delete"


def test_a_slice_that_cannot_be_given_back_is_said(gcloud, capsys):
  """It goes on to cost; where it is gone already, all is well."""
  arguments = ["stop", "mine", "--zone=z", "--poll=0"]
  code, _ = gcloud(arguments, describe=["ACTIVE"], pgrep=["idle"], delete=[False])
  assert code == 2 and "delete mine" in capsys.readouterr().err
  code, _ = gcloud(arguments, describe=["ACTIVE"], pgrep=["idle"], delete=[None])
  assert code == 0


def test_stop_ends_the_run_and_gives_the_slice_back(gcloud):
  code, asked = gcloud(["stop", "mine", "--zone=z", "--poll=0"], describe=["ACTIVE"], pgrep=["busy", "busy", "idle"])
  assert code == 0 and [name for name, _ in asked] == ["describe", "pkill", "pgrep", "pgrep", "pgrep", "delete"]
  code, asked = gcloud(["stop", "mine", "--zone=z", "--poll=0", "--keep"], describe=[None])
  assert [name for name, _ in asked][6:] == ["describe"]


@pytest.mark.parametrize("arguments, message", [
  (["run", "mine", "--slice=v5:4x4", "--zone=z", "--", "--config=x"], "'v5:4x4' must be a kind of v5e.*nearest"),
  (["run", "mine", "--slice=v5p:4x4", "--zone=z", "--", "--config=x"], "v5p comes as 2x2x1, .*nearest: 'v5p:2x2x4'"),
  (["run", "mine", "--slice=v5e:3x3", "--zone=z", "--", "--config=x"], "v5e comes as 1x1, .*nearest: 'v5e:2x4'"),
  (["run", "mine", "--slice=v5e", "--zone=z", "--", "--config=x"], "'v5e': v5e comes as 1x1, .* choose one of them$"),
  (["run", "mine", "--slice=v5e:4x4", "--zone=z"], "nothing stands behind --")])
def test_refusals(arguments, message, capsys):
  assert tpu_vm.main(arguments) == 2
  assert tpu_vm.re.search(message, capsys.readouterr().err)


def test_a_failed_request_and_a_missing_gcloud_are_named(gcloud, capsys, monkeypatch):
  assert gcloud(RUN, describe=["FAILED"])[0] == 2
  assert "mine is FAILED" in capsys.readouterr().err
  monkeypatch.setenv("PATH", "")
  assert tpu_vm.main(RUN) == 2
  said = capsys.readouterr().err
  assert "gcloud is not installed" in said and "asked again" not in said


def test_help_names_the_verbs():
  code, said = command("launch.tpu_vm", "--help", where=ROOT)
  assert code == 0 and "{run,status,stop}" in said
