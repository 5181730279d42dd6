"""The motion reward: closed forms, what it does not depend on, planted defects, gradients, refusals."""
import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moving import DEFECTS, scenes, steady, texture

from align import assemble
from diffusion import eyes
from rewards import motion

SIDE, FRAMES = 32, 6
SPEED = {"right": (1.0, 0.0), "slowly": (0.0, -0.2), "diagonal": (1.5, 1.5)}
reward = motion.make()
score = jax.jit(lambda media: reward.score({}, {}, media, None))


@pytest.fixture(scope="module")
def clips():
  """Clips [B F 32 32 3] by name, judged in one batch."""
  still = np.repeat(texture([(0, 0)]), FRAMES, 0)
  blink = 0.06 * (np.arange(FRAMES) % 2)[:, None, None, None]
  forth = texture(np.array([[0, 0], [1.5, 0]] * (FRAMES // 2)))
  made = {**{name: steady(speed, FRAMES) for name, speed in SPEED.items()}, "still": still, "blink": still + blink,
          "forth": forth, "grey": 0 * still + 0.5, "brighter": steady(SPEED["right"], FRAMES) + 0.1}
  return {name: clip.astype(np.float32) for name, clip in made.items()}


@pytest.fixture(scope="module")
def found(clips):
  """{name: {part: number}}"""
  scores = jax.tree.map(np.asarray, score(np.stack([*clips.values()])))
  assert scores.valid.all()
  return {name: {"total": scores.total[i], **{k: v[i] for k, v in scores.parts.items()}}
          for i, name in enumerate(clips)}


@pytest.mark.parametrize("name", SPEED)
def test_amplitude_is_the_speed(found, name):
  sides = np.hypot(*SPEED[name]) / SIDE
  assert found[name]["amplitude"] == pytest.approx(sides, rel=0.08, abs=0.1 / SIDE)
  assert found[name]["dynamic"] == pytest.approx(min(found[name]["amplitude"] / motion.FULL, 1), abs=1e-3)
  assert found[name]["jitter"] < 0.1 / SIDE and found[name]["smooth"] > 0.87 and found[name]["flicker"] < 0.005


def test_a_frozen_clip_has_no_motion_and_the_penalty(found):
  for name in ("still", "grey"):
    own = found[name]
    assert own["amplitude"] == own["jitter"] == own["flicker"] == own["dynamic"] == 0
    assert own["static"] == own["smooth"] == own["steady"] == 1
    assert own["total"] == 1 + 1 - 1 < min(found[other]["total"] for other in SPEED)
  assert found["right"]["static"] < 1e-4 and found["slowly"]["static"] < 0.1


def test_alternating_brightness_is_flicker_and_no_motion(found):
  assert found["blink"]["flicker"] == pytest.approx(0.06, rel=1e-3)
  assert found["blink"]["steady"] == pytest.approx(0.94, abs=1e-3)
  assert found["blink"]["amplitude"] < 1e-5 and found["blink"]["static"] > 0.99


def test_going_back_and_forth_is_jitter(found):
  """The velocity changes by twice itself from frame to frame."""
  assert found["forth"]["jitter"] == pytest.approx(2 * 1.5 / SIDE, rel=0.1)
  assert found["forth"]["amplitude"] == pytest.approx(1.5 / SIDE, rel=0.1) and found["forth"]["flicker"] < 0.01
  assert found["forth"]["smooth"] == pytest.approx(np.exp(-found["forth"]["jitter"] / motion.FULL), abs=0.01)
  assert found["forth"]["total"] < found["right"]["total"] - 0.5


def test_change_is_measured_along_the_way():
  """A square that flows two pixels to the right and is there then; the next time it turns back."""
  flow = np.zeros((1, 3, 9, 12, 2), np.float32)
  for t, (at, speed) in enumerate(((2, 2), (4, 2), (6, -2))):
    flow[0, t, 3:6, at:at + 3, 0] = speed / 9
  found = motion.changed(jnp.asarray(flow), jnp.ones((1, 3, 9, 12)), 9)
  np.testing.assert_allclose(found, [[0, 4 / 9]], rtol=1e-3, atol=1e-6)


def test_a_brighter_clip_moves_alike(found):
  for part in ("amplitude", "jitter", "flicker", "total"):
    assert found["brighter"][part] == pytest.approx(found["right"][part], abs=1e-4)


def test_clips_of_a_batch_do_not_touch(clips, found):
  backwards = score(np.stack([*clips.values()])[::-1])
  np.testing.assert_allclose(backwards.total[::-1], [own["total"] for own in found.values()], atol=1e-5)


@pytest.fixture(scope="module")
def planted():
  """Totals of 64 clips of Scenes and of the same with each defect."""
  rng, media = np.random.default_rng(0), scenes(64)
  return np.asarray(score(media).total), {name: np.asarray(score(plant(media, rng)).total)
                                          for name, plant in DEFECTS.items()}


@pytest.mark.parametrize("name", DEFECTS)
def test_clean_clips_are_preferred(planted, name):
  clean, worse = planted
  assert (clean > worse[name]).mean() >= 0.95


def test_the_total_is_the_weighted_sum():
  media = scenes(2, frames=3)[:, :, :, :11]
  own = motion.make({"dynamic": 2.0, "static": -3.0, "smooth": 0.0}, full=0.1, rough=0.02, still=0.03)
  both = jax.jit(lambda media: (own.score({}, {}, media, None), motion.measure(media)))
  parts, found = jax.tree.map(np.asarray, both(media))
  p = parts.parts
  np.testing.assert_allclose(parts.total, 2 * p["dynamic"] + p["steady"] - 3 * p["static"], rtol=1e-5)
  np.testing.assert_allclose(p["dynamic"], np.minimum(found.amplitude / 0.1, 1).mean(1), rtol=1e-4)
  np.testing.assert_allclose(p["static"], np.exp(-found.amplitude / 0.03).mean(1), rtol=1e-4)
  np.testing.assert_allclose(p["smooth"], np.exp(-found.jitter / 0.02).mean(1), rtol=1e-4)
  np.testing.assert_allclose(p["steady"], 1 - found.flicker.mean(1), rtol=1e-5)


def test_two_frames_have_no_change_of_flow_and_large_frames_are_averaged():
  clip = steady((2, 0), 2, size=23)[None].astype(np.float32)
  small = clip[:, :, :22, :22].reshape(1, 2, 11, 2, 11, 2, 3).mean((3, 5))
  np.testing.assert_allclose(motion.reduced(jnp.asarray(clip), 12), small, atol=1e-6)
  found = jax.jit(motion.measure, static_argnums=1)(clip, 12)
  assert found.flow.shape == (1, 1, 11, 11, 2) and found.jitter.tolist() == [[0]]
  np.testing.assert_allclose(found.amplitude, 1 / 11, rtol=0.1)


def test_consistency_is_the_cosine_to_the_frame_before_and_to_the_first(tmp_path):
  folder = str(encoders.dinov2(tmp_path)[0])
  own, opened = motion.make({"consistency": 2.0}, model=folder), eyes.open_(folder)
  view, media = {"net": eyes.load(opened)}, scenes(2, frames=3)[:, :, :11, :11]
  media = np.stack([media[0], np.repeat(media[1][:1], 3, 0)])  # the second one is frozen
  found, seen = jax.jit(lambda view, media: (own.score(view, {}, media, None), jax.vmap(
    lambda clip: eyes.see(opened, view["net"], clip))(media)))(view, media)
  a, b, c = np.asarray(seen).transpose(1, 0, 2)
  cosine = lambda u, v: np.maximum((u * v).sum(-1), 0)
  wanted = (cosine(b, a) + (cosine(c, b) + cosine(c, a)) / 2) / 2
  np.testing.assert_allclose(found.parts["consistency"], wanted, rtol=1e-5)
  assert wanted[1] == pytest.approx(1, abs=1e-5) and wanted[0] < 1 - 1e-5
  terms = sum(motion.WEIGHTS[name] * found.parts[name] for name in ("dynamic", "smooth", "steady", "static"))
  np.testing.assert_allclose(found.total, terms + 2 * wanted, rtol=1e-5)
  assert jax.tree.structure(jax.eval_shape(own.init, jax.random.key(0))) == jax.tree.structure(view)
  place = assemble.Place({"reward": view}, None, "")
  assert assemble.begun(place, None, {"name": "motion", "model": folder}) == {"reward": folder}


@pytest.mark.parametrize("kind", ["constant", "frozen", "noise"])
def test_gradients_are_finite(kind):
  rng = np.random.default_rng(3)
  media = rng.uniform(size=(1, 3, 11, 14, 1)).astype(np.float32)
  media = {"constant": 0 * media + 0.2, "frozen": np.repeat(media[:, :1], 3, 1), "noise": media}[kind]
  slope = SLOPE(media)
  assert jnp.isfinite(slope).all() and (kind == "constant" or jnp.abs(slope).max() > 0)


SLOPE = jax.jit(jax.grad(lambda media: reward.score({}, {}, media, None).total.sum()))


def test_gradient_is_that_of_finite_differences():
  with jax.enable_x64(True):
    rng = np.random.default_rng(4)
    media = jnp.asarray(texture([(0, 0), (0.3, 0.2), (0.8, 0.1)], 11, 1))[None]
    way = rng.normal(size=media.shape)
    weights = {"amplitude": 3.0, "jitter": 5.0, "flicker": -50.0}  # so that each moves the sum

    def value(e):
      found = motion.measure(media + e * way)
      return sum(weight * getattr(found, part).sum() for part, weight in weights.items())
    value, slope = jax.jit(value), jax.jit(jax.grad(value))
    np.testing.assert_allclose(slope(0.0), (value(1e-6) - value(-1e-6)) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 1, 8, 8, 3), (2, 0, 8, 8, 3)])
def test_pictures_and_clips_of_one_frame_are_refused(shape):
  with pytest.raises(ValueError, match=r"reward 'motion': media have shape .*clips \[B F H W C\] of at least 2 frames"):
    reward.score({}, {}, np.zeros(shape, np.float32), None)


@pytest.mark.parametrize("options, message", [
  ({"weights": {"smoth": 1.0}}, "weights has 'smoth', which is not one of dynamic, smooth"),
  ({"full": 0.0}, "full = 0.0 must be more than 0"), ({"rough": -1.0}, "rough = -1.0 must"),
  ({"still": 0.0}, "still = 0.0 must"), ({"side": 0}, "side = 0 must")])
def test_options_that_cannot_be_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    motion.make(**options)
