"""Records in, batches out: deterministic, split over hosts, resumable to the record.

The order is Grain's (`MapDataset.range(size).seed(seed).shuffle().repeat()`: reshuffled every epoch, any position in
O(1)), so the whole state of a stream is one position. A global batch is cut into contiguous slices, one a process: what
is in global batch k depends on the seed alone, not on how many hosts read it.

A broken record never ends a run by itself: the next record of the source that can be read takes its place (so the order
stays a pure function of the seed), and the broken one is counted and listed. Records of different kinds can be kept
apart, so that what is padded to the longest of a batch is short where it can be (`alike`). Left out: mixing several
sources, packing, reading ahead in worker processes (threads do, decoding releases the interpreter lock).
"""
import difflib
import functools
import unicodedata
from pathlib import Path
from typing import Any, Callable, NamedTuple

import grain
import jax
import numpy as np
from absl import logging

from align.build import UserError
from align.guard import fault

HOST = ("prompt", "meta")  # entries that stay on the host: list[str] and list[dict]
ENDLESS = 1 << 48          # positions; Grain's own "for ever" overflows in batches of 1
ENOUGH = 200               # records read before a share of broken ones means anything


class Unreadable(ValueError):
  """Raised by `Source.record` for a record that is broken; the message is the reason that is listed."""


class Source(NamedTuple):
  """Random access to records.

  record(index) -> dict with "prompt" (str) and optionally "media" (uint8 [H W C], clips [F H W C]), "win" / "lose" (the
  same), "meta" (dict, stays on the host) and any numeric entry such as "label". Raises Unreadable for a broken one. It
  is called from several threads at once.
  """
  size: int         # how many records there are
  record: Callable  # (index) -> dict
  name: str         # what messages call it
  kind: Callable | None = None  # (index) -> str, of records that take about the same room; cheap, nothing is decoded


class Stream(NamedTuple):
  """An endless sequence of batches of one process."""
  next: Callable     # () -> batch
  state: Callable    # () -> dict that json can write: the position and what was skipped
  restore: Callable  # (state) -> None; the batches that follow are bit-equal to those of the uninterrupted stream
  skipped: Callable  # () -> [(index, reason)], one entry a broken record


def batches(source: Source, batch: int, *, group: int = 1, seed: int = 0, shuffle: bool = True, drop: float = 0.0,
            process: tuple[int, int] | None = None, limit: float = 0.01, threads: int = 2, alike: int = 0) -> Stream:
  """Batches of `batch` records over all processes, each record repeated `group` times in a row.

  Args:
    batch: records (prompts) of a global batch; process p of n gets the contiguous slice p, batch / n records.
    group: samples of a record; they get `sample_id` 0 .. group-1.
    drop: share of captions that become "" (classifier-free guidance, Ho & Salimans 2022); which ones is a pure function
      of the seed and the position.
    process: (index, count), by default that of jax.
    limit: the largest share of broken records, checked once min(200, source.size) records were read.
    threads: batches that are read ahead at the same time; 0 reads in the caller's thread.
    alike: batches whose records are put in order of their kind, then cut, and the batches shuffled, so that nearly all
      hold one kind (the more, the nearer); 0: as they come.

  Returns: a Stream whose batches hold, with leading B = batch / n * group: "prompt" list[str], "meta" list[dict],
    "prompt_id" int32 (index of the record in the source), "sample_id" int32, and every numeric entry of the records.

  Raises: UserError for impossible arguments at once, and while reading when too many records are broken or the records
    of a batch do not fit together.
  """
  index, count = process or (jax.process_index(), jax.process_count())
  _check(source, batch, group, drop, index, count, alike)
  local = batch // count
  mine = slice(index * local, (index + 1) * local)
  order = grain.MapDataset.range(source.size).seed(seed)
  order = (order.shuffle() if shuffle else order).repeat(ENDLESS // source.size)
  order = order.map_with_index(lambda position, record: (position, int(record)))
  order = grain.MapDataset.source(Sorted(order, source.kind, batch, alike, seed)) if alike else (
    order.batch(batch, batch_fn=list))
  rows = order.map(lambda places: [_place(source, seed, drop, *place) for place in places[mine]])
  iterator = iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)))
  identity = {"size": source.size, "batch": batch, "seed": seed, "shuffle": shuffle, "alike": alike}
  tally = {"read": 0, "broken": 0, "skipped": {}}

  def following():
    places = next(iterator)
    for record, failures in places:
      tally["read"] += len(failures) + (record is not None)
      tally["broken"] += len(failures)
      tally["skipped"].update(failures)
    _judge(source, tally, limit)
    return _stack([record for record, _ in places], group, source.name)

  def state():
    skipped = [[int(i), reason] for i, reason in sorted(tally["skipped"].items())]
    return {**identity, "position": iterator.get_state(), "read": tally["read"], "broken": tally["broken"],
            "skipped": skipped}

  def restore(saved):
    changed = [f"{k}: {saved.get(k)!r} then, {v!r} now" for k, v in identity.items() if saved.get(k) != v]
    if changed:
      raise UserError(f"data source {source.name!r} is not the one that the checkpoint was reading "
                      f"({'; '.join(changed)}); put the data and its options back, or start in a new workdir")
    iterator.set_state(saved["position"])
    tally.update(read=saved["read"], broken=saved["broken"], skipped={i: reason for i, reason in saved["skipped"]})

  return Stream(following, state, restore, lambda: sorted(tally["skipped"].items()))


