"""A synthetic judge with a planted preference for a place: what is measured of it, and what is left after both orders.

Its logit is the difference of quality plus the bias. Quality is a pixel; a second pixel says whether an answer to that
picture can be read: always (0), only when sampled (1), never (2).
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import vlm
from rewards.judging import judge
from rewards.judging.formats import TABLE
from rewards.judging.judge import Answerer, Said
from rewards.judging.questions import Asked

PAIR, SCORE, YES = (TABLE[f"image_generation_{kind}"]._replace(side=None)
                    for kind in ("pair_v1_llava", "point_sift", "yes_seedream"))
RATED = TABLE["image_generation_point_v2"]._replace(side=None)
KEYS = jax.random.split(jax.random.key(0), 64)
sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, float)))


def picture(quality, readable=0):
  return np.full((2, 2, 3), (quality, readable, 0), np.uint8)


def one(quality, readable=0):
  return Asked("a dog", (picture(quality, readable),))


def both(a, b, readable=0):
  return Asked("a dog", (picture(a, readable), picture(b)))


def qualities(talk):
  return [float(part["image"][0, 0, 0]) for part in talk[0]["content"] if part["type"] == "image"]


def synthetic(bias=0.0, tie=-np.inf, calls=None):
  """calls: a list that is given (kind, how many, whether sampled) of each call."""
  calls = [] if calls is None else calls

  def logit(talk):
    q = qualities(talk)
    return (q[0] - q[1]) / 10 + bias

  def say(view, talks, keys):
    calls.append(("say", len(talks), keys is not None))
    assert keys is None or len(keys) == len(talks)
    return [Said(wrote(talk, keys is not None)) for talk in talks]

  def wrote(talk, sampled):
    unreadable = max(part["image"][0, 0, 1] for part in talk[0]["content"] if part["type"] == "image")
    if unreadable > sampled:
      return "Hard to say."
    if len(qualities(talk)) == 1:
      return f"Final Score: {qualities(talk)[0] / 10}"
    value = logit(talk)
    return PAIR.sentences[0 if value > 0 else 1 if value < 0 else 2]

  def read(view, talks, begun, options):
    calls.append(("read", len(talks), begun))
    if len(options) > 3:  # a score whose mean is the quality / 10, and half of the mass on other words
      numbers = np.array(list(map(float, options)))
      return np.stack([np.log(0.5 * np.maximum(1 - np.abs(numbers - qualities(t)[0] / 10), 0) + 1e-300) for t in talks])
    rows = []
    for talk in talks:
      value = logit(talk) if len(qualities(talk)) > 1 else qualities(talk)[0] / 10
      rows.append([value / 2, -value / 2, tie][:len(options)])
    return np.array(rows) - 3  # only proportions count

  return Answerer(say, read)


def paired(answerer, asked, **options):
  return judge.pair(answerer, {}, PAIR, asked, KEYS[:len(asked)], **options)


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [0.0, 0.7, -2.0, 30.0])
def test_equal_candidates_are_undecided_whatever_the_bias(bias):
  for reading in ("text", "probability"):
    found = paired(synthetic(bias), [both(50, 50)] * 3, reading=reading)
    assert (found.probability == 0.5).all() and found.valid.all()
  np.testing.assert_allclose(found.first, sigmoid(bias), rtol=1e-12)
  np.testing.assert_allclose(found.metrics["position_bias"], sigmoid(bias) - 0.5, rtol=1e-9)


@pytest.mark.parametrize("bias", [0.0, 0.7, -2.0])
def test_the_bias_is_measured_and_removed(bias):
  a, b = np.array([10, 20, 30, 45]), np.array([40, 22, 5, 45])
  found = paired(synthetic(bias), [both(*pair) for pair in zip(a, b, strict=True)], reading="probability")
  d = (a - b) / 10
  np.testing.assert_allclose(found.first, np.stack([sigmoid(d + bias), sigmoid(-d + bias)], 1), rtol=1e-12)
  np.testing.assert_allclose(found.probability, (sigmoid(d + bias) + sigmoid(d - bias)) / 2, rtol=1e-12)
  np.testing.assert_allclose(found.metrics["position_bias"], found.first.mean() - 0.5, rtol=1e-9, atol=1e-15)
  other = paired(synthetic(-bias), [both(*pair) for pair in zip(b, a, strict=True)], reading="probability")
  np.testing.assert_allclose(found.probability + other.probability, 1, rtol=1e-12)  # neither order nor sign of the bias
  assert (np.sign(found.probability - 0.5) == np.sign(d)).all()
  np.testing.assert_allclose(other.metrics["position_bias"], -found.metrics["position_bias"], atol=1e-15)


def test_flips_are_pairs_whose_winner_changes():
  found = paired(synthetic(1.0), [both(50, 45), both(50, 20), both(20, 50), both(50, 50)])
  assert found.verdicts == [("A", "B"), ("A", "A"), ("B", "B"), ("A", "B")]
  assert found.probability.tolist() == [0.5, 1, 0, 0.5] and found.flips.tolist() == [True, False, False, True]
  assert found.metrics["flips"] == 0.5 and found.metrics["position_bias"] == 0.25 and found.metrics["failed"] == 0
  texts = tuple(one.text for one in found.said[1])
  assert texts == ("Image 1 is better than Image 2", "Image 2 is better than Image 1")


def test_a_tie_keeps_its_mass():
  found = paired(synthetic(0.0, tie=1.0), [both(50, 40)], reading="probability")
  p = np.exp([0.5, -0.5, 1.0])
  np.testing.assert_allclose(found.probability, (p[0] + p[2] / 2) / p.sum(), rtol=1e-12)
  np.testing.assert_allclose(found.ties, p[2] / p.sum(), rtol=1e-12)
  np.testing.assert_allclose(found.metrics["position_bias"], 0, atol=1e-15)  # a tie's mass is no one's
  np.testing.assert_allclose(found.metrics["mass"], p.sum() * np.exp(-3), rtol=1e-12)
  assert found.verdicts == [("tie", "tie")]
  text = paired(synthetic(0.0), [both(50, 50), both(50, 40)])
  assert text.verdicts == [("tie", "tie"), ("A", "A")] and text.ties.tolist() == [1, 0] and text.metrics["ties"] == 0.5


def test_a_failure_is_asked_once_more_then_masked():
  calls = []
  found = paired(synthetic(calls=calls), [both(50, 20), both(50, 20, 1), both(20, 50, 2), both(20, 50)])
  assert calls == [("say", 8, False), ("say", 4, True)]
  np.testing.assert_equal(found.probability, [1, 1, np.nan, 0])
  assert found.valid.tolist() == [True, True, False, True] and found.asked_again.tolist() == [0, 2, 2, 0]
  assert found.verdicts[2] == ("failed", "failed") and all("no verdict: 'Hard to say.'" in r for r in found.reasons[2])
  assert found.metrics["failed"] == 0.25 and found.metrics["asked_again"] == 0.5
  assert found.metrics["position_bias"] == 0  # of those that could be read


def test_an_answer_that_was_cut_is_not_read():
  """Of "10" the beginning is a score of its own."""
  cut = lambda view, talks, keys: [Said("Final Score: 1", ended=keys is not None) for _ in talks]
  found = judge.point(Answerer(cut, None), {}, SCORE, [one(50)], KEYS[:1])
  assert found.valid.all() and found.score.tolist() == [1] and found.asked_again.tolist() == [1]
  never = Answerer(lambda view, talks, keys: [Said("Final Score: 1", ended=False) for _ in talks], None)
  found = judge.point(never, {}, SCORE, [one(50)], KEYS[:1])
  assert not found.valid.any() and "does not come to its end: 'Final Score: 1'" in found.reasons[0]


def test_one_order_is_not_enough():
  good = synthetic()
  say = lambda view, talks, keys: [
    Said("?") if qualities(t)[0] < qualities(t)[1] else said
    for t, said in zip(talks, good.say(view, talks, keys), strict=True)]
  found = paired(good._replace(say=say), [both(50, 20)])
  assert found.verdicts == [("A", "failed")] and not found.valid[0] and np.isnan(found.probability[0])
  assert found.first[0, 0] == 1


def test_nothing_readable_has_no_metrics_of_zero():
  found = paired(synthetic(), [both(50, 20, 2)])
  assert found.metrics["failed"] == 1 and all(np.isnan(found.metrics[k]) for k in ("position_bias", "flips", "mass"))


def test_each_order_has_a_key_of_its_own():
  seen = []
  good = synthetic()
  def say(view, talks, keys):
    if keys is not None:
      seen.extend(np.asarray(jax.random.key_data(keys)).tolist())
    return good.say(view, talks, keys)
  paired(good._replace(say=say), [both(50, 20, 1), both(50, 20, 2)])
  assert len(seen) == 4 and len(set(map(tuple, seen))) == 4
  first, seen[:] = list(seen), []
  judge.pair(good._replace(say=say), {}, PAIR, [both(50, 20, 2)], KEYS[1:2])
  assert seen == first[2:]  # whatever else is in the batch


def test_dimensions_follow_the_candidate():
  shares = TABLE["image_generation_pair_score_v2"]._replace(side=None)

  def say(view, talks, keys):
    out = []
    for talk in talks:
      a, b = qualities(talk)
      rows = {"Alignment": a / (a + b), "Coherence": 0.5, "Style": b / (a + b)}
      out.append(Said("\n".join(f"{n}\nImage 1: {x:.3f}\nImage 2: {1 - x:.3f}" for n, x in rows.items())))
    return out
  found = judge.pair(Answerer(say, None), {}, shares, [both(30, 10), both(10, 30)], KEYS[:2])
  np.testing.assert_allclose(found.parts["alignment"], [0.75, 0.25], atol=1e-9)
  np.testing.assert_allclose(found.parts["style"], [0.25, 0.75], atol=1e-9)
  np.testing.assert_allclose(found.probability, 0.5, atol=1e-9)


# --- points -----------------------------------------------------------------------------------------------------------


def test_scores_and_their_failures():
  calls = []
  found = judge.point(synthetic(calls=calls), {}, SCORE, [one(35), one(80, 1), one(50, 2), one(200)], KEYS[:4])
  np.testing.assert_equal(found.score, [3.5, 8, np.nan, np.nan])
  assert calls == [("say", 4, False), ("say", 3, True)] and found.asked_again.tolist() == [0, 1, 1, 1]
  assert found.metrics["failed"] == 0.5 and "20.0, out of 1 to 10" in found.reasons[3] and not found.reasons[1]


def test_expected_scores_are_exact():
  calls = []
  found = judge.point(synthetic(calls=calls), {}, SCORE, [one(q) for q in (10, 37, 99)], KEYS[:3], "expected")
  np.testing.assert_allclose(found.score, [1, 3.7, 9.9], rtol=1e-9)
  np.testing.assert_allclose(found.metrics["mass"], 0.5)
  assert calls == [("read", 3, "Final Score: ")] and found.valid.all()
  assert set(found.parts) == {"mass"} and np.allclose(found.parts["mass"], 0.5)


def test_expected_dimensions_are_read_one_by_one():
  calls = []
  found = judge.point(synthetic(calls=calls), {}, RATED, [one(25), one(40)], KEYS[:2], "expected")
  assert [call[2] for call in calls] == [f"{d} Score (1-5): " for d in ("Alignment", "Coherence", "Style")]
  np.testing.assert_allclose(found.score, [2.5, 4], rtol=1e-9)
  np.testing.assert_allclose(found.parts["style"], [2.5, 4], rtol=1e-9)


def test_the_probability_of_yes():
  found = judge.point(synthetic(), {}, YES, [one(0), one(20)], KEYS[:2], "probability")
  np.testing.assert_allclose(found.score, sigmoid([0, 2]), rtol=1e-12)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_probabilities_that_are_none(bad):
  read = lambda view, talks, begun, options: np.where(np.arange(len(talks))[:, None] == 1, bad, np.zeros(len(options)))
  for question, reading in ((SCORE, "expected"), (RATED, "expected"), (YES, "probability")):
    found = judge.point(Answerer(None, read), {}, question, [one(10), one(20)], KEYS[:2], reading)
    assert found.valid.tolist() == [True, False] and "has a probability" in found.reasons[1]


def apart(log_p, tokens):
  length = max(map(len, tokens))
  ids = np.array([[*t, *[0] * (length - len(t))] for t in tokens])
  return np.exp(vlm.apart(log_p, ids, np.arange(length) < np.array(list(map(len, tokens)))[:, None]))


def test_options_that_begin_others():
  options = [[int(digit) for digit in str(i)] for i in range(12)]
  digit = np.random.default_rng(0).dirichlet(np.ones(11), size=(3, 2))  # ten digits and an end, at two places
  p = np.stack([digit[:, 0, o[0]] * (digit[:, 1, o[1]] if len(o) > 1 else 1) for o in options], 1)
  found = apart(np.log(p), options)
  np.testing.assert_allclose(found[:, 1], digit[:, 0, 1] * (1 - digit[:, 1, 0] - digit[:, 1, 1]), rtol=1e-5)
  np.testing.assert_allclose(found[:, [0, 2, 10, 11]], p[:, [0, 2, 10, 11]], rtol=1e-5)
  chain = apart(np.log([[0.5, 0.2, 0.2]]), [(1,), (1, 0), (1, 0, 0)])
  np.testing.assert_allclose(chain, [[0.3, 0, 0.2]], atol=1e-6)
  np.testing.assert_allclose(apart(np.log([[0.5, 0.25]]), [(1,), (10,)]), [[0.5, 0.25]])  # "10" is a token of its own


# --- groups -----------------------------------------------------------------------------------------------------------


def test_win_rates_of_all_pairs():
  found = judge.group(synthetic(0.1), {}, PAIR, [[one(q) for q in (10, 40, 20, 40)], [one(5), one(9)]], KEYS[:2])
  np.testing.assert_allclose(found.rate[0], [0, 2.5 / 3, 1 / 3, 2.5 / 3])
  assert found.rate[1].tolist() == [0, 1] and found.rate[0].mean() == 0.5
  assert found.index == [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 0, 1)]


def test_win_rates_leave_out_what_failed():
  found = judge.group(synthetic(), {}, PAIR, [[one(10), one(40, 2), one(20), None]], KEYS[:1])
  np.testing.assert_equal(found.rate[0], [0, np.nan, 1, np.nan])
  assert found.pairs.metrics["failed"] == 2 / 3


def test_neighbours_and_references():
  rows = [[one(q) for q in (10, 40, 30, 20)]]
  assert judge.group(synthetic(), {}, PAIR, rows, KEYS[:1], "adjacent").rate[0].tolist() == [0, 1, 1, 0]
  found = judge.group(synthetic(), {}, PAIR, rows, KEYS[:1], "reference", [one(30)])
  assert found.rate[0].tolist() == [0, 1, 0.5, 0] and found.index == [(0, i, -1) for i in range(4)]


def test_answers_are_grouped_too():
  question = TABLE["image_understanding_pair_v1_qwen"]
  def say(view, talks, keys):
    length = lambda talk, n: len(talk[0]["content"][-1]["text"].split(f"Answer {n}: [")[1].split("]")[0])
    return [Said(f"Answer {1 if length(t, 1) > length(t, 2) else 2} is better") for t in talks]
  rows = [[Asked("what?", (picture(1),), (answer,)) for answer in ("a", "aaa", "aa")]]
  assert judge.group(Answerer(say, None), {}, question, rows, KEYS[:1]).rate[0].tolist() == [0, 1, 0.5]


def test_nothing_to_ask():
  broken = Answerer(None, None)
  assert judge.group(broken, {}, PAIR, [[None, None]], KEYS[:1]).rate[0].shape == (2,)
  assert judge.group(broken, {}, PAIR, [[one(1)]], KEYS[:1]).index == []
  assert judge.point(broken, {}, SCORE, [], KEYS[:0]).score.shape == (0,)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
  (lambda j: judge.pair(j, {}, SCORE, [one(1)], KEYS[:1]), "is a point question, but pairs need one"),
  (lambda j: judge.point(j, {}, PAIR, [both(1, 2)], KEYS[:1]), "compares two candidates, but points need"),
  (lambda j: paired(j, [both(1, 2)], reading="expected"), "reading = 'expected' is not one of text, probability"),
  (lambda j: paired(j, [both(1, 2)], reading="probabilty"), "nearest: 'probability'"),
  (lambda j: judge.pair(j, {}, TABLE["image_generation_pair_think"], [both(1, 2)], KEYS[:1], "probability"),
   "reading = 'probability' is not one of text, which question 'image_generation_pair_think'"),
  (lambda j: judge.group(j, {}, PAIR, [[one(1)] * 3], KEYS[:1], "adjacent"), "there are 3 candidates"),
  (lambda j: judge.group(j, {}, PAIR, [[one(1)] * 2], KEYS[:1], "al"), "scheme = 'al' is not one of.*nearest: 'all'"),
  (lambda j: judge.group(j, {}, PAIR, [[one(1)] * 2], KEYS[:1], "reference"), "with references = None"),
  (lambda j: judge.group(j, {}, PAIR, [[one(1)] * 2], KEYS[:1], "all", [one(1)]), "with references = 1"),
  (lambda j: paired(j._replace(say=lambda *a: []), [both(1, 2)]), "gave 0 answers to 2 conversations"),
  (lambda j: paired(j._replace(read=lambda *a: jnp.zeros((2, 2))), [both(1, 2)], reading="probability"),
   r"gave shape \(2, 2\) for 2 conversations and 3 options"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call(synthetic())
