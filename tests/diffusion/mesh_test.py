"""Batches worked through in pieces: the same numbers and gradients, less memory, no gathering across devices."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import costs
from diffusion import mesh


def layer(x):
  return {"y": jnp.tanh(x["a"] @ x["w"]).sum(-1), "z": x["a"] * 2}


@pytest.mark.parametrize("most", [1, 2, 5, 12, 100])
def test_pieces_give_what_the_whole_gives(most):
  keys = jax.random.split(jax.random.key(0), 2)
  # positive: where terms cancel, two programs' roundings differ by more than the bound
  tree = {"a": jax.random.uniform(keys[0], (12, 3, 4)), "w": jax.random.uniform(keys[1], (12, 4, 5))}
  whole, cut = layer(tree), mesh.mapped(layer, tree, most)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, cut)
  loss = lambda run: jax.grad(lambda w: run({**tree, "w": w})["y"].sum())(tree["w"])
  np.testing.assert_allclose(loss(layer), loss(lambda t: mesh.mapped(layer, t, most)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size, most, pieces", [(12, 5, 3), (12, 4, 3), (12, 12, 1), (7, 3, 7), (16, 3, 8)])
def test_a_piece_has_at_most_so_many_samples(size, most, pieces):
  text = str(jax.make_jaxpr(lambda x: mesh.mapped(jnp.sin, x, most))(jnp.zeros((size, 2))))
  assert f"length={pieces}" in text if pieces > 1 else "scan" not in text


def test_a_device_keeps_its_share_of_every_piece():
  grid = mesh.grid((2, 4, 1), jax.devices())
  assert mesh.shards() == 1
  x = jax.device_put(np.arange(32 * 64, dtype=np.float32).reshape(32, 64), mesh.batch_sharding(grid))
  run = jax.jit(mesh.within(grid, lambda x: mesh.mapped(lambda a: jnp.sin(a) + mesh.shards(), x, 2)))
  text = run.lower(x).compile().as_text()
  assert "sine" in text and "f32[1,2,64]" in text and "all-gather" not in text
  out = run(x)
  assert out.sharding.is_equivalent_to(x.sharding, 2)
  np.testing.assert_allclose(out, np.sin(x) + 8, rtol=1e-6)


def test_memory_is_that_of_a_piece():
  wide = jnp.ones((8, 4096))
  net = lambda x: jnp.tanh(jnp.tanh(x @ wide) @ wide.T)
  bytes_of = lambda run: jax.jit(run).lower(jnp.zeros((128, 8))).compile().memory_analysis().temp_size_in_bytes
  assert bytes_of(lambda x: mesh.mapped(net, x, 4)) < bytes_of(net) / 8


def test_weights_are_gathered_and_activations_stay():
  """Of a stack in parts over fsdp, no collective is larger than a layer, and gradients are those of one device."""
  grid = mesh.grid((1, 8, 1), jax.devices())
  keys = jax.random.split(jax.random.key(0), 2)
  ws, x = jax.random.normal(keys[0], (4, 64, 64)) / 8, jax.random.normal(keys[1], (64, 32, 64))

  def loss(ws, x):
    layer = jax.checkpoint(lambda h, w: jnp.tanh(h @ mesh.gathered(w)))
    return (jax.lax.scan(lambda h, w: (layer(h, w), None), x, ws)[0] ** 2).sum()
  placed = jax.device_put(ws, mesh.places(ws, grid)), jax.device_put(x, mesh.batch_sharding(grid))
  assert not placed[0].sharding.is_fully_replicated
  run = jax.jit(mesh.within(grid, jax.grad(loss)), out_shardings=placed[0].sharding)
  found = costs.collectives(run.lower(*placed).compile().as_text())
  assert found and max(c.bytes for c in found) <= 64 * 64 * 4
  np.testing.assert_allclose(run(*placed), jax.jit(jax.grad(loss))(ws, x), rtol=1e-4, atol=1e-4)
