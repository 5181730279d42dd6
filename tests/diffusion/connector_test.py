"""The connector: token by token, linear, GELU, linear."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.nets import connector


def test_each_token_is_mapped_by_itself():
  net, states = connector.make(6, 4), jax.random.normal(jax.random.key(0), (2, 3, 5))
  params = net.init(jax.random.key(1), states)["params"]
  h = np.asarray(states) @ params["fc1"]["kernel"] + params["fc1"]["bias"]
  want = jax.nn.gelu(h, approximate=False) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
  np.testing.assert_allclose(net.apply({"params": params}, states), want, atol=1e-5)
  half = net.apply({"params": params}, states.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32 and half.shape == (2, 3, 4)


def test_refusals():
  with pytest.raises(ValueError, match="inner = 8192 and width = 0 must be at least 1"):
    connector.make(width=0)
