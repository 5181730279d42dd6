"""Our side of the benchmarks: the same policies, algorithms and updates that runs are made of, on random weights.

Needs jax, flax, optax and numpy alone.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from align import costs, lora, tree
from align.algorithms import base, dpo, grpo
from align.core import Policy, State
from align.policies import diffusion
from align.update import make_train_step
from diffusion import process
from diffusion.nets import attention, mmdit
from diffusion.tokenizer import Tokenizer
from launch.work import Work
from rewards.core import Reward, Scores

ADAPTED = r"^net/.*(x|c)_(qkv/(q|k|v)|out)/kernel$"


class Side(NamedTuple):
  """run () -> None: does the work once and waits for it. flops: of the work itself, not of what remat does again.
  memory () -> bytes of the device at the peak of its largest program."""
  run: Callable
  flops: int
  memory: Callable


class Given(nn.Module):
  """In place of a text encoder: a table, so that both sides do the same work."""
  tokens: int
  context: int
  pooled: int

  @nn.compact
  def __call__(self, ids, mask):
    table = self.param("table", nn.initializers.normal(1.0), (self.tokens, max(self.context, self.pooled)))
    context = jnp.broadcast_to(table[:, :self.context], (ids.shape[0], self.tokens, self.context))
    return context, jnp.broadcast_to(table[:1, :self.pooled], (ids.shape[0], self.pooled))


def unread(prompts: list, length: int) -> tuple[np.ndarray, np.ndarray]:
  """In place of a tokenizer's: every prompt is the same, since `Given` looks at none."""
  return np.zeros((len(prompts), length), np.int32), np.ones((len(prompts), length), bool)


def policy(work: Work, kernel: str = "flow_sde", remat: bool | str | None = None) -> Policy:
  net = mmdit.make("sd3_medium", channels=work.channels, width=work.width, depth=work.depth, heads=work.heads,
                   dual=work.dual, norm=work.norm, table=work.table, base=work.size // 2,
                   remat=work.remat if remat is None else remat, dtype="bfloat16" if work.half else None)
  text = Given(work.tokens, work.context, work.pooled)
  words = Tokenizer(unread, decode=None, save=None, size=0, counts={})
  made = diffusion.make(net, text, process.flow(), kernel, words, work.tokens, work.size, work.channels, work.steps,
                        guidance=work.guidance, law="uniform")
  return lora.wrap(made, work.rank, 2.0 * work.rank, ADAPTED) if work.rank else made


def bright() -> Reward:
  score = lambda view, batch, media, keys: Scores(media.mean((1, 2, 3)), {}, jnp.ones(len(media), bool))
  return Reward(lambda key: {}, lambda batch: batch, score, "gradient", None)


def batch_of(work: Work, made: Policy, count: int, group: int) -> dict:
  cond = made.prepare({"prompt": ["a picture"] * count})["cond"]
  rng, shape = np.random.default_rng(0), (count, work.size, work.size, work.channels)
  media = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "win", "lose")}
  ids = {"prompt_id": np.arange(count, dtype=np.int32) // group, "sample_id": np.arange(count, dtype=np.int32) % group,
         "experience": np.zeros(count, np.int32)}
  return jax.tree.map(jnp.asarray, {"cond": cond, **media, **ids})


def roles_of(work: Work, made: Policy) -> dict:
  """{"base", "policy"} with random parameters everywhere: zero-initialised layers would be cheaper to multiply on some
  machines. What is trained is float32, the base of the type that is computed in."""
  def shaken(key):
    keys = iter(jax.random.split(key, 1000))
    whole = jax.tree.map(lambda a: a + 0.02 * jax.random.normal(next(keys), a.shape), made.init(key))
    held = jnp.bfloat16 if work.half else jnp.float32
    base_ = jax.tree.map(lambda a: a.astype(held), {k: v for k, v in whole.items() if k != "lora"})
    return {"base": base_, "policy": {"lora": whole["lora"]} if work.rank else whole}
  return jax.jit(shaken)(jax.random.key(1))


def memory(program: Any, *args) -> int:
  size = program.lower(*args).compile().memory_analysis()
  return (size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
          - size.alias_size_in_bytes)


def count(function: Callable, *args) -> int:
  return costs.flops(jax.make_jaxpr(function)(*args))


# --- the work --------------------------------------------------------------------------------------------------------


def rollout(work: Work) -> Side:
  """A group a prompt, with everything kept that GRPO learns from."""
  made = policy(work)
  batch, view = batch_of(work, made, work.group * work.prompts, work.group), roles_of(work, made)["base"]
  keys, keep = base.sample_keys(jax.random.key(2), batch), jnp.arange(work.steps - 1)
  sample = lambda view: made.sample(view, batch["cond"], keys, steps=work.steps, eta=0.7, keep=keep)
  program = jax.jit(sample)
  return Side(lambda: jax.block_until_ready(program(view)), count(sample, view), lambda: memory(program, view))


