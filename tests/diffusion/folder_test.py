"""Self-describing folders: what is saved is what is found, and what is missing is named."""
import json

import jax
import numpy as np
import pytest

from diffusion import folder

TREE = {"net": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "text": {"b": np.ones(4, np.float32)}}
PARTS = {"name": "diffusion", "process": {"name": "flow", "shift": 3.0}}


def test_a_saved_part_comes_back_with_its_description(tmp_path):
  assert folder.save(tmp_path / "new" / "place", "policy", PARTS, TREE) == tmp_path / "new" / "place"
  where = str(tmp_path / "new" / "place")
  assert folder.describe(where) == PARTS
  jax.tree.map(np.testing.assert_array_equal, folder.load(where, like=jax.eval_shape(lambda: TREE)), TREE)
  left = sorted(p.name for p in (tmp_path / "new" / "place").iterdir())
  assert left == ["policy.json", "policy.safetensors"]


def test_halves_come_back_in_the_types_of_the_network(tmp_path):
  halves = jax.tree.map(lambda a: a.astype(np.float16), TREE)
  folder.save(tmp_path, "policy", PARTS, halves)
  assert folder.load(str(tmp_path))["text"]["b"].dtype == np.float16
  found = folder.load(str(tmp_path), like=jax.eval_shape(lambda: TREE))
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
  jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_a_workdir_is_found_by_its_export_and_parts_by_name(tmp_path):
  folder.save(tmp_path / "export", "reward", PARTS, TREE)
  assert folder.locate(str(tmp_path), "reward") == tmp_path / "export" == folder.locate(tmp_path / "export", "reward")
  with pytest.raises(ValueError, match="policy.safetensors"):
    folder.locate(str(tmp_path), "policy")


def test_saving_again_replaces(tmp_path):
  folder.save(tmp_path, "policy", PARTS, TREE)
  folder.save(tmp_path, "policy", {"name": "other"}, jax.tree.map(lambda a: a + 1, TREE))
  assert folder.describe(str(tmp_path)) == {"name": "other"}
  np.testing.assert_array_equal(folder.load(str(tmp_path))["text"]["b"], 2 * np.ones(4))


def test_a_missing_folder_is_refused_with_what_would_do(tmp_path):
  with pytest.raises(ValueError) as error:
    folder.locate(str(tmp_path / "nowhere"))
  assert all(w in str(error.value) for w in ("model", "nowhere", "WORKDIR/export", "shipped"))


def test_half_a_part_is_no_part(tmp_path):
  (tmp_path / "policy.json").write_text(json.dumps(PARTS))
  with pytest.raises(ValueError, match="holds no policy.safetensors"):
    folder.describe(str(tmp_path))


def test_other_shapes_are_refused(tmp_path):
  folder.save(tmp_path, "policy", PARTS, TREE)
  wrong = {**TREE, "text": {"b": np.ones(5, np.float32)}}
  with pytest.raises(ValueError, match="text/b"):
    folder.load(str(tmp_path), like=jax.eval_shape(lambda: wrong))
  with pytest.raises(ValueError, match="text/c"):
    folder.load(str(tmp_path), like=jax.eval_shape(lambda: {**TREE, "text": {**TREE["text"], "c": np.ones(1)}}))
