"""A reward behind HTTP: the numbers of the reward itself, and everything that a server must refuse."""
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import jax
import numpy as np
import pytest
from commands import ROOT, command

from align import build, endpoints, main, metrics, serve, shard
from align import evaluate as evaluation
from align.build import UserError
from diffusion import folder
from rewards import remote, wire
from rewards.core import Reward, Scores

SUPPORT = ROOT / "tests" / "support"
MEDIA = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32)
BATCH = {"prompt": [f"a {i}" for i in range(8)], "meta": [{}] * 8, "label": np.arange(8, dtype=np.int32)}
KEYS = jax.random.split(jax.random.key(0), 8)
CLASSIFIER = {"name": "classifier", "size": 8, "width": 4}
QUICK = {"tries": 2, "deadline": 20.0, "backoff": 0.01}


@contextlib.contextmanager
def serving(score, token=None, **limits):
  """The url of a server in a thread."""
  app = endpoints.application(score, {"reward": "test", "where": "host"}, endpoints.Limits(**limits), token)
  running = endpoints.server(app)
  with serve.listen("127.0.0.1", 0) as opened:
    thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
      yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    finally:
      running.should_exit = True
      thread.join()


def of(spec, mesh, start=None, batch=8):
  reward, view = serve.loaded(build.resolved("rewards", spec, None, "config.reward"), start or {}, mesh)
  return reward, view, serve.scorer(reward, view, batch, mesh)


