"""Success rates, paired gains and ratios with intervals that respect how the samples were drawn.

The images of one prompt share its difficulty, so prompts and not images are what is resampled: a percentile bootstrap
clustered by prompt, within each category (Efron & Tibshirani 1993, chapters 8 and 13), seeded. Overall is the
unweighted
mean over categories, as in GenEval (arXiv:2310.11513), and its interval is that of the same stratified resamples.
Seeds of training are few and independent: Student's t.

What cannot be computed is None: an interval over fewer than two prompts, a rate over no valid sample, a ratio to 0.
Where all prompts agree the interval has no width: the bootstrap cannot see beyond its sample.
Left out: BCa and studentised intervals, corrections for many categories.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np


def rates(success: Any, category: Sequence[str], *, valid: Any = None, seed: int = 0, resamples: int = 2000,
          level: float = 0.95) -> dict:
  """Success rates per category and overall.

  Args:
    success: bool [P n], sample j of prompt i was right.
    category: [P] names.
    valid: bool [P n], False where the judge failed; such samples are not counted.
    seed: of the resamples; the same numbers give the same interval.
    resamples: how many bootstrap resamples.
    level: of the interval.

  Returns:
    {"overall": entry, "categories": {name: entry}} in order of appearance, where an entry is
    {"successes": int, "count": int, "rate": float or None, "interval": [low, high] or None}.
  """
  success, valid = samples("success", success, category, valid)
  hits, counts = (success * valid).sum(1), valid.sum(1)
  fractions = stratified(hits, counts, category, seed, resamples, level)
  name = np.asarray(category)

  def entry(rows, fraction):
    return {"successes": int(hits[rows].sum()), "count": int(counts[rows].sum()),
            "rate": fraction["value"], "interval": fraction["interval"]}

  return {"overall": entry(slice(None), fractions["overall"]),
          "categories": {c: entry(name == c, fraction) for c, fraction in fractions["categories"].items()}}


def paired(a: Any, b: Any, category: Sequence[str], *, valid: Any = None, seed: int = 0, resamples: int = 2000,
           level: float = 0.95) -> dict:
  """Mean of a - b over the same prompts and noise, per category and overall.

  Args:
    a, b: [P n] successes or scores of two arms.
    category: [P] names.
    valid: bool [P n], True where both arms have a score; a prompt with none is left out.
    seed, resamples, level: as in `rates`.

  Returns:
    {"overall": entry, "categories": {name: entry}}, where an entry is
    {"difference": float or None, "interval": [low, high] or None, "prompts": int}.
  """
  a, both = samples("a", a, category, valid)
  b, _ = samples("b", b, category, valid)
  if a.shape != b.shape:
    raise ValueError(f"b: shape {b.shape} differs from a's {a.shape}; both must be [P n] over the same samples: "
                     "evaluate both arms on the same prompts and keys")
  counts = both.sum(1)
  gain = np.where(counts > 0, np.where(both, a - b, 0.).sum(1) / np.maximum(counts, 1), 0.)
  fractions = stratified(gain, (counts > 0).astype(int), category, seed, resamples, level)

  def entry(fraction):
    return {"difference": fraction["value"], "interval": fraction["interval"], "prompts": fraction["prompts"]}

  return {"overall": entry(fractions["overall"]),
          "categories": {c: entry(fraction) for c, fraction in fractions["categories"].items()}}


def mean(values: Any, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> dict:
  """Mean of values [P], NaN where a prompt has none -> {"value", "interval", "prompts"}."""
  values = np.asarray(values, float)
  has = np.isfinite(values)
  return fraction_of(np.where(has, values, 0.), has.astype(int), np.random.default_rng(seed), resamples, level)[0]


def ratio(a: Any, b: Any, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> dict:
  """mean(a) / mean(b) over the prompts that have a value in both arms, as for diversity within a prompt.

  Args:
    a, b: [P], one value a prompt, NaN where it has none (no two correct samples, say).
    seed, resamples, level: as in `rates`.

  Returns:
    {"value": float or None, "interval": [low, high] or None, "prompts": int}.
  """
  a, b = np.asarray(a, float), np.asarray(b, float)
  if a.ndim != 1 or a.shape != b.shape:
    raise ValueError(f"b: shape {b.shape} beside a's {a.shape}; both must be [P], one value a prompt: "
                     "put NaN where a prompt has none")
  both = np.isfinite(a) & np.isfinite(b)
  entry, _ = fraction_of(a[both], b[both], np.random.default_rng(seed), resamples, level)
  return {**entry, "prompts": int(both.sum())}


def samples(name: str, values: Any, category: Sequence[str], valid: Any) -> tuple:
  """Checked [P n] floats and their mask [P n]."""
  values = np.asarray(values, float)
  if values.ndim != 2 or len(values) != len(category) or not values.size:
    raise ValueError(f"{name}: shape {values.shape} with {len(category)} categories; it must be [P n] with one "
                     "category a prompt and at least one sample: reshape the samples of one prompt into a row")
  valid = np.ones(values.shape, bool) if valid is None else np.asarray(valid, bool)
  if valid.shape != values.shape:
    raise ValueError(f"valid: shape {valid.shape} differs from {name}'s {values.shape}; it must be the same: "
                     "give one flag a sample")
  if not np.isfinite(values[valid]).all():
    raise ValueError(f"{name}: {int((~np.isfinite(values[valid])).sum())} non-finite values among the valid samples; "
                     "scores must be finite: mark failed ones in `valid`")
  return np.where(valid, values, 0.), valid


def stratified(num: Any, den: Any, category: Sequence[str], seed: int, resamples: int, level: float) -> dict:
  """sum(num) / sum(den) per category, and the unweighted mean of the categories, with intervals."""
  name = np.asarray(category)
  entries, drawn = {}, []
  for i, c in enumerate(dict.fromkeys(category)):
    rng = np.random.default_rng([seed, i])
    entries[c], values = fraction_of(num[name == c], den[name == c], rng, resamples, level)
    drawn.append(values)
  known = all(entry["value"] is not None for entry in entries.values())
  several = known and all(entry["interval"] is not None for entry in entries.values())
  overall = {"value": float(np.mean([entry["value"] for entry in entries.values()])) if known else None,
             "interval": percentiles(np.mean(drawn, 0), level) if several else None,
             "prompts": sum(entry["prompts"] for entry in entries.values())}
  return {"overall": overall, "categories": entries}


def fraction_of(num: Any, den: Any, rng: np.random.Generator, resamples: int, level: float) -> tuple:
  """sum(num) / sum(den) over prompts [P] -> entry, its resamples [R], NaN where one divides by nothing."""
  prompts, total = int(np.count_nonzero(den)), den.sum()
  if total == 0:
    return {"value": None, "interval": None, "prompts": prompts}, np.full(resamples, np.nan)
  # drawing P prompts with replacement is drawing how often each one occurs: [R P] @ [P]
  times = rng.multinomial(len(den), np.full(len(den), 1 / len(den)), size=resamples)
  below = times @ den
  drawn = np.divide(times @ num, below, out=np.full(resamples, np.nan), where=below != 0)
  value = float(num.sum() / total)
  return {"value": value, "interval": percentiles(drawn, level) if prompts > 1 else None, "prompts": prompts}, drawn


def percentiles(drawn: Any, level: float) -> list:
  """[R] resamples -> the central interval that holds `level` of them."""
  return [float(v) for v in np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])]
