"""Devices that need not be there: TPU slices such as v5e:4x4, whose compiler runs on any machine, and cpu:64, virtual
devices of this one.

What compiles for them is the program that they would run; nothing can be run or allocated. Left out: v2 to v4, of which
the compiler sees two devices a chip, GPUs, and slices joined over a data-centre network.
"""
import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

from align.build import UserError, nearest

GIB = 2 ** 30
MOST = 1024  # virtual CPU devices


class Chip(NamedTuple):
  """A kind of TPU. memory: GiB that the compiler gives to programs of a chip. slices: the shapes on offer."""
  memory: float
  slices: tuple


# Shapes: cloud.google.com/tpu/docs, pages v5e, v5p and v6e. Memory: what libtpu 0.0.42 calls available where a program
# does not fit; the data sheets say 16, 95 and 32 GB.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
         "16x16x24")
CHIPS = {"v5e": Chip(15.75, FLAT), "v5p": Chip(95.74, CUBES), "v6e": Chip(31.25, FLAT)}
# libtpu locks the TPU that is not there, and asks a metadata server that only TPU machines have
ALONE = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
         "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
NAMES = tuple(f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.slices)


def check(name: str) -> None:
  """UserError where `name` is neither a slice that can be had, nor a kind of TPU, nor a number of CPU devices."""
  kind, _, shape = str(name).partition(":")
  if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape) and int(shape) <= MOST or name in (*NAMES, *CHIPS):
    return
  if kind in CHIPS:
    allowed = f"{kind} comes as {', '.join(CHIPS[kind].slices)}, and {kind!r} alone is the smallest that is enough"
  else:
    allowed = f"it must be cpu:1 to cpu:{MOST}, or a slice of {', '.join(CHIPS)} such as {NAMES[3]}"
  near = like(kind, shape) if kind in CHIPS else nearest(name, NAMES)
  raise UserError(f"--plan = {name!r}: {allowed}; choose one of them{near}")


def like(kind: str, shape: str) -> str:
  """" (nearest: 'v5e:2x4')", the slice with about as many chips as a shape has, the larger of two; or nothing."""
  if not re.fullmatch(r"\d+(x\d+)*", shape):
    return ""
  chips = lambda shape: math.prod(map(int, shape.split("x")))
  found = min(reversed(CHIPS[kind].slices), key=lambda each: abs(chips(each) - chips(shape)))
  return f" (nearest: {f'{kind}:{found}'!r})"


def ready(name: str) -> None:
  """Makes this process one that can plan for `name`; before jax touches a device, since the number of CPU devices and
  the platform stand still from then on. UserError where that is too late, or libtpu is missing."""
  check(name)
  with contextlib.suppress(RuntimeError):  # a backend is there already, and serves
    jax.config.update("jax_platforms", "cpu")
  kind, _, shape = name.partition(":")
  if kind == "cpu":
    return cpus(int(shape))
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(f"--plan = {name!r}: the compiler of TPUs, libtpu, is not installed; a plan for {kind} needs it, "
                    f"one for cpu:N does not: python -m pip install {pin()!r}")
  for variable, value in ALONE.items():
    os.environ.setdefault(variable, value)


def pin() -> str:
  """The libtpu that this jax was made for."""
  found = [r.partition(";")[0].strip() for r in importlib.metadata.requires("jax") or () if r.startswith("libtpu")]
  return found[0] if found else "libtpu"


def cpus(count: int) -> None:
  """Sees to it that there are `count` virtual CPU devices. UserError where jax has fewer already."""
  flag, asked = "xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
  if flag in asked:                       # jax refuses to be told in two ways
    os.environ["XLA_FLAGS"] = re.sub(rf"{flag}=\d+", f"{flag}={count}", asked)
  else:
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", count)
  there = len(jax.devices("cpu"))
  if there < count:
    raise UserError(f"--plan = 'cpu:{count}': jax has {there} CPU devices in this process already, and can plan for up "
                    f"to cpu:{there}; start a new process for more")


def devices(name: str) -> list:
  """The devices of a topology: compile-only ones of a TPU slice, or virtual ones. After `ready`."""
  kind, _, shape = name.partition(":")
  if kind == "cpu":
    return jax.devices("cpu")[:int(shape)]
  from jax.experimental import topologies  # asks for the backend, which `ready` must come before
  alone = {"chips_per_host_bounds": [1, 1, 1]} if shape == "1x1" else {}
  return topologies.get_topology_desc(name, platform="tpu", **alone).devices


def memory(name: str) -> float | None:
  """Bytes that programs of a chip may have; None for CPU devices, which share what the machine has."""
  kind = name.partition(":")[0]
  return None if kind == "cpu" else CHIPS[kind].memory * GIB


def options(device: object, quick: bool = False) -> dict:
  """Options of the compiler: on CPUs, machine code is not optimised, which changes neither memory nor traffic. quick:
  nor is that of TPUs, whose compiler then keeps less in fast memory and lays out otherwise: peaks are some percent off.
  """
  if device.platform == "cpu":
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return {"exec_time_optimization_effort": -1.0} if quick else {}


@contextlib.contextmanager
def unkept():
  """Inside, no program is written to jax's cache on disk, from which those of an absent TPU cannot be read."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, 1e9)
  try:
    yield
  finally:
    jax.config.update(name, before)
