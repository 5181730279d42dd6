"""Supervised training on captioned media: the policy's own denoising loss mean_D(weight * error^2).

The same file pretrains a base, continues it (the control of an alignment run) and fine-tunes on chosen samples.
Left out: aesthetic or importance weights, which belong into the data. Source: DDPM (2006.11239) eq. 14, rectified flow
(2209.03003). `ema` averages weights with decay min((1 + n) / (10 + n), ema).
"""
from align.algorithms import base
from align.core import Algorithm
from align.tree import view


def make(policy, reward=None, *, ema: float | None = None) -> Algorithm:
  base.check_parts("sft", policy=policy)

  def loss(params, batch, key):
    keys, x = base.sample_keys(key, batch), base.media_of(batch, "x", "sft")
    t = base.levels(policy, keys)
    error = -2 * policy.log_prob(view(params, "policy"), batch["cond"], x, keys, t)
    return error.mean(), base.by_level("error", error, t)

  return base.offline(loss, follow=base.average(ema))
