"""Temporal discounting of a denoising chain (Dense Reward, 2402.08265): early steps, which decide most, weigh more.

Step k of a chain of N steps (k = 0 is the first, at the highest noise) has the chance p_k = gamma^k / sum_j gamma^j.
For gamma = .9 and N = 50: p_0 = .1005, p_49 = 5.8e-4, half of the mass in the first 7 steps. gamma = 1 is uniform.
"""
from typing import Any

import jax.numpy as jnp
import numpy as np


def check(gamma: float, steps: int) -> None:
  if not 0 < gamma <= 1:
    raise ValueError(f"gamma = {gamma} must be in (0, 1]; .9 is published, 1 does not discount")
  if steps < 1:
    raise ValueError(f"discounted steps = {steps} must be at least 1; 50 is published")


def chances(gamma: float, steps: int) -> np.ndarray:
  """p_k [steps] float64, of sum 1."""
  check(gamma, steps)
  powers = np.power(float(gamma), np.arange(steps))
  return powers / powers.sum()


def weight(t: Any, gamma: float, steps: int) -> Any:
  """N p_k of the step k that starts at noise level t in [0, 1] on an even grid of N steps; exactly 1 for gamma = 1.

  The mean over the steps of the grid is 1, so that a beta keeps its meaning for every gamma.
  """
  k = jnp.clip(jnp.floor((1 - t) * steps + 1e-4), 0, steps - 1).astype(jnp.int32)
  return jnp.asarray(chances(gamma, steps) * steps, jnp.float32)[k]
