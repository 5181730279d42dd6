r"""Dense Reward of Stable Diffusion 1.5 (2402.08265): DPO over stored chains whose early steps count more.

  python -m align.main --config=configs/sd15_dense.py --workdir=runs/sd15_dense \
    --config.model=MODEL --config.data.path=PROMPT --config.reward.model=JUDGE
  python -m align.main --config=configs/sd15_dense.py:multi --workdir=runs/sd15_dense_multi \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.model=JUDGE

MODEL is a diffusers folder of stable-diffusion-v1-5, JUDGE one of ImageReward (rewards/image_reward.py), PROMPTS a file
with one prompt a line (there: HPSv2's for training), PROMPT one with the same prompt on 128 lines, such as "a cat and a
dog". The released code ranks by HPSv2 where it has many prompts: `multi,hps`. `full` trains the whole U-Net, at a
learning rate of ours. Discounting without chains, on a data set of pairs, is configs/sd15_dpo.py with
--config.algorithm.gamma=0.9.

Hardware: not published; not run at this size yet. Numbers to meet: none could be confirmed; scores are of 100 images of
the prompt and of unseen ones like it, and of HPSv2's 3,200 test prompts, at 50 steps, eta 1 and guidance 7.5.

As published: adapters of rank 4 (many prompts: 32) in the attention, gamma .9, clip 1e-4 (5e-4), scale 10 (12.5), 3
steps (1) a chain, 4 pairs (32) an update, AdamW at 3e-5 (2e-5), 10,000 (40,000) updates, 5 chains a prompt (of 12). The
loss stays near log 2; look at `accuracy` and `clip_fraction`. Differs: chains stay on the devices, so that a stage has
128 (192) prompts instead of 1,000 (2,000) and as many fewer updates; and networks compute in float32, as chains in
bfloat16 cannot be followed as exactly as the clip asks for.
"""
from configs import common

HOW = {
  "single": dict(
    rank=4, alpha=4.0, lr=3e-5, optim={"weight_decay": 2e-3}, batch=128, group=5, chunks=8, micro=1, steps=10_000,
    algorithm={"name": "dense", "scale": 10.0, "clip": 1e-4, "draws": 3, "tuples": 4, "updates": 320}),
  "multi": dict(
    rank=32, alpha=32.0, lr=2e-5, optim={"weight_decay": 1.5e-3, "clip": 0.05}, batch=192, group=12, chunks=24, micro=4,
    steps=40_000,
    algorithm={"name": "dense", "scale": 12.5, "clip": 5e-4, "draws": 1, "tuples": 32, "updates": 384}),
}


def get_config(how: str = "single"):
  style, judge, way = common.picked(how, tuple(HOW), ("image_reward", "hps"), common.WAYS)
  options = HOW[style] if way == "lora" else {**HOW[style], "lr": 1e-6}
  return common.aligned("sd15", way, size=512, targets=common.UNET, reward=judge, **options,
                        policy={"scheduler": "DDIMScheduler", "kernel": "ddim", "eta": 1.0, "guidance": 7.5,
                                "steps": 50, "dtype": "float32", "param_dtype": "float32"})
