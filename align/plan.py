"""What a run would need on devices that are not here: --plan=v5e:4x4 compiles its own programs for them, and --plan=v5e
looks for the smallest slice on which they fit.

Nothing is allocated, and neither weights nor data are needed: parameters, batches and what passes between programs are
shapes with shardings. The programs are those of train.compile_, with their donation and their micro batches, in the
order in which an experience and an update run them. Left out: evaluation while training, rewards on the host, followers
that move with experiences, the loading of weights, and how long anything takes.
"""
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from align import assemble, chunks, costs, plan_text, shard, standin, topology, train, tree
from align import config as configs
from align import evaluate as evaluation
from align.algorithms.base import sample_keys
from align.build import UserError
from align.core import State
from diffusion.mesh import batch_sharding

REMAT = ("dots_with_no_batch_dims_saveable", "attention", True)  # ways of layers.remat, the cheapest first
UPDATE = re.compile(r"config\.(micro|policy\.(net\.)?remat)=")   # remedies that leave the other programs as they are
LORA = {"rank": 32, "alpha": 64.0, "targets": "^net/.*kernel$"}  # a remedy's; published for flows of 2 to 3 billion


class Run(NamedTuple):
  """A run as shapes with shardings."""
  parts: assemble.Parts
  where: assemble.Place
  state: State
  frozen: dict
  arrays: dict          # a batch, before its frozen encoders did their part
  do: train.Compiled
  most: int             # pieces of an update that leave each device something of all of them
  options: dict         # of the compiler


class Program(NamedTuple):
  """One compiled program. Bytes are those of a device; flops those of all devices.

  peak: while it runs, with all that stays where it is meanwhile. aliased: of its results, what takes the place of its
  arguments. wanted: where it does not fit, what the compiler says it needed (0: it does not say), else None.
  """
  name: str
  flops: int
  temporaries: int
  peak: int
  written: int
  aliased: int
  traffic: tuple        # costs.Collective
  copies: tuple         # the same, of arrays that are copied whole on the way from one layout to another
  seconds: float
  wanted: int | None


class Plan(NamedTuple):
  """held: {what: (bytes of a device, bytes over all)}. limit: bytes of a device that programs may have, or None."""
  topology: str
  devices: int
  mesh: dict
  limit: int | None
  held: dict
  programs: list
  donated: float | None  # share of the state that an update writes in place, None where none was compiled
  most: int             # see Run

  def stays(self) -> int:
    """Bytes that a device holds whatever runs."""
    return sum(device for device, _ in self.held.values())

  def fits(self) -> bool:
    return self.limit is None or self.stays() <= self.limit and all(fits(p, self.limit) for p in self.programs)


def fits(program: Program, limit: float | None) -> bool:
  return program.wanted is None and (limit is None or program.peak <= limit)


# --- a run as shapes -------------------------------------------------------------------------------------------------


def laid(shapes: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs with shardings; `shardings` is a tree like `shapes`, or one for all."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, shapes)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)


def share(shapes: Any) -> int:
  """Bytes that a device holds of laid out shapes."""
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * width(a) for a in jax.tree.leaves(shapes))


def whole(shapes: Any) -> int:
  return sum(math.prod(a.shape) * width(a) for a in jax.tree.leaves(shapes))


def width(leaf: Any) -> int:
  return 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize


