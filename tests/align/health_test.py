"""Monitors against closed forms, the alarm rule on made-up rows, and what an alarm does to a run."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from align import evaluate, guard, health, main, metrics, report, tree
from align.build import UserError
from diffusion import folder
from rewards import diversity

SIDE = 8
CHECKERS = (np.indices((SIDE, SIDE)).sum(0) % 2)[..., None]


def picture(grey, channels=3):
  """uint8 of values in 0 .. 255 [H W 1]."""
  return np.broadcast_to(np.asarray(grey, np.uint8), (SIDE, SIDE, channels))


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_saturation_is_that_of_the_colour():
  assert health.saturation(picture(CHECKERS * 255)) == 0
  red = np.zeros((SIDE, SIDE, 3), np.uint8)
  red[..., 0] = 255
  assert health.saturation(red) == 1 and health.saturation(red // 5) == 0.2
  assert health.saturation(np.maximum(red, 51)) == 0.8


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_is_the_deviation_of_the_luma(channels):
  assert health.contrast(picture(100, channels)) == pytest.approx(0, abs=1e-12)
  assert health.contrast(picture(CHECKERS * 255, channels)) == pytest.approx(0.5)
  green = np.zeros((SIDE, SIDE, 3), np.uint8)
  green[:4, :, 1] = 255
  assert health.contrast(green) == pytest.approx(0.587 / 2)


def test_high_frequencies_are_those_of_waves_shorter_than_four_pixels():
  assert health.high_frequency(picture(77)) == pytest.approx(0, abs=1e-12)
  assert health.high_frequency(picture(CHECKERS * 102 + 51)) == pytest.approx(0.2 ** 2)
  row = np.arange(SIDE)[None, :, None]
  for pixels, expected in ((8, 0), (4, 0), (8 / 3, 1), (2, 1)):
    wave = 127.5 + 127 * np.cos(2 * np.pi * row / pixels) * np.ones((SIDE, 1, 1))
    power = health.high_frequency(picture(np.round(wave)))
    assert power == pytest.approx(expected * health.contrast(picture(np.round(wave))) ** 2, rel=2e-3, abs=1e-4), pixels
  noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1))
  assert 0 < health.high_frequency(picture(noise)) < health.contrast(picture(noise)) ** 2


def test_motion_of_clips():
  still = np.broadcast_to(picture(9), (1, 2, 4, SIDE, SIDE, 3))
  blinking = np.where((np.arange(4) % 2)[:, None, None, None], 255, 0).astype(np.uint8) * np.ones_like(still)
  assert {k: health.monitors(still)[k] for k in ("motion", "static_fraction")} == {"motion": 0, "static_fraction": 1}
  found = health.monitors(np.concatenate([still, blinking]))
  assert found["motion"] == 0.5 and found["static_fraction"] == 0.5 and found["contrast"] < 1e-12
  assert "motion" not in health.monitors(still[:, :, 0]) and "motion" not in health.monitors(still[:, :, :1])


def test_monitors_are_means_over_all_samples_of_all_prompts():
  samples = np.stack([np.stack([picture(0), picture(CHECKERS * 255)]), np.stack([picture(255), picture(7)])])
  assert health.monitors(samples) == pytest.approx(
    {"saturation": 0, "contrast": 0.5 / 4, "high_frequency": 0.25 / 4}, abs=1e-12)


def test_identical_samples_have_no_diversity():
  same = np.broadcast_to(picture(CHECKERS * 255), (2, 5, SIDE, SIDE, 3))
  for kind in (diversity.pixels(), diversity.pixels(correct_only=True)):
    np.testing.assert_allclose(kind.measure(same, [{}] * 2, np.ones((2, 5), bool)), 0, atol=1e-7)


def test_spreads_leave_out_what_failed():
  found = health.spreads({"a": np.array([[1.0, 3], [np.nan, 5]]), "b": np.full((1, 2), np.nan)})
  assert found == {"guard/std/a": pytest.approx(np.std([1, 3, 5]))}


# --- the rule ---------------------------------------------------------------------------------------------------------

BASE = {"trained": 1.0, "a/total": 5.0, "b/total": 5.0, "c/total": 5.0, "a/part": 5.0, "diversity": 0.4,
        "high_frequency": 0.01, "saturation": 0.3, "contrast": 0.2, "motion": 0.1}
SIGMA = {"trained": 2.0, "a/total": 4.0, "b/total": 4.0, "c/total": 4.0, "a/part": 4.0}
EXACT = {"rise": 1.0, "fall": 1.0, "least": 2, "row": 1, "diversity": 0.5, "high_frequency": 2.0, "saturation": 2.0,
         "contrast": 2.0, "motion": 0.5}


def rows(*changes):
  """Metrics of a run: the base, then one evaluation for each dict of changes, with rows of training in between."""
  sigma = {f"guard/std/{k}": v for k, v in SIGMA.items()}
  out = []
  for i, change in enumerate(({}, *changes)):
    out += [{"step": 10 * i, **{f"heldout/{k}": v for k, v in {**BASE, **change}.items()}, **sigma},
            {"step": 10 * i + 1, "train/loss": 1.0}]
  return out


def seen(*changes, **options):
  return health.alarm(rows(*changes), health.rule(**{**EXACT, **options}))


TRADED = {"trained": 3.0, "a/total": 1.0, "b/total": 1.0}  # up by one sigma, two down by one


@pytest.mark.parametrize("change, still", [
  (TRADED, {**TRADED, "trained": 2.9}), (TRADED, {**TRADED, "b/total": 1.1}), (TRADED, {**TRADED, "b/total": None}),
  ({"diversity": 0.19}, {"diversity": 0.2}), ({"high_frequency": 0.021}, {"high_frequency": 0.02}),
  ({"saturation": 0.61}, {"saturation": 0.6}), ({"saturation": 0.14}, {"saturation": 0.15}),
  ({"contrast": 0.41}, {"contrast": 0.4}), ({"contrast": 0.09}, {"contrast": 0.1}),
  ({"motion": 0.04}, {"motion": 0.05}), ({"diversity": 0.1}, {"diversity": None})])
def test_every_clause_at_its_boundary(change, still):
  assert seen(still) is None
  found = seen(change)
  assert (found.step, found.began, found.good) == (10, 10, 0) and len(found.reasons) == 1
  assert next(iter(change)) in found.reasons[0]


def test_a_reason_has_its_numbers():
  assert seen(TRADED).reasons == ("trained is up by 1.00 sigma while a/total is down by 1.00, b/total is down by 1.00",)
  assert seen({"contrast": 0.05}).reasons == ("contrast is 0.25 times the base's",)
  assert health.sentence(seen({"contrast": 0.05})) == (
    "step 10: the reward is probably being hacked: contrast is 0.25 times the base's; so in every evaluation since "
    "step 10; nothing was wrong at step 0")


def test_thresholds_are_options_and_zero_leaves_a_clause_out():
  assert seen(TRADED, least=3) is None and seen({**TRADED, "c/total": 1.0}, least=3)
  assert seen(TRADED, rise=1.1) is None and seen(TRADED, fall=1.1) is None
  assert seen({"a/total": 0.0, "b/total": 0.0, "c/total": 0.0}) is None  # nothing was bought with it
  for name, value in (("diversity", 0.0), ("high_frequency", 9.0), ("saturation", 9.0), ("contrast", 9.0),
                      ("motion", 0.0)):
    assert seen({name: value}) and seen({name: value}, **{name: 0.0}) is None


def test_what_is_watched_can_be_named():
  parts = {"trained": 3.0, "a/part": 1.0, "b/total": 1.0}
  assert seen(parts) is None and seen(parts, heldout=("a/part", "b/total"))
  assert seen({"a/total": 9.0, "b/total": 1.0, "c/total": 1.0}, trained="a/total")


def test_a_metric_that_is_not_there_or_does_not_vary_says_nothing():
  bare = [{k: v for k, v in row.items() if not k.endswith(("trained", "motion"))} for row in rows(TRADED)]
  assert health.alarm(bare, health.rule(**EXACT)) is None
  flat = [{**row, "guard/std/b/total": 0.0} for row in rows(TRADED)]
  assert health.alarm(flat, health.rule(**EXACT)) is None
  grey = [{**row, "heldout/saturation": 0.0} if row["step"] == 0 else row for row in rows({"saturation": 0.5})]
  assert health.alarm(grey, health.rule(**EXACT)) is None
  for none in ([], [{"step": 1, "train/loss": 1.0}]):
    assert health.alarm(none, health.rule()) is None


def far(*values, **options):
  """The alarm of a run whose update before each evaluation but the first logs such distances."""
  trace = rows(*[{} for _ in values])
  for row, kl in zip(trace[1::2], values, strict=False):
    row |= kl
  return health.alarm(trace, health.rule(**{**EXACT, "kl": 0.1, **options}))


def test_a_distance_from_the_reference_is_a_clause_where_its_threshold_is_given():
  away = {"train/kl": 0.05, "train/kl_early": 0.02, "train/kl_late": 0.125}
  found = far(away)
  assert (found.step, found.began, found.good, found.reasons) == (10, 10, 0, ("train/kl_late is 0.125, above 0.1",))
  assert far(away, kl=None) is None and far(away, kl=0.125) is None and far({"train/kl_old": 9.0}) is None
  assert far({"train/kl": 0.2, "train/kl_early": 0.3}).reasons == (
    "train/kl is 0.2, above 0.1, train/kl_early is 0.3, above 0.1",)
  assert far({"train/kl": None, "train/kl_late": float("nan")}) is None
  assert far(away, {}, row=2).step == 20                       # what was logged last counts
  assert far(away, {"train/kl_late": 0.0}, away, row=2) is None


def test_evaluations_count_in_a_row():
  bad, fine, other = {"diversity": 0.1}, {}, {"motion": 0.0}
  assert seen(bad, bad, fine, bad, bad, row=3) is None
  found = seen(fine, bad, fine, bad, bad, bad, bad, row=3)
  assert (found.step, found.began, found.good) == (60, 40, 30)
  assert seen(bad, other, bad, other, row=2) is None  # one and the same clause
  found = seen(fine, other, bad, bad, row=2)
  assert (found.step, found.began, found.good) == (40, 30, 10)  # before the other one


@pytest.mark.parametrize("options, message", [
  ({"action": "pause"}, "action = 'pause' is not one of mark, stop, rollback"),
  ({"row": 0}, "row = 0 must be at least 1"), ({"least": 0}, "least = 0 must be at least 1"),
  ({"rise": 0.0}, "rise = 0.0 must be positive"), ({"fall": -1.0}, "fall = -1.0 must be positive"),
  ({"diversity": 1.0}, r"diversity = 1.0 must be in \[0, 1\)"), ({"motion": -0.1}, "motion = -0.1"),
  ({"contrast": 0.9}, "contrast = 0.9 must be above 1"), ({"high_frequency": 1.0}, "0 leaves it out"),
  ({"saturation": -2.0}, "saturation = -2.0"), ({"kl": 0.0}, "kl = 0.0 must be positive, in the units of train/kl")])
def test_thresholds_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    health.rule(**options)


ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "configs/records/hacking").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_runs_have_the_alarms_that_the_rule_gives(path):
  """Runs with a planted exploit and without, by the thresholds as they are now."""
  for name, trace in json.loads(path.read_text())["traces"].items():
    columns = trace["columns"]
    found = health.alarm([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
                         health.rule())
    recorded = trace["alarm"]
    assert (found and found.step) == (recorded and recorded["step"]), name
    assert columns["guard/alarm"] == [float(bool(found) and step >= found.step) for step in columns["step"]], name


def test_recorded_runs_on_fresh_seeds_are_told_apart():
  """At least 38 of 40 with the exploit and at most 2 of 40 without, on seeds that no threshold was chosen on."""
  found = [(name.split("_"), trace["alarm"]) for path in RECORDS
           for name, trace in json.loads(path.read_text())["traces"].items()]
  alarms = {kind: [alarm is not None for (k, seed), alarm in found if k == kind and int(seed) >= 20]
            for kind in ("clean", "exploited")}
  assert {kind: len(values) for kind, values in alarms.items()} == {"clean": 40, "exploited": 40}
  assert sum(alarms["exploited"]) >= 38 and sum(alarms["clean"]) <= 2


# --- a run ------------------------------------------------------------------------------------------------------------

LOUD = {"row": 2, "contrast": 1.1, "diversity": 0.0, "saturation": 0.0, "high_frequency": 0.0}


def config(action="mark", **more):
  return {"task": "train", "steps": 6, "batch": 4, "group": 2, "policy": {"name": "toy:policy"}, "log_every": 1,
          "data": {"name": "toy:data", "media": False}, "reward": {"name": "toy:reward"}, "save_every": 4, "keep": 9,
          "algorithm": {"name": "refl", "steps": 2, "weight": 1.0, "phi": "linear"},
          "optim": {"name": "sgd", "lr": 0.5},
          "evaluate": {"every": 1, "data": {"name": "toy:data", "media": False, "count": 2}, "samples": 3, "batch": 6,
                       "rewards": {"host": {"name": "toy:reward", "where": "host"}}, "diversity": "pixels",
                       "guard": {**LOUD, "action": action}}, **more}


def heldout(workdir):
  return [{k: v for k, v in row.items() if k != "time"} for row in metrics.read(workdir) if health.is_heldout(row)]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
  place = tmp_path_factory.mktemp("health") / "marked"
  main.run(config(), place)
  return place


def test_a_marked_run_goes_on_and_says_so(marked):
  found, trace = health.read(marked), heldout(marked)
  assert [row["step"] for row in trace] == list(range(7)) and found["action"] == "mark"
  assert found["step"] > 1 and found["good"] < found["began"] == found["step"] - 1 and "contrast" in found["reasons"][0]
  assert [row["guard/alarm"] for row in trace] == [float(step >= found["step"]) for step in range(7)]
  assert trace[0]["heldout/trained"] == pytest.approx(trace[0]["heldout/host/total"], abs=1e-6)
  assert trace[-1]["heldout/trained"] > trace[0]["heldout/trained"] and trace[0]["guard/std/trained"] > 0
  assert trace[0]["heldout/diversity"] > 0 and {"heldout/saturation", "heldout/high_frequency"} <= set(trace[0])
  assert not (marked / "good").exists()


def test_the_rule_can_be_asked_again_of_a_finished_run(marked):
  again = health.alarm(metrics.read(marked), health.rule(**LOUD))
  assert {**again._asdict(), "reasons": list(again.reasons), "action": "mark"} == health.read(marked)
  assert health.alarm(metrics.read(marked), health.rule(**{**LOUD, "contrast": 0.0})) is None


def test_stop_saves_and_keeps_the_last_good_parameters(marked, tmp_path, capsys):
  (tmp_path / "mine.py").write_text(f"def get_config(): return {config('stop')!r}\n")
  line = [f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
  expected = health.read(marked)
  for _ in range(2):  # the same command does not go on
    assert main.main(line) == health.Alarmed.code == 3
    said = capsys.readouterr().err
    assert f"step {expected['step']}: the reward is probably being hacked" in said and "Traceback" not in said
    assert f"nothing was wrong at step {expected['good']}, whose parameters are kept in" in said
    assert "guard.action=rollback" in said
  assert heldout(tmp_path / "run") == heldout(marked)[:expected["step"] + 1]
  assert (tmp_path / "run/checkpoints" / str(expected["step"])).is_dir()
  assert [p.name for p in (tmp_path / "run/good/checkpoints").iterdir() if p.name.isdigit()] == [str(expected["good"])]
  assert not (tmp_path / "run/export").exists()
  assert main.main([*line, "--config.evaluate.guard.action=rollback"]) == 0
  kept = exported(tmp_path / "run")
  main.run(config(steps=expected["good"], evaluate=None), tmp_path / "short")
  short = exported(tmp_path / "short")
  for leaf in kept:
    np.testing.assert_array_equal(kept[leaf], short[leaf], err_msg=leaf)
  assert main.main([*line, "--config.evaluate.guard.action=mark"]) == 0  # on, to the end
  assert heldout(tmp_path / "run") == heldout(marked)


def test_the_report_of_an_evaluation_says_which_runs_were_alarmed(marked, tmp_path):
  toy = {"name": "toy:reward", "where": "host"}
  arms = {"marked": str(marked), "other": str(marked / "export")}
  results = evaluate.evaluate(str(tmp_path), arms=arms, primary="marked", baseline="other", rewards={"toy": toy},
                              data={"name": "toy:data", "media": False, "count": 2}, success="toy/total", samples=1,
                              batch=2)
  assert results["alarms"] == {"marked": health.read(marked)}
  page = (tmp_path / "report.html").read_text()
  assert "<h2>Alarms</h2>" in page and "contrast is 0." in page and "learned what the reward pays for" in page
  assert "alarms" in evaluate.read(tmp_path) and report.alarms({"arms": {}}) == report.alarms({"alarms": {}}) == ""


def exported(workdir):
  return tree.flatten(folder.load(str(workdir), "policy"))


@pytest.mark.parametrize("at", [2, 3])
def test_a_stopped_run_goes_on_with_what_the_guard_had_seen(marked, tmp_path, monkeypatch, at):
  """The signal comes before the evaluation of its step, which the next start makes good."""
  monkeypatch.setenv("ALIGN_FAULT", f"stop:{at}:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(config(), tmp_path / "run")
  monkeypatch.delenv("ALIGN_FAULT")
  main.run(config(), tmp_path / "run")
  assert heldout(tmp_path / "run") == heldout(marked) and health.read(tmp_path / "run") == health.read(marked)


def test_the_guard_hears_of_the_distance_by_noise_level_also_where_a_run_was_stopped(tmp_path, monkeypatch):
  calm = {**LOUD, "contrast": 0.0, "kl": 1e-9}
  of = lambda **more: {**config()["evaluate"], "guard": {**calm, **more}}
  method = {"name": "grpo", "steps": 4, "clip": 0.1, "beta": 0.1}
  made = {**config(), "algorithm": method, "log_every": 2, "evaluate": of()}
  main.run(made, tmp_path / "whole")
  monkeypatch.setenv("ALIGN_FAULT", "stop:2:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(made, tmp_path / "parts")
  monkeypatch.delenv("ALIGN_FAULT")
  main.run(made, tmp_path / "parts")
  found = health.read(tmp_path / "whole")
  assert (found["began"], found["step"]) == (2, 3) and "train/kl_early is" in found["reasons"][0]
  assert health.read(tmp_path / "parts") == found and heldout(tmp_path / "parts") == heldout(tmp_path / "whole")
  again = health.alarm(metrics.read(tmp_path / "whole"), health.rule(**calm))
  assert list(again.reasons) == found["reasons"] and again.step == found["step"]
  drawn = evaluate.heldout_curves(tmp_path / "whole")
  assert drawn["train/kl_late"][0] == [1, 2, 4, 6] and drawn["train/kl_late"][1][-1] > 0
  with pytest.raises(health.Alarmed, match="kl_early is"):
    main.run({**made, "evaluate": of(action="stop")}, tmp_path / "stopped")
  assert (tmp_path / "stopped/good/checkpoints/1").is_dir()


def test_a_run_whose_first_evaluation_is_lost_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("ALIGN_FAULT", "stop:1:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(config(), tmp_path)
  (tmp_path / "metrics.jsonl").unlink()
  monkeypatch.delenv("ALIGN_FAULT")
  with pytest.raises(UserError, match="has no evaluation of step 0.*goes on at step 1; put the file back"):
    main.run(config(), tmp_path)


def test_there_is_nothing_to_go_back_to_where_it_was_not_kept(marked, tmp_path):
  kept = health.open_(marked, 6, health.rule(**LOUD, action="rollback"))
  try:
    kept = kept._replace(workdir=tmp_path, good=health.checkpoint.open_(tmp_path / "good", keep=1))
    with pytest.raises(UserError, match="holds no parameters to go back to; they are kept where guard.action is stop"):
      health.end(kept, health.ends(kept), {"policy": {"w": np.zeros(1)}})
  finally:
    health.close(kept)


def test_options_of_the_guard_are_checked_with_the_config(tmp_path):
  wrong = config()
  wrong["evaluate"]["guard"] = {"diversty": 0.5}
  with pytest.raises(UserError, match="config.evaluate.guard.diversty.*nearest: 'diversity'"):
    main.run(wrong, tmp_path)
  wrong["evaluate"]["guard"] = {"row": 0}
  with pytest.raises(UserError, match="config.evaluate.guard: row = 0 must be at least 1"):
    main.run(wrong, tmp_path)
  wrong["evaluate"] = {**config()["evaluate"], "rewards": {"trained": {"name": "toy:reward"}}}
  with pytest.raises(UserError, match="config.evaluate.rewards.trained.*rename it"):
    main.run(wrong, tmp_path / "other")


@pytest.mark.slow
def test_two_processes_stop_and_roll_back_as_one(marked, tmp_path):
  (tmp_path / "mine.py").write_text(f"def get_config(): return {config('stop')!r}\n")
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                 "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}"}
  for more, expected in ((), 3), ((), 3), (("--config.evaluate.guard.action=rollback",), 0):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    line = [sys.executable, "-m", "align.main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}",
            f"--coordinator=localhost:{port}", "--processes=2", *more]
    together = [subprocess.Popen([*line, f"--process={i}"], env=environment, stderr=subprocess.PIPE, text=True)
                for i in range(2)]
    for child in together:
      _, said = child.communicate(timeout=500)
      assert child.returncode == expected, said
  found, alone = health.read(tmp_path / "run"), health.read(marked)
  assert all(found[k] == alone[k] for k in ("step", "began", "good"))
  main.run(config(steps=found["good"], evaluate=None), tmp_path / "short")
  kept, short = exported(tmp_path / "run"), exported(tmp_path / "short")
  for leaf in kept:
    np.testing.assert_allclose(kept[leaf], short[leaf], atol=1e-6, err_msg=leaf)


def test_processes_agree_on_what_was_seen(monkeypatch):
  """What process 0 read is broadcast as bytes, its length first."""
  sent = []
  monkeypatch.setattr(health.jax, "process_count", lambda: 2)
  monkeypatch.setattr(health.multihost_utils, "broadcast_one_to_all", lambda x: sent.append(x) or x)
  trace = rows({"diversity": None})
  assert health.told(trace) == trace and sent[0] == sent[1].size == len(json.dumps(trace))
  heard = iter(sent)
  monkeypatch.setattr(health.multihost_utils, "broadcast_one_to_all", lambda x: next(heard))
  assert health.told([]) == trace and jax.process_count() == 2
