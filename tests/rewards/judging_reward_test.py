"""A judge as a Reward: the samples of a prompt against each other, what is masked, and what batches must be."""
import re

import jax
import numpy as np
import pytest

from align import evaluate, shard
from rewards import mix
from rewards.judging.formats import TABLE
from rewards.judging.judge import Answerer, Said
from rewards.judging.reward import make_host

PAIR, SCORE, YES = (TABLE[f"image_generation_{kind}"]._replace(side=None)
                    for kind in ("pair_v1_qwen", "point_sift", "yes_seedream"))
KEYS = jax.random.split(jax.random.key(1), 8)


def media(*values):
  """[B 2 2 3] grey pictures of value / 10."""
  return np.repeat(np.array(values, np.float32), 12).reshape(-1, 2, 2, 3) / 10


def batch(*sizes, **more):
  ids = {"prompt_id": np.repeat(np.arange(len(sizes)), sizes),
         "sample_id": np.concatenate([np.arange(s) for s in sizes])}
  return {**ids, "prompt": [f"prompt {i}" for i in ids["prompt_id"]], **more}


def brightness(calls=None, bias=0.0, hopeless=-1):
  """The brighter picture is better, its score is ten times its brightness; `hopeless` is a value no one can read."""
  def level(part):
    return round(float(part["image"].mean()) / 25.5)

  def answer(talk):
    levels = [level(part) for part in talk[0]["content"][:-1]]
    if hopeless in levels:
      return "?"
    if len(levels) == 1:
      return f"Final Score: {levels[0]}"
    return f"Image {1 if levels[0] + bias > levels[1] else 2} is better"

  def say(view, talks, keys):
    if calls is not None:
      calls.append(len(talks))
    assert all(talk[0]["content"][-1]["text"].endswith("]") for talk in talks) and view == {"net": 3}
    return [Said(answer(talk)) for talk in talks]

  def read(view, talks, begun, options):
    return np.array([[level(talk[0]["content"][0]), 0.0] for talk in talks])
  return Answerer(say, read)


def scored(question, asked, pictures, answerer=None, **options):
  reward = make_host(answerer or brightness(), question, init=lambda key: {"net": 3}, **options)
  assert reward.where == "host" and reward.frames is None and reward.prepare(asked) is asked
  found = reward.score(reward.init(KEYS[0]), asked, pictures, KEYS[:len(pictures)])
  assert found.total.dtype == np.float32 and found.valid.dtype == bool
  return found


def test_scores():
  found = scored(SCORE, batch(1, 1, 1), media(3, 7, 10))
  assert found.total.tolist() == [3, 7, 10] and found.valid.all() and found.parts["asked_again"].tolist() == [0, 0, 0]
  found = scored(YES, batch(2), media(3, 7), reading="probability")
  np.testing.assert_allclose(found.total, 1 / (1 + np.exp(-np.array([3.0, 7.0]))), rtol=1e-6)


def test_win_rates_of_each_prompt():
  calls = []
  found = scored(PAIR, batch(3, 2), media(3, 9, 5, 8, 2), brightness(calls, bias=3))
  np.testing.assert_allclose(found.total, [0.25, 1, 0.25, 1, 0])  # 3 and 5 are within the bias: each wins one order
  np.testing.assert_allclose(found.parts["first"], [0.75, 0.5, 0.75, 0.5, 0.5])
  np.testing.assert_allclose(found.parts["flips"], [0.5, 0, 0.5, 0, 0])
  assert found.valid.all() and calls == [8]  # three pairs and one, both orders, in one call


def test_a_failure_is_masked():
  calls = []
  found = scored(SCORE, batch(3), media(3, 6, 8), brightness(calls, hopeless=6))
  assert found.valid.tolist() == [True, False, True] and found.total.tolist() == [3, 0, 8] and calls == [3, 1]
  found = scored(PAIR, batch(3), media(3, 6, 8), brightness(hopeless=6))
  assert found.valid.tolist() == [True, False, True] and found.total.tolist() == [0, 0, 1]
  assert found.parts["asked_again"].tolist() == [0.5, 0, 0.5]


def test_pictures_that_are_not_finite_are_not_shown():
  pictures = media(3, 6, 8)
  pictures[1, 0, 0, 0] = np.nan
  for question, total in ((PAIR, [0, 0, 1]), (SCORE, [3, 0, 8])):
    calls = []
    found = scored(question, batch(3), pictures, brightness(calls))
    assert found.valid.tolist() == [True, False, True] and found.total.tolist() == total and calls == [2]
  pictures[:] = np.nan
  assert not scored(PAIR, batch(3), pictures).valid.any() and not scored(SCORE, batch(3), pictures).valid.any()


