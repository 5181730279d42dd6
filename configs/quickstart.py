"""Align a text-to-image generator on a laptop: data, alignment, control, evaluation, report.

  python -m align.main --config=configs/quickstart.py --workdir=runs/quickstart

Hardware: two CPU cores, ten minutes, 3 GiB. The generator is the base of Scenes that ships with the package; the
reward is the exact detector. `aligned` is DiffusionNFT; --config=configs/quickstart.py:grpo runs Flow-GRPO instead.
`control` spends the same compute on more supervised training with a learning rate of its own: what alignment must beat.
Expected: see the table in README.md.
"""
import ml_collections

from configs import common

EXPERIENCES, UPDATES = 40, 4
METHODS = {
  "nft": {"name": "nft", "steps": 8, "levels": 2, "updates": 4, "limit": 1.0, "kl": 0.6, "ema": 0.95},
  "grpo": {"name": "grpo", "steps": 8, "updates": 4, "clip": 1e-3, "ratio": "gaussian", "pick": "random", "size": 3},
}


def get_config(method: str = "nft"):
  if method not in METHODS:
    raise ValueError(f"method = {method!r} is not one of {', '.join(METHODS)}; choose one of them")
  aligned = {
    "task": "train", "steps": UPDATES * EXPERIENCES, "batch": 24, "group": 8, "policy": common.SCENES,
    "reward": common.REWARD,
    "start": {"policy": "scenes"}, "data": {"name": "scenes_prompts", "split": "train", "count": 960},
    "algorithm": METHODS[method], "log_every": 4,
    "optim": {"name": "adamw", "lr": 5e-4, "decay": "linear", "warmup_steps": 8},
    "evaluate": common.probe(UPDATES * EXPERIENCES // 4),
  }
  control = {
    # One experience is 192 samples x 8 steps, and 384 denoisings by the sampler's network, the reference and, with
    # their gradient, the policy: 3456 forward passes, as much as 24 updates of 48 samples.
    "task": "train", "steps": 24 * EXPERIENCES, "batch": 48, "policy": common.SCENES, "start": {"policy": "scenes"},
    "data": {"name": "scenes", "split": "train", "count": 20_000, "data_dir": "@data"}, "drop": 0.1,
    "algorithm": {"name": "sft", "ema": 0.99}, "optim": {"name": "adamw", "lr": 3e-4, "decay": "linear"},
    "evaluate": common.probe(24 * EXPERIENCES // 4),
  }
  return ml_collections.ConfigDict({
    "task": "pipeline", "title": "Quickstart", "seed": 0,
    "runs": {
      "data": {"task": "prepare", "dataset": {"name": "scenes", "count": 20_000}},
      "aligned": aligned,
      "control": control,
      "evaluate": common.verdict(
        {"base": "scenes", "aligned": "@aligned", "control": "@control"}, primary="aligned", baseline="base",
        curves={"aligned": "@aligned", "control": "@control"},
        targets={"gain over base": 0.15, "gain over control": 0.05, "diversity ratio": 0.8}),
    },
  })
