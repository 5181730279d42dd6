"""Speed and memory, beside a peer: the same work in one launch, alternated, as a ratio.

  python -m launch.bench all [--repeats=20] [--json=FILE]
  python -m launch.bench rollout | dpo | grpo | refl | compiles

  rollout    one jitted scan over denoising steps, a Python loop of our jitted step, and PyTorch
  dpo        one Flow-DPO update (forward of policy and reference on 2 B, backward, AdamW)
  grpo       one Flow-GRPO iteration: rollout with log-probabilities, then one update over all steps that have noise
  refl       bytes that the compiled gradient of ReFL and DRaFT-1 needs, by number of sampling steps
  compiles   programs compiled after the first iteration of a GRPO run: there must be none

The peer is diffusers' SD3Transformer2DModel of the same sizes in a plain PyTorch loop, in the fastest of three forms:
eager, channels-last, torch.compile. Both sides use all cores and float32, and their FLOPs are counted (torch's counter;
ours on the jaxpr, scan bodies multiplied). Times are medians, the ratio peer / ours has a bootstrap interval; above 1
we are faster. Absolute times belong to the machine. Needs the extra `test` for PyTorch and diffusers.
"""
import argparse
import functools
import json
import math
import os
import statistics
import sys
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from align import main as runs
from align import tree
from align.algorithms import base, dpo, grpo, refl
from align.core import State
from align.policies import diffusion
from align.train import make_train_step
from diffusion import process
from diffusion.nets import mmdit
from rewards.core import Reward, Scores

SIZE, CHANNELS, WIDTH, DEPTH, HEADS, TOKENS, CONTEXT, POOLED = 16, 4, 128, 4, 4, 32, 64, 48
STEPS, GROUP, PROMPTS, PAIRS = 4, 4, 4, 4


class Given(nn.Module):
  """In place of a text encoder: a table, so that both sides do the same work."""

  @nn.compact
  def __call__(self, tokens, mask):
    table = self.param("table", nn.initializers.normal(1.0), (TOKENS, CONTEXT))
    context = jnp.broadcast_to(table, (tokens.shape[0], TOKENS, CONTEXT))
    return context, jnp.broadcast_to(table[:1, :POOLED], (tokens.shape[0], POOLED))


