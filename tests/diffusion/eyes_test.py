"""Folders of public encoders: opened, saved and refused; pictures of odd sizes as published processors cut them."""
import json
import shutil

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from align import assemble
from diffusion import eyes, folder, pixels

ODD = [(41, 23), (16, 16), (9, 30), (7, 5), (64, 65)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return encoders.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
  return encoders.dinov2(tmp_path_factory.mktemp("dino"))


@pytest.fixture
def copy(clip, tmp_path):
  return shutil.copytree(clip[0], tmp_path / "copy")


def edit(path, **change):
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def picture(sides, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*sides, 3)).astype(np.uint8)


@pytest.mark.parametrize("sides", ODD)
@pytest.mark.parametrize("kind", ["clip", "bit", "bilinear"])
def test_pictures_are_those_of_the_published_processors(kind, sides):
  """The host's exactly, the device's up to what rounding to 256 levels loses."""
  shape = {"size": {"shortest_edge": 17}, "crop_size": {"height": 15, "width": 15}}
  shape |= {"resample": 2} if kind == "bilinear" else {}
  made = (BitImageProcessorPil if kind == "bit" else CLIPImageProcessorPil)(**shape)
  named = {"image_processor_type": type(made).__name__, **json.loads(made.to_json_string()), **shape}
  ours, shown = eyes.processor(named), picture(sides)
  want = made(Image.fromarray(shown), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
  assert ours.sides == (15, 15)
  np.testing.assert_allclose(ours.host(shown), want, atol=2e-6)
  np.testing.assert_array_equal(ours.host(Image.fromarray(shown)), ours.host(shown))
  device = np.asarray(ours.device(jnp.asarray(shown[None], jnp.float32) / 255))[0]
  assert np.abs((device - want) * np.array(made.image_std)).max() <= 1.01 / 255


def test_sides_of_long_pictures():
  """As transformers rounds the longer side: down."""
  at = lambda high, wide: eyes.framed(np.zeros((1, high, wide, 3)), "crop", 224, (224, 224), 3,
                                      (np, lambda media, h, w, resample: np.zeros((1, h, w, 3)) + [h, w, 0]))
  np.testing.assert_array_equal(at(333, 1000)[0, 0, 0], [224, 672, 0])
  np.testing.assert_array_equal(at(999, 512)[0, 0, 0], [437, 224, 0])


@pytest.mark.parametrize("sides", [(41, 23), (9, 30), (12, 12), (5, 15)])
def test_padding_is_that_of_hpsv2(sides):
  """Against its steps in torch, where bicubic with antialiasing scales floats; bars are black before normalising."""
  shown, side = picture(sides), 15
  ours = eyes.processor({"image_processor_type": "CLIPImageProcessor", "size": side, "crop_size": side}, "pad")
  tensor = torch.tensor(shown.transpose(2, 0, 1)[None] / 255, dtype=torch.float32)
  scaled = tuple(round(n * (side / max(sides))) for n in sides)
  tensor = torch.nn.functional.interpolate(tensor, size=scaled, mode="bicubic", align_corners=False, antialias=True)
  gaps = [side - n for n in scaled]
  tensor = torch.nn.functional.pad(tensor, (gaps[1] // 2, gaps[1] - gaps[1] // 2, gaps[0] // 2,
                                            gaps[0] - gaps[0] // 2))
  want = (tensor[0].numpy().transpose(1, 2, 0) - np.array(pixels.MEAN)) / np.array(pixels.STD)
  np.testing.assert_allclose(ours.device(jnp.asarray(shown[None] / 255, jnp.float32))[0], want, atol=1e-4)
  np.testing.assert_allclose(ours.host(shown), want, atol=1e-4)


def test_stretching_keeps_no_aspect():
  ours = eyes.processor({"image_processor_type": "BlipImageProcessor", "size": {"height": 6, "width": 4}})
  want = np.asarray(Image.fromarray(picture((9, 13))).resize((4, 6), 3))
  np.testing.assert_allclose(ours.host(picture((9, 13))), (want / 255 - pixels.MEAN) / np.array(pixels.STD), atol=1e-5)


def test_grey_pictures_are_shown_in_colour():
  ours = eyes.processor({"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 8})
  grey = jnp.asarray(np.random.default_rng(0).random((2, 12, 9, 1)), jnp.float32)
  np.testing.assert_array_equal(ours.device(grey), ours.device(jnp.repeat(grey, 3, -1)))


def test_vectors_are_those_of_the_published_model(clip, dino):
  shown = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)
  for found, mean, std in ((clip, pixels.MEAN, pixels.STD), (dino, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
    opened = eyes.open_(found[0])
    params = eyes.load(opened)
    square = opened._replace(processor=eyes.processor(
      {"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 8, "image_mean": mean, "image_std": std}))
    given = published.channels_first((np.asarray(shown) - np.array(mean)) / np.array(std)).float()
    if found is clip:
      want = clip[1].visual_projection(clip[1].vision_model(given).pooler_output)
    else:
      want = dino[1](given).pooler_output
    want = want / want.norm(dim=-1, keepdim=True)
    published.close(jax.jit(lambda p, o=square: eyes.see(o, p, shown))(params), want, 2e-5)


def test_words_are_padded_cut_and_counted_as_published(clip, caplog):
  opened = eyes.open_(clip[0])
  ids = eyes.words(opened)(["a red dog", "cat", "a red dog " * 20])
  start, end = opened.net.text.vocab - 2, opened.net.text.vocab - 1
  assert ids.shape == (3, 16) and set(ids[:, 0]) == {start} and ids[2, -1] == end and end not in ids[2, :-1]
  assert (ids[1, 2:] == end).all() and "is cut" in caplog.text
  assert eyes.words(opened, 5)(["cat"]).shape == (1, 5)
  said = clip[1].text_projection(clip[1].text_model(torch.tensor(ids[:2], dtype=torch.long)).pooler_output)
  said = said / said.norm(dim=-1, keepdim=True)
  published.close(jax.jit(lambda p: eyes.read(opened, p, jnp.asarray(ids[:2])))(eyes.load(opened)), said, 1e-5)


def test_what_is_saved_is_opened_again(clip, tmp_path):
  opened = eyes.open_(clip[0])
  params = eyes.load(opened)
  changed = {**params, "logit_scale": params["logit_scale"] + 1}
  eyes.save(opened, changed, tmp_path / "export")
  assert eyes.at(tmp_path) == tmp_path / "export" and eyes.at(clip[0]) == clip[0] and eyes.at(tmp_path / "no") is None
  again = eyes.open_(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, eyes.load(again), changed)
  assert again.processor.sides == (8, 8) and eyes.words(again)(["cat"]).shape == (1, 16)
  held, back = (published.tensors(f / "model.safetensors") for f in (clip[0], tmp_path / "export"))
  assert {n: (a.shape, a.dtype) for n, a in held.items()} == {n: (a.shape, a.dtype) for n, a in back.items()}
  with pytest.raises(ValueError, match="is the folder that was opened; choose another one to write to"):
    eyes.save(opened, params, clip[0])


def test_a_reward_begins_from_the_folder_that_it_names(clip, dino):
  """Also inside a mixture, and inside a mixture of that."""
  view, other = ({"net": eyes.load(eyes.open_(path))} for path in (clip[0], dino[0]))
  own, beside = {"name": "clip", "model": str(clip[0])}, {"name": "reconstruction", "model": str(dino[0])}
  deep = {"name": "mix", "rewards": {"a": own, "b": {"name": "mix", "rewards": {"c": beside}}, "d": {"name": "jpeg"}}}
  where = assemble.Place({"reward": {"a": view, "b": {"c": other}}}, None, "")
  assert assemble.begun(where, None, deep) == {"reward/a": str(clip[0]), "reward/b/c": str(dino[0])}
  assert assemble.begun(assemble.Place({"reward": view}, None, ""), None, own) == {"reward": str(clip[0])}
  assert assemble.begun(assemble.Place({"policy": {}}, None, ""), None, own) == {}  # it has no parameters in this run
  laid = jax.tree.map(lambda a: jax.sharding.SingleDeviceSharding(jax.devices()[0]), where.shapes)
  found = assemble.load_start(where.shapes, assemble.begun(where, None, deep), laid)
  np.testing.assert_array_equal(found["reward/a/net/logit_scale"], view["net"]["logit_scale"])
  np.testing.assert_array_equal(found["reward/b/c/net/mask"], other["net"]["mask"])
  assert len(found) == len(jax.tree.leaves(where.shapes))
  half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), view)
  assert {a.dtype for a in jax.tree.leaves(folder.load(str(clip[0]), "reward", like=half))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("file,change,words", [
  ("config.json", {"architectures": ["SiglipModel"]}, "architectures = ['SiglipModel'] in "),
  ("config.json", {"architectures": ["SiglipModel"]}, "is not one of CLIPModel, CLIPVisionModelWithProjection, Dino"),
  ("config.json", {"vision_config": {"image_size": 12, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24,
                                     "num_attention_heads": 2, "num_hidden_layers": 2}}, "of another shape"),
  ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"}, "image_processor_type = 'ViTImageProcesso"
   "r' in preprocessor_config.json is not supported, only CLIPImageProcessor"),
  ("preprocessor_config.json", {"do_normalize": False}, "do_normalize = False in preprocessor_config.json is not supp"),
  ("preprocessor_config.json", {"size": {"shortest_edge": 7}}, "size = {'shortest_edge': 7} and crop_size = {'height': "
   "8, 'width': 8} in preprocessor_config.json must be a shortest edge and no more than it"),
  ("preprocessor_config.json", {"do_center_crop": False}, "without a crop, a height and a width; use a model where th"),
  ("preprocessor_config.json", {"crop_size": 6}, "makes pictures of 6 x 6 pixels, but image_size = 8 in config.json; "
   "they must be the same: copy both files from one model"),
])
def test_refusals(copy, file, change, words):
  edit(copy / file, **change)
  with pytest.raises(ValueError) as error:
    eyes.open_(copy)
  assert words in str(error.value)


def silent(*_, **__):
  raise EOFError


def test_refuses_a_tokenizer_over_which_the_library_stumbles_without_a_word(copy, monkeypatch):
  monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", silent)
  with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be read \(EOFError\); the folder must hold"):
    eyes.words(eyes.open_(copy))


def test_refusals_of_folders_and_options(copy, tmp_path, dino):
  with pytest.raises(ValueError, match="config.json cannot be read; it must be a JSON file of a folder in transform"):
    eyes.open_(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="is not one of CLIPModel; use a checkpoint of one of these classes"):
    eyes.open_(dino[0], ("CLIPModel",))
  with pytest.raises(ValueError, match="frame = 'zoom' is not one of crop, stretch, pad; choose one of them, or None"):
    eyes.open_(copy, frame="zoom")
  for name in ("tokenizer.json", "vocab.json"):
    (copy / name).unlink(missing_ok=True)
  with pytest.raises(ValueError, match="holds no tokenizer, one of tokenizer.json, vocab.json, vocab.txt; copy it th"):
    eyes.words(eyes.open_(copy))
  (copy / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="the tokenizer of .* cannot be read .*; the folder must hold a whole one"):
    eyes.words(eyes.open_(copy))
  held = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps({"architectures": ["Dinov2Model"]}))
  with pytest.raises(ValueError, match="has no entry 'hidden_size', which Dinov2Model needs; copy the folder again"):
    eyes.open_(copy)
  (copy / "config.json").write_text(json.dumps(held))
  (copy / "preprocessor_config.json").unlink()
  with pytest.raises(ValueError, match="preprocessor_config.json cannot be read .*; it must say how pictures are pre"):
    eyes.open_(copy)


@pytest.mark.parametrize("media,words", [
  (np.zeros((2, 4, 8, 8, 3), np.float32), "must be pictures, floats [B H W C] in 0..1 with 1 or 3 channels; choose a"),
  (np.zeros((2, 8, 8, 2), np.float32), "media of shape (2, 8, 8, 2) and type float32 must be pictures"),
  (np.zeros((2, 8, 8, 3), np.uint8), "of clips the frames to look at"),
])
def test_refusals_of_media(media, words):
  with pytest.raises(ValueError) as error:
    eyes.coloured(media)
  assert words in str(error.value)
