"""Trains a reward on human judgements: pairs with or without ties, or ratings.

  bt          -log sigmoid(D),  D = r_win - r_lose                                      (Bradley-Terry)
  btt         win: -log sigmoid(D - ln theta);  tie: -log sigmoid(D - ln theta) - log sigmoid(-D - ln theta)
              - ln(theta^2 - 1)                                                         (Rao-Kupper, 2501.13918)
  regression  (r - rating)^2 of single media

A batch has `win` and `lose` [B H W C] and, where they are known, `label` [B] or [B D]: 1 (win is better), -1 (lose is
better), 0 (a tie); anything else is not judged and counts for nothing. Regression has `media` and `rating`, where NaN
is not judged. D are `parts` of the reward, each with a judgement of its own; without, its total is compared.

Bradley-Terry has no ties: they are dropped, as in most published training, or, ties = "half", are half a win each way
(PickScore's soft labels, 2305.01569). Published: VideoReward theta 5, lr 2e-6, batch 32, and the mean over all entries,
judged or not (reduction = "all"); ImageReward (2304.05977) "bt", lr 1e-5, batch 64. Nothing depends on the number of
elements. Left out: margins by strength of preference, K-way rankings (pairs of them are usual).
"""
import math

import jax
import jax.numpy as jnp

from align.algorithms import base
from align.build import UserError
from align.core import Algorithm
from rewards.mix import looked

LOSSES = ("bt", "btt", "regression")
TIES = ("drop", "half")
REDUCTIONS = ("valid", "all")


def bradley_terry(difference, label, ties: str):
  """-log P of labels [...] in {1, 0, -1}."""
  decided = -jax.nn.log_sigmoid(label * difference)
  half = -0.5 * (jax.nn.log_sigmoid(difference) + jax.nn.log_sigmoid(-difference))
  return jnp.where(label == 0, half if ties == "half" else 0.0, decided)


def with_ties(difference, label, theta: float):
  """-log P of labels [...] in {1, 0, -1}; theta > 1 is how far apart scores must be not to be a tie."""
  win = lambda d: -jax.nn.log_sigmoid(d - math.log(theta))
  tie = win(difference) + win(-difference) - math.log(theta ** 2 - 1)
  return jnp.where(label == 0, tie, win(jnp.where(label == 0, 0.0, label) * difference))


def numbers(scores, parts):
  """[B D] the parts that are judged, or [B 1] the total."""
  for name in parts or ():
    if name not in scores.parts:
      raise UserError(f"parts = {list(parts)}: the reward has no part {name!r}, it has "
                      f"{', '.join(sorted(scores.parts))}; choose among them")
  return jnp.stack([scores.parts[name] for name in parts], 1) if parts else scores.total[:, None]


def unit(media):
  """Bytes -> floats in [0, 1]; floats are taken as they are."""
  return media if jnp.issubdtype(media.dtype, jnp.floating) else media.astype(jnp.float32) / 255


def column(batch: dict, name: str, parts) -> jax.Array:
  """batch[name] as [B D]. UserError where D is not the number of parts."""
  value = jnp.asarray(batch[name])
  value, width = value[:, None] if value.ndim == 1 else value, max(1, len(parts or ()))
  if value.shape[1] != width:
    raise UserError(f"data entry {name!r} has {value.shape[1]} judgements a record, but {width} are compared "
                    f"(parts = {parts and list(parts)}); give one for each part")
  return value


def check(policy, reward, loss, ties, reduction, theta) -> None:
  base.check_parts("compare", reward=reward)
  if policy is not None:
    raise ValueError("policy: 'compare' trains a reward on the media as they are, and a policy would change them; set "
                     "config.policy to None")
  for name, value, allowed in (("loss", loss, LOSSES), ("ties", ties, TIES), ("reduction", reduction, REDUCTIONS)):
    base.check_choice(name, value, allowed)
  if not theta > 1:
    raise ValueError(f"theta = {theta} must be above 1, where ties have a probability; 5 is published")
  if reward.where != "gradient":
    raise ValueError(f"reward.where = {reward.where!r}: 'compare' trains rewards by their gradient; choose one that is "
                     "a network, such as 'scalar'")


def make(policy=None, reward=None, *, loss: str = "bt", theta: float = 5.0, ties: str = "drop",
         reduction: str = "valid", parts: tuple | list | None = None, ema: float | None = None) -> Algorithm:
  """reduction: the mean over judged entries, "valid", or over all, "all". `trained` must match role `reward`."""
  check(policy, reward, loss, ties, reduction, theta)

  def read(params, batch, media, key):
    shown = looked(unit(media), None, reward.frames)
    return numbers(reward.score(params.get("reward", {}), batch, shown, base.sample_keys(key, batch)), parts)

  def draw(batch, step, key):
    """Weights of entries are set here, before accumulation cuts the batch, so that each counts the same in all."""
    judged = rated(batch) if loss == "regression" else compared(batch)
    return {**batch, "weight": judged if reduction == "all" else base.share(judged)}

  def rated(batch):
    if "rating" not in batch:
      raise UserError(f"batch entry 'rating' is missing, it has {', '.join(sorted(batch))}; loss = 'regression' learns "
                      "from rated media, choose such a data set, or 'bt' for pairs")
    return jnp.isfinite(column(batch, "rating", parts))

  def compared(batch):
    label = labels(batch)
    return (jnp.abs(label) == 1) | ((label == 0) & (loss == "btt" or ties == "half"))

  def labels(batch):
    if "label" in batch:
      return column(batch, "label", parts).astype(jnp.float32)
    return jnp.ones((len(base.media_of(batch, "win", "compare")), max(1, len(parts or ()))))

  def pairs(params, batch, key):
    win, lose = (read(params, batch, base.media_of(batch, name, "compare"), key) for name in ("win", "lose"))
    difference, weight = win - lose, batch["weight"]
    label = jnp.where(weight > 0, labels(batch), 0.0)  # an entry that is not judged must not give nan
    each = with_ties(difference, label, theta) if loss == "btt" else bradley_terry(difference, label, ties)
    decided = jnp.abs(label) == 1
    part = lambda v: (v * decided).sum() / jnp.maximum(decided.sum(), 1)
    return mean(each, weight), {"accuracy": part(label * difference > 0), "margin": part(label * difference),
                                "ties": (labels(batch) == 0).mean(), "judged": (weight > 0).mean()}

  def ratings(params, batch, key):
    found, weight = read(params, batch, base.media_of(batch, "media", "compare"), key), batch["weight"]
    error = found - jnp.where(weight > 0, column(batch, "rating", parts), 0.0)
    value = mean(error ** 2, weight)
    return value, {"error": jnp.sqrt(value), "judged": (weight > 0).mean()}

  def mean(values, weight):
    return jnp.where(weight > 0, weight * values, 0.0).mean()

  objective = ratings if loss == "regression" else pairs
  return base.offline(objective, draw=draw, follow=base.average(ema, "reward"))
