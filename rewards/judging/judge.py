"""Asks a judge: pairs in both orders, scores, win rates in a group. Host code over an abstract Answerer.

Judges prefer a place: whatever is shown first wins too often. Every pair is therefore asked in both orders, and its
probability is the average, p = (p(A wins, A first) + p(A wins, B first)) / 2, which is 1/2 for equal candidates
whatever the bias. The bias itself, the mean over pairs of p(first wins) - 1/2, and how often the winner changes with
the order are in the metrics. There are three readings of an answer:

  text         what the judge writes, parsed (answers.py). A failure is asked again once, and masked if it stays one
  probability  of a pair or a yes-question: softmax of the log-probabilities of the sentences that may be said. A tie's
               mass is split evenly and reported. p(yes) / (p(yes) + p(no)) is the reward of Seedream 3.0 (2504.11346)
  expected     of a score: sum of s p(s) over the whole numbers s of its range, p normalised over them. Dimensions are
               read one by one, each as if it came first

Failed pairs never count as won, lost or tied; in a group they are left out of the mean, where Pref-GRPO (2508.20751)
counts them as 1/2 and asks one order only.
"""
import math
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core import fold
from rewards.judging import answers
from rewards.judging.answers import Answer
from rewards.judging.questions import Asked, Question, conversation, nearest, two

READINGS = {"pair": ("text", "probability"), "pair_score": ("text",), "point": ("text", "expected"),
            "yes": ("text", "probability")}
SCHEMES = ("all", "ring", "adjacent", "reference")


class Said(NamedTuple):
  """One answer; tokens and log_prob [L] are the judge's own, or None where a server does not give them. ended: whether
  it came to its end; of one that was cut nothing is read, since "1" may have become "10"."""
  text: str
  tokens: Any = None
  log_prob: Any = None
  ended: bool = True


class Answerer(NamedTuple):
  """A model that answers N conversations (questions.py); N differs from call to call, and is never 0.

  say (view, conversations, keys) -> [Said], N of them. keys None: greedily; keys [N]: sampled, one key each.
  read (view, conversations, begun, options) -> [N len(options)] log-probabilities that an answer which starts with the
    string `begun` goes on with each option. Options are different events: where "10" may be
    said too, "1" does not go on to it (`apart` of diffusion/vlm.py).
  """
  say: Callable
  read: Callable


class Pairs(NamedTuple):
  """N pairs, both orders of each: A shown first, then B."""
  probability: np.ndarray  # [N] that A is better, NaN where not valid
  valid: np.ndarray        # [N] bool: both orders could be read
  first: np.ndarray        # [N 2] the probability of the one that was shown first
  verdicts: list           # [N][2] "A", "B", "tie" or "failed"
  parts: dict              # {dimension: [N]} the share of A
  flips: np.ndarray        # [N] bool: A wins in one order and B in the other
  ties: np.ndarray         # [N] mass of a tie, mean of both orders
  asked_again: np.ndarray  # [N] how many of the two answers were asked for again
  said: list               # [N][2] the Said that counts, of text "" where nothing is written
  reasons: list            # [N][2] why an answer failed, "" where it did not
  metrics: dict            # means: position_bias, flips, ties, asked_again, failed, mass


class Points(NamedTuple):
  """N scores."""
  score: np.ndarray        # [N], NaN where not valid
  valid: np.ndarray        # [N] bool
  parts: dict              # {dimension: [N]}; "mass", where it was not written: how probable what can be read is
  asked_again: np.ndarray  # [N] 0 or 1
  said: list               # [N] the Said that counts
  reasons: list            # [N]
  metrics: dict            # means: asked_again, failed, mass


class Wins(NamedTuple):
  """Win rates of the candidates of P prompts."""
  rate: list               # [P] of [G], NaN where no comparison of a candidate could be read
  index: list              # the comparisons [(prompt, i, j)], j -1 for the reference
  pairs: Pairs             # of the comparisons, i is A


