"""GenEval's rules, the soft score, the Reward of Scenes and its diversity."""
import numpy as np
import pytest

from rewards import scenes
from rewards.scenes.check import relations


def thing(shape, color="red", x=.5, y=.5, r=.15):
  return {"shape": shape, "color": color, "x": x, "y": y, "r": r, "score": .9}


def spec(*include, exclude=(), category="single"):
  return {"category": category, "include": [{"count": 1, **c} for c in include], "exclude": list(exclude)}


def verdict(claim, *objects):
  return scenes.check(claim, objects), round(scenes.soft(claim, objects), 4)


def test_presence_allows_more_but_counting_does_not():
  one = spec({"class": "circle"})
  assert verdict(one) == (False, 0) and verdict(one, thing("square")) == (False, 0)
  assert verdict(one, thing("circle")) == (True, 1) and verdict(one, thing("circle"), thing("circle")) == (True, 1)
  assert scenes.check(one, [thing("circle"), thing("junk")])
  assert not scenes.check(one, [thing("circle")] * 2, exact=True)
  assert not scenes.check(one, [thing("circle"), thing("junk")], exact=True)
  two = spec({"class": "circle", "count": 2}, exclude=[{"class": "circle", "count": 3}], category="count")
  assert verdict(two, thing("circle")) == (False, .5)
  assert verdict(two, thing("circle"), thing("circle"), thing("square")) == (True, 1)
  assert verdict(two, *[thing("circle")] * 3) == (False, .5) and verdict(two, *[thing("circle")] * 5) == (False, 0)
  assert not scenes.check(two, [thing("circle")] * 2 + [thing("junk")])


def test_colour_of_any_object_of_the_class():
  claim = spec({"class": "circle", "color": "red"})
  assert verdict(claim, thing("circle", "blue")) == (False, .5)
  assert verdict(claim, thing("circle", "blue"), thing("circle", "red")) == (True, 1)
  assert verdict(claim, thing("circle", "blue"), thing("square", "red")) == (False, .5)
  assert verdict(spec({"class": "object", "color": "red"}), thing("square", "red")) == (True, 1)
  assert not scenes.check(spec({"class": "object", "color": "red"}), [thing("junk", "red")])
  swapped = spec({"class": "circle", "color": "red"}, {"class": "square", "color": "blue"}, category="attribution")
  assert verdict(swapped, thing("circle", "blue"), thing("square", "red")) == (False, .5)
  assert verdict(swapped, thing("circle", "red"), thing("square", "blue")) == (True, 1)


def test_place_and_position_have_dead_bands():
  claim = spec({"class": "circle", "place": "top left"})
  assert verdict(claim, thing("circle", x=.3, y=.3)) == (True, 1)
  assert verdict(claim, thing("circle", x=.45, y=.3)) == (False, .5)
  left = spec({"class": "square"}, {"class": "circle", "position": ["left of", 0]}, category="position")
  for x, right in ((.3, True), (.62, False), (.7, False)):
    assert scenes.check(left, [thing("circle", x=x), thing("square", x=.65)]) == right
  both = [thing("circle", x=.2), thing("square", x=.5), thing("circle", x=.8)]
  assert verdict(left, *both) == (False, .875)  # it must hold for every circle
  assert verdict(left, thing("square")) == (False, .5)


def test_relations_are_those_of_geneval():
  rng = np.random.default_rng(0)
  for _ in range(300):
    a, b = (thing(rng.choice(scenes.SHAPES), x=rng.random(), y=rng.random(), r=rng.uniform(.1, .2)) for _ in range(2))
    assert relations(a, b) == geneval(a, b)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, a) == {opposite[name] for name in relations(a, b)}


def geneval(a, b):
  """evaluate_images.py:relative_position, over boxes."""
  boxes = np.array([[[o["x"] - w, o["y"] - h], [o["x"] + w, o["y"] + h]] for o in (a, b)
                    for w, h in [np.multiply(scenes.world.EXTENT[o["shape"]], o["r"])]])
  centre, dims = boxes.mean(1), np.abs(np.diff(boxes, axis=1)).squeeze(1)
  offset = centre[0] - centre[1]
  revised = np.maximum(np.abs(offset) - .1 * (dims[0] + dims[1]), 0) * np.sign(offset)
  if np.all(np.abs(revised) < 1e-9):
    return set()
  dx, dy = revised / np.linalg.norm(offset)
  found = {"left of": dx < -.5, "right of": dx > .5, "above": dy < -.5, "below": dy > .5}
  return {name for name, holds in found.items() if holds}


