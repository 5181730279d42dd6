"""Does it matter how a judge's answers become pairs? Five seeds that were fixed beforehand, and one of clips.

  python -m launch.sweep --sweep=configs/sweeps/unified_reward.py --workdir=runs/unified_reward --jobs=2

The judge, its labels and the answerer's base are the same for all runs; seeds are those of what is sampled and of DPO.
"""
from configs.recipes import unified_reward

SEEDS = range(5)
PAPER = ("SDXL-Turbo, ImageReward: base 0.84, random pairs 0.75, points alone 0.94, pairs alone 1.01, two stages 1.09 "
         "(2503.05236)")
CLIPS = "T2V-Turbo, VBench: base 80.95, two stages 82.10 (2503.05236)"
ANSWERS = "LLaVA-OneVision-7B, LLaVA-Bench 90.3 to 101.4 (2503.05236)"


def get_sweep():
  runs, clips = [f"seed{seed}" for seed in SEEDS], ["clips0"]
  arm = lambda name: ["arms", name, "overall", "rate"]
  gain = lambda name: ["differences", f"two_stage - {name}", "overall", "difference"]
  claim = lambda text, path, **more: {"text": text, "paper": PAPER, "path": path, "runs": runs, "least": 0.03, **more}
  right = lambda way: ["collected", "pairs", "ways", way, "audit", "right", "share"]
  told = lambda stage, task: ["examined", stage, "scores", task, "accuracy"]
  others = {"point": "points alone", "pair": "pairs alone", "control": "supervised training", "base": "the base"}
  common = {stage: f"common/{stage}" for stage in unified_reward.judge()}
  file = "configs/recipes/unified_reward.py"
  return {
    "config": file,
    "runs": {**{name: {"config.seed": seed} for name, seed in zip(runs, SEEDS, strict=True)},
             **{name: {"config": f"{file}:clip", "config.seed": 0} for name in clips}},
    "share": {**{name: {**common, "talker": "common/talker"} for name in runs}, **{name: common for name in clips}},
    "columns": {**{name: arm(name) for name in ("base", "control", "random", "point", "pair", "two_stage")},
                "over random": gain("random"), "pairs that are right": right("two_stage")},
    "groups": {"pictures": runs, "clips": clips},
    "claims": [
      claim("Pairs by ranking and then sifting teach a generator of pictures more than random pairs do", gain("random"),
            primary=True),
      *[claim(f"They teach it more than {text} at equal cost", gain(name)) for name, text in others.items()],
      *[claim(f"DPO on the judge's pairs makes a generator of clips better than {others[name]}", gain(name), runs=clips,
              paper=CLIPS) for name in ("base", "control")],
      *[claim(f"DPO on them makes a network answer better: {task}", told("asked_again", task),
              minus=told("asked", task), paper=ANSWERS) for task in unified_reward.ASKED],
    ],
  }
