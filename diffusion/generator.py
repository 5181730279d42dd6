"""A text-to-image generator: network x text encoder x process x kernel, as pure functions.

What policies train and what `diffusion/generate.py` samples from are this one object, so guidance, the sampling grid
and the text path are written once. `make` puts one together from parts that are trained together, on pixels;
`public.py` from a folder of public weights, with its autoencoder and text encoders.
"""
import importlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import kernels, refiner, sample, tokenizer
from diffusion.core import Kernel, Process, expand, fold, normal


class Generator(NamedTuple):
  """shape: (H, W, C) of x, of a clip (F, H, W, C); media: that of what it decodes to."""
  init: Callable       # (key) -> {"net", "text", ...}
  encode: Callable     # ([prompt]) -> cond, arrays with a leading axis B; host
  embed: Callable      # (view, cond) -> cond in which frozen encoders have done their part
  predictor: Callable  # (view, cond, guided) -> ((x, t [B]) -> y); the text is encoded once
  sample: Callable     # (view, cond, keys, x=None, steps=None, eta=None, keep=None) -> x0, Move or None, times, etas
  latents: Callable    # (view, media in [-1, 1], keys [B]) -> x
  decode: Callable     # (view, x) -> media in [0, 1]
  process: Process
  kernel: Kernel
  shape: tuple
  media: tuple
  start: Callable = lambda steps=None: 1.0  # (steps or None) -> the factor of the unit noise that sampling begins from
  low: tuple = ()      # shape of cond["low"], in [-1, 1], that a refiner (refiner.py) enlarges; () for none
  read: Any = None     # (view, cond) -> the text encoder's (hidden [B L D], pooled, mask [B L]), where it is not frozen


def check_kernel(name: str, process: Process) -> None:
  """Refuses an unknown kernel, and a flow's kernel on a process that is none."""
  if name not in kernels.NAMES:
    raise ValueError(f"kernel = {name!r} is not one of {', '.join(kernels.NAMES)}; choose one of them")
  a, s = process.scales(jnp.float32(0.3))
  if name in kernels.FLOWS_ONLY and abs(float(a + s) - 1) > 1e-6:
    raise ValueError(f"kernel = {name!r} is derived for a rectified flow (a + s = 1), but the process has "
                     f"a + s = {float(a + s):.3f} at t = 0.3; use process 'flow', or kernel 'ddim' or 'cps'")


def build(parts: dict) -> Generator:
  """A generator from the resolved description that a run exports: nested {"name": ..., option: ...} dicts. ValueError
  for one that describes something else."""
  if not {"net", "text", "process"} <= set(parts):
    raise ValueError(f"model: its description is of {parts.get('name')!r}, with {', '.join(sorted(parts))}; generators "
                     "have net, text and process: choose another model, or sample this one by the task 'evaluate'")
  part = lambda package, spec: getattr(importlib.import_module(package), spec["name"])
  options = lambda spec: {k: v for k, v in spec.items() if k != "name"}
  nets = {k: importlib.import_module(f"diffusion.nets.{parts[k]['name']}").make(**options(parts[k]))
          for k in ("net", "text")}
  process = part("diffusion.process", parts["process"])(**options(parts["process"]))
  rest = {k: v for k, v in parts.items() if k not in ("name", "net", "text", "process")}
  return make(**nets, process=process, **rest)


