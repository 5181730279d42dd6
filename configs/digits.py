"""Handwritten digits, real data, end to end: judge, base, alignment, control, evaluation.

  python -m align.main --config=configs/digits.py --workdir=runs/digits

Hardware: two CPU cores, 126 seconds the first time, of which some 40 go into compilation. Seed 0: judge accuracy .892
base, .934 control, .969 aligned, with .85 of the base's diversity. scikit-learn's bundled 8x8 digits, captions such as
"a handwritten seven". The reward is a small CNN's probability of the asked digit, the verdict that of another CNN
trained on other images.
Your own data: set runs.base.data to {"name": "folder", "path": ..., "size": 8, "channels": 1} (images with .txt
captions) or {"name": "jsonl", ...}. Prompts of your own, {"name": "prompts", "path": ...}, need a reward that judges
them: this one asks for the label of every record.
"""
import ml_collections

EXPERIENCES = 22
POLICY = {
  "name": "diffusion", "size": 8, "channels": 1, "steps": 10, "length": 6,
  "net": {"name": "mmdit", "variant": "digits"}, "text": {"name": "text", "width": 64, "depth": 1},
  "process": {"name": "flow"},
}


def classifier(split: str) -> dict:
  """A CNN trained on a split of its own."""
  return {
    "task": "train", "steps": 250, "batch": 64, "trained": "^reward/", "algorithm": {"name": "fit"},
    "reward": {"name": "classifier", "classes": 10, "size": 8, "channels": 1},
    "data": {"name": "digits", "split": split}, "optim": {"name": "adamw", "lr": 2e-3, "decay": "cosine"},
    "log_every": 50,
  }


def supervised(steps: int, lr: float, **more) -> dict:
  return {
    "task": "train", "steps": steps, "batch": 64, "policy": POLICY, "algorithm": {"name": "sft", "ema": 0.999},
    "data": {"name": "digits", "split": "train"}, "log_every": 50, "drop": 0.1,
    "optim": {"name": "adamw", "lr": lr, "decay": "linear", "warmup_steps": steps // 10}, **more,
  }


def get_config():
  prompts = {"name": "digits", "split": "prompts"}
  score = {"name": "classifier", "classes": 10, "size": 8, "channels": 1}
  aligned = {
    "task": "train", "steps": 2 * EXPERIENCES, "batch": 10, "group": 16, "policy": POLICY, "reward": score,
    "start": {"policy": "@base", "reward": "@reward"}, "data": prompts, "log_every": 5,
    "algorithm": {"name": "nft", "levels": 2, "updates": 2, "limit": 2.0, "kl": 0.0, "ema": 0.9},
    "optim": {"name": "adamw", "lr": 1e-3, "decay": "linear"},
  }
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": "Handwritten digits", "seed": 0,
    "runs": {
      "reward": classifier("reward"),
      "judge": classifier("judge"),
      "base": supervised(650, 2e-3),
      "aligned": aligned,
      # As much compute: an experience is 160 samples x (10 steps + 2 levels x (old, policy with gradient)), 2880
      # forward passes, as 15 updates of 64 samples are.
      "control": supervised(15 * EXPERIENCES, 1e-3, start={"policy": "@base"}),
      "evaluate": {
        "task": "evaluate", "arms": {"base": "@base", "control": "@control", "aligned": "@aligned"}, "data": prompts,
        "rewards": {"judge": score, "reward": score}, "models": {"judge": "@judge", "reward": "@reward"},
        "primary": "aligned", "baseline": "base", "success": "judge/accuracy", "samples": 240, "batch": 480,
        "diversity": "pixels", "targets": {"diversity ratio": 0.5},
      },
    },
  })
