"""A scalar head on a public vision-language model: PyTorch's last state, its slope, and training by the command."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import vlms
from PIL import Image

from align import main
from diffusion import folder as weights_of
from diffusion import vlm
from rewards import scalar_chat

PROMPTS, SIZE = ["a dog", "two red cubes on a table"], 56
BYTES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
MEDIA = BYTES.astype(np.float32) / 255


@pytest.fixture(scope="module", params=["qwen", "llava"])
def pair(request, tmp_path_factory):
  """(the folder, transformers' model, the reward, its view with a head that is not near zero)."""
  folder = tmp_path_factory.mktemp(request.param)
  theirs, _ = (vlms.qwen if request.param == "qwen" else vlms.llava)(folder, seed=3)
  made = scalar_chat.make(str(folder), SIZE, columns=256, dims=("look", "text"), weights=(2.0, -1.0), dtype="float32")
  head = {"kernel": jax.random.normal(jax.random.key(1), (32, 2)), "bias": jnp.array([.5, 0])}
  return folder, theirs, made, {"net": vlm.load(vlm.open_(folder)), "head": head}


def scored(made, view, prompts=PROMPTS, media=MEDIA):
  asked = {k: v for k, v in made.prepare({"prompt": prompts}).items() if isinstance(v, dict)}
  return jax.jit(lambda media: made.score(view, asked, media, None))(jnp.asarray(media))


def test_numbers_are_read_from_the_state_before_the_answer(pair):
  folder, theirs, made, view = pair
  found, opened = scored(made, view), vlm.open_(folder)
  for i, prompt in enumerate(PROMPTS):
    shown = {"type": "image", "image": BYTES[i]}
    text = {"type": "text", "text": scalar_chat.QUESTION.replace("{prompt}", prompt)}
    row = vlm.row(opened, [{"role": "user", "content": [shown, text]}])
    ids = torch.tensor(row.ids.astype(np.int64))[None]
    (_, seen), = row.shown
    if "llava" in theirs.config.model_type:
      given = {"pixel_values": torch.tensor(seen.pixels[:, 0]).permute(0, 3, 1, 2)[None],
               "image_sizes": torch.tensor([[SIZE, SIZE]])}
    else:
      values = seen.pixels.reshape(1, 2, 2, 2, 14, 2, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(16, -1)
      given = {"pixel_values": torch.tensor(values), "image_grid_thw": torch.tensor([[1, 4, 4]]),
               "mm_token_type_ids": (ids == opened.chat.image).long()}
    with torch.no_grad():
      state = theirs.model(input_ids=ids, **given).last_hidden_state[0, -1].numpy()
    wanted = state @ np.asarray(view["head"]["kernel"]) + np.array([.5, 0])
    numbers = np.array([found.parts["look"][i], found.parts["text"][i]])
    bound = 1e-4 if "qwen" in theirs.config.model_type else 5e-3  # where pictures are scaled, theirs are bytes again
    np.testing.assert_allclose(numbers, wanted, atol=bound * np.abs(wanted).max())
    np.testing.assert_allclose(found.total[i], 2 * numbers[0] - numbers[1], rtol=1e-5)


def test_its_slope_is_that_of_finite_differences_and_of_its_own_picture(pair):
  _, _, made, view = pair
  asked = {k: v for k, v in made.prepare({"prompt": PROMPTS}).items() if isinstance(v, dict)}
  total = jax.jit(lambda media: made.score(view, asked, media, None).total[0])
  slope = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(MEDIA)))
  assert not slope[1].any()
  way = slope[0] / np.linalg.norm(slope[0])
  step = 1e-2 * np.stack([way, np.zeros_like(way)])
  found = (total(jnp.asarray(MEDIA + step)) - total(jnp.asarray(MEDIA - step))) / 2e-2
  np.testing.assert_allclose(found, np.linalg.norm(slope[0]), rtol=2e-2)


@pytest.mark.slow  # a network of vision and words, and its gradient
def test_it_is_trained_by_comparisons(tmp_path):
  vlms.qwen(tmp_path / "model", seed=3)
  config = {"task": "train", "steps": 6, "batch": 8, "trained": "^reward/head", "log_every": 1,
            "reward": {"name": "scalar_chat", "model": str(tmp_path / "model"), "size": 28, "columns": 128,
                       "dtype": "float32"},
            "start": {"reward": str(tmp_path / "model")}, "optim": {"name": "adamw", "lr": 3e-2},
            "algorithm": {"name": "compare", "loss": "btt"},
            "data": {"name": "jsonl", "path": str(tmp_path / "pairs.jsonl"), "size": 28}}
  bright_and_dark(tmp_path)
  main.run(config, tmp_path / "run")
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert losses[-1] < 0.8 * losses[0]
  kept, began = weights_of.load(str(tmp_path / "run"), "reward"), vlm.load(vlm.open_(tmp_path / "model"))
  jax.tree.map(np.testing.assert_array_equal, kept["net"], began)
  assert np.abs(kept["head"]["kernel"]).max() > 0.05


def bright_and_dark(place):
  """Pairs of pictures."""
  for i, value in enumerate((200, 30)):
    Image.fromarray(np.full((28, 28, 3), value, np.uint8)).save(place / f"{i}.png")
  line = json.dumps({"prompt": "a lamp", "win": "0.png", "lose": "1.png"})
  (place / "pairs.jsonl").write_text(f"{line}\n" * 8)


@pytest.mark.parametrize("options, message", [
  ({"question": "How good?"}, "must hold {prompt} once"), ({"dims": ()}, "dims = [] must be one or more different"),
  ({"model": "nowhere"}, "nowhere/config.json cannot be read")])
def test_refusals(pair, options, message):
  with pytest.raises(ValueError) as error:
    scalar_chat.make(**{"model": str(pair[0]), "size": SIZE, **options})
  assert message in str(error.value)


def test_pictures_of_another_size_and_empty_prompts_are_refused(pair):
  with pytest.raises(ValueError, match="media of 28 x 28 pixels reach a judge that was made for size = 56"):
    scored(pair[2], pair[3], media=MEDIA[:, :28, :28])
  with pytest.raises(ValueError, match="prompt = ' ' is empty"):
    pair[2].prepare({"prompt": ["a", " "]})
