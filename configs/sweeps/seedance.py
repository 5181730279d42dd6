"""Seedance's reward feedback beside DPO, PPO and GRPO in Scenes: five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/seedance.py --workdir=runs/seedance --jobs=2

The claim that counts is that `maximised` beats each of the three, which are three comparisons that must all hold: where
the 95 % t-interval over seeds lies above 0 and the mean is at least .03, which was decided beforehand. The others are
exploratory. Rewards are trained anew for every seed. Nothing was tuned on these seeds.

Hardware: two CPU cores, an hour by count of passes.
"""
from configs.recipes import seedance

SEEDS = range(5)
PAPER = "higher than DPO, PPO and GRPO in the sum of its rewards, as a curve without figures (2506.09113)"
OTHERS = {"dpo": "DPO", "ppo": "PPO", "grpo": "GRPO"}


def get_sweep():
  runs = [f"seed{seed}" for seed in SEEDS]
  rate = lambda arm: ["arms", arm, "overall", "rate"]
  gain = lambda arm: ["differences", f"maximised - {arm}", "overall", "difference"]
  claim = lambda text, path, **more: {"text": text, "paper": PAPER, "path": path, "runs": runs, **more}
  arms = ("base", *seedance.arms())
  return {
    "config": "configs/recipes/seedance.py",
    "runs": {name: {"config.seed": seed} for name, seed in zip(runs, SEEDS, strict=True)},
    "columns": {**{arm: rate(arm) for arm in (*arms, "second", "longer")},
                "diversity kept": ["diversity_ratio", "value"]},
    "claims": [
      *(claim(f"Maximising learned rewards of clips beats {name} at equal compute", gain(arm), primary=True)
        for arm, name in OTHERS.items()),
      claim("It beats supervised training of equal compute", gain("control"), paper="not compared"),
      claim("It beats the base", gain("base"), paper="preferred by people, without figures (2506.09113)"),
      claim("A second round with new labels beats going on as long", rate("second"), minus=rate("longer"),
            paper="raises the ceiling, as a curve without figures (2506.09113)"),
    ],
  }
