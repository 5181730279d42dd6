"""Whether a run learns what was meant or what the reward happens to pay for: monitors of held-out samples, and a rule.

Every held-out evaluation of a run samples the same prompts from the same keys, the first one from the base, and leaves
a row of metrics:

  heldout/trained            the reward that is trained; guard/std/... beside a score is its spread over the samples
  heldout/NAME/total         rewards that are not
  heldout/diversity          within a prompt (rewards/diversity.py), where the evaluation asks for it
  heldout/saturation, contrast, high_frequency; of clips also motion, static_fraction

Beside them lies how far the policy has gone from its reference, train/kl, and by noise level kl_early, kl_middle and
kl_late, as methods that pay for it log them, each in its own units.

The alarm is a pure function of these rows, so that it can be asked again of any metrics.jsonl, also with other
thresholds. It goes off where one of these holds in several evaluations in a row:

  reward           the trained reward is up by k sigma while several others are down by k sigma; sigma is the spread of
                   the base's samples, so that neither depends on how many there are
  diversity        is below a share of the base's
  high_frequency   is above a multiple of the base's: grids, noise, oversharpening
  saturation, contrast   have left the base's by more than a factor, up or down
  motion           of clips is below a share of the base's
  kl               one of these distances is above a number, for which there is no default

Left out: what no such number sees. Scores that a policy drives up together with the reward say nothing, however many.
"""
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from align import checkpoint, metrics
from align.algorithms.base import PARTS
from align.build import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
STILL = 1 / 255               # mean difference of neighbouring frames below which nothing moves
ACTIONS = ("mark", "stop", "rollback")
FILE, KEPT = "alarm.json", "good"
KL = ("train/kl", *(f"train/kl_{part}" for part in PARTS))


# --- monitors: uint8 pictures [N H W C] or clips [N F H W C] -> a number ----------------------------------------------


def luma(picture: np.ndarray) -> np.ndarray:
  """[H W] in [0, 1] of a picture uint8 [H W C], C 1 or 3."""
  picture = picture.astype(np.float64) / 255
  return picture @ np.array(LUMA) if picture.shape[-1] == 3 else picture[..., 0]


def saturation(picture: np.ndarray) -> float:
  """Mean of the largest channel minus the smallest, in [0, 1]: 0 of grey. (HSV's saturation divides by the largest,
  which makes noise of dark pixels count as colour.)"""
  return float((picture.max(-1).astype(np.float64) - picture.min(-1)).mean() / 255)


def contrast(picture: np.ndarray) -> float:
  """Standard deviation of the luma."""
  return float(luma(picture).std())


def high_frequency(picture: np.ndarray) -> float:
  """Variance of the luma in waves shorter than four pixels along an axis, by Parseval: a^2 of a checkerboard of +-a."""
  grey = luma(picture)
  power = np.abs(np.fft.fft2(grey)) ** 2 / grey.size ** 2
  high = np.maximum(*np.meshgrid(*(np.abs(np.fft.fftfreq(n)) for n in grey.shape), indexing="ij")) > 0.25
  return float(power[high].sum())


def steps_of(clip: np.ndarray) -> np.ndarray:
  """[F - 1] mean absolute differences of neighbouring frames of a clip uint8 [F H W C], in [0, 1]."""
  return np.array([np.abs(b.astype(np.float64) - a).mean() / 255 for a, b in zip(clip[:-1], clip[1:], strict=True)])


def monitors(samples: np.ndarray) -> dict:
  """{name: mean over all samples} of uint8 pictures [P n H W C] or clips [P n F H W C]; one picture at a time."""
  clips = samples.ndim == 6
  pictures = samples.reshape((-1,) + samples.shape[-3:])
  out = {f.__name__: float(np.mean([f(p) for p in pictures])) for f in (saturation, contrast, high_frequency)}
  if clips and samples.shape[2] > 1:
    moved = np.array([steps_of(clip) for clip in samples.reshape((-1,) + samples.shape[2:])])
    out |= {"motion": float(moved.mean()), "static_fraction": float((moved < STILL).mean())}
  return out


def spreads(values: dict) -> dict:
  """{score: standard deviation over the samples} of {score: [P n], NaN where it failed}."""
  with np.errstate(all="ignore"):
    return {f"guard/std/{name}": float(np.nanstd(v)) for name, v in values.items() if not np.isnan(v).all()}


# --- the rule: rows of metrics -> an alarm or none --------------------------------------------------------------------


class Rule(NamedTuple):
  """See `rule`."""
  action: str
  trained: str
  heldout: tuple
  rise: float
  fall: float
  least: int
  row: int
  diversity: float
  high_frequency: float
  saturation: float
  contrast: float
  motion: float
  kl: float


class Alarm(NamedTuple):
  """Steps of evaluations: where it went off, where it began, and the last one before at which nothing was wrong."""
  step: int
  began: int
  good: int
  reasons: tuple  # sentences


