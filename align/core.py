"""The five shapes that everything in `align` is made of; there is no logic here.

Legend of axes
  P   prompts in one experience          G   samples of one prompt, contiguous
  B   = P * G samples                    K   kept decisions of a rollout (denoising steps or tokens)
  D   elements of one latent             L   tokens of a prompt
  H W C  height, width, channels         F   frames of a clip

Conventions
  media   float32 [B H W C] (clips [B F H W C]) in [0, 1]; data sets hold uint8
  x       a point of the policy's own space: pixels in [-1, 1] or latents, float32
  t       noise level in [0, 1], 1 is pure noise, [B] or a scalar
  keys    [B] typed PRNG keys, one a sample, so that noise depends neither on the mesh nor on the batch
  params  {role: tree}; a role holds only the leaves in which it differs from `base` (see `tree.view`)
  batch   dict; `prompt` (strings) and `meta` stay on the host, everything else is an array with a leading B.
          `cond` is what the network is conditioned on, `prompt_id` and `sample_id` [B] name a sample, `experience` [B]
          counts the experiences before this one
"""
from typing import Any, Callable, NamedTuple


class Step(NamedTuple):
  """One decision t -> t_next of a policy."""
  x: Any         # the next state [B ...]
  mean: Any      # mean of its distribution [B ...]
  std: Any       # its standard deviation [B], 0 where the step is deterministic
  log_prob: Any  # [B]; a mean over the D elements for diffusion (kernels.py), a sum for tokens
  carry: Any     # what a multistep solver remembers


class Rollout(NamedTuple):
  """Samples together with the decisions that were kept for training."""
  cond: Any      # pytree with leading B
  x: Any         # [B K ...] states before the kept decisions
  nxt: Any       # [B K ...] states after them
  times: Any     # [B K 3]: t, t_next, eta
  log_prob: Any  # [B K] at sampling time
  mean: Any      # [B K ...]
  std: Any       # [B K]
  mask: Any      # [B K], 1 where a decision has a density and may be trained on
  output: Any    # [B ...] the final x0
  aux: Any       # anything else, by name


class Policy(NamedTuple):
  """A generator, whatever its network: the only thing that algorithms know of it."""
  init: Callable      # (key) -> params
  prepare: Callable   # (batch) -> batch; host: tokenise, the raw prompt is kept
  embed: Callable     # (view, batch, keys) -> batch; frozen encoders, once, no gradient; media become x
  process: Any        # diffusion.core.Process, or None for tokens
  law: Callable       # (keys) -> t [B], the noise levels that log_prob draws when it is given none
  log_prob: Callable  # (view, cond, x, keys, t=None) -> [B]; diffusion: -0.5 * mean_D(weight * error^2)
  denoise: Callable   # (view, cond, xt, t, guided=False) -> x0
  step: Callable      # (view, cond, x, t, t_next, keys, eta, given=None, carry=None) -> Step
  sample: Callable    # (view, cond, keys, x=None, steps=None, eta=None, keep=None) -> Rollout
  replay: Callable    # (view, rollout) -> Step, [B K] in front
  decode: Callable    # (view, x, frames=None) -> media
  still: str = ""     # regex of how names of parameters begin that have no gradient, such as an autoencoder's
  low: tuple = ()     # shape of the data's `low` that a refiner enlarges, (h, w, C) or of a clip (F, h, w, C); else ()


class Algorithm(NamedTuple):
  """What is learned from what: pure functions, jitted by the loop."""
  rollout: Any        # (params, batch, keys) -> Rollout, or None if offline
  select: Callable    # (params, memory, rollout, scores, batch, key) -> (memory, metrics)
  draw: Callable      # (memory, step, key) -> batch; step counts this experience's updates, key is the experience's
  loss: Callable      # (params, batch, key) -> (loss, metrics)
  nets: Any           # {role: init} networks of its own, such as a value function
  follow: Any         # {role: (source, decay(step), "step" | "experience")}
  updates: int        # gradient steps per experience
  decisions: bool = False  # whether the loss is a mean over the decisions [B K] of batch["rollout"], which can be cut


class State(NamedTuple):
  """All that changes while training: arrays only, checkpointed whole."""
  step: Any           # updates tried so far, int32
  params: Any         # {role: tree}: trained leaves and followers; frozen ones travel beside the state
  opt: Any
  memory: Any         # what `select` kept for the updates that are still to come
