"""A refiner: the low resolution beside the noise, weights of a network without it, and what both come from."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion import folder, generate, generator, refiner
from diffusion.core import expand

PARTS = {"name": "diffusion", "text": {"name": "text", "vocab": 128, "width": 16, "depth": 1, "heads": 2},
         "process": {"name": "flow"}, "kernel": "ode", "length": 8, "steps": 2}
NETS = {"unet": {"name": "unet", "variant": "tiny", "layers": 1, "widths": [8], "depth": [0], "alone": [False],
                 "head": [8]},
        "mmdit": {"name": "mmdit", "variant": "tiny", "depth": 1}, "clips": {"name": "clips", "variant": "tiny"}}


def parts(kind="unet", size=8, **more):
  clip = {"frames": 4} if kind == "clips" else {}
  return {**PARTS, **clip, "net": NETS[kind], "size": size, **more}


def moved(shapes_of, seed=0):
  """Random weights that are nowhere 0, so that every channel counts."""
  shapes = jax.eval_shape(shapes_of, jax.random.key(0))
  leaves, form = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(form, [0.3 * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 4, 6, 1)])
def test_means_of_what_is_enlarged_are_what_it_was(shape):
  low = jax.random.normal(jax.random.key(0), shape)
  high = refiner.enlarged(low, 2)
  assert high.shape == (*shape[:-3], 2 * shape[-3], 2 * shape[-2], shape[-1])
  np.testing.assert_allclose(refiner.reduced(high, 2), low, atol=1e-6)
  assert (high[..., 0, 0, :] == high[..., 1, 1, :]).all() and (high[..., 1, 1, :] != high[..., 2, 1, :]).any()


def test_means_are_over_squares():
  media = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
  assert refiner.reduced(media, 2)[..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
  assert refiner.reduced(media, 4).tolist() == [[[7.5]]]


@pytest.mark.parametrize("kind", NETS)
def test_a_refiner_begins_as_the_network_it_starts_from_at_the_higher_resolution(kind, tmp_path):
  """Whatever it is to enlarge; and once the new weights move it does look."""
  small, large, wide = (generator.build(p) for p in (parts(kind), parts(kind, 16), parts(kind, 16, refines=2)))
  saved = folder.save(tmp_path, "policy", parts(kind), moved(small.init))
  base = folder.load(str(saved), like=jax.eval_shape(large.init, jax.random.key(0)))
  begun = folder.load(str(saved), like=jax.eval_shape(wide.init, jax.random.key(0)), wider=3)
  cond = wide.encode(["a red circle", "a blue square"])
  low = jax.random.normal(jax.random.key(1), (2, *wide.low))
  x, t = jax.random.normal(jax.random.key(2), (2, *wide.shape)), jnp.array([0.8, 0.3])
  assert wide.shape == large.shape and wide.low == small.shape and small.low == ()
  y = jax.jit(lambda view: large.predictor(view, cond, False)(x, t))(base)
  seen = jax.jit(lambda view, low: wide.predictor(view, {**cond, "low": low}, False)(x, t))
  np.testing.assert_allclose(seen(begun, low), y, atol=1e-5 * np.abs(y).max())
  other = moved(wide.init, 1)
  assert np.abs(y).max() > 0.1 and np.abs(seen(other, low) - seen(other, -low)).max() > 1e-3


def test_guidance_leads_away_from_the_empty_prompt_with_the_same_low_resolution():
  """Of a network y = word * (x + low): 3 times the prompt's word less twice that of the empty one."""
  call = lambda view, word, x, t: expand(word, x[..., :1]) * (x[..., :1] + x[..., 1:])
  contexts = lambda view, cond, pair: (cond["word"], jnp.full(2, 5.0) if pair else None)
  wide = refiner.beside(generator.predicting(call, contexts, 3.0), 2)
  low, x = jax.random.normal(jax.random.key(1), (2, 2, 2, 1)), jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
  y = wide({}, {"word": jnp.array([1.0, 2.0]), "low": low}, True)(x, jnp.ones(2))
  words = jnp.array([3.0 - 10, 6.0 - 10])
  np.testing.assert_allclose(y, expand(words, x) * (x + refiner.enlarged(low, 2)), rtol=1e-5)


