"""Does it matter how a judge's answers become pairs? Five seeds that were fixed beforehand, and one of clips.

  python -m launch.sweep --sweep=configs/sweeps/unified_reward.py --workdir=runs/unified_reward --jobs=2

The judge and its labels are the same for all runs, and so are the prompts of pairs and of the verdict: seeds are those
of what is sampled and of DPO, and intervals are about these alone. What is recorded of clips and of answers is by a
judge that was trained again, from the same seed and as many labels. Of one run, they are over prompts, which of clips
are 164 different ones of 29 combinations: too narrow. Candidates of pairs begin from other noise than the verdict's
samples.

What is decided beforehand: beta and rates (configs/sweeps/unified_tuning.py); a claim holds where its interval lies
above 0 and its mean is at least .03.
"""
from configs.recipes import unified_reward

SEEDS = range(5)
PAPER = ("SDXL-Turbo, ImageReward: base 0.84, random pairs 0.75, points alone 0.94, pairs alone 1.01, two stages 1.09 "
         "(2503.05236)")
CLIPS = "T2V-Turbo, VBench: base 80.95, two stages 82.10 (2503.05236)"
ANSWERS = "LLaVA-OneVision-7B, LLaVA-Bench 90.3 to 101.4 (2503.05236)"


def get_sweep():
  runs, clips, answers = [f"seed{seed}" for seed in SEEDS], ["clips0"], ["answers0"]
  arm = lambda name: ["arms", name, "overall", "rate"]
  gain = lambda name: ["differences", f"two_stage - {name}", "overall", "difference"]
  claim = lambda text, path, **more: {"text": text, "paper": PAPER, "path": path, "runs": runs, "least": 0.03, **more}
  made = lambda way, *what: ["collected", "pairs", "ways", way, *what]
  told = lambda stage, *task: ["examined", stage, *(("scores", *task) if task else ()), "accuracy"]
  sampled = lambda seed, *stages: {"config.seed": seed, **{f"config.runs.{name}.seed": 1000 + seed for name in stages}}
  others = {"point": "pairs by points alone", "pair": "pairs by comparisons alone", "control": "supervised training",
            "base": "the base"}
  equal = lambda name: "" if name == "base" else " of equal compute" if name == "control" else " at equal cost"
  compared = lambda name: "not compared" if name == "control" else PAPER
  common = {stage: f"common/{stage}" for stage in unified_reward.judge()}
  file = "configs/recipes/unified_reward.py"
  return {
    "title": "UnifiedReward", "config": file,
    "runs": {**{name: sampled(seed, "pairs") for name, seed in zip(runs, SEEDS, strict=True)},
             clips[0]: {"config": f"{file}:clip", **sampled(0, "pairs")},
             answers[0]: {"config": f"{file}:answer", **sampled(0, "answers")}},
    "share": dict.fromkeys((*runs, *clips, *answers), common),
    "columns": {**{name: arm(name) for name in ("base", "control", "random", "point", "pair", "two_stage")},
                "over random": gain("random"),
                **{f"{way}: {title}": made(way, *what) for way in unified_reward.WAYS for title, what in (
                  ("pairs", ("pairs",)), ("right", ("audit", "right", "share")))},
                "asked": told("asked"), "asked again": told("asked_again")},
    "groups": {"pictures": runs, "clips": clips, "answers": answers},
    "claims": [
      claim("Pairs by ranking and then sifting teach a generator of pictures more than random pairs do", gain("random"),
            primary=True),
      *[claim(f"DPO on pairs by ranking and then sifting beats {text}{equal(name)}", gain(name), paper=compared(name))
        for name, text in others.items()],
      *[claim(f"DPO on the judge's pairs makes a generator of clips better than {others[name]}{equal(name)}",
              gain(name), runs=clips, paper=paper) for name, paper in (("base", CLIPS), ("control", "not compared"))],
      claim("DPO on the judge's pairs makes a network answer better", told("asked_again"), minus=told("asked"),
            runs=answers, paper=ANSWERS),
      *[claim(f"DPO on the judge's pairs makes a network answer better: {task}", told("asked_again", task),
              minus=told("asked", task), runs=answers, paper=ANSWERS) for task in unified_reward.ASKED],
    ],
  }
