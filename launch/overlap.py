"""What it gains that a reward which lives elsewhere is asked while the next chunk is sampled: seconds of an experience.

A run of DiffusionNFT on small pictures whose reward only waits, as for an answer of a server: WAIT seconds a picture,
one chunk after another. `ours` leaves the number of chunks to the reward, which asks for four; `in turn` samples all
and then waits for all. The same samples, scores and updates either way.
"""
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from launch.timing import compared

WAIT = 0.003
PROMPTS, GROUP = 12, 8
CHUNKS = {"ours": None, "in turn": 1}


def wait(pictures: np.ndarray) -> list:
  """A reader of text that takes its time and sees nothing."""
  time.sleep(WAIT * len(pictures))
  return ["" for _ in pictures]


def config(steps: int, chunks: int | None, path: str) -> dict:
  return {
    "task": "train", "steps": steps, "batch": PROMPTS, "group": GROUP, "chunks": chunks, "log_every": 1,
    "policy": {"name": "diffusion", "net": {"name": "unet", "variant": "tiny"}, "text": {"name": "text", "width": 16},
               "process": "flow", "size": 16, "steps": 8, "length": 20},
    "algorithm": {"name": "nft", "steps": 8, "levels": 1}, "data": {"name": "prompts", "path": path},
    "reward": {"name": "ocr", "reader": "launch.overlap:wait"}}


def run(repeats: int) -> dict:
  """{side: numbers} of launch/timing.py."""
  return compared({side: seconds(max(repeats, 2), chunks) for side, chunks in CHUNKS.items()}, {})


def seconds(repeats: int, chunks: int | None) -> list:
  """Of each of `repeats` experiences after the first two, in which programs are compiled."""
  from align import main  # and all that a run needs
  with tempfile.TemporaryDirectory() as folder:
    prompts = Path(folder, "prompts.txt")
    prompts.write_text('a sign that says "stop"\n' * PROMPTS)
    main.run(config(repeats + 2, chunks, str(prompts)), str(Path(folder, "run")))
    rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
  return np.diff([row["time"] for row in rows if "train/loss" in row])[-repeats:].tolist()
