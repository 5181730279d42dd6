"""Streams of batches: order, slices of processes, exact restarts, broken records."""
import json
import time

import numpy as np
import pytest

from align.build import UserError
from align.data import Source, Unreadable, batches, clean, existing, numeric


def toy(size=13, broken=()):
  def record(i):
    if i in broken:
      raise Unreadable(f"broken on purpose {i}")
    media = np.full((2, 2, 1), i % 256, np.uint8)
    return {"prompt": f"prompt {i}", "media": media, "label": np.int32(i * 10), "meta": {"i": i}}
  return Source(size, record, "toy")


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert np.array_equal(a[name], b[name]), name
    assert type(a[name]) is type(b[name])


def test_a_batch_holds_groups_that_belong_together():
  batch = batches(toy(), 4, group=3).next()
  assert batch["prompt_id"].dtype == batch["sample_id"].dtype == np.int32
  assert batch["media"].shape == (12, 2, 2, 1) and batch["media"].dtype == np.uint8
  assert batch["sample_id"].tolist() == [0, 1, 2] * 4
  for row, i in enumerate(batch["prompt_id"]):
    assert batch["prompt"][row] == f"prompt {i}" and batch["meta"][row] == {"i": i}
    assert batch["media"][row, 0, 0, 0] == i and batch["label"][row] == 10 * i
  assert (batch["prompt_id"].reshape(4, 3) == batch["prompt_id"].reshape(4, 3)[:, :1]).all()


def test_every_epoch_holds_every_record_once_in_a_new_order():
  stream = batches(toy(12), 4)
  ids = np.concatenate([stream.next()["prompt_id"] for _ in range(9)]).reshape(3, 12)
  assert (np.sort(ids) == np.arange(12)).all()
  assert (ids[0] != ids[1]).any() and (ids[1] != ids[2]).any()


def test_the_seed_alone_decides_and_unshuffled_is_in_order():
  one, two, other = (batches(toy(), 5, seed=seed).next()["prompt_id"] for seed in (3, 3, 4))
  assert (one == two).all() and (one != other).any()
  assert batches(toy(), 5, shuffle=False).next()["prompt_id"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(count):
  options = {"group": 2, "seed": 1, "drop": 0.3}
  whole = batches(toy(broken=(5,)), 4, limit=1, process=(0, 1), **options)
  parts = [batches(toy(broken=(5,)), 4, limit=1, process=(p, count), **options) for p in range(count)]
  for _ in range(10):
    expected, slices = whole.next(), [part.next() for part in parts]
    for name, value in expected.items():
      joined = [row for piece in slices for row in piece[name]]
      assert np.array_equal(np.asarray(joined), np.asarray(value)), name


def kinds(size=64):
  return toy(size)._replace(kind=lambda i: "long" if i % 3 else "short")


@pytest.mark.parametrize("options", [{}, {"seed": 3, "drop": .4, "group": 2}])
def test_records_of_a_kind_come_together_and_none_is_lost(options):
  plain, apart = (batches(kinds(), 4, alike=alike, **options) for alike in (0, 4))
  pure = np.zeros(2)
  for _ in range(8):  # windows of four batches, through two epochs
    expected, found = ([stream.next() for _ in range(4)] for stream in (plain, apart))
    rows = lambda made: sorted((i, k, p) for b in made for i, k, p in
                               zip(b["prompt_id"].tolist(), b["sample_id"].tolist(), b["prompt"], strict=True))
    assert rows(found) == rows(expected)
    pure += [sum(len({i % 3 > 0 for i in b["prompt_id"].tolist()}) == 1 for b in made) for made in (expected, found)]
  assert pure[1] >= 24 > pure[0]  # a window's kinds meet in one batch at most
  assert any((plain.next()["prompt_id"] != apart.next()["prompt_id"]).any() for _ in range(4))


def test_batches_of_a_kind_are_shuffled_cut_by_processes_and_restored():
  make = lambda process=(0, 1): batches(kinds(), 4, alike=8, seed=1, process=process)
  whole, parts = make(), [make((p, 2)) for p in range(2)]
  ids = [whole.next()["prompt_id"] for _ in range(16)]
  first = [bool(i[0] % 3) for i in ids]
  assert first != sorted(first) and first[:8] != first[8:]
  for expected in ids:
    assert np.concatenate([part.next()["prompt_id"] for part in parts]).tolist() == expected.tolist()
  stream = make()
  for _ in range(5):
    stream.next()
  again = make()
  again.restore(json.loads(json.dumps(stream.state())))
  for expected in ids[5:]:
    assert again.next()["prompt_id"].tolist() == expected.tolist()
  with pytest.raises(UserError, match="alike: 8 then, 0 now"):
    batches(kinds(), 4, seed=1).restore(stream.state())


@pytest.mark.parametrize("threads", [0, 2])
def test_a_restored_stream_goes_on_bit_for_bit(threads):
  make = lambda: batches(toy(31, broken=(7,)), 4, group=2, seed=5, drop=0.5, limit=0.5, threads=threads)
  stream = make()
  for _ in range(11):
    stream.next()
  state = json.loads(json.dumps(stream.state()))
  assert len(json.dumps(state)) < 400
  again = make()
  again.next()
  again.restore(state)
  for _ in range(12):
    same(stream.next(), again.next())
  assert stream.skipped() == again.skipped() and stream.state() == again.state()


def test_a_stream_can_be_wound_back_by_its_own_state():
  stream = batches(toy(), 4)
  start = stream.state()
  first = stream.next()
  stream.restore(start)
  same(first, stream.next())


def test_restoring_onto_other_data_is_refused():
  state = batches(toy(13), 4).state()
  with pytest.raises(UserError, match=r"'toy'.*size: 13 then, 12 now.*put the data"):
    batches(toy(12), 4).restore(state)
  with pytest.raises(UserError, match="batch: 4 then, 2 now"):
    batches(toy(13), 2).restore(state)


def test_dropped_captions_are_a_function_of_seed_and_position():
  rows = lambda drop, seed: [p for s in [batches(toy(), 10, seed=seed, drop=drop)] for _ in range(20)
                             for p in s.next()["prompt"]]
  half = rows(0.5, 0)
  assert half == rows(0.5, 0)
  assert abs(np.mean([p == "" for p in half]) - 0.5) < 0.1
  assert "" not in rows(0.0, 0) and set(rows(1.0, 0)) == {""}
  stream = batches(toy(), 13, shuffle=False, drop=0.5)
  assert stream.next()["prompt"] != stream.next()["prompt"]  # another epoch drops others


def test_the_next_readable_record_takes_the_place_of_a_broken_one():
  broken = (3, 4, 12)
  clean_ids = batches(toy(), 13, shuffle=False).next()["prompt_id"]
  stream = batches(toy(broken=broken), 13, shuffle=False, limit=1)
  ids = stream.next()["prompt_id"]
  assert clean_ids.tolist() == list(range(13))
  assert ids.tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 11, 0]
  assert stream.skipped() == [(i, f"broken on purpose {i}") for i in broken]


