"""Weights: round trips, strictness, and refusals that name the file."""
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import weights


def tree():
  return {"net": {"down_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16) * 1.5}},
          "text": {"ids": np.arange(4, dtype=np.int32), "count": np.float32(2),
                   "swapped": np.arange(6).reshape(2, 3).T}}


def test_round_trip_keeps_values_types_and_shapes(tmp_path):
  path = weights.save(tmp_path / "deep" / "w.safetensors", tree(), {"note": "x"})
  back = weights.load(path, like=tree())
  assert jax.tree.structure(back) == jax.tree.structure(tree())
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree()), strict=True):
    assert a.dtype == b.dtype and a.shape == np.shape(b)
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
  assert weights.metadata(path) == {"note": "x"}
  assert os.listdir(tmp_path / "deep") == ["w.safetensors"]


def test_public_readers_read_it(tmp_path):
  from safetensors.numpy import load_file
  weights.save(tmp_path / "w.safetensors", tree())
  assert set(load_file(tmp_path / "w.safetensors")) == {
    "net/down_0/kernel", "net/down_0/bias", "text/ids", "text/count", "text/swapped"}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = weights.save(tmp_path / "w.safetensors", tree())
  before = weights.digest(path)

  def fail(*_, **__):
    raise OSError("No space left on device")
  monkeypatch.setattr(weights.st, "save_file", fail)
  with pytest.raises(OSError, match="No space left"):
    weights.save(path, {"a": np.zeros(3)})
  assert weights.digest(path) == before and os.listdir(tmp_path) == ["w.safetensors"]


def test_strict_load_lists_everything_with_the_nearest_names(tmp_path):
  path = weights.save(tmp_path / "w.safetensors", tree())
  like = {"net": {"down_0": {"kernel": jax.ShapeDtypeStruct((2, 4), jnp.float32), "bais": np.zeros(3)}},
          "text": {**tree()["text"], "place": np.zeros(2)}}
  with pytest.raises(ValueError) as error:
    weights.load(path, like=like)
  message = str(error.value)
  assert str(path) in message
  assert "2 missing: net/down_0/bais (nearest: net/down_0/bias); text/place" in message
  assert "1 not known: net/down_0/bias (nearest: net/down_0/bais)" in message
  assert "1 of another shape: net/down_0/kernel is (2, 3), not (2, 4)" in message


def test_long_lists_are_cut(tmp_path):
  path = weights.save(tmp_path / "w.safetensors", {"a": np.zeros(1)})
  with pytest.raises(ValueError, match=r"300 missing: .*n7 \.\.\."):
    weights.load(path, like={"a": np.zeros(1), **{f"n{i}": np.zeros(1) for i in range(300)}})


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "MODEL.PTH"])
def test_pickles_are_never_opened(tmp_path, name):
  (tmp_path / name).write_bytes(b"")
  with pytest.raises(ValueError, match=f"{name} is a pickle.*convert it"):
    weights.load(tmp_path / name)


def test_refuses_damaged_and_missing_files(tmp_path):
  path = weights.save(tmp_path / "w.safetensors", tree())
  whole = path.read_bytes()
  for part in (whole[:-5], whole[:20], b"", b"hello, this is no safetensors file"):
    (tmp_path / "cut.safetensors").write_bytes(part)
    with pytest.raises(ValueError, match="cut.safetensors cannot be read"):
      weights.load(tmp_path / "cut.safetensors")
  with pytest.raises(ValueError, match="other.safetensors is no file; beside it stand: cut.safetensors, w.safetensors"):
    weights.load(tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match="is no file"):
    weights.load(tmp_path)


@pytest.mark.parametrize("name", ["a/b", "", 3])
def test_refuses_names_that_paths_cannot_hold(tmp_path, name):
  with pytest.raises(ValueError, match="must be a non-empty string without '/'"):
    weights.save(tmp_path / "w.safetensors", {"net": {name: np.zeros(1)}})


def test_digest(tmp_path):
  (tmp_path / "x").write_bytes(b"abc")
  assert weights.digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
