"""Best against worst, with the margin, and what a failed score may not do."""
import numpy as np
import pytest

from align import build, collect
from rewards.judging import sift


def sifted(scores, margin=0.0, pairs=1, won=None):
  scores = np.asarray(scores, float)
  images = np.arange(scores.size, dtype=np.uint8).reshape(scores.shape)[..., None, None, None]
  records = [{"prompt": f"p{i}", "meta": {"k": i}} for i in range(len(scores))]
  return list(collect.sift(images, records, scores, margin, 7, "r/total", pairs,
                           None if won is None else np.asarray(won, float)))


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


def test_the_samples_of_a_prompt_are_compared_in_one_call(tmp_path):
  with pytest.raises(build.UserError, match=r"batch = 9, on this mesh \d+, must be a multiple of config.samples = 6"):
    collect.collect(tmp_path, model="scenes", data={}, rewards={}, score="a/b", rank="a/c", samples=6, batch=9)


def test_winners_of_comparisons_come_first():
  """The best by points lost its comparison, the worst won it: neither is where it is looked for."""
  points, won = [[9, 2, 7, 4, 1, 5]], [[0, 1, 1, 0, 1, 0]]
  pair, = sifted(points, won=won)
  assert (pair["sample_win"], pair["sample_lose"], pair["score_win"], pair["score_lose"]) == (2, 3, 7, 4)
  assert [(p["sample_win"], p["sample_lose"]) for p in sifted(points, won=won, pairs=3)] == [(2, 3)]  # 2 - 5 is below 0
  tied = sifted([[9, 1, 7, 4], [9, 1, 7, 4], [1, 9, np.nan, 4]],
                won=[[0.5, 0.5, np.nan, np.nan], [0.5, 0.5, 1, 0], [0, 1, 1, 0]])
  assert [(p["prompt_id"], p["sample_win"], p["sample_lose"]) for p in tied] == [(1, 2, 3), (2, 1, 0)]


def test_ranks_of_neighbours_give_the_pairs_of_the_sifting_judge():
  rng = np.random.default_rng(0)
  points, share = rng.integers(1, 8, (40, 6)).astype(float), rng.choice([0, 0.5, 0.8, 1, np.nan], (40, 3))
  won = np.stack([share, 1 - share], -1).reshape(40, 6)
  expected = [sift.best(p, *(np.flatnonzero(side).tolist() for side in (won[p] > 0.5, won[p] < 0.5)), points[p], 1.0)
              for p in range(40)]
  expected = [(one.prompt, one.score_win, one.score_lose) for one in expected if isinstance(one, sift.Chosen)]
  found = [(p["prompt_id"], p["score_win"], p["score_lose"]) for p in sifted(points, 1.0, won=won)]
  assert found == expected and 5 < len(found) < 35