def pair(answerer: Answerer, view: Any, question: Question, asked: list, keys: Any, reading: str = "text") -> Pairs:
  """asked: N Asked with both candidates. keys [N]. ValueError for what `conversation` refuses, and for a reading that
  the question does not have."""
  if not two(question):
    raise ValueError(f"question {question.name!r} is a {question.kind} question, but pairs need one that compares two "
                     "candidates; choose one of kind pair or pair_score")
  talks = [conversation(question, one, swap) for one in asked for swap in (False, True)]
  found, said, again = answered(answerer, view, question, talks, twice(keys), reading)
  first = np.array([a.value for a in found]).reshape(-1, 2)
  valid = np.isfinite(first).all(1)
  names = {"first": ("A", "B"), "second": ("B", "A"), "tie": ("tie",) * 2, "failed": ("failed",) * 2}
  verdicts = [names[a.verdict][i % 2] for i, a in enumerate(found)]
  flips = np.array([{a, b} == {"A", "B"} for a, b in couples(verdicts)], bool)
  ties, again = np.array([a.tie for a in found]).reshape(-1, 2).mean(1), again.reshape(-1, 2)
  metrics = {"position_bias": mean(first[valid] - 0.5), "flips": mean(flips[valid]),
             "ties": mean(ties[valid]), "asked_again": mean(again), "failed": mean(~valid), "mass": mass(found)}
  parts = {name: unswapped(part.reshape(-1, 2)) for name, part in parts_of(question, found, reading).items()}
  return Pairs(unswapped(first), valid, first, couples(verdicts), parts, flips, ties, again.sum(1), couples(said),
               couples([a.reason for a in found]), metrics)


def point(answerer: Answerer, view: Any, question: Question, asked: list, keys: Any, reading: str = "text") -> Points:
  """Scores of N Asked with one candidate, or the probability of a yes. keys [N]. ValueError as for `pair`."""
  if two(question):
    raise ValueError(f"question {question.name!r} compares two candidates, but points need one that judges a single "
                     "one; choose one of kind point or yes")
  talks = [conversation(question, one) for one in asked]
  found, said, again = answered(answerer, view, question, talks, keys, reading)
  score = np.array([a.value for a in found], float)
  valid = np.isfinite(score)
  metrics = {"asked_again": mean(again), "failed": mean(~valid), "mass": mass(found)}
  parts = parts_of(question, found, reading)
  if reading != "text":
    parts["mass"] = np.array([0.0 if a.reason else a.mass for a in found])
  return Points(score, valid, parts, again, said, [a.reason for a in found], metrics)


def twice(keys: Any) -> Any:
  """Keys [N] -> [2 N], one for each order."""
  return fold(jnp.repeat(keys, 2), jnp.arange(2 * len(keys)) % 2)


def couples(values: list) -> list:
  return list(zip(values[::2], values[1::2], strict=True))


def unswapped(first: np.ndarray) -> np.ndarray:
  """[N 2] shares of the one shown first, A and then B -> [N] shares of A."""
  return (first[:, 0] + 1 - first[:, 1]) / 2


def mean(values: Any) -> float:
  """NaN where there is nothing to average, without numpy's warning."""
  values = np.asarray(values, float)
  return float(values.mean()) if values.size else float("nan")


def mass(found: list) -> float:
  return mean([a.mass for a in found if not a.reason])


def parts_of(question: Question, found: list, reading: str) -> dict:
  """{dimension: [N]}, NaN where an answer failed; the same names whatever was said."""
  names = answers.part_names(question) if reading == "text" else wordings(question)[0] if reading == "expected" else ()
  names = [name for name in names if name]
  return {name: np.array([a.parts.get(name, math.nan) for a in found]) for name in names}


# --- readings ---------------------------------------------------------------------------------------------------------


def answered(answerer: Answerer, view: Any, question: Question, talks: list, keys: Any, reading: str) -> tuple:
  """N conversations -> (Answers, what was said last, asked_again [N])."""
  check_reading(question, reading)
  if not talks:
    return [], [], np.zeros(0, int)
  if reading == "text":
    return written(answerer, view, question, talks, keys)
  read = scored if reading == "expected" else stated
  return read(answerer, view, question, talks), [Said("")] * len(talks), np.zeros(len(talks), int)