def rule(action: str = "mark", trained: str = "trained", heldout: tuple = (), rise: float = 1.0, fall: float = 0.25,
         least: int = 2, row: int = 3, diversity: float = 0.8, high_frequency: float = 1.5, saturation: float = 1.4,
         contrast: float = 1.4, motion: float = 0.5, kl: float = None) -> Rule:
  """Thresholds of the alarm; `fall` and `contrast` were chosen on seeds 0 to 19 of configs/sweeps/hacking.py.

  Args:
    action: "mark" the run (a metric, WORKDIR/alarm.json, the report) and go on; "stop" it too, saved, with exit code 3;
      or "rollback": end it there and export what it was at the last evaluation before.
    trained: the held-out score that is trained, NAME/PART of the evaluation's rewards; by default the run's own reward
      is scored beside them. heldout: the scores that are watched, by default every reward's total.
    rise, fall, least: how many sigma the trained score is up, and at least so many others down.
    row: evaluations in a row. diversity, motion: least shares of the base's. high_frequency: largest multiple of it.
      saturation, contrast: largest factor, up or down. 0 of any of these five leaves it out.
    kl: the largest distance from the reference, in the units of the method that logs it; None: any.
  """
  if action not in ACTIONS:
    raise ValueError(f"action = {action!r} is not one of {', '.join(ACTIONS)}; choose one of them")
  for name, value, what in (("least", least, "scores"), ("row", row, "evaluations")):
    if value < 1:
      raise ValueError(f"{name} = {value} must be at least 1, a number of {what}; 1 is the most alert")
  for name, value in (("rise", rise), ("fall", fall)):
    if not value > 0:
      raise ValueError(f"{name} = {value} must be positive, in standard deviations of the base's scores; 1 is usual")
  for name, value in (("diversity", diversity), ("motion", motion)):
    if not 0 <= value < 1:
      raise ValueError(f"{name} = {value} must be in [0, 1), a share of the base's; .8 is usual, 0 leaves it out")
  for name, value in (("high_frequency", high_frequency), ("saturation", saturation), ("contrast", contrast)):
    if value and not value > 1:
      raise ValueError(f"{name} = {value} must be above 1, a multiple of the base's; 1.5 is usual, 0 leaves it out")
  if kl is not None and not kl > 0:
    raise ValueError(f"kl = {kl} must be positive, in the units of train/kl; take it from runs that went well, or None "
                     "to leave it out")
  return Rule(action, trained, tuple(heldout), rise, fall, least, row, diversity, high_frequency, saturation, contrast,
              motion, kl)


def number(row: dict, name: str) -> float:
  """A metric of a row, NaN where it has none: no comparison with that holds."""
  value = row.get(f"heldout/{name}")
  return float("nan") if value is None else float(value)


def moved(base: dict, row: dict, name: str) -> float:
  """By how many sigma of the base's samples a score has moved; NaN where they do not differ."""
  sigma = base.get(f"guard/std/{name}")
  return (number(row, name) - number(base, name)) / sigma if sigma else float("nan")


def watched(base: dict, rule: Rule) -> tuple:
  """Names of the scores whose fall counts."""
  totals = [name.removeprefix("heldout/") for name in base if name.startswith("heldout/") and name.endswith("/total")]
  return rule.heldout or tuple(totals)


def traded(base: dict, row: dict, rule: Rule) -> str:
  """What the reward was bought with, or ""."""
  up = moved(base, row, rule.trained)
  falls = {name: moved(base, row, name) for name in watched(base, rule)}
  down = {name: by for name, by in falls.items() if by <= -rule.fall}
  if not up >= rule.rise or len(down) < rule.least:
    return ""
  return (f"{rule.trained} is up by {up:.2f} sigma while " + ", ".join(f"{n} is down by {-by:.2f}"
                                                                       for n, by in down.items()))


def distances(row: dict) -> dict:
  """{metric: how far the policy is from its reference} as an update logged it, {} of other rows."""
  return {name: row[name] for name in KL if row.get(name) is not None and np.isfinite(row[name])}


def evaluations(rows: list) -> list:
  """The rows of held-out evaluations, each with the distances that were logged last."""
  out, last = [], {}
  for row in rows:
    last = distances(row) or last
    out += [{**last, **row}] if is_heldout(row) else []
  return out


def holding(base: dict, row: dict, rule: Rule) -> dict:
  """{clause: sentence} of what is wrong in one evaluation."""
  far = {name: value for name, value in distances(row).items() if rule.kl and value > rule.kl}
  out = {"reward": traded(base, row, rule),
         "kl": ", ".join(f"{name} is {value:.3g}, above {rule.kl:g}" for name, value in far.items())}
  for name, low, high in (("diversity", rule.diversity, 0), ("high_frequency", 0, rule.high_frequency),
                          ("saturation", rule.saturation and 1 / rule.saturation, rule.saturation),
                          ("contrast", rule.contrast and 1 / rule.contrast, rule.contrast), ("motion", rule.motion, 0)):
    then, now = number(base, name), number(row, name)
    wrong = then > 0 and (low and now < low * then or high and now > high * then)
    out[name] = f"{name} is {now / then:.2f} times the base's" if wrong else ""
  return {clause: said for clause, said in out.items() if said}


