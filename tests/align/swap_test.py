"""Swapped prompts: the ends are plain sampling, the middle is what it says, and what is decided when."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STEPS, params_of, policy

from align import build, evaluate, main, pipeline, shard, swap
from diffusion import folder
from diffusion.core import fold


def made(eta):
  one = policy("flow_sde")
  view = params_of(one)["base"]
  said = lambda *words: one.prepare({"prompt": [f"a handwritten {w}" for w in words]})["cond"]
  first, second = said("one", "two", "three"), said("four", "five", "six")
  keys = jax.random.split(jax.random.key(4), 3)
  out = jax.jit(lambda *given: swap.chains(one, view, *given, STEPS, eta))(first, second, keys)
  return one, view, first, second, keys, out


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_ends_are_plain_sampling_from_the_same_noise(eta):
  one, view, first, second, keys, out = made(eta)
  plain = jax.jit(lambda cond: one.decode(view, one.sample(view, cond, keys, steps=STEPS, eta=eta).output))
  assert out.shape == (3, STEPS + 1, 4, 4, 1)
  np.testing.assert_array_equal(out[:, 0], plain(second))
  np.testing.assert_array_equal(out[:, -1], plain(first))
  assert np.abs(np.diff(out, axis=1)).max((0, 2, 3, 4)).min() > 0  # every k gives something else


def test_in_between_the_first_steps_have_the_first_prompt():
  one, view, first, second, keys, out = made(0.0)
  times = one.process.times(STEPS)
  start = one.sample(view, first, keys, steps=STEPS, eta=0.0, keep=jnp.arange(1)).x[:, 0]
  for k in range(STEPS + 1):
    x = start
    for i in range(STEPS):
      x = one.step(view, first if i < k else second, x, times[i], times[i + 1], fold(keys, i + 1), 0.0).x
    np.testing.assert_allclose(out[:, k], one.decode(view, x), atol=2e-6)


def test_a_prompt_swapped_for_itself_changes_nothing():
  one, view, first, _, keys, _ = made(0.0)
  out = jax.jit(lambda *given: swap.chains(one, view, *given, STEPS, 0.0))(first, first, keys)
  np.testing.assert_allclose(out, np.repeat(out[:, :1], STEPS + 1, 1), atol=2e-6)


def records(*kinds):
  return [{"prompt": str(i), "meta": {"category": kind}} for i, kind in enumerate(kinds)]


def test_partners_are_of_one_category_and_each_is_one_once():
  assert swap.partners(records("a", "b", "a", "b", "a")) == [2, 3, 4, 1, 0]
  with pytest.raises(build.UserError, match="has 1 prompt of the category 'b'; two or more of each are needed"):
    swap.partners(records("a", "b", "a"))


def test_what_is_decided_when():
  entry = lambda overall, a: {"overall": {"rate": overall}, "categories": {"a": {"rate": a}}}
  first = [entry(r, s) for r, s in zip((0.1, 0.2, 0.5, 0.6), (0.1, 0.5, 0.3, 0.6), strict=True)]
  second = [entry(r, s) for r, s in zip((0.6, 0.4, 0.5, 0.1), (0.6, 0.4, 0.4, 0.1), strict=True)]
  assert swap.decided(first, second) == {"overall": 2, "a": 3}  # `a` goes back once, so it is not decided before
  assert swap.decided(first[2:], second[2:])["overall"] == 0


DATA = {"name": "scenes_prompts", "count": 4, "categories": ("color", "position")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  where = tmp_path_factory.mktemp("swap")
  config = {"task": "swap", "model": "scenes", "data": DATA, "rewards": {"scenes": {"name": "scenes"}}, "steps": 2,
            "success": "scenes/exact", "batch": 3}
  return main.run(config, where), where, config


def test_the_results_and_their_page(finished):
  results, where, _ = finished
  assert json.loads((where / "results.json").read_text()) == json.loads(json.dumps(results))
  assert len(results["first"]) == len(results["second"]) == 3 and results["prompts"] == 4
  assert set(results["decided"]) == {"overall", "color", "position"}
  for found in (*results["first"], *results["second"]):
    assert found["overall"]["count"] == 4 and len(found["overall"]["interval"]) == 2
  page = (where / "report.html").read_text()
  assert page.count("<svg") == 3 and page.count("data:image/png") == 12 and "→" in page


def test_a_pipeline_tells_of_it(finished, tmp_path, capsys):
  results, where, config = finished
  (where / "stage.json").write_text('{"done": true, "seconds": 1.0}')
  (tmp_path / "halfway").symlink_to(where)
  told = pipeline.pipeline(tmp_path, runs={"halfway": config}, title="Swapped")
  assert told["swapped"]["halfway"]["decided"] == results["decided"] and "report: " in capsys.readouterr().out
  page = (tmp_path / "report.html").read_text()
  assert "Where the image is decided: halfway" in page and page.count("<svg") == 3 and "<h1>Swapped</h1>" in page
  assert json.loads((tmp_path / "results.json").read_text())["swapped"] == json.loads(json.dumps(told["swapped"]))


def test_another_kernel_of_the_same_network():
  made = {}
  evaluate.opened("scenes", shard.mesh(), made, {**folder.describe("scenes"), "kernel": "ddim"})
  assert json.loads(next(iter(made))) == {**folder.describe("scenes"), "kernel": "ddim"}


def test_refusals(finished):
  config = build.resolve(finished[2])
  swap.check(config)
  with pytest.raises(build.UserError, match="config.success = 'right/exact' is of none of the rewards scenes"):
    swap.check({**config, "success": "right/exact"})
  with pytest.raises(build.UserError, match="has 1 prompt of the category 'position'"):
    swap.check({**config, "data": {**config["data"], "count": 3}})
  judges = evaluate.load_rewards(config["rewards"], {}, 0, shard.mesh())
  said = [{"prompt": "a red circle", "meta": {"category": "color", "include": [{"class": "circle", "count": 1}],
                                                    "exclude": []}}]
  with pytest.raises(build.UserError, match="config.success = 'scenes/right' is not one of the scores scenes/total"):
    swap.judge(judges, np.zeros((1, 1, 16, 16, 3), np.uint8), said, "scenes/right", 1, 0, shard.mesh())
