"""What remat keeps and does again: closed forms on a small network, and one public network at its real size."""
import itertools

import pytest

from align import build
from launch import bench, kept


def small(remat):
  net = {"name": "mmdit", "variant": "tiny", "depth": 3, "remat": remat}
  return build.build("align.policies", {
    "name": "diffusion", "size": 8, "length": 5, "steps": 2, "net": net, "text": {"name": "text", "width": 16},
    "process": "flow"})


def one_more(remat):
  return kept.one_more(small(remat))


def test_every_sample_keeps_and_does_the_same():
  """So that the second one stands for all, and weights cancel."""
  policy = small(True)
  (first, done), (third, thrice) = (kept.measured(policy, batch) for batch in (1, 3))
  more, again = kept.one_more(policy)
  assert third == first + 2 * more and more < first and thrice == done + 2 * again


@pytest.mark.slow
def test_the_more_is_kept_the_less_is_done_again():
  found = [one_more(way) for way in kept.WAYS]
  for (kept_now, done), (kept_less, done_more) in itertools.pairwise(found):
    assert kept_less < kept_now and done_more > done


def test_all_remat_is_one_forward_pass_more():
  (_, plain), (_, again) = one_more(False), one_more(True)
  assert 4 / 3 - 0.05 < again / plain < 4 / 3


@pytest.mark.slow
def test_a_public_network_is_printed(capsys):
  bench.printed("remat", kept.run(1, {"sd15": 512}))
  said = capsys.readouterr().out
  assert "sd15, attention" in said and "kept bytes" in said and "1.000 times the operations of False" in said
