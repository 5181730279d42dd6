"""Preference pairs out of what a judge said of the samples of a prompt: pair ranking, then point sifting, and its
ablations (UnifiedReward, 2503.05236).

  two_stage  neighbours (0, 1), (2, 3) ... are compared: the best by points is looked for among the winners, the worst
             among the losers
  point      the best and the worst by points of all
  pair       the winner and the loser of a random comparison
  random     two random samples, whichever first: the paper says no more of its random pairs, which leave the generator
             where it was

A pair of the first two is dropped unless it differs by more than `margin`. Unlike the released code, which compares
scores as texts and takes what it cannot read for a win of the first, scores are numbers, and ties and failures are
nobody's and are counted. Of equal scores the first sample is the best and the last one the worst.
"""
from typing import Any, NamedTuple

import numpy as np

CALLS = {"two_stage": 2, "point": 1, "pair": 1, "random": 0}  # a judge's answers for each sample: one score; half of a
                                                              # comparison of neighbours, which has two orders
DROPPED = ("undecided", "unscored", "close")


class Sifted(NamedTuple):
  """What is left of P prompts."""
  chosen: list   # [(prompt, win, lose)]
  dropped: dict  # prompts: {"undecided": no comparison was, "unscored": too few scores, "close": none differs enough}


def sift(way: str, scores: Any, won: Any, *, pairs: int = 1, margin: float = 0.0, seed: int = 0) -> Sifted:
  """At most `pairs` pairs of each prompt, no sample in two of them.

  Args:
    way: one of the above. scores [P n], NaN where there is none; random pairs are of those that have one.
    won: [P n] the share of its comparisons that a sample won, NaN where there is none.
    margin: in units of the score. seed: of random choices; those of a prompt do not depend on the others.

  Raises: ValueError for another way, a negative margin, and for `pair` where shares are not those of neighbours.
  """
  if way not in CALLS:
    raise ValueError(f"way = {way!r} is not one of {', '.join(CALLS)}; choose one of them")
  if not margin >= 0:
    raise ValueError(f"margin = {margin} must be at least 0, in units of the score; 0 drops equal scores only")
  scores, won, chosen, dropped = np.asarray(scores, float), np.asarray(won, float), [], dict.fromkeys(DROPPED, 0)
  for p, (points, share) in enumerate(zip(scores, won, strict=True)):
    found = of_prompt(way, points, share, pairs, margin, np.random.default_rng([seed, p]))
    if isinstance(found, str):
      dropped[found] += 1
    else:
      chosen += [(p, int(win), int(lose)) for win, lose in found]
  return Sifted(chosen, dropped)


def of_prompt(way: str, points: np.ndarray, won: np.ndarray, pairs: int, margin: float, rng: Any) -> list | str:
  """[(win, lose)] of one prompt, or why there is none."""
  valid = np.flatnonzero(~np.isnan(points))
  if way == "pair":
    found = decided(won)
    return [found[i] for i in rng.permutation(len(found))[:pairs]] or "undecided"
  if way == "random":
    drawn = rng.permutation(valid)[:2 * pairs]
    return [*zip(drawn[::2], drawn[1::2], strict=False)] or "unscored"
  order = valid[np.argsort(-points[valid], kind="stable")]
  best, worst = order[:len(order) // 2], order[::-1]
  if way == "two_stage":
    if not (won > 0.5).any():
      return "undecided"
    best, worst = order[won[order] > 0.5], worst[won[worst] < 0.5]
  if not len(best) or not len(worst):
    return "unscored"
  return [(win, lose) for win, lose in zip(best[:pairs], worst, strict=False)
          if points[win] - points[lose] > margin] or "close"


def decided(won: np.ndarray) -> list:
  """[(winner, loser)] of the neighbours whose comparison was decided."""
  first, second = won[::2], won[1::2]
  if len(won) % 2 or not np.allclose(second, 1 - first, equal_nan=True):
    raise ValueError(f"way = 'pair': shares {won.tolist()} are not those of neighbours, one of which has what the "
                     "other has not; compare with scheme 'adjacent' an even number of samples")
  return [(2 * i, 2 * i + 1) if share > 0.5 else (2 * i + 1, 2 * i) for i, share in enumerate(first)
          if share != 0.5 and not np.isnan(share)]
