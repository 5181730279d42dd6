"""The differentiable judge of Scenes, learned from renders.

  python -m align.main --config=configs/scenes_scorer.py --workdir=runs/scenes_scorer

Hardware: two CPU cores, one to three minutes. On 1,920 samples of the base for held-out prompts its score tells those
that the exact detector accepts from the others with an area under the curve of .993 (.990 within a prompt), and agrees
with the detector on 96.9 % at .5. A run whose reward is {"name": "scenes_scorer"} begins from it with
"start": {"reward": "runs/scenes_scorer"}; an evaluation names it in `models`.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
    "task": "train", "steps": 2000, "batch": 64, "trained": "^reward/", "reward": {"name": "scenes_scorer"},
    "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 50_000},
    "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 100}, "log_every": 100,
  })
