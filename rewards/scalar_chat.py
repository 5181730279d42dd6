"""Scalar heads on a public vision-language model: numbers that a linear map reads where its answer would begin.

  reward = {"name": "scalar_chat", "model": DIR, "size": 512, "dims": ("overall",)},  start = {"reward": RUN}

The form of reward models that are trained by Bradley-Terry, with or without ties (algorithm `compare`, loss "bt" or
"btt"), on any network that judges are (diffusion/vlm.py): Qwen2.5-VL, Qwen2-VL, LLaVA-OneVision. The picture and then
the question are one turn of the checkpoint's chat template; the last hidden state in front of the answer is read, as in
scalar.py, whose head it has. It is computed inside the mesh and has a gradient in the picture. The network begins from
DIR's weights where `start` names DIR, the head near zero; a run leaves both. `trained` chooses what is learned, such as
"^reward/head" or all of "^reward/". Left out: clips (video_reward.py), reading a published head from a file of its own.
"""
import jax
import numpy as np

from diffusion import decode, vlm
from rewards import scalar, unified
from rewards.core import Reward

QUESTION = "The image was made for this text: {prompt}\nHow good is it?"


def make(model: str, size: int, question: str = QUESTION, dims: tuple | list = ("overall",),
         weights: tuple | list | None = None, columns: int = 2048, dtype: str = "bfloat16",
         remat: bool | str = False) -> Reward:
  """Args:
    size: pixels of a side of the pictures. question: a text with the place {prompt}. columns: of the whole question at
      most, picture and template included. dims, weights: as of scalar.py.
    dtype: of the network and its parameters, the head is float32; remat: see layers.remat.

  Returns: Reward of media [B size size C] in [0, 1], C 1 or 3, with one part a name of dims. Raises ValueError for a
  folder of another class, a question without its place, an empty prompt, pictures of another size.
  """
  dims, factors = scalar.named(dims, weights)
  if question.count("{prompt}") != 1:
    raise ValueError(f"question = {question!r} must hold {{prompt}} once, where a picture's text belongs; put it there")
  opened = vlm.open_(model, dtype=dtype, remat=remat)
  picture = {"type": "image", "image": np.zeros((size, size, 3), np.uint8)}

  def arrays(prompts, blank=True):
    empty = next((p for p in prompts if not p.strip()), None)
    if empty is not None:
      raise ValueError(f"prompt = {empty!r} is empty, but a picture is judged by it; leave this record out")
    said = [{"type": "text", "text": question.replace("{prompt}", p)} for p in prompts]
    seen = {}
    rows = [vlm.row(opened, [{"role": "user", "content": [picture, text]}], seen=seen) for text in said]
    return vlm.each(opened, rows, columns, blank=blank)

  _, *shape = arrays(["a picture"], False)["pixels"].shape  # [S T H W 3] of each sample
  entry = f"asked of {opened.root} by a head: {question}"   # several judges share a batch

  def init(key):
    body, head = jax.random.split(key)
    return {"net": vlm.fresh(opened, body, dtype), "head": scalar.head(head, opened.net.width, len(dims))}

  def prepare(batch):
    return {**batch, entry: arrays(list(batch["prompt"]))}

  def score(view, batch, media, keys):
    given = {**batch[entry], "pixels": unified.pictures(opened, media, None, size, shape)}
    asked = vlm.prompt(opened.net, view["net"], given)
    hidden, _ = opened.net.apply({"params": view["net"]}, None, asked.prefix, asked.mask, None, asked.positions)
    return scalar.scores(view["head"], decode.last(hidden, asked.mask), dims, factors)

  return Reward(init, prepare, score, "gradient", None)
