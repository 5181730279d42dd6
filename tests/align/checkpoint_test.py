"""Checkpoints: bit-exact round trips on other meshes, and every kind of damage is seen and survived."""
import collections
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import checkpoint
from align.build import UserError


class Toy(NamedTuple):
  step: Any
  params: Any
  memory: Any


def toy(value, size=64):
  kernel = jnp.arange(size * 4.0).reshape(size, 4) + value
  params = {"policy": {"kernel": kernel, "bias": jnp.full(5, value, jnp.bfloat16)}}
  memory = {"key": jax.random.key(value), "keys": jax.random.split(jax.random.key(value), 3), "empty": {}, "none": None,
            "list": [jnp.int8(value), (jnp.array([True, False]),)]}
  return Toy(jnp.int32(value), params, memory)


def bits(tree):
  plain = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
  return [(np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(plain)]


def saved(path, steps=(1, 2), **options):
  store = checkpoint.open_(path, **options)
  for step in steps:
    assert store.save(step, toy(step), {"stream": {"position": step}})
  store.wait()
  return store


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_state_comes_back_bit_for_bit(tmp_path):
  assert checkpoint.open_(tmp_path).restore(toy(0)) is None
  saved(tmp_path, (1, 2, 3)).close()
  store = checkpoint.open_(tmp_path)
  assert store.steps() == [2, 3]
  step, state, extra = store.restore(jax.eval_shape(lambda: toy(0)))
  assert step == 3 and extra == {"stream": {"position": 3}}
  assert jax.tree.structure(state) == jax.tree.structure(toy(3)) and bits(state) == bits(toy(3))
  assert bits(jax.random.normal(state.memory["key"], 3)) == bits(jax.random.normal(jax.random.key(3), 3))
  names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert names == ["2", "3", "manifests"]  # nothing that was deleted stays behind
  store.close()


def test_without_a_template_the_state_is_nested_dicts_of_numpy(tmp_path):
  saved(tmp_path).close()
  step, state, extra = checkpoint.open_(tmp_path).restore()
  assert step == 2 and extra["stream"] == {"position": 2}
  assert np.array_equal(state["params"]["policy"]["kernel"], toy(2).params["policy"]["kernel"])
  assert isinstance(state["params"]["policy"]["bias"], np.ndarray)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
  store, state = checkpoint.open_(tmp_path, keep=20), {"x": jnp.zeros((256, 256))}
  advance = jax.jit(lambda s: {"x": s["x"] + 1}, donate_argnums=0)
  for step in range(6):
    assert store.save(step, state)
    for _ in range(3):
      state = advance(state)
  store.wait()
  for step in range(5, -1, -1):
    found, back, _ = store.restore(state)
    assert found == step and (np.asarray(back["x"]) == 3 * step).all()
    shutil.rmtree(tmp_path / "checkpoints" / str(step))
    store.close()
    store = checkpoint.open_(tmp_path, keep=20)


MESHES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from align import checkpoint
def laid(n, *spec):
  mesh = jax.make_mesh((n // 2, 2) if n > 1 else (1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2,
                       devices=jax.devices()[:n])
  return NamedSharding(mesh, P(*spec))
x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
trees = {"split": ("data", "fsdp"), "rows": (("data", "fsdp"),), "whole": (), "key": ()}
make = lambda n: {k: jax.device_put(jax.random.split(jax.random.key(7), 8) if k == "key" else x, laid(n, *s))
                  for k, s in trees.items()}
store = checkpoint.open_(sys.argv[1])
store.save(5, make(8)); store.wait()
for n in (8, 4, 2, 1):
  target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), make(n))
  step, back, _ = store.restore(target)
  for k in trees:
    assert back[k].sharding == target[k].sharding, (n, k)
    raw = jax.random.key_data(back[k]) if k == "key" else back[k]
    want = jax.random.key_data(make(1)[k]) if k == "key" else x
    assert np.array_equal(np.asarray(raw), np.asarray(want)), (n, k)
