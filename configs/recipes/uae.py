"""UAE (2509.09666) in Scenes: a captioner and a generator that learn from each other's pictures. `uae.py:ARMS`.

  python -m align.main --config=configs/recipes/uae.py --workdir=runs/uae
  python -m align.main --config=configs/recipes/uae.py:base --workdir=runs/uae_base

The captioner is the small judge that ships with the package, the generator the base of Scenes. `base` is what all arms
begin from: the judge learns full descriptions beside questions (size, colour, shape and place of every object, 32 x 32
pixels), then the connector and the generator learn to draw, at 16 x 16, from the hidden states with which it reads
captions, every second time behind the picture. Rewards of both sides are how much a picture is alike one that is drawn
again from its caption (rewards/scenes_alike.py). Arms, of equal compute:

  both       GRPO of the captioner, the generator stands still; NFT of the generator, the captioner stands still; twice
  captioner  its two rounds, twice as long; the generator stands still
  generator  its two rounds, twice as long; the captioner stands still

Generation is the success on held-out prompts of the six categories, with one to three objects; perception is the mean
accuracy of questions on colour, shape, count, presence and side, whose scenes are other ones. The claim that both gain
more together than alone is two claims, which must both hold: `both` draws better than `generator`, and answers better
than `captioner`. Beside them: `complete`, `invented`, `right` and the number of `words` of captions, as longer captions
alone could be the reason; and how alike and how right pictures are that are drawn again.

Hardware: two CPU cores. An arm has 80,000 forward passes of the U-Net, which is what a pass of the captioner over a
picture and its caption costs, too: about ten minutes of a core; an update of `draw` takes about a second of one. Not
run whole yet, and `base` as it is here is too short. What is known, of one seed: after 700 updates the captioner says
.93 of the objects, invents .06, and is right about size and place of .30; colour, shape and presence are answered
rightly always, count .99, side .62. A generator after 576 updates on captions that were read without their picture,
and 200 more on both, succeeds on .245 of held-out prompts (the base of Scenes that it began as: .625) and on .03 of
full descriptions; of the cells of a picture .35 are as they were when its own caption is read behind it, .20 with
another picture's caption: states say more than words. From there 167 updates of the captioner did not raise its
reward.
"""
import ml_collections

from configs import common, judge_scenes

ARMS = ("all", "base", "both", "captioner", "generator")
WORLD = {"size": 32, "most": 3}
LONG = {"name": "scenes", **WORLD, "categories": ("long",)}
ASKED = ("colour", "shape", "count", "there", "side")
SIX = ("single", "count", "color", "two", "position", "attribution")
POLICY = {
  "name": "autoencoder", "captioner": {"model": judge_scenes.MODEL, "columns": 36, "length": 32},
  "generator": {**common.SCENES, "name": "generator"}, "connector": {"name": "connector", "inner": 256, "width": 64},
}
ALIKE = {"name": "scenes_alike"}
ROUNDS, BUDGET = 2, 20_000  # forward passes of a round of one side; captioner and generator take as many FLOPs each
CAPTIONED, PAINTED = (8, 8), (12, 8)         # records and group of an experience
PASSES = {"captioner": 64 * (1 + 8 + 4),     # of an update: said, painted, learned beside the reference
          "generator": 24 * (1 + 8 + 2 * 5)}  # of one of four: said, painted, learned at two levels
RATES = {"captioner": 1e-4, "generator": 3e-4}
GRPO = {"name": "grpo", "clip": 0.2, "beta": 0.02, "std": "group", "per": "sample"}
NFT = {"name": "nft", "steps": 8, "levels": 2, "updates": 4, "limit": 1.0, "kl": 0.6, "ema": 0.95}


