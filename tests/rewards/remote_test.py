"""A reward over the wire: the same numbers, whatever goes wrong named, masked or raised, and within its time."""
import asyncio
import contextlib
import http.server
import io
import json
import pickle
import random
import sys
import threading
import time
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

from rewards import remote, wire

MEDIA = np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype(np.float32)
BATCH = {"prompt": [f"a {i}" for i in range(8)], "meta": [{"n": i} for i in range(8)], "label": np.arange(8),
         "prompt_id": np.arange(8, dtype=np.int32), "tokens": np.zeros((8, 3), np.int32)}
QUICK = {"tries": 2, "deadline": 0.5, "connect": 0.5, "backoff": 0.01}
LONG = 3.0  # seconds within which every kind of trouble must be over


def scores(asked: wire.Asked) -> wire.Answer:
  """What an honest server answers: brightness, and the number of the sample as a part."""
  media = asked.media.astype(np.float32) / (255 if asked.media.dtype == np.uint8 else 1)
  total = media.reshape(len(media), -1).mean(1)
  return wire.Answer(asked.ids, total, np.isfinite(total), {"n": [m["n"] for m in asked.meta], "twice": 2 * total})


def send(handler, body: bytes, status: int = 200, kind: str = wire.TYPE, **headers):
  handler.send_response(status)
  for name, value in {"content-type": kind, "content-length": len(body), **headers}.items():
    handler.send_header(name.replace("_", "-"), str(value))
  handler.end_headers()
  handler.wfile.write(body)


def honest(handler, asked, number):
  send(handler, wire.answer(scores(asked)))


@contextlib.contextmanager
def server(behave):
  """(its url, [(headers, question)] that came); behave: (handler, question, number of the question) answers."""
  seen, lock = [], threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      asked = wire.asked(self.rfile.read(int(self.headers["content-length"])))
      with lock:
        seen.append((dict(self.headers), asked))
        number = len(seen)
      with contextlib.suppress(OSError):  # who asked has gone
        behave(self, asked, number)

    def log_message(self, *args):
      pass

  running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  running.daemon_threads, running.block_on_close = True, False
  thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
  thread.start()
  try:
    yield f"http://127.0.0.1:{running.server_address[1]}", seen
  finally:
    running.shutdown()
    running.server_close()
    thread.join()


def ask(url, media=MEDIA, batch=BATCH, keys=None, **options):
  return remote.make(url, **{**QUICK, **options}).score({}, batch, media, keys)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [3, 8, 100])
def test_numbers_come_back_bit_for_bit_and_everything_arrives(at_once):
  keys = jax.random.split(jax.random.key(3), 8)
  with server(honest) as (url, seen):
    found = ask(url + "/", keys=keys, at_once=at_once, parallel=1, parts=("n", "twice"))
  np.testing.assert_array_equal(found.total, MEDIA.reshape(8, -1).mean(1))
  assert found.total.dtype == np.float32 and found.valid.all() and found.valid.dtype == bool
  assert list(found.parts) == ["n", "twice"] and found.parts["n"].tolist() == list(range(8))
  asked = [one for _, one in seen]
  assert max(len(one.ids) for one in asked) <= at_once and sum(len(one.ids) for one in asked) == 8
  assert sum([one.prompt for one in asked], []) == BATCH["prompt"]
  assert sum([one.meta for one in asked], []) == BATCH["meta"]
  assert set(asked[0].numbers) == {"label", "prompt_id"}  # one number a sample
  np.testing.assert_array_equal(np.concatenate([one.numbers["label"] for one in asked]), BATCH["label"])
  np.testing.assert_array_equal(np.concatenate([one.keys for one in asked]), jax.random.key_data(keys))
  np.testing.assert_array_equal(np.concatenate([one.media for one in asked]), MEDIA)


def test_bytes_are_a_quarter_and_rounded():
  with server(honest) as (url, seen):
    found = ask(url, pixels="uint8")
  assert seen[0][1].media.dtype == np.uint8
  np.testing.assert_array_equal(found.total, (np.round(MEDIA * 255) / np.float32(255)).reshape(8, -1).mean(1))