def alarm(rows: list, rule: Rule) -> Alarm | None:
  """The first alarm in the rows of a run; of those with held-out metrics the first is the base's."""
  base, *later = evaluations(rows) or [{}]
  good, since = base.get("step"), {}
  for row in later:
    found = holding(base, row, rule)
    since = {clause: [*since.get(clause, []), row["step"]] for clause in found}
    over = [clause for clause in found if len(since[clause]) >= rule.row]
    if over:
      return Alarm(row["step"], min(since[clause][0] for clause in over), good, tuple(found[c] for c in over))
    good = good if found else row["step"]
  return None


def is_heldout(row: dict) -> bool:
  return any(name.startswith("heldout/") for name in row)


# --- what happens to the run ------------------------------------------------------------------------------------------


class Alarmed(UserError):
  """Raised where the rule stops a run, after saving. `code` is the exit status."""
  code = 3


class Guard(NamedTuple):
  """What looks at a run's held-out evaluations."""
  rule: Rule
  workdir: Path
  rows: list  # of evaluations, and of updates the distances; grows
  good: Any   # Checkpoints of the parameters at the last evaluation at which nothing was wrong, None where not needed


def open_(workdir: Path, step: int, rule: Rule) -> Guard:
  """The guard of a run that begins or goes on at `step`, with what metrics.jsonl says of the evaluations before."""
  rows = told([row for row in metrics.read(workdir) if is_heldout(row) or distances(row)])
  if step and not (rows and rows[0]["step"] == 0):
    raise UserError(f"{str(workdir / 'metrics.jsonl')!r} has no evaluation of step 0, with which later ones are "
                    f"compared, but the run goes on at step {step}; put the file back, or start in a new workdir")
  if jax.process_index() == 0 and alarm(rows, rule) is None:
    (workdir / FILE).unlink(missing_ok=True)  # of steps that are run again
  return Guard(rule, workdir, rows, None if rule.action == "mark" else checkpoint.open_(workdir / KEPT, keep=1))


def told(rows: list) -> list:
  """What process 0 has read, in every process."""
  if jax.process_count() == 1:
    return rows
  text = np.frombuffer(json.dumps(rows).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size)))
  same = multihost_utils.broadcast_one_to_all(np.resize(text, size))
  return json.loads(np.asarray(same).astype(np.uint8).tobytes())


def hear(guard: Guard | None, step: int, scalars: dict) -> None:
  """Takes note of the distances that an update logs."""
  if guard and distances(scalars):
    guard.rows.append({"step": step, **distances(scalars)})


def see(guard: Guard, step: int, scalars: dict, params: Any) -> float:
  """Takes note of an evaluation; 1 from the alarm on, else 0. params: kept where nothing is wrong with them."""
  before = alarm(guard.rows, guard.rule)
  guard.rows.append({"step": step, **scalars})
  found = alarm(guard.rows, guard.rule)
  if found and not before:
    mark(guard, found)
  seen = evaluations(guard.rows)
  if guard.good and not holding(seen[0], seen[-1], guard.rule):
    guard.good.save(step, params)
  return float(found is not None)


def mark(guard: Guard, found: Alarm) -> None:
  """A warning, and WORKDIR/alarm.json."""
  logging.warning("%s", sentence(found))
  if jax.process_index() == 0:
    path = guard.workdir / FILE
    path.with_suffix(".tmp").write_text(json.dumps({**found._asdict(), "action": guard.rule.action}, indent=1))
    os.replace(path.with_suffix(".tmp"), path)


def read(workdir: str | Path) -> dict | None:
  """The alarm of a run as WORKDIR/alarm.json has it, or None."""
  path = Path(workdir) / FILE
  return json.loads(path.read_text()) if path.is_file() else None


def sentence(found: Alarm) -> str:
  return (f"step {found.step}: the reward is probably being hacked: {'; '.join(found.reasons)}; so in every evaluation "
          f"since step {found.began}; nothing was wrong at step {found.good}")


def ends(guard: Guard | None) -> Alarm | None:
  """The alarm that a run must not go on after."""
  return alarm(guard.rows, guard.rule) if guard and guard.rule.action != "mark" else None


def end(guard: Guard, found: Alarm, params: Any) -> Any:
  """The parameters of the last good evaluation, for "rollback". Raises Alarmed for "stop"."""
  kept = guard.workdir / KEPT
  if guard.rule.action == "stop":
    raise Alarmed(f"{sentence(found)}, whose parameters are kept in {str(kept)!r}. The run is saved and stopped: look "
                  "at its samples; with its option evaluate.guard.action=rollback the same command exports what was "
                  "kept, with =mark it goes on")
  last = guard.good.restore(params)
  if last is None:
    raise UserError(f"{str(kept)!r} holds no parameters to go back to; they are kept where guard.action is stop or "
                    "rollback from the start: set it to mark, or start in a new workdir")
  logging.warning("rolled back to step %s", last[0])
  return last[1]


def close(guard: Guard | None) -> None:
  if guard and guard.good:
    guard.good.close()
