"""Key frames: which are chosen, what is made of their scores, and that only these are decoded."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moving import scenes
from small import STEPS, batch_of, gradient, params_of, policy

from align import assemble, build, evaluate, shard
from align.algorithms import compare, refl
from rewards import keyframes, mix
from rewards.core import Reward, Scores


def brightness(where="gradient", calls=None, low=0.0):
  """Of pictures: their mean; a picture darker than `low` has no score."""
  def score(view, batch, media, keys):
    assert media.ndim == 4 and ("prompt" in batch) == (where == "host")
    if calls is not None:
      calls.append(media.shape)
    lib = np if where == "host" else jnp
    total = lib.asarray(media).mean((1, 2, 3)) * view["scale"]
    return Scores(total, {"twice": 2 * total}, total >= low)
  return Reward(lambda key: {"scale": jnp.float32(1.0)}, lambda batch: {**batch, "seen": np.ones(len(batch["prompt"]))},
                score, where, None, chunks=3)


def shades(*rows):
  """[B F 2 2 1] clips whose frames are evenly grey."""
  return jnp.asarray(np.array(rows, np.float32)[:, :, None, None, None] * np.ones((2, 2, 1), np.float32))


def judged(media, where="gradient", low=0.0, **options):
  reward = keyframes.make({"taste": brightness(where, low=low)}, **options)
  batch = {"prompt": ["a"] * len(media)} if where == "host" else {}
  return reward.score(reward.init(jax.random.key(0)), batch, np.asarray(media) if where == "host" else media, None)


CLIP = shades([0.1, 0.2, 0.4, 0.3, 0.9])


@pytest.mark.parametrize("options, wanted", [
  ({"choose": "first"}, [0]), ({"choose": "last"}, [4]), ({"choose": "middle"}, [2]), ({}, [0, 2, 4]),
  ({"count": 1}, [0]), ({"count": 2}, [0, 4]), ({"count": 5}, range(5)), ({"frames": [3, -4]}, [3, 1]),
  ({"choose": "change"}, [0, 3, 4]), ({"choose": "change", "count": 1}, [0]),
  ({"choose": "middle", "total": 5}, [2]), ({"total": 5}, [0, 2, 4])])
def test_the_frames_that_are_chosen(options, wanted):
  """Each frame weighs half of the one before it, so that the score tells which frames there were, in which order."""
  frames = keyframes.make({"taste": brightness()}, **options).frames
  given = mix.looked(CLIP, None, frames)
  assert frames is None or given.shape[1] == len(frames) == len(wanted)
  weight = 0.5 ** np.arange(len(wanted))
  expected = (np.array([0.1, 0.2, 0.4, 0.3, 0.9])[list(wanted)] * weight).sum() / weight.sum()
  assert judged(given, decay=0.5, **options).total[0] == pytest.approx(expected, abs=1e-6)


def test_frames_that_are_known_are_named():
  named = lambda **options: keyframes.make({"taste": brightness()}, **options).frames
  assert named(choose="first") == (0,) and named(choose="last") == (-1,) and named(frames=[0, 2, -1]) == (0, 2, -1)
  assert named(total=9) == (0, 4, 8) and named(choose="middle", total=8) == (4,)
  assert named() is named(choose="middle") is named(choose="change", total=8) is None


@pytest.mark.parametrize("rows, count, wanted", [
  ([0, 0, 0, 0, 0], 3, [0, 2, 4]),          # nothing changes: evenly
  ([0, 0, 0, 0, 1], 3, [0, 1, 4]),          # one cut: no frame twice
  ([0, 1, 1, 1, 1], 3, [0, 1, 2]),
  ([0, .1, .2, .3, 1], 2, [0, 4]),
  ([0, .5, 0, .5, .5, .5, .5], 4, [0, 1, 2, 3]),
  ([.2, .3, .4, .5, .6, .7], 6, [0, 1, 2, 3, 4, 5])])
def test_key_frames_by_change(rows, count, wanted):
  found = keyframes.by_change(shades(rows, rows[::-1]), count)
  assert found[0].tolist() == wanted
  assert (np.diff(np.asarray(found), axis=1) > 0).all() and found.min() >= 0 and found.max() < len(rows)


def test_clips_choose_by_themselves():
  media = jnp.asarray(scenes(6))
  found = np.asarray(jax.jit(keyframes.by_change, static_argnums=1)(media, 3))
  np.testing.assert_array_equal(found[::-1], keyframes.by_change(media[::-1], 3))
  assert (found[:, 0] == 0).all() and (np.diff(found) > 0).all()


@pytest.mark.parametrize("where", ["gradient", "host"])
def test_scores_are_pooled_and_a_clip_is_valid_if_all_its_key_frames_are(where):
  media = shades([0.2, 0.4, 0.9], [0.8, 0.1, 0.6])
  mean = judged(media, where)
  np.testing.assert_allclose(mean.total, [0.5, 0.5], rtol=1e-6)
  np.testing.assert_allclose(mean.parts["taste"], mean.total, rtol=1e-6)
  np.testing.assert_allclose(mean.parts["taste/twice"], 2 * mean.total, rtol=1e-6)
  np.testing.assert_allclose(judged(media, where, pool="min").total, [0.2, 0.1], rtol=1e-6)
  np.testing.assert_allclose(judged(media, where, decay=0.5).total, [0.625 / 1.75, 1.0 / 1.75], rtol=1e-6)
  assert judged(media, where, low=0.15).valid.tolist() == [True, False] and mean.valid.all()


def test_it_runs_where_its_rewards_do_and_is_built_from_a_description():
  spec = {"name": "keyframes", "choose": "last", "weights": {"b": 0.5},
          "rewards": {"a": {"name": "jpeg"}, "b": {"name": "jpeg", "prefer": "large"}}}
  made = build.build("rewards", build.resolved("rewards", spec, None, "config.reward"))
  media = np.random.default_rng(0).uniform(size=(2, 1, 8, 8, 3)).astype(np.float32)
  found = made.score({}, {"prompt": ["x"] * 2}, media, None)
  assert made.where == "host" and made.frames == (-1,) and {"a", "b", "b/kilobytes"} <= set(found.parts)
  np.testing.assert_allclose(found.total, found.parts["a"] + 0.5 * found.parts["b"], rtol=1e-6)
  own = keyframes.make({"taste": brightness("device")})
  assert own.where == "device" and own.chunks == 3 and own.init(jax.random.key(0)) == {"taste": {"scale": 1.0}}
  assert "seen" in own.prepare({"prompt": ["x"]})
  deep = {"rewards": {"keys": {**spec, "rewards": {"a": {"name": "aesthetic", "model": "DIR"}}}}}
  assert assemble.described("reward", deep)["reward/keys/a"]["model"] == "DIR"  # where public weights are put


def test_gradient_reaches_the_key_frames_only():
  slope = np.asarray(jax.jit(jax.grad(lambda m: judged(m, choose="change").total.sum()))(CLIP))
  np.testing.assert_allclose(slope[0, :, 0, 0, 0], np.array([1, 0, 0, 1, 1]) / 12, rtol=1e-5)


# --- what is decoded --------------------------------------------------------------------------------------------------


def clips_of(decoded):
  """A policy of clips of five frames, each its picture darkened; notes which frames are decoded."""
  made, dim = policy("ode"), jnp.array([1.0, 0.9, 0.7, 0.4, 0.1])

  def decode(view, x, frames=None):
    decoded.append(frames)
    own = dim if frames is None else dim[np.array(frames)]
    return own[:, None, None, None] * made.decode(view, x)[:, None]
  return made._replace(decode=decode)


def test_direct_optimisation_decodes_the_key_frames_alone():
  decoded, options = [], {"mode": "draft", "phi": "linear", "weight": 1.0, "steps": STEPS}
  made = clips_of(decoded)
  params, batch = params_of(made, 0.1), batch_of(made)
  params["reward"] = {"taste": {"scale": jnp.float32(1.0)}}
  reward = keyframes.make({"taste": brightness()}, frames=(0, 2, -1))
  value, metrics, slope = gradient(refl.make(made, reward, **options), params, batch)
  assert set(decoded) == {(0, 2, -1)}
  whole = keyframes.make({"taste": brightness()}, choose="uniform")
  expected, _, wanted = gradient(refl.make(made, whole, **options), params, batch)
  assert decoded[-1] is None
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(slope, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))
  assert float(metrics["part_taste"]) > 0


def test_in_a_mixture_each_part_gets_its_own_frames():
  seen = []
  parts = {"ends": keyframes.make({"taste": brightness(calls=seen)}, frames=(0, -1)),
           "middle": keyframes.make({"taste": brightness(calls=seen)}, choose="middle", total=5)}
  made = mix.make(parts)
  assert set(made.frames) == {0, 2, -1}
  view = {name: {"taste": {"scale": 1.0}} for name in parts}
  found = made.score(view, {}, mix.looked(CLIP, None, made.frames), None)
  np.testing.assert_allclose([found.parts["ends"][0], found.parts["middle"][0]], [0.5, 0.4], rtol=1e-6)
  assert mix.make({**parts, "all": keyframes.make({"taste": brightness()})}).frames is None


def test_evaluation_and_training_on_pairs_show_the_key_frames_alone():
  reward = keyframes.make({"taste": brightness("host")}, frames=(1, -1))
  view, images = {"taste": {"scale": 1.0}}, np.asarray(shades(*np.random.default_rng(0).uniform(size=(4, 5))) * 255)
  images = images.astype(np.uint8).reshape(2, 2, 5, 2, 2, 1)
  found = evaluate.judge({"keys": (reward, view)}, images, [{"prompt": "a"}, {"prompt": "b"}], batch=3, seed=0,
                         mesh=shard.mesh(devices=jax.devices()[:1]))
  np.testing.assert_allclose(found["keys/total"], images[:, :, [1, 4]].mean((2, 3, 4, 5)) / 255, rtol=1e-5)
  method = compare.make(None, keyframes.make({"taste": brightness()}, frames=(1, -1)))
  batch = {"win": jnp.asarray(images[0]), "lose": jnp.asarray(images[1]), "prompt_id": jnp.arange(2),
           "sample_id": jnp.zeros(2, jnp.int32)}
  value, _ = method.loss({"reward": {"taste": {"scale": jnp.float32(1.0)}}}, method.draw(batch, 0, None),
                         jax.random.key(0))
  margin = found["keys/total"][0] - found["keys/total"][1]
  np.testing.assert_allclose(value, np.log1p(np.exp(-margin)).mean(), rtol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", [
  ({"choose": "best"}, "choose = 'best' is not one of first, middle, last, uniform, change"),
  ({"pool": "max"}, "pool = 'max' is not one of mean, min"), ({"count": 0}, "count = 0 must be at least 1"),
  ({"total": 2}, "total = 2 frames of a clip must be at least count = 3"),
  ({"frames": []}, r"frames = \(\) must be one or more"), ({"frames": [1, 1]}, r"frames = \(1, 1\) must be"),
  ({"decay": 0.0}, "decay = 0.0 must be more than 0"), ({"decay": 1.5}, "decay = 1.5 must be"),
  ({"weights": {"tast": 1.0}}, "weights has 'tast', which is none of the rewards taste")])
def test_options_that_cannot_be_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    keyframes.make({"taste": brightness()}, **options)


def test_rewards_of_clips_are_refused():
  with pytest.raises(ValueError, match=r"rewards: 'taste' judges frames \(0,\) of clips"):
    keyframes.make({"taste": brightness()._replace(frames=(0,))})


@pytest.mark.parametrize("media, options, message", [
  (CLIP[0], {}, r"reward 'keyframes': media have shape \(5, 2, 2, 1\), but it judges frames of clips"),
  (CLIP, {"choose": "first"}, r"clips of 5 frames are given, but it looks at frames \(0,\)"),
  (CLIP, {"count": 6}, "count = 6 key frames of clips of 5; lower count"),
  (CLIP, {"choose": "change", "count": 6}, "count = 6 key frames of clips of 5; lower count")])
def test_media_that_cannot_be_judged_are_refused(media, options, message):
  with pytest.raises(ValueError, match=message):
    judged(media, **options)
