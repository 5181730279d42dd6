"""Arms, scores and summaries of an evaluation, against numbers worked out by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import build, evaluate, shard
from align.build import UserError
from diffusion import folder
from rewards import reconstruction
from rewards.core import Reward, Scores


def outcome(right, meta=None):
  right = np.asarray(right, float)
  images = np.zeros(right.shape + (2, 2, 3), np.uint8)
  return evaluate.Outcome(images, {"r/exact": right}, [f"p{i}" for i in range(len(right))],
                          meta or [{"category": c} for c in "aabb"[:len(right)]])


def test_arms_are_put_in_order_whatever_the_config_did():
  arms = {"aligned": 1, "base": 2, "control": 3}
  assert list(evaluate.arranged(arms, "aligned", "base")) == ["base", "control", "aligned"]
  assert evaluate.arranged({"only": 1}, None, None) == {"only": 1}


@pytest.mark.parametrize("primary, baseline, message", [
  ("algined", "base", "config.primary = 'algined'.*aligned, base"), ("aligned", None, "config.baseline = None"),
  ("base", "base", "two different arms")])
def test_arms_that_are_not_there_are_refused(primary, baseline, message):
  with pytest.raises(UserError, match=message):
    evaluate.arranged({"aligned": 1, "base": 2}, primary, baseline)


def test_summary_is_that_of_the_samples():
  base, new = outcome([[0, 0], [1, 0], [0, 0], [0, 1]]), outcome([[1, 1], [1, 0], [0, 1], [1, 1]])
  found = evaluate.summarise({"base": base, "new": new}, "r/exact", None, 0)
  assert found["arms"]["base"]["overall"]["rate"] == pytest.approx(0.25)
  assert found["arms"]["new"]["categories"]["a"] | {"interval": 0} == {
    "rate": 0.75, "successes": 3, "count": 4, "interval": 0}
  assert found["differences"]["new - base"]["overall"]["difference"] == pytest.approx(0.5)
  assert found["differences"]["new - base"]["categories"]["b"]["difference"] == pytest.approx(0.5)


def test_a_failed_score_is_counted_and_is_no_failure_of_the_arm():
  right = np.array([[1.0, np.nan], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
  found = evaluate.summarise({"one": outcome(right)}, "r/exact", None, 0)
  assert found["arms"]["one"]["failed"] == 1
  assert found["arms"]["one"]["overall"]["count"] == 7
  assert found["arms"]["one"]["categories"]["a"]["rate"] == 1.0


def test_diversity_is_compared_on_prompts_that_both_arms_have():
  spread = lambda images, meta, correct: np.where(correct.sum(1) > 1, 0.5 * correct.sum(1), np.nan)
  found = evaluate.summarise({"base": outcome([[1, 1], [1, 1], [1, 0], [1, 1]]),
                              "new": outcome([[1, 1], [1, 0], [1, 1], [1, 1]])}, "r/exact", spread, 0)
  assert found["diversity_ratio"]["value"] == 1.0 and found["diversity_ratio"]["prompts"] == 2


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("batch", [3, 4, 50])
def test_scores_do_not_depend_on_the_batch_and_padding_is_cut(where, batch):
  def score(view, batch, media, keys):
    total = jnp.asarray(media).mean((1, 2, 3)) + 10 * jnp.asarray(batch["prompt_id"])
    return Scores(total, {"exact": total}, jnp.asarray(media).mean((1, 2, 3)) < 0.9)
  reward = Reward(lambda key: {}, lambda batch: batch, score, where, None)
  images = np.arange(10, dtype=np.uint8).reshape(5, 2, 1, 1, 1) * np.ones((1, 1, 2, 2, 3), np.uint8)
  images[3, 1] = 255
  records = [{"prompt": "x", "meta": {}} for _ in range(5)]
  found = evaluate.judge({"r": (reward, {})}, images, records, batch=batch, seed=0, mesh=shard.mesh())["r/exact"]
  expected = np.arange(10).reshape(5, 2) / 255 + 10 * np.arange(5)[:, None]
  expected[3, 1] = np.nan
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_reward_may_compare_samples_with_the_pictures_of_their_records():
  images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3)).astype(np.uint8)
  records = [{"prompt": "a", "media": images[p, 0]} for p in range(3)]
  judges = {"same": (reconstruction.make(kind="mse"), {})}
  found = evaluate.judge(judges, images, records, batch=4, seed=0, mesh=shard.mesh())
  np.testing.assert_allclose(found["same/total"][:, 0], 1, atol=1e-6)
  error = ((images[:, 1] / 255 - images[:, 0] / 255) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(found["same/mse"][:, 1], error, rtol=1e-5)


def test_parts_of_a_mixture_come_from_workdirs_of_their_own(tmp_path):
  spec = {"name": "mix", "rewards": {"a": {"name": "look", "width": 4}, "b": {"name": "look", "width": 4},
                                     "plain": {"name": "brightness"}}}
  made = build.build("rewards", spec["rewards"]["a"])
  folder.save(tmp_path, "reward", spec["rewards"]["a"], made.init(jax.random.key(7)))
  here = str(tmp_path)
  (_, whole), = evaluate.load_rewards({"both": spec}, {"both/b": here}, 0, shard.mesh()).values()
  kept, drawn = made.init(jax.random.key(7)), build.build("rewards", spec).init(jax.random.key(0))
  for part, wanted in (("a", drawn["a"]), ("b", kept)):
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), whole[part], wanted)), part
  with pytest.raises(UserError, match="config.models.both/c: reward 'both' has no part 'c' with parameters, only"):
    evaluate.load_rewards({"both": spec}, {"both/c": here}, 0, shard.mesh())
  with pytest.raises(UserError, match="config.models.other/a names no reward; the rewards are both; rename it"):
    evaluate.load_rewards({"both": spec}, {"other/a": here}, 0, shard.mesh())


def test_an_arm_may_have_steps_of_its_own(tmp_path):
  made = build.build("align.policies", "toy:policy")
  view = jax.tree.map(lambda a: 2 * a, jax.jit(made.init)(jax.random.key(0)))
  model = str(folder.save(tmp_path / "model", "policy", {"name": "toy:policy"}, view))
  spec = {"data": {"name": "toy:data", "media": False, "count": 3}, "rewards": {"toy": {"name": "toy:reward"}},
          "success": "toy/bright", "samples": 2, "batch": 6, "primary": "two", "baseline": "own"}
  arms = {"own": model, "two": {"model": model, "steps": 2}, "five": {"model": model, "steps": 5}}
  evaluate.evaluate(str(tmp_path / "mixed"), arms=arms, **spec)
  evaluate.evaluate(str(tmp_path / "two"), arms={"own": {"model": model, "steps": 1}, "two": model}, steps=2, **spec)
  images = lambda run, arm: np.load(tmp_path / run / f"samples_{arm}.npz")["images"].astype(int)
  np.testing.assert_array_equal(images("mixed", "two"), images("two", "two"))
  np.testing.assert_array_equal(images("mixed", "own"), images("mixed", "five"))  # which is this policy's own number
  assert min(np.abs(images("mixed", "two") - other).max()
             for other in (images("mixed", "own"), images("two", "own"))) > 1


@pytest.mark.parametrize("arm", [3, {"model": "here"}, {"model": "here", "step": 2}])
def test_an_arm_of_another_form_is_refused(arm):
  with pytest.raises(UserError, match="config.arms.two = .* must be a folder, or one with steps of its own"):
    evaluate.spelled({"two": arm}, 8)