def check_reading(question: Question, reading: str) -> None:
  allowed = READINGS[question.kind] if question.begun is not None else ("text",)
  if reading not in allowed:
    raise ValueError(f"reading = {reading!r} is not one of {', '.join(allowed)}, which question {question.name!r} of "
                     f"kind {question.kind} has; choose one of them{nearest(reading, allowed)}")


def written(answerer: Answerer, view: Any, question: Question, talks: list, keys: Any) -> tuple:
  """Greedily, and once more with a sample where that cannot be read."""
  said = [*counted(answerer.say(view, talks, None), len(talks))]
  found = [understood(question, one) for one in said]
  failed = [i for i, a in enumerate(found) if a.reason]
  if failed:
    again = answerer.say(view, [talks[i] for i in failed], fold(keys[np.array(failed)], 2))
    for i, one in zip(failed, counted(again, len(failed)), strict=True):
      said[i], found[i] = one, understood(question, one)
  return found, said, np.isin(np.arange(len(talks)), failed).astype(int)


def understood(question: Question, one: Said) -> Answer:
  return answers.parse(question, one.text) if one.ended else answers.failed(
    f"the answer does not come to its end: {one.text[-80:]!r}; raise the length of answers")


def counted(said: list, wanted: int) -> list:
  if len(said) != wanted:
    raise ValueError(f"answerer.say gave {len(said)} answers to {wanted} conversations; it must give one each, mend it")
  return said


def stated(answerer: Answerer, view: Any, question: Question, talks: list) -> list:
  """Answers from the probabilities of the sentences."""
  found = []
  for p, total in chances(answerer, view, talks, question.begun, question.sentences):
    if p is None:
      found.append(answers.failed("no sentence has a probability"))
      continue
    tie = float(p[2]) if len(p) > 2 else 0.0
    value = float(p[0]) + tie / 2
    best = ("first", "second", "tie")[int(p.argmax())] if (p == p.max()).sum() == 1 else "tie"
    found.append(Answer(value, best, tie=tie, mass=total))
  return found


def scored(answerer: Answerer, view: Any, question: Question, talks: list) -> list:
  """Answers that are expected scores; without a label, means of those of the dimensions."""
  begun, options, numbers = wordings(question)
  found = {name: [(math.nan if p is None else float(p @ numbers), total)
                  for p, total in chances(answerer, view, talks, start, options)] for name, start in begun.items()}
  return [expected(dict(zip(found, row, strict=True)), bool(question.label))
          for row in zip(*found.values(), strict=True)]


def wordings(question: Question) -> tuple[dict, tuple, np.ndarray]:
  """({dimension: how an answer begins}, the options that may follow, what each is worth) of a score or a yes-question.
  """
  if question.kind == "yes":
    return {"": question.begun}, question.sentences, np.array([1.0, 0.0])
  numbers = np.arange(math.ceil(question.range[0]), math.floor(question.range[1]) + 1)
  names = ("",) if question.label else question.dimensions
  return ({answers.slug(name): question.begun.replace("{dimension}", name) for name in names},
          tuple(map(str, numbers)), numbers)


def expected(row: dict, labelled: bool) -> Answer:
  """One Answer of {dimension: (score, mass)}."""
  values = {name: value for name, (value, _) in row.items()}
  if not all(map(math.isfinite, values.values())):
    return answers.failed("no number of the range has a probability")
  return Answer(sum(values.values()) / len(values), "", {} if labelled else values,
                mass=min(total for _, total in row.values()))


