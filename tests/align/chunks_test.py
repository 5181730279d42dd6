"""Experiences in chunks: nothing moves, nothing changes, and the next chunk is sampled while one is judged."""
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from align import build, chunks, metrics, shard, train
from align.build import UserError
from diffusion import weights
from rewards.core import Scores

NET = {"w": jnp.zeros(3)}


def asked(where="host", wishes=1, **params):
  return toy.reward(where)._replace(chunks=wishes, init=lambda key: params)


def beside(where="host", holds=False):
  """A reward that says whether a thread of its own judges, which is also where a program is traced."""
  def score(view, batch, media, keys):
    found = toy.reward(where).score(view, batch, media, keys)
    is_beside = threading.current_thread() is not threading.main_thread()
    return found._replace(parts={"beside": 0 * found.total + float(is_beside)})
  return asked(where, **({"net": NET} if holds else {}))._replace(score=score)


def lengths():
  """A reward that reads what the host holds: the words of a prompt, and where its letters stand in the alphabet."""
  def score(view, batch, media, keys):
    said = np.array([sum(map(ord, prompt)) % 7 for prompt in batch["prompt"]], np.float32)
    if len(said) != len(media) or len(batch["prompt_id"]) != len(media):
      raise ValueError("a chunk without its prompts")
    return Scores(said * np.asarray(media).mean((1, 2, 3)), {}, np.ones(len(media), bool))
  return toy.reward("host")._replace(score=score)


def blind():
  return toy.reward("host")._replace(chunks=None)


