"""The perceptron for small pictures: what its output depends on, its sizes, its words, and that a run of it learns."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import build, main, metrics, tree
from diffusion.nets import mlp

KEY = jax.random.key(0)


def inputs(batch=3, side=4):
  x = jax.random.normal(KEY, (batch, side, side, 1))
  return x, jnp.linspace(0, 1000, batch), jnp.zeros((batch, 5, 8)), None, jax.random.normal(KEY, (batch, 8))


def test_every_pixel_sees_every_pixel_the_text_and_the_time_of_its_own_sample():
  net, given = mlp.make("tiny"), inputs()
  params = net.init(KEY, *given)
  out = net.apply(params, *given)
  assert out.shape == given[0].shape
  x, t, context, mask, pooled = given
  for changed in ((x.at[1, 0, 0, 0].add(1.0), t), (x, t.at[1].add(100.0))):
    other = net.apply(params, *changed, context, mask, pooled)
    assert (other[1] != out[1]).all() and (other[0] == out[0]).all() and (other[2] == out[2]).all()
  assert (net.apply(params, x, t, context, mask, pooled.at[1].add(1.0))[1] != out[1]).all()


def test_sizes():
  given = inputs()
  for options, width, depth in (({}, 256, 3), ({"width": 8}, 8, 3), ({"variant": "tiny", "depth": 2}, 16, 2)):
    names = tree.flatten(jax.eval_shape(mlp.make(**options).init, KEY, *given)["params"])
    assert names["in/kernel"].shape == (16, width) and sum(name.endswith("mid0/kernel") for name in names) == 1
    assert f"mid{depth - 1}/kernel" in names and f"mid{depth}/kernel" not in names
  with pytest.raises(ValueError, match="variant = 'small' is not one of digits, tiny"):
    mlp.make("small")


def test_words_are_averaged_without_padding():
  net = mlp.words(width=4, vocab=9)
  tokens, mask = jnp.array([[1, 2, 0], [2, 1, 7], [0, 0, 0]]), jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
  params = net.init(KEY, tokens, mask)
  context, pooled = net.apply(params, tokens, mask)
  table = params["params"]["token"]["embedding"]
  np.testing.assert_array_equal(context[0], table[jnp.array([1, 2, 0])])
  np.testing.assert_allclose(pooled, [(table[1] + table[2]) / 2] * 2 + [np.zeros(4)], atol=1e-6)


def test_a_run_learns(tmp_path):
  policy = {"name": "diffusion", "size": 8, "channels": 1, "steps": 4, "length": 6, "process": {"name": "flow"},
            "net": {"name": "mlp", "width": 64}, "text": {"name": "diffusion.nets.mlp:words"}}
  main.run({"task": "train", "steps": 60, "batch": 32, "policy": policy, "algorithm": {"name": "sft"}, "log_every": 1,
            "data": {"name": "digits", "split": "train"}, "optim": {"name": "adamw", "lr": 3e-3}}, tmp_path)
  losses = [row["train/loss"] for row in metrics.read(tmp_path) if "train/loss" in row]
  assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])  # noise that cannot be foreseen stays
  assert "mlp" in build.names("diffusion.nets")
