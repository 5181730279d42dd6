"""Where the time of the recipes' training goes, and the most memory: each arm in a process of its own.

An arm runs at its real size, from fresh weights where it would begin from another run's, since times do not depend on
them; pairs are random pictures. `compiling` is what the first experience took beyond the later ones, with no program
kept from before; the others are seconds of one experience with all of its updates, each program waited for: `sampling`
(text, chains, media), `scoring`, `updating`. `memory` is the most that the process ever held, with its libraries. Left
out: verdicts and the making of pairs by a judge, whose times are in the report of a run, and reading data, which
happens beside.
"""
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import jax
import numpy as np

RECIPES = "configs/recipes"
ARMS = {  # a recipe, and a run of it
  "dense reward": ("dense_reward.py", "gamma_09"), "seedance, maximised": ("seedance.py", "maximised"),
  "seedance, grpo": ("seedance.py", "grpo"), "unified reward, dpo": ("unified_reward.py", "two_stage"),
  "uae, captioner": ("uae.py", "both_1_captioner"), "uae, generator": ("uae.py", "both_2_generator"),
}
PHASES = {"embed": "sampling", "rollout": "sampling", "decode": "sampling", "cut": "sampling", "whole": "sampling",
          "score": "scoring", "select": "updating", "update": "updating", "follow": "updating"}


def run(repeats: int, arms: tuple = tuple(ARMS)) -> dict:
  """{"arm, phase": {"seconds", "spread"}}; the last phase of an arm has its memory."""
  out = {}
  for arm in arms:
    with tempfile.TemporaryDirectory() as cache:
      said = subprocess.run([sys.executable, "-m", "launch.phases", arm, str(min(repeats, 4))], check=True,
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache})
    out |= json.loads(said.stdout.splitlines()[-1])
  return out


def measured(arm: str, repeats: int, overrides: tuple = ()) -> dict:
  """The numbers of one arm, in this process."""
  from align import build, config, main, metrics, train
  file, name = ARMS[arm]
  resolved = build.resolve(config.override(config.load(f"{RECIPES}/{file}"), overrides))
  calls, compiled = [], train.compile_
  with tempfile.TemporaryDirectory() as folder:
    spec = alone(resolved["runs"][name], Path(folder))
    updates = spec["algorithm"].get("updates", 1)
    spec = {**spec, "steps": (1 + repeats) * updates}
    train.compile_ = lambda *given: watched(compiled(*given), calls)
    try:
      main.run(spec, str(Path(folder, "run")))
    finally:
      train.compile_ = compiled
  found = phases(calls, updates, repeats)
  memory = metrics.peak_memory()
  return {f"{arm}, {phase}": {**row, **({"memory": memory} if phase == "updating" else {})}
          for phase, row in found.items()}


def alone(spec: dict, folder: Path) -> dict:
  """The run without the others that it begins or learns from."""
  start = {role: place for role, place in (spec.get("start") or {}).items() if "@" not in str(place)}
  spec = {**spec, "start": start, "evaluate": None}
  return {**spec, "data": pairs(spec, folder)} if "@" in str(spec["data"].get("path")) else spec


def pairs(spec: dict, folder: Path) -> dict:
  """Data of random pictures in the place of what a judge chose."""
  from align.datasets import pairs as dataset
  rng, side = np.random.default_rng(0), spec["policy"]["size"]
  drawn = lambda: rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
  dataset.write(folder / "pairs", [dataset.pair("a red circle", drawn(), drawn()) for _ in range(spec["batch"])])
  return {**spec["data"], "path": str(folder / "pairs")}


def watched(do: Any, calls: list) -> Any:
  """The programs of a run, each of which is waited for and leaves (name, seconds) in `calls`."""
  def timed(name: str, program: Callable):
    @functools.wraps(program)
    def call(*given):
      began = time.perf_counter()
      out = jax.block_until_ready(program(*given))
      calls.append((name, time.perf_counter() - began))
      return out
    return call
  return do._replace(**{name: timed(name, program) for name, program in do._asdict().items()
                        if name in PHASES and program is not None})


def phases(calls: list, updates: int, repeats: int) -> dict:
  """{phase: {"seconds", "spread"}} of calls in order, those of 1 + repeats experiences of so many updates each."""
  ends = [i for i, (name, _) in enumerate(calls) if name == "update"][updates - 1::updates]
  parts = [calls[a:b] for a, b in zip([0, *(i + 1 for i in ends)], [i + 1 for i in ends], strict=False)]
  sums = [{phase: sum(s for name, s in part if PHASES[name] == phase) for phase in PHASES.values()} for part in parts]
  later, out = sums[1:1 + repeats], {}
  for phase in dict.fromkeys(PHASES.values()):
    each = [one[phase] for one in later]
    out[phase] = {"seconds": statistics.median(each), "spread": float(np.quantile(each, .75) - np.quantile(each, .25))}
  compiling = sum(sums[0].values()) - sum(row["seconds"] for row in out.values())
  return {"compiling": {"seconds": max(compiling, 0.0), "spread": 0.0}, **out}


if __name__ == "__main__":
  print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