def network():
  return mmdit.make("sd3_medium", channels=CHANNELS, width=WIDTH, depth=DEPTH, heads=HEADS, table=SIZE, base=SIZE // 2)


def our_policy(kernel="flow_sde"):
  return diffusion.make(network(), Given(), process.flow(), kernel, length=TOKENS, size=SIZE, channels=CHANNELS,
                        steps=STEPS, law="uniform")


def bright() -> Reward:
  score = lambda view, batch, media, keys: Scores(media.mean((1, 2, 3)), {}, jnp.ones(len(media), bool))
  return Reward(lambda key: {}, lambda batch: batch, score, "gradient", None)


def our_batch(policy, count: int, group: int) -> dict:
  cond = policy.prepare({"prompt": ["a picture"] * count})["cond"]
  rng = np.random.default_rng(0)
  media = {name: rng.normal(size=(count, SIZE, SIZE, CHANNELS)).astype(np.float32) for name in ("x", "win", "lose")}
  ids = {"prompt_id": np.arange(count, dtype=np.int32) // group, "sample_id": np.arange(count, dtype=np.int32) % group,
         "experience": np.zeros(count, np.int32)}
  return jax.tree.map(jnp.asarray, {"cond": cond, **media, **ids})


def shaken(policy) -> dict:
  """Random parameters everywhere: zero-initialised layers would be cheaper to multiply on some machines."""
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  return jax.tree.map(lambda a: a + 0.02 * jax.random.normal(next(keys), a.shape), policy.init(jax.random.key(0)))


# --- counting --------------------------------------------------------------------------------------------------------


def flops(f, *args) -> float:
  """Multiplications and additions of matrix products and convolutions; a scan's body counts once a step."""
  return counted(jax.make_jaxpr(f)(*args).jaxpr)


def counted(jaxpr) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    name, out = eqn.primitive.name, eqn.outvars[0].aval if eqn.outvars else None
    if name == "dot_general":
      (inside, _), _ = eqn.params["dimension_numbers"]
      total += 2 * math.prod(out.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in inside)
    elif name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      features = eqn.params["dimension_numbers"].rhs_spec[0]
      total += 2 * math.prod(out.shape) * math.prod(kernel) / kernel[features]
    times = eqn.params.get("length", 1) if name == "scan" else 1
    inner = [counted(sub) for value in eqn.params.values() for sub in jaxprs(value)]
    total += max(inner) if name == "cond" else times * sum(inner)
  return total


def jaxprs(value):
  """The jaxprs in a parameter of an equation."""
  if hasattr(value, "jaxpr"):
    return [value.jaxpr]
  if hasattr(value, "eqns"):
    return [value]
  return [sub for one in value for sub in jaxprs(one)] if isinstance(value, (list, tuple)) else []


# --- timing ----------------------------------------------------------------------------------------------------------


def alternated(sides: dict, repeats: int) -> dict:
  """{name: [seconds]} of each side's function, taken in turns after one warm-up."""
  for f in sides.values():
    f()
  times = {name: [] for name in sides}
  for _ in range(repeats):
    for name, f in sides.items():
      began = time.perf_counter()
      f()
      times[name].append(time.perf_counter() - began)
  return times


def ratio(peer: list, ours: list) -> dict:
  """Median of peer / ours with the 95 % bootstrap interval over paired repeats."""
  pairs, rng = np.array([peer, ours]), np.random.default_rng(0)
  index = rng.integers(0, pairs.shape[1], (2000, pairs.shape[1]))
  medians = np.median(pairs[:, index], axis=-1)
  low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
  return {"ratio": statistics.median(peer) / statistics.median(ours), "interval": [float(low), float(high)]}


def compared(sides: dict, repeats: int, counts: dict) -> dict:
  """Every side against "ours"."""
  times = alternated(sides, repeats)
  out = {name: {"seconds": statistics.median(t), "spread": float(np.quantile(t, 0.75) - np.quantile(t, 0.25)),
                "flops": counts.get(name)} for name, t in times.items()}
  for name, t in times.items():
    if name != "ours":
      out[name] |= ratio(t, times["ours"])
  return out


def fastest(forms: dict, repeats: int = 3) -> tuple:
  """(name, function) of the fastest form; one that cannot run here is left out, with its reason on stderr."""
  able = {}
  for name, f in forms.items():
    try:
      f()
      able[name] = f
    except Exception as error:  # whatever a compiler may raise: the other forms are still a peer
      print(f"peer {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
  times = {name: min(alternated({name: f}, repeats)[name]) for name, f in able.items()}
  best = min(times, key=times.get)
  return best, able[best]


# --- the peer --------------------------------------------------------------------------------------------------------


def peer_model(form: str):
  import torch
  from diffusers import SD3Transformer2DModel
  torch.manual_seed(0)
  model = SD3Transformer2DModel(
    sample_size=SIZE, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=DEPTH,
    attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=CONTEXT,
    caption_projection_dim=WIDTH, pooled_projection_dim=POOLED, pos_embed_max_size=SIZE)
  if form == "channels-last":
    model = model.to(memory_format=torch.channels_last)
  return torch.compile(model) if form == "compiled" else model


class Peer:
  """A PyTorch loop over a model in one form, as the released trainers write it."""

  def __init__(self, form: str, batch: int):
    import torch
    self.torch, self.model, self.reference = torch, peer_model(form), peer_model(form)
    self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
    self.layout = torch.channels_last if form == "channels-last" else torch.contiguous_format
    self.context, self.pooled = torch.randn(batch, TOKENS, CONTEXT), torch.randn(batch, POOLED)
    self.batch = batch

  def noise(self, count):
    return self.torch.randn(count, CHANNELS, SIZE, SIZE).contiguous(memory_format=self.layout)

  def predict(self, model, x, t):
    many = len(x) // self.batch
    return model(x, self.context.repeat(many, 1, 1), self.pooled.repeat(many, 1), 1000 * t, return_dict=False)[0]

  def dpo(self, beta=100.0):
    torch = self.torch
    x, noise = self.noise(2 * self.batch), self.noise(self.batch).repeat(2, 1, 1, 1)
    t = torch.rand(self.batch).repeat(2)
    level = t.view(-1, 1, 1, 1)
    xt, target = (1 - level) * x + level * noise, noise - x
    error = lambda y: ((y - target) ** 2).mean((1, 2, 3))
    with torch.no_grad():
      before = error(self.predict(self.reference, xt, t))
    win, lose = (error(self.predict(self.model, xt, t)) - before).chunk(2)
    loss = -torch.nn.functional.logsigmoid(-0.5 * beta * (win - lose)).mean()
    self.update(loss)

  def update(self, loss):
    self.opt.zero_grad()
    loss.backward()
    self.opt.step()

  def moved(self, x, v, t, t_next, eta=0.7):
    """Flow-SDE: mean and std of the step."""
    dt = t_next - t
    g = eta * math.sqrt(t / (1 - (t_next if t >= 1 else t))) if t_next > 0 else 0.0
    return x * (1 + g * g / (2 * t) * dt) + v * (1 + g * g * (1 - t) / (2 * t)) * dt, g * math.sqrt(-dt)

  def log_prob(self, nxt, mean, std):
    return (-(nxt - mean) ** 2 / (2 * std ** 2) - math.log(std) - 0.5 * math.log(2 * math.pi)).mean((1, 2, 3))

  def rollout(self):
    times, x, kept = np.linspace(1, 0, STEPS + 1), self.noise(self.batch), []
    with self.torch.no_grad():
      for t, t_next in zip(times[:-1], times[1:], strict=True):
        v = self.predict(self.model, x, self.torch.full((self.batch,), float(t)))
        mean, std = self.moved(x, v, float(t), float(t_next))
        nxt = mean + std * self.torch.randn_like(mean)
        if std > 0:
          kept.append((x, nxt, float(t), float(t_next), self.log_prob(nxt, mean, std)))
        x = nxt
    return x, kept

  def grpo(self):
    torch = self.torch
    x, kept = self.rollout()
    score = x.mean((1, 2, 3)).view(-1, GROUP)
    a = ((score - score.mean(1, keepdim=True)) / (score.std() + 1e-4)).view(-1)
    self.opt.zero_grad()
    for x, nxt, t, t_next, old in kept:
      v = self.predict(self.model, x, torch.full((self.batch,), t))
      ratio = torch.exp(self.log_prob(nxt, *self.moved(x, v, t, t_next)) - old)
      loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean() / len(kept)
      loss.backward()
    self.opt.step()


FORMS = ("eager", "channels-last", "compiled")


def peer_flops(method: str, batch: int) -> float:
  """Counted with plain attention: torch's counter does not know the fused kernel of CPUs."""
  from torch.nn.attention import SDPBackend, sdpa_kernel
  from torch.utils.flop_counter import FlopCounterMode
  with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
    getattr(Peer("eager", batch), method)()
  return float(counter.get_total_flops())


def peer(method: str, batch: int) -> tuple:
  """(form, function, FLOPs) of the fastest form of the peer's method."""
  form, f = fastest({form: getattr(Peer(form, batch), method) for form in FORMS})
  return form, f, peer_flops(method, batch)


# --- the runs --------------------------------------------------------------------------------------------------------


def rollout(repeats: int) -> dict:
  policy, count = our_policy(), GROUP * PROMPTS
  params, batch = shaken(policy), our_batch(policy, count, GROUP)
  keys, times = base.sample_keys(jax.random.key(2), batch), np.asarray(policy.process.times(STEPS))
  sample = lambda params: policy.sample(params, batch["cond"], keys, steps=STEPS, eta=0.7, keep=jnp.arange(STEPS - 1))
  whole, step = jax.jit(sample), jax.jit(policy.step)

  def looped():
    x, kept = jax.random.normal(jax.random.key(3), batch["x"].shape), []
    for i in range(STEPS):
      out = step(params, batch["cond"], x, times[i], times[i + 1], keys, 0.7)
      kept.append((x, out))
      x = out.x
    return jax.block_until_ready(kept)
  form, other, count_peer = peer("rollout", count)
  sides = {"ours": lambda: jax.block_until_ready(whole(params)), "loop of our steps": looped, f"PyTorch {form}": other}
  return compared(sides, repeats, {"ours": flops(sample, params), f"PyTorch {form}": count_peer})


def updater(loss, params, tx):
  """(step function that keeps its own state, the pure update) of one training step."""
  state = State(jnp.int32(0), {"policy": params["policy"]}, tx.init({"policy": params["policy"]}), ())
  frozen = {"base": params["base"]}
  pure = make_train_step(loss, tx)
  jitted, held = jax.jit(pure, donate_argnums=0), [jax.tree.map(jnp.copy, state)]

  def step(batch, key):
    held[0], metrics = jitted(held[0], frozen, batch, key)
    return jax.block_until_ready(metrics["loss"])
  return step, functools.partial(pure, state, frozen)


def dpo_step(repeats: int) -> dict:
  policy = our_policy("ode")
  params, batch, key = shaken(policy), our_batch(policy, PAIRS, 1), jax.random.key(4)
  roles = {"base": params, "policy": params}
  step, pure = updater(dpo.make(policy).loss, roles, optax.adamw(1e-5))
  form, other, count_peer = peer("dpo", PAIRS)
  sides = {"ours": lambda: step(batch, key), f"PyTorch {form}": other}
  return compared(sides, repeats, {"ours": flops(pure, batch, key), f"PyTorch {form}": count_peer})


def grpo_iteration(repeats: int) -> dict:
  policy, count = our_policy(), GROUP * PROMPTS
  params, batch, key = shaken(policy), our_batch(policy, count, GROUP), jax.random.key(5)
  roles = {"base": params, "policy": params}
  method, judge = grpo.make(policy, bright(), group=GROUP, steps=STEPS), bright()
  step, pure = updater(method.loss, roles, optax.adamw(1e-5))

  def experience(roles):
    drawn = method.rollout(roles, batch, base.sample_keys(key, batch))
    scores = judge.score({}, batch, policy.decode(tree.view(roles, "policy"), drawn.output), None)
    return method.draw(method.select(roles, (), drawn, scores, batch, key)[0], 0, key)
  gathered = jax.jit(experience)
  form, other, count_peer = peer("grpo", count)
  memory = gathered(roles)
  sides = {"ours": lambda: step(gathered(roles), key), f"PyTorch {form}": other}
  ours = flops(experience, roles) + flops(pure, memory, key)
  return compared(sides, repeats, {"ours": ours, f"PyTorch {form}": count_peer})


def refl_memory(repeats: int) -> dict:
  """Temporaries of the gradient; the sampling steps before the differentiated one should cost nothing."""
  policy = our_policy("ode")
  params, batch = shaken(policy), our_batch(policy, 8, 1)
  out = {}
  for mode in ("refl", "draft"):
    for steps in (5, 10, 20, 40):
      method = refl.make(policy, bright(), mode=mode, steps=steps)
      f = lambda own, m=method: m.loss({"base": params, "policy": own}, batch, jax.random.key(0))[0]
      memory = jax.jit(jax.grad(f)).lower(params).compile().memory_analysis()
      out[f"{mode}, {steps} steps"] = {"bytes": memory.temp_size_in_bytes}
  return out


def compiles(repeats: int) -> dict:
  """Programs compiled by runs of 1 and of 4 iterations of GRPO through align.main."""
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


RUNS = {"rollout": rollout, "dpo": dpo_step, "grpo": grpo_iteration, "refl": refl_memory, "compiles": compiles}


def printed(name: str, result: dict) -> None:
  print(f"\n{name}")
  for side, row in result.items():
    cells = []
    if "seconds" in row:
      cells += [f"{1000 * row['seconds']:9.1f} ms +- {1000 * row['spread']:.1f}"]
    if row.get("flops"):
      cells += [f"{row['flops'] / 1e9:8.2f} GFLOP", f"{row['flops'] / row['seconds'] / 1e9:6.1f} GFLOP/s"]
    if "ratio" in row:
      cells += [f"{row['ratio']:.2f} times ours ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})"]
    cells += [f"{row[k]:,} {k}" for k in ("bytes", "programs") if k in row]
    print(f"  {side:24s} " + "  ".join(cells), flush=True)


def main(argv: list | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m launch.bench", description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=[*RUNS, "all"])
  parser.add_argument("--repeats", type=int, default=20, help="timed repeats of each side")
  parser.add_argument("--json", help="file for the numbers")
  parser.add_argument("--anyway", action="store_true", help="also on a loaded machine")
  args = parser.parse_args(argv)
  load, cores = os.getloadavg()[0], os.cpu_count()
  if load > 0.5 * cores and not args.anyway:
    print(f"error: the load is {load:.1f} on {cores} cores, and times would mean little; it must be below "
          f"{0.5 * cores:.1f}: wait, or say --anyway", file=sys.stderr)
    return 2
  results = {"machine": {"cores": cores, "devices": str(jax.devices()), "jax": jax.__version__}}
  for name in RUNS if args.what == "all" else [args.what]:
    results[name] = RUNS[name](args.repeats)
    printed(name, results[name])
  if args.json:
    with open(args.json, "w") as file:
      json.dump(results, file, indent=1)
  return 0


if __name__ == "__main__":
  sys.exit(main())
