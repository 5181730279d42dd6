"""python -m align.serve --config=configs/NAME.py [--host=127.0.0.1] [--port=8000]: a reward behind HTTP.

Serves the reward of a config, with the weights that a run of it begins from (config.start.reward, or the public model
that the reward names), or that of a trained one, `--model=WORKDIR`. Runs reach it as {"name": "remote", "url": ...}
(rewards/remote.py); what is asked and answered is described in rewards/wire.py.

  POST /score    one question, of at most `batch` samples
  GET  /health   {"ready", "reward", "where", "parts", "limits"}: parts once something was scored
  GET  /metrics  counts and seconds, for Prometheus

One question is scored at a time, over all devices of this machine; on devices a question is filled up to `batch`
samples with copies of its last, so that one shape of media compiles one program. `queue` more may wait, the next is
told to come back (503); so is what exceeds `rate` (429). What is too large (413) or of another type (415) is refused
before it is read, what cannot be read with a message that says why (400). With --token=NAME, the value of the
environment variable NAME must come as a bearer token with everything but /health; other hosts than this one are only
served with it, or with --open. Ctrl-C and SIGTERM answer what is being scored, then stop. Left out: https and many idle
connections, which are a proxy's work; rewards normalised over a call, which are mixed where training is.
"""
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Any, Callable

import jax
import numpy as np

from align import assemble, build, guard, main, pipeline, tree
from align import config as configs
from align import data as batches
from align import evaluate as evaluation
from align import shard as sharding
from align.build import UserError
from diffusion import folder
from diffusion.mesh import places
from rewards import mix, wire
from rewards.core import Scores

FLAGS = {
  "config": "configs/NAME.py, or FILE.py:argument, of a training run or a pipeline",
  "run": "of a pipeline: the run whose reward is served", "workdir": "of a pipeline: where its runs are",
  "model": "instead of a config: the workdir or export of a trained reward",
  "host": "address to listen at, 127.0.0.1 if left out", "port": "port, 8000 if left out; 0 for a free one",
  "token": "name of the environment variable that holds the token",
  "open": "serve other hosts without a token",
  "batch": "most samples of a question, 64 if left out", "mib": "most MiB of a question, 256 if left out",
  "queue": "most questions that wait, 16 if left out", "rate": "most questions a second, 100 if left out",
  "debug": "show tracebacks of user errors",
}
SWITCHES = ("open", "debug", "help")
LEAST = {"batch": 1, "mib": 0.01, "queue": 0, "rate": 0.01}
SHAPES = 8   # of media that may be compiled; each takes memory for good


# --- what is served ---------------------------------------------------------------------------------------------------


def chosen(given: dict, overrides: list) -> tuple[dict, dict]:
  """(description of the reward, {role: model} of its weights) that the flags mean."""
  if ("config" in given) == ("model" in given):
    raise UserError("--config and --model: one of the two must be given; --config=configs/NAME.py serves the reward of "
                    "a run, --model=WORKDIR a trained one")
  if "model" in given:
    with build.blame("--model"):
      return folder.describe(given["model"], "reward"), {"reward": given["model"]}
  config, at = configs.override(configs.load(given["config"]), overrides), "config"
  if "runs" in config:
    if given.get("run") not in config["runs"]:
      raise UserError(f"--run = {given.get('run')!r} must be a run of {given['config']}, which has "
                      f"{', '.join(config['runs'])}; name the one whose reward is served")
    config, at = config["runs"][given["run"]], f"config.runs.{given['run']}"
  elif "run" in given:
    raise UserError(f"--run = {given['run']!r}, but {given['config']} is no pipeline with runs; leave it out")
  if not config.get("reward"):
    raise UserError(f"{at}.reward = None: there is no reward to serve; choose a config, or by --run a run, with one")
  start = {k: v for k, v in (config.get("start") or {}).items() if k.split("/")[0] == "reward"}
  if pipeline.references([config["reward"], start]) and "workdir" not in given:
    raise UserError(f"{at} begins from what other runs leave; --workdir must be where they are, add --workdir=DIR")
  return pipeline.linked((config["reward"], start), Path(given.get("workdir", "")))


def alone(spec: dict, reward: Any) -> None:
  """Refuses rewards whose scores depend on what else is in a call, which is cut and filled up here."""
  for at, part in assemble.described("config.reward", spec).items():
    kinds = part.get("normalise", "none")
    if set(kinds.values() if isinstance(kinds, dict) else [kinds]) - {"none"}:
      raise UserError(f"{at}.normalise = {kinds!r}: a server gives scores as they are, 'none'; serve the parts, and "
                      "mix them where training is")
  if reward.chunks is None:
    raise UserError(f"config.reward = {spec['name']!r} compares all samples of a call, which a server does not see "
                    "together; serve its parts, or judge where training is")


