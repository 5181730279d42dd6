"""CLIP's towers and DINOv2 with their tables of names against transformers, random weights, and OpenCLIP's names."""
import encoders
import jax
import numpy as np
import published
import pytest
import torch
from safetensors import numpy as st

from diffusion import weights
from diffusion.convert import clip_vision, core, dinov2, open_clip
from diffusion.nets import vit

transformers = pytest.importorskip("transformers")

TOKENS = np.array([[38, 5, 6, 39, 39, 39, 39], [38, 1, 2, 3, 4, 5, 39]], np.int32)
CLIPS = {  # (of the image tower, of the text tower, width of both vectors)
  "openai": ({}, {}, 8),
  "openclip": (dict(hidden_act="gelu", num_attention_heads=4), dict(hidden_act="gelu", eos_token_id=2), 12),
  "uneven": (dict(image_size=23, patch_size=5, hidden_size=24), dict(hidden_size=12, num_hidden_layers=6), 20),
  "deep": (dict(image_size=8, patch_size=8, num_hidden_layers=5), dict(num_attention_heads=1), 6),
}
DINOS = {  # (registers, options, sides of the picture)
  "square": (0, {}, (12, 12)),
  "small": (0, dict(mlp_ratio=4, hidden_act="gelu_pytorch_tanh"), (8, 8)),
  "wide": (0, dict(use_mask_token=False, patch_size=3, num_hidden_layers=5), (10, 23)),
  "registers": (2, {}, (12, 12)),
  "registers small": (1, dict(num_attention_heads=4), (8, 4)),
  "registers wide": (4, dict(patch_size=3), (9, 22)),
}
QUICK = ("openai", "wide", "registers small")
marked = lambda names: [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def clip_of(name):
  seen, said, width = CLIPS[name]
  vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8,
                patch_size=4)
  text = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, vocab_size=40,
              max_position_embeddings=9, bos_token_id=38, eos_token_id=39)
  return published.shaken(transformers.CLIPModel(transformers.CLIPConfig(
    vision_config={**vision, **seen}, text_config={**text, **said}, projection_dim=width)))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", marked(CLIPS))
def test_same_as_clip(name, tmp_path):
  module = clip_of(name)
  layout, params = published.imported(module, clip_vision.make, tmp_path)
  side = module.config.vision_config.image_size
  pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
  shown, ids = published.channels_first(pixels), torch.tensor(TOKENS, dtype=torch.long)
  out = module(pixel_values=shown, input_ids=ids)
  apply = jax.jit(lambda params: layout.net.apply({"params": params}, pixels, TOKENS))
  seen, said = map(np.asarray, apply(params))
  published.close(unit(seen), out.image_embeds, 1e-5)
  published.close(unit(said), out.text_embeds, 1e-5)
  published.close(np.exp(params["logit_scale"]) * unit(said) @ unit(seen).T, out.logits_per_text, 1e-5)
  run = lambda module: module.visual_projection(module.vision_model(shown).pooler_output)
  published.gradients_close(layout, params, lambda p: apply(p)[0], module, run)
  published.check_round_trip(module, layout, params, tmp_path)


def test_pictures_alone(tmp_path):
  module = published.shaken(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
    projection_dim=6)))
  layout, params = published.imported(module, clip_vision.make, tmp_path)
  pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  out = jax.jit(layout.net.apply)({"params": params}, pixels)
  published.close(out, module(published.channels_first(pixels)).image_embeds, 1e-5)
  published.check_round_trip(module, layout, params, tmp_path)


def test_buffers_of_older_files_are_read_and_written(tmp_path):
  module = clip_of("openai")
  layout, _ = published.imported(module, clip_vision.make, tmp_path)
  held = published.tensors(tmp_path / "model.safetensors")
  held |= {"text_model.embeddings.position_ids": np.arange(9)[None],
           "vision_model.embeddings.position_ids": np.arange(5)[None]}
  st.save_file(held, tmp_path / "model.safetensors")
  params = core.load(weights.component(tmp_path, "model"), layout)
  core.save(tmp_path / "back", "model", layout, params, {name: value.dtype for name, value in held.items()})
  back = published.tensors(tmp_path / "back" / "model.safetensors")
  assert back.keys() == held.keys()
  jax.tree.map(np.testing.assert_array_equal, back, held)


@pytest.mark.parametrize("name", marked(DINOS))
def test_same_as_dinov2(name, tmp_path):
  registers, options, sides = DINOS[name]
  folder, module = encoders.dinov2(tmp_path, registers, **options)
  layout, params = published.imported(module, dinov2.make, folder)
  pixels = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
  run = lambda module: module(published.channels_first(pixels)).last_hidden_state
  apply = jax.jit(lambda params: layout.net.apply({"params": params}, pixels))
  assert (layout.net.places == "antialias") == (registers > 0)
  published.close(apply(params), run(module), 1e-5)
  published.gradients_close(layout, params, apply, module, run)
  published.check_round_trip(module, layout, params, folder)


