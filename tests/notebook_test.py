"""notebooks/tour.ipynb, every cell, in a kernel of its own."""
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


def test_the_notebook_is_stored_without_outputs():
  for cell in nbformat.read(ROOT / "notebooks/tour.ipynb", 4).cells:
    assert cell.cell_type != "code" or not cell.outputs and cell.execution_count is None


@pytest.mark.slow
def test_every_cell_runs(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
  book = nbformat.read(ROOT / "notebooks/tour.ipynb", 4)
  NotebookClient(book, timeout=900, resources={"metadata": {"path": os.fspath(ROOT)}}).execute()
  said = "\n".join(out.get("text", "") for cell in book.cells if cell.cell_type == "code" for out in cell.outputs)
  assert "report.html" in said and "aligned - base" in said
  images = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs
            if "image/png" in out.get("data", {})]
  assert len(images) == 2
