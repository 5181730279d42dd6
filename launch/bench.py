"""Speed and memory, beside a peer: the same work in one launch, alternated, as a ratio.

  python -m launch.bench all [--repeats=20] [--json=FILE]
  python -m launch.bench rollout | dpo | grpo | refl | compiles | depth | remat | judge | rewards | overlap | convs
  python -m launch.bench recipes
  python -m launch.bench gpu [--only=dpo_full,dpo_lora,rollout,grpo,grpo_fast,attention] [--size=sd35_medium]
    [--seconds=570]

  rollout    one jitted scan over denoising steps, a Python loop of our jitted step, and PyTorch
  dpo        one Flow-DPO update (forward of policy and reference on 2 B, backward, AdamW)
  grpo       one Flow-GRPO iteration: rollout with log-probabilities, then one update over all steps that have noise
  refl       bytes that the compiled gradient of ReFL and DRaFT-1 needs, by number of sampling steps
  compiles   programs compiled after the first iteration of a GRPO run: there must be none
  depth      seconds that compiling the gradient of DPO takes, and the length of its program, for 6 and for 24 blocks
  remat      bytes that a sample leaves for the backward pass of public networks, and operations, by what is recomputed
             (launch/kept.py); nothing is run
  judge      a small vision-language model that compares pictures, beside transformers (launch/judging.py)
  rewards    pictures that small CLIPs, ImageReward and DINOv2 judge, beside transformers (launch/scoring.py)
  overlap    an experience whose reward is waited for, while the next chunk is sampled or in turn (launch/overlap.py)
  convs      the gradient of a convolution in a loop over pieces, as of XLA's own and PyTorch's (launch/convs.py)
  recipes    where an experience of each recipe spends its time, and the most memory (launch/phases.py); no peer
  gpu        the same at the size of SD3.5 medium with random weights, DPO of all of it and of adapters, GRPO as
             published and as Flow-GRPO-Fast, and attention by every kernel; with the share of the chip that is used

The peer (launch/peer.py) is diffusers' SD3Transformer2DModel of the same sizes in a plain PyTorch loop; `all` takes the
fastest of its forms, in float32 on all cores, `gpu` shows eager and compiled, in bfloat16. FLOPs are counted on both
sides (torch's counter; ours on the jaxpr, without what remat does again). Times are medians, the ratio peer / ours has
a bootstrap interval; above 1 we are faster. Absolute times belong to the machine. Needs torch and diffusers; `gpu`
needs nothing beside these but jax, flax, optax and numpy, and shows our side also where these are not.
"""
import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable

import jax

from align.algorithms import dpo, refl
from launch import gpu, ours
from launch.timing import alternated, compared
from launch.work import SIZES, SMALL

# --- the runs --------------------------------------------------------------------------------------------------------


def beside(method: str, repeats: int) -> dict:
  """Ours and the fastest form of the peer, in turns in this process."""
  from launch import peer  # torch and diffusers
  mine = ours.WORKS[method](SMALL)
  form, run = peer.fastest(method, SMALL, lambda f: alternated({"": f}, 3)[""])
  sides = {"ours": mine.run, **({"loop of our steps": ours.looped(SMALL)} if method == "rollout" else {}),
           f"PyTorch {form}": run}
  counts = {"ours": {"flops": mine.flops}, f"PyTorch {form}": {"flops": peer.flops(method, SMALL)}}
  return compared(alternated(sides, repeats), counts)


def refl_memory(repeats: int) -> dict:
  """Temporaries of the gradient; the sampling steps before the differentiated one should cost nothing."""
  policy = ours.policy(SMALL, "ode")
  params, batch = ours.roles_of(SMALL, policy)["base"], ours.batch_of(SMALL, policy, 8, 1)
  out = {}
  for mode in ("refl", "draft"):
    for steps in (5, 10, 20, 40):
      method = refl.make(policy, ours.bright(), mode=mode, steps=steps)
      f = lambda own, m=method: m.loss({"base": params, "policy": own}, batch, jax.random.key(0))[0]
      memory = jax.jit(jax.grad(f)).lower(params).compile().memory_analysis()
      out[f"{mode}, {steps} steps"] = {"bytes": memory.temp_size_in_bytes}
  return out


def compiles(repeats: int) -> dict:
  """Programs compiled by runs of 1 and of 4 iterations of GRPO through align.main."""
  from align import main as runs  # and all that a run needs
  config = lambda steps: {
    "task": "train", "steps": steps, "batch": 4, "group": 4, "algorithm": {"name": "grpo", "clip": 1e-3, "steps": 4},
    "policy": {"name": "diffusion", "net": {"name": "unet", "variant": "tiny"}, "text": {"name": "text", "width": 16},
               "process": "flow", "kernel": "flow_sde", "size": 16, "steps": 4, "length": 20},
    "reward": {"name": "scenes"}, "data": {"name": "scenes_prompts", "split": "train", "count": 64}}
  seen = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: seen.append(name) if name == "/jax/core/compile/backend_compile_duration" else None)
  count = {}
  for steps in (1, 4):
    seen.clear()
    with tempfile.TemporaryDirectory() as folder:
      runs.run(config(steps), folder)
    count[steps] = len(seen)
  return {"1 iteration": {"programs": count[1]}, "4 iterations": {"programs": count[4]}}


