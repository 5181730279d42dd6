"""Log-ratios of a policy to the one that sampled, what is maximised with them, and divergences from a reference.

Everything is per decision: x, means [B K ...], std and log-probabilities [B K]; a mean over the D elements, as in the
released diffusion code (a sum would be D times larger, and no published clip range would apply). S is the std of the
step, Delta = t - t_next > 0.
"""
from typing import Any

import jax.numpy as jnp

from diffusion.core import expand


def elements(x: Any) -> Any:
  """[B K ...] -> [B K], the mean over elements in float32."""
  return x.astype(jnp.float32).reshape(x.shape[:2] + (-1,)).mean(-1)


def positive(std: Any) -> Any:
  """std, with 1 in place of 0: a deterministic step has no ratio and is masked, but must not give nan gradients."""
  return jnp.where(std > 0, std, 1.0)


def shift(mean: Any, old: Any, nxt: Any) -> Any:
  """mean_D[(mu - mu_old) (2 x' - mu - mu_old)] = mean_D[(x' - mu_old)^2 - (x' - mu)^2], without the cancellation."""
  return elements((mean - old) * (2 * nxt - mean - old))


def gaussian(mean: Any, old: Any, nxt: Any, std: Any) -> Any:
  """ln p(x') - ln p_old(x') [B K] of normals with the same std, by differences of elements.

  The difference of two float32 mean log-densities costs up to 2e-7 at D = 65,536, this form 1.5e-9."""
  return shift(mean, old, nxt) / (2 * positive(std) ** 2)


def cps(mean: Any, old: Any, nxt: Any) -> Any:
  """The same for CPS's published log-probability -mean_D (x' - mu)^2 (2509.05952), which has no 1 / (2 S^2)."""
  return shift(mean, old, nxt)


def plain(log_prob: Any, old_log_prob: Any) -> Any:
  """ln p - ln p_old from the log-probabilities themselves: any policy, also tokens."""
  return log_prob - old_log_prob


def normalised(mean: Any, old: Any, nxt: Any, std: Any) -> Any:
  """RatioNorm (GRPO-Guard, 2510.22319): S (ln ratio + mean_D[dmu^2] / (2 S^2)) = mean_D[z dmu], z = (x' - mu_old) / S.

  Removes the negative bias of the log-ratio and its dependence on the step's std."""
  return elements((nxt - old) / expand(positive(std), nxt) * (mean - old))


def clipped(log_ratio: Any, advantage: Any, clip: float) -> Any:
  """The PPO loss max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) (1707.06347), to be minimised."""
  rho = jnp.exp(log_ratio)
  return jnp.maximum(-advantage * rho, -advantage * jnp.clip(rho, 1 - clip, 1 + clip))


def outside(log_ratio: Any, advantage: Any, clip: float) -> Any:
  """Whether the clip removes the gradient: the ratio has left the range in the direction that the advantage wants."""
  rho = jnp.exp(log_ratio)
  return ((advantage > 0) & (rho > 1 + clip)) | ((advantage < 0) & (rho < 1 - clip))


def away(log_ratio: Any, advantage: Any, divergence: Any, limit: float) -> Any:
  """Flow-DPPO's mask: True where the KL to the sampling policy is at the limit and a step would lead further away."""
  further = ((log_ratio > 0) & (advantage > 0)) | ((log_ratio < 0) & (advantage < 0))
  return (divergence >= limit) & further


def kl(mean: Any, other: Any, std: Any) -> Any:
  """KL of two normals with the same std, mean over elements: mean_D[dmu^2] / (2 S^2)."""
  return elements((mean - other) ** 2) / (2 * positive(std) ** 2)


def kl_code(mean: Any, other: Any, std: Any, times: Any) -> Any:
  """As Flow-GRPO's released code has it, mean_D[dmu^2] / (2 g^2) with g = S / sqrt(Delta): the KL times Delta.

  Published coefficients (.04, .01, .004) belong to this form. times: [B K 3]."""
  return kl(mean, other, std) * (times[..., 0] - times[..., 1])


def k3(log_prob: Any, other: Any) -> Any:
  """The estimate e^d - d - 1, d = ln p_other - ln p, of KL(p || other) from samples of p: unbiased, never negative, and
  all that tokens need (GRPO's own, 2402.03300)."""
  d = other - log_prob
  return jnp.exp(d) - d - 1


def squared(a: Any, b: Any) -> Any:
  """mean_D (a - b)^2 [B K]: the divergence in v, or in x without the std."""
  return elements((a - b) ** 2)


def output(process: Any, x0: Any, xt: Any, t: Any) -> Any:
  """The network's output (v of a flow) behind a clean prediction x0 at x_t; t broadcasts against x."""
  a, s = process.scales(t)
  return process.target(x0, (xt - a * x0) / s, t)
