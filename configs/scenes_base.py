"""The base generator of Scenes from nothing: what diffusion/bases/scenes was made with.

  python -m align.main --config=configs/scenes_base.py --workdir=runs/scenes_base

Hardware: two CPU cores, an hour; a minute for the renders. A U-Net of 1.4M parameters, rectified flow with x0
prediction. What ships is runs/scenes_base/train/export.
"""
import ml_collections

from configs import common


def get_config():
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": "The base of Scenes",
    "runs": {
      "data": {"task": "prepare", "dataset": {"name": "scenes", "count": 150_000}},
      "train": {
        "task": "train", "steps": 12_000, "batch": 48, "policy": common.SCENES, "drop": 0.1,
        "data": {"name": "scenes", "split": "train", "count": 150_000, "data_dir": "@data"},
        "algorithm": {"name": "sft", "ema": 0.999},
        "optim": {"name": "adamw", "lr": 2e-3, "warmup_steps": 300, "decay": "linear"},
        "log_every": 50, "save_every": 500,
      },
      "evaluate": common.verdict({"base": "@train"}, samples=4),
    },
  })
