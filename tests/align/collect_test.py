"""Best against worst, with the margin, and what a failed score may not do."""
import numpy as np
import pytest

from align import build, collect


def sifted(scores, margin=0.0, pairs=1):
  scores = np.asarray(scores, float)
  images = np.arange(scores.size, dtype=np.uint8).reshape(scores.shape)[..., None, None, None]
  records = [{"prompt": f"p{i}", "meta": {"k": i}} for i in range(len(scores))]
  return list(collect.sift(images, records, scores, margin, 7, "r/total", pairs))


def test_a_pair_is_the_best_and_the_worst_valid_sample():
  pair, = sifted([[0.2, np.nan, 0.9, 0.1]])
  assert (pair["sample_win"], pair["sample_lose"]) == (2, 3)
  assert int(pair["win"].squeeze()) == 2 and int(pair["lose"].squeeze()) == 3
  assert (pair["score_win"], pair["score_lose"], pair["judge"], pair["seed"]) == (0.9, 0.1, "r/total", 7)


def test_prompts_without_a_clear_pair_are_dropped():
  assert [p["prompt_id"] for p in sifted([[1, 1], [0, 0.5], [np.nan, 1], [0, 1]])] == [1, 3]
  assert [p["prompt_id"] for p in sifted([[0, 0.5], [0, 1]], margin=0.5)] == [1]


def test_more_pairs_are_the_next_best_and_the_next_worst():
  found = sifted([[5, 1, 3, np.nan, 4, 2], [1, 1, 1, 1, 2, np.nan]], pairs=3)
  assert [(p["prompt_id"], p["sample_win"], p["sample_lose"]) for p in found] == [(0, 0, 1), (0, 4, 5), (1, 4, 3)]


def test_no_image_is_in_two_pairs(tmp_path):
  with pytest.raises(build.UserError, match="pairs = 3 must be in 1 .. 2, half of config.samples = 5"):
    collect.collect(tmp_path, model="scenes", data={}, rewards={}, score="a/b", samples=5, pairs=3)
