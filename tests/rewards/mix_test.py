"""Mixtures: what they add, on which scale, behind which thresholds, of which frames, what makes a sample invalid."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards import mix
from rewards.core import Reward, Scores

MEDIA = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
BATCH = {"sample_id": jnp.tile(jnp.arange(3), 2), "prompt": ["a"] * 6, "meta": [{}] * 6}


def part(scale, where="gradient", broken=(), params=None):
  def score(view, batch, media, keys):
    total = scale * media.mean((1, 2, 3)) + view.get("bias", 0.0)
    if where == "host":
      assert "prompt" in batch
    else:
      assert "prompt" not in batch
    return Scores(total, {"raw": total / scale}, jnp.asarray([i not in broken for i in range(len(media))]))
  return Reward(lambda key: params or {}, lambda b: {**b, f"seen_{scale}": True}, score, where, None)


def numeric(batch):
  return {k: v for k, v in batch.items() if k not in ("prompt", "meta")}


def test_weighted_sum_and_parts():
  made = mix.make({"a": part(1.0, params={"bias": 0.5}), "b": part(10.0)}, {"b": 0.2})
  scores = made.score({"a": {"bias": 0.5}}, numeric(BATCH), MEDIA, None)
  mean = MEDIA.mean((1, 2, 3))
  np.testing.assert_allclose(scores.total, 3 * mean + 0.5, rtol=1e-5)
  assert set(scores.parts) == {"a", "a/raw", "b", "b/raw"} and scores.valid.all()
  np.testing.assert_allclose(scores.parts["b"], 10 * mean, rtol=1e-5)
  assert made.init(jax.random.key(0)) == {"a": {"bias": 0.5}}
  assert {"seen_1.0", "seen_10.0"} <= set(made.prepare(BATCH))


@pytest.mark.parametrize("kinds, where", [(("gradient", "gradient"), "gradient"), (("gradient", "device"), "device"),
                                          (("host", "gradient"), "host")])
def test_the_least_capable_part_decides_where(kinds, where):
  made = mix.make({"a": part(1.0, kinds[0]), "b": part(2.0, kinds[1])})
  assert made.where == where
  batch = BATCH if where == "host" else numeric(BATCH)
  np.testing.assert_allclose(made.score({}, batch, MEDIA, None).total, 3 * MEDIA.mean((1, 2, 3)), rtol=1e-5)


def test_a_mixture_of_gradient_parts_has_a_gradient():
  made = mix.make({"a": part(1.0), "b": part(2.0)}, normalise="batch")
  assert jnp.abs(jax.grad(lambda m: made.score({}, numeric(BATCH), m, None).total[0])(jnp.asarray(MEDIA))).max() > 0


def test_one_broken_part_makes_a_sample_invalid_and_leaves_the_others_alone():
  made = mix.make({"a": part(1.0), "b": part(2.0, broken=(1,))}, normalise="batch")
  scores = made.score({}, numeric(BATCH), MEDIA, None)
  assert scores.valid.tolist() == [True, False, True, True, True, True]
  first = mix.make({"a": part(1.0, broken=(4,)), "b": part(2.0)}).score({}, numeric(BATCH), MEDIA, None)
  assert first.valid.tolist() == [True, True, True, True, False, True]
  z, mean = lambda v: (v - v.mean()) / v.std(), MEDIA.mean((1, 2, 3))
  expected = np.delete(z(mean), 1) + z(np.delete(2 * mean, 1))
  np.testing.assert_allclose(np.delete(np.asarray(scores.total), 1), expected, atol=1e-4)


def test_z_scores_of_groups_and_no_variance():
  made = mix.make({"a": part(5.0)}, normalise="group")
  total = np.asarray(made.score({}, numeric(BATCH), MEDIA, None).total).reshape(2, 3)
  np.testing.assert_allclose(total.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(total.std(-1), 1, atol=1e-4)
  same = np.broadcast_to(MEDIA[:1], MEDIA.shape)
  assert (made.score({}, numeric(BATCH), same, None).total == 0).all()


def test_equal_scores_have_a_finite_gradient():
  same = jnp.broadcast_to(jnp.asarray(MEDIA[:1]), MEDIA.shape)
  made = mix.make({"a": part(5.0)}, normalise="group")
  assert jnp.isfinite(jax.grad(lambda m: made.score({}, numeric(BATCH), m, None).total[0])(same)).all()


def test_frozen_statistics_are_leaves():
  made = mix.make({"a": part(5.0), "b": part(1.0)}, normalise="frozen")
  plain = made.score(made.init(jax.random.key(0)), numeric(BATCH), MEDIA, None)
  np.testing.assert_allclose(plain.total, 6 * MEDIA.mean((1, 2, 3)), rtol=1e-5)
  stats = mix.calibration({"a": plain.parts["a"], "b": plain.parts["b"]})
  assert jax.tree.structure(stats) == jax.tree.structure(made.init(jax.random.key(0))["mix"])
  total = np.asarray(made.score({"mix": stats}, numeric(BATCH), MEDIA, None).total)
  np.testing.assert_allclose([total.mean(), total.std()], [0, 2], atol=1e-3)


# --- scales and thresholds, on scores that are known -----------------------------------------------------------------


def known(values, valid=True, chunks=1, frames=None):
  """A reward that gives these scores."""
  scores = Scores(jnp.asarray(values, jnp.float32), {}, jnp.broadcast_to(valid, np.shape(values)))
  return Reward(lambda key: {}, lambda b: b, lambda view, batch, media, keys: scores, "device", frames, chunks=chunks)


def total_of(made, view=(), ids=BATCH["sample_id"], media=MEDIA):
  return made.score(dict(view), {"sample_id": ids}, media, None)


A, B = np.array([1.0, 2, 6, -1, 0, 7]), np.array([0.2, 0.9, 0.4, 0.7, 0.5, 0.1])
z = lambda v: (v - v.mean(-1, keepdims=True)) / v.std(-1, keepdims=True)


def test_each_part_has_a_scale_and_a_limit_of_its_own():
  made = mix.make({"a": known(A), "b": known(B), "c": known(B)}, {"a": 2.0}, {"a": "batch", "b": "group"}, {"a": 1.0})
  scores = total_of(made)
  scaled = {"a": np.clip(z(A), -1, 1), "b": z(B.reshape(2, 3)).reshape(-1)}
  np.testing.assert_allclose(scores.total, 2 * scaled["a"] + scaled["b"] + B, atol=1e-5)
  assert set(scores.parts) == {"a", "a/scaled", "b", "b/scaled", "c"}
  for name, raw in (("a", A), ("b", B)):
    np.testing.assert_array_equal(scores.parts[name], raw.astype(np.float32))
    np.testing.assert_allclose(scores.parts[f"{name}/scaled"], scaled[name], atol=1e-5)
  assert np.abs(total_of(mix.make({"a": known(A)}, normalise="batch", clip=0.5)).total).max() == 0.5


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_shift_and_scale_of_a_score_change_nothing_and_samples_only_move(kind):
  made = lambda a, b: total_of(mix.make({"a": known(a), "b": known(b)}, normalise=kind)).total
  plain = made(A, B)
  np.testing.assert_allclose(made(100 * A - 7, B), plain, atol=1e-4)
  order = np.array([2, 0, 1, 4, 5, 3])  # within the prompts
  np.testing.assert_allclose(made(A[order], B[order]), plain[order], atol=1e-5)
  swapped = np.array([3, 4, 5, 0, 1, 2])  # prompts
  np.testing.assert_allclose(made(A[swapped], B[swapped]), plain[swapped], atol=1e-5)


def test_group_boundaries_are_where_sample_id_is_0():
  made = mix.make({"a": known(A)}, normalise="group")
  found = np.asarray(total_of(made, ids=jnp.array([0, 1, 0, 1, 2, 3])).total)
  np.testing.assert_allclose(found, np.concatenate([z(A[:2]), z(A[2:])]), atol=1e-5)


def test_an_invalid_sample_is_no_part_of_the_statistics():
  valid = jnp.arange(6) != 5
  scores = total_of(mix.make({"a": known(np.where(valid, A, np.nan), valid)}, normalise="batch"))
  np.testing.assert_allclose(scores.total[:5], z(A[:5]), atol=1e-5)
  assert scores.total[5] == 0 and scores.valid.tolist() == [True] * 5 + [False]


def test_passes_are_binary_hinges_stop_counting_and_both_come_before_the_scale():
  made = mix.make({"a": known(A), "b": known(B)}, passes={"a": 2.0}, hinges={"b": 0.5})
  scores = total_of(made)
  np.testing.assert_allclose(scores.parts["a/scaled"], [0, 1, 1, 0, 0, 1])
  np.testing.assert_allclose(scores.parts["b/scaled"], [-0.3, 0, -0.1, 0, 0, -0.4], atol=1e-6)
  np.testing.assert_allclose(scores.total, scores.parts["a/scaled"] + scores.parts["b/scaled"], atol=1e-6)
  scaled = total_of(mix.make({"a": known(A)}, normalise="batch", passes={"a": 2.0}))
  np.testing.assert_allclose(scaled.total, [-1, 1, 1, -1, -1, 1], atol=1e-5)
  frozen = mix.make({"a": known(A), "b": known(B)}, normalise={"a": "frozen"}, hinges={"a": 2.0})
  stats = frozen.calibrate({"a": A, "b": B})
  assert set(stats) == set(frozen.init(jax.random.key(0))["mix"]) == {"a"}
  np.testing.assert_allclose(total_of(frozen, {"mix": stats}).total, z(np.minimum(A - 2, 0)) + B, atol=1e-4)


def test_a_shut_gate_replaces_the_total_and_the_lowest_counts():
  made = mix.make({"a": known(A), "b": known(B)}, {"b": 0.0}, gates={"b": (0.4, -9.0), "a": (1.0, -3.0)})
  scores = total_of(made)  # b shuts samples 0 and 5 (0.4 itself passes), a shuts 3 and 4
  np.testing.assert_array_equal(scores.total, [-9, 2, 6, -3, -3, -9])
  assert scores.valid.all()  # judged and found wanting, which is no failure to judge
  both = mix.make({"a": known(A), "b": known(B)}, gates={"b": (1.0, -1.0), "a": (10.0, -2.0)})
  np.testing.assert_array_equal(total_of(both).total, [-2.0] * 6)


def test_a_shut_gate_has_no_gradient():
  made = mix.make({"a": part(1.0)}, gates={"a": (float(np.sort(MEDIA.mean((1, 2, 3)))[3]), -1.0)})
  slope = jax.grad(lambda m: made.score({}, numeric(BATCH), m, None).total.sum())(jnp.asarray(MEDIA))
  moved = np.abs(slope).max((1, 2, 3)) > 0
  np.testing.assert_array_equal(moved, made.score({}, numeric(BATCH), MEDIA, None).total > 0)
  assert moved.sum() == 3


def test_chunks_are_those_of_the_parts_unless_all_must_be_seen():
  chunks = lambda *each, **options: mix.make({str(i): known(A, chunks=c) for i, c in enumerate(each)}, **options).chunks
  assert chunks(1, 4) == 4 and chunks(1, None) is None and chunks(4, normalise="group") == 4
  assert chunks(4, 4, normalise={"1": "batch"}) is None


# --- frames -----------------------------------------------------------------------------------------------------------


CLIP = np.arange(2 * 8, dtype=np.float32).reshape(2, 8, 1, 1, 1) * np.ones((1, 1, 2, 2, 1), np.float32)


def watcher(frames, seen):
  def score(view, batch, media, keys):
    seen.append(media[0, ..., 0, 0, 0].tolist())
    return Scores(media.reshape(len(media), -1).mean(-1), {}, jnp.ones(len(media), bool))
  return Reward(lambda key: {}, lambda b: b, score, "device", frames)


@pytest.mark.parametrize("wanted, frames, cut", [
  (((0, 4), (-1, 4)), (0, 4, -1), [0, 4, 7]),
  (((-1,), (-3, 2)), (2, -3, -1), [2, 5, 7]),
  (((0,), None), None, list(range(8))),
  (((3, 1), (1, 3)), (1, 3), [1, 3]),
])
def test_a_mixture_looks_at_the_union_and_each_part_at_its_own(wanted, frames, cut):
  seen = []
  made = mix.make({str(i): watcher(f, seen) for i, f in enumerate(wanted)})
  assert made.frames == frames
  expected = [list(range(8)) if f is None else [i % 8 for i in f] for f in wanted]
  for media in (CLIP[:, cut], CLIP):  # what was asked for, or the whole clip
    seen.clear()
    made.score({}, {}, media, None)
    assert seen == expected
  pictures = CLIP[:, 0]
  np.testing.assert_allclose(made.score({}, {}, pictures, None).total, 2 * pictures.mean((1, 2, 3)))


def test_frames_that_a_clip_does_not_have_are_refused():
  made = mix.make({"a": watcher((0, 9), [])})
  with pytest.raises(ValueError, match=r"frames \(0, 9\) of a reward are not all in a clip of 8 frames; choose frames"):
    made.score({}, {}, CLIP, None)


@pytest.mark.parametrize("call, message", [
  (lambda: mix.make({"a": part(1.0)}, normalise={"b": "batch"}), "normalise has 'b', which is none of the rewards a"),
  (lambda: mix.make({"a": part(1.0)}, normalise={"a": "std"}), "normalise of 'a' = 'std' is not one of none, batch"),
  (lambda: mix.make({"a": part(1.0)}, clip=3.0), "clip of 'a' = 3.0 with normalise = 'none': it cuts normalised"),
  (lambda: mix.make({"a": part(1.0)}, normalise="batch", clip=-1.0), "clip of 'a' = -1.0 .* must be positive"),
  (lambda: mix.make({"a": part(1.0)}, normalise="batch", clip={"b": 1.0}), "clip has 'b', which is none of the"),
  (lambda: mix.make({"a": part(1.0)}, {"a": float("nan")}), "weights of 'a' = nan must be a number; correct it"),
  (lambda: mix.make({"a": part(1.0)}, passes={"a": "high"}), "passes of 'a' = 'high' must be a number"),
  (lambda: mix.make({"a": part(1.0)}, hinges={"b": 1.0}), "hinges has 'b', which is none of the rewards a"),
  (lambda: mix.make({"a": part(1.0)}, gates={"a": 0.5}), "gates of 'a' = 0.5 must be two numbers, the least score and"),
  (lambda: mix.make({}), "rewards = {}: a mixture needs at least one reward"),
  (lambda: mix.make({"mix": part(1.0)}), "a part called 'mix'"),
  (lambda: mix.make({"a": part(1.0)}, {"b": 1.0}), "weights has 'b', which is none of the rewards a"),
  (lambda: mix.make({"a": part(1.0)}, normalise="std"), "normalise = 'std' is not one of none, batch, group, frozen"),
  (lambda: mix.calibration({"a": [1.0, 1.0]}), "calibration of 'a': 2 valid scores"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
