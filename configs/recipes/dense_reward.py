"""Dense Reward (2402.08265) in Scenes: do early steps of a chain deserve more of the credit? `dense_reward.py:SETTING`.

  python -m align.main --config=configs/recipes/dense_reward.py --workdir=runs/dense_reward
  python -m align.main --config=configs/recipes/dense_reward.py:single --workdir=runs/dense_reward_single

`multi` learns from many prompts, of two objects, and is asked for combinations that no training caption has; `single`
from one prompt alone, and is asked for it and for another in which one object differs. Arms: discounts 1, .9 and .5
(with `all` also .95, .8 and .7) at as many images, updates and learning rate; `control`, supervised training on renders
of as many forward passes of the network; the base. A gradient counts as two passes more, a score as one. `swap` shows
where along the chain of the base an image is decided (align/swap.py). Rewards and verdict are exact rules.

Hardware: two CPU cores; `multi` took 23 to 32 minutes of one, beside other work; `single` has as many passes.

What came out of `multi` over five seeds (configs/sweeps/dense_reward.py; t-intervals): .9 succeeds on .459, 1 on .432,
the base on .373, the control on .380, .5 on .246. So .9 beats the base by .086 +- .070 and the control by .079 +- .064,
and 1 by .027 +- .059: better on four seeds of five, worse by .056 on the other, which decides nothing. It keeps .805 +-
.096 of the base's diversity. Of prompts that are swapped on the way (240, five seeds) the fifth of ten steps turns the
balance: swapped after four, .28 meet the second prompt and .10 the first; after five, .12 and .14. At the first seed
alone (differences to .03 over prompts), 1, .95, .9, .8, .7 and .5 come to .417, .527, .478, .417, .316 and .190: the
best lies between. Of one prompt it is otherwise: .5 comes to .915, 1 to .792, .9 to .752, from .490 (to .05, one seed).

As published: ten stages with chains of their own; groups of 12 (5) of which 5 are kept at even ranks, pairs of them;
clips of 8.19 (1.64) nats, scales of 12.5 (10) at 16,384 elements, 1 (3) steps of a chain, 32 (4) pairs an update.
Differs: a discount belongs to chains of fifty steps, and here each of ten weighs what the five in its place did
(gamma^5); the whole network is trained, at a higher learning rate; 3,840 (4,800) images instead of 240,000 (20,000) and
400 (1,000) updates instead of 40,000 (10,000). The learning rate, the same for all discounts, is decided by
configs/sweeps/dense_tuning.py on a seed that the comparison does not use: from .375 of the base, 1 and .9 came
to .464 and .447 at 1e-4, .311 and .183 at 3e-4, .410 and .416 at 3e-5.
"""
import ml_collections

from configs import common

STEPS, PUBLISHED = 10, 50               # of a chain, here and there
D, PUBLISHED_D = 16 * 16 * 3, 16_384    # elements of a sample
STAGES = 10
TRAIN, PAIR, BATCH = 3, 8, 48           # passes of an update for a sample, for a pair and its reference; the control's
GAMMAS = {"main": (1.0, 0.9, 0.5), "all": (1.0, 0.95, 0.9, 0.8, 0.7, 0.5), "tuning": (1.0, 0.9)}
SHAPE = {"multi": {"batch": 32, "group": 12}, "single": {"batch": 96, "group": 5}}
NATS = {"multi": 8.19, "single": 1.64}  # the clip, of a whole sample
METHOD = {"multi": {"scale": 12.5, "draws": 1, "tuples": 32, "updates": 40},
          "single": {"scale": 10.0, "draws": 3, "tuples": 4, "updates": 100}}
RATE = 1e-4
KINDS = ("two", "position", "attribution")
SEEN, UNSEEN = "two/1/none/circle-blue/square", "two/1/none/circle-blue/triangle"
DATA = {"multi": {"name": "scenes_prompts", "split": "train", "count": 960, "categories": KINDS},
        "single": {"name": "scenes_repeated", "combos": {"seen": SEEN}, "count": 96}}
ASKED = {"multi": {**common.held_out(240), "categories": KINDS},
         "single": {"name": "scenes_repeated", "combos": {"seen": SEEN, "unseen": UNSEEN}, "count": 100}}


def name(gamma: float) -> str:
  """gamma_09: names of runs have no dot, which overrides read as a level."""
  return f"gamma_{gamma:g}".replace(".", "")


def passes(setting: str) -> int:
  """Forward passes of an arm: chains sampled and scored, and the updates."""
  shape, method = SHAPE[setting], METHOD[setting]
  chains = shape["batch"] * shape["group"] * (STEPS + 1)
  return STAGES * (chains + method["updates"] * method["tuples"] * method["draws"] * PAIR)


def arm(setting: str, gamma: float) -> dict:
  """The training run of a discount."""
  method = METHOD[setting]
  algorithm = {"name": "dense", "steps": STEPS, "gamma": gamma ** (PUBLISHED / STEPS), "clip": NATS[setting] / D,
               **method, "scale": method["scale"] * D / PUBLISHED_D}
  return {"task": "train", **SHAPE[setting], "steps": STAGES * method["updates"], "data": DATA[setting],
          "policy": {**common.SCENES, "kernel": "ddim", "eta": 1.0, "steps": STEPS}, "start": {"policy": "scenes"},
          "reward": common.REWARD, "algorithm": algorithm, "optim": {"name": "adamw", "lr": RATE, "decay": "linear"},
          "log_every": 20}


def control(setting: str) -> dict:
  """Supervised training of the same cost, on renders of the same categories."""
  return {"task": "train", "steps": passes(setting) // (BATCH * TRAIN), "batch": BATCH, "policy": common.SCENES,
          "start": {"policy": "scenes"}, "drop": 0.1, "algorithm": {"name": "sft", "ema": 0.99},
          "data": {"name": "scenes", "split": "train", "count": 100_000, "categories": KINDS},
          "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}


def swap() -> dict:
  """Of the base, along the chains that are learned from; all six categories."""
  return {"task": "swap", "model": "scenes", "policy": {**common.SCENES, "kernel": "ddim"}, "steps": STEPS, "eta": 1.0,
          "data": common.held_out(240, seed=2), "rewards": {"scenes": common.REWARD}, "success": "scenes/exact",
          "batch": 120}


def get_config(how: str = "multi"):
  setting, which = common.picked(how, tuple(SHAPE), tuple(GAMMAS))
  arms = {name(gamma): arm(setting, gamma) for gamma in GAMMAS[which]}
  curves = {run: f"@{run}" for run in arms}
  beside = {} if which == "tuning" else {"control": control(setting)}
  places = {"base": "scenes", **{run: f"@{run}" for run in beside}, **curves}
  evaluate = {**common.verdict(places, primary=name(0.9), baseline="base"), "data": ASKED[setting], "steps": STEPS,
              "curves": curves}
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": f"Dense Reward, {setting}", "seed": 0,
    "runs": {**arms, **beside, **({"swap": swap()} if beside else {}), "evaluate": evaluate},
  })
