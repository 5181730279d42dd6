"""Scenes: what is drawn, what is said about it, and what is held out."""
import collections
import json

import numpy as np
import pytest

from rewards import scenes
from rewards.scenes import combos, long, render
from rewards.scenes import world as worlds
from rewards.scenes.check import check


def implies(a, b):
  """Whether what `a` asserts contains what `b` asserts; things of a relation in their order, others in any."""
  def thing(one, other):
    return other[0] in (one[0], "object") and all(not y or x == y for x, y in zip(one[1:], other[1:], strict=True))
  orders = [a.things] if a.relation else [a.things, a.things[::-1]]
  return (a.count, a.relation) == (b.count, b.relation) and any(all(map(thing, order, b.things)) for order in orders)


@pytest.mark.parametrize("category", scenes.CATEGORIES)
def test_the_splits_share_no_combination_and_none_implies_another(category):
  train, test = ({c.key for c in combos.split(category, name)} for name in ("train", "test"))
  assert not train & test and train | test == {c.key for c in combos.combos(category)}
  refined = sum(c.refined for c in combos.combos(category))
  assert len(test) >= 4 and .15 <= len(test) / refined <= .25
  assert all(c.refined for c in combos.split(category, "test"))
  assert not any(implies(t, h) for h in combos.split(category, "test") for t in combos.split(category, "train"))


def test_every_word_of_a_held_out_combination_is_trained_on():
  for category in scenes.CATEGORIES:
    words = [{w for c in combos.split(category, name) for thing in c.things for w in thing if w}
             for name in ("train", "test")]
    assert words[1] <= words[0], category


def test_a_relation_and_its_converse_are_one_combination():
  _, texts, specs = scenes.batch(0, 0, 4000, categories=["position"])
  by_key = collections.defaultdict(set)
  for text, spec in zip(texts, specs, strict=True):
    by_key[spec["key"]].add(text)
  assert any(" left of " in a and " right of " in b for found in by_key.values() for a in found for b in found)
  owners = collections.defaultdict(set)
  for key, found in by_key.items():
    for text in found:
      owners[text.split(" of ", 1)[-1] if text.startswith(("a photo", "a picture", "an image")) else text].add(key)
  assert all(len(keys) == 1 for keys in owners.values())  # a wording never has two meanings


def test_batches_are_a_function_of_seed_split_and_number():
  media, texts, specs = scenes.batch(3, 1000, 50)  # over the border of two chunks
  for i in (0, 23, 24, 49):
    one = scenes.batch(3, 1000 + i, 1)
    assert (one[0][0] == media[i]).all() and one[1] == [texts[i]] and one[2] == [specs[i]]
  for other in (scenes.batch(4, 1000, 50), scenes.batch(3, 1000, 50, "test"), scenes.batch(3, 1050, 50)):
    assert (other[0] != media).any() and other[1] != texts
  assert media.dtype == np.uint8 and media.shape == (50, 16, 16, 3)
  assert json.loads(json.dumps(specs)) == specs


def test_splits_are_kept_by_batches_and_prompts():
  keys = {}
  for split in ("train", "test"):
    specs = scenes.batch(0, 0, 3000, split)[2] + [spec for _, spec in scenes.prompts(split, 600)]
    keys[split] = {spec["key"] for spec in specs}
    assert keys[split] <= {c.key for kind in scenes.CATEGORIES for c in combos.split(kind, split)}
  assert not keys["train"] & keys["test"]
  texts = [set(scenes.batch(0, 0, 3000, split)[1]) for split in ("train", "test")]
  assert not texts[0] & texts[1]


def test_prompts_are_balanced_and_cover_their_combinations():
  prompts = scenes.prompts("test", 480)
  assert collections.Counter(spec["category"] for _, spec in prompts) == dict.fromkeys(scenes.CATEGORIES, 80)
  for kind in scenes.CATEGORIES:
    counts = collections.Counter(spec["key"] for _, spec in prompts if spec["category"] == kind)
    assert set(counts) == {c.key for c in combos.split(kind, "test")}
    assert max(counts.values()) - min(counts.values()) <= 1
  assert prompts == scenes.prompts("test", 480) != scenes.prompts("test", 480, seed=1)


def test_captions_are_short_and_their_words_few():
  texts = scenes.batch(0, 0, 5000)[1] + [text for text, _ in scenes.prompts("test", 480)]
  words = {word for text in texts for word in text.split()}
  assert max(len(text.split()) for text in texts) <= 16 and len(words) <= 40
  long_texts = scenes.batch(0, 0, 300, categories=["long"])[1]
  assert max(len(text.split()) for text in long_texts) <= 48 and len(words.union(*map(str.split, long_texts))) <= 44


@pytest.mark.parametrize("size", [16, 64])
def test_renders_satisfy_their_specs_with_room(size):
  media, _, specs = scenes.batch(5, 0, 600, size=size)
  assert media.shape == (600, size, size, 3)
  for spec in specs:
    assert check(spec, spec["objects"], exact=True)
    boxes = [(np.array([o["x"], o["y"]]), np.multiply(worlds.EXTENT[o["shape"]], o["r"])) for o in spec["objects"]]
    assert all((centre - half > 0).all() and (centre + half < 1).all() for centre, half in boxes)
    gaps = [(np.abs(a[0] - b[0]) - a[1] - b[1]).max() for i, a in enumerate(boxes) for b in boxes[:i]]
    assert min(gaps, default=1) > worlds.World().gap - 1e-3


