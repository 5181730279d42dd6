"""The differentiable judge of Scenes, learned from renders.

  python -m align.main --config=configs/scenes_scorer.py --workdir=runs/scenes_scorer

Hardware: two CPU cores, three minutes. A run whose reward is {"name": "scenes_scorer"} begins from it with
"start": {"reward": "runs/scenes_scorer"}; an evaluation names it in `models`.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
    "task": "train", "steps": 2000, "batch": 64, "trained": "^reward/", "reward": {"name": "scenes_scorer"},
    "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 50_000},
    "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 100}, "log_every": 100,
  })
