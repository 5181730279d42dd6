"""Rewards from judgements: probabilities in closed form, what counts and what does not, and learning from pairs."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align.algorithms import compare
from align.build import UserError
from diffusion.nets import lm
from rewards import scalar
from rewards.core import Reward, Scores

B = 6


def judge():
  """A reward of two parts that are linear in the pixels, so that scores can be worked out by hand."""
  def score(view, batch, media, keys):
    parts = {"a": media.mean((1, 2, 3)) * view["a"], "b": media[:, 0, 0, 0] * view["b"]}
    return Scores(parts["a"] + parts["b"], parts, jnp.ones(len(media), bool))
  init = lambda key: {"a": jnp.array(2.0), "b": jnp.array(-1.0)}
  return Reward(init, lambda batch: batch, score, "gradient", None)


def batch_of(**more):
  rng = np.random.default_rng(0)
  media = {name: jnp.asarray(rng.uniform(size=(B, 2, 2, 1)), jnp.float32) for name in ("win", "lose", "media")}
  return {**media, "prompt_id": jnp.arange(B), "sample_id": jnp.zeros(B, jnp.int32), **more}


def value_of(batch, params=None, **options):
  """(loss, metrics, gradient) at the judge's parameters."""
  method = compare.make(None, judge(), **options)
  tree = {"base": {}, "reward": params or judge().init(None)}
  drawn = method.draw(batch, 0, jax.random.key(0))
  (value, out), grads = jax.value_and_grad(lambda p: method.loss(p, drawn, jax.random.key(0)), has_aux=True)(tree)
  return float(value), out, grads["reward"]


def differences(batch):
  score = lambda m: np.stack([2 * np.asarray(m, np.float64).mean((1, 2, 3)), -np.asarray(m, np.float64)[:, 0, 0, 0]], 1)
  return score(batch["win"]) - score(batch["lose"])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("gap,win,lose,tie", [(0, 1 / 6, 1 / 6, 2 / 3), (1, .3522, .0685, .5793),
                                              (2, .5964, .0264, .3772), (4, .9161, .0036, .0802)])
def test_probabilities_with_ties_are_those_of_the_table(gap, win, lose, tie):
  label = jnp.array([1.0, -1.0, 0.0])
  found = np.exp(-np.asarray(compare.with_ties(jnp.full(3, float(gap)), label, 5.0)))
  np.testing.assert_allclose(found, [win, lose, tie], atol=6e-5)
  assert found.sum() == pytest.approx(1, abs=1e-6)


def test_losses_are_those_of_numpy():
  label = np.array([1, -1, 0, 1, 0, 22])
  batch = batch_of(label=jnp.asarray(label))
  d = differences(batch).sum(1)
  decided = np.abs(label) == 1
  bt = -np.log(sigmoid(label * d))[decided]
  assert value_of(batch)[0] == pytest.approx(bt.mean(), rel=1e-5)
  half = [*bt, *(-0.5 * np.log(sigmoid(d) * sigmoid(-d)))[label == 0]]
  assert value_of(batch, ties="half")[0] == pytest.approx(np.mean(half), rel=1e-5)
  log_theta = np.log(3.0)
  tie = -np.log(8.0 * sigmoid(d - log_theta) * sigmoid(-d - log_theta))[label == 0]
  btt = [*-np.log(sigmoid(label * d - log_theta))[decided], *tie]
  assert value_of(batch, loss="btt", theta=3.0)[0] == pytest.approx(np.mean(btt), rel=1e-5)
  assert value_of(batch, loss="btt", theta=3.0, reduction="all")[0] == pytest.approx(np.sum(btt) / B, rel=1e-5)


def test_every_part_has_its_own_judgement():
  label = np.array([[1, 0], [22, -1], [-1, 22], [1, 1], [0, 0], [-1, 1]])
  batch = batch_of(label=jnp.asarray(label))
  value, out, _ = value_of(batch, parts=("a", "b"))
  decided = np.abs(label) == 1
  want = -np.log(sigmoid(label * differences(batch)))[decided]
  assert value == pytest.approx(want.mean(), rel=1e-5)
  assert out["judged"] == pytest.approx(decided.mean()) and out["ties"] == pytest.approx(3 / 12)
  assert out["accuracy"] == pytest.approx((label * differences(batch) > 0)[decided].mean())
  assert out["margin"] == pytest.approx((label * differences(batch))[decided].mean(), rel=1e-5)


def test_equal_scores_are_at_log_2_and_a_flipped_label_is_a_swapped_pair():
  batch = batch_of()
  same = {**batch, "lose": batch["win"]}
  assert value_of(same)[0] == pytest.approx(np.log(2), abs=1e-6)
  swapped = {**batch, "win": batch["lose"], "lose": batch["win"], "label": -jnp.ones(B)}
  for options in ({}, {"loss": "btt"}):
    assert value_of(batch, **options)[0] == pytest.approx(value_of(swapped, **options)[0], rel=1e-6)


def test_what_is_not_judged_has_no_gradient():
  batch = batch_of(label=jnp.array([[22, 1]] * B))
  grads = value_of(batch, parts=("a", "b"))[2]
  assert float(grads["a"]) == 0 and float(grads["b"]) != 0
  nothing = value_of(batch_of(label=jnp.full(B, 22)))
  assert nothing[0] == 0 and not any(float(g) for g in nothing[2].values()) and nothing[1]["judged"] == 0


