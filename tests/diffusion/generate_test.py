"""The sampler for people: images of a saved folder, what they depend on, exit codes and messages."""
import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import folder, generate, generator

PARTS = {"name": "diffusion", "net": {"name": "unet", "variant": "tiny", "layers": 1, "widths": [8], "depth": [1],
                                      "alone": [False], "head": [8]},
         "text": {"name": "text", "vocab": 128, "width": 16, "depth": 1, "heads": 2},
         "process": {"name": "flow"}, "kernel": "ode", "length": 8, "size": 8, "steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  view = jax.tree.map(lambda a: 2 * a, jax.jit(generator.build(PARTS).init)(jax.random.key(0)))
  return str(folder.save(tmp_path_factory.mktemp("run") / "export", "policy", PARTS, view).parent)


def test_images_depend_on_seed_prompt_and_sample_alone(model):
  prompts = ["a red circle", "a blue square"]
  images = generate.sample(model, prompts, samples=2, seed=3)
  assert images.shape == (2, 2, 8, 8, 3) and images.dtype == np.uint8 and images.std() > 0
  one = generate.sample(model, prompts[:1], samples=1, seed=3)
  np.testing.assert_allclose(one[0, 0].astype(int), images[0, 0].astype(int), atol=1)
  assert (images[0, 0] != images[0, 1]).any() and (generate.sample(model, prompts[:1], seed=4) != one).any()


@pytest.mark.parametrize("total, batch, devices, expected", [
  (3, 8, 1, [[0, 1, 2]]), (5, 2, 1, [[0, 1], [2, 3], [4, 4]]), (5, 3, 2, [[0, 1], [2, 3], [4, 4]]),
  (2, 16, 8, [[0, 1, 1, 1, 1, 1, 1, 1]]), (9, 1, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 8, 8, 8]])])
def test_batches_have_one_size_that_devices_divide(total, batch, devices, expected):
  assert [rows.tolist() for rows in generate.parts(total, batch, devices)] == expected


def test_batches_do_not_change_images(model):
  whole, cut = (generate.sample(model, ["a red circle"], samples=5, **more) for more in ({}, {"batch": 2}))
  np.testing.assert_allclose(whole.astype(int), cut.astype(int), atol=1)


def test_the_command_writes_a_sheet(model, tmp_path, capsys):
  out = tmp_path / "new" / "sheet.png"
  code = generate.main([f"--model={model}", "--prompt=a red circle", "--prompt=two squares", f"--out={out}",
                        "--samples=3", "--scale=2", "--steps=1"])
  assert code == 0 and Image.open(out).size == (3 * 8 * 2, 2 * 8 * 2)     # width: samples, height: prompts
  assert "2 prompts x 3 images" in capsys.readouterr().out


def test_a_sheet_has_a_row_a_prompt():
  images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
  assert np.array(generate.sheet(images, 1)).tolist() == [[0, 1, 2], [3, 4, 5]]
  assert generate.sheet(np.zeros((1, 2, 4, 4, 3), np.uint8), 3).size == (24, 12)


@pytest.mark.parametrize("option, words", [
  ("--model=/nowhere", ["error:", "'/nowhere'", "WORKDIR/export"]),
  ("--steps=0", ["error:", "--steps = 0", "at least 1"]),
  ("--samples=0", ["--samples = 0"]), ("--scale=-1", ["--scale = -1"])])
def test_refusals_are_one_line_and_code_two(model, tmp_path, capsys, option, words):
  code = generate.main([f"--model={model}", "--prompt=a red circle", f"--out={tmp_path / 'a.png'}", option])
  said = capsys.readouterr().err
  assert code == 2 and all(word in said for word in words) and said.count("\n") == 1
  assert not (tmp_path / "a.png").exists()


def test_a_model_of_words_is_refused(tmp_path, capsys):
  assert generate.main(["--model=judge", "--prompt=a", f"--out={tmp_path / 'a.png'}"]) == 2
  said = capsys.readouterr().err
  assert "model = 'judge' is a vision-language model" in said and "rewards.judge --model=judge" in said


def test_missing_options_exit_with_code_two(capsys):
  with pytest.raises(SystemExit) as stop:
    generate.main(["--prompt=a"])
  assert stop.value.code == 2 and "--model" in capsys.readouterr().err
