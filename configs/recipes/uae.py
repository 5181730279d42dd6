"""UAE (2509.09666) in Scenes: a captioner and a generator that learn from each other's pictures. `uae.py:ARMS`.

  python -m align.main --config=configs/recipes/uae.py --workdir=runs/uae
  python -m align.main --config=configs/recipes/uae.py:base --workdir=runs/uae_base

All arms begin from `diffusion/bases/uae`, which the second command makes: the small judge that ships with the package
learns full descriptions beside questions (size, colour, shape and place of every object, 32 x 32 pixels); a connector
learns to say what the text encoder of the generator, the base of Scenes, says of short prompts; then connector and
generator learn to draw, at 16 x 16, from the hidden states with which the captioner reads captions. Other than in the
paper, what was said is read once more without the picture (`alone`), so that words are all that passes: behind their
picture states tell of it what the caption does not, and the reward is not that of the words. Rewards of both sides are
how much a picture is alike one that is drawn again from its caption (rewards/scenes_alike.py). Arms, of equal compute,
in rounds of equal length, all of which begin with a new optimiser and reference:

  both       GRPO of the captioner, the generator stands still; NFT of the generator, the captioner stands still; twice
  captioner  four rounds of it; the generator stands still
  generator  four rounds of it; the captioner stands still

Generation is the success on held-out prompts of the six categories, with one to three objects. Perception is `right`:
of how many of the objects that are there size and place are said rightly, in pictures whose combinations captions may
name, as the base names what they never did half as often. Questions on colour, shape, count, presence and side are
asked, too, about other scenes; all but the side are answered rightly from the beginning, so that little can be gained
there. GRPO divides by the spread of rewards over all pictures (`std`), as most captions of a picture differ in nothing
that can be seen. The claim that both gain more together than alone is two claims, which must both hold: `both` draws
better than `generator`, and sees better than `captioner`; that it is better than the base in both stands beside it, as
less damage would do, too. Beside them: `complete`, `invented` and the number of `words` of captions, as longer captions
alone could be the reason; and how alike and how right pictures are that are drawn again. After half of its rounds an
arm that learns alone has as many updates as its side has in `both`.

Hardware: two CPU cores. An arm has 50,000 forward passes of the U-Net, which is what a pass of the captioner over a
picture and its caption costs, too: the captioner's took six minutes of a core, the generator's six of both. The base
took little more than an hour of one, beside other runs. Not run whole yet. What is known, of one seed each: after 700
updates the captioner says .93 of the objects, invents .07, and is right about size and place of .26 of what captions
never name; .97, .03 and .60 of what they may; colour, shape and presence are answered rightly always, count .98, side
.57. Of the reward's variance among captions of a picture, each painted with noise of its own, only 3 % was due to what
they say; with one noise for all of them it was about half, of a base before this one.

After 2,000 updates of `draw` at 5e-4, half of them behind the picture, the generator followed no places: of pictures
with one object it drew .23 rightly of the true description, and what captions said of places had nothing to do with the
reward (correlation .03). After 5,000 at 1e-3, read alone, it is .82 of pictures with one object, .10 of ten with two,
.02 of 55 with three, and .55 of all 192; of the captioner's descriptions .42. Captions that are right are alike by .73,
others by -.16.

The captioner learns with its tower of vision alone. Where all of it learned, at 1e-4, the states of the same words
changed, too, for which connector and generator stand still: after four rounds .08 of its captions were drawn rightly in
place of .42, and right about size and place were .46 in place of .60; the tower alone left .40 (of 192 other pictures)
and .58. So far no captioner has gained. Of held-out prompts the base draws .517 rightly, and after four rounds of the
generator .523.
"""
import ml_collections

from configs import common, judge_scenes

MODEL = "uae"    # what all arms begin from, in diffusion/bases: what :base makes, in halves
ARMS = ("all", "base", "both", "captioner", "generator")
WORLD = {"size": 32, "most": 3}
LONG = {"name": "scenes", **WORLD, "categories": ("long",)}
ASKED = ("colour", "shape", "count", "there", "side")
SIX = ("single", "count", "color", "two", "position", "attribution")
POLICY = {
  "name": "autoencoder", "captioner": {"model": judge_scenes.MODEL, "columns": 36, "length": 32},
  "generator": {**common.SCENES, "name": "generator"}, "connector": {"name": "connector", "inner": 256, "width": 64},
  "alone": True,
}
ALIKE = {"name": "scenes_alike"}
ROUNDS, ROUND = 4, 12_500  # of an arm, and forward passes of one; captioner and generator take as many FLOPs each
CAPTIONED, PAINTED = (8, 8), (12, 8)         # records and group of an experience
STEPS = {"captioner": 4, "generator": 8}     # that pictures are painted in while this side learns
PASSES = {  # of an update, the captioner's with its reference: said, read, painted, learned; the generator's of one of
            # four, at two levels
  "captioner": 64 * (2 + STEPS["captioner"] + 4), "generator": 24 * (2 + STEPS["generator"] + 2 * 5)}
OPTIM = {"name": "adamw", "b2": 0.99, "clip": 1.0}
OPTIMS = {"captioner": {**OPTIM, "lr": 3e-4, "warmup_steps": 4}, "generator": {**OPTIM, "lr": 3e-4, "warmup_steps": 8}}
GRPO = {"name": "grpo", "clip": 0.2, "beta": 0.02, "std": "global", "per": "sample"}
NFT = {"name": "nft", "steps": STEPS["generator"], "levels": 2, "updates": 4, "limit": 1.0, "kl": 0.6, "ema": 0.95}