def test_clips_and_odd_texts():
  clips, prompts = np.zeros((2, 3, 4, 4, 3), np.float32), ["\ud800 \x00 é", "x" * 10000]
  with server(honest) as (url, seen):
    assert ask(url, clips, {"prompt": prompts, "meta": [{"n": 1}] * 2}).valid.all()
  assert seen[0][1].media.shape == clips.shape and seen[0][1].prompt == prompts


def test_media_that_are_not_finite_are_masked():
  media = MEDIA.copy()
  media[2, 0, 0], media[5] = np.nan, np.inf
  with server(honest) as (url, _):
    for pixels in ("float32", "uint8"):
      found = ask(url, media, pixels=pixels)
      assert np.flatnonzero(~found.valid).tolist() == [2, 5] and (found.total[[2, 5]] == 0).all()


def test_it_runs_where_a_loop_runs_already():
  async def cell(url):
    return ask(url)
  with server(honest) as (url, _):
    assert asyncio.run(cell(url)).valid.all()


def test_only_so_many_questions_at_the_same_time():
  inside, most, lock = [0], [0], threading.Lock()

  def behave(handler, asked, number):
    with lock:
      inside[0] += 1
      most[0] = max(most[0], inside[0])
    time.sleep(0.05)
    with lock:
      inside[0] -= 1
    honest(handler, asked, number)
  with server(behave) as (url, seen):
    assert ask(url, at_once=1, parallel=3, deadline=5.0).valid.all()
  assert len(seen) == 8 and most[0] == 3


# --- trouble ---------------------------------------------------------------------------------------------------------


def changed(**changes):
  """Answers with fields of the answer changed: {field: function of its value}."""
  def behave(handler, asked, number):
    found = scores(asked)
    send(handler, wire.answer(found._replace(**{k: f(getattr(found, k)) for k, f in changes.items()})))
  return behave


def with_rows(rows):
  """Answers about these rows only."""
  def behave(handler, asked, number):
    found = scores(asked)
    take = lambda values: np.asarray(values)[rows]
    send(handler, wire.answer(wire.Answer(*map(take, found[:3]), {k: take(v) for k, v in found.parts.items()})))
  return behave


def hang(handler, asked, number):
  time.sleep(0.8)


def drip(handler, asked, number):
  body = wire.answer(scores(asked))
  handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-align-reward\r\ncontent-length: 99999\r\n\r\n")
  for i in range(40):
    handler.wfile.write(body[i:i + 1])
    time.sleep(0.02)


def drip_headers(handler, asked, number):
  for byte in b"HTTP/1.1 200 OK\r\nx-slow: 0123456789012345":
    handler.wfile.write(bytes([byte]))
    time.sleep(0.02)