def test_a_long_caption_needs_every_object_and_no_other():
  _, _, specs = scenes.batch(0, 0, 200, categories=["long"])
  for claim in specs[:50]:
    objects = claim["objects"]
    assert scenes.check(claim, objects) and scenes.soft(claim, objects) == 1
    for wrong in (objects[1:], [*objects, thing("circle")], [*objects, thing("junk")],
                  [{**objects[0], "x": 1 - objects[0]["x"], "y": 1 - objects[0]["y"], "shape": "junk"}, *objects[1:]]):
      assert not scenes.check(claim, wrong) and scenes.soft(claim, wrong) < 1


def test_soft_is_one_exactly_where_the_clauses_hold():
  media, _, specs = scenes.batch(0, 0, 600)
  found = scenes.detect(media)
  order = np.random.default_rng(0).permutation(600)
  for i, j in enumerate(order):
    strict, soft = scenes.check(specs[j], found[i]), scenes.soft(specs[j], found[i])
    assert 0 <= soft <= 1 and strict == (soft == 1)


def test_the_reward_scores_images_and_marks_failures():
  reward = scenes.make(strict=.25, soft=.75)
  media, texts, specs = scenes.batch(0, 0, 40)
  batch = {"prompt": texts, "meta": specs}
  assert reward.init(None) == {} and reward.prepare(batch) is batch and reward.where == "host"
  images = media.astype(np.float32) / 255
  images[20:] = np.roll(images[20:], 1, 0)
  images[3, 0, 0, 0] = np.nan
  scores = reward.score({}, batch, images, None)
  assert scores.valid.tolist() == [i != 3 for i in range(40)] and scores.total.dtype == np.float32
  assert (np.delete(scores.total[:20], 3) == 1).all() and scores.parts["exact"][20:].mean() < .5
  np.testing.assert_allclose(scores.total, .25 * scores.parts["exact"] + .75 * scores.parts["soft"], rtol=1e-6)
  assert set(scores.parts) == {"exact", "soft", "junk"} and np.isfinite(scores.total).all()


def test_the_reward_scores_clips():
  media, texts, specs = scenes.clip.batch(0, 0, 6)
  scores = scenes.make().score({}, {"meta": specs}, media / 255, None)
  assert (scores.total == 1).all()
  assert (scenes.make().score({}, {"meta": specs}, media[:, ::-1] / 255, None).parts["exact"] == 0).all()  # backwards


def test_the_parts_of_a_clip_are_told_apart():
  """A caption with one word changed: that part is wrong, and no other."""
  world = scenes.make_world(most=1)
  media, _, specs = scenes.clip.batch(0, 0, 60, frames=6, world=world)
  score = lambda specs, media=media: scenes.make().score({}, {"meta": specs}, media / 255, None).parts
  assert all((part == (name != "junk")).all() for name, part in score(specs).items())
  choices = {"direction": [*scenes.clip.DIRECTIONS], "speed": [*scenes.clip.SPEEDS], "color": [*scenes.COLORS],
             "class": [*scenes.SHAPES]}
  wrong = {"direction": "motion", "speed": "motion", "color": "color", "class": "shape"}
  for name, words in choices.items():
    other = lambda thing: words[(words.index(thing[name]) + 1) % len(words)]  # noqa: B023 (called at once)
    found = score([{**s, "motion": [{**s["motion"][0], name: other(s["motion"][0])}]} for s in specs])
    assert all((found[part] == (part != wrong[name])).all() for part in ("shape", "color", "motion")), name
    assert not found["exact"].any()
  still = score(specs, np.repeat(media[:, :1], 6, 1))
  assert still["shape"].all() and still["color"].all() and not still["motion"].any()
  seldom = media.copy()
  seldom[:, :3] = np.asarray(scenes.world.BACKGROUND)
  assert not any(score(specs, seldom)[part].any() for part in ("shape", "color", "motion"))  # in half of the frames


