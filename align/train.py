"""The loop: build, place, restore, then experiences of (prompts, rollout, decode, score, select) and their updates.

Everything that varies (policy, algorithm, reward, data) arrives as pure functions; nothing below knows which one it
runs. Offline methods are the case without a rollout, training a reward is the case without a policy.
"""
import contextlib
import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from align import build, checkpoint, guard, metrics, shard, tree
from align import data as batches
from align import evaluate as evaluation
from align import lora as adapters
from align.algorithms.base import sample_keys
from align.core import State
from diffusion import folder

RULES = [(r".*", "auto")]


class Parts(NamedTuple):
  """What a config means: functions and sources, nothing allocated."""
  policy: Any
  reward: Any
  algorithm: Any
  source: Any
  optimizer: Any
  mesh: Any
  measure: Any        # (params) -> (scalars, images) on held-out prompts, or None


class Place(NamedTuple):
  """Shapes and shardings of a run."""
  shapes: Any         # {role: tree} of everything that has parameters
  shardings: Any
  trained: str        # regex over "role/leaf"


# --- config -> functions ---------------------------------------------------------------------------------------------


def run(config: dict, workdir: str) -> dict:
  """The task entry: trains with the resolved config."""
  return train(workdir, **{k: v for k, v in config.items() if k != "task"})


def assemble(seed, policy, lora, algorithm, reward, data, optim, mesh, evaluate, steps, group) -> Parts:
  made = build.build("align.policies", policy) if policy else None
  if made and lora:
    made = adapters.wrap(made, **lora)
  judge = build.build("rewards", reward) if reward else None
  taken = build.schema(build.locate("align.algorithms", algorithm["name"], "config.algorithm"))[0]
  method = build.build("align.algorithms", algorithm, made, judge, **({"group": group} if "group" in taken else {}))
  length = {} if optim.get("total_steps") else {"total_steps": steps}
  optimizer = build.build("align.optim", optim, **length)
  measure = evaluation.probe(made, seed, **evaluate) if evaluate else None
  source = build.build("align.datasets", data) if data else None
  return Parts(made, judge, method, source, optimizer, shard.mesh(**mesh), measure)


def place(parts: Parts, trained: str) -> Place:
  shapes = jax.eval_shape(functools.partial(initial, parts, trained), jax.random.key(0))
  names = tree.flatten(shapes)
  if not any(re.search(trained, name) for name in names):
    raise build.UserError(f"config.trained = {trained!r} matches none of the {len(names)} parameters; names look like "
                          f"{', '.join(list(names)[:3])}; it is a regular expression over role/leaf")
  return Place(shapes, shard.specs(shapes, RULES, parts.mesh), trained)


def initial(parts: Parts, trained: str, key) -> dict:
  """{role: tree}: the base, what is trained of it, rewards, an algorithm's own networks, and the followers."""
  keys = jax.random.split(key, 3)
  roles = {}
  if parts.policy:
    whole = parts.policy.init(keys[0])
    roles["base"], roles["policy"] = base_and_policy(whole, trained)
  if parts.reward:
    judged = parts.reward.init(keys[1])
    roles |= {"reward": judged} if judged else {}
  for i, (role, init) in enumerate(parts.algorithm.nets.items()):
    roles[role] = init(jax.random.fold_in(keys[2], i))
  return follow_from(roles, parts.algorithm.follow)


def base_and_policy(whole: dict, trained: str) -> tuple[dict, dict]:
  """The role `policy` holds what is trained; adapters are no part of the base, so that the reference is the base."""
  chosen, _ = tree.partition({"policy": whole}, trained)
  return {k: v for k, v in whole.items() if k != "lora"}, chosen.get("policy", {})


def follow_from(roles: dict, follow: dict) -> dict:
  return {**roles, **{role: roles[source] for role, (source, _, _) in follow.items()}}


def load_start(shapes: dict, start: dict, trained: str) -> dict:
  """{name: leaf} of what a run begins from: {"policy": model, "reward": model, "reward/NAME": model}."""
  known, found = tree.flatten(shapes), {}
  for role, model in (start or {}).items():
    target = "base" if role == "policy" else role
    if not any(name.startswith(target + "/") for name in known):
      raise build.UserError(f"config.start.{role}: this run has no parameters called {role!r}; it has "
                            f"{', '.join(sorted(shapes))}")
    inside = functools.reduce(lambda t, k: t[k], target.split("/"), shapes)
    with build.blame(f"config.start.{role}"):
      loaded = folder.load(model, role.split("/")[0], like=inside)
    found |= {f"{target}/{name}": leaf for name, leaf in tree.flatten(loaded).items()}
    if role == "policy":
      own = base_and_policy(loaded, trained)[1]
      found |= {f"policy/{name}": leaf for name, leaf in tree.flatten(own).items()}
  return found


