"""HPSv2 and HPSv2.1 (2306.09341): OpenCLIP's H/14, trained to tell which picture people prefer for a prompt.

  reward = {"name": "hps", "model": DIR}

`python -m rewards.convert HPS_v2.1_compressed.pt --tokenizer=CLIP --out=DIR` makes DIR. The score is the cosine, about
0.2 to 0.4 and without a logit scale; tables show it times 100. Scores of v2 and of v2.1, or of different prompts, do
not compare. Pictures that are not square are scaled to fit and padded with black before they are normalised, not cut.
"""
from rewards import clip
from rewards.core import Reward


def make(model: str, dtype: str = "float32", remat: bool | str = False) -> Reward:
  """dtype: of the network and its parameters. remat: see layers.remat."""
  return clip.make(model, "cosine", frame="pad", dtype=dtype, remat=remat)