def half(handler, asked, number):
  body = wire.answer(scores(asked))
  handler.send_response(200)
  handler.send_header("content-type", wire.TYPE)
  handler.send_header("content-length", str(len(body)))
  handler.end_headers()
  handler.wfile.write(body[:len(body) // 2])


def endless(handler, asked, number):
  handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-align-reward\r\n\r\n")
  for _ in range(1000):  # until the one who asked has gone
    handler.wfile.write(b"0" * 65536)


def pickled(handler, asked, number):
  npz = io.BytesIO()
  np.savez(npz, ids=asked.ids, total=np.array([print] * len(asked.ids), object), valid=np.ones(len(asked.ids), bool))
  head = json.dumps({"version": 1, "parts": []}).encode()
  send(handler, len(head).to_bytes(4, "big") + head + npz.getvalue())


def says(body, **options):
  return lambda handler, asked, number: send(handler, body, **options)


ALL, NONE = list(range(8)), []
TROUBLE = {  # name: (what the server does, samples with a score, what the warning says, questions that it takes)
  "hangs": (hang, NONE, "8 x no answer within deadline = 0.5 s", 2),
  "drips": (drip, NONE, "no answer within deadline", 2),
  "drips headers": (drip_headers, NONE, "no answer within deadline", 2),
  "says nothing": (lambda *given: None, NONE, "RemoteProtocolError", 2),
  "status 500": (says(b"", status=500), NONE, "8 x status 500", 2),
  "status 503": (says(b"", status=503, retry_after=0), NONE, "8 x status 503", 2),
  "half an answer": (half, NONE, "RemoteProtocolError", 2),
  "an endless answer": (endless, NONE, "an answer of more than 73728 bytes", 2),
  "garbage": (says(b"\xff" * 100), NONE, "an answer that cannot be read: body: 100 bytes do not hold a header", 2),
  "an empty answer": (says(b""), NONE, "cannot be read", 2),
  "pickles": (pickled, NONE, "array 'total.npy' is of type object", 2),
  "a web page": (says(b"<html>", kind="text/html"), NONE, "content type 'text/html'", 2),
  "compressed": (says(b"abc", content_encoding="gzip"), NONE, "content type", 2),
  "too few totals": (changed(total=lambda v: v[:-1]), NONE, "array 'total' is float32 [7]", 2),
  "too many totals": (changed(total=lambda v: np.append(v, 1)), NONE, "array 'total' is float32 [9]", 2),
  "other parts": (changed(parts=lambda v: {"n": v["n"][:-1]}), NONE, "array 'parts' is float32 [1, 7]", 2),
  "unknown ids": (changed(ids=lambda v: v + 1), NONE, "names samples not asked about", 2),
  "no ids of ours": (changed(ids=lambda v: np.arange(8)), NONE, "names samples not asked about", 2),
  "an id twice": (with_rows([0, 1, 2, 3, 4, 5, 6, 6]), NONE, "names a sample twice", 2),
  "ids missing": (with_rows([5, 0, 3]), [0, 3, 5], "5 x an answer that leaves samples out", 2),
  "reordered": (with_rows([7, 5, 3, 1, 6, 4, 2, 0]), ALL, None, 1),
  "NaN": (changed(total=lambda v: np.where(np.arange(8) == 2, np.nan, v)), [0, 1, 3, 4, 5, 6, 7], "1 x no valid", 1),
  "infinity": (changed(total=lambda v: np.where(v == v[0], -np.inf, v)), ALL[1:], "1 of 8 samples have no score", 1),
  "not valid": (changed(valid=lambda v: np.arange(8) > 5), [6, 7], "6 x no valid score", 1),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_masked_named_and_over_in_time(name, caplog):
  behave, good, said, questions = TROUBLE[name]
  with server(behave) as (url, seen):
    began = time.monotonic()
    found = ask(url, parts=("n",), deadline=0.5 if said and "deadline" in said else 10.0)
    assert time.monotonic() - began < LONG
  assert len(seen) == questions
  assert np.flatnonzero(found.valid).tolist() == good
  expected = np.where(np.isin(np.arange(8), good), MEDIA.reshape(8, -1).mean(1), 0)
  np.testing.assert_array_equal(found.total, expected.astype(np.float32))
  assert list(found.parts) == ["n"] and found.parts["n"][good].tolist() == good
  assert said in caplog.text if said else not caplog.text


def test_nobody_listens(caplog):
  with server(honest) as (url, _):
    pass
  began = time.monotonic()
  assert not ask(url).valid.any() and time.monotonic() - began < LONG
  assert "8 x ConnectError" in caplog.text


@pytest.mark.parametrize("first", ["hangs", "half an answer", "status 500", "garbage", "an id twice", "ids missing"])
def test_what_passes_is_tried_again(first):
  with server(lambda *given: (TROUBLE[first][0] if given[2] < 3 else honest)(*given)) as (url, seen):
    assert ask(url, tries=3).valid.all() and len(seen) == 3
  assert len({tuple(asked.ids) for _, asked in seen}) == 3  # an answer that is late is none to the next question


def test_the_server_says_how_long_to_wait():
  busy = says(b"", status=429, retry_after=1)
  with server(lambda *given: (busy if given[2] == 1 else honest)(*given)) as (url, seen):
    began = time.monotonic()
    assert ask(url).valid.all() and 1 <= time.monotonic() - began < 1 + LONG


def test_one_bad_question_costs_its_own_samples():
  def behave(handler, asked, number):
    (hang if asked.meta[0]["n"] == 2 else honest)(handler, asked, number)
  with server(behave) as (url, _):
    found = ask(url, at_once=2)
  assert np.flatnonzero(~found.valid).tolist() == [2, 3]


def test_a_call_ends_in_its_time_and_keeps_what_it_has(caplog):
  def behave(handler, asked, number):
    (hang if asked.meta[0]["n"] >= 4 else honest)(handler, asked, number)
  with server(behave) as (url, _):
    began = time.monotonic()
    found = ask(url, at_once=1, tries=100, total=1.5)
    assert time.monotonic() - began < 1.5 + LONG
  assert np.flatnonzero(found.valid).tolist() == [0, 1, 2, 3]
  assert "4 x no good answer within total = 1.5 s" in caplog.text


@pytest.mark.parametrize("status", [302, 400, 401, 404, 413])
def test_a_refusal_is_raised_at_once(status):
  refuse = says(b'{"error": "body: \x1b[31m is wrong"}', status=status, kind="application/json", location="/else")
  with server(refuse) as (url, seen):
    with pytest.raises(ValueError, match=rf"status {status}, .*body: \\x1b\[31m is wrong.*only 200 is a score"):
      ask(url)
  assert len(seen) == 1


def test_a_part_that_the_server_does_not_have():
  with server(honest) as (url, _):
    with pytest.raises(ValueError, match=r"parts = \['m'\], but 'm' is none of those .*'n', 'twice'"):
      ask(url, parts=("m",))


def test_the_token_comes_from_the_environment(monkeypatch):
  monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
  with server(honest) as (url, seen):
    ask(url, token="JUDGE_TOKEN")
    ask(url)
  assert [headers.get("authorization") for headers, _ in seen] == ["Bearer s3cret", None]
  for bad in ("", "a b", "a\nb", "é"):
    monkeypatch.setenv("JUDGE_TOKEN", bad)
    with pytest.raises(ValueError, match="token = 'JUDGE_TOKEN' must be the name of an environment variable"):
      remote.make("http://x", token="JUDGE_TOKEN")


@pytest.mark.parametrize("options, message", [
  ({"url": "judges:8000"}, "url = 'judges:8000' must be http"),
  ({"url": "http://me:secret@judges"}, "no password"),
  ({"url": "http://judges/score?x=1"}, "must be http"),
  ({"pixels": "float16"}, "pixels = 'float16' is not one of float32, uint8"),
  ({"at_once": 0}, "at_once = 0 must be at least 1"), ({"tries": 0}, "tries = 0"), ({"parallel": 0}, "parallel = 0"),
  ({"deadline": 0.0}, "deadline = 0.0 must be above 0"), ({"total": float("inf")}, "total = inf"),
])
def test_options_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    remote.make(**{"url": "http://judges:8000", **options})


def test_without_the_extra_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "httpx", None)
  with pytest.raises(ValueError, match=r'reward remote needs httpx .*pip install "align-diffusion\[serve\]"'):
    remote.make("http://judges:8000")


@pytest.mark.parametrize("media, batch, message", [
  (np.zeros((8, 5), np.int32), BATCH, "media have shape"),
  (MEDIA, {**BATCH, "prompt": ["a"]}, "1 prompts for 8 samples"),
  (MEDIA, {**BATCH, "meta": [{"a": np.ones(2)}] * 8}, "data that JSON can hold"),
])
def test_what_cannot_be_asked(media, batch, message):
  with pytest.raises(ValueError, match=message):
    ask("http://127.0.0.1:9", media, batch)


# --- the bytes -------------------------------------------------------------------------------------------------------


QUESTION = wire.Asked(np.arange(2), ["a", "b"], [{}, {"x": 1}], MEDIA[:2], np.zeros((2, 2), np.uint32),
                      {"label": np.arange(2)})


def body(header=None, **arrays):
  """A question with some of its arrays replaced, or without those that are None."""
  found = {"ids": QUESTION.ids, "media": QUESTION.media, **arrays}
  header = {"version": 1, "prompt": ["a", "b"], "meta": [{}, {}], **(header or {})}
  return wire.pack(header, {k: v for k, v in found.items() if v is not None})


def zipped(entries, how=zipfile.ZIP_STORED):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", how) as packed:
    for name, data in entries.items():
      packed.writestr(name, data)
  head = json.dumps({"version": 1, "prompt": [], "meta": []}).encode()
  return len(head).to_bytes(4, "big") + head + out.getvalue()


def claims(shape, descr="'<f4'", order=False):
  """An npy file whose header claims a shape that its data do not have."""
  text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


def test_numpy_reads_and_writes_the_arrays():
  whole = wire.ask(QUESTION)
  arrays = np.load(io.BytesIO(whole[4 + int.from_bytes(whole[:4], "big"):]))
  assert set(arrays) == {"ids", "media", "keys", "batch.label"}
  np.testing.assert_array_equal(arrays["media"], QUESTION.media)
  out = io.BytesIO()
  np.savez(out, **{name: arrays[name] for name in arrays})
  again = wire.asked(whole[:4 + int.from_bytes(whole[:4], "big")] + out.getvalue())
  np.testing.assert_array_equal(again.media, QUESTION.media)
  assert again.prompt == QUESTION.prompt and again.meta == QUESTION.meta


@pytest.mark.parametrize("data, message", [
  (b"", "0 bytes do not hold a header"),
  (b"\xff\xff\xff\xff{}", "do not hold a header of the length that the first 4 say, 4294967295"),
  (b"\0\0\0\2{]", "its header is not JSON"),
  (b"\0\0\0\2\xff\xff", "its header is not JSON"),
  (b"\0\x0f\0\0" + b"[" * 0xf0000, "its header is not JSON"),
  (b"\0\0\0\2[]", "its header is of version 'list'"),
  (body({"version": 2}), "its header is of version 2, only 1 is known"),
  (wire.ask(QUESTION)[:-30], "do not end as such a file does"),
  (zipped({f"{i}.npy": b"" for i in range(2000)}), "do not end as such a file does"),
  (zipped({"ids.npy": bytes(10 ** 6)}, zipfile.ZIP_DEFLATED), "are compressed"),
  (zipped({"ids.npy": b"hello"}), "array 'ids.npy' cannot be read"),
  (zipped({"ids.npy": claims("(1099511627776,)")}), r"of shape \(1099511627776,\) and type float32 has 64 bytes"),
  (zipped({"ids.npy": claims("(-4, -4)")}), "has 64 bytes"),
  (zipped({"ids.npy": claims("(16,)", "'|O'")}), "is of type object"),
  (zipped({"ids.npy": claims("(16,)", "[('a', '<f4')]")}), "is of type"),
  (zipped({"ids.npy": claims("(4, 4)", order=True)}), "in Fortran order"),
  (zipped({"ids.npy": claims("(16,)", "'>f4'")}), "byte order"),
  (zipped({"ids.npy": claims("(16" + ", 1" * 80 + ")")}), "which cannot be"),
  (zipped({"ids.npy": pickle.dumps(print)}), "cannot be read"),
  (body(ids=None), "array 'ids' is missing; it must be int64"),
  (body(ids=np.arange(2.0)), r"array 'ids' is float64 \[2\]"),
  (body(ids=np.zeros(2, np.int64)), "2 ids, some of them twice"),
  (body(ids=np.zeros(0, np.int64)), "0 ids; a question is about 1 sample or more"),
  (body(media=MEDIA[:3]), "array 'media' is float32"),
  (body(media=MEDIA[:2].astype(np.float16)), "it must be uint8 or float32"),
  (body(media=np.zeros((2, 0, 4, 1), np.float32)), "has no pixels"),
  (body(keys=np.zeros((2, 3), np.uint32)), "array 'keys'"),
  (body(extra=np.zeros(2)), "array 'extra' is none of ids, media, keys and batch.NAME"),
  (body(**{"batch.x": np.zeros(3)}), r"array 'batch.x' is float64 \[3\]"),
  (body({"prompt": ["a"]}), "'prompt' of the header is 1 entries; it must be a list of 2"),
  (body({"prompt": "ab"}), "'prompt' of the header is str"),
  (body({"meta": [1, 2]}), "of type dict"),
])
def test_bodies_that_are_no_question(data, message):
  tracemalloc.start()
  with pytest.raises(ValueError, match=message):
    wire.asked(data)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3 * len(data) + 2 ** 20  # whatever it claims to hold


def test_damaged_bodies_are_value_errors():
  whole, draw = wire.ask(QUESTION), random.Random(0)
  for _ in range(3000):
    damaged = bytearray(whole)
    for _ in range(draw.choice((1, 2, 20))):
      damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    with contextlib.suppress(ValueError):
      wire.asked(bytes(damaged[:draw.choice((len(damaged), draw.randrange(len(damaged))))]))