def test_the_weights_of_another_network_are_refused(tmp_path):
  wide = generator.build({**parts(size=16, refines=2), "net": {**NETS["unet"], "widths": [16]}})
  saved = folder.save(tmp_path, "policy", parts(), moved(generator.build(parts()).init))
  with pytest.raises(ValueError, match=r"does not fit the network.*\n.*conv_in/kernel is \(3, 3, 3, 8\), not"):
    folder.load(str(saved), like=jax.eval_shape(wide.init, jax.random.key(0)), wider=3)
  with pytest.raises(ValueError, match=r"conv_in/kernel is \(3, 3, 3, 8\), not \(3, 3, 6, 8\)"):  # by a plain generator
    folder.load(str(saved), like=jax.eval_shape(generator.build(parts(size=16, refines=2)).init, jax.random.key(0)))


def test_zeros_stand_behind_every_pixel_of_a_patch():
  """Rows of a patch's matrix are (pixel, channel): of 2 pixels with 2 channels those of the second are 4 and 5."""
  kernel = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
  like = {"in": {"kernel": np.zeros((8, 3)), "bias": np.zeros(3)}}
  out = refiner.widened({"in": {"kernel": kernel, "bias": np.ones(3, np.float32)}}, like, 2)["in"]
  np.testing.assert_array_equal(out["kernel"][[0, 1, 4, 5]], kernel)
  assert not out["kernel"][[2, 3, 6, 7]].any() and (out["bias"] == 1).all()


@pytest.mark.parametrize("refines", [-2, 1, 3])
def test_a_factor_that_is_none_is_refused(refines):
  with pytest.raises(ValueError, match=f"refines = {refines} must be 0, or at least 2 and a divisor of size = 16"):
    generator.build(parts(size=16, refines=refines))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """(what makes 4x4 pictures, what enlarges them), saved."""
  out = []
  for described in (parts(size=4), parts(size=8, refines=2)):
    where = tmp_path_factory.mktemp("model")
    out.append(str(folder.save(where, "policy", described, moved(generator.build(described).init))))
  return out


def test_a_sampler_enlarges_a_file_an_array_or_what_a_model_makes(models, tmp_path):
  base, wide = models
  prompts = ["a red circle", "a blue square"]
  low = generate.sample(base, prompts, samples=2, seed=6)
  images = generate.sample(wide, prompts, samples=2, seed=5, low=base)
  assert images.shape == (2, 2, 8, 8, 3)
  np.testing.assert_allclose(images.astype(int), generate.sample(wide, prompts, samples=2, seed=5, low=low), atol=1)
  Image.fromarray(low[1, 0]).save(tmp_path / "low.png")
  one = generate.sample(wide, prompts, samples=2, seed=5, low=str(tmp_path / "low.png"))
  np.testing.assert_allclose(one[1, 0].astype(int), images[1, 0], atol=1)  # the others have another low picture now
  assert np.abs(one[0].astype(int) - images[0]).max() > 3


def test_the_command_takes_a_file(models, tmp_path):
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "low.png")
  out = tmp_path / "out.png"
  assert generate.main([f"--model={models[1]}", "--prompt=a red circle", f"--low={tmp_path / 'low.png'}", "--samples=1",
                        f"--out={out}", "--scale=1"]) == 0
  assert Image.open(out).size == (8, 8)


def test_a_file_of_a_clip_has_its_frames(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 1)).astype(np.uint8)
  first, *rest = [Image.fromarray(f[..., 0]) for f in frames]
  first.save(tmp_path / "clip.png", save_all=True, append_images=rest)
  np.testing.assert_array_equal(generate.media_of(str(tmp_path / "clip.png"), (3, 4, 6, 1)), frames)
  np.testing.assert_array_equal(generate.media_of(str(tmp_path / "clip.png"), (4, 6, 1)), frames[0])


@pytest.mark.parametrize("which, options, words", [
  (1, [], ["error: --low = None", "enlarges what is 4 x 4 x 3; give a file or a model by --low"]),
  (0, ["--low=scenes"], ["--low = 'scenes'", "enlarges nothing; leave it out"]),
  (1, ["--low={file}"], ["--low is 5 x 5 x 3, but", "4 x 4 x 3; give one of this size"]),
  (1, ["--low=/nowhere.png"], ["'/nowhere.png'"])])
def test_what_cannot_be_enlarged_is_refused(models, which, options, words, tmp_path, capsys):
  Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "low.png")
  given = [option.format(file=tmp_path / "low.png") for option in options]
  out = f"--out={tmp_path / 'a.png'}"
  assert generate.main([f"--model={models[which]}", "--prompt=a red circle", out, *given]) == 2
  said = capsys.readouterr().err
  assert all(word in said for word in words) and said.count("\n") == 1, said
