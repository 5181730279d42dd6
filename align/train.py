"""The loop: build, place, restore, then experiences of (prompts, rollout, decode, score, select) and their updates.

Everything that varies (policy, algorithm, reward, data) arrives as pure functions; nothing below knows which one it
runs. Offline methods are the case without a rollout, training a reward is the case without a policy.
"""
import contextlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from align import build, checkpoint, guard, health, metrics, shard, tree
from align import calibrate as calibration
from align import chunks as chunking
from align import data as batches
from align import evaluate as evaluation
from align import lora as adapters
from align.algorithms.base import sample_keys
from align.assemble import Parts, Place, assemble, begin, begun, changing, of_model, outline, place, prospect
from align.core import State
from align.update import decisions_of, divides, followed, make_train_step
from diffusion import folder, hub, vlm
from diffusion.convert import adapters as public_adapters
from diffusion.mesh import batch_sharding, within

# --- an experience ---------------------------------------------------------------------------------------------------


class Compiled(NamedTuple):
  embed: Any
  rollout: Any
  decode: Any
  score: Any
  select: Any
  update: Any
  follow: Any
  cut: Any            # (arrays and keys, chunk) -> those of a chunk
  whole: Any          # (what was made of every chunk) -> the experience's
  shape: tuple        # (samples of a prompt, chunks of an experience)


def compile_(parts: Parts, where: Place, micro: int, state: State, group: int, pieces: int) -> Compiled:
  """Every program of the run, each compiled once at its first call: what it returns lies where the state lies now.
  group, pieces: samples of a prompt, chunks of an experience."""
  laid = jax.tree.map(lambda a: a.sharding, state)
  program = lambda function, **options: jax.jit(within(parts.mesh, function), **options)
  policy, reward, method = parts.policy, parts.reward, parts.algorithm
  inner = make_train_step(method.loss, parts.optimizer.tx, micro, where.trained, method.follow, method.decisions)

  def update(state, frozen, u, key_experience, key):
    return inner(state, frozen, method.draw(state.memory, u, key_experience), key)

  def embed(params, batch, keys):
    return policy.embed(tree.view(params, "policy"), batch, keys) if policy else batch

  def select(state, frozen, rollout, scores, batch, key):
    memory, out = method.select(tree.merge(frozen, state.params), state.memory, rollout, scores, batch, key)
    return memory, out

  def follow(state):
    return state._replace(params=followed(state.params, method.follow, "experience", state.step))

  score, looked = None, reward.frames if reward else None
  if reward:
    plain = lambda params, batch, media, keys: reward.score(params.get("reward", {}), batch, media, keys)
    score = plain if reward.where == "host" else program(plain)
  decode = program(lambda params, x: policy.decode(tree.view(params, "policy"), x, looked)) if policy else None
  return Compiled(program(embed), method.rollout and program(method.rollout), decode, score,
                  program(select, out_shardings=(laid.memory, None)),
                  program(update, donate_argnums=0, out_shardings=(laid, None)),
                  program(follow, donate_argnums=0, out_shardings=laid),
                  program(lambda tree, j: chunking.cut(tree, group, pieces, j),
                          out_shardings=batch_sharding(parts.mesh)),
                  program(lambda made: chunking.whole(made, group)), (group, pieces))


def prepared(parts: Parts, batch: dict, experience: int = 0) -> tuple[dict, dict]:
  """(arrays, what stays on the host) of a batch as the stream gave it, tokenised, templated and numbered."""
  for name, part in (("policy", parts.policy), ("reward", parts.reward)):
    with build.blame(f"config.{name} with config.data"):
      batch = part.prepare(batch) if part else batch
  arrays, host = batches.numeric(batch)
  return {**arrays, "experience": np.full(len(arrays["prompt_id"]), experience, np.int32)}, host


