"""UAE in Scenes: do captioner and generator gain more together than alone? Five seeds that were fixed beforehand.

  python -m launch.sweep --sweep=configs/sweeps/uae.py --workdir=runs/uae --jobs=2

The claim that counts is two, which must both hold: `both` draws better than `generator`, and describes more rightly
than `captioner`, at equal compute, where the 95 % t-interval over seeds lies above 0 and the mean is at least .03,
which was decided beforehand. The others are exploratory. What all arms begin from, the prompts and the pictures of the
verdict are the same for all seeds, and intervals are about what is sampled alone.

Hardware: two CPU cores, an hour by count of passes.
"""
from configs.recipes import uae

SEEDS = range(5)
PAPER = "GenEval .73 to .86 (2509.09666)"
REDRAWN = "Unified-Bench .790 to .861 (2509.09666)"
SEEN = "MMT-Bench, fine-grained perception .325 to .569 (2509.09666)"


def get_sweep():
  runs = [f"seed{seed}" for seed in SEEDS]
  rate = lambda arm: ["arms", arm, "overall", "rate"]
  gain = lambda arm: ["differences", f"both - {arm}", "overall", "difference"]
  asked = lambda arm, *task: ["examined", f"{arm}_asked", *(("scores", *task) if task else ()), "accuracy"]
  told = lambda arm, what, of="told": ["examined", f"{arm}_{of}", "means", f"told/{what}"]
  unseen = lambda arm: told(arm, "right", "told_unseen")
  redrawn = lambda arm: ["examined", f"{arm}_redrawn", "means", "scenes/exact"]
  claim = lambda text, paper, path, **more: {"text": text, "paper": paper, "path": path, "runs": runs, **more}
  return {
    "title": "UAE", "config": "configs/recipes/uae.py",
    "runs": {name: {"config.seed": seed} for name, seed in zip(runs, SEEDS, strict=True)},
    "share": dict.fromkeys(runs, {stage: f"common/{stage}" for stage in (
      "scorer", *uae.looked_at("base", uae.MODEL))}),
    "columns": {**{arm: rate(arm) for arm in ("base", "generator", "both")},
                **{f"{arm} {what}": told(arm, what) for arm in ("base", "captioner", "both")
                   for what in ("right", "complete", "invented", "words")},
                **{f"{arm} right, unseen": unseen(arm) for arm in ("base", "captioner", "both")},
                **{f"{arm} redrawn": redrawn(arm) for arm in ("base", *uae.ARMS[2:])},
                **{f"{arm} asked": asked(arm) for arm in ("base", "captioner", "both")}},
    "claims": [
      claim("Together the generator draws better than trained alone", PAPER, gain("generator"), primary=True),
      claim("Together the captioner describes more rightly than trained alone", SEEN, told("both", "right"),
            minus=told("captioner", "right"), primary=True),
      *(claim(f"{text} the generator draws better than before", PAPER, rate(arm), minus=rate("base"))
        for arm, text in (("both", "Together"), ("generator", "Alone"))),
      *(claim(f"{text} the captioner describes more rightly than before", SEEN, told(arm, "right"),
              minus=told("base", "right")) for arm, text in (("both", "Together"), ("captioner", "Alone"))),
      *(claim(f"Of combinations that no caption named the captioner describes more rightly than {text}", SEEN,
              unseen("both"), minus=unseen(arm)) for arm, text in (("captioner", "trained alone"), ("base", "before"))),
      *(claim(f"More pictures are drawn again rightly than {text}", REDRAWN, redrawn("both"), minus=redrawn(arm))
        for arm, text in (("base", "before"), ("captioner", "by the captioner trained alone"),
                          ("generator", "by the generator trained alone"))),
      claim("Together the captioner answers better than trained alone", SEEN, asked("both"), minus=asked("captioner")),
      claim("Together the captioner answers better than before", SEEN, asked("both"), minus=asked("base")),
      *(claim(f"Together the captioner answers better than before: {task}", SEEN, asked("both", task),
              minus=asked("base", task)) for task in uae.ASKED),
      claim("Its captions are longer than before, in words", "longer and more detailed, by examples (2509.09666)",
            told("both", "words"), minus=told("base", "words"), least=1.0),
      claim("Its captions name more of what there is than before", "longer and more detailed, by examples (2509.09666)",
            told("both", "complete"), minus=told("base", "complete")),
    ],
  }