def test_coverage_is_the_area_of_the_shape():
  for shape, area in enumerate((np.pi, 3.24, 2.52)):
    mask = render.coverage(np.array([shape]), np.array([.5]), np.array([.5]), np.array([.3]), 128)[0]
    assert abs(mask.sum() / (area * (.3 * 128) ** 2) - 1) < .01


def test_attributes_that_captions_leave_open_vary():
  specs = scenes.batch(0, 0, 6000, categories=["single"])[2]
  plain = [s["objects"][0] for s in specs if "place" not in s["include"][0]]
  assert set(collections.Counter(o["color"] for o in plain)) == set(scenes.COLORS)
  assert np.std([o["x"] for o in plain]) > .1 and np.std([o["r"] for o in plain]) > .015


def test_long_captions_describe_everything_and_hold_things_out():
  specs = {split: scenes.batch(0, 0, 200, split, categories=["long"])[2] for split in ("train", "test")}
  held = {split: [any(long.held(c["class"], c["color"], c["place"]) for c in s["include"]) for s in found]
          for split, found in specs.items()}
  assert not any(held["train"]) and all(held["test"])
  assert all(len(s["include"]) == len(s["objects"]) and check(s, s["objects"]) for s in specs["train"])
  assert len({len(s["objects"]) for s in specs["train"]}) == 4
  mixed = scenes.prompts("test", 20, categories=["single", "long"])
  assert [spec["category"] for _, spec in mixed[:2]] == ["single", "long"] and not mixed[1][1]["objects"]


def test_a_world_can_have_other_objects():
  world = scenes.World(shapes=("circle", "triangle"), colors=("red", "blue", "cyan"), most=3)
  specs = scenes.batch(0, 0, 500, size=32, world=world)[2]
  assert {o["shape"] for s in specs for o in s["objects"]} == {"circle", "triangle"}
  assert {o["color"] for s in specs for o in s["objects"]} == {"red", "blue", "cyan"}
  assert max(len(s["objects"]) for s in specs) == 3


def test_a_world_of_one_object_has_clips_of_one():
  world = scenes.make_world(most=1)
  assert {len(s["objects"]) for s in scenes.clip.batch(0, 0, 100, world=world)[2]} == {1}
  assert {len(s["motion"]) for _, s in scenes.clip.prompts(count=100, world=world)} == {1}


@pytest.mark.parametrize("call, words", [
  (lambda: scenes.batch(0, 0, 1, "dev"), ["split 'dev'", "train"]),
  (lambda: scenes.batch(0, 0, 1, categories=["colour"]), ["'colour'", "color", "choose"]),
  (lambda: scenes.batch(0, 0, 1, weights=[1, 2]), ["weights", "(1, 2)"]),
  (lambda: scenes.batch(0, 0, 0), ["count 0", "1 or more"]),
  (lambda: scenes.batch(0, 0, 1, size=8), ["size is 8", "12 or more"]),
  (lambda: scenes.batch(0, 0, 1, world=scenes.World(shapes=("star", "circle"))), ["shapes", "star"]),
  (lambda: scenes.batch(0, 0, 1, world=scenes.World(most=5)), ["most is 5", "1 to 4"]),
  (lambda: scenes.batch(0, 0, 1, world=scenes.World(most=0)), ["most is 0"]),
  (lambda: scenes.batch(0, 0, 1, world=scenes.World(most=1)), ["most is 1", "2 or more for pictures"]),
  (lambda: scenes.prompts(world=scenes.World(most=1)), ["most is 1", "set frames"]),
  (lambda: scenes.prompts("dev"), ["'dev'"]),
  (lambda: scenes.clip.batch(0, 0, 1, frames=1), ["frames 1", "2 or more"]),
  (lambda: scenes.clip.batch(0, 0, 1, "dev"), ["clips: split 'dev'", "train"]),
  (lambda: scenes.clip.prompts("dev"), ["clips: split 'dev'", "test"]),
])
def test_bad_input_is_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert all(word in str(error.value) for word in words)


def test_of_long_captions_some_tell_no_sizes_and_some_no_places():
  world = scenes.World(detail=.4)
  media, texts, specs = scenes.batch(0, 0, 1000, categories=["long"], world=world)
  tells = np.array([[name in s["include"][0] for name in ("size", "place")] for s in specs])
  assert (np.abs(tells.mean(0) - .4) < 3 * (.24 / 1000) ** .5).all() and abs(np.corrcoef(tells.T)[0, 1]) < .1
  for text, spec, told in zip(texts, specs, tells, strict=True):
    assert all([name in clause for name in ("size", "place")] == [*told] for clause in spec["include"])
    assert (" at the " in text, "small" in text or "large" in text) == (told[1], told[0])
    assert check(spec, spec["objects"])
  np.testing.assert_array_equal(media, scenes.batch(0, 0, 1000, categories=["long"])[0])  # the same, in other words
  with pytest.raises(ValueError, match="detail is 1.5, allowed is 0 to 1"):
    scenes.make_world(detail=1.5)