class Sorted:
  """The batches of an order of (position, record), of which `window` at a time are sorted by kind: any of them can be
  asked for, and none depends on those before its window."""

  def __init__(self, order: Any, kind: Callable, batch: int, window: int, seed: int):
    self.order, self.kind, self.batch, self.window, self.seed = order, kind, batch, window, seed
    self.ordered = functools.lru_cache(maxsize=4)(self._ordered)

  def __len__(self) -> int:
    return len(self.order) // (self.batch * self.window) * self.window

  def __getitem__(self, number: int) -> list:
    number = int(number)
    return self.ordered(number // self.window)[number % self.window]

  def _ordered(self, number: int) -> list:
    size = self.batch * self.window
    places = sorted((self.order[i] for i in range(number * size, (number + 1) * size)), key=lambda p: self.kind(p[1]))
    turn = np.random.default_rng([self.seed, number, 2]).permutation(self.window)
    return [places[k * self.batch:(k + 1) * self.batch] for k in turn]


def readable(source: Source, limit: float = 0.01) -> list:
  """Every record of a small source that can be read, in order: what held-out prompts are.

  Broken ones are counted and listed in a warning. Raises UserError where more than `limit` of them are."""
  _check(source, 1, 1, 0, 0, 1)
  records, broken = [], {}
  for i in range(source.size):
    record, failures = _place(source, 0, 0.0, 0, i, 1)
    broken.update(failures)
    records += [] if record is None else [record]
  _judge(source, {"read": source.size, "broken": len(broken), "skipped": broken}, limit)
  if broken:
    logging.warning("%s", spell_skipped(source.name, sorted(broken.items())))
  return records


def spell_skipped(name: str, skipped: list) -> str:
  """[(index, reason)] as a sentence; the first few are named."""
  first = "; ".join(f"record {i}: {reason}" for i, reason in skipped[:3])
  return f"data source {name!r}: broken records were skipped, {len(skipped)} in all ({first})"


def numeric(batch: dict) -> tuple[dict, dict]:
  """Splits a batch into (arrays for the device, entries that stay on the host)."""
  host = {name: value for name, value in batch.items() if name in HOST}
  return {name: value for name, value in batch.items() if name not in HOST}, host


def clean(text: str) -> str:
  """A prompt as networks should see it: NFC, white space runs as one space, control and direction characters out."""
  seen = (c for c in text if c.isspace() or not (unicodedata.category(c) in ("Cc", "Cs") or c in _DIRECTIONS))
  return unicodedata.normalize("NFC", " ".join("".join(seen).split()))


def existing(path: str | Path, kind: str) -> Path:
  """The path, if it is there and a `kind` ("file" or "folder"); else a UserError that names the nearest one that is."""
  path = Path(path).expanduser()
  if path.is_file() if kind == "file" else path.is_dir():
    return path
  if path.exists():
    raise UserError(f"data path {str(path)!r} is not a {kind}; a {kind} is needed here: correct the path in the config")
  beside = path.parent
  while not beside.is_dir():
    beside = beside.parent
  names = sorted(p.name for p in beside.iterdir())
  near = difflib.get_close_matches(path.relative_to(beside).parts[0], names, 3, 0.4) or names[:5]
  raise UserError(f"data path {str(path)!r} does not exist; {str(beside)!r} holds {', '.join(near) or 'nothing'}: "
                  "correct the path in the config")


_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def _check(source, batch, group, drop, index, count, alike=0):
  if source.size < 1:
    raise UserError(f"data source {source.name!r} has no records; at least 1 is needed: check its path and split")
  if batch < 1 or group < 1:
    raise UserError(f"batch={batch}, group={group}: both must be at least 1; set them in the config")
  if not 0 <= index < count:
    raise UserError(f"process={(index, count)}: the index must be in 0..{count - 1}; pass (index, count)")
  if batch % count:
    raise UserError(f"batch={batch} cannot be divided over {count} processes; the nearest sizes that can are "
                    f"{max(batch // count, 1) * count} and {(batch // count + 1) * count}: set one of them")
  if alike < 0 or alike and source.kind is None:
    allowed = "kinds, so it may be 0 or more batches" if source.kind else "no kinds, so it may be 0 only"
    raise UserError(f"alike={alike}: data source {source.name!r} has {allowed}; correct it")
  if not 0 <= drop <= 1:
    raise UserError(f"drop={drop}: a share of captions is in [0, 1]; 0.1 is usual for classifier-free guidance")


def _place(source, seed, drop, position, index, most=ENOUGH) -> tuple[dict | None, list]:
  """The record for one position of the stream, and the broken ones that were passed over on the way to it."""
  failures = []
  for offset in range(min(source.size, most)):
    i = (index + offset) % source.size
    try:
      if fault("record", i):
        raise Unreadable("a planted fault")
      record = dict(source.record(i))
    except Unreadable as error:
      failures.append((i, str(error)))
      continue
    if drop and np.random.default_rng((seed, position)).random() < drop:
      record["prompt"] = ""
    return {**record, "prompt_id": np.int32(i)}, failures
  return None, failures


def _judge(source, tally, limit):
  """Stops the run when the share of broken records says that the data, not a file, is bad."""
  read, broken = tally["read"], tally["broken"]
  if broken == read or (read >= min(ENOUGH, source.size) and broken > limit * read):
    first = "; ".join(f"record {i}: {reason}" for i, reason in sorted(tally["skipped"].items())[:3])
    raise UserError(f"data source {source.name!r}: {broken} of {read} records read are broken, at most {limit:.1%} may "
                    f"be ({first}); repair or remove them, or raise `limit`")


def _stack(records, group, name) -> dict:
  if any(record is None for record in records):
    raise UserError(f"data source {name!r}: {ENOUGH} records in a row are broken; repair the data")
  names = records[0].keys()
  for record in records:
    if record.keys() != names:
      odd = sorted(record.keys() ^ names)
      raise UserError(f"data source {name!r}: record {record['prompt_id']} and record {records[0]['prompt_id']} differ "
                      f"in the entries {odd}; all records of a source must have the same ones")
  out = {"prompt": [r["prompt"] for r in records for _ in range(group)],
         "meta": [r.get("meta", {}) for r in records for _ in range(group)]}
  for key in names - set(HOST):
    out[key] = np.repeat(_column(records, key, name), group, axis=0)
  out["sample_id"] = np.tile(np.arange(group, dtype=np.int32), len(records))
  return out


def _column(records, key, name) -> Any:
  values = [np.asarray(record[key]) for record in records]
  for record, value in zip(records, values, strict=True):
    if value.dtype.kind not in "biuf":
      raise UserError(f"data source {name!r}: entry {key!r} of record {record['prompt_id']} is {value.dtype}; only "
                      "numbers can be batched: move it into `meta`")
    if value.shape != values[0].shape:
      raise UserError(f"data source {name!r}: entry {key!r} is {value.shape} in record {record['prompt_id']} and "
                      f"{values[0].shape} in record {records[0]['prompt_id']}; one batch needs one shape: set `size`")
  return np.stack(values)