def test_the_parts_of_a_clip_ask_for_every_thing_and_hold_where_it_is_right():
  media, _, specs = scenes.clip.batch(0, 0, 100)
  found = scenes.clip.detect(media)
  order = np.random.default_rng(0).permutation(100)
  both = [i for i, s in enumerate(specs) if len(s["motion"]) == 2]
  for i in range(100):
    parts = scenes.clip.parts(specs[order[i]], found[i])
    assert all(parts.values()) or not scenes.clip.check(specs[order[i]], found[i])
  for i in both[:20]:
    first = {**specs[i], "motion": specs[i]["motion"][:1]}
    lost = [[o for o in frame if o["color"] == first["motion"][0]["color"]] for frame in found[i]]
    assert all(scenes.clip.parts(first, lost).values()) and not any(scenes.clip.parts(specs[i], lost).values())


@pytest.mark.parametrize("call, words", [
  (lambda: scenes.make(strict=-1), ["strict=-1", "0 or more"]),
  (lambda: scenes.make(strict=0, soft=0), ["positive sum"]),
  (lambda: scenes.make().score({}, {}, np.zeros((2, 16, 16, 3)), None), ["no specs", "2 samples", "prompts"]),
  (lambda: scenes.make().score({}, {"meta": [{}]}, np.zeros((1, 16, 16, 3)), None), ["{}", "category"]),
  (lambda: scenes.diversity([{}] * 3, [[]] * 3, [True] * 3, 2), ["3 specs", "multiple"]),
])
def test_bad_input_is_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert all(word in str(error.value) for word in words)


def test_diversity_is_of_what_is_left_open_among_correct_samples():
  claim = spec({"class": "circle", "color": "red"})
  near, far = [thing("circle", x=0, y=0, r=.1)], [thing("circle", x=1, y=1, r=.25)]
  assert scenes.diversity([claim] * 2, [near, near], [True] * 2, 2).tolist() == [0]
  assert scenes.diversity([claim] * 2, [near, far], [True] * 2, 2).tolist() == [1]
  assert np.isnan(scenes.diversity([claim] * 2, [near, far], [True, False], 2)).all()
  blue = [thing("circle", "blue", x=0, y=0, r=.1)]
  assert scenes.diversity([claim] * 2, [near, blue], [True] * 2, 2).tolist() == [0]  # colour is named
  assert scenes.diversity([spec({"class": "circle"})] * 2, [near, blue], [True] * 2, 2).round(4).tolist() == [.3333]
  square = [thing("square", x=0, y=0, r=.1)]
  opened = spec({"class": "object", "color": "red"})
  assert scenes.diversity([opened] * 2, [near, square], [True] * 2, 2).round(4).tolist() == [.3333]
  both = scenes.diversity([claim] * 6, [near, far, near, near, near, far], [True] * 5 + [False], 3).round(4)
  assert both.tolist() == [.6667, 0]
  media, _, specs = scenes.batch(0, 0, 300, categories=["two"])
  found = scenes.detect(media)
  right = [scenes.check(specs[0], f) for f in found]
  assert sum(right) > 2 and .1 < scenes.diversity([specs[0]] * 300, found, right, 300)[0] < .9


@pytest.mark.parametrize("clause, fits", [
  ({}, (1, 1, 1)), ({"size": "small"}, (1, 0, 1)), ({"place": "middle"}, (0, 0, 1)), ({"place": "left"}, (1, 1, 0)),
  ({"size": "large", "place": "top"}, (0, 0, 0))])
def test_a_long_caption_may_tell_no_size_and_no_place(clause, fits):
  spec = {"category": "long", "include": [{"class": "circle", "color": "red", "count": 1, **clause}], "exclude": []}
  for found, (x, r) in zip(fits, ((.2, .12), (.2, .2), (.5, .12)), strict=True):
    there = {**thing("circle"), "color": "red", "x": x, "y": .5, "r": r}
    assert scenes.check(spec, [there]) == bool(found) and not scenes.check(spec, [{**there, "color": "blue"}])
