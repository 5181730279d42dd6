"""Seedance's RLHF (2506.09113) in Scenes: three rewards learned from clips with planted flaws, and their sum maximised.
`seedance.py:PART`, of the generator (`base`; `tuning` without the second round), of it with each reward alone
(`single`), or of its refiner in two steps (`refiner`) or one (`refiner_1`).

  python -m align.main --config=configs/recipes/seedance.py --workdir=runs/seedance
  python -m align.main --config=configs/recipes/seedance.py:single --workdir=runs/seedance_single
  python -m align.main --config=configs/recipes/seedance.py:refiner --workdir=runs/seedance_refiner
  python -m align.main --config=configs/recipes/seedance.py:refiner_1 --workdir=runs/seedance_refiner_1

Rewards: `content`, which thing moves where and how fast (rewards/scenes_clip_scorer.py, first on labelled frames, then
on pairs), `motion` (rewards/motion_head.py) and `looks` of key frames (rewards/look.py), each from pairs in which the
better clip is no worse on the other two dimensions. `maximised` is reward feedback through the predicted x0 at a late
random step; `dpo`, `ppo` and `grpo` have the same composite, normalised on the base's samples (which is not counted; of
DPO's pairs, on those of a batch), and as many forward passes of the network; `control` is as much supervised training.
The verdict is the exact detector's on held-out things. PPO's rewards are centred within a prompt: its critic, which
begins at nothing, does not learn what prompts are worth in so few updates. The total of `content` is the mean of its
parts: their product agrees as well with the exact verdict (correlations of .76 and .75 on clips of the base), but has
no gradient where a clip is wrong, and the feedback would be of motion and looks alone. These two, learned from flaws
that clips of the base seldom have, count a quarter each: on clips of the base the normalised sum of all three agrees
with the exact verdict by .49 with equal weights, by .69 with these (content alone .71), and on seed 100 and other
prompts the feedback fell from .577 to .307 with equal weights at a rate of 3e-4, where pixels of no object rose from
.045 to .417; with these at 1e-4 it rose to .685. Content alone came to .744 there, from .598 with other noise.

A second round: clips of `maximised` are labelled by the exact detector, in the place of people; `content` learns from
them, too (`content_2`; the better clip is the one that is more right, whatever its looks; motion and looks are not
learned anew), and `second` goes on with it for half as many passes. `longer` goes on with the rewards as they
were, and for the passes that making those clips takes, too: what the round is worth is the difference of the two. Both
normalise the composite anew, on clips of `maximised`.

`single` maximises each of the three rewards alone (`content_alone` and so on) with as many updates as the composite.
Beside the exact verdict, whose parts are shape, colour and motion, all arms are judged by rewards of motion and of
looks that were trained on other pairs and that no arm maximised (`motion_witness`, `looks_witness`): what does a reward
damage that says nothing of it?

`refiner` is the second half of the published system: a network that begins as the base of clips learns to enlarge them
from 16 to 32 pixels (`refined_8`, in 8 steps), is made few-step (`refined_2`, by align/algorithms/distill.py), and only
then aligned, in the 2 steps that it is used in: the x0 of the second is the very clip (`refined_2_rlhf`); beside it
`undistilled_2`, the first in 2 steps, and `refined_2_control`, distilled for as many passes as distillation and
feedback take together. All enlarge the same clips of the base for held-out things, which are the arm `base`. What is
claimed, to explore: feedback brings back what few steps lose. The rewards are trained anew, at 32 pixels: from means of
16 nothing of what a refiner adds could be seen. Motion is measured at 16, which decide it. Feedback enlarges clips of
the base, distillation renders that were reduced and disturbed; what that difference is worth is not told apart. To
enlarge clips of the aligned generator, let config.runs.held.model, and that arm, be runs/seedance/maximised.

Seedance publishes neither weights nor settings of this stage; all numbers are ours, and so is the world. Left out: an
autoencoder, whose latents it refines.

Hardware: two CPU cores. The generator's pipeline takes a little more than twenty minutes of both, `single` as long, and
a refiner half an hour, beside other runs.

The refiner, at the first seed: of the clips that it is given .500 are right, and .517 as it enlarges them in 8 steps.
In two steps .503 without distillation, .481 distilled, .489 distilled for longer and .531 after feedback, +.050 (+.022
to +.078) against before; in one .450, .436, .417 and .508, +.072 (+.042 to +.106). So feedback brings back what
distillation costs, and more: against the network as it was, in two steps +.028 (.000 to +.056), in one +.058 (+.022 to
+.094). Distillation itself gains nothing, in so few updates: two steps lose nothing that can be told from chance. Of
120 clips with every pixel repeated .267 were right where .500 of the given were.

Over five seeds (configs/sweeps/seedance.py) `maximised` comes to .593 from .490; `dpo` .585, `ppo` .535, `grpo` .522,
`control` .543. Of the claim that counts two parts hold, +.057 (+.008 to +.107) against `ppo` and +.070 (+.028 to +.113)
against `grpo`, and the third is undecided, +.007 (-.062 to +.076) against `dpo`. `maximised` is at the end of what its
rewards are good for: going on with them (`longer`) ends below the base, at .457, where pixels of junk rise to .23 from
.07 (the base .05); with a reward that learned from new labels (`second`) at .596, with .10 of junk: +.139 (+.072 to
+.207) more for the same passes, and +.004 (-.077 to +.084) more than one round. Diversity falls from .13 to .10, with
`dpo` to .09.

Each reward alone, at the first seed: of `content_alone` .620 are right, of `motion_alone` .280, of `looks_alone` none,
which covers clips with what is no object (pixels of junk .88, of the base .05); of `maximised` .571 of .494, -.049
(-.090 to -.011) against content alone. What content alone leaves is less looks (2.24 where all three come to 3.50, by
the witness; the base .03) and less motion (.63, .84 and .57). So the sum costs a little of what the exact verdict asks
for, and spares most of the damage that each of its rewards does alone, not all: at this seed it raises the pixels of
junk from .05 to .17.

Rates were tried on seed 100 and prompts to learn from (configs/sweeps/seedance_tuning.py; of the base .577 are right,
intervals are +-.04), at 3e-5, 1e-4 and 3e-4: `maximised` .660, .685, .530; `ppo` .602, .630, .461; `dpo` .608, .625,
.557; `grpo` .580, .593, .453; `control` at 1e-4, 3e-4 and 1e-3 .602, .640, .627. Then at the best of these one option
with less and more of it, beside what the rates were tried at: `maximised` from .25, .5 and .75 of the chain on .679,
.685, .642; `ppo` and `grpo` with a clip of 3e-4, 1e-3 and 3e-3 .647, .630, .631 and .629, .593, .582; `dpo` at beta
300, 1000 and 3000 .661, .625, .610; `control` with an average of .9, .99 and .999 .643, .640, .640. The best of each is
set.
"""
import functools

