"""Paths, overlays, rules: round trips and every refusal."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import tree

T = {"policy": {"net": {"conv": {"kernel": 1, "bias": 2}}, "text": {"embed": 3}}, "reward": {"head": {"kernel": 4}}}


def test_flatten_and_back():
  flat = tree.flatten(T)
  assert flat == {"policy/net/conv/kernel": 1, "policy/net/conv/bias": 2, "policy/text/embed": 3,
                  "reward/head/kernel": 4}
  assert tree.unflatten(flat) == T
  assert tree.flatten({"a": {}, "b": 1}) == {"b": 1}


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_a_name_is_a_leaf_or_a_branch(flat):
  with pytest.raises(ValueError, match="a name is a leaf or a branch"):
    tree.unflatten(flat)


def test_overlay_lets_the_top_win_and_changes_neither():
  base, top = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 20, "z": 30}}
  assert tree.overlay(base, top) == {"a": {"x": 1, "y": 20, "z": 30}, "b": 3}
  assert base == {"a": {"x": 1, "y": 2}, "b": 3} and top == {"a": {"y": 20, "z": 30}}


def test_view_is_the_base_overlaid_by_the_role():
  params = {"base": {"net": {"w": 1, "b": 2}}, "policy": {"net": {"w": 10}}}
  assert tree.view(params, "policy") == {"net": {"w": 10, "b": 2}}
  assert tree.view(params, "ref") == {"net": {"w": 1, "b": 2}}
  assert tree.view({"reward": {"w": 1}}, "reward") == {"w": 1}


def test_match_takes_the_first_rule():
  got = tree.match([("bias$", "no"), ("^policy/", "yes"), (".*", "rest")], T)
  assert tree.flatten(got) == {"policy/net/conv/kernel": "yes", "policy/net/conv/bias": "no",
                               "policy/text/embed": "yes", "reward/head/kernel": "rest"}


def test_match_names_the_leaf_and_the_rules():
  with pytest.raises(ValueError, match=r"matches leaf 'reward/head/kernel'; the rules are \['\^policy/'\]; add"):
    tree.match([("^policy/", 1)], T)


def test_partition_and_merge_are_inverse():
  chosen, rest = tree.partition(T, "^policy/net")
  assert chosen == {"policy": {"net": {"conv": {"kernel": 1, "bias": 2}}}}
  assert rest == {"policy": {"text": {"embed": 3}}, "reward": {"head": {"kernel": 4}}}
  assert tree.merge(chosen, rest) == T
  assert tree.partition(T, "nothing") == ({}, T)


def test_merge_refuses_a_clash():
  with pytest.raises(ValueError, match=r"both trees hold \['a/b'\] \(1 in all\)"):
    tree.merge({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})


def test_sizes():
  t = {"a": np.zeros((3, 4), np.float32), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}, "s": np.float32(1)}
  assert tree.count(t) == 18
  assert tree.nbytes(t) == 48 + 10 + 4


def test_a_copy_outlives_the_donation_of_its_original():
  original = {"a": jnp.arange(4.0), "k": jax.random.key(0), "h": np.ones(2)}
  other = tree.copy(original)
  other["h"][0] = 7
  assert original["h"][0] == 1
  out = jax.jit(lambda x: x + 1, donate_argnums=0)(original["a"])
  jax.block_until_ready(out)
  assert original["a"].is_deleted()
  np.testing.assert_array_equal(other["a"], [0, 1, 2, 3])
  assert jnp.array_equal(jax.random.key_data(other["k"]), jax.random.key_data(jax.random.key(0)))