def chances(answerer: Answerer, view: Any, talks: list, begun: str, options: tuple) -> list:
  """[N] of (probabilities [len(options)] normalised over the options, their sum before that), None where that is 0."""
  log_p = np.asarray(answerer.read(view, talks, begun, options), np.float64)
  if log_p.shape != (len(talks), len(options)):
    raise ValueError(f"answerer.read gave shape {log_p.shape} for {len(talks)} conversations and {len(options)} "
                     "options; it must give a number for each, mend it")
  best = log_p.max(1, keepdims=True)
  good = np.isfinite(best[:, 0])  # a nan makes the maximum one
  p = np.exp(log_p - np.where(np.isfinite(best), best, 0))
  return [(row / row.sum(), float(row.sum() * np.exp(top))) if fine else (None, 0.0)
          for row, top, fine in zip(p, best[:, 0], good, strict=True)]


# --- groups -----------------------------------------------------------------------------------------------------------


def comparisons(count: int, scheme: str) -> list:
  """[(i, j)] among `count` candidates: all unordered pairs; each with the next one and the last with the first, 2
  comparisons of each; neighbours (0, 1), (2, 3) ...; each against -1, a reference."""
  if scheme not in SCHEMES:
    raise ValueError(f"scheme = {scheme!r} is not one of {', '.join(SCHEMES)}; choose one of them"
                     f"{nearest(scheme, SCHEMES)}")
  if scheme == "reference":
    return [(i, -1) for i in range(count)]
  if scheme == "adjacent":
    if count % 2:
      raise ValueError(f"scheme = 'adjacent' pairs neighbours, but there are {count} candidates; give an even number, "
                       "or compare all")
    return [(i, i + 1) for i in range(0, count, 2)]
  if scheme == "ring" and count > 2:  # of two candidates there is one pair
    return [(i, (i + 1) % count) for i in range(count)]
  return [(i, j) for i in range(count) for j in range(i + 1, count)]


def together(question: Question, a: Asked, b: Asked) -> Asked:
  """One Asked of two with a single candidate each."""
  if question.task == "generation":
    return Asked(a.prompt, (*a.media, *b.media))
  return Asked(a.prompt, a.media, (*a.answers, *b.answers))


def group(answerer: Answerer, view: Any, question: Question, candidates: list, keys: Any, scheme: str = "all",
          references: list | None = None, reading: str = "text") -> Wins:
  """Win rates w_i of Pref-GRPO: the mean over a candidate's comparisons of the probability that it is better.

  candidates: [P][G] Asked with one candidate each, None for one that cannot be shown, whose comparisons are left out.
  keys [P]. references: [P] Asked, for scheme "reference". All pairs of all prompts are asked in one call."""
  if (scheme == "reference") != (references is not None):
    raise ValueError(f"scheme = {scheme!r} with references = {'None' if references is None else len(references)}: "
                     "references belong to scheme 'reference', one a prompt; give both or neither")
  rivals = [[*row, references[p] if references else None] for p, row in enumerate(candidates)]  # -1 is the reference
  listed = [(p, i, j, n) for p, row in enumerate(candidates)
            for n, (i, j) in enumerate(comparisons(len(row), scheme))
            if rivals[p][i] is not None and rivals[p][j] is not None]
  asked = [together(question, rivals[p][i], rivals[p][j]) for p, i, j, _ in listed]
  prompt, nth = (np.array([row[axis] for row in listed], int) for axis in (0, 3))
  found = pair(answerer, view, question, asked, fold(keys[prompt], nth), reading)
  index = [row[:3] for row in listed]
  return Wins(rates(found.probability, index, [len(row) for row in candidates]), index, found)


def rates(share: np.ndarray, index: list, sizes: list, flip: bool = True) -> list:
  """[P] of [G]: the mean of each candidate's comparisons that are not NaN. share [len(index)]: of i, and 1 - share of j
  unless not `flip`."""
  total, count = ([np.zeros(size) for size in sizes] for _ in range(2))
  for value, (p, i, j) in zip(share, index, strict=True):
    for candidate, mine in ((i, value), (j, 1 - value if flip else value)):
      if candidate >= 0 and not math.isnan(value):
        total[p][candidate] += mine
        count[p][candidate] += 1
  return [np.where(c > 0, t / np.maximum(c, 1), np.nan) for t, c in zip(total, count, strict=True)]
