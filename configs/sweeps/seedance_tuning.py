"""The learning rates of Seedance's arms in Scenes, on a seed and on prompts that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/seedance_tuning.py --workdir=runs/seedance_tuning --jobs=2

Each arm is tried at rates of 1e-4 and 3e-4 and, beyond the better of the two, at 3e-5 or 1e-3; then at that better one
(RATES of the recipe) with less and more of one other option: how late the feedback begins, the clip of GRPO and of PPO,
DPO's beta, the length of the control's average. The best verdict decides for each arm alone, so what the feedback is
compared with is tuned as it is itself. Rewards and pairs are the same for all.

Hardware: two CPU cores; a run took 21 to 25 minutes of one, beside another run, after four for the rewards.
"""
from configs.recipes import seedance

SEED, RATES, BEYOND = 100, (1e-4, 3e-4), {"control": 1e-3}  # beyond: of the others 3e-5
OPTIONS = {  # of each arm: what the rates are tried with, less and more
  "maximised": ("first", 0.5, 0.25, 0.75), "grpo": ("clip", 1e-3, 3e-4, 3e-3), "ppo": ("clip", 1e-3, 3e-4, 3e-3),
  "dpo": ("beta", 1000.0, 300.0, 3000.0), "control": ("ema", 0.99, 0.9, 0.999)}


def get_sweep():
  arms = seedance.arms()
  at = lambda rates, k=1: {"config.seed": SEED, **{f"config.runs.{arm}.optim.lr": rates[arm] for arm in arms},
                           **{f"config.runs.{arm}.algorithm.{option[0]}": option[k] for arm, option in OPTIONS.items()}}
  runs = {f"rate_{lr:g}": at(dict.fromkeys(arms, lr)) for lr in RATES}
  runs["rate_beyond"] = at({arm: BEYOND.get(arm, 3e-5) for arm in arms})
  runs |= {name: at(seedance.RATES, k) for k, name in enumerate(("less", "more"), 2)}
  return {
    "config": "configs/recipes/seedance.py:tuning", "runs": runs,
    "share": {name: {stage: f"common/{stage}" for stage in (*seedance.rewards(), "pairs")} for name in runs},
    "columns": {arm: ["arms", arm, "overall", "rate"] for arm in ("base", *arms)},
  }
