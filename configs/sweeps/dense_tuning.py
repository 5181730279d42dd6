"""The learning rate of Dense Reward in Scenes, on a seed that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/dense_tuning.py --workdir=runs/dense_tuning --jobs=2

Hardware: two CPU cores, twenty minutes by count of passes. The best mean of the verdicts of both discounts decides, for
both.
"""
from configs.sweeps import dense_reward

SEED, RATES = 100, (1e-4, 3e-4, 3e-5)


def get_sweep():
  rate = lambda arm: ["arms", arm, "overall", "rate"]
  arms = ("gamma_1", "gamma_09")
  return {
    "config": f"{dense_reward.CONFIG}:multi,tuning", "columns": {arm: rate(arm) for arm in ("base", *arms)},
    "runs": {f"multi_{lr:g}": {"config.seed": SEED, **{f"config.runs.{arm}.optim.lr": lr for arm in arms}}
             for lr in RATES},
  }
