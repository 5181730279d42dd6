r"""DiffusionNFT of Stable Diffusion 3.5 medium (2509.16117), low-rank adapters or the whole MMDiT.

  python -m align.main --config=configs/sd35_nft.py --workdir=runs/sd35_nft \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.model=JUDGE
  python -m align.main --config=configs/sd35_nft.py:geneval --workdir=runs/sd35_nft_geneval \
    --config.model=MODEL --config.data.path=GENEVAL --config.reward.detector=MODULE:FUNCTION
  python -m align.main --config=configs/sd35_nft.py:mixture --workdir=runs/sd35_nft_mixture \
    --config.model=MODEL --config.data.path=PROMPTS --config.reward.rewards.pickscore.model=JUDGE \
    --config.reward.rewards.hps.model=HPS --config.reward.rewards.clip.model=CLIP

MODEL is a diffusers folder of stable-diffusion-3.5-medium; PROMPTS, JUDGE, GENEVAL and MODULE:FUNCTION are as in
configs/sd35_grpo.py, HPS a folder of HPSv2.1, CLIP one of OpenAI's CLIP-L/14. With `full` (`pickscore,full`) the whole
MMDiT learns.

Hardware: not stated here; not run at this size yet. The paper starts without guidance, at GenEval .24, PickScore 20.51,
HPSv2.1 .204, CLIP .237, and reports

  pickscore  2,000 updates   PickScore 24.03, GenEval .53, HPSv2.1 .315, CLIP .270
  geneval    1,000 updates   GenEval .98, PickScore 21.92, HPSv2.1 .251, CLIP .271
  mixture    1,700 updates   PickScore 23.80, GenEval .94, HPSv2.1 .331, CLIP .293

As published: 48 prompts of 24 samples, 10 steps by DPM-Solver++ without guidance, one update an experience, 9 of the 10
levels, beta 1 (mixture: .1 and 25 steps), kl 1e-4. The mixture is the first 800 of its updates, PickScore / 26 + CLIP +
HPSv2.1 on the prompts of Pick-a-Pic; the later stages, on GenEval's prompts and on text to be drawn, are left out.
GenEval's rules: see configs/sd35_grpo.py. The learning rate of the whole network is ours.
"""
from configs import common

PARTS = ("pickscore", "clip", "hps")
MIXTURE = {"name": "mix", "rewards": {name: common.REWARDS[name] for name in PARTS}, "weights": {"pickscore": 1 / 26}}
HOW = {  # updates, and options of the algorithm
  "pickscore": (2000, {}), "geneval": (1000, {}), "mixture": (800, {"steps": 25, "levels": 24, "beta": 0.1}),
}


def get_config(how: str = "pickscore"):
  judge, way = common.picked(how, tuple(HOW), common.WAYS)
  updates, options = HOW[judge]
  config = common.aligned("sd35_medium", way, size=512, rank=32, alpha=64.0, targets=common.MMDIT,
                          lr=3e-4 if way == "lora" else 1e-5,
                          policy={"steps": 40, "kernel": "dpm2m", "guidance": 1.0},
                          algorithm={"name": "nft", "steps": 10, "ema": 0.9, **options},
                          reward="pickscore" if judge == "mixture" else judge, batch=48, group=24, micro=72,
                          steps=updates)
  if judge == "mixture":
    config.reward = MIXTURE
  return config
