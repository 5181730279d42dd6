"""Beta and the learning rate of UnifiedReward's DPO in Scenes, on a seed and prompts that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/unified_tuning.py --workdir=runs/unified_reward --jobs=2

The best verdict of `two_stage` decides, for all ways of making pairs; clips have a beta of their own, at the same rate.
In the workdir of the comparison the judge is trained once for both.

Hardware: two CPU cores, half an hour, beside the judge.
"""
from configs.recipes import unified_reward

SEED, FILE = 100, "configs/recipes/unified_reward.py"
TRIED = {"image": ((300.0, 3e-4), (100.0, 3e-4), (30.0, 3e-4), (300.0, 1e-3), (100.0, 1e-3)),
         "clip": ((300.0, 3e-4), (1000.0, 3e-4), (3000.0, 3e-4))}


def get_sweep():
  made = lambda *what: ["collected", "pairs", "ways", "two_stage", *what]
  runs = {f"{kind}_{beta:g}_{lr:g}": {
    "config": f"{FILE}:{kind},tuning", "config.seed": SEED, "config.runs.two_stage.algorithm.beta": beta,
    "config.runs.two_stage.optim.lr": lr} for kind, tried in TRIED.items() for beta, lr in tried}
  return {
    "config": FILE, "runs": runs,
    "share": {name: {**{stage: f"common/{stage}" for stage in unified_reward.judge()},
                     "pairs": f"tuning/{name.split('_')[0]}/pairs"} for name in runs},
    "columns": {**{arm: ["arms", arm, "overall", "rate"] for arm in ("base", "two_stage")},
                "diversity kept": ["diversity_ratio", "value"], "pairs": made("pairs"),
                "right": made("audit", "right", "share")},
  }