def begin(parts: Parts, where: Place, seed: int, start: dict) -> dict:
  """Parameters of every role, on their shards; only what is not loaded is computed, followers are copies."""
  loaded = load_start(where.shapes, start, where.trained)
  places = tree.flatten(where.shardings)
  copied = {name: source + name[len(role):] for role, (source, _, _) in parts.algorithm.follow.items()
            for name in places if name.startswith(role + "/")}
  wanted = [name for name in places if name not in loaded and name not in copied]

  def fresh(key):
    made = tree.flatten(initial(parts, where.trained, key))
    return {name: made[name] for name in wanted}

  flat = jax.jit(fresh, out_shardings={name: places[name] for name in wanted})(jax.random.key(seed)) if wanted else {}
  flat |= {name: shard.place(leaf, places[name]) for name, leaf in loaded.items()}
  flat |= {name: jnp.copy(flat[source]) for name, source in copied.items()}
  # base and policy may share an output of the program above, and what is donated must not be shared
  return jax.tree.map(jnp.copy, tree.unflatten(flat))


def changing(parts: Parts, trained: str, roles: dict) -> tuple[dict, dict]:
  """(what the state holds: trained leaves and followers, what is frozen)."""
  pattern = "|".join([trained] + [f"^{role}/" for role in parts.algorithm.follow])
  return tree.partition(roles, pattern)


# --- one update ------------------------------------------------------------------------------------------------------


