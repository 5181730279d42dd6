"""Released reward checkpoints become folders and files that the rewards read; everything else is refused."""
import os

import encoders
import folders
import jax
import numpy as np
import pytest
import torch
from commands import command
from published import tensors

from diffusion import eyes, weights
from diffusion.convert import blip, core
from rewards import aesthetic, convert

BLIP = {"architectures": ["ImageReward"], "head": [6, 5, 4, 3],
        "vision_config": {"image_size": 8, "patch_size": 4, "hidden_size": 64, "intermediate_size": 12,
                          "num_hidden_layers": 2, "num_attention_heads": 1},
        "text_config": {"vocab_size": 17, "max_position_embeddings": 9, "hidden_size": 64, "intermediate_size": 10,
                        "num_hidden_layers": 1, "num_attention_heads": 1}}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  """(folder of a tokenizer, number of its words)."""
  place = tmp_path_factory.mktemp("words")
  made, count = folders.clip_tokenizer(place / "files", "<|endoftext|>")
  made.save_pretrained(place / "saved")
  return place / "saved", count


def test_hps(words, tmp_path):
  """As it is distributed: what training left around the weights, and the names of several devices."""
  module = encoders.clip_model(words[1], width=64, heads=1, activation="gelu")
  state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
  held = {f"module.{name}": torch.tensor(value) for name, value in encoders.openclip(state).items()}
  torch.save({"epoch": 1, "name": "hps", "state_dict": held}, tmp_path / "HPS_v2.1_compressed.pt")
  made = convert.convert(str(tmp_path / "HPS_v2.1_compressed.pt"), None, str(words[0]))
  assert made == tmp_path / "HPS_v2.1_compressed"
  back = tensors(made / "model.safetensors")
  assert back.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, back, state)
  opened = eyes.open_(made)
  net = opened.net
  assert (net.vision.activation, net.text.activation, net.text.end) == ("gelu", "gelu", words[1] - 1)
  assert opened.processor.sides == (8, 8) and (eyes.words(opened)(["a red dog"])[0] == words[1] - 1).any()
  quick = convert.convert(str(tmp_path / "HPS_v2.1_compressed.pt"), str(tmp_path / "quick"), None, "quick_gelu")
  assert eyes.open_(quick).net.vision.activation == "quick_gelu"
  with pytest.raises(ValueError, match="holds no tokenizer"):
    eyes.words(eyes.open_(quick))


def test_image_reward(tmp_path):
  layout, rng, held = blip.make(BLIP), np.random.default_rng(0), {}
  want = {name: rng.normal(size=shape).astype(np.float32) for name, shape in core.names(layout).items()}
  for name, value in want.items():
    fused = name.replace(".attn.q.", ".attn.qkv.") if name.startswith(blip.VISION) else name
    if fused != name:
      value = np.concatenate([want[name.replace(".attn.q.", f".attn.{one}.")] for one in "qkv"])
    if not (name.startswith(blip.VISION) and (".attn.k." in name or ".attn.v." in name)):
      held[fused] = torch.tensor(value)
  held["blip.text_encoder.embeddings.position_ids"] = torch.arange(9)[None]
  held["blip.vision_proj.weight"] = torch.zeros(2, 64)
  torch.save(held, tmp_path / "ImageReward.pt")
  made = convert.convert(str(tmp_path / "ImageReward.pt"), str(tmp_path / "out"))
  back = tensors(made / "model.safetensors")
  assert back.keys() == want.keys()
  jax.tree.map(np.testing.assert_array_equal, back, want)
  assert eyes.open_(made).net == layout.net


def test_aesthetic_head(tmp_path):
  widths = (12, 10, 8, 6, 4, 1)
  held = {}
  for i, a, b in zip(aesthetic.PLACES, widths, widths[1:], strict=False):
    held |= {f"layers.{i}.weight": torch.randn(b, a), f"layers.{i}.bias": torch.randn(b)}
  torch.save(held, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
  made = convert.convert(str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth"))
  assert made == tmp_path / "sac+logos+ava1-l14-linearMSE.safetensors"
  layers = aesthetic.layers_of(str(made), 12)
  np.testing.assert_array_equal(layers["fc4"]["kernel"], held["layers.7.weight"].numpy().T)
  assert convert.convert(str(made), str(tmp_path / "again")) == tmp_path / "again" / made.name


class Danger:
  """What a pickle can do when it is read."""
  def __reduce__(self):
    return os.mkdir, ("ran",)


def test_refusals(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  torch.save({"net": Danger()}, "danger.pt")
  torch.save({"layers.0.weight": torch.zeros(2, 2)}, "relu.pth")
  torch.save({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}, "half.pt")
  torch.save({"steps": 3, "vectors": torch.zeros(2)}, "mixed.pt")
  (tmp_path / "empty.pt").touch()
  (tmp_path / "cut.pt").write_bytes((tmp_path / "mixed.pt").read_bytes()[:-99])
  (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
  for file, told in (("empty.pt", r"empty.pt cannot be read safely \(EOFError\); .* or copy this file again"),
                     ("cut.pt", r"cut.pt cannot be read safely \(RuntimeError: .*failed reading zip archive"),
                     ("text.pt", r"text.pt cannot be read safely \([\w.]+Error: Weights only load failed\); it must"),
                     ("danger.pt", "cannot be read safely .*; it must hold tensors alone: get the model as"),
                     ("relu.pth", "holds 1 tensors, layers.0.weight ..., which are none of: a CLIP in OpenCLIP's"),
                     ("half.pt", "must have visual.positional_embedding, but this one begins with visual.conv1"),
                     ("mixed.pt", "holds something else than named tensors; get the model as .safetensors"),
                     ("nowhere.pt", "'nowhere.pt' is no file; give a .pt, .pth, .bin or .safetensors file")):
    with pytest.raises(ValueError, match=told):
      convert.convert(file)
  with pytest.raises(ValueError, match="--tokenizer = '.' holds none of tokenizer.json, vocab.json, vocab.txt; "):
    convert.convert("relu.pth", None, ".")
  assert not (tmp_path / "ran").exists()


def test_a_wrong_shape_is_told(words, tmp_path):
  module = encoders.clip_model(words[1], width=64, heads=1)
  state = encoders.openclip({name: value.detach().numpy() for name, value in module.state_dict().items()})
  weights.save(tmp_path / "clip.safetensors", {**state, "logit_bias": np.zeros((), np.float32)})
  with pytest.raises(ValueError, match="1 not known: logit_bias"):
    convert.convert(str(tmp_path / "clip.safetensors"))


def test_command(tmp_path):
  torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
  code, said = command("rewards.convert", "other.pt", where=tmp_path)
  assert code == 2 and said.startswith("error: convert: 'other.pt' holds 1 tensors, a ..., which are none of")


def test_main(tmp_path, capsys):
  rows = {f"layers.{i}.{word}": torch.zeros(1, 1) if word == "weight" else torch.zeros(1)
          for i in aesthetic.PLACES for word in ("weight", "bias")}
  torch.save(rows, tmp_path / "head.pth")
  assert convert.main([str(tmp_path / "head.pth")]) == 0
  assert capsys.readouterr().out == f"{tmp_path / 'head.safetensors'}\n"
  assert sorted(weights.load(tmp_path / "head.safetensors")) == sorted(rows)