def loaded(spec: dict, start: dict, mesh: Any) -> tuple:
  """(reward, its parameters on the mesh). UserError where some of them have no weights to begin from."""
  reward = build.build("rewards", spec)
  alone(spec, reward)
  shapes = {"reward": jax.eval_shape(reward.init, jax.random.key(0))}
  laid = places(shapes, mesh)
  begun = assemble.begun(assemble.Place(shapes, laid, ""), None, spec)
  found, flat = assemble.load_start(shapes, {**begun, **start}, laid), tree.flatten(laid)
  missing = [name for name in flat if name not in found]
  if missing:
    raise UserError(f"config.reward = {spec['name']!r}: {len(missing)} of its {len(flat)} parameters, such as "
                    f"{missing[0]!r}, have no weights; a server needs trained ones, set config.start.reward or give "
                    "--model")
  whole = tree.unflatten({name: sharding.settled(leaf, flat[name]) for name, leaf in found.items()})
  return reward, whole.get("reward", {})


def scorer(reward: Any, view: Any, most: int, mesh: Any) -> Callable:
  """(wire.Asked) -> Scores on the host, of at most `most` samples. ValueError for what the reward refuses, and for
  media of too many shapes."""
  on_host, shapes = reward.where == "host", set()
  full = evaluation.even(most, mesh)
  program = reward.score if on_host else evaluation.on_mesh(reward.score, mesh)

  def score(asked: wire.Asked) -> Scores:
    media = mix.looked(asked.media, None, reward.frames)
    count, shape = len(asked.ids), media.shape[1:]
    if not on_host and len(shapes | {shape}) > SHAPES:
      raise ValueError(f"media of shape {list(shape)} are more than the {SHAPES} shapes that a server takes, "
                       "since each needs a program of its own; send media of one size, or start the server anew")
    shapes.add(shape)
    index = np.minimum(np.arange(count if on_host else full), count - 1)
    media, keys = media[index], asked.keys
    media = media.astype(np.float32) / 255 if media.dtype == np.uint8 else media
    batch = reward.prepare({"prompt": [asked.prompt[i] for i in index], "meta": [asked.meta[i] for i in index],
                            **{name: values[index] for name, values in asked.numbers.items()}})
    scores = program(view, batch if on_host else batches.numeric(batch)[0], media,
                     None if keys is None else jax.random.wrap_key_data(keys[index]))
    return jax.tree.map(lambda values: np.asarray(values)[:count], scores)
  return score


# --- the command line -------------------------------------------------------------------------------------------------


def web() -> Any:
  """The module with the endpoints. UserError where the packages that it needs are not installed."""
  try:
    from align import endpoints
  except ImportError as error:
    raise UserError(f"serving needs starlette, uvicorn and prometheus-client ({error}), which are installed with an "
                    'extra: pip install "align-diffusion[serve]"') from error
  return endpoints


def secret(name: str | None) -> str | None:
  """The token in the environment variable `name`."""
  if name is not None and not os.environ.get(name):
    raise UserError(f"--token = {name!r} must be the name of an environment variable that holds the token, but it "
                    "holds none; set it to a long random text, here and where runs are started")
  return os.environ[name] if name else None


def is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens. UserError where the address cannot be had."""
  try:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
  except (OSError, OverflowError) as error:
    raise UserError(f"--host = {host!r}, --port = {port}: cannot listen there ({error}); choose an address of this "
                    "machine and a free port, 0 for any") from error


def number(given: dict, name: str, default: Any, least: float) -> Any:
  """A flag as a number of its default's type."""
  try:
    value = type(default)(given.get(name, default))
  except ValueError:
    value = None
  if value is None or not least <= value < 1e9:
    raise UserError(f"--{name} = {given[name]!r} must be a number, at least {least:g}; such as {default}")
  return value


def command(arguments: list) -> None:
  given, overrides = main.parse(arguments, FLAGS, SWITCHES)
  if given.get("help") or not arguments:
    return print(__doc__ + "\n" + build.table([(f"  --{k}", v) for k, v in FLAGS.items()]))
  host, port, token = given.get("host", "127.0.0.1"), number(given, "port", 8000, 0), secret(given.get("token"))
  if not is_loopback(host) and token is None and not given.get("open"):
    raise UserError(f"--host = {host!r} is reached by others than this machine; set --token=NAME, the environment "
                    "variable that holds a token, or --open if everyone who reaches it may have scores")
  if overrides and "model" in given:
    raise UserError(f"--{overrides[0][0]} changes a config, but --model is given instead of one; leave it out")
  endpoints = web()
  limits = endpoints.Limits(*(number(given, k, v, LEAST[k]) for k, v in endpoints.Limits()._asdict().items()))
  main.prepare()
  spec, start = chosen(given, overrides)
  mesh = sharding.mesh()
  reward, view = loaded(spec, start, mesh)
  score = scorer(reward, view, limits.batch, mesh)
  with listen(host, port) as opened:
    shown = {"reward": spec["name"], "where": reward.where}
    print(f"serving {spec['name']} on http://{host}:{opened.getsockname()[1]}", flush=True)
    endpoints.server(endpoints.application(score, shown, limits, token)).run(sockets=[opened])


def run(arguments: list | None = None) -> int:
  """The command line; returns the exit code."""
  arguments = sys.argv[1:] if arguments is None else arguments
  try:
    with guard.interruptible():
      command(arguments)
  except KeyboardInterrupt:  # what uvicorn raises again after it has finished
    return 0
  except UserError as error:
    if "--debug" in arguments:
      raise
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(run())