def base() -> dict:
  """What the arms of all seeds begin from."""
  runs = {
    "scorer": {
      "task": "train", "steps": 1000, "batch": 64, "trained": "^reward/", "reward": {"name": "scenes_scorer"},
      "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 50_000},
      "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 50}, "log_every": 100},
    "describe": judge_scenes.learned(
      700, ("caption", *ASKED), 1e-3, 36, 32, start={"policy": judge_scenes.MODEL},
      data={"categories": ("long",), "weights": (5,) + (1,) * len(ASKED), "seed": 3000}),
    "draw": {
      "task": "train", "steps": 700, "batch": 48, "policy": POLICY, "trained": "^policy/(connector|generator/net)/",
      "start": {"policy/captioner": "@describe", "policy/generator": "scenes"},
      "data": {"name": "scenes", **WORLD, "count": 60_000, "categories": (*SIX, "long"), "weights": (1,) * 6 + (9,)},
      "algorithm": {"name": "sft", "ema": 0.99}, "log_every": 50,
      "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear", "warmup_steps": 50, "clip": 1.0}},
  }
  return {name: {**run, "seed": 0} for name, run in runs.items()}


def learn(side: str, start: str, number: int, times: int = 1) -> dict:
  """Round `number` of one side, from where `start` ended."""
  plain = {"task": "train", "start": {"policy": start, "reward": "@scorer"}, "reward": ALIKE,
           "data": {**LONG, "count": 20_000, "seed": number}, "log_every": 5}
  own = {
    "captioner": {"policy": {**POLICY, "mode": "caption"}, "trained": "^policy/captioner/", "algorithm": GRPO,
                  "batch": CAPTIONED[0], "group": CAPTIONED[1]},
    "generator": {"policy": {**POLICY, "mode": "redraw"}, "trained": "^policy/(connector|generator/net)/",
                  "algorithm": NFT, "batch": PAINTED[0], "group": PAINTED[1]}}[side]
  updates = own["algorithm"].get("updates", 1)
  return {**plain, **own, "steps": times * (BUDGET // PASSES[side] // updates * updates),
          "optim": {"name": "adamw", "lr": RATES[side], "clip": 1.0}}


def trained(arm: str) -> tuple[dict, str]:
  """(the runs of an arm, the last of them)."""
  runs, last = {}, "@draw"
  for number in range(1, ROUNDS + 1):
    for side in ("captioner", "generator") if arm == "both" else (arm,):
      name = f"{arm}_{number}_{side}"
      runs[name] = learn(side, last, number, 1 if arm == "both" else 2)
      last = f"@{name}"
  return runs, last


def looked_at(arm: str, model: str) -> dict:
  """The examinations of an arm."""
  plain = {"task": "examine", "model": model, "batch": 50}
  held = {**LONG, "split": "test", "count": 200}
  return {
    f"{arm}_asked": {**plain, "options": {"mode": "answer", "question": None}, "data": {
      "name": "scenes_questions", **WORLD, "tasks": ASKED, "count": 1000, "seed": judge_scenes.HELD}},
    f"{arm}_told": {**plain, "options": {"mode": "answer"}, "data": held,
                    "rewards": {"told": {"name": "scenes_told", "model": judge_scenes.MODEL}}},
    f"{arm}_redrawn": {**plain, "options": {"mode": "caption"}, "data": held, "models": {"alike": "@scorer"},
                       "rewards": {"alike": ALIKE, "scenes": common.REWARD}},
  }


def get_config(arms: str = "all"):
  if arms not in ARMS:
    raise ValueError(f"arms = {arms!r} is not one of {', '.join(ARMS)}; choose one of them")
  names = () if arms == "base" else ARMS[2:] if arms == "all" else (arms,)
  runs, models = base(), {"base": "@draw"}
  for arm in names:
    more, models[arm] = trained(arm)
    runs |= more
  for arm, model in models.items():
    runs |= looked_at(arm, model)
  prompts = {**common.held_out(240), "most": WORLD["most"]}
  runs["evaluate"] = {**common.verdict({"shipped": "scenes", **models}, primary=[*models][-1] if len(names) < 3 else
                                       "both", baseline="shipped"), "data": prompts}
  return ml_collections.ConfigDict({"task": "pipeline", "title": "UAE", "seed": 0, "runs": runs})