@pytest.mark.parametrize("loss", ["bt", "btt"])
def test_a_label_that_is_no_number_is_not_judged(loss):
  missing, skipped = (batch_of(label=jnp.array([1, bad, 0, -1, 1, bad])) for bad in (jnp.nan, 22))
  (value, _, grads), (other, _, same) = value_of(missing, loss=loss), value_of(skipped, loss=loss)
  assert value == other and grads == same and np.isfinite(value)


@pytest.mark.parametrize("options", [{}, {"loss": "btt"}, {"loss": "regression"}])
def test_pieces_of_a_batch_add_up_whatever_is_judged_in_them(options):
  rating = jnp.array([1.0, jnp.nan, jnp.nan, 3.0, 2.0, jnp.nan])
  method = compare.make(None, judge(), **options)
  batch = method.draw(batch_of(label=jnp.array([1, 22, 22, -1, 0, 1]), rating=rating), 0, None)
  params = {"base": {}, "reward": judge().init(None)}
  value = lambda b: float(method.loss(params, b, jax.random.key(0))[0])
  pieces = [{k: v[i:i + 2] for k, v in batch.items()} for i in (0, 2, 4)]
  assert np.mean([value(p) for p in pieces]) == pytest.approx(value(batch), rel=1e-5)


def test_regression_is_the_mean_square_of_what_is_rated():
  batch = batch_of(rating=jnp.array([1.0, 2.0, jnp.nan, 0.5, jnp.nan, -1.0]))
  value, out, grads = value_of(batch, loss="regression")
  media = np.asarray(batch["media"], np.float64)
  score, rated = 2 * media.mean((1, 2, 3)) - media[:, 0, 0, 0], np.isfinite(batch["rating"])
  assert value == pytest.approx(((score - np.asarray(batch["rating"])) ** 2)[rated].mean(), rel=1e-5)
  assert out["error"] == pytest.approx(np.sqrt(value), rel=1e-5) and np.isfinite(float(grads["a"]))


def test_a_scalar_head_learns_which_is_brighter():
  """From zero knowledge, on pairs of pictures; held-out pairs decide."""
  made = scalar.make(lm.make("tiny"), length=6, size=4, channels=1)
  method, tx = compare.make(None, made), optax.adam(3e-3)

  def pairs(seed, count=64):
    pictures = np.random.default_rng(seed).integers(0, 256, (2, count, 4, 4, 1)).astype(np.uint8)
    brighter = pictures[0].mean((1, 2, 3), keepdims=True) > pictures[1].mean((1, 2, 3), keepdims=True)
    batch = {"win": np.where(brighter, *pictures), "lose": np.where(brighter, *pictures[::-1]),
             "prompt": ["a red circle"] * count, "prompt_id": np.arange(count), "sample_id": np.zeros(count, int)}
    batch = made.prepare(batch)
    return jax.tree.map(jnp.asarray, {k: v for k, v in batch.items() if k != "prompt"})

  def loss(tree, batch):
    return method.loss({"base": {}, "reward": tree}, method.draw(batch, 0, None), jax.random.key(0))

  @jax.jit
  def step(tree, opt, batch):
    grads = jax.grad(lambda t: loss(t, batch)[0])(tree)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(tree, updates), opt
  tree = made.init(jax.random.key(0))
  first = loss(tree, pairs(1000))[0]
  opt = tx.init(tree)
  for seed in range(150):
    tree, opt = step(tree, opt, pairs(seed))
  value, out = loss(tree, pairs(1000, 256))
  assert float(first) == pytest.approx(np.log(2), abs=0.1)
  assert float(out["accuracy"]) > 0.9 and float(value) < 0.35


@pytest.mark.parametrize("options,words", [
  ({"loss": "hinge"}, "loss = 'hinge' is not one of bt, btt, regression"),
  ({"ties": "win"}, "ties = 'win' is not one of drop, half"),
  ({"reduction": "sum"}, "reduction = 'sum' is not one of valid, all"),
  ({"theta": 1.0}, "theta = 1.0 must be above 1"),
  ({"policy": object()}, "policy: 'compare' trains a reward on the media as they are"),
  ({"reward": None}, "reward = None: algorithm 'compare' needs a reward"),
  ({"reward": judge()._replace(where="host")}, "reward.where = 'host': 'compare' trains rewards by their gradient"),
])
def test_refusals(options, words):
  with pytest.raises(ValueError, match="compare|is not one of|must be") as error:
    compare.make(**{"policy": None, "reward": judge(), **options})
  assert words in str(error.value)


@pytest.mark.parametrize("batch,options,words", [
  (batch_of(), {"parts": ("a", "c")}, "the reward has no part 'c', it has a, b"),
  (batch_of(label=jnp.ones((B, 3))), {"parts": ("a", "b")}, "'label' has 3 judgements a record, but 2 are compared"),
  (batch_of(), {"loss": "regression"}, "batch entry 'rating' is missing"),
  ({k: v for k, v in batch_of().items() if k != "win"}, {}, "batch entry 'win' is missing"),
])
def test_data_that_do_not_fit_are_refused(batch, options, words):
  with pytest.raises(UserError) as error:
    value_of(batch, **options)
  assert words in str(error.value)