def bright(asked: wire.Asked) -> Scores:
  total = asked.media.mean((1, 2, 3))
  return Scores(total, {"label": asked.numbers.get("label", total)}, np.isfinite(total))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a run that has trained a reward."""
  where, spec = tmp_path_factory.mktemp("reward"), build.resolved("rewards", CLASSIFIER, None, "config.reward")
  folder.save(where / "export", "reward", spec, jax.jit(build.build("rewards", spec).init)(jax.random.key(1)))
  return where


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once, pixels", [(3, "float32"), (8, "uint8")])  # a JPEG is made of 255ths anyway
def test_a_reward_of_the_host_gives_its_own_numbers(at_once, pixels):
  reward, view, score = of("jpeg", shard.mesh())
  local = reward.score(view, BATCH, MEDIA, KEYS)
  with serving(score) as url:
    far = remote.make(url, pixels, at_once, parts=("kilobytes",), **QUICK).score({}, BATCH, MEDIA, KEYS)
  for one, other in zip(jax.tree.leaves(far), jax.tree.leaves(local), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def test_a_trained_reward_of_the_device_gives_its_own_numbers(trained):
  mesh = shard.mesh()
  spec, start = serve.chosen({"model": str(trained)}, [])
  assert spec == build.resolved("rewards", CLASSIFIER, None, "") and start == {"reward": str(trained)}
  reward, view, score = of(spec, mesh, start)
  numbers = {"label": BATCH["label"]}
  local = evaluation.on_mesh(reward.score, mesh)(view, numbers, MEDIA, KEYS)
  with serving(score) as url:
    ask = lambda rows: remote.make(url, parts=("probability", "accuracy"), **QUICK).score(
      {}, {"prompt": BATCH["prompt"][:rows], "meta": BATCH["meta"][:rows], "label": BATCH["label"][:rows]},
      MEDIA[:rows], KEYS[:rows])
    far, fewer = ask(8), ask(5)  # filled up to the same program
    assert httpx.get(url + "/health").json()["parts"] == ["accuracy", "probability"]
  for name in ("probability", "accuracy"):
    np.testing.assert_array_equal(far.parts[name], local.parts[name])
  np.testing.assert_array_equal(far.total, local.total)
  np.testing.assert_array_equal(fewer.total, local.total[:5])
  assert far.valid.all() and len(set(np.asarray(far.total))) == 8


def test_a_reward_that_looks_at_some_frames_is_shown_those():
  reward = Reward(lambda key: {}, lambda batch: batch, lambda view, batch, media, keys: Scores(
    media[:, :, 0, 0, 0].sum(1), {}, np.ones(len(media), bool)), "host", (0, -1))
  clips = np.arange(10, dtype=np.float32).reshape(2, 5, 1, 1, 1)
  score = serve.scorer(reward, {}, 8, shard.mesh())
  assert score(wire.Asked(np.arange(2), ["a"] * 2, [{}] * 2, clips, None, {})).total.tolist() == [4, 14]
  seeing_all = reward._replace(chunks=None)
  with pytest.raises(UserError, match="config.reward = 'x' compares all samples of a call"):
    serve.alone({"name": "x"}, seeing_all)


def test_media_of_many_shapes_are_refused(trained, monkeypatch):
  monkeypatch.setattr(serve, "SHAPES", 1)
  _, _, score = of(CLASSIFIER, shard.mesh(), {"reward": str(trained)})
  asked = lambda side: wire.Asked(np.arange(2), ["a"] * 2, [{}] * 2, np.zeros((2, side, side, 1), np.uint8), None,
                                  {"label": np.zeros(2, np.int32)})
  assert score(asked(8)).total.shape == (2,)
  with pytest.raises(ValueError, match=r"media of shape \[4, 4, 1\] are more than the 1 shapes that a server takes"):
    score(asked(4))
  assert score(asked(8)).valid.all()


# --- what it refuses -------------------------------------------------------------------------------------------------


def question(**changes) -> bytes:
  whole = wire.Asked(np.arange(8), BATCH["prompt"], BATCH["meta"], MEDIA, None, {"label": BATCH["label"]})
  return wire.ask(whole._replace(**changes))


def post(url, body, **headers):
  return httpx.post(url + "/score", content=body, headers={"content-type": wire.TYPE, **headers}, timeout=20)


def test_refusals_are_json_with_what_to_do():
  with serving(bright, batch=8, mib=0.01) as url:
    for reply, status, message in [
      (post(url, b"junk"), 400, "body: 4 bytes do not hold a header"),
      (post(url, question(media=MEDIA[:3])), 400, "array 'media' is float32"),
      (post(url, bytes(20000)), 413, "content-length = 20000: a question has 0.01 MiB and 8 samples at most; lower"),
      (post(url, (bytes(1000) for _ in range(20))), 413, "a body without a content-length"),
      (post(url, question(ids=np.arange(9), prompt=["a"] * 9, meta=[{}] * 9, media=np.zeros((9, 4, 4, 1), np.uint8),
                          numbers={})), 413, "9 samples"),
      (post(url, question(), **{"content-type": "application/json"}), 415, "content-type = 'application/json'"),
      (post(url, question(), **{"content-encoding": "gzip"}), 415, "without a content-encoding"),
      (httpx.get(url + "/score"), 405, "Method Not Allowed"), (httpx.get(url + "/docs"), 404, "Not Found"),
    ]:
      assert reply.status_code == status and message in reply.json()["error"], (reply.status_code, reply.text)
    assert post(url, question()).status_code == 200
    said = httpx.get(url + "/metrics").text
    assert httpx.get(url + "/health").json() == {"ready": True, "reward": "test", "where": "host", "parts": ["label"],
                                                 "limits": {"batch": 8, "mib": 0.01, "queue": 16, "rate": 100.0}}
  assert 'align_reward_questions_total{status="400"} 2.0' in said
  assert 'align_reward_samples_total{valid="true"} 8.0' in said and "align_reward_seconds_sum" in said


def test_a_client_is_told_why():
  with serving(bright, batch=4) as url:
    with pytest.raises(ValueError, match="status 413, .*8 samples: a question has .* and 4 samples at most"):
      remote.make(url, **QUICK).score({}, BATCH, MEDIA, None)
    assert remote.make(url, at_once=4, **QUICK).score({}, BATCH, MEDIA, None).valid.all()


def test_a_reward_that_fails(caplog):
  def score(asked):
    if "refuse" in asked.prompt:
      raise ValueError("batch entry 'label' is missing")
    raise RuntimeError("secret path")
  with serving(score) as url:
    failed, refused = post(url, question()), post(url, question(prompt=["refuse"] * 8))
  assert failed.status_code == 500 and "RuntimeError" in failed.json()["error"] and "secret" not in failed.text
  assert "secret path" in caplog.text
  assert refused.status_code == 400 and refused.json()["error"] == "batch entry 'label' is missing"


def test_a_token_is_asked_for(monkeypatch):
  monkeypatch.setenv("JUDGE_TOKEN", "right")
  with serving(bright, serve.secret("JUDGE_TOKEN")) as url:
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer rigHt"}, {"authorization": "right"}):
      reply = post(url, question(), **given)
      assert reply.status_code == 401 and "no bearer token came, or another one" in reply.json()["error"]
      assert reply.headers["www-authenticate"] == "Bearer"
    assert httpx.get(url + "/metrics").status_code == 401 and httpx.get(url + "/health").status_code == 200
    assert remote.make(url, token="JUDGE_TOKEN", **QUICK).score({}, BATCH, MEDIA, None).valid.all()
    with pytest.raises(ValueError, match="status 401"):
      remote.make(url, **QUICK).score({}, BATCH, MEDIA, None)


def test_one_question_at_a_time_and_a_bounded_room():
  inside, most, go = [0], [0], threading.Event()

  def score(asked):
    inside[0] += 1
    most[0] = max(most[0], inside[0])
    go.wait(20)
    inside[0] -= 1
    return bright(asked)
  with serving(score, queue=1) as url:
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(post(url, question()))) for _ in range(2)]
    for thread in threads:
      thread.start()
    while "align_reward_waiting 2.0" not in httpx.get(url + "/metrics").text:
      time.sleep(0.01)
    full = post(url, question())
    assert httpx.get(url + "/health").json()["ready"]
    go.set()
    for thread in threads:
      thread.join()
  assert full.status_code == 503 and full.headers["retry-after"] == "1" and "1 questions wait" in full.json()["error"]
  assert [reply.status_code for reply in replies] == [200, 200] and most[0] == 1


def test_a_server_that_stops_answers_what_it_has_begun():
  begun, replies = threading.Event(), []

  def score(asked):
    begun.set()
    time.sleep(0.5)
    return bright(asked)
  with serving(score) as url:
    thread = threading.Thread(target=lambda: replies.append(post(url, question())))
    thread.start()
    assert begun.wait(20)
  thread.join()
  assert replies[0].status_code == 200 and len(wire.answered(replies[0].content).total) == 8
  with pytest.raises(httpx.ConnectError):
    httpx.get(url + "/health")


def test_who_comes_too_often_waits():
  with serving(bright, rate=1.0) as url:
    first, second = post(url, question()), post(url, question())
    assert first.status_code == 200 and second.status_code == 429 and second.headers["retry-after"] == "1"
    assert "more than 1 questions a second" in second.json()["error"]
    assert remote.make(url, **QUICK).score({}, BATCH, MEDIA, None).valid.all()  # it waits as told


# --- training --------------------------------------------------------------------------------------------------------


RUN = {"task": "train", "steps": 2, "batch": 8, "group": 4, "policy": {"name": "toy:policy"},
       "data": {"name": "toy:data", "media": False}, "algorithm": {"name": "nft", "levels": 2}, "log_every": 1}


def losses(workdir):
  return [row["train/loss"] for row in metrics.read(workdir) if "train/loss" in row]


def test_a_run_learns_the_same_from_far_away(tmp_path):
  reward = {"name": "toy:reward", "where": "device"}
  _, _, score = of(reward, shard.mesh(), batch=32)
  main.run({**RUN, "reward": reward}, tmp_path / "near")
  with serving(score, batch=32) as url:
    main.run({**RUN, "reward": {"name": "remote", "url": url, "at_once": 12, "parts": ("bright",)}}, tmp_path / "far")
  near, far = ((w / "export" / "policy.safetensors").read_bytes() for w in (tmp_path / "near", tmp_path / "far"))
  assert near == far and losses(tmp_path / "near") == losses(tmp_path / "far")
  row, = [row for row in metrics.read(tmp_path / "far") if row["step"] == 0 and "experience/valid" in row]
  assert row["experience/valid"] == 1 and np.isfinite(row["experience/part_bright"])


def test_a_run_stops_where_too_many_fail(tmp_path):
  def score(asked):
    found = bright(asked)
    return found._replace(valid=np.arange(len(found.total)) % 4 > 0)
  with serving(score) as url:
    with pytest.raises(UserError, match="the reward failed on 32 of 128 samples, at most 10% may"):
      main.run({**RUN, "steps": 100, "reward": {"name": "remote", "url": url}}, tmp_path)
  assert len([row for row in metrics.read(tmp_path) if "experience/valid" in row]) == 4


def test_a_run_stops_where_nobody_answers(tmp_path):
  with serving(bright) as url:
    pass
  with pytest.raises(UserError, match="every reward = nan is not finite, and 2 updates in a row were skipped"):
    main.run({**RUN, "patience": 2, "reward": {"name": "remote", "url": url, **QUICK}}, tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
  (["--config=a.py", "--model=b"], "--config and --model: one of the two must be given"),
  (["--port=1"], "--config and --model: one of the two"),
  (["--model=no/such"], "--model: model = 'no/such' holds no reward.safetensors"),
  (["--model=x", "--config.reward=jpeg"], "--config.reward changes a config, but --model is given"),
  (["--config=configs/digits.py"], "--run = None must be a run of configs/digits.py, which has aligned, base, control"),
  (["--config=configs/digits.py", "--run=base"], r"config.runs.base.reward = None: there is no reward"),
  (["--config=configs/digits.py", "--run=aligned"], "begins from what other runs leave; --workdir must be"),
  (["--config=configs/digits.py", "--run=reward"], "parameters, such as 'reward/net/Conv_0/bias', have no weights"),
  (["--config=JPEG", "--host=0.0.0.0"], "--host = '0.0.0.0' is reached by others than this machine; set --token=NAME"),
  (["--config=JPEG", "--host=::"], "--host = '::' is reached by others"),
  (["--config=JPEG", "--token=NO_SUCH"], "--token = 'NO_SUCH' must be the name of an environment variable"),
  (["--config=JPEG", "--run=base"], "--run = 'base', but .*jpeg.py is no pipeline"),
  (["--config=JPEG", "--port=x"], "--port = 'x' must be a number, at least 0; such as 8000"),
  (["--config=JPEG", "--batch=0"], "--batch = '0' must be a number, at least 1"),
  (["--config=JPEG", "--host=203.0.113.1", "--open"], "cannot listen there"),
  (["--config=JPEG", "--prot=1"], "--prot is no flag; .*nearest: 'port'"),
  (["--config=JPEG", "--config.reward={'name': 'mix', 'rewards': {'a': 'jpeg'}, 'normalise': 'batch'}"],
   "config.reward.normalise = 'batch': a server gives scores as they are"),
  (["--config=JPEG", "--config.reward={'name': 'mix', 'rewards': {'a': 'jpeg'}, 'normalise': {'a': 'group'}}"],
   "config.reward.normalise = .*'group'.*: a server gives scores as they are"),
])
def test_commands_that_cannot_be(flags, message, tmp_path, capsys):
  file = tmp_path / "jpeg.py"
  file.write_text(f"def get_config(): return {dict(RUN, reward='jpeg')!r}\n")
  assert serve.run([flag.replace("JPEG", str(file)) for flag in flags]) == 2
  said = capsys.readouterr().err
  assert "Traceback" not in said
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(said)


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  monkeypatch.delitem(sys.modules, "align.endpoints")
  monkeypatch.delattr("align.endpoints")
  assert serve.run(["--model=x"]) == 2
  assert 'pip install "align-diffusion[serve]"' in capsys.readouterr().err


def test_the_weights_of_another_run_of_a_pipeline():
  spec, start = serve.chosen({"config": "configs/digits.py", "run": "aligned", "workdir": "runs/digits"}, [])
  assert spec["name"] == "classifier" and start == {"reward": "runs/digits/reward"}


@pytest.fixture
def started(tmp_path):
  """(flags) -> (process, what it says first) of python -m align.serve."""
  children = []

  def start(*flags):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    children.append(subprocess.Popen([sys.executable, "-m", "align.serve", *flags, "--port=0"], cwd=tmp_path,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    return children[-1], children[-1].stdout.readline()
  yield start
  for child in children:
    child.kill()


def test_a_command_serves_until_it_is_stopped(tmp_path, started):
  (tmp_path / "mine.py").write_text(f"def get_config(): return {dict(RUN, reward='jpeg')!r}\n")
  child, said = started("--config=mine.py")
  assert said.startswith("serving jpeg on http://127.0.0.1:")
  far = remote.make(said.split()[-1], **QUICK).score({}, BATCH, MEDIA, None)
  child.send_signal(signal.SIGTERM)
  assert child.wait(20) == 0, child.stderr.read()
  np.testing.assert_array_equal(far.total, build.build("rewards", "jpeg").score({}, BATCH, MEDIA, None).total)


def test_commands_of_the_readme(tmp_path, started):
  said = started("--config=configs/quickstart.py", "--run=aligned")[1]
  assert httpx.get(said.split()[-1] + "/health").json()["reward"] == "scenes"
  code, shown = command("align.main", "--config=configs/quickstart.py", "--workdir=runs/far",
                        "--config.runs.aligned.reward=remote", "--print", where=tmp_path)
  assert code == 0 and '"name": "remote"' in shown, shown
