"""UAE in Scenes: do captioner and generator gain more together than alone? Five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/uae.py --workdir=runs/uae --jobs=2

The claim that counts is two, which must both hold: `both` draws better than `generator`, and answers better than
`captioner`, at equal compute, where the 95 % t-interval over seeds lies above 0 and the mean is at least .03, which was
decided beforehand. The others are exploratory. What all arms begin from is the same for all seeds.

Hardware: two CPU cores, two and a half hours by count of passes, beside what all begin from.
"""
from configs.recipes import uae

SEEDS = range(5)
PAPER = "GenEval .73 to .86 (2509.09666)"
SEEN = "MMT-Bench and MMVP sub-tasks, up to +15 points (2509.09666)"


def get_sweep():
  runs = [f"seed{seed}" for seed in SEEDS]
  rate = lambda arm: ["arms", arm, "overall", "rate"]
  gain = lambda arm: ["differences", f"both - {arm}", "overall", "difference"]
  asked = lambda arm: ["examined", f"{arm}_asked", "accuracy"]
  told = lambda arm, what: ["examined", f"{arm}_told", "means", f"told/{what}"]
  claim = lambda text, paper, path, **more: {"text": text, "paper": paper, "path": path, "runs": runs, **more}
  return {
    "config": "configs/recipes/uae.py", "runs": {name: {"config.seed": seed} for name, seed in zip(runs, SEEDS,
                                                                                                   strict=True)},
    "share": {name: {stage: f"common/{stage}" for stage in uae.base()} for name in runs},
    "columns": {**{arm: rate(arm) for arm in ("base", "generator", "both")},
                **{f"{arm} asked": asked(arm) for arm in ("base", "captioner", "both")},
                **{f"{arm} {what}": told(arm, what) for arm in ("base", "captioner", "both")
                   for what in ("complete", "invented", "words")}},
    "claims": [
      claim("Together the generator draws better than trained alone", PAPER, gain("generator"), primary=True),
      claim("Together the captioner answers better than trained alone", SEEN, asked("both"), minus=asked("captioner"),
            primary=True),
      claim("Together the generator draws better than before", PAPER, gain("base")),
      claim("Together the captioner answers better than before", SEEN, asked("both"), minus=asked("base")),
      claim("Its captions say more of what there is than before", "longer and more detailed, by examples (2509.09666)",
            told("both", "complete"), minus=told("base", "complete")),
    ],
  }
