r"""ReFL of Stable Diffusion 1.5 with ImageReward (2304.05977), the whole U-Net or low-rank adapters of it.

  python -m align.main --config=configs/sd15_refl.py --workdir=runs/sd15_refl \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.model=JUDGE
  python -m align.main --config=configs/sd15_refl.py:paper --workdir=runs/sd15_refl_paper \
    --config.model=MODEL --config.data.path=PICTURES --config.reward.model=JUDGE

MODEL is a diffusers folder of stable-diffusion-v1-5, JUDGE a folder of ImageReward (rewards/image_reward.py), PROMPTS a
file with one prompt a line (there: DiffusionDB's), PICTURES one of captioned pictures (align/datasets/jsonl.py; there
625,000 of LAION's by their looks). Hardware: the paper took 8 A100 of 40 GB; not run at this size yet. Published, of
SD1.4: raters prefer it to the base in 58.79 %.

"released", as its code: 40 steps of DDPM without guidance, a gradient at one of the steps 30 to 39, 1e-3 relu(2 - r),
64 prompts an update, 100 updates at 1e-5, a moving average, no loss on data. "paper": that loss and the squared error
on data, one to one; here both are of the same 64 captions, there of 64 prompts and 64 pictures of two sets. `lora`
(`released,lora`) trains adapters in the attention, for which nothing is published: rank and learning rate are ours.
Differs: bfloat16 instead of float16.
"""
from configs import common


def get_config(how: str = "released"):
  style, way = common.picked(how, ("released", "paper"), ("full", "lora"))
  config = common.aligned(
    "sd15", way, size=512, rank=16, alpha=32.0, targets=common.UNET, lr=1e-5 if way == "full" else 1e-4,
    policy={"scheduler": "DDPMScheduler", "guidance": 1.0, "steps": 40},
    algorithm={"name": "refl", "steps": 40, "first": 0.75, "margin": 2.0, "weight": 1e-3, "eta": 1.0, "ema": 0.9999},
    reward="image_reward", optim={"weight_decay": 1e-2}, batch=64, micro=32, steps=100)
  if style == "paper":
    config.algorithm.sft = 1.0
    config.data = {"name": "jsonl", "path": "pictures.jsonl", "size": 512}
  return config