def test_grey_pictures_and_references():
  found = scored(SCORE, batch(1, 1), media(3, 7)[..., :1])
  assert found.total.tolist() == [3, 7]
  asked = batch(2, 1, reference=(media(5, 5, 9) * 255).astype(np.uint8))
  assert scored(PAIR, asked, media(3, 7, 8), scheme="reference").total.tolist() == [0, 1, 0]


def test_copies_that_fill_a_batch_are_not_asked():
  calls, asked = [], batch(3)
  asked = {k: np.append(v, [v[-1]] * 2) for k, v in asked.items()}
  found = scored(PAIR, asked, media(3, 9, 5, 5, 5), brightness(calls))
  np.testing.assert_allclose(found.total, [0, 1, 0.5, 0.5, 0.5])
  assert calls == [6]
  twice = {**batch(1, 1), "prompt_id": np.array([4, 4])}  # one prompt, drawn twice
  assert scored(SCORE, twice, media(3, 9)).total.tolist() == [3, 9]


def test_evaluation_and_mixtures():
  judges = {"judge": (make_host(brightness(), PAIR, init=lambda key: {"net": 3}), {"net": 3}),
            "both": (mix.make({"a": make_host(brightness(), SCORE), "b": make_host(brightness(), PAIR)}, {"a": 0.1}),
                     {"a": {"net": 3}, "b": {"net": 3}})}
  images = np.round(media(3, 9, 5, 8, 2, 6, 4, 1, 7).reshape(3, 3, 2, 2, 3) * 255).astype(np.uint8)
  records, mesh = [{"prompt": p} for p in "abc"], shard.mesh(devices=jax.devices()[:1])
  found = evaluate.judge(judges, images, records, batch=6, seed=0, mesh=mesh)  # the last call is filled up
  rates = np.array([[0, 1, 0.5], [1, 0, 0.5], [0.5, 0, 1]])
  np.testing.assert_allclose(found["judge/total"], rates)
  np.testing.assert_allclose(found["both/total"], rates + np.array([[3, 9, 5], [8, 2, 6], [4, 1, 7]]) / 10, rtol=1e-6)
  assert {"judge/first", "judge/flips", "both/a", "both/b/first"} <= set(found)
  with pytest.raises(ValueError, match="make the batch a multiple of the samples of a prompt"):
    evaluate.judge(judges, images, records, batch=4, seed=0, mesh=mesh)


@pytest.mark.parametrize("question, asked, message", [
  (PAIR, {"prompt": ["a"] * 2}, "'sample_id' is missing"),
  (PAIR, {"prompt": ["a"] * 2, "sample_id": np.array([1, 2])}, "must come together, from 0 on"),
  (PAIR, {"prompt": ["a"] * 2, "sample_id": np.array([0, 2])}, "make the batch a multiple"),
  (SCORE, {"prompt": ["a"] * 3}, "3 prompts for 2 samples"),
  (SCORE, {"prompt": ["a", ""]}, "prompt = '' is empty"),
  (TABLE["video_generation_point_v2"], {"prompt": ["a"] * 2}, r"\[frames H W 3\] uint8 is needed"),
])
def test_batches_that_cannot_be_judged(question, asked, message):
  with pytest.raises(ValueError, match=message):
    scored(question, asked, media(3, 7))


@pytest.mark.parametrize("question, options, message", [
  (TABLE["image_understanding_point_v1"], {}, "judges answers, but a reward judges media"),
  (PAIR, {"reading": "expected"}, "reading = 'expected' is not one of"),
  (PAIR, {"scheme": "each"}, "scheme = 'each' is not one of all, ring, adjacent, reference"),
])
def test_judges_that_cannot_be(question, options, message):
  with pytest.raises(ValueError, match=message):
    make_host(brightness(), question, **options)


def test_a_reference_that_is_missing():
  with pytest.raises(ValueError, match="'reference' is missing"):
    scored(PAIR, batch(2), media(3, 7), scheme="reference")


def test_parts_have_the_same_names_whatever_was_said():
  rated = TABLE["image_generation_point_v2"]._replace(side=None)
  found = scored(rated, batch(1, 1), media(3, 6), brightness())  # this judge gives no score to a dimension
  assert not found.valid.any() and set(found.parts) == {"alignment", "coherence", "style", "asked_again"}


