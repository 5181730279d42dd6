"""The learning rates of Seedance's arms in Scenes, on a seed and on prompts that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/seedance_tuning.py --workdir=runs/seedance_tuning --jobs=2

Each arm is tried at the same three rates, and at the middle one with less and more of one other option: how late the
feedback begins, the clip of GRPO and of PPO, DPO's beta, the length of the control's average. The best verdict decides
for each arm alone, so what the feedback is compared with is tuned as it is itself. Rewards and pairs are the same for
all.

Hardware: two CPU cores, fifty minutes by count of passes.
"""
from configs.recipes import seedance

SEED, RATES = 100, (1e-4, 3e-4, 3e-5)
OPTIONS = {"maximised": ("first", 0.25, 0.75), "grpo": ("clip", 3e-4, 3e-3), "ppo": ("clip", 3e-4, 3e-3),
           "dpo": ("beta", 300.0, 3000.0), "control": ("ema", 0.9, 0.999)}


def get_sweep():
  arms = seedance.arms()
  at = lambda lr: {"config.seed": SEED, **{f"config.runs.{arm}.optim.lr": lr for arm in arms}}
  runs = {f"rate_{lr:g}": at(lr) for lr in RATES}
  for k, name in enumerate(("less", "more"), 1):
    runs[name] = {**at(RATES[0]), **{f"config.runs.{arm}.algorithm.{option[0]}": option[k]
                                     for arm, option in OPTIONS.items()}}
  return {
    "config": "configs/recipes/seedance.py:tuning", "runs": runs,
    "share": {name: {stage: f"common/{stage}" for stage in (*seedance.rewards(), "pairs")} for name in runs},
    "columns": {arm: ["arms", arm, "overall", "rate"] for arm in ("base", *arms)},
  }