def by_depth(repeats: int) -> dict:
  """The gradient of DPO, compiled anew each time; the depths in turns."""
  def lowered(depth):
    work = SMALL._replace(depth=depth, remat=True)
    policy = ours.policy(work, "ode")
    roles = jax.eval_shape(lambda: ours.roles_of(work, policy))
    batch, loss = ours.batch_of(work, policy, work.pairs, 1), dpo.make(policy).loss
    gradient = lambda own, base: jax.grad(lambda p: loss({"policy": p, "base": base}, batch, jax.random.key(0))[0])(own)
    return jax.jit(gradient).lower(roles["policy"], roles["base"])

  texts = {depth: len(lowered(depth).as_text()) for depth in (6, 24)}
  times = alternated({depth: lambda d=depth: lowered(d).compile() for depth in texts}, min(repeats, 5))
  out = compared({f"{depth} blocks": t for depth, t in times.items()}, {})
  return {f"{depth} blocks": {**out[f"{depth} blocks"], "characters": length} for depth, length in texts.items()}


def elsewhere(name: str) -> Callable:
  """The run of another module, imported when it is asked for: `gpu` does without most of what they need."""
  return lambda repeats: importlib.import_module(f"launch.{name}").run(repeats)


RUNS = {"rollout": lambda repeats: beside("rollout", repeats), "dpo": lambda repeats: beside("dpo", repeats),
        "grpo": lambda repeats: beside("grpo", repeats), "refl": refl_memory, "compiles": compiles, "depth": by_depth,
        "remat": elsewhere("kept"), "judge": elsewhere("judging"), "rewards": elsewhere("scoring"),
        "overlap": elsewhere("overlap"), "convs": elsewhere("convs"), "recipes": elsewhere("phases")}


# --- the command -----------------------------------------------------------------------------------------------------


COUNTED = ("bytes", "kept bytes", "programs", "characters")


def printed(name: str, result: dict) -> None:
  print(f"\n{name}")
  for side, row in result.items():
    cells = []
    if "seconds" in row:
      cells += [f"{1000 * row['seconds']:9.1f} ms +- {1000 * row['spread']:.1f}"]
    if row.get("flops"):
      cells += [f"{row['flops'] / 1e9:8.2f} GFLOP", f"{row['flops'] / row['seconds'] / 1e9:6.1f} GFLOP/s"]
    if "share" in row:
      cells += [f"{100 * row['share']:.1f} % of {gpu.PEAK / 1e12:.0f} TFLOP/s"]
    if row.get("memory"):
      cells += [f"{row['memory'] / 2 ** 30:.2f} GiB"]
    if "times" in row:
      cells += [f"{row['times']:.3f} times the operations of False"]
    if "ratio" in row:
      cells += [f"{row['ratio']:.2f} times ours ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})"]
    cells += [f"{row[k]:,} {k}" for k in row if k in COUNTED or k.endswith(" a second")]
    cells += [row["failed"]] if "failed" in row else []
    print(f"  {side:24s} " + "  ".join(cells), flush=True)


def written(file: str) -> dict:
  """The numbers that a file holds already. ValueError where they are of another machine, or none."""
  if not os.path.exists(file):
    return {}
  with open(file) as opened:
    try:
      found = json.load(opened)
    except json.JSONDecodeError as error:
      raise ValueError(f"--json = {file!r} is there but holds no numbers ({error}); give another file") from error
  kept = found.pop("machine", None) if isinstance(found, dict) else None
  if kept != machine():
    raise ValueError(f"--json = {file!r} holds numbers of another machine, {kept}, and this is {machine()}; give "
                     "another file")
  return found


def write(file: str | None, results: dict) -> None:
  if file:
    with open(file, "w") as opened:
      json.dump({"machine": machine(), **results}, opened, indent=1)


def machine() -> dict:
  found = {name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "diffusers", "numpy")
           if importlib.util.find_spec(name)}
  return {"cores": os.cpu_count(), **found}


def main(argv: list | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m launch.bench", description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=[*RUNS, "all", "gpu"])
  parser.add_argument("--repeats", type=int, help="timed repeats of each side; else 20, of gpu as launch/work.py says")
  parser.add_argument("--only", help=f"of gpu: some of {','.join(gpu.NAMES)}")
  parser.add_argument("--size", choices=list(SIZES), default="sd35_medium", help="of gpu")
  parser.add_argument("--seconds", type=float, default=570, help="of gpu: for each name; what is not done then is left")
  parser.add_argument("--json", help="file for the numbers, which are added to those that it has")
  parser.add_argument("--anyway", action="store_true", help="also on a loaded machine")
  args = parser.parse_args(argv)
  only = args.only.split(",") if args.only else list(gpu.NAMES)
  unknown = sorted(set(only) - set(gpu.NAMES))
  if unknown:
    parser.error(f"--only = {args.only!r}: {', '.join(unknown)} is not one of {', '.join(gpu.NAMES)}; choose of them")
  load, cores = os.getloadavg()[0], os.cpu_count()
  if load > 0.5 * cores and not args.anyway:
    print(f"error: the load is {load:.1f} on {cores} cores, and times would mean little; it must be below "
          f"{0.5 * cores:.1f}: wait, or say --anyway", file=sys.stderr)
    return 2
  try:
    results = written(args.json) if args.json else {}
  except ValueError as error:
    parser.error(str(error))
  for name in only if args.what == "gpu" else RUNS if args.what == "all" else [args.what]:
    parts = (gpu.run(name, args.size, args.repeats, args.seconds) if args.what == "gpu" else
             [RUNS[name](args.repeats or gpu.REPEATS)])
    for results[name] in parts:
      write(args.json, results)
    printed(name, results[name])
  return 0


if __name__ == "__main__":
  sys.exit(main())