def make(net: Any, text: Any, process: Process, kernel: str = "ode", tokens: str = "words", length: int = 16,
         size: int = 16, channels: int = 3, steps: int = 10, eta: float = 0.0, guidance: float = 1.0,
         frames: int = 0, refines: int = 0) -> Generator:
  """net, text: Linen modules (called as nets/unet.py, or nets/clips.py, and nets/text.py are).

  kernel: a name in kernels.py, with its default steps and eta; tokens: a tokenizer folder or shipped name, and
  `length`, the number of tokens a prompt is padded or cut to. frames: of a clip, 0 for pictures.
  refines: how many times smaller what it enlarges is, 0 for a generator from noise alone.
  Where a cond has "context" [B L D] and "mask" [B L], these stand in place of the text encoder's.
  """
  check_kernel(kernel, process)
  if frames < 0 or frames == 1:
    raise ValueError(f"frames = {frames} must be 0 for pictures, or at least 2 for clips; correct it")
  if refines < 0 or refines == 1 or (refines and size % refines):
    raise ValueError(f"refines = {refines} must be 0, or at least 2 and a divisor of size = {size}; 2 is usual")
  if steps < 1:
    raise ValueError(f"steps = {steps} must be at least 1; 10 to 50 is usual")
  walker, words = getattr(kernels, kernel)(), tokenizer.load(tokens)
  if getattr(text, "vocab", words.size) < words.size:      # a lookup beyond the table would be NaN, without a word
    raise ValueError(f"text: vocab = {text.vocab} is smaller than the {words.size} tokens of tokens = {tokens!r}; "
                     f"set vocab to {words.size} or more")
  null = tuple(jnp.asarray(a) for a in words.encode([""], length))
  before = (frames,) * bool(frames)
  shape, seen = (*before, size, size, channels), (*before, size, size, channels * (2 if refines else 1))
  low = (*before, size // refines, size // refines, channels) if refines else ()

  def init(key):
    k_text, k_net = jax.random.split(key)
    text_params = text.init(k_text, *null)["params"]
    context, pooled = text.apply({"params": text_params}, *null)
    x, t = jnp.zeros((1,) + seen, jnp.float32), jnp.zeros((1,))
    return {"net": net.init(k_net, x, t, context, null[1], pooled)["params"], "text": text_params}

  def encode(prompts):
    ids, mask = words.encode(list(prompts), length)
    return {"tokens": ids, "mask": mask}

  def read(view, cond):
    return (*text.apply({"params": view["text"]}, cond["tokens"], cond["mask"]), cond["mask"])

  def contexts(view, cond, pair):
    empty = lambda: read(view, {"tokens": null[0], "mask": null[1]})
    if "context" in cond:
      return told(cond["context"], cond["mask"], empty(), pair)
    given = read(view, cond)
    return given, jax.tree.map(lambda a, b: jnp.broadcast_to(b, a.shape), given, empty()) if pair else None

  def call(view, context, x, t):
    hidden, pooled, mask = context
    return net.apply({"params": view["net"]}, x, process.timestep(t), hidden, mask, pooled)

  predictor = predicting(call, contexts, guidance)
  predictor = refiner.beside(predictor, refines) if refines else predictor
  return Generator(init, encode, lambda view, cond: cond, predictor,
                   sampling(predictor, process, walker, shape, steps, eta, lambda steps: 1.0),
                   lambda view, media, keys: media, lambda view, x: jnp.clip((x + 1) / 2, 0, 1), process, walker, shape,
                   shape, low=low, read=read)


def told(context: Any, mask: Any, empty: tuple, pair: bool) -> tuple:
  """Contexts of what another model says in place of the text encoder, [B L D] and its mask; the pooled text is that of
  the empty prompt. ValueError for another width, and for guidance, which would need an empty prompt in its words."""
  if context.shape[-1] != empty[0].shape[-1]:
    raise ValueError(f"context of shape {context.shape} must be {empty[0].shape[-1]} wide, as the text encoder's is; "
                     "give what makes it that width")
  if pair:
    raise ValueError("guidance: what another model says in place of the prompt has no empty form to lead away from; "
                     "only guidance = 1 is allowed, set it")
  return (context, jnp.broadcast_to(empty[1], (len(context), empty[1].shape[-1])), mask), None


def predicting(call: Callable, contexts: Callable, guidance: float) -> Callable:
  """Generator.predictor from call(view, context, x, t) -> y and contexts(view, cond, pair) -> (context, that of the
  empty prompt or None)."""
  def predictor(view, cond, guided):
    scale = guidance if guided else 1
    y = sample.guided(lambda *given: call(view, *given).astype(jnp.float32), scale)
    pair = contexts(view, cond, scale != 1)
    return lambda x, t: y(pair, x, t)
  return predictor


def sampling(predictor: Callable, process: Process, walker: Kernel, shape: tuple, steps: int, eta: float,
             start: Callable) -> Callable:
  """Generator.sample; x is what it starts from as it is, noise of its own is scaled by start(steps)."""
  defaults = steps, eta

  def run(view, cond, keys, x=None, steps=None, eta=None, keep=None):
    steps, eta = defaults[0] if steps is None else steps, defaults[1] if eta is None else eta
    times = jnp.asarray(process.times(steps) if isinstance(steps, int) else steps, jnp.float32)
    etas = jnp.broadcast_to(jnp.asarray(eta, jnp.float32), (times.shape[0] - 1,))
    if x is None:
      x = normal(fold(keys, 0), shape) * (start(steps) if isinstance(steps, int) else 1.0)
    out, moves = sample.chain(predictor(view, cond, True), process, walker, x, times, etas, keys, keep)
    return out, moves, times, etas
  return run


def clean(generator: Generator, view, cond, xt, t, guided: bool):
  """x0 predicted from x_t at t ([B] or a scalar)."""
  t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), xt.shape[:1])
  return generator.process.clean(generator.predictor(view, cond, guided)(xt, t), xt, expand(t, xt))


def to_uint8(media) -> np.ndarray:
  """Media in [0, 1] -> uint8, rounded."""
  return np.asarray(jnp.round(jnp.asarray(media) * 255), np.uint8)
