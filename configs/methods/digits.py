"""One method on handwritten digits, beside supervised training of the same cost: `digits.py:METHOD`.

  python -m align.main --config=configs/methods/digits.py --workdir=runs/digits
  python -m align.main --config=configs/methods/digits.py:grpo --workdir=runs/digits_grpo

Hardware: two CPU cores, two to three minutes. Every method has 80,000 forward passes of the network on one sample; a
gradient counts as two more, and so do rewards: one pass for a score, four for its gradient. Pairs are collected once,
out of the budget of the methods that learn from them. Rewards, base and verdict are those of configs/digits.py. There
are ten prompts, so none is held out; what is held out is the judge and its data. Learning rates were chosen on seed 100
(configs/sweeps/digits_tuning.py) by the judge's verdict, from 1e-4, 3e-4 and 1e-3 (the control's from three times that;
it took the largest).
"""
import ml_collections

from configs import digits

BUDGET = 80_000
PROMPTS, GROUP, STEPS = 10, 16, 10
SAMPLES = PROMPTS * GROUP
ROLLOUT = SAMPLES * (STEPS + 1)          # sampled and scored
COLLECTED = PROMPTS * 96 * (STEPS + 1)   # the pairs
TRAIN, JUDGE = 3, 4                      # of the network; of the reward, computed once more for its gradient
PAIR = 2 * (TRAIN + 1)                   # policy and reference on both images

SDE, CPS, DDIM = ({"kernel": k, "eta": eta} for k, eta in (("flow_sde", 0.7), ("cps", 0.8), ("ddim", 1.0)))
PART = {"pick": "random", "size": 3, "updates": 2, "steps": STEPS, "clip": 1e-2}
DECISIONS = SAMPLES * TRAIN * (STEPS - 1)
ONLINE = {  # name: (kernel, algorithm, passes and updates of an experience)
  "rwr": (SDE, {"name": "rwr", "steps": STEPS, "updates": 2, "epochs": 2, "temperature": 0.5},
          ROLLOUT + 2 * SAMPLES * TRAIN, 4),
  "online_dpo": (SDE, {"name": "dpo", "online": True, "steps": STEPS, "epochs": 8, "beta": 100.0},
                 ROLLOUT + 8 * PROMPTS * PAIR, 8),
  "dense": (DDIM, {"name": "dense", "steps": STEPS, "gamma": 0.9, "clip": 0.128, "scale": 0.05, "updates": 16},
            ROLLOUT + 16 * 32 * PAIR, 16),
  "ppo": (SDE, {"name": "ppo", "steps": STEPS, "clip": 1e-2, "updates": 2}, ROLLOUT + DECISIONS, 2),
  "ddpo": (DDIM, {"name": "grpo", "steps": STEPS, "eta": 1.0, "buffer": 32, "clip": 1e-2, "updates": 2},
           ROLLOUT + DECISIONS, 2),
  "grpo": (SDE, {"name": "grpo", **PART}, ROLLOUT + 3 * SAMPLES * TRAIN, 2),
  "grpo_cps": (CPS, {"name": "grpo", **PART, "eta": 0.8, "ratio": "cps"}, ROLLOUT + 3 * SAMPLES * TRAIN, 2),
  "nft": (SDE, {"name": "nft", "steps": STEPS, "levels": 2, "updates": 2, "limit": 2.0, "kl": 0.0, "ema": 0.9},
          ROLLOUT + 2 * SAMPLES * (TRAIN + 1), 2),
}
GRADIENT = {  # of the reward, 5 samples of every prompt an update: (algorithm, passes of an update)
  "refl": ({"name": "refl", "steps": STEPS, "weight": 1.0, "phi": "linear"}, 50 * (STEPS + TRAIN + JUDGE)),
  "draft": ({"name": "refl", "mode": "draft", "steps": STEPS, "weight": 1.0, "phi": "linear"},
            50 * (STEPS - 1 + TRAIN + JUDGE)),
}
OFFLINE = {  # from pairs of the base: (algorithm, records and passes of an update)
  "chosen": ({"name": "sft", "of": "win", "ema": 0.99}, 64, 64 * TRAIN),
  "dpo": ({"name": "dpo", "beta": 1000.0, "ema": 0.99}, 32, 32 * PAIR),
  "discounted": ({"name": "dpo", "beta": 1000.0, "gamma": 0.9, "chain": STEPS, "ema": 0.99}, 32, 32 * PAIR),
}
METHODS = (*OFFLINE, *ONLINE, *GRADIENT)
RATES = {"chosen": 1e-3, "dense": 1e-4}  # of AdamW, where it is not 3e-4
SCORE = {"name": "classifier", "classes": 10, "size": 8, "channels": 1}
PROMPT_DATA = {"name": "digits", "split": "prompts"}


def pairs():
  return {"task": "collect", "model": "@base", "data": PROMPT_DATA, "rewards": {"reward": SCORE},
          "models": {"reward": "@reward"}, "score": "reward/probability", "samples": 96, "pairs": 24, "batch": 480,
          "seed": 1000}  # noise of its own, not that of the verdict


def arm(method: str) -> dict:
  """The training run of a method."""
  plain = {"task": "train", "policy": digits.POLICY, "start": {"policy": "@base"}, "log_every": 10,
           "optim": {"name": "adamw", "lr": RATES.get(method, 3e-4), "decay": "linear"}}
  if method in OFFLINE:
    algorithm, batch, cost = OFFLINE[method]
    return {**plain, "algorithm": algorithm, "batch": batch, "steps": (BUDGET - COLLECTED) // cost,
            "data": {"name": "pairs", "path": "@pairs/pairs"}}
  judged = {**plain, "reward": SCORE, "data": PROMPT_DATA, "start": {"policy": "@base", "reward": "@reward"}}
  if method in GRADIENT:
    algorithm, cost = GRADIENT[method]
    return {**judged, "algorithm": algorithm, "batch": PROMPTS, "group": 5, "steps": BUDGET // cost}
  kernel, algorithm, cost, updates = ONLINE[method]
  return {**judged, "policy": {**digits.POLICY, **kernel}, "algorithm": algorithm, "batch": PROMPTS, "group": GROUP,
          "steps": BUDGET // cost * updates, **({"trained": "^(policy|value)/"} if method == "ppo" else {})}


def get_config(method: str = "dpo"):
  if method not in METHODS:
    raise ValueError(f"method = {method!r} is not one of {', '.join(METHODS)}; choose one of them")
  arms = {"base": "@base", "control": "@control", "aligned": "@aligned"}
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": f"Digits, {method}", "seed": 0,
    "runs": {
      "reward": digits.classifier("reward"), "judge": digits.classifier("judge"), "base": digits.supervised(650, 2e-3),
      "control": digits.supervised(BUDGET // (64 * TRAIN), 3e-3, start={"policy": "@base"}),
      **({"pairs": pairs()} if method in OFFLINE else {}), "aligned": arm(method),
      "evaluate": {"task": "evaluate", "arms": arms, "data": PROMPT_DATA, "rewards": {"judge": SCORE, "reward": SCORE},
                   "models": {"judge": "@judge", "reward": "@reward"}, "primary": "aligned", "baseline": "control",
                   "success": "judge/accuracy", "samples": 96, "batch": 480, "diversity": "pixels"},
    },
  })
