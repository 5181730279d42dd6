"""ImageReward's network against transformers' BLIP blocks (launch/scoring_peer.py), through a file of public names."""
import json

import jax
import numpy as np
import published
import pytest
import torch
from safetensors import torch as st
from torch import nn

from diffusion import eyes, weights
from diffusion.convert import blip, core
from diffusion.nets import bert
from launch import scoring_peer
from rewards import convert, image_reward

transformers = pytest.importorskip("transformers")

SEEN = dict(image_size=12, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=40)
SAID = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=11)
CASES = {  # (vision, text, head)
  "usual": ({}, {}, (10, 8, 6, 4)),
  "deep": (dict(num_hidden_layers=5), dict(num_hidden_layers=6, num_attention_heads=4), (32, 5, 3, 2)),
  "wide text": (dict(hidden_size=8, num_attention_heads=1, patch_size=3), dict(hidden_size=32), (4, 4, 4, 4)),
  "one patch": (dict(image_size=7, patch_size=7), dict(num_hidden_layers=1, intermediate_size=70), (3, 2, 9, 1)),
  "one layer": (dict(num_hidden_layers=1, intermediate_size=8), dict(max_position_embeddings=9), (16, 8, 4, 2)),
}
SLOW = [pytest.param(name, marks=() if name in ("usual", "wide text") else pytest.mark.slow) for name in CASES]
LENGTH = 9
TOKENS = np.random.default_rng(0).integers(1, 50, (3, LENGTH)).astype(np.int32)
MASK = np.arange(LENGTH) < np.array([[LENGTH], [4], [2]])


def made(vision, text, head):
  return scoring_peer.ImageReward({**SEEN, **vision}, {**SAID, **text}, head)


def public(module):
  return {scoring_peer.released(name): value for name, value in module.state_dict().items()}


def config(vision, text, head):
  vision, text = {**SEEN, **vision}, {**SAID, **text}
  return {"vision_config": vision, "text_config": text, "head": head}


def moved(module, size):
  torch.manual_seed(1)
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * size)
  return module.eval()


def both(folder, case):
  """The module with random weights, our layout, and the weights of a file made of what ImageReward.pt holds."""
  module = moved(made(*case), 0.1)
  beside = {"blip.vision_proj.weight": torch.ones(4, 4), "blip.text_proj.bias": torch.ones(4),
            "blip.text_encoder.embeddings.position_ids": torch.arange(4)[None]}
  kept = blip.renamed({name: value.detach().numpy() for name, value in {**public(module), **beside}.items()})
  weights.save(folder / "model.safetensors", kept)
  layout = blip.make(json.loads(json.dumps(config(*case))))
  return module, layout, core.load(weights.component(folder, "model"), layout)


def given(layout):
  side = layout.net.vision.image
  pixels = np.random.default_rng(1).normal(size=(3, side, side, 3)).astype(np.float32)
  theirs = published.channels_first(pixels), torch.tensor(TOKENS, dtype=torch.long), torch.tensor(MASK)
  return (pixels, TOKENS, MASK), theirs


@pytest.mark.parametrize("name", SLOW)
def test_same_as_transformers(name, tmp_path):
  """Numbers and hidden states, with padding, and the gradient in the pixels."""
  module, layout, params = both(tmp_path, CASES[name])
  ours, theirs = given(layout)
  theirs[0].requires_grad_()
  want = module(*theirs)
  run = jax.jit(jax.value_and_grad(lambda pixels: (lambda a, b: (a.sum(), (a, b)))(
    *layout.net.apply({"params": params}, pixels, *ours[1:])), has_aux=True))
  (_, got), slope = run(ours[0])
  for a, b in zip(got, want, strict=True):
    published.close(a, b, 1e-5)
  want[0].sum().backward()
  assert theirs[0].grad.abs().max() > 1e-4
  published.close(slope * 1e2, theirs[0].grad.permute(0, 2, 3, 1) * 1e2, 1e-4)
  assert np.ptp(got[0]) > 1e-3