def test_five_in_a_thousand_broken_is_listed_and_goes_on():
  stream = batches(toy(1000, broken=(10, 20, 30, 40, 50)), 50)
  for _ in range(40):
    assert not set(stream.next()["prompt_id"].tolist()) & {10, 20, 30, 40, 50}
  assert [i for i, _ in stream.skipped()] == [10, 20, 30, 40, 50]


def test_too_many_broken_records_stop_by_name():
  stream = batches(toy(1000, broken=range(0, 1000, 20)), 10)
  with pytest.raises(UserError, match=r"'toy': \d+ of \d+ records read are broken, at most 1.0%.*purpose 40.*repair"):
    for _ in range(100):
      stream.next()
  assert 200 <= stream.state()["read"] < 260


def test_a_source_without_one_readable_record_stops_at_once():
  with pytest.raises(UserError, match=r"10 of 10 records read are broken"):
    batches(toy(5, broken=range(5)), 2).next()


def test_a_bug_in_a_source_is_not_taken_for_a_broken_record():
  def record(i):
    raise KeyError("bug")
  with pytest.raises(KeyError, match="bug"):
    batches(Source(3, record, "toy"), 2).next()


def test_a_planted_fault_makes_a_record_broken(monkeypatch):
  monkeypatch.setenv("ALIGN_FAULT", "record:2:broken")
  stream = batches(toy(), 13, limit=1)
  assert 2 not in stream.next()["prompt_id"]
  assert stream.skipped() == [(2, "a planted fault")]


@pytest.mark.parametrize("arguments, message", [
  ({"batch": 0}, "batch=0.*at least 1"),
  ({"group": 0}, "group=0"),
  ({"batch": 5, "process": (0, 2)}, "batch=5 cannot be divided over 2 processes.*4 and 6"),
  ({"process": (2, 2)}, r"process=\(2, 2\).*0..1"),
  ({"drop": 1.5}, "drop=1.5.*0.1 is usual"),
  ({"source": Source(0, None, "nothing")}, "'nothing' has no records"),
  ({"alike": 4}, "alike=4: data source 'toy' has no kinds, so it may be 0 only"),
  ({"source": kinds(), "alike": -1}, "alike=-1: data source 'toy' has kinds, so it may be 0 or more batches"),
])
def test_impossible_arguments_are_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    batches(**{"source": toy(), "batch": 4, **arguments})


def test_records_that_do_not_fit_together_are_refused_by_number():
  shapes = Source(2, lambda i: {"prompt": "", "media": np.zeros((2 + i, 2, 1), np.uint8)}, "mixed")
  with pytest.raises(UserError, match=r"'mixed'.*'media' is \(3, 2, 1\) in record 1.*set `size`"):
    batches(shapes, 2, shuffle=False).next()
  entries = Source(2, lambda i: {"prompt": "", **({"label": 1} if i else {})}, "mixed")
  with pytest.raises(UserError, match=r"record 1 and record 0 differ in the entries \['label'\]"):
    batches(entries, 2, shuffle=False).next()
  words = Source(2, lambda i: {"prompt": "", "colour": "red"}, "mixed")
  with pytest.raises(UserError, match=r"'colour' of record 0.*move it into `meta`"):
    batches(words, 2, shuffle=False).next()


def test_reading_ahead_hides_slow_records():
  def record(i):
    time.sleep(0.2)
    return {"prompt": ""}
  stream = batches(Source(50, record, "slow"), 1, threads=2)
  stream.next()
  time.sleep(1.0)
  before = time.monotonic()
  stream.next()
  assert time.monotonic() - before < 0.1


def test_numeric_splits_what_stays_on_the_host():
  arrays, host = numeric(batches(toy(), 4).next())
  assert set(host) == {"prompt", "meta"}
  assert set(arrays) == {"media", "label", "prompt_id", "sample_id"}


def test_prompts_are_cleaned():
  assert clean("  two\tred\r\n balls \x00\x07\u202e\ud800") == "two red balls"
  assert clean("e\u0301") == "\u00e9" and clean("\ufeff") == ""


def test_a_missing_path_is_refused_with_the_nearest_name(tmp_path):
  (tmp_path / "pictures").mkdir()
  with pytest.raises(UserError, match="pictrues/more' does not exist.*holds pictures"):
    existing(tmp_path / "pictrues" / "more", "folder")
  with pytest.raises(UserError, match="is not a file"):
    existing(tmp_path / "pictures", "file")
