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


def test_a_text_module_of_another_kind_needs_no_vocab():
  class Mine(text.nn.Module):
    @text.nn.compact
    def __call__(self, tokens, mask):
      return tokens[..., None].astype(jnp.float32), mask.sum(-1, keepdims=True).astype(jnp.float32)
  assert generator.make(None, Mine(), process.flow()).shape == (16, 16, 3)
