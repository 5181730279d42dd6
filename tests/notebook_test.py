"""The notebooks, every cell, each in a kernel of its own; their size is set in the cell with the tag "parameters"."""
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALLER = {
  "gamma": "GAMMAS, SEEDS, BASE_STEPS, UPDATES, STAGES, SAMPLES = (1.0, 0.8), (0, 1), 20, 4, 1, 8",
  "dense_reward": """STAGES, PROMPTS = 1, 12
REDUCED = [f"config.runs.{arm}.{option}" for arm in ("plain", "discounted") for option in (
  "batch=2", "group=5", "steps=4", "algorithm.updates=4", "algorithm.tuples=2")]
REDUCED += ["config.runs.evaluate.samples=1", "config.runs.evaluate.batch=12"]""",
  "seedance": """UPDATES, PROMPTS = 2, 6
REDUCED = [f"config.runs.{name}.{option}" for name in ("seen", *PARTS)
           for option in ("steps=2", "optim.warmup_steps=0")]
REDUCED += ["config.runs.maximised.batch=2", "config.runs.maximised.calibrate=8", "config.runs.evaluate.batch=12"]""",
  "unified_reward": """WAYS, ASKED, UPDATES, PROMPTS = ("random", "two_stage"), 16, 2, 12
REDUCED = ["config.runs.pairs.samples=4", "config.runs.pairs.calls=8", "config.runs.pairs.batch=16",
           "config.runs.random.batch=4", "config.runs.two_stage.batch=4", "config.runs.evaluate.samples=1"]""",
  "uae": """PASSES, PICTURES, PROMPTS = 2000, 6, 12
REDUCED = ["config.runs.scorer.steps=2", "config.runs.scorer.optim.warmup_steps=1", "config.runs.evaluate.samples=1"]
REDUCED += [f"config.runs.round_{i}_{side}.{option}" for i, side in enumerate(SIDES, 1)
            for option in ("batch=4", "group=2")]"""}
EXPECTED = {"tour": (2, ("report.html", "aligned - base")),  # pictures, words
            "gamma": (2, ("dpo    gamma 1", "dense  gamma 0.8", "±")),
            "dense_reward": (4, ("decided after step", "discounted - plain", "discounted - base")),
            "seedance": (5, ("motion - left better", "report.html", "maximised - base")),
            "unified_reward": (2, ("random: 16 pairs of 16", "two_stage: ", "report.html", "two_stage - random")),
            "uae": (2, ("told/right", "report.html", "aligned - base"))}


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs(path):
  for cell in nbformat.read(path, 4).cells:
    assert cell.cell_type != "code" or not cell.outputs and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_every_cell_runs(path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel's own, which shows figures
  monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
  book = nbformat.read(path, 4)
  for cell in book.cells:
    if "parameters" in cell.metadata.get("tags", ()):
      print("at a reduced size:", SMALLER[path.stem])
      cell.source += "\n" + SMALLER[path.stem]
  NotebookClient(book, timeout=900, resources={"metadata": {"path": os.fspath(ROOT)}}).execute()
  outputs = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
  images, words = EXPECTED[path.stem]
  assert sum(any(kind.startswith("image/") for kind in out.get("data", {})) for out in outputs) == images
  said = "\n".join(out.get("text", "") for out in outputs)
  assert all(word in said for word in words), said
