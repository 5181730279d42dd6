"""The network of clips, a generator of clips, and the base of Scenes' clips that ships."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion import folder, generate, generator
from diffusion.core import expand
from diffusion.nets import clips
from rewards import scenes

PARTS = {"name": "diffusion", "net": {"name": "clips", "variant": "tiny"},
         "text": {"name": "text", "vocab": 128, "width": 16, "depth": 1, "heads": 2},
         "process": {"name": "flow"}, "kernel": "ode", "length": 8, "size": 8, "steps": 2, "frames": 3}
MOVING = "a red circle moving left slowly"


@pytest.fixture(scope="module")
def made():
  """(generator, parameters of which none is 0)"""
  one = generator.build(PARTS)
  return one, jax.tree.map(lambda a: 2 * a + 0.01, jax.jit(one.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def model(made, tmp_path_factory):
  return str(folder.save(tmp_path_factory.mktemp("run") / "export", "policy", PARTS, made[1]).parent)


def test_frames_see_those_beside_them():
  x = jnp.arange(2 * 3 * 1 * 1 * 2.0).reshape(2, 3, 1, 1, 2) + 1
  seen = clips.beside(x).reshape(2, 3, 3, 2)
  np.testing.assert_array_equal(seen[:, :, 1], x[:, :, 0, 0])
  np.testing.assert_array_equal(seen[:, 1:, 0], x[:, :-1, 0, 0])
  np.testing.assert_array_equal(seen[:, :-1, 2], x[:, 1:, 0, 0])
  assert not seen[:, 0, 0].any() and not seen[:, -1, 2].any()


def test_every_frame_depends_on_every_frame_the_words_and_the_noise_level(made):
  one, view = made
  predict = jax.jit(lambda cond, x, t: one.predictor(view, cond, False)(x, t))
  x, t = jax.random.normal(jax.random.key(1), (2, *one.shape)), jnp.array([0.8, 0.3])
  cond = one.encode([MOVING, "a blue square"])
  y = predict(cond, x, t)
  assert y.shape == (2, 3, 8, 8, 3) and y.dtype == jnp.float32
  moved = lambda other: np.abs(other - y).max((0, 2, 3, 4)) > 1e-6
  assert all(moved(predict(cond, x.at[:, f].add(1), t)).all() for f in range(3))
  assert moved(predict(one.encode(["two green circles", ""]), x, t)).all() and moved(predict(cond, x, t + 0.1)).all()
  again = predict(jax.tree.map(lambda a: a[::-1], cond), x[::-1], t[::-1])[::-1]
  np.testing.assert_allclose(again, y, atol=1e-5)  # samples of a batch do not see each other


def test_clean_of_a_generator_of_clips_is_x0_of_its_network(made):
  one, view = made
  assert one.shape == one.media == (3, 8, 8, 3)
  cond, t = one.encode([MOVING, ""]), jnp.array([0.8, 0.3])
  x = jax.random.normal(jax.random.key(1), (2, *one.shape))
  y = one.predictor(view, cond, False)(x, t)
  np.testing.assert_allclose(generator.clean(one, view, cond, x, t, False), x - expand(t, x) * y, atol=1e-5)


@pytest.mark.parametrize("change, words", [
  ({"frames": 1}, ["frames = 1", "0 for pictures", "at least 2"]), ({"frames": -2}, ["frames = -2"]),
  ({"net": {"name": "clips", "variant": "tiny", "stem": 6}}, ["stem = 6", "multiple of groups = 4"]),
  ({"net": {"name": "clips", "variant": "small"}}, ["variant", "'small'", "tiny"]),
  ({"frames": 0}, ["(1, 8, 8, 3)", "[B F H W C]", "the network unet"])])
def test_refusals(change, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(generator.build({**PARTS, **change}).init, jax.random.key(0))
  assert all(word in str(error.value) for word in words), str(error.value)


def test_noise_of_clips_as_pytorch_has_it():
  noise = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
  np.testing.assert_array_equal(generate.channels_last(np.moveaxis(noise, -1, 1), noise.shape), noise)
  with pytest.raises(ValueError, match=r"\(2, 6, 3, 4, 5\) as PyTorch has it"):
    generate.channels_last(noise[:1], noise.shape)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_the_command_writes_a_file_that_plays(model, tmp_path, capsys, name):
  out = tmp_path / name
  assert generate.main([f"--model={model}", f"--prompt={MOVING}", "--prompt=a blue square", "--samples=3", "--scale=2",
                        f"--out={out}"]) == 0
  assert "2 prompts x 3 clips" in capsys.readouterr().out
  images = generate.sample(model, [MOVING, "a blue square"], samples=3)
  assert images.shape == (2, 3, 3, 8, 8, 3) and (images[:, :, 0] != images[:, :, 1]).any()
  with Image.open(out) as played:
    assert played.n_frames == 3 and played.size == (3 * 8 * 2, 2 * 8 * 2) and played.info["loop"] == 0
    for f in range(3):
      played.seek(f)
      shown = np.asarray(played.convert("RGB"))
      assert played.info["duration"] == generate.PACE
      if name != "a.gif":  # whose palette has 256 colours
        np.testing.assert_array_equal(shown, generate.sheet(images[:, :, f], 2))


def test_a_file_that_cannot_play_is_refused(model, tmp_path, capsys):
  assert generate.main([f"--model={model}", f"--prompt={MOVING}", f"--out={tmp_path / 'a.jpg'}"]) == 2
  said = capsys.readouterr().err
  assert "a.jpg'" in said and ".gif, .png, .webp" in said and not list(tmp_path.iterdir())


def test_the_base_that_ships_draws_clips_of_what_it_is_told():
  """A few of the prompts that no training caption has; how often it is right is in configs/clips_base.py."""
  prompts = scenes.clip.prompts(count=24, world=scenes.make_world(most=1))
  clip = generate.sample("clips", [text for text, _ in prompts])
  assert clip.shape == (24, 1, 6, 16, 16, 3)
  parts = scenes.make().score({}, {"meta": [spec for _, spec in prompts]}, clip[:, 0] / 255, None).parts
  assert parts["color"].mean() > 0.9 and parts["motion"].mean() > 0.4 and parts["shape"].mean() > 0.6
