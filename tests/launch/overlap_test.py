"""The benchmark of overlapping runs on both sides; nothing is timed."""
import jax
import pytest

from align import build, chunks, shard
from launch import bench, overlap


@pytest.mark.slow
def test_both_sides_run_and_are_printed(capsys, monkeypatch):
  monkeypatch.setattr(overlap, "WAIT", 0.0)
  out = overlap.run(2)
  bench.printed("overlap", out)
  assert set(out) == {"ours", "in turn"} and "times ours" in capsys.readouterr().out


def test_both_sides_differ_in_chunks_alone():
  ours, other = (overlap.config(3, chunks, "prompts.txt") for chunks in overlap.CHUNKS.values())
  assert [found(ours), found(other)] == [4, 1]
  assert {k: v for k, v in ours.items() if k != "chunks"} == {k: v for k, v in other.items() if k != "chunks"}


def found(config):
  """Chunks of an experience on one device."""
  own = build.build("rewards", config["reward"])
  return chunks.count(own, config["chunks"], config["batch"], config["group"], shard.mesh(devices=jax.devices()[:1]))


def test_the_reader_sees_nothing(monkeypatch):
  monkeypatch.setattr(overlap, "WAIT", 0.0)
  assert overlap.wait([0, 0]) == ["", ""]
