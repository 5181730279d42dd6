"""Signals, non-finite numbers, scores, the on-policy check, planted faults."""
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from align import guard
from align.build import UserError
from rewards.core import Scores

CHILD = """
import os, signal, sys, time
from align import guard
with guard.signals():
  print("ready", flush=True)
  for step in range(2000):
    time.sleep(0.01)
    if guard.stop_requested():
      print("saved", flush=True)
      sys.exit(guard.Stopped("stopped").code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_exits_resumable(number):
  child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()})
  try:
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.communicate(timeout=30)[0] == "saved\n"
    assert child.returncode == guard.RESUMABLE == 75
  finally:
    child.kill()


def test_a_stop_names_its_step():
  assert str(guard.Stopped(12)) == "stopped after step 12 and saved; the same command continues"


def test_the_second_interrupt_is_immediate_and_handlers_come_back():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyboardInterrupt):
    with guard.signals():
      assert not guard.stop_requested()
      signal.raise_signal(signal.SIGINT)
      assert guard.stop_requested()
      signal.raise_signal(signal.SIGTERM)  # asked again politely: still no interrupt
      signal.raise_signal(signal.SIGINT)
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  with guard.signals():
    assert not guard.stop_requested()


def test_with_several_processes_any_of_them_stops_all(monkeypatch):
  monkeypatch.setattr(guard.jax, "process_count", lambda: 2)
  for others, expected in (([False, True], True), ([False, False], False)):
    monkeypatch.setattr(guard.multihost_utils, "process_allgather", lambda x, others=others: np.array(others))
    assert guard.stop_requested() is expected


def test_skipped_updates_in_a_row_end_the_run_and_name_what_was_wrong():
  watch = guard.NonFinite(3)
  for step, skipped in enumerate([True, True, False, True, True]):
    watch.see(step, skipped)
  assert (watch.total, watch.row) == (4, 2)
  with pytest.raises(UserError, match=r"step 5: loss = nan is not finite, and 3 updates in a row.*step 4 is good"):
    watch.see(5, True, {"loss": np.float32("nan")}, saved=[2, 4])
  with pytest.raises(UserError, match="no checkpoint yet"):
    guard.NonFinite(1).see(1, True)
  with pytest.raises(UserError, match="limit=0.*at least 1"):
    guard.NonFinite(0)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_scores_that_are_not_finite_are_masked(wrap):
  total = np.array([1, np.nan, np.inf, 2, 3], np.float32)
  scores = Scores(total, {"a": total}, np.array([True, True, True, False, True]))
  out, bad, some = wrap(guard.check_scores)(scores)
  assert int(bad) == 2 and bool(some)
  assert not bool(wrap(guard.check_scores)(scores._replace(total=np.full(5, np.nan, np.float32)))[2])
  assert out.valid.tolist() == [True, False, False, False, True]
  assert out.total.tolist() == [1, 0, 0, 0, 3]


def test_off_policy_stops_and_says_why():
  assert guard.on_policy(1e-7, 1e-6) == 1e-7
  for gap in (2e-6, float("nan")):
    with pytest.raises(UserError, match=r"step 3: \|log ratio\|.*at most 1e-06.*algorithm.recompute = True"):
      guard.on_policy(gap, 1e-6, step=3)


def test_faults_are_planted_by_site_and_step(monkeypatch):
  monkeypatch.delenv("ALIGN_FAULT", raising=False)
  assert guard.fault("loss", 3) is None
  monkeypatch.setenv("ALIGN_FAULT", "loss:3:nan,save:*:oserror")
  assert guard.fault("loss", 3) == "nan" and guard.fault("loss", 4) is None
  assert guard.fault("save", 9) == "oserror" and guard.fault("reward", 3) is None
  monkeypatch.setenv("ALIGN_FAULT", "loss")
  with pytest.raises(UserError, match="ALIGN_FAULT='loss'.*site:step:kind"):
    guard.fault("loss", 0)


def test_failing_scores_stop_a_run_above_their_share():
  counts = guard.FailedScores(0.1)
  counts.see(1, 0.5, 40)   # half of few: nothing can be said yet
  counts.see(2, 1.0, 200)
  with pytest.raises(UserError, match="step 3: the reward failed on 40 of 280 samples, at most 10% may"):
    counts.see(3, 0.5, 40)
  with pytest.raises(UserError, match="failed = 2: the share of scores that may fail is in"):
    guard.FailedScores(2)
