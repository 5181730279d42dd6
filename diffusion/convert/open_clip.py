"""OpenCLIP's and OpenAI's names of a CLIP -> those of transformers' CLIPModel, and the config.json that goes with them.

Queries, keys and values are one tensor there and three here; projections are transposed. Left out: text towers of other
kinds, ResNets, the way back.
"""
import re
from collections.abc import Mapping

import numpy as np

from diffusion.convert import clip_vision

MARK = "visual.conv1.weight"
RULES = (
  (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
  (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
  (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."), (r"^visual\.proj$", "visual_projection.weight"),
  (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."), (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
  (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
  (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
  (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
  (r"^ln_final\.", "text_model.final_layer_norm."), (r"^text_projection$", "text_projection.weight"),
  (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
  (r"\.ln_([12])\.", r".layer_norm\1."), (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
  (r"\.attn\.", ".self_attn."),
)
TURNED = ("visual.proj", "text_projection")
UNUSED = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # buffers of some releases
HEADS = {1280: 80, 1408: 88, 1664: 104}  # channels of an attention head by the image tower's width; 64 for all others


def renamed(tensors: Mapping) -> dict:
  """{their name: array} -> {name in a CLIPModel: array}."""
  out = {}
  for name, array in tensors.items():
    own = name
    for pattern, replacement in RULES:
      own = re.sub(pattern, replacement, own)
    if ".in_proj_" in own:
      parts = np.split(array, 3)
      out |= {own.replace("in_proj_", f"{one}_proj."): part for one, part in zip("qkv", parts, strict=True)}
    elif name not in UNUSED:
      out[own] = array.T if name in TURNED else array
  return out


def describe(tensors: Mapping, activation: str) -> dict:
  """The config.json of {their name: array}. activation: "gelu" or "quick_gelu", which weights do not tell. ValueError
  names what a CLIP must have."""
  def shape(name):
    if name not in tensors:
      raise ValueError(f"convert: a CLIP in OpenCLIP's names must have {name}, but this one begins with "
                       f"{', '.join(sorted(tensors)[:3])}; give a whole ViT with its text tower")
    return tensors[name].shape

  def sizes(prefix):
    inner, width = shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")
    layers = {name.split(".resblocks.")[1].split(".")[0] for name in tensors
              if name.startswith(f"{prefix}transformer.resblocks.")}
    head = HEADS.get(width, 64) if prefix else 64
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers),
            "num_attention_heads": max(width // head, 1), "hidden_act": activation}

  patch = shape(MARK)[-1]
  side = round((shape("visual.positional_embedding")[0] - 1) ** 0.5)
  vocab, length = shape("token_embedding.weight")[0], shape("positional_embedding")[0]
  width = shape("visual.proj")[1]
  return {"architectures": [clip_vision.CLASS], "model_type": "clip", "projection_dim": width,
          "vision_config": {**sizes("visual."), "model_type": "clip_vision_model", "image_size": side * patch,
                            "patch_size": patch, "projection_dim": width},
          "text_config": {**sizes(""), "model_type": "clip_text_model", "vocab_size": vocab, "projection_dim": width,
                          "max_position_embeddings": length, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1}}
