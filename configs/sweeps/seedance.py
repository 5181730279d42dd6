"""Seedance's reward feedback beside DPO, PPO and GRPO in Scenes: five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/seedance.py --workdir=runs/seedance --jobs=2

The claim that counts is that `maximised` beats each of the three, which are three comparisons that must all hold: where
the 95 % t-interval over seeds lies above 0 and the mean is at least .03, which was decided beforehand. The others are
exploratory; at the first seed alone: each reward alone, and the refiner in two steps and in one. Rewards are trained
anew for every seed, and scores by those that nothing maximised are in their own units, of the logit of a preference.
Nothing was tuned on these seeds. Intervals do not cover which 29 things are held out, of which 21 move slowly.

Hardware: two CPU cores, two hours for the five seeds, and half an hour for the others.
"""
from configs.recipes import seedance

SEEDS = range(5)
PAPER = "higher than DPO, PPO and GRPO in the sum of its rewards, as a curve without figures (2506.09113)"
BALANCE = "no reward at the cost of another, by examples (2506.09113)"
FEW = "quality of many steps in few, by examples (2506.09113)"
OTHERS = {"dpo": "DPO", "ppo": "PPO", "grpo": "GRPO"}
SINGLE, REFINERS = "single0", {2: "refiner0", 1: "refiner_1_0"}


def shared(first: str) -> dict:
  """Of the same seed each reward alone begins with what the first run has, and both refiners with the same."""
  common = lambda stages, place: {stage: f"common/{place}/{stage}" for stage in stages}
  both = common((*seedance.rewards(), "maximised"), "generator")
  fine = common((*seedance.rewards(), "low", "held", "refined_8"), "refiner")
  return {first: both, SINGLE: both, **dict.fromkeys(REFINERS.values(), fine)}


def get_sweep():
  runs = [f"seed{seed}" for seed in SEEDS]
  score = lambda arm, of: ["scores", arm, f"{of}_witness/total"]
  rate = lambda arm: ["arms", arm, "overall", "rate"]
  gain = lambda arm, primary="maximised": ["differences", f"{primary} - {arm}", "overall", "difference"]
  claim = lambda text, path, **more: {"text": text, "paper": PAPER, "path": path, "runs": runs, **more}
  seeds = lambda seed: {"config.seed": seed, "config.runs.evaluate.seed": 1000 + seed}  # other noise than DPO's pairs
  arms, alone = ("base", *seedance.arms()), [f"{name}_alone" for name in seedance.PARTS]
  return {
    "title": "Seedance", "config": "configs/recipes/seedance.py",
    "runs": {**{name: seeds(seed) for name, seed in zip(runs, SEEDS, strict=True)},
             **{name: {"config": f"configs/recipes/seedance.py:{part}", **seeds(0)} for name, part in (
               (SINGLE, "single"), (REFINERS[2], "refiner"), (REFINERS[1], "refiner_1"))}},
    "groups": {"generator": runs, "each reward alone": [SINGLE], "refiner, two steps": [REFINERS[2]],
               "one step": [REFINERS[1]]},
    "share": shared(runs[0]),
    "columns": {**{arm: rate(arm) for arm in (*arms, "second", "longer", *alone)},
                **{arm.format(few): rate(arm.format(few)) for few in REFINERS for arm in (
                  "undistilled_{}", "refined_{}", "refined_{}_control", "refined_{}_rlhf")},
                "diversity kept": ["diversity_ratio", "value"]},
    "claims": [
      *(claim(f"Maximising learned rewards of clips beats {name} at equal compute", gain(arm), primary=True)
        for arm, name in OTHERS.items()),
      claim("Maximising learned rewards of clips beats supervised training of equal compute", gain("control"),
            paper="not compared"),
      claim("Maximising learned rewards of clips beats the base", gain("base"),
            paper="preferred by people, without figures (2506.09113)"),
      claim("A second round with new labels beats the first", rate("second"), minus=rate("maximised"),
            paper="raises the ceiling, as a curve without figures (2506.09113)"),
      claim("A second round with new labels beats going on as long with the old ones", rate("second"),
            minus=rate("longer"), paper="not compared"),
      *(claim(f"All three rewards together beat {name} alone in exact success", gain(f"{name}_alone"), runs=[SINGLE],
              paper=BALANCE) for name in seedance.PARTS),
      *(claim(f"{name} alone leaves {other} worse than all three do, in units of a reward that nothing maximised",
              score("maximised", other), minus=score(f"{name}_alone", other), runs=[SINGLE], paper=BALANCE)
        for name in seedance.PARTS for other in seedance.WITNESSES if other != name),
      *(claim(f"A refiner of {few} step{'s' * (few > 1)} is better after feedback than {said}", gain(arm.format(few),
              f"refined_{few}_rlhf"), runs=[run], paper=FEW)
        for few, run in REFINERS.items() for arm, said in (
          ("refined_{}", "before"), ("undistilled_{}", "without distillation and feedback"),
          ("refined_{}_control", "after as much distillation"), ("refined_8", "in 8 steps"))),
    ],
  }
