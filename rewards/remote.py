"""A reward that a server computes: `python -m align.serve` on another machine, or anything that speaks rewards/wire.py.

  reward = {"name": "remote", "url": "http://judges:8000"}

The samples of a call go in questions of at most `at_once`, a few at the same time; with several processes each asks
about its own. What becomes of trouble:

  try again, then mask   no connection, no answer in time, half an answer, one that cannot be read, that leaves samples
                         out or names others than were asked about; status 429 or 5xx (Retry-After is heeded)
  mask                   samples that an answer marks as not valid or scores as NaN or infinity, and those whose media
                         are not finite
  ValueError             any other status: the server says that the question, the token or the address is wrong

Masked samples are counted as failed by the training run, which stops where they are too many. A call takes `total`
seconds at most. The names of parts are options, so that every process has the same ones, whatever it was answered.
Rewards that compare the samples of a prompt need `at_once` to be a multiple of them. Left out: proxies and redirects;
entries of a batch that are no single number a sample; scores of tokens. Without https the token and the media can be
read on the way.
"""
import asyncio
import collections
import concurrent.futures
import os
import random
import re
import secrets
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from rewards import wire
from rewards.core import CHUNKS, Reward, Scores

PIXELS = ("float32", "uint8")
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that may pass
LONGEST = 30.0                          # seconds between two tries
SAID = 500                              # characters of an error that are shown
JITTER = random.SystemRandom()          # so that several processes do not come back together; no numbers depend on it


class Service(NamedTuple):
  """Where and how to ask; seconds where not said otherwise."""
  url: str
  headers: dict
  parallel: int    # questions at the same time
  tries: int
  connect: float
  deadline: float  # of one try
  total: float     # of a call
  backoff: float
  parts: tuple


class Found(NamedTuple):
  """What is known about the samples of one question, in their order."""
  total: Any       # [n] float32, 0 where not valid
  valid: Any       # [n] bool
  parts: Any       # [P n] float32
  answered: Any    # [n] bool
  trouble: str     # why samples have no answer, or ""


class Failed(Exception):
  """No good answer this time, for a reason that may pass. `wait`: seconds that the server asks for. `found`: what was
  good in it, or None."""

  def __init__(self, why: str, wait: float = 0.0, found: Found | None = None):
    super().__init__(why)
    self.wait, self.found = wait, found


def client() -> Any:
  try:
    import httpx
  except ImportError as error:
    raise ValueError(f"reward remote needs httpx ({error}), which is installed with an extra: "
                     'pip install "align-diffusion[serve]"') from error
  return httpx


def make(url: str = "http://127.0.0.1:8000", pixels: str = "float32", at_once: int = 64, parallel: int = 4,
         tries: int = 8, connect: float = 5.0, deadline: float = 60.0, total: float = 600.0, backoff: float = 0.5,
         parts: tuple = (), token: str = None) -> Reward:
  """Args:
    url: of the server, without /score. pixels: how media are sent; "float32" gives the numbers that the reward gives
      here, "uint8" takes a quarter of the bytes.
    at_once: samples of a question. parallel: questions at the same time.
    tries: of a question. connect, deadline: seconds to connect and for one try in all. total: seconds of a call in all.
    backoff: seconds before the second try, doubled each time, up to 30; up to half of them is cut off by chance.
    parts: names of the server's parts that are kept, beside the total. token: the name of the environment variable that
      holds the server's token, where it wants one."""
  check(url, pixels, {"at_once": at_once, "parallel": parallel, "tries": tries},
        {"connect": connect, "deadline": deadline, "total": total, "backoff": backoff})
  client()
  headers = {"content-type": wire.TYPE, "accept-encoding": "identity", **authorization(token)}
  service = Service(url.rstrip("/") + "/score", headers, parallel, tries, connect, deadline, total, backoff,
                    tuple(parts))

  def score(view, batch, media, keys):
    question, finite = asked(batch, np.asarray(media), keys, pixels)
    count = len(media)
    answers = finished(collect(service, [cut(question, slice(i, i + at_once)) for i in range(0, count, at_once)]))
    told(url, answers, count)
    total, valid, rows = (np.concatenate([found[i] for found in answers], -1) for i in range(3))
    valid &= finite
    return Scores(np.where(valid, total, 0), dict(zip(service.parts, rows, strict=True)), valid)

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None, chunks=CHUNKS)


