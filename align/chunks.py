"""An experience in chunks of whole prompts: a reward on the host judges one while the devices sample the next.

Chunk j of C has the prompts j, j + C and so on, so that devices and processes keep their shares. A sample's noise comes
from its own key and its group stays together: what is sampled and judged is the same for every C, but for how programs
of different batch sizes round. At most one chunk is sampled ahead of the one that is judged.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import jax
import jax.numpy as jnp

from align import tree as trees
from align.build import UserError
from diffusion.core import joined, piece
from diffusion.mesh import BATCH, ways


def count(reward: Any, asked: int | None, prompts: int, group: int, mesh: Any) -> int:
  """Into how many chunks an experience of `prompts` (of all processes) is cut: `asked`, or, where that is None, as many
  as the reward wishes and divide the prompts evenly. UserError for a number that cannot be."""
  if asked is None:
    share = ways(BATCH, mesh)
    even = lambda n: prompts % (n * math.lcm(share, jax.process_count())) == 0
    wished = reward.chunks or 1 if reward else 1
    if wished == 1 or not apart(reward, jax.eval_shape(reward.init, jax.random.key(0)), mesh):
      return 1
    return next((n for n in range(wished, 1, -1) if even(n)), 1)
  each = prompts // jax.process_count()
  allowed = [n for n in range(1, each + 1) if each % n == 0 and prompts * group // n % ways(BATCH, mesh) == 0]
  if asked not in allowed:
    raise UserError(f"config.chunks = {asked} does not divide the {each} prompts of a process into equal chunks whose "
                    f"samples the mesh divides; it may be one of {', '.join(map(str, allowed))}, or None")
  if asked > 1 and (reward is None or reward.chunks is None):
    raise UserError(f"config.chunks = {asked}: {'this run has no reward' if reward is None else 'this reward'} "
                    f"{'to wait for' if reward is None else 'compares all samples of an experience'}; leave it out")
  return asked


def apart(reward: Any, params: Any, mesh: Any) -> bool:
  """Whether a reward with `params` (arrays or their shapes) may judge in a thread of its own: where it runs nothing
  over several devices, since all of these must be given their programs in one order (docs.jax.dev, Concurrency)."""
  return reward.where == "host" and (mesh.size == 1 or not networks(params))


def networks(params: Any) -> list:
  """Names of a reward's leaves but the statistics of mixtures, which are read on the host."""
  return [name for name in trees.flatten(params) if "mix" not in name.split("/")]


def rows(tree: Any, group: int) -> Any:
  """Leaves [B ...] -> [B / group, group, ...]; scalars stay."""
  return jax.tree.map(lambda a: a.reshape((-1, group) + a.shape[1:]) if a.ndim else a, tree)


def flat(tree: Any) -> Any:
  return jax.tree.map(lambda a: a.reshape((-1,) + a.shape[2:]) if a.ndim else a, tree)


def cut(tree: Any, group: int, chunks: int, j: Any) -> Any:
  """Chunk j of arrays [B ...]."""
  cut_one = lambda a: piece(a, chunks, j) if a.ndim else a
  return flat(jax.tree.map(cut_one, rows(tree, group)))


def whole(parts: list, group: int) -> Any:
  """The inverse of `cut`, of all chunks in order."""
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *[rows(part, group) for part in parts])
  return flat(joined(stacked))


def of_host(lists: dict, group: int, chunks: int, j: int) -> dict:
  """Chunk j of what this process holds on the host, {name: [B / processes] entries}."""
  return {name: [entry for i, entry in enumerate(entries) if i // group % chunks == j]
          for name, entries in lists.items()}


def in_turn(chunks: int, sample: Callable, judge: Callable) -> list:
  """[(sample(j), judge(j, sample(j)))] of every chunk j."""
  return [(made, judge(j, made)) for j, made in enumerate(map(sample, range(chunks)))]


def overlapped(chunks: int, sample: Callable, judge: Callable) -> list:
  """What `in_turn` returns; judge runs in a thread of its own, one chunk after another. The first error of either ends
  it, and what has not begun is left."""
  pool = ThreadPoolExecutor(1, "judge")
  sampled, judged = [], []
  try:
    for j in range(chunks):
      if j > 1:
        judged[j - 2].result()  # so that one chunk at most waits to be judged
      sampled.append(sample(j))
      judged.append(pool.submit(judge, j, sampled[-1]))
    return [(out, job.result()) for out, job in zip(sampled, judged, strict=True)]
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