def scorer() -> dict:
  """What tells how much two pictures are alike, shared by all seeds."""
  return {"task": "train", "steps": 1000, "batch": 64, "trained": "^reward/", "reward": {"name": "scenes_scorer"},
          "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 50_000}, "seed": 0,
          "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 50}, "log_every": 100}


def base() -> dict:
  """What diffusion/bases/uae was made with."""
  runs = {
    "describe": judge_scenes.learned(
      700, ("caption", *ASKED), 1e-3, 36, 32, start={"policy": judge_scenes.MODEL},
      data={"categories": ("long",), "weights": (5,) + (1,) * len(ASKED), "seed": 3000}),
    "match": {
      "task": "train", "steps": 1500, "batch": 64, "policy": {**POLICY, "mode": "match"},
      "trained": "^policy/connector/", "start": {"policy/captioner": "@describe", "policy/generator": "scenes"},
      "data": {"name": "scenes_prompts", "split": "train", "count": 50_000, "most": WORLD["most"]},
      "algorithm": {"name": "sft", "ema": 0.99}, "log_every": 50,
      "optim": {"name": "adamw", "lr": 5e-3, "decay": "linear", "warmup_steps": 20, "clip": 1.0}},
    "draw": {
      "task": "train", "steps": 5000, "batch": 48, "policy": POLICY, "trained": "^policy/(connector|generator/net)/",
      "start": {"policy": "@match"},
      "data": {"name": "scenes", **WORLD, "count": 100_000, "categories": (*SIX, "long"), "weights": (2,) * 6 + (9,)},
      "algorithm": {"name": "sft", "ema": 0.99}, "log_every": 50, "save_every": 250,
      "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear", "warmup_steps": 100, "clip": 1.0}},
  }
  return {name: {**run, "seed": 0} for name, run in runs.items()}


def learn(side: str, start: str, number: int) -> dict:
  """Round `number` of one side, from where `start` ended."""
  generator = {**POLICY["generator"], "steps": STEPS[side]}
  own = {
    "captioner": {"policy": {**POLICY, "mode": "caption", "generator": generator},
                  "trained": "^policy/captioner/net/tower/",
                  "algorithm": GRPO, "batch": CAPTIONED[0], "group": CAPTIONED[1]},
    "generator": {"policy": {**POLICY, "mode": "redraw"}, "trained": "^policy/(connector|generator/net)/",
                  "algorithm": NFT, "batch": PAINTED[0], "group": PAINTED[1]}}[side]
  updates = own["algorithm"].get("updates", 1)
  return {"task": "train", "start": {"policy": start, "reward": "@scorer"}, "reward": ALIKE,
          "data": {**LONG, "count": 20_000, "seed": number}, "log_every": 5, **own,
          "steps": ROUND // PASSES[side] // updates * updates, "optim": OPTIMS[side]}


def trained(arm: str) -> tuple[dict, str]:
  """(the runs of an arm, the last of them)."""
  runs, last = {}, MODEL
  for number in range(1, ROUNDS + 1):
    side = ("generator", "captioner")[number % 2] if arm == "both" else arm
    name = f"{arm}_{number}_{side}"
    runs[name] = learn(side, last, number)
    last = f"@{name}"
  return runs, last


def looked_at(arm: str, model: str) -> dict:
  """The examinations of an arm, of the base with a seed of their own, as all seeds have them."""
  plain = {"task": "examine", "model": model, "batch": 50, **({"seed": 0} if arm == "base" else {})}
  seen, held = ({**LONG, "split": split, "count": 400, "seed": 20_000} for split in ("train", "test"))
  told = {"options": {"mode": "answer"}, "rewards": {"told": {"name": "scenes_told", "model": judge_scenes.MODEL}}}
  return {
    f"{arm}_asked": {**plain, "options": {"mode": "answer", "question": None}, "data": {
      "name": "scenes_questions", **WORLD, "tasks": ASKED, "count": 1000, "seed": judge_scenes.HELD}},
    f"{arm}_told": {**plain, **told, "data": seen}, f"{arm}_told_unseen": {**plain, **told, "data": held},
    f"{arm}_redrawn": {**plain, "options": {"mode": "caption", "generator": POLICY["generator"]}, "data": seen,
                       "models": {"alike": "@scorer"}, "rewards": {"alike": ALIKE, "scenes": common.REWARD}},
  }


def get_config(arms: str = "all"):
  if arms not in ARMS:
    raise ValueError(f"arms = {arms!r} is not one of {', '.join(ARMS)}; choose one of them")
  runs = {"scorer": scorer(), **(base() if arms == "base" else {})}
  models = {"base": "@draw" if arms == "base" else MODEL}
  drawn = {"scenes": "scenes"} if arms == "base" else {}
  for arm in () if arms == "base" else ARMS[2:] if arms == "all" else (arms,):
    more, models[arm] = trained(arm)
    runs |= more
  for arm, model in models.items():
    runs |= looked_at(arm, model)
  drawn |= {arm: model for arm, model in models.items() if arm != "captioner"}  # whose generator is the base's
  primary = "both" if "both" in drawn else [*drawn][-1]
  prompts = {**common.held_out(240), "most": WORLD["most"]}
  if len(drawn) > 1:
    runs["evaluate"] = {**common.verdict(drawn, primary=primary, baseline=[*drawn][0]), "data": prompts}
  return ml_collections.ConfigDict({"task": "pipeline", "title": "UAE", "seed": 0, "runs": runs})
