"""The learned judge: its analytic part against the exact verdict on perfect cells, its gradient, and that it learns."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slopes

from rewards import scenes, scenes_scorer


def cells_of(specs, certainty=1.0):
  """[B 8 8 19] probabilities of a judge that sees every centre."""
  classes = np.stack([scenes_scorer.labels(s["objects"]) for s in specs])
  sharp = np.eye(1 + len(scenes_scorer.KINDS), dtype=np.float32)[classes]
  return jnp.asarray(certainty * sharp + (1 - certainty) / sharp.shape[-1])


def encoded(specs):
  each = [scenes_scorer.encoded(s) for s in specs]
  return {k: np.stack([e[k] for e in each]) for k in each[0]}


def total(cells, specs):
  parts = jax.jit(scenes_scorer.judged, static_argnums=2)(cells, encoded(specs), 6.0)
  return np.prod([np.asarray(v) for v in parts.values()], 0)


def test_perfect_cells_agree_with_the_exact_verdict():
  """Captions with their own scenes are right; of those with the scene of another record, check says which are."""
  _, _, specs = scenes.batch(0, 0, 600)
  own = total(cells_of(specs), specs)
  others = specs[7:] + specs[:7]
  crossed, truth = total(cells_of(others), specs), np.array([scenes.check(s, o["objects"])
                                                             for s, o in zip(specs, others, strict=True)])
  assert truth.mean() < 0.5
  assert (own > 0.5).mean() > 0.97
  assert (crossed[~truth] < 0.5).mean() > 0.97 and (crossed[truth] > 0.5).mean() > 0.9
  for kind in scenes.CATEGORIES:
    mine = np.array([s["category"] == kind for s in specs])
    assert own[mine].mean() > crossed[mine & ~truth].mean() + 0.4, kind


def test_one_object_too_many_fails_a_count_and_nothing_else():
  two = {"category": "count", "include": [{"class": "circle", "count": 2}],
         "exclude": [{"class": "circle", "count": 3}]}
  some = {**two, "exclude": []}
  at = lambda x: {"shape": "circle", "color": "red", "x": x, "y": 0.5, "r": 0.1}
  scene = [{"objects": [at(x) for x in xs]} for xs in ((0.2,), (0.2, 0.5), (0.2, 0.5, 0.8))]
  assert (total(cells_of(scene), [two] * 3) > 0.5).tolist() == [False, True, False]
  assert (total(cells_of(scene), [some] * 3) > 0.5).tolist() == [False, True, True]


def test_the_gradient_is_that_of_finite_differences():
  made = scenes_scorer.make(width=8)
  media, texts, specs = scenes.batch(1, 0, 6)
  view = made.init(jax.random.key(0))
  batch = {"scene": made.prepare({"prompt": texts, "meta": specs})["scene"]}
  slopes.agree(lambda x: made.score(view, batch, x, None), jnp.asarray(media, jnp.float32) / 255, 1e-3, 1e-2)


def test_it_learns_where_things_are():
  made, tx = scenes_scorer.make(width=8), optax.adam(1e-2)
  media, texts, specs = scenes.batch(2, 0, 64)
  batch = made.prepare({"prompt": texts, "meta": specs, "media": media})
  arrays = {"media": jnp.asarray(media), "cells": jnp.asarray(batch["cells"])}
  view = made.init(jax.random.key(0))
  opt = tx.init(view)

  @jax.jit
  def step(view, opt, i):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 64)
    loss, grads = jax.value_and_grad(lambda v: made.fit(v, arrays, keys)[0].mean())(view)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(view, updates), opt, loss
  losses = []
  for i in range(60):
    view, opt, loss = step(view, opt, i)
    losses.append(float(loss))
  assert losses[-1] < 0.4 * losses[3]


@pytest.mark.parametrize("options, message", [({"size": 20}, "size = 20"), ({"width": 12}, "width = 12")])
def test_impossible_sizes_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    scenes_scorer.make(**options)


def test_captions_that_it_cannot_judge_are_refused():
  _, texts, specs = scenes.batch(0, 0, 1, categories=("long",))
  with pytest.raises(ValueError, match="six categories"):
    scenes_scorer.make().prepare({"prompt": texts, "meta": specs})