store.restore()
print("same on every mesh")
"""


def test_a_state_moves_to_other_meshes_bit_for_bit(tmp_path):
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
  command = [sys.executable, "-c", MESHES, str(tmp_path)]
  run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
  assert "same on every mesh" in run.stdout, run.stderr[-2000:]
  manifest = json.loads((tmp_path / "checkpoints" / "manifests" / "5" / "0.json").read_text())["body"]["leaves"]
  assert (len(manifest["split"]["pieces"]), len(manifest["whole"]["pieces"])) == (8, 1)


TWO = """
import os, signal, sys
rank, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from align import checkpoint, guard

def laid(shape, *spec):
  return NamedSharding(jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2), P(*spec))

def put(x, sharding):
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

def state(step, split, rows):
  return {"split": put(x + step, split), "rows": put(x - step, rows)}

def check(step, *spec):
  target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=laid((4, 1), *spec)), like)
  found, back, extra = store.restore(target)
  assert found == step and extra == {"step": step}, (found, step)
  for name, value in (("split", x + step), ("rows", x - step)):
    for shard in back[name].addressable_shards:
      assert np.array_equal(np.asarray(shard.data), value[shard.index])

x = np.arange(64, dtype=np.float32).reshape(8, 8)
store = checkpoint.open_(path)
for step in (1, 2):
  like = state(step, laid((2, 2), "a", "b"), laid((4, 1)))
  assert store.save(step, like, {"step": step})
store.wait()
check(2, "a"); check(2); check(2, None, "a")
if rank == 1:
  files = [os.path.join(d, n) for d, _, names in os.walk(path + "/checkpoints/2/state") for n in names]
  os.truncate(max(files, key=os.path.getsize), 9)
multihost_utils.sync_global_devices("damaged")
check(1)
with guard.signals():
  assert not guard.stop_requested()
  if rank == 1:
    signal.raise_signal(signal.SIGTERM)
  assert guard.stop_requested()