@pytest.mark.parametrize("old,new", [(4, 7), (7, 4), (5, 5), (3, 1), (37, 16)])
def test_same_interpolation(old, new):
  row = np.random.default_rng(0).normal(size=(1, 1, old, 1)).astype(np.float32)
  want = torch.nn.functional.interpolate(torch.tensor(row), size=(new, 1), mode="bicubic", align_corners=False)
  np.testing.assert_allclose(vit.taps(new, old) @ row[0, 0], want.numpy()[0, 0], atol=2e-6)


SIZES = {  # width, layers, heads, inner of both towers, patch, side, width of the vectors
  "clip_b32": ((768, 12, 12, 3072), (512, 12, 8, 2048), 32, 224, 512),
  "clip_l14": ((1024, 24, 16, 4096), (768, 12, 12, 3072), 14, 224, 768),
  "clip_h14": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 14, 224, 1024),
  "clip_h14_384": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 14, 378, 1024),
}


@pytest.mark.parametrize("name", SIZES)
def test_public_clips(name):
  seen, said, patch, side, width = SIZES[name]
  of = lambda sizes: dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), sizes,
                              strict=True), hidden_act=vit.VARIANTS[name]["activation"])
  parts = dict(vision_config={**of(seen), "image_size": side, "patch_size": patch}, text_config=of(said),
               projection_dim=width)
  with torch.device("meta"):
    want = transformers.CLIPModel(transformers.CLIPConfig(**parts)).state_dict()
  layout = clip_vision.make(parts)
  assert core.names(layout) == {n: tuple(v.shape) for n, v in want.items()}
  assert layout.net.vision == vit.make(name)


@pytest.mark.parametrize("name,width,depth,heads", [("dinov2_s14", 384, 12, 6), ("dinov2_b14", 768, 12, 12),
                                                    ("dinov2_l14", 1024, 24, 16)])
def test_public_dinos(name, width, depth, heads):
  sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14)
  for config, kind, more in ((transformers.Dinov2Config, transformers.Dinov2Model, {}), (
      transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel, {"num_register_tokens": 4})):
    with torch.device("meta"):
      module = kind(config(**sizes, **more))
    layout = dinov2.make({**sizes, **more, "architectures": [kind.__name__]})
    count = sum(np.prod(shape, dtype=int) for shape in core.names(layout).values())
    assert count == sum(p.numel() for p in module.parameters())
  assert dinov2.make(sizes).net == vit.make(name)


def test_openclips_names_lead_back():
  module = encoders.clip_model(40, heads=2, width=128, activation="gelu")
  state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
  theirs = encoders.openclip(state)
  assert {"visual.transformer.resblocks.1.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_proj.bias",
          "visual.ln_pre.weight", "ln_final.bias", "logit_scale", "text_projection"} < set(theirs)
  back = open_clip.renamed({**theirs, "attn_mask": np.zeros((16, 16))})
  assert back.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, back, state)
  config = open_clip.describe(theirs, "gelu")
  assert clip_vision.make(config).net == clip_vision.make(module.config.to_dict()).net
  with pytest.raises(ValueError, match="must have token_embedding.weight, but this one begins with ln_final.bias, .*; "
                                       "give a whole ViT with its text tower"):
    open_clip.describe({k: v for k, v in theirs.items() if k != "token_embedding.weight"}, "gelu")


def test_heads_of_the_huge_tower():
  shape = lambda *sides: np.broadcast_to(np.float32(0), sides)
  tensors = {"visual.conv1.weight": shape(1280, 3, 14, 14), "visual.positional_embedding": shape(257, 1280),
             "token_embedding.weight": shape(49408, 1024), "positional_embedding": shape(77, 1024),
             "visual.proj": shape(1280, 1024),
             **{f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": shape(5120, 1280) for i in range(32)},
             **{f"transformer.resblocks.{i}.mlp.c_fc.weight": shape(4096, 1024) for i in range(24)}}
  net = clip_vision.make(open_clip.describe(tensors, "gelu")).net
  assert net.vision == vit.make("clip_h14") and (net.text.depth, net.text.heads, net.text.end) == (24, 16, 49407)


@pytest.mark.parametrize("make,options,words", [
  (clip_vision.make, {"vision_config": {"hidden_act": "relu"}}, "hidden_act = 'relu' in config.json is not supported, "
   "only 'quick_gelu', 'gelu'"),
  (clip_vision.make, {"vision_config": {"num_channels": 1}}, "num_channels = 1 in config.json is not supported"),
  (clip_vision.make, {"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps = 1e-06 in config.json is not suppor"),
  (dinov2.make, {"use_swiglu_ffn": True}, "use_swiglu_ffn = True in config.json is not supported, only False; use a "
   "checkpoint without it"),
  (dinov2.make, {"qkv_bias": False}, "qkv_bias = False in config.json is not supported"),
  (dinov2.make, {"hidden_act": "relu"}, "hidden_act = 'relu' in config.json is not supported, only 'gelu'"),
])
def test_refusals(make, options, words):
  with pytest.raises(ValueError) as error:
    make(options)
  assert words in str(error.value)
