r"""Diffusion-DPO of SDXL-Turbo on pairs of its own pictures that UnifiedReward chose (2503.05236).

  python -m align.main --config=configs/sdxl_turbo_dpo.py --workdir=runs/sdxl_turbo_dpo \
    --config.runs.pairs.model=MODEL --config.runs.train.model=MODEL --config.runs.pairs.data.path=PROMPTS \
    --config.runs.pairs.rewards.rank.model=JUDGE --config.runs.pairs.rewards.points.model=JUDGE

MODEL is a diffusers folder of sdxl-turbo with the VAE that it likes best, JUDGE one of UnifiedReward, a Qwen2.5-VL or
LLaVA-OneVision, PROMPTS a file with one prompt a line (there: Pick-a-Pic's captions). `sdxl_turbo_dpo.py:lora` trains
adapters. Hardware: not published for this; not run at this size yet. The pictures of a run lie in memory, 8 GiB a
thousand prompts. Published, PickScore / HPSv2 / ImageReward (the first on a scale of its own): base 43.24 / 29.37 /
0.82; on Pick-a-Pic's pairs 54.32 / 30.03 / 0.93; on these 63.32 / 32.44 / 1.05.

Pairs: ten pictures of one step without guidance; neighbours are compared, and the winner with the most points and the
loser with the fewest are a pair; 14,000 there. Differs: pairs are asked in both orders, ties are nobody's. The texts of
the questions are ours: give the checkpoint's own with --config.runs.pairs.rewards.rank.prompts=FILE, or .points.
Training is the released launcher's: beta 5000 on means, 2,048 pairs, 20 updates at 2.048e-5 after a warm-up of 5, no
caption dropped, at the four timesteps 249, 499, 749 and 999 that the model is made for. The optimiser is that of
configs/sdxl_dpo.py; rank and learning rate of adapters are ours.
"""
import ml_collections

from configs import common

LEVELS = (0.25, 0.5, 0.75, 1.0)
JUDGE = {"name": "unified", "model": "UnifiedReward-qwen-7b"}


def get_config(how: str = "full"):
  pairs = {
    "task": "collect", "model": "sdxl_turbo", "policy": {"name": "public", "guidance": 0.0, "dtype": "bfloat16"},
    "data": {"name": "prompts", "path": "prompts.txt"}, "samples": 10, "steps": 1, "batch": 80,
    "rewards": {"rank": {**JUDGE, "question": "image_generation_pair_v1_qwen", "scheme": "adjacent"},
                "points": {**JUDGE, "question": "image_generation_point_sift"}},
    "rank": "rank/total", "score": "points/total",
  }
  train = common.diffusion_dpo("sdxl_turbo", how, size=512, beta=5000.0, steps=20, warmup=5,
                               optim={"name": "adafactor", "clip": 1.0, "weight_decay": 1e-2})
  train.data = {"name": "pairs", "path": "@pairs/pairs"}
  train.update({"drop": 0.0, "save_every": 10})
  train.policy.update({"law": "levels", "law_levels": LEVELS, "guidance": 0.0})
  return ml_collections.ConfigDict({"task": "pipeline", "title": "SDXL-Turbo", "seed": 0,
                                    "runs": {"pairs": pairs, "train": train}})