def gather(parts: Parts, do: Compiled, state: State, frozen: dict, batch: dict, key, step: int):
  """One experience: (memory for its updates, metrics), or (None, metrics) where no sample has a valid score."""
  arrays, host = prepared(parts, batch, step // parts.algorithm.updates)
  arrays = shard.put_batch(arrays, parts.mesh)
  params, keys = tree.merge(frozen, state.params), sample_keys(key, arrays)
  arrays = do.embed(params, arrays, keys)
  rollout = scores = None
  if do.rollout:
    rollout, scores = judged(parts, do, params, host, arrays, keys, step)
    if parts.reward.where == "host":
      scores = shard.put_batch(jax.tree.map(np.asarray, scores), parts.mesh)
    if not bool(scores.valid.any()):
      return None, {"valid": 0.0}
  return do.select(state, frozen, rollout, scores, arrays, key)


def judged(parts: Parts, do: Compiled, params, host, arrays, keys, step):
  """(rollout, scores) of an experience. In chunks, where there are several: where the reward may, a thread of its own
  judges one while the next is sampled."""
  group, count = do.shape

  def sample(j):
    part, own = do.cut((arrays, keys), j) if count > 1 else (arrays, keys)
    rollout = do.rollout(params, part, own)
    return rollout, do.decode(params, rollout.output), part, own

  def judge(j, made):
    _, media, part, own = made
    said = chunking.of_host(host, group, count, j) if count > 1 else host
    return scored(parts, do, params, said, part, media, own, step)

  if count == 1:
    made = sample(0)
    return made[0], judge(0, made)
  alone = chunking.apart(parts.reward, params.get("reward", {}), parts.mesh)
  made = (chunking.overlapped if alone else chunking.in_turn)(count, sample, judge)
  rollouts, scores = [out[0] for out, _ in made], [said for _, said in made]
  return do.whole(rollouts), chunking.whole(scores, group) if parts.reward.where == "host" else do.whole(scores)


def scored(parts: Parts, do: Compiled, params, host, arrays, media, keys, step):
  """Scores of decoded media, on the device, or on the host of the samples that this process holds."""
  with build.blame("config.reward with config.data"):
    if parts.reward.where != "host":
      scores = do.score(params, arrays, media, keys)
    else:
      mine = jax.tree.map(shard.local, {k: v for k, v in arrays.items() if k != "cond"})
      own = jax.random.wrap_key_data(shard.local(jax.random.key_data(keys)))
      scores = do.score(params, {**mine, **host}, shard.local(media), own)
  if guard.fault("reward", step):
    scores = scores._replace(total=scores.total * np.nan)
  return guard.check_scores(scores)[0]


# --- the run ---------------------------------------------------------------------------------------------------------


def run(config: dict, workdir: str) -> dict:
  """The task entry: trains with the resolved config."""
  return train(workdir, **{k: v for k, v in config.items() if k != "task"})


def check(config: dict) -> None:
  """Refuses what cannot be without running it; data may come from a run that has not been yet."""
  prospect(config)


def plan(config: dict) -> str:
  """What --print shows."""
  return outline(config)


def train(workdir: str, *, steps: int, data: dict, algorithm: dict, policy: dict = None, reward: dict = None,
          optim: dict = None, batch: int = 8, group: int = 1, micro: int = 1, drop: float = 0.0, alike: int = 0,
          trained: str = "^policy/", lora: dict = None, start: dict = None, seed: int = 0, mesh: dict = None,
          log_every: int = 10, save_every: int = 500, keep: int = 2, evaluate: dict = None, patience: int = 5,
          failed: float = 0.1, calibrate: int = 256, chunks: int = None, export: str = None, model: str = None) -> dict:
  """Runs `steps` updates and exports the result; called again with the same workdir it continues.

  Args:
    batch: prompts (records) of an experience over all hosts; each is repeated `group` times. micro: pieces a minibatch
      is accumulated from, of its samples or of their decisions. drop: share of captions replaced by "" (for guidance).
    alike: batches that are sorted together by the kind of their records, see data.batches.
    trained: regex over "role/leaf".
    lora: None, or options of align.lora.wrap. start: weights to begin from, {role: workdir, folder or shipped name}.
    evaluate: None, or {"every": updates, ...options of evaluate.probe}. patience: non-finite updates in a row that
      stop the run. failed: share of samples whose reward may fail. calibrate: samples of the base that set a reward's
      statistics, where it asks for some (mixtures with normalise "frozen"). chunks: pieces of whole prompts that an
      experience is sampled in, one while the reward judges the one before; None: as many as the reward wishes.
    export: the role that is exported, by default `ema` where there is one. model: the folder of a public policy, in
      place of config.policy.model.
  """
  workdir, evaluate, policy = Path(workdir), dict(evaluate or {}), of_model(policy, model)
  if policy and policy.get("model"):
    check_model(policy, lora)  # before data are prepared, which can take hours
  parts = assemble(seed, policy, lora, algorithm, reward, data, optim or {"name": "adamw"}, mesh or {}, evaluate, steps,
                   group, micro)
  check_shapes(parts, policy)
  where = place(parts, trained)
  stream = batches.batches(parts.source, batch, group=group, seed=seed, drop=drop, alike=alike)
  roles = begin(parts, where, seed, {**begun(where, policy, reward), **(start or {})})
  if parts.reward and parts.reward.calibrate:
    found = calibration.calibrated(parts.policy, parts.reward, roles, parts.source, workdir, samples=calibrate,
                                   batch=batch * group, seed=seed, mesh=parts.mesh)
    roles = {**found, "reward": shard.put(found["reward"], where.shardings["reward"])}
  moving, frozen = changing(parts, trained, roles)
  saved = checkpoint.open_(workdir, keep=keep)
  state = resume(saved, parts, stream, moving, frozen, where)
  check_micro(parts, state.memory, micro)
  pieces = chunking.count(parts.reward, chunks, batch, group, parts.mesh) if parts.algorithm.rollout else 1
  do = compile_(parts, where, micro, state, group, pieces)
  state = between(parts, state)
  first = int(state.step)
  writer, progress = metrics.writer(workdir, resume_step=first), metrics.Progress(steps, initial=first)
  rule = health.rule(**(evaluate.get("guard") or {}))
  looking = health.open_(workdir, first, rule) if evaluate.get("every") else None
  watch = Watch(writer, guard.NonFinite(patience), guard.FailedScores(failed), progress, saved, log_every, save_every,
                evaluate.get("every", 0), looking)
  try:
    with guard.signals():
      state = loop(parts, do, stream, state, frozen, watch, jax.random.key(seed), steps)
    export_run(workdir, parts, state, frozen, policy, reward, export, lora)
  finally:
    progress.close()
    writer.close()
    saved.close()
    health.close(looking)
    list_skipped(workdir, parts.source, stream.skipped())
  return {"steps": int(state.step), "skipped_records": stream.skipped()}


def check_model(policy: dict, lora: dict | None) -> None:
  """Refuses a public model whose files are not what its networks need, and adapters that could not be exported."""
  if vlm.at(policy["model"]):
    return  # building the policy has the same checks
  with build.blame("config.model"):
    opened = hub.open_(policy["model"])
    hub.check(opened)
  if lora:
    roles = tuple(role for role in opened.parts if policy.get("cache") is None or not role.startswith("text"))
    with build.blame("config.lora"):
      public_adapters.check_targets(opened, lora.get("targets", adapters.TARGETS), roles)


def check_shapes(parts: Parts, policy: dict | None) -> None:
  """Refuses batches of several shapes where an experience is kept for its updates and in checkpoints."""
  for name in ("columns", "length"):
    value = (policy or {}).get(name)
    if parts.algorithm.rollout and isinstance(value, (list, tuple)):
      raise build.UserError(f"config.policy.{name} = {tuple(value)}: only methods that sample nothing (sft, dpo and "
                            "rwr of pairs and data) learn from batches of several shapes; give one number, such as "
                            f"{max(value)}")


def check_micro(parts: Parts, memory, micro: int) -> tuple[int, int]:
  """(samples of one update, decisions of each that may be cut); refuses a number of pieces that does not divide them.
  """
  drawn = jax.eval_shape(parts.algorithm.draw, memory, jnp.int32(0), jax.random.key(0))
  samples, each = jax.tree.leaves(drawn)[0].shape[0], decisions_of(drawn, parts.algorithm.decisions)
  if micro < 1 or not divides(micro, samples, each):
    near = [n for n in range(1, samples * each + 1) if divides(n, samples, each)]
    more = f" of {each} decisions" if each > 1 else ""
    raise build.UserError(f"config.micro = {micro} does not divide the {samples} samples{more} of an update; it may be "
                          f"one of {', '.join(map(str, near))}; change it, config.batch or config.group")
  return samples, each


def memory_shapes(parts: Parts, params: dict, arrays: dict) -> Any:
  """What `select` keeps of an experience, by tracing one: ShapeDtypeStructs."""
  key = jax.random.key(0)

  def traced(params, arrays):
    keys = sample_keys(key, arrays)
    seen = parts.policy.embed(tree.view(params, "policy"), arrays, keys) if parts.policy else arrays
    rollout = scores = None
    if parts.algorithm.rollout:
      rollout = parts.algorithm.rollout(params, seen, keys)
      scores = evaluation.blank_scores(len(arrays["prompt_id"]))
    return parts.algorithm.select(params, (), rollout, scores, seen, key)[0]
  return jax.eval_shape(within(parts.mesh, traced), params, arrays)


def empty_memory(parts: Parts, stream, state, frozen):
  """The memory before the first experience: zeros."""
  arrays, _ = prepared(parts, stream.next())
  shapes = memory_shapes(parts, tree.merge(frozen, state.params), shard.put_batch(arrays, parts.mesh))
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
  found = saved.restore(between(parts, state))
  if found is None:
    return state
  _, restored, extra = found
  stream.restore(extra["stream"])
  return restored if parts.algorithm.rollout else restored._replace(memory=state.memory)


def between(parts: Parts, state: State) -> State:
  """The state without what only an update needs: offline every batch is drawn anew, whatever its shape is."""
  return state if parts.algorithm.rollout else state._replace(memory=())


class Watch(NamedTuple):
  """What looks on while a run trains."""
  writer: Any
  failures: Any       # guard.NonFinite
  scores: Any         # guard.FailedScores
  progress: Any       # metrics.Progress
  saved: Any          # checkpoint.Checkpoints
  log_every: int
  save_every: int
  every: int          # updates between held-out evaluations, 0 for none
  health: Any         # health.Guard, None without evaluations


def loop(parts: Parts, do: Compiled, stream, state: State, frozen: dict, watch: Watch, root, steps: int) -> State:
  """Experiences and their updates until `steps`. An update's metrics are read after the next one was dispatched."""
  updates, step, pending = parts.algorithm.updates, int(state.step), None
  last = step
  if missing(watch, step):
    report(parts, watch, state, frozen, step)
  ended = health.ends(watch.health)
  while step < steps and not ended:
    inside = step % updates
    key = jax.random.fold_in(root, step // updates)
    if inside == 0:
      batch = stream.next()
      memory, out = gather(parts, do, state, frozen, batch, key, step)
      watch.writer.write_scalars(step, read(out, "experience/")) if out else None
      if memory is None:
        watch.failures.see(step, True, {"every reward": np.nan}, watch.saved.steps())
        continue
      if "valid" in out:
        watch.scores.see(step, float(out["valid"]), jax.process_count() * len(batch["prompt_id"]))
      state = state._replace(memory=memory)
    update_key = jax.random.fold_in(jax.random.fold_in(root, 1 << 30), step)
    state, out = do.update(state, frozen, jnp.int32(inside), key, update_key)
    step += 1
    if step % updates == 0 and parts.algorithm.follow:
      state = do.follow(state)
    state = between(parts, state)
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
      settle(watch, pending)  # the guard looks at both
      pending = None
      report(parts, watch, state, frozen, step)
      ended = health.ends(watch.health)
  return concluded(watch, state, pending, stream)


def missing(watch: Watch, step: int) -> bool:
  """Whether the evaluation is still due of the step that a run begins or goes on at: a stop does not wait for it."""
  if not watch.every or step % watch.every:
    return False
  return step not in (row["step"] for row in watch.health.rows if health.is_heldout(row))


def concluded(watch: Watch, state: State, pending, stream) -> State:
  """The state that a run leaves; where the guard ended it, saved as it was, and then what the guard says."""
  found = health.ends(watch.health)
  if found is None:
    return state
  settle(watch, pending)
  watch.writer.flush()
  if int(state.step) not in watch.saved.steps():
    watch.saved.save(int(state.step), state, {"stream": stream.state()}, final=True)
  return state._replace(params=health.end(watch.health, found, state.params))


def read(out: dict, prefix: str) -> dict:
  return {prefix + name: float(value) for name, value in out.items()}


def settle(watch: Watch, pending) -> None:
  """Reads one update's metrics: counts non-finite ones, checks the on-policy gap, writes on schedule."""
  if pending is None:
    return
  step, out = pending[0], read(jax.device_get(pending[1]), "")
  if step % watch.log_every == 0 or step == 1 or out["skipped"]:
    logged = {f"train/{name}": value for name, value in out.items()}
    watch.writer.write_scalars(step, logged)
    health.hear(watch.health, step, logged)
  if step == 1 and "on_policy_gap" in out:
    watch.writer.flush()
    guard.on_policy(out["on_policy_gap"], out["on_policy_limit"])
  bad = {k: v for k, v in out.items() if k in ("loss", "grad_norm") and not np.isfinite(v)}
  watch.failures.see(step, out["skipped"] > 0, bad, watch.saved.steps())
  watch.progress.update(step, out["loss"])


def report(parts: Parts, watch: Watch, state: State, frozen: dict, step: int) -> None:
  """One evaluation on held-out prompts."""
  scalars, images = parts.measure(tree.merge(frozen, state.params))
  alarmed = health.see(watch.health, step, scalars, state.params)
  watch.writer.write_scalars(step, {**scalars, "guard/alarm": alarmed})
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


def export_run(workdir: Path, parts: Parts, state, frozen, policy, reward, role, lora) -> None:
  """WORKDIR/export: the trained policy or reward, ready for generate and for other runs; of role `role`, by default
  `ema` where there is one. Adapters are merged; those of a public image generator are left apart."""
  params = tree.merge(frozen, state.params)
  kind = "policy" if parts.policy else "reward"
  role = role or ("ema" if "ema" in params else kind)
  if role not in params:
    raise build.UserError(f"config.export = {role!r} is no role of this run; it has {', '.join(sorted(params))}")
  if parts.policy and policy.get("model") and vlm.at(policy["model"]):
    whole = jax.tree.map(shard.to_host, adapters.merged(parts.policy, tree.view(params, role)))
    if jax.process_index() == 0:
      folder.save_talking(workdir / "export", generator_options(policy), whole["net"])
    return
  if parts.policy and policy.get("model"):
    view = tree.view(params, role)  # of which the folder that it came from has what was not trained
    changed = ("lora",) if "lora" in view else {name.split("/")[0] for name in tree.flatten(params["policy"])}
    view = jax.tree.map(shard.to_host, {name: view[name] for name in changed})
    if jax.process_index() == 0:
      made = inspect.signature(adapters.wrap).parameters if lora else {}
      size = {name: lora.get(name, made[name].default) for name in ("rank", "alpha") if lora}
      folder.save_public(workdir / "export", generator_options(policy), view, **size)
    return
  if parts.policy:
    whole, options = adapters.merged(parts.policy, tree.view(params, role)), generator_options(policy)
  else:
    whole, options = tree.overlay(params["reward"], params[role]), reward  # an average holds only what is trained
  whole = jax.tree.map(shard.to_host, whole)  # every process takes part
  if jax.process_index() == 0:
    folder.save(workdir / "export", kind, options, whole)


def generator_options(policy: dict) -> dict:
  """The part of a policy's description that a sampler needs: not how noise levels were drawn and weights held, and what
  was asked of it in training."""
  return {k: v for k, v in policy.items() if not k.startswith("law") and k not in ("param_dtype", "mode")}
