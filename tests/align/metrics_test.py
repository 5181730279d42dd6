"""The metric writer, its rows after a restart, picture grids, progress lines."""
import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from align import metrics


def test_rows_and_events_say_the_same(tmp_path):
  out = metrics.writer(tmp_path)
  for step in range(3):
    out.write_scalars(step, {"loss": 1 / (step + 1), "train/norm": np.float32(step)})
  out.write_texts(1, {"prompt": "a seven"})
  out.write_histograms(1, {"advantage": np.array([0.0, 1.0, np.nan])})
  out.write_hparams({"beta": 0.1, "net": {"name": "unet"}})
  out.close()
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 1, 2] and rows[1]["loss"] == 0.5 and rows[2]["train/norm"] == 2.0
  assert rows == metrics.read(tmp_path)
  events = EventAccumulator(str(tmp_path / "events")).Reload()
  assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [(0, 1.0), (1, 0.5), (2, 0.333333)]
  assert "advantage" in events.Tags()["histograms"]


def test_what_is_not_finite_is_null_and_named(tmp_path):
  out = metrics.writer(tmp_path)
  out.write_scalars(4, {"loss": float("nan"), "norm": float("inf"), "gain": 1.0})
  out.close()
  (row,) = metrics.read(tmp_path)
  assert row["loss"] is None and row["norm"] is None and row["gain"] == 1.0
  assert row["nonfinite"] == ["loss", "norm"]


def test_a_restart_never_doubles_a_curve(tmp_path):
  out = metrics.writer(tmp_path)
  for step in range(1, 9):
    out.write_scalars(step, {"loss": step})
    if step % 4 == 0:
      out.write_scalars(step, {"heldout": step})
  out.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "lo')  # a crash in the middle of a row
  out = metrics.writer(tmp_path, resume_step=4)
  out.write_scalars(4, {"heldout": 40})  # a restart evaluates its first step again
  for step in range(5, 8):
    out.write_scalars(step, {"loss": 10 * step})
  out.close()
  losses = [(row["step"], row["loss"]) for row in metrics.read(tmp_path) if "loss" in row]
  assert losses == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70)]
  assert [(row["step"], row["heldout"]) for row in metrics.read(tmp_path) if "heldout" in row] == [(4, 4)]
  events = EventAccumulator(str(tmp_path / "events")).Reload()
  assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_from_the_start_begins_its_curves_anew(tmp_path):
  for _ in range(2):
    out = metrics.writer(tmp_path)
    out.write_scalars(1, {"loss": 1})
    out.close()
  assert len(metrics.read(tmp_path)) == 1


def test_pictures_become_files_and_events(tmp_path):
  out = metrics.writer(tmp_path)
  out.write_images(7, {"held out/samples": np.full((5, 4, 4, 3), 0.5, np.float32)})
  out.write_images(7, {"grey": np.zeros((4, 4, 4, 1), np.uint8)})
  out.close()
  picture = np.asarray(Image.open(tmp_path / "images" / "held_out_samples_000007.png"))
  assert picture.shape == (9, 14, 3) and picture[0, 0].tolist() == [128] * 3
  assert Image.open(tmp_path / "images" / "grey_000007.png").mode == "L"
  assert len(EventAccumulator(str(tmp_path / "events")).Reload().Images("grey")) == 1


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
  out = metrics.writer(tmp_path / "run")
  out.write_scalars(1, {"loss": 1.0})
  out.close()
  assert not (tmp_path / "run").exists()


def test_a_grid_puts_every_picture_in_its_place():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
  out = metrics.grid(images, columns=2, gap=1)
  assert out.shape == (8, 7, 1) and out.dtype == np.uint8
  for i in range(5):
    y, x = i // 2 * 3, i % 2 * 4
    assert (out[y:y + 2, x:x + 3] == i).all()
  assert (out[6:, 4:] == 255).all() and (out[2] == 255).all()


def test_a_grid_of_clips_has_one_row_a_clip():
  assert metrics.grid(np.zeros((2, 3, 4, 4, 3)), gap=0).shape == (8, 12, 3)


def test_a_grid_takes_floats_that_are_out_of_range_or_not_finite():
  values = np.array([-1, 0.2, 2, np.nan], np.float32).reshape(4, 1, 1, 1)
  assert metrics.grid(values, columns=4, gap=0).ravel().tolist() == [0, 51, 255, 0]
  with pytest.raises(ValueError, match=r"images \(2, 2\).*reshape"):
    metrics.grid(np.zeros((2, 2)))
  with pytest.raises(ValueError, match="N > 0"):
    metrics.grid(np.zeros((0, 2, 2, 3)))


def test_progress_says_step_time_and_time_left_where_there_is_no_terminal():
  file = io.StringIO()
  bar = metrics.Progress(100, initial=10, title="aligning", every=0.05, file=file)
  bar.update(11, 0.5)
  assert file.getvalue() == ""
  time.sleep(0.1)
  bar.update(12, 0.25)
  line = file.getvalue()
  assert line.startswith("aligning: 12 of 100, 0.0") and "s/step, 00:0" in line and line.endswith("left, loss 0.25\n")
  bar.close()


def test_a_quick_run_without_a_terminal_says_nothing():
  file = io.StringIO()
  bar = metrics.Progress(2, file=file)
  bar.update(1)
  bar.update(2)
  bar.close()
  assert file.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar():
  file = io.StringIO()
  file.isatty = lambda: True
  bar = metrics.Progress(10, title="aligning", file=file)
  for step in range(1, 11):
    bar.update(step, 0.1)
  bar.close()
  assert "aligning" in file.getvalue() and "10/10" in file.getvalue() and "ms/step" in file.getvalue()


def test_peak_memory_sees_a_large_array_and_can_start_anew():
  metrics.reset_peak_memory()
  before = metrics.peak_memory()
  assert 1 << 20 < before < 1 << 40
  block = np.ones(1 << 25)  # 256 MB
  assert metrics.peak_memory() - before > 1 << 27
  del block
  assert metrics.device_memory() is None or metrics.device_memory() >= 0
