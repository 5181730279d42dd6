"""Where numbers go: TensorBoard event files, WORKDIR/metrics.jsonl and WORKDIR/images, by process 0 alone.

The writer has the method names of clu's MetricWriter (whose own writers need TensorFlow; tensorboardX does not). A run
that continues drops what was written after the checkpoint it continues from, so that no curve has two values at one
step.
"""
import json
import math
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
import tqdm
from PIL import Image

BESIDE = ("step", "time", "nonfinite")  # what a row holds besides its metrics


class Writer(NamedTuple):
  """Methods of clu.metric_writers.MetricWriter; on other processes than 0 they do nothing."""
  write_scalars: Callable     # (step, {name: number})
  write_images: Callable      # (step, {name: [N H W C]}), uint8 or float in [0, 1]
  write_texts: Callable       # (step, {name: str})
  write_histograms: Callable  # (step, {name: array}, num_buckets=None)
  write_hparams: Callable     # ({name: value})
  flush: Callable             # ()
  close: Callable             # ()


def writer(workdir: str | Path, resume_step: int | None = None) -> Writer:
  """Appends to WORKDIR/metrics.jsonl: one object a row, {"step", "time", name: value}; a value that is not finite is
  null there and its name is in "nonfinite". Event files go to WORKDIR/events, pictures also to
  WORKDIR/images/NAME_STEP.png.

  Args:
    resume_step: the step that the run continues from; rows beyond it are dropped. None or 0 starts the curves anew.
  """
  if jax.process_index() != 0:
    return Writer(*[_nothing] * len(Writer._fields))
  import tensorboardX  # here: the other processes need not have it
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  rows = workdir / "metrics.jsonl"
  kept = _rewind(rows, resume_step or 0)
  purge = resume_step + 1 if resume_step else 0
  events = tensorboardX.SummaryWriter(str(workdir / "events"), purge_step=purge, filename_suffix=f".{time.time_ns()}")
  out = rows.open("a", encoding="utf-8")

  def write_scalars(step, scalars):
    values = {name: float(value) for name, value in scalars.items()}
    odd = sorted(name for name, value in values.items() if not math.isfinite(value))
    row = {"step": int(step), "time": round(time.time(), 3), **{n: None if n in odd else v for n, v in values.items()}}
    line = json.dumps({**row, "nonfinite": odd} if odd else row)
    if (int(step), tuple(values)) in kept:
      return  # the evaluation that a restart repeats at its first step
    out.write(line + "\n")
    for name, value in values.items():
      events.add_scalar(name, value, int(step))

  def write_images(step, images):
    for name, batch in images.items():
      picture = grid(batch)
      events.add_image(name, picture, int(step), dataformats="HWC")
      file = workdir / "images" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}_{int(step):06d}.png"
      file.parent.mkdir(exist_ok=True)
      Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0]).save(file)

  def write_texts(step, texts):
    for name, text in texts.items():
      events.add_text(name, text, int(step))

  def write_histograms(step, arrays, num_buckets=None):
    for name, array in arrays.items():
      values = np.asarray(array, np.float64).reshape(-1)
      events.add_histogram(name, values[np.isfinite(values)], int(step), bins=(num_buckets or {}).get(name, "auto"))

  def write_hparams(hparams):
    events.add_text("hparams", "```json\n" + json.dumps(hparams, indent=1, default=str) + "\n```", 0)

  def flush():
    out.flush()
    events.flush()

  def close():
    if not out.closed:
      flush()
      out.close()
      events.close()

  return Writer(write_scalars, write_images, write_texts, write_histograms, write_hparams, flush, close)


def _nothing(*args, **kwargs) -> None:
  """What the other processes write."""


def read(workdir: str | Path) -> list[dict]:
  """The rows of WORKDIR/metrics.jsonl; a last line that was cut off by a crash is left out."""
  rows = []
  file = Path(workdir) / "metrics.jsonl"
  for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue
  return rows


def _rewind(file, step) -> set:
  """Drops rows beyond `step`; returns (step, names) of the rows at it."""
  rows = [row for row in read(file.parent) if row["step"] <= step] if step else []
  part = file.with_suffix(".part")
  part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  os.replace(part, file)
  return {(step, tuple(n for n in row if n not in BESIDE)) for row in rows if row["step"] == step}


def grid(images, columns: int | None = None, gap: int = 1) -> np.ndarray:
  """One picture uint8 [H W C] of [N H W C] (uint8, or float in [0, 1]; not finite is black); clips [N F H W C] become
  rows of frames. `columns` is by default the one nearest to a square."""
  images = np.asarray(images)
  if images.ndim == 5:
    columns, images = images.shape[1], images.reshape((-1,) + images.shape[2:])
  if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
    raise ValueError(f"images {images.shape}: [N H W C] or [N F H W C] with N > 0 and C of 1 or 3 is needed; reshape "
                     f"or decode")
  if images.dtype != np.uint8:
    images = np.round(np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
  n, h, w, c = images.shape
  columns = min(n, columns or math.ceil(math.sqrt(n)))
  rows = -(-n // columns)
  out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * (h + gap), i % columns * (w + gap)
    out[y:y + h, x:x + w] = image
  return out


class Progress:
  """A bar with step time and time left; where there is no terminal, a line every `every` seconds instead.

  total: steps of the whole run. initial: those done before. Process 0 alone shows anything.
  """

  def __init__(self, total: int, *, initial: int = 0, title: str = "training", every: float = 30.0, file: Any = None):
    self.total, self.first, self.step, self.title, self.every = total, initial, initial, title, every
    self.file = file or sys.stderr
    self.began = self.said = time.monotonic()
    self.shown = jax.process_index() == 0
    bar = self.shown and self.file.isatty()
    self.bar = tqdm.tqdm(total=total, initial=initial, desc=title, file=self.file, dynamic_ncols=True) if bar else None

  def update(self, step: int, loss: float | None = None) -> None:
    """`step` steps are done now."""
    self.step, now = step, time.monotonic()
    if self.bar:
      self.bar.update(step - self.bar.n)
      pace = f"{self.pace() * 1e3:.0f} ms/step"
      self.bar.set_postfix_str(pace if loss is None else f"{pace}, loss {loss:.4g}", refresh=False)
    elif self.shown and now - self.said >= self.every:
      self.said = now
      self.say(loss)

  def pace(self) -> float:
    """Seconds a step, over this process's life."""
    return (time.monotonic() - self.began) / max(self.step - self.first, 1)

  def say(self, loss: float | None = None) -> None:
    left = tqdm.tqdm.format_interval(self.pace() * (self.total - self.step))
    value = "" if loss is None else f", loss {loss:.4g}"
    print(f"{self.title}: {self.step} of {self.total}, {self.pace():.3g} s/step, {left} left{value}", file=self.file,
          flush=True)

  def close(self) -> None:
    if self.bar:
      self.bar.close()
    elif self.shown and self.step > self.first and time.monotonic() - self.began >= self.every:
      self.say()


def peak_memory() -> int:
  """Largest resident size of this process so far, in bytes, since `reset_peak_memory` where the kernel can (Linux)."""
  try:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024
  except (OSError, AttributeError):
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak_memory() -> None:
  """Starts `peak_memory` anew; without effect where the kernel does not offer it."""
  try:
    Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    pass


def device_memory() -> int | None:
  """Most bytes that one device of this process has held, or None where the backend does not count (CPU)."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
  return max(peaks, default=None)
