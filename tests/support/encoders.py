"""Tiny public encoders of pictures: whole folders of CLIP and DINOv2 with random weights and a made-up tokenizer."""
import json
import re

import folders
import numpy as np
import torch
import transformers
from published import shaken

from diffusion import weights
from diffusion.convert import blip, core

SIDE = 8


def clip_model(vocab, side=SIDE, activation="quick_gelu", heads=2, width=16):
  vision = dict(hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=heads,
                image_size=side, patch_size=4, hidden_act=activation)
  text = dict(hidden_size=width, intermediate_size=20, num_hidden_layers=1, num_attention_heads=heads,
              vocab_size=vocab, max_position_embeddings=16, hidden_act=activation, bos_token_id=vocab - 2,
              eos_token_id=vocab - 1)
  torch.manual_seed(1)  # else the weights depend on what ran before
  return shaken(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text,
                                                               projection_dim=12)))


def processor(folder, short, side, **options):
  made = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": short}, "resample": 3,
          "crop_size": {"height": side, "width": side}, "do_resize": True, "do_center_crop": True, **options}
  (folder / "preprocessor_config.json").write_text(json.dumps(made))


def clip(folder, **options):
  """(folder of a CLIPModel with tokenizer and processor, the module)."""
  words, vocab = folders.clip_tokenizer(folder / "words", "<|endoftext|>")
  module = clip_model(vocab, **options)
  for part in (module, words):
    part.save_pretrained(folder / "clip")
  processor(folder / "clip", SIDE, options.get("side", SIDE))
  return folder / "clip", module


def dinov2(folder, registers=0, **options):
  """(folder of a Dinov2Model or Dinov2WithRegistersModel with its processor, the module)."""
  sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=12, patch_size=4)
  config, kind = ((transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel) if registers else
                  (transformers.Dinov2Config, transformers.Dinov2Model))
  torch.manual_seed(1)
  module = shaken(kind(config(**{**sizes, **({"num_register_tokens": registers} if registers else {}), **options})))
  module.save_pretrained(folder / "dinov2")
  processor(folder / "dinov2", 10, SIDE, image_processor_type="BitImageProcessor", image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225])
  return folder / "dinov2", module


def image_reward(folder):
  """The folder of an ImageReward, whose scores differ between pictures."""
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "cat", "of", "two"]
  sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu"}
  config = {
    "architectures": ["ImageReward"], "model_type": "blip", "head": [10, 8, 6, 4],
    "vision_config": {"image_size": SIDE, "patch_size": 4, "hidden_size": 12, "intermediate_size": 16,
                      "layer_norm_eps": 1e-6, **sizes},
    "text_config": {"vocab_size": len(words), "max_position_embeddings": 40, "hidden_size": 8, "intermediate_size": 12,
                    "layer_norm_eps": 1e-12, **sizes}}
  layout, rng = blip.make(config), np.random.default_rng(0)
  drawn = lambda path, a: (0.4 * rng.normal(size=a.shape) + path.endswith("scale")).astype(np.float32)
  tree = weights.nested({path: drawn(path, a) for path, a in weights.leaves(core.shapes(layout))})
  core.save(folder / "image_reward", "model", layout, tree)
  (folder / "image_reward" / "config.json").write_text(json.dumps(config))
  (folder / "image_reward" / "vocab.txt").write_text("\n".join(words))
  processor(folder / "image_reward", SIDE, SIDE)
  return folder / "image_reward"


def openclip(state):
  """{name: array} of a CLIPModel under OpenCLIP's names."""
  back = ((r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
          (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
          (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
          (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."), (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
          (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
          (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
          (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
          (r"^text_model\.final_layer_norm\.", "ln_final."),
          (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
          (r"layer_norm", "ln_"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"self_attn", "attn"))
  out, state = {}, dict(state)
  out["visual.proj"], out["text_projection"] = (state.pop(f"{name}_projection.weight").T for name in ("visual", "text"))
  for name in [name for name in state if ".q_proj." in name]:
    parts = [state.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
    state[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
  for name, value in state.items():
    for pattern, replacement in back:
      name = re.sub(pattern, replacement, name)
    out[name] = value
  return out