def check(url: str, pixels: str, counts: dict, seconds: dict) -> None:
  if not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?", url):
    raise ValueError(f"url = {url!r} must be http:// or https://, a host, maybe a port and a path, and no password, "
                     "such as http://127.0.0.1:8000; correct it")
  if pixels not in PIXELS:
    raise ValueError(f"pixels = {pixels!r} is not one of {', '.join(PIXELS)}; choose one of them")
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f"{name} = {value} must be at least 1; raise it")
  for name, value in seconds.items():
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} = {value} must be above 0, in seconds; change it")


def authorization(token: str | None) -> dict:
  """The header with the token, which stands in the environment and in no config."""
  if token is None:
    return {}
  secret = os.environ.get(token, "")
  if not secret.isascii() or not secret.isprintable() or not secret or " " in secret:
    raise ValueError(f"token = {token!r} must be the name of an environment variable that holds the server's token, "
                     "printable and without spaces; it holds none: set it where the run is started")
  return {"authorization": f"Bearer {secret}"}


# --- what is asked ---------------------------------------------------------------------------------------------------


def asked(batch: dict, media: np.ndarray, keys: Any, pixels: str) -> tuple[wire.Asked, np.ndarray]:
  """(the whole call as one question, [B] whether a sample's media are finite)."""
  count = len(media)
  if media.ndim not in (4, 5):
    raise ValueError(f"reward remote: media have shape {media.shape}, but pictures are [B H W C] and clips "
                     "[B F H W C]; choose a policy that makes such media")
  prompts = [str(prompt) for prompt in batch["prompt"]]
  if len(prompts) != count:
    raise ValueError(f"reward remote: batch['prompt'] has {len(prompts)} prompts for {count} samples; one each is "
                     "needed")
  finite = np.isfinite(media).reshape(count, -1).all(1)
  if pixels == "uint8":
    media = np.round(np.clip(np.nan_to_num(media), 0, 1) * 255)
  numbers = {name: np.asarray(values) for name, values in batch.items() if name not in ("prompt", "meta")
             and getattr(values, "shape", None) == (count,) and np.dtype(values.dtype).kind in wire.KINDS}
  data = None if keys is None else np.asarray(jax.random.key_data(keys))
  meta = list(batch["meta"]) if "meta" in batch else [{}] * count
  return wire.Asked(np.arange(count), prompts, meta, media.astype(pixels), data, numbers), finite


def cut(question: wire.Asked, rows: slice) -> wire.Asked:
  """The question about some of its samples."""
  keys, numbers = question.keys, {name: values[rows] for name, values in question.numbers.items()}
  return wire.Asked(question.ids[rows], question.prompt[rows], question.meta[rows], question.media[rows],
                    None if keys is None else keys[rows], numbers)


def told(url: str, answers: list, count: int) -> None:
  """One warning a call that lists what went wrong, and for how many samples."""
  why = collections.Counter()
  for found in answers:
    why[found.trouble] += int((~found.answered).sum())
    why["no valid score"] += int((found.answered & ~found.valid).sum())
  why = {name: n for name, n in why.items() if n}
  if why:
    logging.warning("remote reward %s: %d of %d samples have no score: %s", url, sum(why.values()), count,
                    "; ".join(f"{n} x {name}" for name, n in why.items()))


# --- asking ----------------------------------------------------------------------------------------------------------


