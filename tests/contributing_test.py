"""The recipe in CONTRIBUTING.md is code that runs: an algorithm in one file, found by its name."""
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from align import main, metrics

ROOT = Path(__file__).parent.parent


def test_the_recipe_trains(tmp_path, monkeypatch):
  recipe = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
  module = types.ModuleType("recipe")
  exec(compile(recipe, "recipe.py", "exec"), vars(module))
  monkeypatch.setitem(sys.modules, "recipe", module)
  config = {"task": "train", "steps": 3, "batch": 8, "policy": {"name": "toy:policy"}, "data": {"name": "toy:data"},
            "reward": {"name": "toy:reward"}, "algorithm": {"name": "recipe:make", "temperature": 0.5}, "log_every": 1}
  main.run(config, tmp_path / "run")
  rows = [row for row in metrics.read(tmp_path / "run") if "train/loss" in row]
  assert len(rows) == 3 and np.isfinite([row["train/loss"] for row in rows]).all()
  assert all(row["train/weight_max"] > 1 for row in rows)
  with pytest.raises(ValueError, match="temprature.*nearest: 'temperature'"):
    main.run({**config, "algorithm": {"name": "recipe:make", "temprature": 1.0}}, tmp_path / "typo")
