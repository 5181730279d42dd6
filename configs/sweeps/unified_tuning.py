"""Beta and the control's rate of UnifiedReward in Scenes, on a seed and on prompts that the comparison does not use.

  python -m launch.sweep --sweep=configs/sweeps/unified_tuning.py --workdir=runs/unified_reward --jobs=2

The best verdict of `two_stage` decides on beta, for all ways and for clips, too; that of `control` on its rate. In the
workdir of the comparison the judge is trained once for both.

Hardware: two CPU cores, a quarter of an hour by estimate, beside the judge.
"""
from configs.recipes import unified_reward

SEED, BETAS, RATES = 100, (300.0, 1000.0), (3e-4, 1e-3)


def get_sweep():
  arms = (*unified_reward.TUNED, "control")
  made = lambda way, *what: ["collected", "pairs", "ways", way, *what]
  chosen = lambda beta, lr: {"config.seed": SEED, "config.runs.control.optim.lr": lr,
                             **{f"config.runs.{way}.algorithm.beta": beta for way in unified_reward.TUNED}}
  runs = {f"beta_{beta:g}": chosen(beta, lr) for beta, lr in zip(BETAS, RATES, strict=True)}
  return {
    "config": "configs/recipes/unified_reward.py:image,tuning", "runs": runs,
    "share": {name: {**{stage: f"common/{stage}" for stage in unified_reward.judge()}, "pairs": "tuning/pairs"}
              for name in runs},
    "columns": {**{arm: ["arms", arm, "overall", "rate"] for arm in ("base", *arms)},
                **{f"{way}: {title}": made(way, *what) for way in unified_reward.TUNED for title, what in (
                  ("pairs", ("pairs",)), ("right", ("audit", "right", "share")))}},
  }
