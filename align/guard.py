"""What keeps a run honest when something goes wrong: signals, non-finite numbers, off-policy rollouts, planted faults.

The rules: a stop that was asked for saves and exits with a code that says "start me again"; a non-finite update changes
nothing, is counted, and ends the run after a few in a row with the last good checkpoint in place.
"""
import contextlib
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from align.build import UserError

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
_asked: list[int] = []


class Stopped(Exception):
  """Raised at a step boundary, after saving, when a signal asked to stop. `code` is the exit status."""
  code = RESUMABLE

  def __init__(self, where: int | str):
    """where: the step that was saved, or the whole message."""
    said = f"stopped after step {where} and saved; the same command continues"
    super().__init__(where if isinstance(where, str) else said)


@contextlib.contextmanager
def signals():
  """Within it the first SIGINT or SIGTERM only sets a flag (`stop_requested`); a second SIGINT interrupts at once.

  In the main thread only, where Python delivers signals; elsewhere it does nothing (a notebook's worker thread).
  """
  _asked.clear()

  def note(number, frame):
    if _asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    _asked.append(number)

  try:
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  except ValueError:  # not the main thread
    before = {}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def interruptible():
  """Within it SIGTERM interrupts as Ctrl-C does, so that what is outside of `signals` unwinds; in the main thread."""
  def interrupt(number, frame):
    raise KeyboardInterrupt
  try:
    before = signal.signal(signal.SIGTERM, interrupt)
  except ValueError:  # not the main thread
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def stop_requested(step: int = 0) -> bool:
  """Whether any process was asked to stop before or at this step; a collective, which every process must call."""
  if fault("stop", step):
    signal.raise_signal(signal.SIGTERM)
  if jax.process_count() == 1:
    return bool(_asked)
  return bool(np.any(multihost_utils.process_allgather(np.asarray(bool(_asked)))))


class NonFinite:
  """Counts updates that were skipped because something was not finite; `limit` in a row end the run.

  limit: at least 1. total, row: how many were skipped in all, and since the last good one.
  """

  def __init__(self, limit: int = 5):
    if limit < 1:
      raise UserError(f"limit={limit} of skipped updates in a row must be at least 1; 5 is usual")
    self.limit, self.total, self.row = limit, 0, 0

  def see(self, step: int, skipped: bool, bad: dict | None = None, saved=()) -> None:
    """Takes note of one update.

    Args:
      skipped: whether it was. bad: {metric: value} of those that were not finite. saved: steps of the checkpoints.

    Raises: UserError at the limit; it names the step, the metrics and the newest checkpoint, which holds none of it.
    """
    self.row = self.row + 1 if skipped else 0
    self.total += bool(skipped)
    if self.row >= self.limit:
      names = ", ".join(f"{name} = {float(value):g}" for name, value in (bad or {}).items()) or "the update"
      kept = f"the checkpoint of step {max(saved)} is good and was kept" if saved else "there is no checkpoint yet"
      raise UserError(f"step {step}: {names} is not finite, and {self.row} updates in a row were skipped (limit "
                      f"{self.limit}); {kept}: lower the learning rate, or look at the data and rewards of these steps")


class FailedScores:
  """Counts samples whose reward failed; a share above `limit` of at least `least` samples ends the run.

  limit: in [0, 1]. An experience without any valid score is not counted here but skipped, see NonFinite.
  """

  def __init__(self, limit: float = 0.1, least: int = 100):
    if not 0 <= limit <= 1:
      raise UserError(f"failed = {limit}: the share of scores that may fail is in [0, 1]; .1 is usual")
    self.limit, self.least, self.bad, self.seen = limit, least, 0, 0

  def see(self, step: int, valid: float, samples: int) -> None:
    """Takes note of an experience with this share of valid scores, not 0.

    Raises: UserError above the limit: what is left is no fair sample of the prompts."""
    self.bad, self.seen = self.bad + round((1 - valid) * samples), self.seen + samples
    if self.seen >= self.least and self.bad > self.limit * self.seen:
      raise UserError(f"step {step}: the reward failed on {self.bad} of {self.seen} samples, at most "
                      f"{self.limit:.0%} may; look at what it is asked and what it answers, or raise config.failed")


def check_scores(scores):
  """(scores with every sample masked whose total is not finite, how many those were, whether any valid one is left).

  A masked sample keeps its place with a total of 0, so that arithmetic stays finite; `valid` alone says what counts.
  Parts stay as they are: they are only logged. Traced or on host arrays. Where none is valid, count the experience as
  skipped.
  """
  on = np if isinstance(scores.total, np.ndarray) else jnp  # what is on the host must not wait for the devices
  bad = scores.valid & ~on.isfinite(scores.total)
  valid = scores.valid & ~bad
  return scores._replace(total=on.where(valid, scores.total, 0), valid=valid), bad.sum(), valid.any()


def on_policy(gap: float, limit: float, step: int = 0) -> float:
  """Returns the gap: the largest |log ratio| between replay and the stored rollout before the first update.

  Raises UserError above `limit`: a ratio that is not 1 on the policy's own samples is a wrong replay, not learning.
  """
  gap = float(gap)
  if gap == float("inf"):
    raise UserError(f"step {step}: no step of the rollout has a density, so there is no ratio to train on; the kernel "
                    "must be a noisy one (ddim, flow_sde, dance_sde, cps) with eta above 0: set policy.kernel and "
                    "algorithm.eta")
  if not gap <= limit:
    raise UserError(f"step {step}: |log ratio| of the policy to its own rollout is {gap:.3g}, at most {limit:.3g} is "
                    "allowed; sampling and replay are not the same law (precision, guidance, dropout or a changed "
                    "prompt): in bfloat16 set algorithm.recompute = True, else the same options for both")
  return gap


def fault(site: str, step: int) -> str | None:
  """The kind of fault that tests plant here, or None.

  ALIGN_FAULT=site:step:kind[,site:step:kind ...]; sites: reward, record, save, stop; step "*" is every
  one; kinds are read by the site (nan, inf, oserror, sigterm, ...). Unset, as in every real run, it costs one look-up.
  """
  plan = os.environ.get("ALIGN_FAULT")
  for entry in plan.split(",") if plan else ():
    parts = entry.split(":")
    if len(parts) != 3:
      raise UserError(f"ALIGN_FAULT={plan!r}: each entry is site:step:kind, such as loss:3:nan; correct or unset it")
    if parts[0] == site and parts[1] in ("*", str(step)):
      return parts[2]
  return None
