"""A scalar head on a network that sees: what its number depends on, and what it refuses."""
import jax
import numpy as np
import pytest
import slopes

from diffusion.nets import lm
from rewards import scalar

PROMPTS = ["a red circle", "two green squares on the left"]


def setup(length=8, **options):
  made = scalar.make(lm.make("tiny"), length=length, size=8, **options)
  tree = made.init(jax.random.key(0))
  leaves, shape = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = shape.unflatten([a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])
  media = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3))
  return made, tree, moved, media


def test_the_number_is_of_this_image_and_this_prompt():
  made, _, view, media = setup()
  score = lambda prompts, media: made.score(view, made.prepare({"prompt": prompts}), media, None).total
  both = score(PROMPTS, media)
  np.testing.assert_allclose(score(PROMPTS[::-1], media[::-1]), both[::-1], atol=1e-5)
  assert np.abs(score(PROMPTS[::-1], media) - both).min() > 1e-3
  assert np.abs(score(PROMPTS, media[::-1]) - both).min() > 1e-3


def test_padding_changes_nothing():
  short, _, view, media = setup(8)
  long = setup(14)[0]
  found = [made.score(view, made.prepare({"prompt": PROMPTS}), media, None).total for made in (short, long)]
  np.testing.assert_allclose(*found, atol=1e-5)


def test_dimensions_are_parts_and_their_weighted_sum_is_the_total():
  made, _, view, media = setup(dims=("quality", "motion"), weights=(2.0, -1.0))
  scores = made.score(view, made.prepare({"prompt": PROMPTS}), media, None)
  assert list(scores.parts) == ["quality", "motion"] and scores.valid.all()
  np.testing.assert_allclose(scores.total, 2 * scores.parts["quality"] - scores.parts["motion"], rtol=1e-5)


def test_it_begins_undecided_and_has_a_gradient_in_pixels():
  made, fresh, view, media = setup()
  batch = made.prepare({"prompt": PROMPTS})
  score = lambda tree, m: made.score(tree, batch, m, None).total
  assert np.ptp(score(fresh, media)) < 0.5 * np.ptp(score(view, media))
  slope, _ = slopes.agree(lambda m: made.score(view, batch, m, None), media, 3e-4, 1e-2, of=slice(1))
  assert not np.abs(slope[1]).any()


@pytest.mark.parametrize("options,words", [
  ({"dims": ()}, "dims = [] must be one or more different names"),
  ({"dims": ("a", "a")}, "dims = ['a', 'a'] must be one or more different names"),
  ({"dims": ("a", "b"), "weights": (1.0,)}, "weights = [1.0] must be 2 numbers"),
  ({"net": lm.make("tiny", patch=0)}, "patch = 0, so that this judge cannot see"),
  ({"net": lm.make("tiny", vocab=50)}, "vocab = 50 is smaller than the 112 tokens of tokens = 'words'"),
])
def test_refusals(options, words):
  with pytest.raises(ValueError) as error:
    scalar.make(**{"net": lm.make("tiny"), "size": 8, **options})
  assert words in str(error.value)
