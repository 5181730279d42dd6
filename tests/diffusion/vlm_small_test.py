"""A small model of our own is a folder like any other: transformers reads its network and its words, and so do we."""
import jax
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from diffusion import pictures, vlm, vlm_small
from rewards import judge

WORDS = ("Which image fits better?", "Image 1 is better", "a red circle", "Final Score: 5")
TINY = {"width": 32, "depth": 1, "tower": 1, "heads": 2}
SIZES = [TINY, {"width": 32, "depth": 2, "tower": 3, "heads": 4, "patch": 4, "merge": 2},
         {"width": 48, "depth": 2, "tower": 1, "heads": 1, "patch": 4},
         {"width": 16, "depth": 1, "tower": 2, "heads": 2, "patch": 2, "merge": 4, "seed": 3}]


def picture(side=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def talk(*images):
  return [{"role": "user", "content": [*({"type": "image", "image": i} for i in images),
                                       {"type": "text", "text": "Which image fits better? a red circle"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return vlm_small.write(tmp_path_factory.mktemp("small"), WORDS, **TINY)


@pytest.mark.parametrize("options", SIZES)
def test_the_network_is_that_of_transformers(options, tmp_path):
  vlm_small.write(tmp_path, WORDS, **options)
  p, m = (options.get(name, usual) for name, usual in (("patch", 8), ("merge", 1)))
  assert AutoConfig.from_pretrained(tmp_path).vision_config.patch_size == p
  theirs, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  model = vlm.open_(tmp_path)
  row = vlm.row(model, talk(picture(), picture(24, 1)))
  arrays = vlm.each(model, [row], len(row.ids))

  @jax.jit
  def logits(params, arrays):
    prefix = vlm.prompt(model.net, params, arrays).prefix
    hidden, _ = model.net.apply({"params": params}, None, prefix, positions=arrays["positions"])
    return model.net.apply({"params": params}, hidden, method="logits")[0]
  found = logits(vlm.load(model), arrays)
  rows = []
  for _, seen in row.shown:
    h, w = seen.extent
    patches = seen.pixels.reshape(1, 2, h, m, p, w, m, p, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    rows.append(patches.reshape(m * m * h * w, -1))
  ids = torch.tensor(row.ids.astype(np.int64))[None]
  grids = torch.tensor([[1, m * seen.extent[0], m * seen.extent[1]] for _, seen in row.shown])
  with torch.no_grad():
    wanted = theirs(input_ids=ids, pixel_values=torch.tensor(np.concatenate(rows)), image_grid_thw=grids,
                    mm_token_type_ids=(ids == model.chat.image).long()).logits[0].numpy()
  np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
  assert np.abs(wanted).max() > 0.1


def test_a_render_takes_16_tokens(folder):
  model = vlm.open_(folder)
  assert (vlm.row(model, talk(picture())).owner == 0).sum() == 16
  assert (vlm.row(model, talk(picture(16))).owner == 0).sum() == 4


@pytest.mark.parametrize("text, count", [
  ("Which image fits better?", 5), ("Image 1 is better", 4), (" red circle", 2), ("Final Score: 5", 4), ("10", 2),
  ("user", 1), ("assistant", 1), ("<answer>Image 2 is better</answer>", 6), ("two\nlines", 9), ("unknown wörds", None)])
def test_every_text_comes_back_and_known_words_are_one_token(folder, text, count):
  spoken = vlm.open_(folder).chat
  ids = spoken.encode(text)
  assert spoken.decode(ids) == text and count in (len(ids), None)
  assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids


def test_the_same_seed_writes_the_same_folder(folder, tmp_path):
  again = vlm_small.write(tmp_path / "a", WORDS[::-1], **TINY)
  other = vlm_small.write(tmp_path / "b", WORDS, **TINY, seed=1)
  for file in sorted(p.name for p in folder.iterdir()):
    assert (folder / file).read_bytes() == (again / file).read_bytes()
  assert (folder / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_command_line_talks_to_it(folder, tmp_path, capsys):
  file = tmp_path / "a.png"
  pictures.Image.fromarray(picture()).save(file)
  given = [f"--model={folder}", "--chat=Which image?", "--length=3", "--dtype=float32", str(file)]
  assert judge.main(given) == 0 and '"tokens"' in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"width": 36}, {"depth": 0}, {"tower": 0}])
def test_sizes_that_do_not_fit_are_refused(options, tmp_path):
  with pytest.raises(ValueError, match="all must be at least 1, and width a multiple of 8"):
    vlm_small.write(tmp_path, WORDS, **options)


@pytest.mark.parametrize("options", [{"patch": 0}, {"merge": 0}, {"patch": 5}, {"patch": 8, "merge": 3}])
def test_patches_that_do_not_fit_are_refused(options, tmp_path):
  with pytest.raises(ValueError, match="must be at least 1, and 32 pixels a multiple of their product"):
    vlm_small.write(tmp_path, WORDS, **options)
