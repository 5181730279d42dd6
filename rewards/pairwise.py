"""Win rates among the samples of a prompt by any function that compares two pictures (Pref-GRPO, 2508.20751).

  reward = {"name": "pairwise", "compare": "module:function", "scheme": "ring"}

Every pair is compared in both orders, p = (p(a, shown first) + 1 - p(b, shown first)) / 2, so that a preference for a
place cancels. A sample's score is the mean of p over its comparisons, of which `scheme` says which there are (as in
judging/judge.py): all, G (G - 1) / 2 of a group of G; ring, G; adjacent, G / 2; reference, G, against
batch["reference"]. A comparison that failed in one order counts nowhere. Vision-language models that compare are asked
by `unified`; rewards that score one picture are ranked by GRPO's win_margin.
"""
from typing import Any, Callable

import numpy as np

from rewards import plugin
from rewards.core import CHUNKS, Reward, Scores
from rewards.judging import judge
from rewards.judging.reward import groups, pixels, referred, samples


def make(compare: Any, scheme: str = "all", at_once: int = 256) -> Reward:
  """The reward of pictures [B H W C] or clips [B F H W C] in [0, 1], on the host.

  Args:
    compare: "module:function" or a function (first, second, prompts) -> [N] probabilities in [0, 1] that the first is
      better, 1/2 for a tie, NaN where it cannot say; uint8 media [N ... 3] and N strings.
    at_once: the most comparisons of a call.

  Returns:
    Reward. Parts, as means over a sample's comparisons: `first`, the probability of what was shown first (1/2 without
    position bias), `flips`, whether the winner changes with the order. A sample without any comparison is invalid.

  Raises:
    ValueError: no such function or scheme; while scoring, groups that are cut or of one sample, other numbers.
  """
  judge.comparisons(0, scheme)
  if at_once < 1:
    raise ValueError(f"at_once = {at_once} must be at least 1, comparisons of a call; raise it")
  better = plugin.function(compare, "compare")

  def score(view, batch, media, keys):
    media = np.asarray(media)
    asked, of = samples(batch, media)
    starts = groups(batch, len(media))
    sizes = np.diff([*starts, len(media)])
    if scheme != "reference" and max(sizes) < 2:
      raise ValueError("reward pairwise compares the samples of a prompt, but prompts have 1; raise config.group to 2 "
                       "or more, or compare with references")
    against = referred(batch, starts) if scheme == "reference" else None
    index = [(p, i, j) for p, size in enumerate(sizes) for i, j in judge.comparisons(size, scheme)
             if asked[starts[p] + i] is not None and (j < 0 or asked[starts[p] + j] is not None)]
    shown = pixels(media)
    a = [shown[starts[p] + i] for p, i, _ in index]
    b = [shown[starts[p] + j] if j >= 0 else against[p] for p, _, j in index]
    first = both(better, a, b, [batch["prompt"][starts[p]] for p, _, _ in index], at_once)
    mean = lambda share, flip=True: np.concatenate(judge.rates(share, index, list(sizes), flip))
    rate, known = mean(judge.unswapped(first)), np.isfinite(first).all(1)
    flips = np.where(known, (first[:, 0] - 0.5) * (first[:, 1] - 0.5) > 0, np.nan)
    parts = {"first": mean(first.mean(1), False), "flips": mean(flips, False)}
    valid = np.isfinite(rate)
    keep = lambda values: np.where(valid, values, 0).astype(np.float32)[of]
    return Scores(keep(rate), {name: keep(part) for name, part in parts.items()}, valid[of])

  return Reward(lambda key: {}, lambda batch: batch, score, "host", None, chunks=CHUNKS)


def both(compare: Callable, a: list, b: list, prompts: list, at_once: int) -> np.ndarray:
  """[N 2] probabilities of what is shown first: a, and then b."""
  first = [one for pair in zip(a, b, strict=True) for one in pair]
  second = [one for pair in zip(b, a, strict=True) for one in pair]
  asked, out = [prompt for prompt in prompts for _ in range(2)], []
  for i in range(0, len(first), at_once):
    part = slice(i, i + at_once)
    found = np.asarray(compare(np.stack(first[part]), np.stack(second[part]), asked[part]), float)
    if found.shape != (len(asked[part]),) or (np.abs(found - 0.5) > 0.5).any():
      raise ValueError(f"compare gave {found.tolist()} for {len(asked[part])} pairs; it must give one probability in "
                       "0 .. 1 each, or NaN, mend it")
    out.append(found)
  return np.concatenate(out).reshape(-1, 2) if out else np.zeros((0, 2))