@pytest.mark.parametrize("group,count", [(1, 4), (2, 3), (3, 2)])
def test_chunks_are_whole_prompts_and_come_together_again(group, count):
  prompts = 12
  total = prompts * group
  made = {"x": jnp.arange(2 * total).reshape(-1, 2), "keys": jax.random.split(jax.random.key(0), total),
          "prompt_id": jnp.repeat(jnp.arange(prompts), group), "one": jnp.float32(3)}
  names = {"prompt": [f"prompt {i}" for i in np.repeat(np.arange(prompts), group)]}
  parts = [chunks.cut(made, group, count, j) for j in range(count)]
  for j, part in enumerate(parts):
    assert part["x"].shape == (prompts * group // count, 2) and part["one"] == 3
    ids = np.asarray(part["prompt_id"])
    np.testing.assert_array_equal(ids, np.repeat(np.arange(j, prompts, count), group))
    assert chunks.of_host(names, group, count, j)["prompt"] == [f"prompt {i}" for i in ids]
  rest = lambda part: {**part, "keys": jax.random.key_data(part["keys"]), "one": part["prompt_id"]}
  found = chunks.whole([rest(part) for part in parts], group)
  for name, leaf in rest(made).items():
    np.testing.assert_array_equal(found[name], leaf)


def test_devices_keep_what_they_have():
  mesh = shard.mesh(data=8)
  x = shard.put_batch(np.arange(32, dtype=np.float32), mesh)
  text = jax.jit(lambda x: chunks.cut(x, 2, 2, 1), out_shardings=x.sharding).lower(x).compile().as_text()
  assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def test_how_many():
  one, eight = shard.mesh(data=1, devices=jax.devices()[:1]), shard.mesh(data=8)
  for reward, prompts, group, mesh, wanted in (
      (asked(), 16, 4, one, 1), (asked(wishes=4), 16, 4, one, 4), (asked(wishes=4), 6, 4, one, 3),
      (asked(wishes=4), 16, 4, eight, 2), (asked(wishes=4), 8, 4, eight, 1), (asked(wishes=None), 16, 4, one, 1),
      (None, 16, 1, one, 1), (asked("device", 4), 16, 4, one, 1), (asked("gradient", 4, net=NET), 16, 4, eight, 1),
      (asked(wishes=4, net=NET), 16, 4, one, 4), (asked(wishes=4, part=NET), 16, 4, eight, 1),
      (asked(wishes=4, mix=NET), 16, 4, eight, 2), (asked(wishes=4, part={"mix": NET}), 16, 4, eight, 2)):
    assert chunks.count(reward, None, prompts, group, mesh) == wanted
  assert chunks.count(asked(), 2, 8, 4, eight) == 2  # where it is asked for, groups may be cut over devices
  with pytest.raises(UserError, match=r"config.chunks = 3 does not divide the 8 prompts .* one of 1, 2, 4, or None"):
    chunks.count(asked(), 3, 8, 4, eight)
  with pytest.raises(UserError, match="config.chunks = 2: this reward compares all samples of an experience; leave it"):
    chunks.count(asked(wishes=None), 2, 8, 4, one)
  with pytest.raises(UserError, match="config.chunks = 2: this run has no reward to wait for; leave it out"):
    chunks.count(None, 2, 8, 4, one)


def test_the_next_chunk_is_sampled_while_one_is_judged():
  there = [threading.Event() for _ in range(4)]

  def sample(j):
    there[j].set()
    return 10 * j

  def judge(j, made):
    last = j == len(there) - 1
    return made + 1 if last or there[j + 1].wait(20) else None

  assert chunks.overlapped(4, sample, judge) == [(0, 1), (10, 11), (20, 21), (30, 31)]


def test_one_chunk_at_most_waits():
  behind, done = [], []

  def sample(j):
    behind.append(j - len(done))
    return j

  chunks.overlapped(6, sample, lambda j, made: done.append(j))
  assert max(behind) <= 2


def test_the_first_error_ends_it():
  sampled = []

  def judge(j, made):
    raise ValueError(f"chunk {j}")

  with pytest.raises(ValueError, match="chunk 0"):
    chunks.overlapped(6, lambda j: sampled.append(j), judge)
  assert sampled == [0, 1]


@pytest.mark.parametrize("judge,algorithm", [
  ("chunks_test:lengths", {"name": "grpo", "steps": 3, "pick": "window", "size": 1, "clip": 0.1}),
  ("toy:reward", {"name": "nft", "steps": 3, "levels": 2})])
def test_a_run_in_chunks_is_the_run(judge, algorithm, tmp_path, monkeypatch):
  """Also one whose reward is on the devices, where nothing is gained."""
  monkeypatch.syspath_prepend(str(__file__.rsplit("/", 1)[0]))
  found = {}
  for count in (1, 2):
    config = {"steps": 3, "batch": 8, "group": 2, "policy": {"name": "toy:policy"}, "reward": {"name": judge},
              "data": {"name": "toy:data", "media": False}, "algorithm": algorithm, "mesh": {"data": 8},
              "optim": {"name": "adamw", "lr": 3e-3}, "log_every": 1, "chunks": count}
    train.run(build.resolve({"task": "train", **config}), str(tmp_path / str(count)))
    found[count] = dict(weights.leaves(weights.load(tmp_path / str(count) / "export" / "policy.safetensors")))
  for name, leaf in found[1].items():
    np.testing.assert_allclose(found[2][name], leaf, atol=2e-6, err_msg=name)


def small(reward, **more):
  return build.resolve({"task": "train", "steps": 1, "batch": 8, "group": 2, "policy": {"name": "toy:policy"},
                        "reward": reward, "data": {"name": "toy:data", "media": False}, "chunks": 2,
                        "algorithm": {"name": "nft", "steps": 3, "levels": 2}, **more})


@pytest.mark.parametrize("options, expected", [({}, 1), ({"holds": True}, 0), ({"where": "device"}, 0)])
def test_programs_over_several_devices_are_dispatched_in_one_order(options, expected, tmp_path, monkeypatch):
  """Only a thread that dispatches none of them judges beside."""
  monkeypatch.syspath_prepend(str(__file__.rsplit("/", 1)[0]))
  train.run(small({"name": "chunks_test:beside", **options}), str(tmp_path))
  assert metrics.read(tmp_path)[0]["experience/part_beside"] == expected


def test_networks_on_the_host_are_refused_in_several_processes(monkeypatch):
  monkeypatch.syspath_prepend(str(__file__.rsplit("/", 1)[0]))
  toys = {"a": {"name": "toy:reward", "where": "host"}, "b": {"name": "toy:reward"}}
  both = lambda **part: small({"name": "mix", "rewards": {**toys, **part}, "normalise": "frozen"}, chunks=None)
  judge = {"name": "motion_head", "width": 8, "depth": 1}
  train.check(both(c=judge))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  train.check(both())
  with pytest.raises(UserError, match="config.reward is called on the host and has the parameters 'c/.*', of which 2 "
                     "processes hold shares .*; choose rewards that are all called on the devices, or run one process"):
    train.check(both(c=judge))


def test_rewards_that_compare_all_are_not_cut(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(__file__.rsplit("/", 1)[0]))
  with pytest.raises(UserError, match="compares all samples"):
    train.check(small({"name": "chunks_test:blind"}))
