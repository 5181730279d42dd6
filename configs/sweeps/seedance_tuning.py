"""The learning rates of Seedance's arms in Scenes, on a seed that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/seedance_tuning.py --workdir=runs/seedance_tuning --jobs=2

Each arm is tried at the same three rates, and its best verdict decides for it alone: what the feedback is compared with
is tuned as it is itself. Rewards and pairs are the same for all.

Hardware: two CPU cores, half an hour by count of passes.
"""
from configs.recipes import seedance

SEED, RATES = 100, (1e-4, 3e-4, 1e-3)


def get_sweep():
  arms = seedance.arms()
  runs = {f"rate_{lr:g}": {"config.seed": SEED, **{f"config.runs.{arm}.optim.lr": lr for arm in arms}} for lr in RATES}
  return {
    "config": "configs/recipes/seedance.py:tuning", "runs": runs,
    "share": {name: {stage: f"common/{stage}" for stage in (*seedance.rewards(), "pairs")} for name in runs},
    "columns": {arm: ["arms", arm, "overall", "rate"] for arm in ("base", *arms)},
  }