def looped(work: Work) -> Callable:
  """The rollout as a Python loop of one jitted step."""
  made = policy(work)
  batch = batch_of(work, made, work.group * work.prompts, work.group)
  keys, times = base.sample_keys(jax.random.key(2), batch), np.asarray(made.process.times(work.steps))
  view, step = roles_of(work, made)["base"], jax.jit(made.step)

  def run():
    x, kept = jax.random.normal(jax.random.key(3), batch["x"].shape), []
    for i in range(work.steps):
      out = step(view, batch["cond"], x, times[i], times[i + 1], keys, 0.7)
      kept.append((x, out))
      x = out.x
    jax.block_until_ready(kept)
  return run


class Updater(NamedTuple):
  """step (batch, key): one update, which keeps its own state. policy () -> what is trained, as it is now. count (loss,
  batch, key) -> FLOPs of an update by that loss. memory (batch, key) -> bytes."""
  step: Callable
  policy: Callable
  count: Callable
  memory: Callable


def updater(loss: Callable, roles: dict, tx: Any, micro: int) -> Updater:
  trained, frozen = {"policy": roles["policy"]}, {"base": roles["base"]}
  held = [State(jnp.int32(0), trained, tx.init(trained), ())]
  jitted = jax.jit(make_train_step(loss, tx, micro), donate_argnums=0)

  def step(batch, key):
    held[0], metrics = jitted(held[0], frozen, batch, key)
    jax.block_until_ready(metrics["loss"])

  return Updater(step, lambda: held[0].params["policy"],
                 lambda other, batch, key: count(make_train_step(other, tx, micro), held[0], frozen, batch, key),
                 lambda batch, key: memory(jitted, held[0], frozen, batch, key))


def pieces(samples: int, each: int, piece: int) -> int:
  """Pieces of a minibatch of `samples` that are `each` inputs of the network, so that one is at most `piece` inputs
  where that can be."""
  least = min(math.ceil(samples * each / piece), samples) if piece else 1
  return next(n for n in range(least, samples + 1) if samples % n == 0)


def dpo_update(work: Work) -> Side:
  """Forward of policy and reference on winners and losers, backward, AdamW."""
  made, key = policy(work, "ode"), jax.random.key(4)
  roles, batch = roles_of(work, made), batch_of(work, made, work.pairs, 1)
  update = updater(dpo.make(made).loss, roles, optax.adamw(1e-5), pieces(work.pairs, 2, work.piece))
  plain = dpo.make(policy(work, "ode", False)).loss
  return Side(lambda: update.step(batch, key), update.count(plain, batch, key),
              lambda: update.memory(batch, key))


def grpo_iteration(work: Work) -> Side:
  """Rollout with log-probabilities, advantages, then one update over all steps that are trained."""
  made, key, total = policy(work), jax.random.key(5), work.group * work.prompts
  roles, batch = roles_of(work, made), batch_of(work, made, total, work.group)
  how = {"group": work.group, "steps": work.steps, "beta": work.beta,
         **({"pick": "window", "size": work.trained, "mixed": True} if work.trained else {})}
  method, judge = grpo.make(made, bright(), **how), bright()
  each = (work.trained or work.steps - 1) * (2 if work.guidance != 1 else 1)
  update = updater(method.loss, roles, optax.adamw(1e-5), pieces(total, each, work.piece))

  def experience(own, base_):
    roles = {"policy": own, "base": base_}
    drawn = method.rollout(roles, batch, base.sample_keys(key, batch))
    scores = judge.score({}, batch, made.decode(tree.view(roles, "policy"), drawn.output), None)
    return method.draw(method.select(roles, (), drawn, scores, batch, key)[0], 0, key)
  gathered = jax.jit(experience)
  first = gathered(update.policy(), roles["base"])
  plain = grpo.make(policy(work, remat=False), bright(), **how).loss
  flops = count(experience, update.policy(), roles["base"]) + update.count(plain, first, key)
  return Side(lambda: update.step(gathered(update.policy(), roles["base"]), key), flops,
              lambda: max(memory(gathered, update.policy(), roles["base"]), update.memory(first, key)))


WORKS = {"rollout": rollout, "dpo": dpo_update, "grpo": grpo_iteration}


# --- attention -------------------------------------------------------------------------------------------------------


def attend(kernel: str, tokens: int, width: int, heads: int, backward: bool) -> Side:
  """Attention of one picture by a kernel of diffusion/nets/attention.py, in bfloat16."""
  q, k, v = (jax.random.normal(key, (1, tokens, heads, width), jnp.bfloat16)
             for key in jax.random.split(jax.random.key(0), 3))

  def forward(q, k, v):
    with attention.using(kernel):
      return attention.attend(q, k, v)
  both = jax.grad(lambda *args: (forward(*args).astype(jnp.float32) ** 2).mean(), (0, 1, 2))
  program = jax.jit(both if backward else forward)
  once = 4 * tokens * tokens * width * heads
  return Side(lambda: jax.block_until_ready(program(q, k, v)), once * (3 if backward else 1),
              lambda: memory(program, q, k, v))
