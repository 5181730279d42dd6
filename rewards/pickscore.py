"""PickScore (2305.01569): a CLIP-H/14 that was trained to tell which of two pictures people prefer for a prompt.

  reward = {"name": "pickscore", "model": DIR}

DIR holds yuvalkirstain/PickScore_v1 and the tokenizer and preprocessor_config.json of
laion/CLIP-ViT-H-14-laion2B-s32B-b79K. The score is exp(logit_scale) * cosine, about 19 to 24 for good models; the
softmax over the scores of one prompt's pictures says which is preferred, and the algorithm `compare` trains by that.
Trainers rescale it, by 1/26 (Flow-GRPO, DiffusionNFT), (s - 18) / 8 (MixGRPO) or to the bare cosine (DanceGRPO, part
cosine): see rewards/mix.py.
"""
from rewards import clip
from rewards.core import Reward


def make(model: str, dtype: str = "float32", remat: bool | str = False) -> Reward:
  """dtype: of the network and its parameters; bfloat16 rounds the scale, which moves all scores by about 1 %, and each
  by up to 0.1. remat: see layers.remat."""
  return clip.make(model, "logit", dtype=dtype, remat=remat)
