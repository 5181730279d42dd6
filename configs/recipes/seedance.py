"""Seedance's RLHF (2506.09113) in Scenes: three rewards learned from clips with planted flaws, and their sum maximised.

  python -m align.main --config=configs/recipes/seedance.py --workdir=runs/seedance

Rewards: `content`, which thing moves where and how fast (rewards/scenes_clip_scorer.py, first on labelled frames, then
on pairs), `motion` (rewards/motion_head.py) and `looks` of key frames (rewards/look.py), each from pairs in which the
better clip is no worse on the other two dimensions. `maximised` is reward feedback through the predicted x0 at a late
random step; `dpo`, `ppo` and `grpo` have the same composite, normalised on the base's samples, and as many forward
passes of the network; `control` is as much supervised training. The verdict is the exact detector's on held-out things.

A second round: clips of `maximised` are labelled by the exact detector, in the place of people; `content` learns from
them, too (`content_2`), and `second` goes on with it for half as many passes. `longer` goes on as long with the rewards
as they were: what the round is worth is the difference of the two.

Seedance publishes neither weights nor settings of this stage; all numbers are ours, and so is the world. Left out so
far: the refiner (`refines` of a policy, and align/algorithms/distill.py, are what it takes).

Hardware: two CPU cores, twenty minutes on one of them by count of passes (5 ms each). Not run whole yet; planted flaws
are easily seen: on seed 100 all pairs of a batch are ordered rightly after 100 updates of `motion` and of `looks`.
"""
import ml_collections

from configs import common

STEPS, GROUP, PROMPTS = 8, 8, 12
BUDGET = 30_000               # forward passes of the network on one clip; a gradient is two more
SAMPLES = PROMPTS * GROUP
ROLLOUT = SAMPLES * (STEPS + 1)
TRAIN, JUDGE, PAIR = 3, 4, 8  # passes of an update for a clip, of a reward and its gradient, for a pair with reference
COLLECTED = 120 * 8 * (STEPS + 1)
ASKED = {"name": "scenes_prompts", "split": "train", "count": 960, **common.MOVING}
PARTS = {"content": {"name": "scenes_clip_scorer"}, "motion": {"name": "motion_head"},
         "looks": {"name": "keyframes", "count": 2, "total": 6, "rewards": {"look": {"name": "look"}}}}
COMPOSITE = {"name": "mix", "rewards": PARTS, "normalise": "frozen", "clip": 3.0}
WEIGHTS = {f"reward/{name}": f"@{name}" for name in PARTS}
POLICY = {**common.CLIPS, "steps": STEPS}
PLAIN = {"task": "train", "policy": POLICY, "start": {"policy": "clips"}, "log_every": 10,
         "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"}}
ONLINE = {**PLAIN, "batch": PROMPTS, "group": GROUP, "data": ASKED, "reward": COMPOSITE,
          "start": {"policy": "clips", **WEIGHTS}}


def judge(name: str, steps: int, **more) -> dict:
  """A reward from pairs that differ in its dimension."""
  return {"task": "train", "steps": steps, "batch": 32, "trained": "^reward/", "reward": PARTS[name],
          "algorithm": {"name": "compare"}, "log_every": 100,
          "data": {"name": "scenes_flaws", "dimension": name, "count": 20_000, **common.MOVING},
          "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear", "warmup_steps": 20}, **more}


def seen() -> dict:
  """What stands where in a frame: the beginning of `content`."""
  return {"task": "train", "steps": 600, "batch": 16, "trained": "^reward/", "reward": PARTS["content"],
          "algorithm": {"name": "fit"}, "data": {"name": "scenes", "split": "train", "count": 20_000, **common.MOVING},
          "optim": {"name": "adamw", "lr": 3e-3, "decay": "linear", "warmup_steps": 50}, "log_every": 100}


def rewards() -> dict:
  return {"seen": seen(), "content": judge("content", 100, start={"reward": "@seen"}), "motion": judge("motion", 150),
          "looks": judge("looks", 60)}


def costs() -> dict:
  """{arm: forward passes of an update, or of an experience}."""
  return {"maximised": PROMPTS * 2 * (STEPS + TRAIN + JUDGE), "grpo": ROLLOUT + 3 * SAMPLES * TRAIN,
         "ppo": ROLLOUT + (STEPS - 1) * SAMPLES * TRAIN, "dpo": 24 * PAIR, "control": 32 * TRAIN}


def arms() -> dict:
  """Runs of as many forward passes, but for the training of rewards, which all have."""
  per = costs()
  ratio = {"steps": STEPS, "updates": 4, "clip": 1e-3, "ratio": "gaussian"}
  return {
    "maximised": {**ONLINE, "group": 2, "steps": BUDGET // per["maximised"], "algorithm": {
      "name": "refl", "steps": STEPS, "first": 0.5, "weight": 1.0, "phi": "linear", "ema": 0.95}},
    "grpo": {**ONLINE, "steps": BUDGET // per["grpo"] * 4, "algorithm": {
      "name": "grpo", **ratio, "pick": "random", "size": 3}},
    "ppo": {**ONLINE, "steps": BUDGET // per["ppo"] * 4, "trained": "^(policy|value)/",
            "algorithm": {"name": "ppo", **ratio}},
    "dpo": {**PLAIN, "batch": 24, "steps": (BUDGET - COLLECTED) // per["dpo"],
            "data": {"name": "pairs", "path": "@pairs/pairs/point"},
            "algorithm": {"name": "dpo", "beta": 1000.0, "ema": 0.99}},
    "control": {**PLAIN, "batch": 32, "steps": BUDGET // per["control"], "drop": 0.1,
                "data": {"name": "scenes", "split": "train", "count": 20_000, **common.MOVING},
                "algorithm": {"name": "sft", "ema": 0.99}},
  }


def pairs() -> dict:
  """Of the base's clips, by the composite that the other methods maximise."""
  return {"task": "collect", "model": "clips", "data": {**ASKED, "count": 120}, "samples": 8, "pairs": 2, "batch": 96,
          "rewards": {"judge": {**COMPOSITE, "normalise": "batch"}}, "score": "judge/total",
          "models": {f"judge/{name}": f"@{name}" for name in PARTS}}


def feedback(first: dict) -> dict:
  """Both ways to go on from `maximised`, and what the second round learns from."""
  half = {**first, "steps": first["steps"] // 2}
  begun = {**first["start"], "policy": "@maximised"}
  return {
    "labels": {**pairs(), "model": "@maximised", "data": {**ASKED, "count": 120, "seed": 3},
               "rewards": {"scenes": common.REWARD}, "score": "scenes/total", "models": {}},
    "content_2": judge("content", 60, start={"reward": "@content"},
                       data={"name": "pairs", "path": "@labels/pairs/point"}),
    "second": {**half, "start": {**begun, "reward/content": "@content_2"}},
    "longer": {**half, "start": begun},
  }


def get_config():
  runs = arms()
  runs |= feedback(runs["maximised"])
  places = {"base": "clips", **{name: f"@{name}" for name in runs if name not in ("labels", "content_2")}}
  verdict = {**common.verdict(places, samples=2, primary="maximised", baseline="base"),
             "data": common.held_out_clips(240), "rewards": {"scenes": common.REWARD}, "steps": STEPS}
  return ml_collections.ConfigDict({"task": "pipeline", "title": "Seedance's RLHF", "seed": 0,
                                    "runs": {**rewards(), "pairs": pairs(), **runs, "evaluate": verdict}})
