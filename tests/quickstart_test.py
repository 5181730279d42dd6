"""The main job at a reduced size, as a new user runs it: a command, from a fresh directory, in its own process."""
import json
import re

import numpy as np
import pytest
from commands import command
from PIL import Image

SMALLER = (
  "--config.runs.data.dataset.count=480", "--config.runs.control.data.count=480", "--config.runs.control.steps=4",
  "--config.runs.control.evaluate.every=2", "--config.runs.control.evaluate.data.count=6",
  "--config.runs.control.evaluate.batch=24", "--config.runs.aligned.steps=2",
  "--config.runs.aligned.optim.warmup_steps=0", "--config.runs.aligned.batch=8", "--config.runs.aligned.group=3",
  "--config.runs.aligned.evaluate.every=1", "--config.runs.aligned.evaluate.data.count=6",
  "--config.runs.aligned.evaluate.batch=24", "--config.runs.evaluate.data.count=12",
  "--config.runs.evaluate.samples=2", "--config.runs.evaluate.batch=24",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  where = tmp_path_factory.mktemp("fresh")
  code, said = command("align.main", "--config=configs/quickstart.py", "--workdir=runs/quickstart", *SMALLER,
                       where=where)
  assert code == 0, said
  return where / "runs/quickstart", said


def test_it_says_where_the_report_is(finished):
  workdir, said = finished
  assert re.search(r"report: .*runs/quickstart/report\.html", said)
  assert "Traceback" not in said


def test_results(finished):
  results = json.loads((finished[0] / "results.json").read_text())
  assert list(results["arms"]) == ["base", "control", "aligned"]
  for arm in results["arms"].values():
    assert set(arm["categories"]) == {"single", "count", "color", "two", "position", "attribution"}
    assert arm["overall"]["count"] == 24 and 0 <= arm["overall"]["successes"] <= 24
    assert arm["overall"]["interval"] is None or len(arm["overall"]["interval"]) == 2
  assert set(results["differences"]) == {"aligned - base", "aligned - control"}
  assert [stage["name"] for stage in results["stages"]] == ["aligned", "data", "control", "evaluate"]
  assert all(s["seconds"] > 0 and s["peak_memory_bytes"] > 1e8 for s in results["stages"])
  assert {t["name"] for t in results["targets"]} == {"gain over base", "gain over control", "diversity ratio"}


def test_the_report_is_one_file_with_every_part(finished):
  page = (finished[0] / "report.html").read_text()
  assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
  for part in ("heldout/scenes/exact", "heldout/diversity", "position", "attribution", "nft"):
    assert part in page, part
  for arm in ("base", "aligned", "control"):
    image = np.asarray(Image.open(finished[0] / f"images/{arm}.png").convert("RGB"))
    assert image.std() > 5


def test_alignment_moved_the_model_and_can_be_sampled(finished):
  workdir, _ = finished
  code, said = command("diffusion.generate", "--model=aligned", "--prompt=a red circle", "--samples=2", "--out=a.png",
                       where=workdir)
  assert code == 0, said
  code, said = command("diffusion.generate", "--model=scenes", "--prompt=a red circle", "--samples=2", "--out=b.png",
                       where=workdir)
  assert code == 0, said
  a, b = (np.asarray(Image.open(workdir / f"{name}.png")).astype(int) for name in "ab")
  assert a.shape == b.shape and 0 < np.abs(a - b).max() and np.abs(a - b).mean() < 40


def test_the_same_command_finds_everything_done(finished):
  workdir, _ = finished
  before = (workdir / "aligned/metrics.jsonl").read_text()
  code, said = command("align.main", "--config=configs/quickstart.py", f"--workdir={workdir}", *SMALLER, where=workdir)
  assert code == 0 and "report:" in said
  assert "[1/4]" not in said and (workdir / "aligned/metrics.jsonl").read_text() == before


def test_another_config_is_refused_with_the_difference(finished):
  code, said = command("align.main", "--config=configs/quickstart.py:grpo", f"--workdir={finished[0]}", *SMALLER,
                       where=finished[0])
  assert code == 2 and "nft" in said and "grpo" in said and "Traceback" not in said