import ml_collections

from configs import common

STEPS, GROUP, PROMPTS = 8, 8, 12
BUDGET = 30_000               # forward passes of the network on one clip; a gradient is two more
SAMPLES = PROMPTS * GROUP
ROLLOUT = SAMPLES * (STEPS + 1)
TRAIN, JUDGE, PAIR = 3, 4, 8  # passes of an update for a clip, of a reward and its gradient, for a pair with reference
PAIRED = 4                    # clips of a prompt in PPO, which learns from all of their steps
RATES = {"maximised": 1e-4, "grpo": 1e-4, "ppo": 1e-4, "dpo": 1e-4, "control": 3e-4}  # see sweeps/seedance_tuning.py
COLLECTED = 120 * 8 * (STEPS + 1)
ASKED = {"name": "scenes_prompts", "split": "train", "count": 960, **common.MOVING}
SIZE, FINE = common.CLIPS["size"], 32     # pixels of the base's clips, and of the refiner's
BATCH, LEARNED, DISTILLED, FED = 16, 200, 80, 56  # clips of an update of the refiner, and its updates
DISTIL = 2 + TRAIN                        # passes of an update for a clip, with those of teacher and goal


def parts(size: int = SIZE) -> dict:
  """The rewards of clips of `size` pixels; that of looks takes about as long whatever it is."""
  look = {"name": "look", "size": size, "width": 16 * SIZE // size}
  return {"content": {"name": "scenes_clip_scorer", "size": size, "total": "mean"},
          "motion": {"name": "motion_head", "side": SIZE},
          "looks": {"name": "keyframes", "count": 2, "total": 6, "rewards": {"look": look}}}


PARTS = parts()
WITNESSES = {  # of `single`; that of looks sees every frame, also those that the reward does not
  "motion": PARTS["motion"],
  "looks": {**PARTS["looks"], "count": 6, "rewards": {"look": {"name": "look", "size": SIZE, "width": 24}}}}
COMPOSITE = {"name": "mix", "rewards": PARTS, "weights": {"motion": 0.25, "looks": 0.25}, "normalise": "frozen",
             "clip": 3.0}
FEED = {"name": "refl", "first": 0.5, "weight": 1.0, "phi": "linear", "ema": 0.95}
WEIGHTS = {f"reward/{name}": f"@{name}" for name in PARTS}
POLICY = {**common.CLIPS, "steps": STEPS}
PLAIN = {"task": "train", "policy": POLICY, "start": {"policy": "clips"}, "log_every": 10,
         "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}
ONLINE = {**PLAIN, "batch": PROMPTS, "group": GROUP, "data": ASKED, "reward": COMPOSITE,
          "start": {"policy": "clips", **WEIGHTS}}


def judge(name: str, steps: int, size: int = SIZE, **more) -> dict:
  """A reward from pairs that differ in its dimension."""
  return {"task": "train", "steps": steps, "batch": 32, "trained": "^reward/", "reward": parts(size)[name],
          "algorithm": {"name": "compare"}, "log_every": 100,
          "data": {"name": "scenes_flaws", "dimension": name, "count": 20_000, "size": size, **common.MOVING},
          "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear", "warmup_steps": 20}, **more}


def rendered(size: int = SIZE) -> dict:
  return {"name": "scenes", "split": "train", "count": 20_000, "size": size, **common.MOVING}


def seen(size: int = SIZE) -> dict:
  """What stands where in a frame: the beginning of `content`."""
  return {"task": "train", "steps": 600, "batch": 16, "trained": "^reward/", "reward": parts(size)["content"],
          "algorithm": {"name": "fit"}, "data": rendered(size),
          "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 50}, "log_every": 100}


def rewards(size: int = SIZE) -> dict:
  return {"seen": seen(size), "content": judge("content", 100, size, start={"reward": "@seen"}),
          "motion": judge("motion", 150, size), "looks": judge("looks", 60, size)}


def costs() -> dict:
  """{arm: forward passes of an update, or of an experience}."""
  return {"maximised": PROMPTS * 2 * (STEPS + TRAIN + JUDGE), "grpo": ROLLOUT + 3 * SAMPLES * TRAIN,
         "ppo": PROMPTS * PAIRED * (STEPS + 1 + (STEPS - 1) * TRAIN), "dpo": 24 * PAIR, "control": 32 * TRAIN}


def arms() -> dict:
  """Runs of as many forward passes, but for the training of rewards, which all have."""
  per = costs()
  ratio = {"steps": STEPS, "updates": 4, "clip": 3e-4, "ratio": "gaussian", "ema": 0.95}
  made = {
    "maximised": {**ONLINE, "group": 2, "steps": BUDGET // per["maximised"], "algorithm": {**FEED, "steps": STEPS}},
    "grpo": {**ONLINE, "steps": BUDGET // per["grpo"] * 4, "algorithm": {
      "name": "grpo", **ratio, "pick": "random", "size": 3}},
    "ppo": {**ONLINE, "group": PAIRED, "steps": BUDGET // per["ppo"] * 4, "trained": "^(policy|value)/",
            "algorithm": {"name": "ppo", "centre": True, **ratio}},
    "dpo": {**PLAIN, "batch": 24, "steps": (BUDGET - COLLECTED) // per["dpo"],
            "data": {"name": "pairs", "path": "@pairs/pairs/point"},
            "algorithm": {"name": "dpo", "beta": 300.0, "ema": 0.99}},
    "control": {**PLAIN, "batch": 32, "steps": BUDGET // per["control"], "drop": 0.1,
                "data": {**rendered(), "seed": 2}, "algorithm": {"name": "sft", "ema": 0.9}},
  }
  return {name: {**run, "optim": {**run["optim"], "lr": RATES[name]}} for name, run in made.items()}


def pairs() -> dict:
  """Of the base's clips, by the composite that the other methods maximise."""
  return {"task": "collect", "model": "clips", "data": {**ASKED, "count": 120}, "samples": 8, "pairs": 2, "batch": 96,
          "rewards": {"judge": {**COMPOSITE, "normalise": "batch"}}, "score": "judge/total",
          "models": {f"judge/{name}": f"@{name}" for name in PARTS}}


def verdict(places: dict) -> dict:
  """On what no training caption names, by the exact detector."""
  return {**common.verdict(places, samples=4, primary="maximised", baseline="base"),
          "data": common.held_out_clips(240), "rewards": {"scenes": common.REWARD}, "steps": STEPS}


def feedback(first: dict) -> dict:
  """Both ways to go on from `maximised`, and what the second round learns from."""
  half = {**first, "steps": first["steps"] // 2, "data": {**first["data"], "seed": 7}}
  more = COLLECTED // costs()["maximised"]
  begun = {**first["start"], "policy": "@maximised"}
  return {
    "labels": {**pairs(), "model": "@maximised", "data": {**ASKED, "count": 120, "seed": 3},
               "rewards": {"scenes": common.REWARD}, "score": "scenes/total", "models": {}},
    "content_2": judge("content", 60, start={"reward": "@content"}, data={"name": "pairs",
                                                                          "path": "@labels/pairs/point"},
                       optim={"name": "adamw", "lr": 3e-4, "decay": "linear", "warmup_steps": 20}),
    "second": {**half, "start": {**begun, "reward/content": "@content_2"}},
    "longer": {**half, "steps": half["steps"] + more, "start": begun},
  }


def single() -> dict:
  """The pipeline of each reward alone, beside all together."""
  first = arms()["maximised"]
  alone = {f"{name}_alone": {**first, "start": {"policy": "clips", f"reward/{name}": f"@{name}"},
                             "reward": {**COMPOSITE, "rewards": {name: part}, "weights": None}}
           for name, part in PARTS.items()}
  made = rewards()
  witnesses = {f"{name}_witness": {**made[name], "reward": reward, "seed": 1000,
                                   "data": {**made[name]["data"], "seed": 1000}} for name, reward in WITNESSES.items()}
  places = {"base": "clips", "maximised": "@maximised", **{name: f"@{name}" for name in alone}}
  judges = {"scenes": common.REWARD, **{name: run["reward"] for name, run in witnesses.items()}}
  return {**made, **witnesses, "maximised": first, **alone,
          "evaluate": {**verdict(places), "rewards": judges, "models": {name: f"@{name}" for name in witnesses}}}


def lows(data: dict) -> dict:
  """Clips of the base that are enlarged, one a prompt."""
  return {"task": "sample", "model": "clips", "data": data}


def refiners(few: int) -> dict:
  """Runs of the refiner, each with the name that it has as an arm: of 8 steps, and of `few` from then on."""
  wide, name = {**POLICY, "size": FINE, "refines": FINE // SIZE}, f"refined_{few}"
  plain = {**PLAIN, "batch": BATCH, "policy": {**wide, "steps": few}}
  distilled = {**plain, "start": {"policy": "@refined_8"}, "data": rendered(FINE),
               "algorithm": {"name": "distill", "segments": few, "steps": STEPS, "ema": 0.95},
               "optim": {**PLAIN["optim"], "lr": 6e-4}}
  feed = few + TRAIN + JUDGE
  return {
    "refined_8": {**plain, "steps": LEARNED, "policy": wide, "data": rendered(FINE),
                  "algorithm": {"name": "sft", "ema": 0.99},
                  "optim": {**PLAIN["optim"], "lr": 1e-3, "warmup_steps": 20}},
    name: {**distilled, "steps": DISTILLED},
    f"{name}_control": {**distilled, "steps": DISTILLED + FED * feed // DISTIL},
    f"{name}_rlhf": {**plain, "steps": FED, "start": {"policy": f"@{name}", **WEIGHTS},
                     "data": {"name": "samples", "path": "@low/samples", "entry": "low"},
                     "reward": {**COMPOSITE, "rewards": parts(FINE)},
                     "optim": {**PLAIN["optim"], "lr": RATES["maximised"]},
                     "algorithm": {**FEED, "steps": few}},
  }


def base(tuning: bool = False) -> dict:
  """The pipeline of the generator; for tuning without the second round, and asked about prompts to learn from."""
  runs = arms()
  runs |= {} if tuning else feedback(runs["maximised"])
  places = {"base": "clips", **{name: f"@{name}" for name in runs if name not in ("labels", "content_2")}}
  judged = {**verdict(places), **({"data": {**ASKED, "count": 240, "seed": 9}} if tuning else {})}
  return {**rewards(), "pairs": pairs(), **runs, "evaluate": judged}


def refiner(few: int = 2) -> dict:
  """The pipeline of the refiner; arms are sampled in the steps that they were trained for."""
  runs = refiners(few)
  places = {"base": "clips", **{name: f"@{name}" for name in runs},
            f"undistilled_{few}": {"model": "@refined_8", "steps": few}}
  judged = {**common.verdict(places, samples=1, primary=f"refined_{few}_rlhf", baseline="base"), "diversity": None,
            "data": {"name": "samples", "path": "@held/samples", "entry": "low"}, "rewards": {"scenes": common.REWARD}}
  return {**rewards(FINE), "low": lows({**ASKED, "count": 480}), "held": lows(common.held_out_clips(360)), **runs,
          "evaluate": judged}


PIPELINES = {"base": base, "tuning": functools.partial(base, tuning=True), "single": single, "refiner": refiner,
             "refiner_1": functools.partial(refiner, few=1)}


def get_config(how: str = "base"):
  part, = common.picked(how, tuple(PIPELINES))
  return ml_collections.ConfigDict({"task": "pipeline", "title": f"Seedance's RLHF, {part}", "seed": 0,
                                    "runs": PIPELINES[part]()})
