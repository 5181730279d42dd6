r"""Flow-DPO of Stable Diffusion 3.5 medium on Pick-a-Pic v2 (2501.13918), low-rank adapters or the whole MMDiT.

  python -m align.main --config=configs/sd35_dpo.py --workdir=runs/sd35_dpo \
    --config.model=MODEL --config.data.path=DATA
  python -m align.main --config=configs/sd35_dpo.py:full --workdir=runs/sd35_dpo_full \
    --config.model=MODEL --config.data.path=DATA

MODEL is a diffusers folder of stable-diffusion-3.5-medium, and DATA has the parquet files of pickapic_v2. Hardware: not
run at this size yet; by --plan=v5e:4x4 adapters take 3.9 GiB of a chip's 15.75, the whole network 10.7; with more micro
batches the first also fit 2x2, the second 2x4.

Adapters, beta (on means), law of the noise level, learning rate, weight decay, clipping and moving average are those of
flow_grpo's code for Flow-DPO, which makes its pairs itself, from 24 samples a prompt. Number of pairs and updates are
ours, and so is the learning rate of the whole network, for which nothing is published.
"""
from configs import common


def get_config(how: str = "lora"):
  config = common.diffusion_dpo("sd35_medium", how, size=512, beta=100.0, steps=1000, warmup=20,
                                optim={"name": "adamw", "weight_decay": 1e-4, "clip": 1.0})
  config.update({"batch": 256, "micro": 4})
  config.policy.law = "logit_normal"
  config.algorithm.ema = 0.9
  config.optim.lr = 3e-4 if how == "lora" else 1e-5
  if how == "lora":
    config.lora.targets = common.MMDIT
  return config
