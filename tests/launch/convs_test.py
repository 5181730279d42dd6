"""All sides of the comparison make the same gradient; nothing is timed here."""
import jax
import numpy as np

from launch import convs


def test_all_sides_make_the_same_gradient(monkeypatch):
  monkeypatch.setattr(convs, "SHAPE", (2, 6, 6, 5))
  monkeypatch.setattr(convs, "KERNEL", (3, 3, 5, 4))
  found = {name: f() for name, f in convs.sides().items()}
  theirs = found.pop("PyTorch").numpy().transpose(2, 3, 1, 0)
  assert theirs.shape == (3, 3, 5, 4)
  for name, gradient in found.items():
    np.testing.assert_allclose(gradient, theirs, rtol=2e-5, atol=2e-4, err_msg=name)
  xs, dys, kernel = convs.given()
  at_once = jax.grad(lambda k: (jax.lax.conv_general_dilated(
    xs.reshape(-1, *xs.shape[2:]), k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) *
    dys.reshape(-1, *dys.shape[2:])).sum())(kernel)
  np.testing.assert_allclose(theirs, at_once, rtol=2e-5, atol=2e-4)
