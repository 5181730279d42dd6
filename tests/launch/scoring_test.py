"""Both sides of the benchmark of rewards find the same; nothing is timed."""
import numpy as np
import pytest

from launch import bench, scoring, scoring_peer
from launch.scoring import REWARDS, TINY


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
  root = tmp_path_factory.mktemp("rewards")
  scoring_peer.write(root, TINY)
  return scoring.parts(TINY, root)


SLOW = [pytest.param(name, marks=pytest.mark.slow if name in ("clip", "hps", "reconstruction clip") else ())
        for name in REWARDS]  # parts of others


@pytest.mark.parametrize("name", SLOW)
def test_numbers_are_the_same(sides, name):
  for what, shape in (("score", (3,)), ("slope", (3, 20, 20, 3))):
    mine, theirs = (side() for side in sides[f"{name} {what}"].values())
    assert mine.shape == shape and np.ptp(theirs) > 1e-4
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_a_run_prints_ratios_and_rates(capsys):
  out = scoring.run(1, TINY._replace(rewards=("aesthetic",)))
  bench.printed("rewards", out)
  said = capsys.readouterr().out
  assert len(out) == 4 and "ratio" in out["aesthetic slope, PyTorch"]
  assert "pictures a second" in said and "times ours" in said
