"""A generator from its description: shapes, the text path, rounding, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import generator, process
from diffusion.core import expand
from diffusion.nets import text

PARTS = {"name": "diffusion", "net": {"name": "unet", "variant": "tiny", "layers": 1, "widths": [8], "depth": [1],
                                      "alone": [False], "head": [8]},
         "text": {"name": "text", "vocab": 128, "width": 16, "depth": 1, "heads": 2},
         "process": {"name": "flow", "shift": 2.0}, "kernel": "ode", "length": 8, "size": 8, "steps": 2}


def test_build_makes_what_the_description_says():
  made = generator.build(PARTS)
  assert made.shape == (8, 8, 3) and not made.kernel.noisy
  np.testing.assert_allclose(made.process.times(2), [1, 2 / 3, 0], atol=1e-6)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  assert set(shapes) == {"net", "text"} and shapes["text"]["token"]["embedding"].shape == (128, 16)
  assert jax.tree.map(jnp.shape, made.encode(["a red circle", ""])) == {"tokens": (2, 8), "mask": (2, 8)}


def test_clean_of_a_generator_is_x0_of_its_network():
  made = generator.build({**PARTS, "guidance": 1.0})
  view, cond = made.init(jax.random.key(0)), made.encode(["a red circle", "two blue squares"])
  x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([0.8, 0.3])
  y = made.predictor(view, cond, False)(x, t)
  np.testing.assert_allclose(generator.clean(made, view, cond, x, t, False), x - expand(t, x) * y, atol=1e-5)


def test_what_another_model_says_stands_in_place_of_the_text():
  made = generator.build(PARTS)
  view, cond = made.init(jax.random.key(0)), made.encode(["a red circle", "two blue squares"])
  given = text.make("tiny").apply({"params": view["text"]}, cond["tokens"], cond["mask"])[0]
  x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([0.8, 0.3])
  call = jax.jit(lambda cond: made.predictor(view, cond, False)(x, t))
  said = {"context": given[:, :7], "mask": cond["mask"][:, :7]}  # of another length, too
  np.testing.assert_allclose(call(said), call(cond), atol=1e-5)
  assert np.abs(call({**said, "context": said["context"][::-1]}) - call(cond)).max() > 1e-4
  with pytest.raises(ValueError, match=r"context of shape \(2, 7, 15\) must be 16 wide"):
    made.predictor(view, {**said, "context": said["context"][..., :15]}, False)
  led = generator.build({**PARTS, "guidance": 2.0})
  with pytest.raises(ValueError, match="guidance: .*only guidance = 1 is allowed"):
    led.predictor(view, said, True)


def test_uint8_rounds_to_the_nearest_level():
  levels = np.array([0, 0.52, 1.4, 254.6, 255]) / 255
  assert generator.to_uint8(levels).tolist() == [0, 1, 1, 255, 255]


@pytest.mark.parametrize("change, words", [
  ({"kernel": "heun"}, ["kernel", "'heun'", "ode"]),
  ({"kernel": "flow_sde", "process": {"name": "ddpm"}}, ["kernel", "'flow_sde'", "rectified flow"]),
  ({"text": {"name": "text", "vocab": 5, "width": 16, "depth": 1, "heads": 2}}, ["vocab", "5", "or more"]),
  ({"net": {"name": "unet", "variant": "huge"}}, ["variant", "'huge'", "tiny"]),
  ({"steps": 0}, ["steps", "0", "at least 1"])])
def test_refusals(change, words):
  with pytest.raises(ValueError) as error:
    generator.build({**PARTS, **change})
  assert all(word in str(error.value) for word in words), str(error.value)


def test_a_description_of_something_else_is_refused():
  with pytest.raises(ValueError, match="description is of 'autoencoder', with generator, name; generators have net"):
    generator.build({"name": "autoencoder", "generator": PARTS})


def test_a_text_module_of_another_kind_needs_no_vocab():
  class Mine(text.nn.Module):
    @text.nn.compact
    def __call__(self, tokens, mask):
      return tokens[..., None].astype(jnp.float32), mask.sum(-1, keepdims=True).astype(jnp.float32)
  assert generator.make(None, Mine(), process.flow()).shape == (16, 16, 3)
