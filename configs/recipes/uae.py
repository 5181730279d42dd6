"""UAE (2509.09666) in Scenes: a captioner and a generator that learn from each other's pictures. `uae.py:ARMS`.

  python -m align.main --config=configs/recipes/uae.py --workdir=runs/uae
  python -m align.main --config=configs/recipes/uae.py:base --workdir=runs/uae_base

All arms begin from `diffusion/bases/uae`, which the second command makes: the small judge that ships with the package
learns full descriptions beside questions (size, colour, shape and place of every object, 32 x 32 pixels), and then to
tell sizes and places as seldom as people do (`brief`; each in .4 of the captions, so that the likeliest tells neither):
what a captioner has to learn from pictures that are drawn again is to say what it sees. A connector learns to say what
the text encoder of the generator, the base of Scenes, says of short prompts; then connector and generator learn to
draw, at 16 x 16, from the hidden states with which the captioner reads captions, most of them full. Other than in the
paper, what was said is read once more without the picture (`alone`), so that words are all that passes: behind their
picture states tell of it what the caption does not, and the reward is not that of the words. Rewards of both sides are
how much a picture is alike one that is drawn again from its caption (rewards/scenes_alike.py). Arms, of equal compute,
in rounds of equal length, all of which begin with a new optimiser and reference:

  both       GRPO of the captioner, the generator stands still; NFT of the generator, the captioner stands still; twice
  captioner  four rounds of it; the generator stands still
  generator  four rounds of it; the captioner stands still

Generation is the success on held-out prompts of the six categories, with one to three objects. Perception is `right`:
of how many of the objects that are there size and place are said, and said rightly, in pictures whose combinations
captions may name, as the base names what they never did half as often. So it rises by saying more and by seeing better,
which questions on colour, shape, count, presence and side tell apart, about other scenes; all but the side are answered
rightly from the beginning, so that little can be gained there. GRPO divides by the spread of rewards over all pictures
(`std`), as most captions of a picture differ in nothing that can be seen. The claim that both gain more together than
alone is two claims, which must both hold: `both` draws better than `generator`, and describes more rightly than
`captioner`; that it is better than the base in both stands beside it, as less damage would do, too. Beside them:
`complete`, `invented` and the number of `words` of captions, as longer captions alone could be the reason; and how
alike and how right pictures are that are drawn again. After half of its rounds an arm that learns alone has as many
updates as its side has in `both`.

Hardware: two CPU cores. An arm has 50,000 forward passes of the U-Net, which is what a pass of the captioner over a
picture and its caption costs, too, and takes six minutes of one core, examined; the base an hour.

What all begin from, of one seed: its captions name .984 of the objects, invent .016, and are right about size and place
of .006, as they tell neither; sampled at temperature 1, of the places that they tell .66 are right and of the sizes
.97. Colours and presence are answered rightly always, shapes .991, counts .984 and sides .723. Redrawn from what it
says .13 of pictures are right, and of held-out prompts .606, where the generator's own base has .621.

Rates were chosen on seed 100. The captioner learns with all of its network at 3e-5; at ten times that with its tower of
vision alone it forgot what it saw (.98 of the objects named to .89), and where the base was right about .33 of places
only it did not move, as naming wrong places earns nothing. Of `both`, the generator learned at 3e-4 from pictures that
long captions describe (held-out prompts .583 where the base has .629), at 1e-4 (.613), from pictures of all categories,
too (.618, taken), and so without the connector (.601). With rounds of twice the length it forgets what captions never
say: of `exactly two red circles` it draws triangles (.554, of counts .431 where the base has .850; .549 without the
connector), although .80 of sizes and places are said rightly then, and .73 before. No records of these were kept.

What came out (five seeds, means; `configs/records/uae`), and so the claim does not hold:

                              base   generator   captioner   both
  held-out prompts            .615        .620           -   .586
    counts                    .785        .751           -   .631
    two objects               .573        .636           -   .564
  right (size and place)      .006           -        .783   .551
    unseen combinations       .007           -        .433   .300
  drawn again rightly         .130        .112        .611   .640
  questions                   .940           -        .933   .936
    side                      .723           -        .701   .711
  words of a caption          9.1            -        15.9   15.4

Both sides together draw the most pictures again rightly, with half of each side's updates: so the one reward works, and
what it asks for is learned. Captions come to tell sizes and places, and to tell them rightly, without losing an object
(`complete` .984 to .986, `invented` .016 to .017). But that is saying more, not seeing better: questions, whose answers
are of one word however long captions are, find nothing gained and a little lost. The captioner that learns alone is
ahead by its further updates: after half of its rounds, with as many as in `both`, it has .573 of sizes and places right
against .551. The generator alone gains nothing that the interval shows; beside a captioner that changes it loses
counts, which no caption names.
"""
import ml_collections

