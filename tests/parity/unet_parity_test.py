"""The U-Net against diffusers' UNet2DConditionModel with the same random weights."""
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusion.nets import layers, unet

diffusers = pytest.importorskip("diffusers")

RULES = [  # diffusers' names -> ours
  (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", r"down_\1_shrink"),
  (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1_\2_\3_res/"),
  (r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", r"\1_\2_\3_attn/"),
  (r"up_blocks\.(\d+)\.upsamplers\.0\.conv", r"up_\1_grow"),
  (r"mid_block\.resnets\.(\d)\.", r"mid_\1_res/"), (r"mid_block\.attentions\.0\.", "mid_attn/"),
  (r"time_embedding\.linear_1", "time/in"), (r"time_embedding\.linear_2", "time/out"),
  (r"add_embedding\.linear_1", "pooled_text/in"), (r"add_embedding\.linear_2", "pooled_text/out"),
  (r"time_emb_proj", "time"), (r"conv_shortcut", "shortcut"), (r"conv_norm_out", "norm_out"),
  (r"transformer_blocks\.(\d+)\.", r"block_\1/"), (r"attn1\.", "self/"), (r"attn2\.", "cross/"),
  (r"to_out\.0", "out"), (r"to_([qkv])", r"\1"), (r"ff\.net\.0\.proj", "ff_in"), (r"ff\.net\.2", "ff_out"),
]
DENSE = ("proj_in", "proj_out", "shortcut")


def renamed(state: dict, levels: int) -> dict:
  """A torch state dict -> our nested parameters; diffusers counts the up blocks from the deepest."""
  tree = {}
  for name, value in state.items():
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
    for pattern, to in RULES:
      name = re.sub(pattern, to, name)
    *path, leaf = re.split(r"[./]", name)
    array = value.numpy()
    if leaf == "weight":
      leaf = "scale" if array.ndim == 1 else "kernel"
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
      array = array[0, 0] if path[-1] in DENSE and array.ndim == 4 else array
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(array)
  return tree


def shaken(module):
  """Every parameter moved, so that no norm is the identity and no bias is zero."""
  torch.manual_seed(0)
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.02))
  return module.eval()


CASES = {
  "sd15": (dict(block_out_channels=(16, 32, 32), layers_per_block=2, attention_head_dim=4, cross_attention_dim=24,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")),
           dict(widths=(16, 32, 32), depth=(1, 1, 0), alone=(True,) * 3, head=(4, 8, 8))),
  "sd21": (dict(block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=(2, 8), cross_attention_dim=12,
                down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
                use_linear_projection=True, transformer_layers_per_block=2),
           dict(widths=(16, 32), layers=1, depth=(2, 2), alone=(True,) * 2, head=(8, 4))),
  "sdxl": (dict(block_out_channels=(16, 32, 64), layers_per_block=1, attention_head_dim=(2, 4, 8),
                cross_attention_dim=20,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
                transformer_layers_per_block=(1, 2, 3), addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=10 + 6 * 8),
           dict(widths=(16, 32, 64), layers=1, depth=(0, 2, 3), alone=(True,) * 3, head=(8,) * 3, pooled=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_diffusers(name):
  theirs, ours = CASES[name]
  module = diffusers.UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4, **theirs)
  shaken(module)
  rng = np.random.default_rng(0)
  x, t = rng.normal(size=(3, 16, 8, 4)).astype(np.float32), np.array([3.0, 500.0, 999.0], np.float32)
  context = rng.normal(size=(3, 7, theirs["cross_attention_dim"])).astype(np.float32)
  mask = np.arange(7) < np.array([[7], [3], [1]])
  text, ids = rng.normal(size=(3, 10)).astype(np.float32), np.tile(np.arange(6, dtype=np.float32) * 100, (3, 1))
  with torch.no_grad():
    added = {"text_embeds": torch.tensor(text), "time_ids": torch.tensor(ids)} if "pooled" in ours else None
    want = module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), torch.tensor(context),
                  encoder_attention_mask=torch.tensor(mask), added_cond_kwargs=added).sample.numpy()
  pooled = jnp.concatenate([text, layers.sinusoid(ids.reshape(-1), 8).reshape(3, -1)], -1)
  params = {"params": renamed(module.state_dict(), len(ours["widths"]))}
  got = unet.make("sd15", groups=4, **ours).apply(params, x, t, context, mask, pooled)
  error = np.abs(np.asarray(got).transpose(0, 3, 1, 2) - want).max()
  assert np.abs(want).max() > 0.1
  assert error <= 1e-4, error
