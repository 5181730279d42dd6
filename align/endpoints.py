"""The HTTP of a reward server: who may ask, how much, how often, and what is answered when something is wrong.

Every check comes as early as it can: the token, the type and the declared size before a body is read, the bytes while
it is read, what it holds before anything is allocated. Questions wait in a bounded room and are scored one at a time in
a thread, so that /health answers meanwhile. Imported by serve.py alone, since it needs the extra `serve`.
"""
import asyncio
import hmac
import time
from typing import Any, Callable, NamedTuple

import prometheus_client as prometheus
import uvicorn
from absl import logging
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rewards import wire

SLOW = 60    # seconds within which a question must have arrived
LEAVE = 30   # seconds to finish what is being scored at the end


class Limits(NamedTuple):
  """What a server takes: samples and MiB of a question, questions that wait, questions a second."""
  batch: int = 64
  mib: float = 256.0
  queue: int = 16
  rate: float = 100.0


class Meters(NamedTuple):
  registry: Any
  questions: Any    # by status
  samples: Any      # by whether they have a valid score
  seconds: Any      # of scoring a question
  waiting: Any      # questions that are read, wait or are scored


class Desk(NamedTuple):
  """What the endpoints of one server share."""
  score: Callable   # (wire.Asked) -> Scores
  shown: dict       # of /health; "parts" is set once something was scored
  limits: Limits
  token: str | None
  meters: Meters
  take: Callable    # () -> whether the rate allows one more now
  room: Any         # asyncio.Semaphore of those inside
  turn: Any         # asyncio.Lock of the one that is scored


def meters() -> Meters:
  registry = prometheus.CollectorRegistry()
  return Meters(registry, prometheus.Counter("align_reward_questions", "Questions", ["status"], registry=registry),
                prometheus.Counter("align_reward_samples", "Samples scored", ["valid"], registry=registry),
                prometheus.Histogram("align_reward_seconds", "Seconds of scoring", registry=registry),
                prometheus.Gauge("align_reward_waiting", "Questions inside", registry=registry))


def bucket(rate: float) -> Callable:
  """() -> whether one more may come now: `rate` a second on average, a second's worth at once."""
  most = max(rate, 1.0)
  left, last = most, time.monotonic()

  def take() -> bool:
    nonlocal left, last
    now = time.monotonic()
    left, last = min(most, left + (now - last) * rate), now
    if left < 1:
      return False
    left -= 1
    return True
  return take


# --- what is refused -------------------------------------------------------------------------------------------------


def too_large(what: str, limits: Limits) -> HTTPException:
  return HTTPException(413, f"{what}: a question has {limits.mib:g} MiB and {limits.batch} samples at most; lower "
                       "at_once of the reward, or raise --mib or --batch of the server")


def check_token(desk: Desk, request: Any) -> None:
  given = request.headers.get("authorization", "").encode("latin-1")
  if desk.token is not None and not hmac.compare_digest(given, f"Bearer {desk.token}".encode()):
    raise HTTPException(401, "authorization: no bearer token came, or another one; it must be the one that the server "
                        "was started with, set config.reward.token and the environment variable that it names",
                        {"www-authenticate": "Bearer"})


def check_head(desk: Desk, request: Any) -> None:
  kind, size = request.headers.get("content-type", "none"), request.headers.get("content-length", "0")
  if kind != wire.TYPE or "content-encoding" in request.headers:
    raise HTTPException(415, f"content-type = {kind[:80]!r} must be {wire.TYPE}, without a content-encoding; send such "
                        "a body")
  if int(size) > desk.limits.mib * 2 ** 20:  # the HTTP library has seen that it is a number
    raise too_large(f"content-length = {size}", desk.limits)


def check_load(desk: Desk) -> None:
  wait = {"retry-after": "1"}
  if not desk.take():
    raise HTTPException(429, f"more than {desk.limits.rate:g} questions a second came; wait, then ask again", wait)
  if desk.room.locked():
    raise HTTPException(503, f"{desk.limits.queue} questions wait already; ask again later", wait)


async def received(desk: Desk, request: Any) -> bytes:
  """The body, of which no more is held than is allowed."""
  body = bytearray()
  try:
    async with asyncio.timeout(SLOW):
      async for piece in request.stream():
        body += piece
        if len(body) > desk.limits.mib * 2 ** 20:
          raise too_large("a body without a content-length", desk.limits)
  except TimeoutError as error:
    raise HTTPException(408, f"body: it did not arrive within {SLOW} s; send it faster, or less") from error
  return bytes(body)


# --- what is answered ------------------------------------------------------------------------------------------------


def answered(desk: Desk, body: bytes) -> bytes:
  """The answer to a question; runs in a thread."""
  try:
    asked = wire.asked(body)
    if len(asked.ids) > desk.limits.batch:
      raise too_large(f"{len(asked.ids)} samples", desk.limits)
    with desk.meters.seconds.time():
      found = desk.score(asked)
    answer = wire.answer(wire.Answer(asked.ids, found.total, found.valid, found.parts))
  except HTTPException:
    raise
  except ValueError as error:
    raise HTTPException(400, str(error)) from error
  except Exception as error:  # whatever a reward raises, the next question may be fine
    logging.exception("a question could not be scored")
    raise HTTPException(500, f"the reward failed ({type(error).__name__}); the server's log says where") from error
  desk.shown["parts"] = list(found.parts)
  for valid in (True, False):
    desk.meters.samples.labels(str(valid).lower()).inc(int((found.valid == valid).sum()))
  return answer


async def scored(desk: Desk, request: Any) -> Response:
  check_token(desk, request)
  check_head(desk, request)
  check_load(desk)
  with desk.meters.waiting.track_inprogress():
    async with desk.room:
      body = await received(desk, request)
      async with desk.turn:
        if await request.is_disconnected():
          raise HTTPException(499, "nobody waits for the answer any more")
        answer = await run_in_threadpool(answered, desk, body)
  desk.meters.questions.labels("200").inc()
  return Response(answer, media_type=wire.TYPE)


def application(score: Callable, shown: dict, limits: Limits, token: str | None = None) -> Starlette:
  """POST /score, GET /health and GET /metrics. score: (wire.Asked) -> Scores on the host, ValueError where the question
  is wrong. shown: what /health says of the reward."""
  shown = {"ready": True, **shown, "parts": None, "limits": limits._asdict()}
  desk = Desk(score, shown, limits, token, meters(), bucket(limits.rate), asyncio.Semaphore(limits.queue + 1),
              asyncio.Lock())

  async def score_(request):
    return await scored(desk, request)

  async def health(request):
    return JSONResponse(desk.shown)

  async def metrics(request):
    check_token(desk, request)
    return Response(prometheus.generate_latest(desk.meters.registry), media_type="text/plain; version=0.0.4")

  async def refused(request, error):
    desk.meters.questions.labels(str(error.status_code)).inc()
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)

  routes = [Route("/score", score_, methods=["POST"]), Route("/health", health), Route("/metrics", metrics)]
  return Starlette(routes=routes, exception_handlers={HTTPException: refused})


def server(app: Any) -> uvicorn.Server:
  """`run(sockets=[...])` serves until a signal comes or `should_exit` is set; what is being scored is answered."""
  return uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="warning",
                                       access_log=False, server_header=False, proxy_headers=False,
                                       timeout_graceful_shutdown=LEAVE))
