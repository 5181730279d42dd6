"""Kept scores: nothing is scored twice, equal bit for bit, and nothing wrong is ever given out."""
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import assemble, build
from rewards import cache, jpeg, mix
from rewards.core import Reward, Scores

ROOT = Path(__file__).parent.parent.parent
MEDIA = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 6)


def batch(prompts="abcabc", **more):
  return {"prompt": list(prompts), "meta": [{"n": i // 3} for i in range(len(prompts))],
          "prompt_id": np.arange(len(prompts)), "sample_id": np.arange(len(prompts)), **more}


def counting(seen, invalid=(), reads=("prompt",)):
  """A reward that notes how many samples it scored; its score is of media, prompt and parameters."""
  def score(view, batch, media, keys):
    seen.append(len(media))
    for name in reads:
      batch[name]
    total = media.mean((1, 2, 3)) / 3 + np.array([ord(p[0]) if p else 0 for p in batch["prompt"]], np.float32)
    total = (total + np.float32(view.get("bias", 0.0))).astype(np.float32)
    valid = np.array([p not in invalid for p in batch["prompt"]])
    return Scores(total, {"size": (total * 2).astype(np.float64), "odd/name": np.float16(total)}, valid)
  return Reward(lambda key: {}, lambda b: b, score, "host", None)


def same(a, b):
  pair = [jax.tree.leaves((one.total, {**one.parts, "cached": 0}, one.valid)) for one in (a, b)]
  for x, y in zip(*[map(np.asarray, leaves) for leaves in pair], strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("folder", [False, True])
def test_the_second_call_scores_nothing_and_is_equal_bit_for_bit(tmp_path, folder):
  seen = []
  options = {"folder": str(tmp_path), "identity": "test"} if folder else {}
  made, plain = cache.make(counting(seen), **options), counting([])
  first, second = (made.score({}, batch(), MEDIA, KEYS) for _ in range(2))
  assert seen == [6]
  same(first, plain.score({}, batch(), MEDIA, KEYS))
  same(second, first)
  assert first.parts["cached"].tolist() == [0] * 6 and second.parts["cached"].tolist() == [1] * 6
  third = cache.make(counting(seen), **options).score({}, batch(), MEDIA, KEYS)  # another process, as it were
  same(third, first)
  assert seen == ([6] if folder else [6, 6])


def test_only_what_is_new_is_scored_and_copies_once():
  seen = []
  made = cache.make(counting(seen))
  made.score({}, batch("abc"), MEDIA[:3], KEYS[:3])
  order = [5, 0, 4, 1, 5, 2]
  found = made.score({}, {**batch("cabbcc"), "meta": [{"n": i // 3} for i in order]}, MEDIA[order], KEYS)
  same(found, counting([]).score({}, batch("cabbcc"), MEDIA[order], KEYS))
  assert seen == [3, 2]
  assert found.parts["cached"].tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("change, scored", [
  ({"prompt": ["x", *"bcabc"]}, 1),
  ({"meta": [{"n": 9}] * 6}, 6),
  ({"label": np.array([1, 0, 0, 0, 0, 0])}, 1),
  ({"asked": {"tokens": jnp.zeros((6, 3)).at[2, 1].set(1.0)}}, 1),
  ({"prompt_id": np.arange(6) + 7, "sample_id": np.zeros(6), "experience": np.ones(6)}, 0),
])
def test_everything_that_a_batch_says_of_a_sample_is_part_of_its_name(change, scored):
  seen, given = [], batch(label=np.zeros(6, int), asked={"tokens": np.zeros((6, 3), np.float32)})
  made = cache.make(counting(seen))
  made.score({}, given, MEDIA, KEYS)
  made.score({}, {**given, **change}, MEDIA, KEYS)
  assert seen == [6, scored][:1 + bool(scored)]


def test_media_are_told_apart_by_every_bit_and_by_their_form():
  seen = []
  made = cache.make(counting(seen))
  made.score({}, batch(), MEDIA, KEYS)
  near = MEDIA.copy()
  near[3, 7, 7, 2] = np.nextafter(near[3, 7, 7, 2], 2, dtype=np.float32)
  made.score({}, batch(), near, KEYS)
  made.score({}, batch(), MEDIA.reshape(6, 4, 16, 3), KEYS)
  assert seen == [6, 1, 6]


def test_invalid_scores_are_asked_again():
  seen = []
  made = cache.make(counting(seen, invalid="b"))
  for _ in range(2):
    assert made.score({}, batch(), MEDIA, KEYS).valid.tolist() == [True, False, True] * 2
  assert seen == [6, 2]


def test_scores_that_are_not_finite_are_asked_again():
  calls = []
  def score(view, batch, media, keys):
    calls.append(len(media))
    return Scores(np.array([np.nan, 1.0], np.float32)[:len(media)], {}, np.ones(len(media), bool))
  made = cache.make(counting([])._replace(score=score))
  for _ in range(2):
    made.score({}, batch("ab"), MEDIA[:2], KEYS[:2])
  assert calls == [2, 1]


def test_memory_is_bounded_and_the_longest_unused_goes_first():
  seen = []
  made = cache.make(counting(seen), size=3)
  ask = lambda *rows: made.score({}, batch("a" * len(rows)), MEDIA[list(rows)], KEYS[:len(rows)])
  for row in (0, 1, 2, 0, 3):  # 1 goes
    ask(row)
  assert len(seen) == 4
  ask(0), ask(2), ask(3)
  assert len(seen) == 4
  ask(1)
  assert len(seen) == 5


def test_identity_and_parameters_are_part_of_the_name(tmp_path):
  seen = []
  for identity, bias in (("a", 0.0), ("b", 0.0), ("a", 1.0), ("a", 0.0), ("a", 1.0)):
    made = cache.make(counting(seen), folder=str(tmp_path), identity=identity)
    view = {"bias": jnp.float32(bias)}
    same(made.score(view, batch(), MEDIA, KEYS), counting([]).score(view, batch(), MEDIA, KEYS))
  assert seen == [6, 6, 6]
  made.score({"bias": jnp.float32(1.0)}, batch(), MEDIA, KEYS)  # another array of the same numbers
  with pytest.raises(ValueError, match="parameters of the cached reward changed between two calls"):
    made.score({"bias": jnp.float32(2.0)}, batch(), MEDIA, KEYS)


def test_a_file_that_is_broken_anywhere_is_scored_again_and_replaced(tmp_path):
  seen, options = [], {"folder": str(tmp_path), "identity": "test"}
  one = batch("a")
  right = cache.make(counting(seen), **options).score({}, one, MEDIA[:1], KEYS[:1])
  file, = tmp_path.glob("*/*.npz")
  whole = file.read_bytes()
  harmed = [b"", b"PK", whole[:-30], whole[:len(whole) // 2], os.urandom(200), b"\x00" * len(whole)]
  harmed += [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1:] for i in range(0, len(whole), 7)]
  for data in harmed:
    file.write_bytes(data)
    same(cache.make(counting(seen), **options).score({}, one, MEDIA[:1], KEYS[:1]), right)
  assert len(seen) == 1 + len(harmed)
  cache.make(counting(seen), **options).score({}, one, MEDIA[:1], KEYS[:1])
  assert len(seen) == 1 + len(harmed) and len(file.read_bytes()) == len(whole)


def test_a_file_under_the_name_of_another_is_not_taken(tmp_path):
  seen, options = [], {"folder": str(tmp_path), "identity": "test"}
  cache.make(counting(seen), **options).score({}, batch("ab"), MEDIA[:2], KEYS[:2])
  a, b = sorted(tmp_path.glob("*/*.npz"))
  a.write_bytes(b.read_bytes())
  found = cache.make(counting(seen), **options).score({}, batch("ab"), MEDIA[:2], KEYS[:2])
  same(found, counting([]).score({}, batch("ab"), MEDIA[:2], KEYS[:2]))
  assert seen == [2, 1]


def test_numpy_reads_the_files_without_pickle_and_no_object_is_ever_unpickled(tmp_path):
  cache.make(counting([]), folder=str(tmp_path), identity="test").score({}, batch("a"), MEDIA[:1], KEYS[:1])
  file, = tmp_path.glob("*/*.npz")
  with np.load(file, allow_pickle=False) as found:
    assert found["keys"].tolist() == ["total", "part size", "part odd/name"] and found["value_0"].dtype == np.float32
  name, data = "ab" * 32, io.BytesIO()
  np.savez(data, name=np.frombuffer(bytes.fromhex(name), np.uint8), keys=np.array(["total"]),
           value_0=np.array([os.getcwd], object))
  (tmp_path / "x.npz").write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())
  with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
    cache.read(tmp_path / "x.npz", name)


WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from rewards import cache, jpeg
media = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)
batch = {"prompt": list("abcabc"), "meta": [{"n": i // 3} for i in range(6)]}
folder, own = Path(sys.argv[1]), Path(sys.argv[2])
own.touch()
while len(list(own.parent.glob("ready*"))) < 3:
  time.sleep(0.01)
for _ in range(20):
  made = cache.make(jpeg.make(), folder=str(folder), identity="jpeg-95")
  np.save(own.with_suffix(".npy"), made.score({}, batch, media, None).total)
  for file in folder.glob("*/*.npz"):
    file.unlink(missing_ok=True)
made.score({}, batch, media, None)
cache.make(jpeg.make(), folder=str(folder), identity="jpeg-95").score({}, batch, media, None)
"""


def test_several_processes_may_write_and_remove_at_once(tmp_path):
  started = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "kept"), str(tmp_path / f"ready{i}")],
                              cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}) for i in range(3)]
  assert [one.wait(300) for one in started] == [0] * 3
  plain = jpeg.make().score({}, batch(), MEDIA, None).total
  for i in range(3):
    np.testing.assert_array_equal(np.load(tmp_path / f"ready{i}.npy"), plain)
  assert not list((tmp_path / "kept").glob("*/.*"))  # nothing half written is left
  made = cache.make(jpeg.make(), folder=str(tmp_path / "kept"), identity="jpeg-95")
  same(made.score({}, batch(), MEDIA, None), jpeg.make().score({}, batch(), MEDIA, None))


def test_a_cached_part_of_a_mixture():
  seen = []
  made = mix.make({"kept": cache.make(counting(seen)), "jpeg": jpeg.make()}, normalise="batch")
  first, second = (made.score({}, batch(), MEDIA, KEYS) for _ in range(2))
  np.testing.assert_array_equal(first.total, second.total)
  assert seen == [6] and np.mean(second.parts["kept/cached"]) == 1


def test_its_parameters_are_those_of_the_reward_inside():
  inner = {"name": "unified", "model": "DIR"}
  kept = {"name": "cache", "reward": inner}
  assert assemble.described("reward", kept) == {"reward": inner}
  mixed = assemble.described("reward", {"name": "mix", "rewards": {"a": kept, "b": {"name": "jpeg"}}})
  assert mixed["reward/a"] == inner
  made = cache.make(counting([])._replace(init=lambda key: {"net": 1}))
  assert made.init(None) == {"net": 1}


def test_a_config_names_the_reward_inside():
  made = build.build("rewards", {"name": "cache", "reward": {"name": "jpeg", "prefer": "large"}})
  same(made.score({}, batch(), MEDIA, None), jpeg.make("large").score({}, batch(), MEDIA, None))


def frozen():
  return mix.make({"a": jpeg.make()}, normalise="frozen")


@pytest.mark.parametrize("call, message", [
  (lambda: cache.make(jpeg.make()._replace(where="gradient")), "where = 'gradient', but only scores on the host"),
  (lambda: cache.make(jpeg.make()._replace(where="device")), "where = 'device', but only scores on the host"),
  (lambda: cache.make(jpeg.make()._replace(fit=len)), "is one that is trained or calibrated"),
  (lambda: cache.make(frozen()), "is one that is trained or calibrated"),
  (lambda: cache.make(mix.make({"a": jpeg.make()}, normalise="batch")), "compares all samples of a call"),
  (lambda: cache.make(jpeg.make(), size=0), "size = 0 must be at least 1"),
  (lambda: cache.make(jpeg.make(), folder="x"), "identity = None with folder = 'x': it must tell this reward"),
  (lambda: cache.make(mix.make({"a": jpeg.make()}, normalise="group")).score({}, batch(), MEDIA, None),
   "reads batch entry 'sample_id', which the batch does not have or which a cache hides"),
  (lambda: cache.make(jpeg.make()).score({}, {**batch(), "meta": [{"n": {1}}] * 6}, MEDIA, None),
   r"\{1\} of a prompt's meta is neither a number"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_kept_scores_with_other_parts_are_refused(tmp_path):
  options = {"folder": str(tmp_path), "identity": "test"}
  cache.make(counting([]), **options).score({}, batch("a"), MEDIA[:1], KEYS[:1])
  with pytest.raises(ValueError, match="kept scores have .*, and others .*: they are of another reward"):
    cache.make(jpeg.make(), **options).score({}, batch("ab"), MEDIA[:2], KEYS[:2])