def make_train_step(loss, tx, micro: int = 1, trained: str = "^policy/", follow=None):
  """(state, frozen, batch, key) -> (state, metrics): one update, skipped inside jit when it is not finite.

  micro: the batch is cut into that many pieces along its leading axis, gradients are averaged in float32.
  """
  follow = follow or {}

  def gradients(chosen, rest, batch, key):
    def scalar(chosen, batch, key):
      return loss(tree.merge(chosen, rest), batch, key)
    return jax.value_and_grad(scalar, has_aux=True)(chosen, batch, key)

  def accumulated(chosen, rest, batch, key):
    if micro == 1:
      return gradients(chosen, rest, batch, key)
    pieces = jax.tree.map(lambda a: a.reshape((micro, a.shape[0] // micro) + a.shape[1:]), batch)
    outs = jax.lax.map(lambda piece: gradients(chosen, rest, piece, key), pieces)
    return jax.tree.map(lambda a: a.astype(jnp.float32).mean(0), outs)

  def step(state, frozen, batch, key):
    chosen, others = tree.partition(state.params, trained)
    (value, out), grads = accumulated(chosen, tree.merge(others, frozen), batch, key)
    norm = optax.global_norm(grads)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, opt = tx.update(grads, state.opt, chosen)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
    params = tree.merge(keep(optax.apply_updates(chosen, updates), chosen), others)
    params = keep(followed(params, follow, "step", state.step), {k: params[k] for k in params})
    out = {**out, "loss": value, "grad_norm": norm, "update_norm": optax.global_norm(updates),
           "skipped": 1.0 - good.astype(jnp.float32)}
    return State(state.step + 1, params, keep(opt, state.opt), state.memory), out
  return step


def followed(params: dict, follow: dict, when: str, count) -> dict:
  """Moves every follower of this clock: role <- decay role + (1 - decay) source, in float32."""
  def blend(decay, old, new):
    return (decay * old.astype(jnp.float32) + (1 - decay) * new.astype(jnp.float32)).astype(old.dtype)
  moved = {role: jax.tree.map(functools.partial(blend, decay(count)), params[role], params[source])
           for role, (source, decay, clock) in follow.items() if clock == when}
  return {**params, **moved}


# --- an experience ---------------------------------------------------------------------------------------------------


class Compiled(NamedTuple):
  embed: Any
  rollout: Any
  decode: Any
  score: Any
  select: Any
  update: Any
  follow: Any


def compile_(parts: Parts, where: Place, micro: int, state: State) -> Compiled:
  """Every program of the run, each compiled once at its first call: what it returns lies where the state lies now."""
  laid = jax.tree.map(lambda a: a.sharding, state)
  policy, reward, method = parts.policy, parts.reward, parts.algorithm
  inner = make_train_step(method.loss, parts.optimizer.tx, micro, where.trained, method.follow)

  def update(state, frozen, u, key_experience, key):
    return inner(state, frozen, method.draw(state.memory, u, key_experience), key)

  def embed(params, batch, keys):
    return policy.embed(tree.view(params, "policy"), batch, keys) if policy else batch

  def select(state, frozen, rollout, scores, batch, key):
    memory, out = method.select({**frozen, **state.params}, state.memory, rollout, scores, batch, key)
    return memory, out

  def follow(state):
    return state._replace(params=followed(state.params, method.follow, "experience", state.step))

  score = None
  if reward:
    plain = lambda params, batch, media, keys: reward.score(tree.view(params, "reward"), batch, media, keys)
    score = plain if reward.where == "host" else jax.jit(plain)
  decode = jax.jit(lambda params, x: policy.decode(tree.view(params, "policy"), x, None)) if policy else None
  return Compiled(jax.jit(embed), method.rollout and jax.jit(method.rollout), decode, score,
                  jax.jit(select, out_shardings=(laid.memory, None)),
                  jax.jit(update, donate_argnums=0, out_shardings=(laid, None)),
                  jax.jit(follow, donate_argnums=0, out_shardings=laid))


def prepared(parts: Parts, batch: dict) -> tuple[dict, dict]:
  """(arrays, what stays on the host) of a batch as the stream gave it, tokenised and templated."""
  for part in (parts.policy, parts.reward):
    batch = part.prepare(batch) if part else batch
  return batches.numeric(batch)


def gather(parts: Parts, do: Compiled, state: State, frozen: dict, batch: dict, key, step: int):
  """One experience: (memory for its updates, metrics), or (None, metrics) where no sample has a valid score."""
  arrays, host = prepared(parts, batch)
  arrays = shard.put_batch(arrays, parts.mesh)
  params, keys = {**frozen, **state.params}, sample_keys(key, arrays)
  arrays = do.embed(params, arrays, keys)
  rollout = scores = None
  if do.rollout:
    rollout = do.rollout(params, arrays, keys)
    media = do.decode(params, rollout.output)
    scores = scored(parts, do, params, host, arrays, media, keys, step)
    if not bool(scores.valid.any()):
      return None, {"valid": 0.0}
  return do.select(state, frozen, rollout, scores, arrays, key)


def scored(parts: Parts, do: Compiled, params, host, arrays, media, keys, step):
  """Scores of decoded media, on the device or on the host, where each process scores the samples it holds."""
  if parts.reward.where != "host":
    scores = do.score(params, arrays, media, keys)
  else:
    mine = {k: shard.local(v) for k, v in arrays.items() if k != "cond"}
    scores = do.score(params, {**mine, **host}, shard.local(media), keys)
  if guard.fault("reward", step):
    scores = scores._replace(total=scores.total * np.nan)
  scores = guard.check_scores(scores)[0]
  return scores if parts.reward.where != "host" else shard.put_batch(jax.tree.map(np.asarray, scores), parts.mesh)


# --- the run ---------------------------------------------------------------------------------------------------------


def train(workdir: str, *, steps: int, data: dict, algorithm: dict, policy: dict = None, reward: dict = None,
          optim: dict = None, batch: int = 8, group: int = 1, micro: int = 1, drop: float = 0.0,
          trained: str = "^policy/", lora: dict = None, start: dict = None, seed: int = 0, mesh: dict = None,
          log_every: int = 10, save_every: int = 500, keep: int = 2, evaluate: dict = None, patience: int = 5,
          export: str = None) -> dict:
  """Runs `steps` updates and exports the result; called again with the same workdir it continues.

  Args:
    batch: prompts (records) of an experience over all hosts; each is repeated `group` times. micro: pieces a minibatch
      is accumulated from. drop: share of captions replaced by "" (for guidance). trained: regex over "role/leaf".
    lora: None, or options of align.lora.wrap. start: weights to begin from, {role: workdir, folder or shipped name}.
    evaluate: None, or {"every": updates, ...options of evaluate.probe}. patience: non-finite updates in a row that
      stop the run. export: the role that is exported, by default `ema` where there is one.
  """
  workdir, evaluate = Path(workdir), dict(evaluate or {})
  parts = assemble(seed, policy, lora, algorithm, reward, data, optim or {"name": "adamw"}, mesh or {}, evaluate, steps,
                   group)
  where = place(parts, trained)
  stream = batches.batches(parts.source, batch, group=group, seed=seed, drop=drop)
  roles = begin(parts, where, seed, start)
  moving, frozen = changing(parts, trained, roles)
  saved = checkpoint.open_(workdir, keep=keep)
  state = resume(saved, parts, stream, moving, frozen, where)
  check_micro(parts, state.memory, micro)
  do = compile_(parts, where, micro, state)
  first = int(state.step)
  writer, progress = metrics.writer(workdir, resume_step=first), metrics.Progress(steps, initial=first)
  watch = Watch(writer, guard.NonFinite(patience), progress, saved, log_every, save_every, evaluate.get("every", 0))
  try:
    with guard.signals():
      state = loop(parts, do, stream, state, frozen, watch, jax.random.key(seed), steps)
    export_run(workdir, parts, state, frozen, policy, reward, export)
  finally:
    progress.close()
    writer.close()
    saved.close()
    list_skipped(workdir, parts.source, stream.skipped())
  return {"steps": int(state.step), "skipped_records": stream.skipped()}


def check_micro(parts: Parts, memory, micro: int) -> int:
  """Samples of one update; refuses a number of pieces that does not divide them."""
  drawn = jax.eval_shape(parts.algorithm.draw, memory, jnp.int32(0), jax.random.key(0))
  samples = jax.tree.leaves(drawn)[0].shape[0]
  if micro < 1 or samples % micro:
    near = [n for n in range(1, samples + 1) if samples % n == 0]
    raise build.UserError(f"config.micro = {micro} does not divide the {samples} samples of an update; it may be one "
                          f"of {', '.join(map(str, near))}; change it, config.batch or config.group")
  return samples


def empty_memory(parts: Parts, stream, state, frozen):
  """The memory before the first experience: zeros, in the shapes that tracing one experience gives."""
  arrays, _ = prepared(parts, stream.next())
  key = jax.random.key(0)

  def traced(params, arrays):
    keys = sample_keys(key, arrays)
    seen = parts.policy.embed(tree.view(params, "policy"), arrays, keys) if parts.policy else arrays
    rollout = scores = None
    if parts.algorithm.rollout:
      rollout = parts.algorithm.rollout(params, seen, keys)
      scores = evaluation.blank_scores(rollout.output.shape[0])
    return parts.algorithm.select(params, (), rollout, scores, seen, key)[0]
  shapes = jax.eval_shape(traced, {**frozen, **state.params}, shard.put_batch(arrays, parts.mesh))
  zeros = lambda s: shard.place(np.zeros(s.shape, s.dtype), shard.batch_or_copy(s.shape, parts.mesh))
  return jax.tree.map(zeros, shapes)


def resume(saved, parts: Parts, stream, moving, frozen, where: Place) -> State:
  """The state to go on from: the newest checkpoint that verifies, or a fresh one."""
  chosen, _ = tree.partition(moving, where.trained)
  init = parts.optimizer.tx.init
  places = shard.moments(jax.eval_shape(init, chosen), where.shapes, where.shardings, parts.mesh)
  step = shard.place(np.zeros((), np.int32), shard.replicated(parts.mesh))
  state = State(step, moving, jax.jit(init, out_shardings=places)(chosen), ())
  position = stream.state()
  state = state._replace(memory=empty_memory(parts, stream, state, frozen))
  stream.restore(position)
  found = saved.restore(state)
  if found is None:
    return state
  _, state, extra = found
  stream.restore(extra["stream"])
  return state


class Watch(NamedTuple):
  """What looks on while a run trains."""
  writer: Any
  failures: Any       # guard.NonFinite
  progress: Any       # metrics.Progress
  saved: Any          # checkpoint.Checkpoints
  log_every: int
  save_every: int
  every: int          # updates between held-out evaluations, 0 for none


def loop(parts: Parts, do: Compiled, stream, state: State, frozen: dict, watch: Watch, root, steps: int) -> State:
  """Experiences and their updates until `steps`. An update's metrics are read after the next one was dispatched."""
  updates, step, pending = parts.algorithm.updates, int(state.step), None
  last = step
  if watch.every and step == 0:
    report(parts, watch, state, frozen, 0)
  while step < steps:
    inside = step % updates
    key = jax.random.fold_in(root, step // updates)
    if inside == 0:
      memory, out = gather(parts, do, state, frozen, stream.next(), key, step)
      watch.writer.write_scalars(step, read(out, "experience/")) if out else None
      if memory is None:
        watch.failures.see(step, True, {"every reward": np.nan}, watch.saved.steps())
        continue
      state = state._replace(memory=memory)
    update_key = jax.random.fold_in(jax.random.fold_in(root, 1 << 30), step)
    state, out = do.update(state, frozen, jnp.int32(inside), key, update_key)
    step += 1
    if step % updates == 0 and parts.algorithm.follow:
      state = do.follow(state)
    settle(watch, pending)
    pending = step, out
    stop = guard.stop_requested(step)
    if stop or step == steps or step - last >= watch.save_every:
      settle(watch, pending)
      pending, last = None, step
      watch.writer.flush()  # so that a checkpoint never knows more steps than the curves
      watch.saved.save(step, state, {"stream": stream.state()}, final=stop or step == steps)
    if stop:
      raise guard.Stopped(step)
    if watch.every and step % watch.every == 0:
      report(parts, watch, state, frozen, step)
  return state


def read(out: dict, prefix: str) -> dict:
  return {prefix + name: float(value) for name, value in out.items()}


def settle(watch: Watch, pending) -> None:
  """Reads one update's metrics: counts non-finite ones, checks the on-policy gap, writes on schedule."""
  if pending is None:
    return
  step, out = pending[0], read(jax.device_get(pending[1]), "")
  if step == 1 and "on_policy_gap" in out:
    guard.on_policy(out["on_policy_gap"], out["on_policy_limit"])
  if step % watch.log_every == 0 or step == 1 or out["skipped"]:
    watch.writer.write_scalars(step, {f"train/{name}": value for name, value in out.items()})
  bad = {k: v for k, v in out.items() if k in ("loss", "grad_norm") and not np.isfinite(v)}
  watch.failures.see(step, out["skipped"] > 0, bad, watch.saved.steps())
  watch.progress.update(step, out["loss"])


def report(parts: Parts, watch: Watch, state: State, frozen: dict, step: int) -> None:
  scalars, images = parts.measure({**frozen, **state.params})
  watch.writer.write_scalars(step, scalars)
  watch.writer.write_images(step, images)
  watch.writer.flush()


def list_skipped(workdir: Path, source, skipped: list) -> None:
  """WORKDIR/skipped_records.N.txt: the records that process N could not read, and why; where there are any."""
  if skipped:
    file = workdir / f"skipped_records.{jax.process_index()}.txt"
    logging.warning("%s; %s lists them", batches.spell_skipped(source.name, skipped), file)
    with contextlib.suppress(OSError):  # a full disk has its own message, which must not be lost to this one
      file.write_text("".join(f"{i}\t{reason}\n" for i, reason in skipped))


# --- what a run leaves ------------------------------------------------------------------------------------------------


def export_run(workdir: Path, parts: Parts, state, frozen, policy, reward, role) -> None:
  """WORKDIR/export: the trained policy (adapters merged, `ema` where there is one) or reward, ready for generate."""
  params = {**frozen, **state.params}
  if parts.policy:
    role = role or ("ema" if "ema" in params else "policy")
    if role not in params:
      raise build.UserError(f"config.export = {role!r} is no role of this run; it has {', '.join(sorted(params))}")
    whole = adapters.merged(parts.policy, tree.view(params, role))
    whole = jax.tree.map(shard.to_host, whole)
    if jax.process_index() == 0:
      folder.save(workdir / "export", "policy", generator_options(policy), whole)
  elif jax.process_index() == 0:
    folder.save(workdir / "export", "reward", reward, jax.tree.map(shard.to_host, params["reward"]))


def generator_options(policy: dict) -> dict:
  """The part of a policy's description that a sampler needs: not how its noise levels were drawn in training."""
  return {k: v for k, v in policy.items() if not k.startswith("law")}


def plan(config: dict) -> str:
  """What --print shows: the resolved config, the parameter table and the batch arithmetic; nothing is allocated."""
  options = {k: v for k, v in config.items() if k != "task"}
  pick = lambda k, default: options.get(k) or default
  parts = assemble(pick("seed", 0), options.get("policy"), options.get("lora"), options["algorithm"],
                   options.get("reward"), None, pick("optim", {"name": "adamw"}), pick("mesh", {}), {},
                   options["steps"], options["group"])
  where = place(parts, options["trained"])
  specs = tree.flatten(where.shardings)
  rows = [("parameter", "shape", "dtype", "sharding", "trained")]
  rows += [(name, "x".join(map(str, leaf.shape)) or "-", str(leaf.dtype), str(specs[name].spec),
            "yes" if re.search(where.trained, name) else "") for name, leaf in tree.flatten(where.shapes).items()]
  chosen, _ = tree.partition(where.shapes, where.trained)
  updates, samples = parts.algorithm.updates, options["batch"] * options["group"]
  arithmetic = (f"{options['batch']} prompts x {options['group']} samples = {samples} samples an experience; "
                f"{updates} updates an experience, each in {options['micro']} pieces; {options['steps']} updates in "
                f"all = {-(-options['steps'] // updates)} experiences = {-(-options['steps'] // updates) * samples} "
                "samples")
  return "\n\n".join([json.dumps(config, indent=1, default=str), build.table(rows),
                      f"{tree.count(where.shapes):,} parameters, {tree.count(chosen):,} trained", arithmetic])