os.environ["ALIGN_FAULT"] = "save:7:oserror" if rank == 0 else ""
assert not store.save(7, like)
os.environ["ALIGN_FAULT"] = ""
assert store.save(8, state(8, laid((4, 1), "a"), laid((4, 1))), {"step": 8})
store.wait()
check(8, None, "a")
store.close()
print("agreed", flush=True)
"""


def test_two_processes_save_restore_and_agree_on_what_is_broken(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
  runs = [subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(port), str(tmp_path)], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, env=env) for rank in range(2)]
  try:
    for run in runs:
      said = run.communicate(timeout=120)[0]
      assert run.returncode == 0 and "agreed" in said, said[-2000:]
  finally:
    for run in runs:
      run.kill()


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def damages(root):
  """{name: how to damage the newest step}."""
  step, manifest = root / "2", root / "manifests" / "2" / "0.json"
  return {
    "bit": lambda: flip(largest(step / "state")), "truncated": lambda: os.truncate(largest(step / "state"), 100),
    "emptied": lambda: os.truncate(largest(step / "state"), 0), "deleted": lambda: largest(step / "state").unlink(),
    "state": lambda: shutil.rmtree(step / "state"),
    "extra": lambda: (step / "extra" / "metadata").write_text('{"stream": 9}'),
    "directory": lambda: [shutil.rmtree(step), step.mkdir()], "manifest": manifest.unlink,
    "manifest bit": lambda: flip(manifest), "manifest lies": lambda: manifest.write_text(
      manifest.read_text().replace("float32", "float64")),
  }


SAID = {"bit": "", "state": "state missing", "extra": "extra/metadata does not match", "directory": "missing",
        "manifest": "manifest: 0 of 1", "manifest bit": "manifest 0.json",
        "manifest lies": "does not match its own digest"}


@pytest.mark.parametrize("kind", [*SAID, "truncated", "emptied", "deleted"])
def test_damage_is_seen_and_the_step_before_is_taken(tmp_path, kind, caplog):
  saved(tmp_path).close()
  root = tmp_path / "checkpoints"
  damages(root)[kind]()
  store = checkpoint.open_(tmp_path)
  step, state, extra = store.restore(toy(0))
  assert step == 1 and bits(state) == bits(toy(1)) and extra == {"stream": {"position": 1}}
  report = "\n".join(r.getMessage() for r in caplog.records if r.levelname == "ERROR")
  assert f"{root / '2'} is BROKEN" in report and SAID.get(kind, "") in report
  assert (root / "broken" / "2").is_dir() and store.steps() == [1]
  assert store.save(2, toy(2))  # the run goes on and writes that step again
  store.wait()
  assert store.restore(toy(0))[0] == 2
  store.close()


def test_every_bit_of_the_values_is_covered(tmp_path):
  """Flips spread over every file of the state: each is either seen or harmless, never a wrong value."""
  saved(tmp_path, (1,), keep=1).close()
  files = sorted(p for p in (tmp_path / "checkpoints" / "1" / "state").rglob("*") if p.is_file() and p.stat().st_size)
  seen = 0
  for number, file in enumerate(files):
    copy = tmp_path / f"copy{number}"
    shutil.copytree(tmp_path / "checkpoints", copy / "checkpoints")
    flip(copy / file.relative_to(tmp_path))
    store = checkpoint.open_(copy)
    try:
      assert bits(store.restore(toy(0))[1]) == bits(toy(1)), file
    except UserError as error:
      assert "can be trusted" in str(error)
      seen += 1
    store.close()
  assert seen >= 1


def test_a_flipped_value_names_its_leaf(tmp_path, monkeypatch):
  store = saved(tmp_path)
  read = checkpoint._read

  def wrong(*args):
    state, extra = read(*args)
    state.params["policy"]["kernel"] = state.params["policy"]["kernel"].at[3, 1].add(1)
    return state, extra
  monkeypatch.setattr(checkpoint, "_read", wrong)
  with pytest.raises(UserError, match=r"\(step 2: leaf 'params/policy/kernel'\[0:64,0:4\] does not.*step 1:"):
    store.restore(toy(0))
  store.close()


def test_nothing_that_verifies_is_an_error_and_nothing_is_lost(tmp_path):
  saved(tmp_path).close()
  for step in "12":
    flip(largest(tmp_path / "checkpoints" / step / "state"))
  store = checkpoint.open_(tmp_path)
  with pytest.raises(UserError, match=r"no checkpoint in .* can be trusted \(step 2: .*; step 1: .*bring one back"):
    store.restore(toy(0))
  assert sorted(p.name for p in (tmp_path / "checkpoints" / "broken").iterdir()) == ["1", "2"]
  store.close()


@pytest.mark.parametrize("change, message", [
  (lambda s: s._replace(step=jnp.float32(0)), r"step: int32\[\] in the checkpoint, float32\[\] in this run"),
  (lambda s: s._replace(params={"policy": {**s.params["policy"], "bias": jnp.zeros(6, jnp.bfloat16)}}),
   r"params/policy/bias: bfloat16\[5\] in the checkpoint, bfloat16\[6\] in this run"),
  (lambda s: s._replace(params={"policy": {"kernel": s.params["policy"]["kernel"]}}),
   r"params/policy/bias: bfloat16\[5\] in the checkpoint, absent in this run"),
  (lambda s: s._replace(memory={**s.memory, "more": jnp.zeros(2)}),
   r"memory/more: absent in the checkpoint, float32\[2\] in this run"),
])
def test_a_state_of_another_run_is_refused_by_leaf_and_kept(tmp_path, change, message):
  store = saved(tmp_path)
  with pytest.raises(UserError, match=message):
    store.restore(change(toy(0)))
  assert store.steps() == [1, 2]
  store.close()


def test_a_full_disk_is_reported_and_training_goes_on(tmp_path, monkeypatch, caplog):
  store = saved(tmp_path, (1,))
  usage = collections.namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
  assert not store.save(2, toy(2)) and store.steps() == [1]
  assert "Training goes on" in caplog.text and "0 MB are free" in caplog.text
  with pytest.raises(UserError, match="0 MB are free, 1 MB are needed; free some space"):
    store.wait()
  with pytest.raises(UserError, match="0 MB are free"):
    store.save(2, toy(2), final=True)
  monkeypatch.undo()
  assert store.save(3, toy(3))
  store.wait()
  assert bits(store.restore(toy(0))[1]) == bits(toy(3))
  store.close()


def test_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
  store = checkpoint.open_(tmp_path, tries=3)
  monkeypatch.setenv("ALIGN_FAULT", "save:*:oserror")
  assert not store.save(1, toy(1)) and not store.save(2, toy(2))
  with pytest.raises(UserError, match="the disk is full"):
    store.save(3, toy(3))
  store.close()


@pytest.mark.parametrize("how", ["wait", "save", "final"])
def test_an_error_of_the_writing_thread_comes_out(tmp_path, monkeypatch, how, caplog):
  store = saved(tmp_path, (1,))
  handler = checkpoint.ocp.JsonCheckpointHandler

  async def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(handler, "async_save", full)
  if how == "final":
    with pytest.raises(UserError, match="the disk is full"):
      store.save(2, toy(2), final=True)
  elif how == "wait":
    store.save(2, toy(2))
    with pytest.raises(UserError, match="the disk is full"):
      store.wait()
  else:
    store.save(2, toy(2))
    store.save(3, toy(3))
    assert "the disk is full" in caplog.text
  monkeypatch.undo()
  assert store.restore(toy(0))[0] == 1
  assert store.save(4, toy(4))
  store.wait()
  assert store.restore(toy(0))[0] == 4
  store.close()


def test_what_cannot_be_written_is_refused_at_once(tmp_path):
  (tmp_path / "checkpoints").write_text("a file where the folder should be")
  with pytest.raises(UserError, match="cannot be written.*choose another workdir"):
    checkpoint.open_(tmp_path)
  with pytest.raises(UserError, match="keep=0"):
    checkpoint.open_(tmp_path / "other", keep=0)


KILLED = """
import sys, itertools, jax.numpy as jnp
from align import checkpoint
store = checkpoint.open_(sys.argv[1])
found = store.restore({"x": jnp.zeros((512, 512)), "y": jnp.zeros(8)})
first = 0
if found:
  first = found[0]
  assert (found[1]["x"] == first).all() and (found[1]["y"] == -first).all() and found[2] == {"n": first}, first
print("restored", first, flush=True)
for step in itertools.count(first + 1):
  store.save(step, {"x": jnp.full((512, 512), step, jnp.float32), "y": jnp.full(8, -step, jnp.float32)}, {"n": step})
  print("issued", step, flush=True)
"""


def killed(path, lines):
  """Runs the loop above until it has printed so many lines, kills it; returns (restored step, last issued)."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
  child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=env,
                           stderr=subprocess.PIPE)
  said = []
  for line in child.stdout:
    said.append(line.split())
    if len(said) > lines:
      child.send_signal(signal.SIGKILL)
      break
  rest = [line.split() for line in child.stdout]
  errors = child.stderr.read()
  child.wait()
  assert "BROKEN" not in errors and "Traceback" not in errors, errors[-2000:]
  return int(said[0][1]), int((said + rest)[-1][1])


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_time_loses_at_most_one_save(tmp_path, rounds):
  issued = 0
  for number in range(rounds):
    restored, last = killed(tmp_path, 2 + number % 7)
    assert restored >= issued - 1, (number, restored, issued)
    issued = last
