"""Beta and rate of UnifiedReward's DPO of pictures in Scenes, on a seed and prompts that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/unified_tuning.py --workdir=runs/unified_reward --jobs=2

The best verdict of `two_stage` decides, for all ways of making pairs. In the workdir of the comparison the judge is
trained once for both.

Hardware: two CPU cores, half an hour, beside the judge.
"""
from configs.recipes import unified_reward

SEED, FILE = 100, "configs/recipes/unified_reward.py"
TRIED = ((300.0, 3e-4), (100.0, 3e-4), (30.0, 3e-4), (300.0, 1e-3), (100.0, 1e-3))


def get_sweep():
  made = lambda *what: ["collected", "pairs", "ways", "two_stage", *what]
  runs = {f"image_{beta:g}_{lr:g}": {"config.seed": SEED, "config.runs.two_stage.algorithm.beta": beta,
                                     "config.runs.two_stage.optim.lr": lr} for beta, lr in TRIED}
  return {
    "config": f"{FILE}:image,tuning", "runs": runs,
    "share": {name: {**{stage: f"common/{stage}" for stage in unified_reward.judge()},
                     "pairs": "tuning/image/pairs"} for name in runs},
    "columns": {**{arm: ["arms", arm, "overall", "rate"] for arm in ("base", "two_stage")},
                "diversity kept": ["diversity_ratio", "value"], "pairs": made("pairs"),
                "right": made("audit", "right", "share")},
  }
