"""Few-step consistency distillation inside segments of the noise levels: consistency models (2303.01469), trajectory
segmented (TSCD of Hyper-SD, 2404.13686) or phased (PCM, 2405.18407).

The levels 1 .. 0 are cut into `segments`, whose ends e are the sampling grid of as many steps; the teacher's grid of
`steps` lies in it. With t > t' neighbours there, e the end of their segment, and J(x, t, e) the ODE step t -> e:

  loss = d(J_student(x_t, t, e), sg(J_target(x', t', e))),  x' = J_teacher(x_t, t, t'),  x_t = a x0 + s noise

so that a student sampled in `segments` steps at eta 0 ends where the teacher's ODE does; where t' = e the goal is x'
itself. x0 is the batch's own media, real or sampled. The teacher is what the run starts from, the target the average
`ema` of the student, or the student itself. All three are stepped as the policy samples, with its guidance. d is
mean_D difference^2, or pseudo-Huber mean_D sqrt(difference^2 + width^2) - width. 1 segment is the consistency model,
`segments` = `steps` is the teacher over again, and `steps` = 2 `segments` progressive distillation (2202.00512).

Published: PCM 50 to 100 steps, 1 to 16 phases, pseudo-Huber with width 1e-3, no average, LoRA, lr 5e-6; consistency
models average with .95 to .999; Hyper-SD goes 8 -> 4 -> 2 -> 1 segments, which here are runs that each start from the
one before with its segments as their `steps`. Nothing depends on D: all are means.
Left out: the adversarial losses of Hyper-SD and PCM, perceptual distances, a student without guidance that takes over a
guided teacher's, consistency training without a teacher, noise added between segments.
"""
import jax
import jax.numpy as jnp
import numpy as np

from align.algorithms import base
from align.core import Algorithm
from align.tree import view
from diffusion.core import expand, fold, mean_elements, normal

DISTANCES = ("square", "huber")


def grid(process, segments: int, steps: int):
  """(t, t', e), each [steps]: the teacher's steps t -> t' and the end of the segment that each lies in."""
  base.check_least("segments", segments, 1, "the student is sampled in so many steps, 1 to 16 are usual")
  if steps < 1 or steps % segments:
    raise ValueError(f"steps = {steps} must be a multiple of segments = {segments}, as each segment has as many steps "
                     "of the teacher; change one of them, 8 to 100 steps are usual")
  fine, each = np.asarray(process.times(steps)), steps // segments
  ends = np.asarray(process.times(segments))
  if (np.diff(fine) >= 0).any() or not np.allclose(fine[::each], ends, atol=1e-5):
    raise ValueError(f"steps = {steps}, segments = {segments}: this process puts {segments} steps at {ends.round(3)}, "
                     f"which are not levels that its falling grid of {steps} steps has; let segments = steps, or "
                     "choose a process whose grids are even, such as 'flow' or 'ddpm'")
  return fine[:-1], fine[1:], np.repeat(ends[1:], each)


def gap(a, b, kind: str, width: float):
  """[B] between a and b [B ...]."""
  square = (a - b) ** 2
  return mean_elements(square if kind == "square" else jnp.sqrt(square + width ** 2) - width)


def make(policy, reward=None, *, segments: int = 4, steps: int = 16, distance: str = "huber", width: float = 1e-3,
         ema: float | None = None) -> Algorithm:
  """Learns from captioned media at eta 0. What it leaves is sampled in as many steps as there are segments, also by
  default where config.policy.steps says so.

  Args:
    segments, steps: of the student and of the teacher, see above. distance, width: "square" or "huber".
    ema: decay of the student's average, which is then the target and what is exported; None: the student.
  """
  base.check_parts("distill", policy=policy)
  base.check_diffusion("distill", policy)
  base.check_choice("distance", distance, DISTANCES)
  if not width > 0:
    raise ValueError(f"width = {width} must be positive; 1e-3 is published")
  levels, target = jnp.asarray(grid(policy.process, segments, steps), jnp.float32), "policy" if ema is None else "ema"

  def loss(params, batch, key):
    keys, x0 = base.sample_keys(key, batch), base.media_of(batch, "x", "distill")
    index = jax.vmap(lambda k: jax.random.randint(k, (), 0, steps))(fold(keys, 0))
    t, t_next, end = levels[:, index]
    a, s = policy.process.scales(expand(t, x0))
    xt = a * x0 + s * normal(fold(keys, 1), x0.shape[1:])
    jump = lambda role, x, t, t_next: policy.step(view(params, role), batch["cond"], x, t, t_next, keys, 0.0).x
    nxt = jump("ref", xt, t, t_next)
    there = expand(t_next > end + 1e-6, x0) > 0  # at the end itself the step is of length 0, and 0 / 0 for some kernels
    goal = jnp.where(there, jump(target, nxt, t_next, end), nxt)
    each = gap(jump("policy", xt, t, end), jax.lax.stop_gradient(goal), distance, width)
    return each.mean(), base.by_level("loss", each, t)

  return base.offline(loss, follow=base.average(ema))