def survey(config: dict, devices: list, quick: bool = False) -> Run:
  """The run of a resolved config over `devices`. UserError for what cannot be."""
  parts, where = assemble.prospect({**config, "mesh": {**(config.get("mesh") or {}), "devices": devices}})
  moving, frozen = assemble.changing(parts, where.trained, laid(where.shapes, where.shardings))
  chosen, _ = tree.partition(moving, where.trained)
  opt = jax.eval_shape(parts.optimizer.tx.init, chosen)
  opt = laid(opt, shard.moments(opt, where.shapes, where.shardings, parts.mesh))
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=shard.replicated(parts.mesh))
  arrays = laid(standin.arrays(parts, config), batch_sharding(parts.mesh))
  memory = memory_of(parts, tree.merge(frozen, moving), arrays)
  state = State(step, moving, opt, memory)
  samples, each = train.check_micro(parts, memory, config["micro"])
  most = max(samples // (parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]), 1) * each
  pieces = chunks.count(parts.reward, config.get("chunks"), config["batch"], config["group"], parts.mesh)
  do = train.compile_(parts, where, config["micro"], state, config["group"], pieces)
  return Run(parts, where, state, frozen, arrays, do, most, topology.options(devices[0], quick))


def memory_of(parts: assemble.Parts, params: dict, arrays: dict) -> Any:
  """What `select` keeps of an experience, as train.empty_memory lays it out."""
  shapes = train.memory_shapes(parts, params, arrays)
  return laid(shapes, jax.tree.map(lambda a: shard.batch_or_copy(a.shape, parts.mesh), shapes))


def held(run: Run) -> dict:
  """{what: shapes} of everything that stays on the devices from one update to the next, and of a batch."""
  chosen, others = tree.partition(run.state.params, run.where.trained)
  out = {f"trained {role}": leaves for role, leaves in chosen.items()} | {"optimiser": run.state.opt}
  out |= {f"follower {role}": leaves for role, leaves in others.items()}
  for role, networks in run.frozen.items():
    out |= {f"frozen {role}/{name}": leaves for name, leaves in networks.items()}
  return out | {"experience": run.state.memory, "batch": run.arrays}


# --- its programs ----------------------------------------------------------------------------------------------------


def programs(run: Run, names: tuple = ()) -> Any:
  """Yields the Programs of a run in the order in which they run; `names`: () for all, or ("update",) with or without
  the first few of the others, whose results the next one needs."""
  state, frozen, mesh, do = run.state, run.frozen, run.parts.mesh, run.do
  params, made = tree.merge(frozen, state.params), {"batch": run.arrays}
  key, number = (jax.ShapeDtypeStruct((), kind, sharding=shard.replicated(mesh))
                 for kind in (jax.random.key(0).dtype, jnp.int32))
  keys = laid(jax.eval_shape(sample_keys, key, run.arrays), batch_sharding(mesh))
  on_host, several = run.parts.reward and run.parts.reward.where == "host", do.rollout and do.shape[1] > 1
  part = lambda: made.get("cut", (made["embed"], keys))  # one chunk, where an experience comes in several
  chain = {
    "embed": (do.embed, lambda: (params, made.pop("batch"), keys)),
    "cut": (several and do.cut, lambda: ((made["embed"], keys), 0)),
    "rollout": (do.rollout, lambda: (params, *part())),
    "decode": (do.rollout and do.decode, lambda: (params, made["rollout"].output)),
    "score": (do.rollout and not on_host and do.score, lambda: (params, part()[0], made["decode"], part()[1])),
    "whole": (several and do.whole, lambda: ([made["rollout"]] * do.shape[1],)),
    "select": (do.select, lambda: (state, frozen, made.get("whole", made.get("rollout")), judged(run, made),
                                   made["embed"], key)),
    "update": (do.update, lambda: (state, frozen, number, key, key)),
  }
  for name, (function, arguments) in chain.items():
    if function and (not names or name in names):
      given = arguments()
      beside = (state, frozen) if name == "update" else (state, frozen, made, given)
      program, made[name] = compiled(name, function, given, resident(beside), mesh, run.options)
      yield program


def judged(run: Run, made: dict) -> Any:
  """Scores, None where nothing is judged; those of the host come back over the batch's axes."""
  if "rollout" not in made:
    return None
  blank = jax.eval_shape(lambda: evaluation.blank_scores(run.arrays["prompt_id"].shape[0]))
  return made["score"] if "score" in made and run.do.shape[1] == 1 else laid(blank, batch_sharding(run.parts.mesh))


def resident(*trees: Any) -> int:
  """Bytes that a device holds of trees, each leaf once."""
  return share(list({id(leaf): leaf for leaf in jax.tree.leaves(trees)}.values()))


def compiled(name: str, function: Any, given: tuple, alive: int, mesh: Any, options: dict) -> tuple[Program, Any]:
  """A Program and what it returns. alive: bytes that a device holds while it runs, before what it makes."""
  began = time.monotonic()
  traced = function.trace(*given)
  count, result, lacks = costs.flops(traced.jaxpr), None, None
  try:
    with costs.overheard() as copies:
      result = traced.lower().compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    lacks = costs.wanted(str(error))
    if lacks is None:
      raise
  seconds = time.monotonic() - began
  if result is None:
    out = laid(traced.out_info, jax.tree.map(lambda a: shard.batch_or_copy(a.shape, mesh), traced.out_info))
    return Program(name, count, 0, 0, 0, 0, (), tuple(copies), seconds, lacks), out
  size = result.memory_analysis()
  padding = max(size.argument_size_in_bytes - used(traced, given), 0)
  peak = alive + padding + size.temp_size_in_bytes + size.output_size_in_bytes - size.alias_size_in_bytes
  traffic = tuple(costs.collectives(result.as_text()))
  program = Program(name, count, size.temp_size_in_bytes, peak, size.output_size_in_bytes, size.alias_size_in_bytes,
                    traffic, tuple(copies), seconds, None)
  return program, laid(traced.out_info, result.output_shardings)


def used(traced: Any, given: tuple) -> int:
  """Bytes that a device holds of the arguments that a program looks at, without the padding of TPU layouts."""
  inner = traced.jaxpr.jaxpr
  seen = {id(v) for eqn in inner.eqns for v in eqn.invars} | {id(v) for v in inner.outvars}
  leaves = jax.tree.leaves(given)
  return share([leaf for variable, leaf in zip(inner.invars, leaves, strict=True) if id(variable) in seen])


def plan(config: dict, name: str, names: tuple = (), say: Any = None, brief: bool = False,
         quick: bool = False) -> Plan:
  """The plan of a resolved config on a topology (after topology.ready). say: called with each Program when it is done.
  brief: nothing is compiled any more once something does not fit. quick: see topology.options."""
  devices = topology.devices(name)
  with standin.opened(config) as config, topology.unkept():
    run = survey({k: v for k, v in config.items() if k != "task"}, devices, quick)
    parts = {what: (share(shapes), whole(shapes)) for what, shapes in held(run).items()}
    made = Plan(name, len(devices), dict(run.parts.mesh.shape), topology.memory(name), parts, [], None, run.most)
    left = iter(()) if brief and not made.fits() else programs(run, names)
    for program in left:
      made.programs.append(program)
      say and say(program)
      if brief and not made.fits():
        return made
  update = [p for p in made.programs[-1:] if p.wanted is None]  # which returns the state, and scalars
  return made._replace(donated=update[0].aliased / max(update[0].written, 1)) if update else made


def smallest(config: dict, kind: str, say: Any = None, quick: bool = False) -> Plan:
  """The plan on the smallest slice of a kind of TPU on which a config fits, after a line for each that was tried."""
  for shape in topology.CHIPS[kind].slices:
    try:
      found = plan(config, f"{kind}:{shape}", (), say, brief=True, quick=quick)
    except UserError as error:  # such as a batch that does not divide
      print(f"{kind}:{shape}: {error}", flush=True)
      continue
    if found.fits():
      return found
    print(plan_text.short(found), flush=True)
  raise UserError(f"--plan = {kind!r}: no slice of {kind} is large enough; what is shown above says by how much")


# --- what would make it fit ------------------------------------------------------------------------------------------


def remedies(config: dict, failed: Plan) -> list[list[str]]:
  """Overrides to try in turn: less is kept for gradients, more micro batches, parameters cut over all devices, adapters
  instead of the whole; first each alone, then more and more of them together."""
  less = remat(config)
  single = [r for r in (*less[-1:], micro(config, failed), mesh(failed), lora(config)) if r]
  together = [sum(single[:n], []) for n in range(2, len(single) + 1)]
  return less[:-1] + single + together


def remat(config: dict) -> list[list[str]]:
  """Each way that recomputes more than the config does, the cheapest first."""
  policy = config.get("policy") or {}
  at = "policy" if "remat" in policy else "policy.net" if "remat" in (policy.get("net") or {}) else None
  now = at and (policy if at == "policy" else policy["net"])["remat"]
  more = REMAT[REMAT.index(now) + 1:] if now in REMAT else REMAT
  return [[f"config.{at}.remat={way}"] for way in more] if at else []


def micro(config: dict, failed: Plan) -> list[str]:
  """Pieces of one sample (or pair, or decision) a device: the fewest temporaries that accumulation can give."""
  return [f"config.micro={failed.most}"] if failed.most > config["micro"] else []


def mesh(failed: Plan) -> list[str]:
  cut = failed.mesh["fsdp"] * failed.mesh["model"]
  return ["config.mesh.data=1", "config.mesh.fsdp=-1"] if cut < failed.devices else []


def lora(config: dict) -> list[str]:
  is_public = (config.get("policy") or {}).get("name") == "public" and not config.get("lora")
  return [*(f"config.lora.{k}={v}" for k, v in LORA.items()), "config.trained=^policy/lora/"] if is_public else []


def remedy(config: dict, failed: Plan, say: Any = None, quick: bool = False) -> tuple[list, Plan] | None:
  """The first overrides under which a run fits, and its plan; None where none of them helps. What they leave as it is,
  and fits, is not compiled again."""
  others = [p for p in failed.programs if p.name != "update"]
  for flags in remedies(config, failed):
    alone = all(map(UPDATE.match, flags)) and all(fits(p, failed.limit) for p in others)
    found = plan(configs.override(config, flags), failed.topology, ("update",) if alone else (), say, brief=True,
                 quick=quick)
    found = found._replace(programs=others + found.programs) if alone else found
    if found.fits():
      return flags, found
  return None


# --- the command -----------------------------------------------------------------------------------------------------


def show(config: dict, name: str, source: dict, file: str | None = None, quick: bool = False) -> None:
  """Prints the plans of the training runs of a resolved config, what would help where one does not fit, and writes
  their numbers to `file`. UserError where one does not fit, after all that. quick: see topology.options."""
  runs = config["runs"] if isinstance(config.get("runs"), dict) else {"": config}
  if not any(run["task"] == "train" for run in runs.values()):
    raise UserError(f"--plan = {name!r}: config.task = {config['task']!r} has no run whose task is 'train', and only "
                    "such runs are planned; give the config of one")
  records, lacking = [], []
  for run_name, run in runs.items():
    if run["task"] == "train":
      found = (smallest(run, name, progress, quick) if name in topology.CHIPS else
               plan(run, name, (), progress, quick=quick))
      said = plan_text.text(found, None if found.fits() else remedy(run, found, progress, quick))
      print(f"=== {run_name}\n\n{said}\n" if run_name else said, flush=True)
      records.append({**source, **({"run": run_name} if run_name else {}), **({"quick": True} if quick else {}),
                      **plan_text.record(found)})
      lacking += [] if found.fits() else [run_name or source["config"]]
  if file:
    Path(file).write_text(json.dumps(records, indent=1) + "\n")
  if lacking:
    raise UserError(f"--plan = {name!r}: {', '.join(lacking)} does not fit; what is shown above says by how much")


def progress(program: Program) -> None:
  print(f"{program.name}: {program.seconds:.0f} s", file=sys.stderr, flush=True)
