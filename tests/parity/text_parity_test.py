"""The text encoder against transformers' CLIPTextModel with the same random weights."""
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusion.nets import text

transformers = pytest.importorskip("transformers")

RULES = [
  (r".*text_model\.", ""), (r"embeddings\.token_embedding\.weight", "token/embedding"),
  (r"embeddings\.position_embedding\.weight", "position"), (r"encoder\.layers\.(\d+)\.", r"layer_\1/"),
  (r"self_attn\.([qkv])_proj", r"\1"), (r"self_attn\.out_proj", "out"), (r"layer_norm1", "norm1"),
  (r"layer_norm2", "norm2"), (r"mlp\.", ""), (r"final_layer_norm", "norm"), (r"text_projection", "projection"),
]


def renamed(state: dict) -> dict:
  tree = {}
  for name, value in state.items():
    array = value.numpy()
    for pattern, to in RULES:
      name = re.sub(pattern, to, name)
    *path, leaf = re.split(r"[./]", name)
    if leaf == "weight":
      leaf, array = ("scale", array) if array.ndim == 1 else ("kernel", array.T)
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(array)
  return tree


@pytest.mark.parametrize("activation,projection,skip", [("quick_gelu", 0, 0), ("gelu", 12, 1)])
def test_same_as_clip(activation, projection, skip):
  torch.manual_seed(0)
  config = transformers.CLIPTextConfig(vocab_size=40, hidden_size=32, intermediate_size=128, num_hidden_layers=3,
                                       num_attention_heads=4, max_position_embeddings=10, hidden_act=activation,
                                       projection_dim=12, bos_token_id=38, eos_token_id=39, pad_token_id=39)
  kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
  module = kind(config).eval()
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  tokens = np.array([[38, 5, 6, 39, 39, 39, 39, 39, 39, 39], [38, 1, 2, 3, 4, 5, 6, 7, 8, 39]], np.int32)
  with torch.no_grad():
    out = module(torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
  pooled = out.text_embeds if projection else out.pooler_output
  context = out.hidden_states[-1 - skip] if skip else out.last_hidden_state
  net = text.make("clip_l", vocab=40, length=10, width=32, depth=3, heads=4, activation=activation, end=39,
                  projection=projection, skip=skip)
  got, got_pooled = net.apply({"params": renamed(module.state_dict())}, tokens, np.ones(tokens.shape, bool))
  assert np.abs(np.asarray(got) - context.numpy()).max() <= 1e-5
  assert np.abs(np.asarray(got_pooled) - pooled.numpy()).max() <= 1e-5