def test_from_the_released_file_to_a_score(tmp_path):
  """Pickle, folder, tokenizer, pictures that are wider than high, prompts, the published scale: PyTorch beside it."""
  text = dict(num_attention_heads=1, max_position_embeddings=40)
  module = moved(made(dict(num_attention_heads=1), text, (10, 8, 6, 4)), 0.4)
  torch.save(public(module), tmp_path / "ImageReward.pt")
  (tmp_path / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] a red cube blue ball".split()))
  folder = convert.convert(str(tmp_path / "ImageReward.pt"), tokenizer=str(tmp_path))
  reward, prompts = image_reward.make(str(folder)), ["A red cube", "a blue, blue ball"]
  shown = np.random.default_rng(2).uniform(0.2, 0.8, (2, 16, 20, 3)).astype(np.float32)
  view = {"net": eyes.load(eyes.open_(folder))}
  given = {name: value for name, value in reward.prepare({"prompt": prompts}).items() if name != "prompt"}
  got = jax.jit(reward.score)(view, given, shown, None).total
  pixels = nn.functional.interpolate(published.channels_first(shown), (12, 15), mode="bicubic", antialias=True)
  mean, std = (torch.tensor(v)[:, None, None] for v in ((0.48145466, 0.4578275, 0.40821073),
                                                        (0.26862954, 0.26130258, 0.27577711)))
  words = transformers.BertTokenizer.from_pretrained(tmp_path)(
    prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
  with torch.no_grad():
    want, _ = module((pixels[..., 1:13] - mean) / std, words["input_ids"], words["attention_mask"])
  published.close(got, (want - 0.16717362830052426) / 1.0333394966054072, 1e-5)
  assert abs(float(want[0] - want[1])) > 1e-2


def test_without_an_image_it_is_bert(tmp_path):
  """Without cross-attention and token types, the text encoder is transformers' BertModel."""
  module = transformers.BertModel(transformers.BertConfig(**SAID), add_pooling_layer=False)
  module = published.shaken(module)
  with torch.no_grad():
    module.embeddings.token_type_embeddings.weight.zero_()
    want = module(torch.tensor(TOKENS, dtype=torch.long), attention_mask=torch.tensor(MASK)).last_hidden_state
  net = bert.make("base", vocab=50, length=11, width=16, depth=2, heads=2, inner=24)
  rules = tuple((a, b.replace("blip.text_encoder/", "")) for a, b in blip.RULES)
  rules = (("^", "text/"), *rules)
  layout = core.Layout(net, lambda: (TOKENS, MASK), rules, first={"blocks": 0})
  state = {name: value for name, value in module.state_dict().items() if "token_type" not in name}
  st.save_file(state, tmp_path / "model.safetensors")
  params = core.load(weights.component(tmp_path, "model"), layout)
  published.close(jax.jit(net.apply)({"params": params}, TOKENS, MASK), want, 1e-5)


def test_public_names_and_sizes():
  """Of ImageReward.pt, by transformers' own classes at the published sizes; `describe` finds these sizes again."""
  vision = dict(image_size=224, patch_size=16, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                intermediate_size=4096)
  text = dict(vocab_size=30524, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
              max_position_embeddings=512)
  with torch.device("meta"):
    module = made(vision, text, (1024, 128, 64, 16))
  empty = lambda shape: np.broadcast_to(np.float32(0), tuple(shape))
  held = {name: empty(value.shape) for name, value in public(module).items()}
  found = blip.describe({**held, "blip.text_encoder.embeddings.position_ids": empty((1, 512))})
  layout = blip.make(found)
  assert core.names(layout) == {name: value.shape for name, value in blip.renamed(held).items()}
  assert found["vision_config"] == {**vision, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
  assert {name: found["text_config"][name] for name in text} == text and found["head"] == [1024, 128, 64, 16]
  spelled = {  # some, as the file has them
    "blip.visual_encoder.blocks.23.attn.qkv.weight": (3072, 1024), "blip.visual_encoder.pos_embed": (1, 197, 1024),
    "blip.text_encoder.encoder.layer.11.crossattention.self.key.weight": (768, 1024), "mlp.layers.7.weight": (1, 16)}
  assert {name: held[name].shape for name in spelled} == spelled


@pytest.mark.parametrize("part, option, words", [
  ("vision_config", dict(hidden_act="relu"), "hidden_act = 'relu' in config.json is not supported, only 'gelu'"),
  ("text_config", dict(layer_norm_eps=1e-5), "layer_norm_eps = 1e-05 in config.json is not supported, only 1e-12"),
])
def test_refusals(part, option, words):
  whole = config({}, {}, (4, 4, 4, 4))
  with pytest.raises(ValueError) as error:
    blip.make({**whole, part: {**whole[part], **option}})
  assert words in str(error.value)


def test_what_is_not_image_reward():
  with pytest.raises(ValueError, match="must have blip.visual_encoder.patch_embed.proj.weight, but this one begins wi"):
    blip.describe({"a": np.zeros(1), "b": np.zeros(1)})
