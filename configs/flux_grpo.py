r"""DanceGRPO of FLUX.1-dev (2505.07818), low-rank adapters in the attention or the whole network.

  python -m align.main --config=configs/flux_grpo.py --workdir=runs/flux_grpo \
    --config.model=MODEL --config.data.path=PROMPTS
  python -m align.main --config=configs/flux_grpo.py:hps --workdir=runs/flux_grpo_hps \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.model=JUDGE
  python -m align.main --config=configs/flux_grpo.py:hps,full --workdir=runs/flux_grpo_full \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.model=JUDGE

MODEL is a diffusers folder of FLUX.1-dev, PROMPTS a file with one prompt a line, JUDGE a folder of HPSv2 or HPSv2.1
(rewards/hps.py). Hardware: the paper took 16 H800 for 12 hours, 300 experiences of 16 steps, for the whole network at
1e-5; its adapters have rank 128, learn at 3e-4 and take 12 steps. Not run at this size yet; by --plan=v5e:4x4 the first
takes 11.3 of a chip's 15.75 GiB. Published, of the whole network with HPSv2 as the reward: .304 to .372, GenEval .659
to .561.

Without a reward's name it is JPEG compressibility, which needs no weights (2305.13301).
Left out: the static shift of 3 (here it is the folder's, which depends on the resolution).
"""
from configs import common

TARGETS = r"^net/.*qkv/(q|k|v)/kernel$"


def get_config(how: str = "jpeg"):
  judge, way = common.picked(how, ("jpeg", "hps"), common.WAYS)
  steps, micro, lr = (12, 14, 3e-4) if way == "lora" else (16, 20, 1e-5)
  algorithm = common.grpo(steps=steps, eta=0.3, pick="random", fraction=0.6, shared_noise=True, clip=1e-4, std="group",
                          ddof=1, delta=1e-8, updates=4)
  return common.aligned("flux_dev", way, size=720, rank=128, alpha=256.0, targets=TARGETS, lr=lr,
                        policy={"steps": 28, "kernel": "dance_sde", "guidance": 3.5}, algorithm=algorithm, reward=judge,
                        batch=32, group=12, micro=micro, steps=1200)