def test_a_single_sample_has_nothing_to_be_compared_with():
  with pytest.raises(ValueError, match="compares the samples of a prompt, but prompts have 1; raise config.group"):
    scored(PAIR, batch(1, 1), media(3, 6))


# --- answers, and what is written -------------------------------------------------------------------------------------

UNDERSTOOD = {kind: TABLE[f"image_understanding_{kind}"]._replace(side=None) for kind in ("point_v1", "pair_v1_qwen")}
CLIP = TABLE["video_understanding_point_v1"]._replace(side=None, frames=None, as_images=True)
WORDS = ["short", "a longer one", "?", None, "longest of them all"]
TOKENS = np.arange(4)[:, None]


def reader(shown=None):
  """Longer answers are better; a question mark is beyond it. shown: a list that is given what it sees."""
  def answer(talk):
    *seen, said = talk[0]["content"]
    found = re.findall(r"Answer(?: [12])?: \[(.*?)\]", said["text"])
    if shown is not None:
      shown.append([part["image"] for part in seen])
    if "?" in found:
      return "Who knows?"
    if len(found) == 1:
      return f"Final Score: {len(found[0])}"
    return f"Answer {1 if len(found[0]) > len(found[1]) else 2} is better"
  return Answerer(lambda view, talks, keys: [Said(answer(talk)) for talk in talks], None)


def of_answers(question, asked, shown=None, **options):
  return make_host(reader(shown), question, said=lambda ids: WORDS[ids[0]], **options)


def test_answers_are_judged_beside_what_they_are_about():
  pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 4, 3)).astype(np.uint8)
  asked, shown = batch(4, media=pictures, shown=np.array([1, 1, 1, 1])), []
  found = of_answers(UNDERSTOOD["point_v1"], asked, shown).score({}, asked, TOKENS, KEYS[:4])
  assert found.total.tolist() == [5, 12, 0, 0] and found.valid.tolist() == [True, True, False, False]
  assert len(shown) == 4 and all(len(one) == 1 for one in shown)  # three answers, and the unreadable one once more
  np.testing.assert_array_equal(shown[1][0], pictures[1, 0])
  rank = of_answers(UNDERSTOOD["pair_v1_qwen"], asked, scheme="adjacent")
  found = rank.score({}, asked, np.array([[0], [1], [4], [0]]), KEYS[:4])
  assert found.total.tolist() == [0, 1, 1, 0] and found.valid.all()


def test_all_pictures_of_an_answer_about_a_clip_are_its_frames():
  pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
  asked, shown = batch(1, 1, media=pictures, shown=np.array([3, 2])), []
  assert of_answers(CLIP._replace(range=(1, 100)), asked, shown).score({}, asked, TOKENS[:2], KEYS[:2]).valid.all()
  assert [len(one) for one in shown] == [3, 2]


def test_what_was_written_is_told_when_asked_again():
  asked = batch(4, media=np.zeros((4, 4, 4, 3), np.uint8))
  made = of_answers(UNDERSTOOD["point_v1"], asked)
  assert made.explain({}, asked, TOKENS, KEYS[:4]) == ["Final Score: 5", "Final Score: 12", "Who knows?", ""]
  rank = make_host(brightness(hopeless=7), PAIR, init=lambda key: {"net": 3}, scheme="adjacent")
  said = rank.explain({"net": 3}, batch(4), media(3, 7, 2, 9), KEYS[:4])
  assert said == ["? | ?", "? | ?", *["Image 2 is better | Image 1 is better"] * 2]


@pytest.mark.parametrize("question, said, scheme, message", [
  (PAIR, len, "all", "judges media, but answers says that samples are tokens; leave it out"),
  (UNDERSTOOD["pair_v1_qwen"], len, "reference", "compares with media, but these are answers; choose all, ring or"),
])
def test_judges_of_answers_that_cannot_be(question, said, scheme, message):
  with pytest.raises(ValueError, match=message):
    make_host(brightness(), question, said=said, scheme=scheme)


def test_answers_to_nothing():
  with pytest.raises(ValueError, match="batch entry 'media' is missing, but question 'image_understanding_point_v1'"):
    of_answers(UNDERSTOOD["point_v1"], {}).score({}, batch(1), TOKENS[:1], KEYS[:1])
