"""The base generator of Scenes from nothing: what diffusion/bases/scenes was made with.

  python -m align.main --config=configs/scenes_base.py --workdir=runs/scenes_base

Hardware: two CPU cores, about an hour. A 1.3M-parameter U-Net, rectified flow with x0 prediction, on renders.
"""
import ml_collections

from configs import common


def get_config():
  steps = 12000
  return ml_collections.ConfigDict({
    "task": "train", "steps": steps, "batch": 48, "policy": common.SCENES, "drop": 0.1,
    "data": {"name": "scenes", "split": "train", "count": 150000},
    "algorithm": {"name": "sft", "ema": 0.999},
    "optim": {"name": "adamw", "lr": 2e-3, "warmup_steps": 300, "decay": "linear"},
    "log_every": 50, "save_every": 500,
  })
