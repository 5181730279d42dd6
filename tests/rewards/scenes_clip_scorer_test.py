"""The learned judge of clips: its analytic part against the exact verdict on perfect cells, its gradient, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards import scenes, scenes_clip_scorer
from rewards.scenes_scorer import KINDS

FRAMES = 6


def perfect(specs):
  """[B F 8 8 19] probabilities of a judge that sees every centre."""
  classes = np.stack([scenes_clip_scorer.cells(s, FRAMES) for s in specs])
  return jnp.asarray(np.eye(1 + len(KINDS), dtype=np.float32)[classes])


def things(specs):
  each = [scenes_clip_scorer.encoded(s) for s in specs]
  return {k: np.stack([e[k] for e in each]) for k in each[0]}


@pytest.fixture(scope="module")
def judged():
  return jax.jit(lambda cells, asked: scenes_clip_scorer.judged(cells, asked, 6.0))


@pytest.mark.parametrize("most", (1, 2))
def test_perfect_cells_agree_with_the_exact_verdict(judged, most):
  media, _, specs = scenes.clip.batch(0, 0, 120, frames=FRAMES, world=scenes.make_world(most=most))
  others = specs[7:] + specs[:7]
  total = lambda seen, asked: np.prod([np.asarray(v) for v in judged(perfect(seen), things(asked)).values()], 0)
  assert (total(specs, specs) > .5).mean() > .9
  assert all(scenes.clip.check(s, d) for s, d in zip(specs[:20], scenes.clip.detect(media[:20]), strict=True))
  wrong = np.array([not all(thing in s["motion"] for thing in o["motion"]) for s, o in zip(others, specs, strict=True)])
  assert wrong.mean() > .9 and (total(others, specs)[wrong] < .5).mean() > .97


def test_each_part_sees_its_own_fault(judged):
  """One thing asked for, another shown: each part falls where that is wrong, and only there."""
  at = {"shape": "circle", "color": "red", "x": .2, "y": .5, "r": .1, "dx": .4, "dy": 0.}
  asked = {"class": "circle", "color": "red", "direction": "right", "speed": "quickly"}
  shown = {"right": at, "other color": {**at, "color": "blue"}, "other way": {**at, "x": .7, "dx": -.4},
           "slow": {**at, "dx": .13}, "still": {**at, "dx": 0.}}
  specs = [{"objects": [o], "motion": [asked]} for o in shown.values()]
  found = {k: dict(zip(shown, np.asarray(v).round(2), strict=True)) for k, v in
           judged(perfect(specs), things(specs)).items()}
  assert all(part["right"] > .9 for part in found.values())
  assert found["present"]["other color"] < .1 and min(found["present"][k] for k in ("other way", "slow", "still")) > .9
  assert max(found["straight"]["other way"], found["straight"]["still"]) < .3 and found["straight"]["slow"] > .8
  assert max(found["speed"]["slow"], found["speed"]["still"], found["speed"]["other way"]) < .1


def test_the_way_is_the_line_fitted_by_least_squares():
  rng = np.random.default_rng(0)
  found = rng.random((2, 1, FRAMES, 8, 8)).astype(np.float32)
  centre = (np.arange(8) + .5) / 8
  weight = found.sum((3, 4))[:, 0]
  x = (found[:, 0] * centre).sum((2, 3)) / weight
  want = [np.polyfit(np.linspace(0, 1, FRAMES), row, 1, w=np.sqrt(w))[0] for row, w in zip(x, weight, strict=True)]
  np.testing.assert_allclose(np.asarray(scenes_clip_scorer.moved(jnp.asarray(found)))[:, 0, 0], want, atol=1e-5)


@pytest.mark.parametrize("total", ["product", "mean"])
def test_the_gradient_is_that_of_finite_differences(total):
  made = scenes_clip_scorer.make(width=8, total=total)
  media, texts, specs = scenes.clip.batch(1, 0, 3, frames=3)
  view = made.init(jax.random.key(0))
  batch = {"things": made.prepare({"prompt": texts, "meta": specs})["things"]}
  score = jax.jit(lambda x: made.score(view, batch, x, None).total.sum())
  x = jnp.asarray(media, jnp.float32) / 255
  slope, direction = jax.grad(score)(x), jax.random.normal(jax.random.key(2), x.shape)
  step = 2e-3
  numeric = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
  assert float(jnp.abs(slope).max()) > 0
  np.testing.assert_allclose(float((slope * direction).sum()), float(numeric), rtol=0.05)


def test_a_mean_still_pulls_where_two_parts_are_wrong():
  """A clip of another thing that moves elsewhere: the product is flat there, the mean of the parts is not."""
  parts = {"present": 1e-3, "straight": 2e-3, "speed": 0.9}
  slope = {name: jax.grad(lambda p, total=total: total(list(p.values())))(parts)["present"]
           for name, total in scenes_clip_scorer.TOTALS.items()}
  np.testing.assert_allclose(slope["product"], 2e-3 * 0.9, rtol=1e-5)
  np.testing.assert_allclose(slope["mean"], 1 / 3, rtol=1e-6)


def test_fit_falls_to_zero_on_perfect_logits():
  """Cells of a batch are those of its renders: the first and the last frame hold the thing where it begins and ends."""
  made = scenes_clip_scorer.make(width=8)
  media, texts, specs = scenes.clip.batch(2, 0, 4, frames=FRAMES, world=scenes.make_world(most=1))
  cells = made.prepare({"prompt": texts, "meta": specs, "media": media})["cells"]
  assert cells.shape == (4, FRAMES, 8, 8) and (cells > 0).sum((2, 3)).tolist() == [[1] * FRAMES] * 4
  for spec, clip in zip(specs, cells, strict=True):
    for frame, share in ((0, 0.), (-1, 1.)):
      o = spec["objects"][0]
      row, column = (int((o[a] + share * o["d" + a]) * 8) for a in "yx")
      assert clip[frame, row, column] == 1 + KINDS.index((o["shape"], o["color"]))


def test_refusals():
  made = scenes_clip_scorer.make(width=8)
  with pytest.raises(ValueError, match="judges specs of clips with at most 2 things: choose prompts of Scenes"):
    made.prepare({"prompt": ["a"], "meta": [{"include": []}]})
  with pytest.raises(ValueError, match="reward 'scenes_clip_scorer': media have shape .* judges motion of clips"):
    made.score(made.init(jax.random.key(0)), {"things": {}}, jnp.zeros((1, 16, 16, 3)), None)
  with pytest.raises(ValueError, match="size = 20 must be 8 times a power of two"):
    scenes_clip_scorer.make(size=20)
  with pytest.raises(ValueError, match="width = 12 must be a positive multiple of 8"):
    scenes_clip_scorer.make(width=12)
  with pytest.raises(ValueError, match="total = 'sum' is not one of product, mean; choose one of them"):
    scenes_clip_scorer.make(total="sum")
