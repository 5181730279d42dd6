"""The base generator of Scenes' clips from nothing: what diffusion/bases/clips was made with.

  python -m align.main --config=configs/clips_base.py --workdir=runs/clips_base

Hardware: two CPU cores, about 25 minutes of one of them, by its last 3,500 updates at .37 seconds. A network of 1.4M
parameters, rectified flow with x0 prediction, six frames of 16x16 pixels in which one thing moves. What ships is
runs/clips_base/train/export.

On 480 held-out prompts, 4 clips each: shape right .806, colour .994, motion .615, all of it in one thing .483 (.452 to
.515 over prompts); unrecognisable objects .049 a frame, diversity among the right .128.
"""
import ml_collections

from configs import common


def get_config():
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": "The base of Scenes' clips",
    "runs": {
      "train": {
        "task": "train", "steps": 4000, "batch": 32, "policy": common.CLIPS, "drop": 0.1,
        "data": {"name": "scenes", "split": "train", "count": 128_000, **common.MOVING},
        "algorithm": {"name": "sft", "ema": 0.998},
        "optim": {"name": "adamw", "lr": 2e-3, "warmup_steps": 200, "decay": "linear"},
        "log_every": 50, "save_every": 250,
      },
      "evaluate": {
        "task": "evaluate", "arms": {"base": "@train"}, "data": common.held_out_clips(), "samples": 4, "batch": 120,
        "rewards": {"scenes": common.REWARD}, "success": "scenes/exact", "diversity": "scenes",
      },
    },
  })
