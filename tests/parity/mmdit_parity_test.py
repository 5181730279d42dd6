"""The MMDiT against diffusers' SD3Transformer2DModel with the same random weights."""
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusion.nets import mmdit

diffusers = pytest.importorskip("diffusers")

RULES = [
  (r"pos_embed\.proj", "patch_in"), (r"time_text_embed\.timestep_embedder\.linear_1", "time/in"),
  (r"time_text_embed\.timestep_embedder\.linear_2", "time/out"),
  (r"time_text_embed\.text_embedder\.linear_1", "pooled_text/in"),
  (r"time_text_embed\.text_embedder\.linear_2", "pooled_text/out"), (r"context_embedder", "context_in"),
  (r"norm1_context\.linear", "c_mod"), (r"norm1\.linear", "x_mod"), (r"norm_out\.linear", "mod_out"),
  (r"proj_out", "patch_out"), (r"attn\.to_([qkv])", r"x_qkv/\1"), (r"attn\.add_([qkv])_proj", r"c_qkv/\1"),
  (r"attn\.norm_added_([qk])", r"c_qkv/\1_norm"), (r"attn\.norm_([qk])", r"x_qkv/\1_norm"),
  (r"attn\.to_out\.0", "x_out"), (r"attn\.to_add_out", "c_out"), (r"attn2\.to_([qkv])", r"dual_qkv/\1"),
  (r"attn2\.norm_([qk])", r"dual_qkv/\1_norm"), (r"attn2\.to_out\.0", "dual_out"),
  (r"ff_context\.net\.0\.proj", "c_mlp/in"), (r"ff_context\.net\.2", "c_mlp/out"),
  (r"ff\.net\.0\.proj", "x_mlp/in"), (r"ff\.net\.2", "x_mlp/out"),
]


def renamed(state: dict, depth: int, dual: int) -> dict:
  """A torch state dict -> our nested parameters; equal blocks are stacked."""
  flat, stacks = {}, {}
  for name, value in state.items():
    if name == "pos_embed.pos_embed":
      continue
    array = value.numpy()
    if name == "pos_embed.proj.weight":  # [out in p p] -> rows of (p, p, in)
      array = array.transpose(0, 2, 3, 1).reshape(array.shape[0], -1)
    block = re.match(r"transformer_blocks\.(\d+)\.", name)
    name = name[block.end():] if block else name
    for pattern, to in RULES:
      name = re.sub(pattern, to, name)
    name = name.replace(".", "/")
    if name.endswith("/weight"):
      name, array = (name[:-6] + "scale", array) if array.ndim == 1 else (name[:-6] + "kernel", array.T)
    index = int(block[1]) if block else None
    if block is None:
      flat[name] = array
    elif index == depth - 1:
      flat[f"last_block/{name}"] = array
    else:
      stacks.setdefault(f"{'dual_blocks' if index < dual else 'blocks'}/{name}", []).append(array)
  tree = {}
  for name, array in {**flat, **{k: np.stack(v) for k, v in stacks.items()}}.items():
    *path, leaf = name.split("/")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(array)
  return tree


@pytest.mark.parametrize("norm,depth,heads,dual", [(None, 3, 4, 0), ("rms_norm", 2, 2, 0), ("rms_norm", 4, 2, 2)])
def test_same_as_diffusers(norm, depth, heads, dual):
  torch.manual_seed(0)
  module = diffusers.SD3Transformer2DModel(
    sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=depth, attention_head_dim=8,
    num_attention_heads=heads, joint_attention_dim=12, caption_projection_dim=8 * heads, pooled_projection_dim=10,
    pos_embed_max_size=12, qk_norm=norm, dual_attention_layers=tuple(range(dual))).eval()
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  rng = np.random.default_rng(0)
  x, t = rng.normal(size=(3, 12, 8, 4)).astype(np.float32), np.array([3.0, 500.0, 999.0], np.float32)
  context, pooled = (rng.normal(size=s).astype(np.float32) for s in ((3, 5, 12), (3, 10)))
  with torch.no_grad():
    want = module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(context), torch.tensor(pooled),
                  torch.tensor(t)).sample.numpy()
  net = mmdit.make("sd3_medium", channels=4, width=8 * heads, depth=depth, heads=heads, dual=dual,
                   norm=norm is not None, table=12, base=4)
  params = {"params": renamed(module.state_dict(), depth, dual)}
  error = np.abs(np.asarray(net.apply(params, x, t, context, None, pooled)).transpose(0, 3, 1, 2) - want).max()
  assert np.abs(want).max() > 0.1
  assert error <= 1e-4, error
