"""The detector of Scenes: right on renders, silent on noise, and never fooled by captions that are false."""
import collections
import time

import numpy as np
import pytest

from rewards import scenes


def things(objects):
  return collections.Counter((o["shape"], o["color"]) for o in objects)


@pytest.mark.parametrize("size", [16, 32])
def test_accuracy_on_renders_and_false_positives(size):
  count = 3000
  media, _, specs = scenes.batch(11, 0, count, size=size)
  found = scenes.detect(media)
  right = [scenes.check(s, f) for s, f in zip(specs, found, strict=True)]
  exact = [scenes.check(s, f, exact=True) for s, f in zip(specs, found, strict=True)]
  same = [things(s["objects"]) == things(f) for s, f in zip(specs, found, strict=True)]
  assert min(np.mean(right), np.mean(exact), np.mean(same)) >= .995
  rng, false, fooled = np.random.default_rng(0), 0, 0
  for _ in range(4):
    for i, j in enumerate(rng.permutation(count)):
      if not scenes.check(specs[j], specs[i]["objects"]):
        false += 1
        fooled += scenes.check(specs[j], found[i])
  assert false > 2 * count and fooled / false <= .001


def test_positions_and_sizes_are_exact():
  media, _, specs = scenes.batch(2, 0, 500, categories=["single", "color"])
  for spec, found in zip(specs, scenes.detect(media), strict=True):
    truth = spec["objects"][0]
    assert all(abs(truth[name] - found[0][name]) < .015 for name in ("x", "y", "r"))


def test_floats_and_bytes_agree_and_a_small_error_changes_nothing():
  media, _, specs = scenes.batch(3, 0, 400)
  noisy = np.clip(media / 255 + np.random.default_rng(0).normal(0, .06, media.shape), 0, 1).astype(np.float32)
  plain, floats, noised = scenes.detect(media), scenes.detect(media.astype(np.float32) / 255), scenes.detect(noisy)
  assert plain == floats
  assert np.mean([scenes.check(s, f) for s, f in zip(specs, noised, strict=True)]) > .98


def test_junk_is_reported():
  image = np.tile(np.float32(scenes.world.BACKGROUND) / 255, (3, 16, 16, 1))
  assert scenes.detect(image) == [[], [], []]
  image[0, 4:6, 2:14] = np.float32(scenes.COLORS["red"]) / 255       # a bar
  image[1, 4:9, 4:9] = .8                                            # a grey square
  image[2, 3, 3] = np.float32(scenes.COLORS["red"]) / 255            # a speck
  bar, grey, speck = scenes.detect(image)
  assert [o["shape"] for o in bar] == ["junk"] and [o["shape"] for o in grey] == ["junk"] and speck == []
  noise = np.random.default_rng(0).random((50, 16, 16, 3))
  assert np.mean([o["shape"] == "junk" for found in scenes.detect(noise) for o in found] or [1]) > .95


def test_the_detector_is_fast():
  media, _, specs = scenes.batch(1, 0, 1000)
  start = time.process_time()
  for spec, found in zip(specs, scenes.detect(media), strict=True):
    scenes.check(spec, found)
    scenes.soft(spec, found)
  assert time.process_time() - start < 1.5  # .3 s on a quiet core


def test_clips_are_recognised_and_nearly_right_captions_refused():
  media, texts, specs = scenes.clip.batch(0, 0, 300)
  assert media.shape == (300, 8, 16, 16, 3) and max(len(t.split()) for t in texts) <= 20
  found, rng, fooled = scenes.clip.detect(media), np.random.default_rng(0), 0
  assert np.mean([scenes.clip.check(s, f) for s, f in zip(specs, found, strict=True)]) >= .995
  assert all(scenes.clip.soft(s, f) == 1 for s, f in zip(specs, found, strict=True) if scenes.clip.check(s, f))
  changes = {"direction": list(scenes.clip.DIRECTIONS), "speed": list(scenes.clip.SPEEDS),
             "color": list(scenes.COLORS), "class": list(scenes.SHAPES)}
  for spec, frames in zip(specs, found, strict=True):
    for name, values in changes.items():
      first = spec["motion"][0]
      other = rng.choice([v for v in values if v != first[name]])
      asserted = {**spec, "motion": [{**first, name: other}]}
      twins = any(o["shape"] == asserted["motion"][0]["class"] and o["color"] == asserted["motion"][0]["color"]
                  for o in spec["objects"]) and name in ("color", "class")
      fooled += not twins and scenes.clip.check(asserted, frames)
      assert twins or scenes.clip.soft(asserted, frames) < 1
  assert fooled == 0
  still = np.repeat(media[:50, :1], 8, 1)
  assert not any(scenes.clip.check(s, f) for s, f in zip(specs, scenes.clip.detect(still), strict=False))


def test_clips_hold_things_out_and_are_a_function_of_their_number():
  keys = [{k for s in scenes.clip.batch(0, 0, 200, split)[2] for k in s["key"].split("/")[1:]}
          for split in ("train", "test")]
  held = {k for k in keys[0] | keys[1] if scenes.clip.held(tuple(k.split("-")))}
  assert not keys[0] & held and held <= keys[1]
  media, texts, specs = scenes.clip.batch(0, 0, 5)
  one = scenes.clip.batch(0, 3, 1)
  assert (one[0][0] == media[3]).all() and one[1][0] == texts[3] and one[2][0] == specs[3]


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 1), (2, 16, 12, 3)])
def test_images_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match="B H W 3"):
    scenes.detect(np.zeros(shape))