def finished(work: Any) -> Any:
  """What a coroutine returns; where a loop runs already, as in a notebook, it gets a thread of its own."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return asyncio.run(work)
  with concurrent.futures.ThreadPoolExecutor(1) as own:
    return own.submit(asyncio.run, work).result()


async def collect(service: Service, questions: list) -> list:
  """Found of each question, after at most service.total seconds. ValueError where the server refuses one."""
  httpx = client()
  limit = asyncio.Semaphore(service.parallel)
  timeout = httpx.Timeout(service.deadline, connect=service.connect)
  async with httpx.AsyncClient(timeout=timeout, trust_env=False, headers=service.headers) as connection:
    tasks = [asyncio.create_task(persist(service, connection, limit, question)) for question in questions]
    await asyncio.wait(tasks, timeout=service.total, return_when=asyncio.FIRST_EXCEPTION)
    late = [task.cancel() for task in tasks]  # False for one that is done
    await asyncio.gather(*tasks, return_exceptions=True)
  for task in tasks:
    if not task.cancelled() and task.exception():
      raise task.exception()
  nothing = f"no good answer within total = {service.total:g} s"
  return [blank(service, len(question.ids), nothing) if is_late and task.cancelled() else task.result()
          for task, question, is_late in zip(tasks, questions, late, strict=True)]


def blank(service: Service, n: int, why: str) -> Found:
  """Nothing known about n samples."""
  return Found(np.zeros(n, np.float32), np.zeros(n, bool), np.zeros((len(service.parts), n), np.float32),
               np.zeros(n, bool), why)


async def persist(service: Service, connection: Any, limit: asyncio.Semaphore, question: wire.Asked) -> Found:
  """Asks until there is an answer about every sample, or no try is left; then the last that was good in part."""
  found, pause = blank(service, len(question.ids), ""), service.backoff
  for attempt in range(service.tries):
    if attempt:
      await asyncio.sleep(pause)
    try:
      async with limit:
        return await once(service, connection, question)
    except Failed as failed:
      found = (failed.found or found)._replace(trouble=str(failed))
      pause = min(LONGEST, max(failed.wait, service.backoff * 2 ** attempt * JITTER.uniform(0.5, 1.0)))
  return found


async def once(service: Service, connection: Any, question: wire.Asked) -> Found:
  """One try. Raises Failed for what may pass, ValueError for what will not."""
  httpx = client()
  ids = np.arange(len(question.ids)) + secrets.randbits(48)  # so that the answer to another question is none to this
  most = (1 << 16) + len(ids) * 1024                         # bytes of an answer
  try:
    async with asyncio.timeout(service.deadline):
      async with connection.stream("POST", service.url, content=wire.ask(question._replace(ids=ids))) as reply:
        body = bytearray()
        async for piece in reply.aiter_raw():
          body += piece
          if len(body) > most:
            raise Failed(f"an answer of more than {most} bytes")
  except TimeoutError as error:
    raise Failed(f"no answer within deadline = {service.deadline:g} s") from error
  except httpx.RequestError as error:
    raise Failed(f"{type(error).__name__}: {error}") from error
  checked(service, reply, bytes(body))
  try:
    answer = wire.answered(bytes(body))
  except ValueError as error:
    raise Failed(f"an answer that cannot be read: {error}") from error
  return matched(service, ids, answer)


def checked(service: Service, reply: Any, body: bytes) -> None:
  """Refuses an answer that is none, by its status and type."""
  status, kind = reply.status_code, reply.headers.get("content-type", "none")
  if status in AGAIN:
    wait = reply.headers.get("retry-after", "")
    raise Failed(f"status {status}", float(wait) if wait.isdecimal() else 0.0)
  if status != 200:
    said = body.decode(errors="replace")[:SAID]
    raise ValueError(f"remote reward {service.url}: status {status}, {said!r}; only 200 is a score: mend what it says, "
                     "in the config or at the server")
  if kind != wire.TYPE or "content-encoding" in reply.headers:
    raise Failed(f"an answer of content type {kind[:80]!r}, not {wire.TYPE}")


def matched(service: Service, ids: np.ndarray, answer: wire.Answer) -> Found:
  """The answer in the order of the question. Failed where it names other samples, one twice, or leaves some out."""
  place = {one: row for row, one in enumerate(ids.tolist())}
  rows = [place.get(one) for one in answer.ids.tolist()]
  if None in rows or len(set(rows)) < len(rows):
    raise Failed(f"an answer that names {'a sample twice' if None not in rows else 'samples not asked about'}")
  lost = [name for name in service.parts if name not in answer.parts]
  if lost:
    raise ValueError(f"remote reward {service.url}: parts = {list(service.parts)}, but {lost[0]!r} is none of those "
                     f"that it answers with, {', '.join(map(repr, answer.parts))[:SAID]}; correct config.reward.parts")
  found = blank(service, len(ids), "")
  found.total[rows] = np.where(np.isfinite(answer.total), answer.total, 0)
  found.valid[rows] = answer.valid & np.isfinite(answer.total)
  for row, name in enumerate(service.parts):
    found.parts[row, rows] = answer.parts[name]
  found.answered[rows] = True
  if not found.answered.all():
    raise Failed("an answer that leaves samples out", found=found)
  return found
