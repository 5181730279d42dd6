"""Supervised training on captioned media: the policy's own denoising loss mean_D(weight * error^2).

The same file pretrains a base, continues it (the control of an alignment run) and, with `of` "win", fine-tunes on the
chosen samples of a data set of pairs, the baseline of the DPO papers (Diffusion-DPO: lr 1e-9). For tokens the loss is
-2 log p of the whole sequence, a sum. Left out: aesthetic or importance weights, which belong into the data (rewards as
weights: rwr.py). Source: DDPM (2006.11239) eq. 14, rectified flow (2209.03003). `ema` averages weights with decay
min((1 + n) / (10 + n), ema).
"""
from align.algorithms import base
from align.core import Algorithm
from align.tree import view

OF = ("x", "win", "lose")


def make(policy, reward=None, *, of: str = "x", ema: float | None = None) -> Algorithm:
  """of: the batch entry that is learned: "x" (captioned media), "win" or "lose" of pairs."""
  base.check_parts("sft", policy=policy)
  base.check_choice("of", of, OF)

  def loss(params, batch, key):
    keys, x = base.sample_keys(key, batch), base.media_of(batch, of, "sft")
    t = base.levels(policy, keys)
    error = -2 * policy.log_prob(view(params, "policy"), batch["cond"], x, keys, t)
    return error.mean(), {} if t is None else base.by_level("error", error, t)

  return base.offline(loss, follow=base.average(ema))