from configs import common, judge_scenes

MODEL = "uae"    # what all arms begin from, in diffusion/bases: what :base makes, in halves
ARMS = ("all", "base", "both", "captioner", "generator")
WORLD = {"size": 32, "most": 3}
LONG = {"name": "scenes", **WORLD, "categories": ("long",)}
DETAIL = {"said": 0.4, "drawn": 0.85}  # of captions that tell sizes, and places: the captioner's, the generator's
ASKED = ("colour", "shape", "count", "there", "side")
SIX = ("single", "count", "color", "two", "position", "attribution")
ALL = {"categories": (*SIX, "long"), "weights": (2,) * 6 + (9,)}  # of the pictures that a generator learns from
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
OPTIMS = {"captioner": {**OPTIM, "lr": 3e-5, "warmup_steps": 4}, "generator": {**OPTIM, "lr": 1e-4, "warmup_steps": 8}}
GRPO = {"name": "grpo", "clip": 0.2, "beta": 0.02, "std": "global", "per": "sample"}
NFT = {"name": "nft", "steps": STEPS["generator"], "levels": 2, "updates": 4, "limit": 1.0, "kl": 0.6, "ema": 0.95}


def scorer() -> dict:
  """What tells how much two pictures are alike, shared by all seeds."""
  return {"task": "train", "steps": 1000, "batch": 64, "trained": "^reward/", "reward": {"name": "scenes_scorer"},
          "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 50_000}, "seed": 0,
          "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 50}, "log_every": 100}


def described(steps: int, start: str, **data) -> dict:
  """The captioner learns to describe, beside questions."""
  return judge_scenes.learned(
    steps, ("caption", *ASKED), 1e-3, 36, 32, start={"policy": start},
    data={"categories": ("long",), "weights": (5,) + (1,) * len(ASKED), **data})


def base() -> dict:
  """What diffusion/bases/uae was made with."""
  runs = {
    "describe": described(1800, judge_scenes.MODEL, seed=3000),
    "brief": described(500, "@describe", detail=DETAIL["said"], seed=3001),
    "match": {
      "task": "train", "steps": 1500, "batch": 64, "policy": {**POLICY, "mode": "match"},
      "trained": "^policy/connector/", "start": {"policy/captioner": "@brief", "policy/generator": "scenes"},
      "data": {"name": "scenes_prompts", "split": "train", "count": 50_000, "most": WORLD["most"]},
      "algorithm": {"name": "sft", "ema": 0.99}, "log_every": 50,
      "optim": {"name": "adamw", "lr": 5e-3, "decay": "linear", "warmup_steps": 20, "clip": 1.0}},
    "draw": {
      "task": "train", "steps": 5000, "batch": 48, "policy": POLICY, "trained": "^policy/(connector|generator/net)/",
      "start": {"policy": "@match"},
      "data": {"name": "scenes", **WORLD, **ALL, "count": 100_000, "detail": DETAIL["drawn"]},
      "algorithm": {"name": "sft", "ema": 0.99}, "log_every": 50, "save_every": 250,
      "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear", "warmup_steps": 100, "clip": 1.0}},
  }
  return {name: {**run, "seed": 0} for name, run in runs.items()}


def learn(side: str, start: str, number: int) -> dict:
  """Round `number` of one side, from where `start` ended."""
  generator = {**POLICY["generator"], "steps": STEPS[side]}
  own = {
    "captioner": {"policy": {**POLICY, "mode": "caption", "generator": generator},
                  "trained": "^policy/captioner/net/",
                  "algorithm": GRPO, "batch": CAPTIONED[0], "group": CAPTIONED[1], "data": {}},
    "generator": {"policy": {**POLICY, "mode": "redraw"}, "trained": "^policy/(connector|generator/net)/",
                  "algorithm": NFT, "batch": PAINTED[0], "group": PAINTED[1], "data": ALL}}[side]
  updates = own["algorithm"].get("updates", 1)
  return {"task": "train", "start": {"policy": start, "reward": "@scorer"}, "reward": ALIKE,
          "log_every": 5, **own, "data": {**LONG, "count": 20_000, "seed": number, **own["data"]},
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
