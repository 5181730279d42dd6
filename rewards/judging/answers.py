"""Reads what a judge wrote: verdicts, scores, scores of dimensions. Strict: what is ambiguous is a failure.

Patterns are anchored to whole lines or sentences, numbers may have decimals and must lie in their range, ties are kept
apart, and a failure says why. The released code of the UnifiedReward family looks for substrings, takes the first run
of digits, and turns what it cannot read into "the first is better", a tie, or a score of 0.

A verdict counts where its sentence stands by itself, the line above it does not lead into it ("I doubt that"), it is
not taken back right behind, and the words for another verdict stand nowhere outside quotation marks. Left out: other
languages, numbers in words or with a decimal comma.
"""
import json
import math
import re
from typing import Any, NamedTuple

from rewards.judging.questions import Question, two

TOLERANCE = 0.02  # by which two shares may miss their sum
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
LISTED = r"^(?:\(?[0-9]{1,2}[.)] ?)?"  # a line may be numbered
OPENING = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "[": "]"}
OPEN = (r"(?i)(?:\b(?:that|if|whether|unless|because|says?|said|claims?|thinks?|believes?) ?:?|"
        r"\b(?:not|false|untrue|incorrect|wrong) ?:|,)$")  # of a line that goes on in the next one
BACK = (r"(?i) *(?:no(?= ?(?:[,.;:!]|$))|(?:actually|wait|correction|scratch that|on second thoughts?|or rather)\b)"
        )  # of a verdict, behind it
SAYING = r"(?:(?:the )?(?:final )?(?:answer|verdict|judgment|judgement|conclusion): )?"


class Answer(NamedTuple):
  """value: a score; of a comparison the share, in [0, 1], of the candidate shown first; NaN where it failed."""
  value: float
  verdict: str = ""   # of a comparison: "first", "second" or "tie"; "failed" of anything
  parts: dict = {}    # {dimension: float}, all of them or, where it failed, none
  reason: str = ""    # why it failed, with the start of the text
  tie: float = 0.0    # mass of the tie
  mass: float = 1.0   # the probability that the answer is one of those that can be read


def parse(question: Question, text: Any) -> Answer:
  """Never raises: what cannot be read is an Answer with value NaN, verdict "failed" and a reason."""
  try:
    if not isinstance(text, str) or not text.strip():
      raise Unread("the answer is empty")
    return READ[question.parser](question, plain(text) if question.parser != "json" else text)
  except Unread as wrong:
    return failed(f"{wrong}: {' '.join(str(text).split())[:80]!r}")


def part_names(question: Question) -> list:
  """The parts of an answer that could be read."""
  more = {"elements": ["elements"], "words": ["no_mistakes"]}.get(question.parser, [])
  return [] if question.parser in ("sentence", "think") else [*map(slug, question.dimensions), *more]


def failed(reason: str) -> Answer:
  return Answer(float("nan"), "failed", {}, reason)


class Unread(Exception):
  """Why an answer cannot be read."""


def slug(name: str) -> str:
  """"Visual quality" -> "visual_quality", as parts are called."""
  return re.sub(r"\W+", "_", name.lower()).strip("_")


def verdict(value: float) -> str:
  return "tie" if abs(value - 0.5) < 1e-9 else "first" if value > 0.5 else "second"


# --- text -------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
  """Without emphasis, headings, bullets and quotation marks around all of it; full-width characters are ASCII.

  Other compatibility forms stay: as plain characters, 4² would be 42."""
  text = text.translate(FOLD)
  text = re.sub(r"(?<!\w)(\*\*|__|\*|`)(\S(?:[^\n]*?\S)?)\1(?!\w)", r"\2", text)
  text = re.sub(r"(?m)^[ \t]*(?:#+|>|[-•*])[ \t]+", "", text)
  text = re.sub(r"[^\S\n]+", " ", text)
  text = re.sub(r" ?\n ?", "\n", text).strip()
  while len(text) > 2 and OPENING.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
    text = text[1:-1].strip()
  return text


FOLD = {c: c - 0xFEE0 for c in range(0xFF01, 0xFF5F)} | dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))


def unquoted(text: str) -> str:
  """Quotations become dots, which begin no sentence."""
  return re.sub(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|‘[^’\n]*’|(?<!\w)'[^'\n]*'(?!\w)", "…", text)


def after(text: str, label: str) -> str:
  """What follows a label that begins a line, once."""
  found = re.split(rf"(?mi)^{re.escape(label)} ?: ?", text)
  if len(found) != 2:
    raise Unread(f"{label!r} stands there {len(found) - 1} times, not once")
  return found[1]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def sentence(question: Question, text: str) -> Answer:
  text = unquoted(after(text, question.label) if question.label else text)
  shorts = [s.rstrip(".").split(" than ")[0] for s in question.sentences]
  mentioned = [i for i, short in enumerate(shorts) if re.search(rf"(?i)(?<!\w){re.escape(short)}(?!\w)", text)]
  if len(mentioned) != 1:
    raise Unread("no verdict" if not mentioned else f"both {shorts[mentioned[0]]!r} and {shorts[mentioned[1]]!r}")
  found = [one for one in re.finditer(rf"(?mi)(?:^|(?<=[.!?] )){SAYING}{stated(question, mentioned[0])}"
                                      r"(?:[.!](?=\s|$)|$|(?=,? because\b))", text)
           if not re.search(OPEN, text[:one.start()].removesuffix("\n"))]
  if not found:
    raise Unread(f"{shorts[mentioned[0]]!r} is no sentence of its own")
  if any(re.match(BACK, text[one.end():].replace("\n", " ")) for one in found):
    raise Unread(f"{shorts[mentioned[0]]!r} is taken back")
  return decided(mentioned[0])


def stated(question: Question, i: int) -> str:
  """A pattern of sentence i, which may or may not name the other candidate."""
  short = question.sentences[i].rstrip(".").split(" than ")[0]
  if i == 2 or not two(question):
    return re.escape(short)
  other = question.sentences[1 - i].split(" is ")[0]
  return rf"{re.escape(short)}(?: than {re.escape(other)})?"


def decided(i: int) -> Answer:
  """The first of the sentences, the second, or the tie."""
  return Answer((1.0, 0.0, 0.5)[i], ("first", "second", "tie")[i], tie=float(i == 2))


def think(question: Question, text: str) -> Answer:
  """<think> ... </think> <answer> ... </answer>, each once, the verdict alone in the second."""
  found = re.fullmatch(r"<think>(.*)</think>\s*<answer>(.*)</answer>", text, re.S)
  if not found or re.search(r"</?(?:think|answer)>", found[1] + found[2]):
    raise Unread("it is not one <think> block and then one <answer> block")
  inner = plain(found[2])
  for i in range(len(question.sentences)):
    if re.fullmatch(rf"(?i){stated(question, i)}[.!]?", inner):
      return decided(i)
  raise Unread(f"<answer> holds {inner[:40]!r}, no verdict")


def shares(question: Question, text: str) -> Answer:
  """Blocks of a name and two shares that add up to 1; the value is the mean of those of the first."""
  a, b = map(re.escape, question.sentences)
  parts = {}
  for name in question.dimensions:
    found = re.findall(rf"(?mi){LISTED}{re.escape(name)}(?: score)?{PARENS} ?:?[\s,;]*{a} ?: ?{NUMBER}[\s,;]+"
                       rf"{b} ?: ?{NUMBER}(?=\.?(?:\s|$)|[,;])", text)
    if len(found) != 1:
      raise Unread(f"{len(found)} blocks of {name!r}, not one")
    first, second = (within(number, question.range, name) for number in found[0][-2:])
    if abs(first + second - 1) > TOLERANCE:
      raise Unread(f"the shares of {name!r}, {first} and {second}, do not add up to 1")
    parts[slug(name)] = first / (first + second)
  value = sum(parts.values()) / len(parts)
  return Answer(value, verdict(value), parts, tie=float(verdict(value) == "tie"))


def structured(question: Question, text: str) -> Answer:
  """One JSON object, by itself or in one fence; every category of the question is in it, with a winner."""
  found = re.fullmatch(r"\s*(?:```(?:json)?\s*)?(\{.*\})\s*(?:```)?\s*", text, re.S)
  try:
    data = json.loads(found[1], object_pairs_hook=once) if found else None
  except (ValueError, RecursionError):  # a number of thousands of digits is no JSONDecodeError
    data = None
  if data is None:
    raise Unread("it is not one JSON object")
  parts, listed = {}, data.get("categories")
  for category in listed if isinstance(listed, list) else ():
    if not isinstance(category, dict) or not isinstance(category.get("name"), str):
      raise Unread("a category is no object with a name")
    if slug(category["name"]) in parts:
      raise Unread(f"category {category['name']!r} is there twice")
    check_sums(question, category)
    parts[slug(category["name"])] = winner(question, category, "cat_winner")
  missing = [name for name in question.dimensions if slug(name) not in parts]
  if missing:
    raise Unread(f"category {missing[0]!r} is missing")
  value = winner(question, data, "winner")
  return Answer(value, verdict(value), {slug(name): parts[slug(name)] for name in question.dimensions})


def once(pairs: list) -> dict:
  """A JSON object, none of whose names stands twice."""
  if len({name for name, _ in pairs}) != len(pairs):
    raise Unread("a name stands twice in one JSON object")
  return dict(pairs)


def winner(question: Question, data: dict, name: str) -> float:
  said = data.get(name)
  for i, candidate in enumerate(question.sentences):
    if isinstance(said, str) and said.strip().casefold() == candidate.casefold():
      return 1.0 - i
  raise Unread(f"{name} = {said!r} is neither of {', '.join(question.sentences)}")


def check_sums(question: Question, category: dict) -> None:
  dims = category.get("dims")
  for one in dims if isinstance(dims, list) else (None,):
    scores = [one.get(name) for name in ("score_1", "score_2")] if isinstance(one, dict) else [None]
    if any(isinstance(s, bool) or not isinstance(s, int | float) for s in scores):
      raise Unread(f"a dimension of {category['name']!r} has no two scores")
    low, high = question.range
    if not all(low <= s <= high for s in scores) or not math.isclose(sum(scores), high, abs_tol=TOLERANCE):
      raise Unread(f"scores {scores} of {category['name']!r} do not add up to {high}")


# --- scores -----------------------------------------------------------------------------------------------------------

PARENS = r"(?: ?\(([^()\n]*)\))?"


def score(question: Question, text: str) -> Answer:
  """The labelled score and those of the dimensions; without a label, the mean of the latter."""
  parts = {slug(name): number(rf"{re.escape(name)}(?: score)?", name, text, question.part_range or question.range)
           for name in question.dimensions}
  if question.label:
    return Answer(number(re.escape(question.label), question.label, text, question.range), "", parts)
  return Answer(sum(parts.values()) / len(parts), "", parts)


def number(pattern: str, name: str, text: str, bounds: tuple) -> float:
  """The number on the line that begins with a name, "Final Score: 4.5" or "Final Score (1-5): 4.5/5"."""
  begun = rf"(?mi){LISTED}{pattern}{PARENS} ?:"
  found = re.findall(rf"{begun} ?{NUMBER}(?: ?(?:/|out of) ?{NUMBER})? ?(?:\.?$|\. (?=[^\W0-9]))", text)
  if not found or len(found) != len(re.findall(begun, text)):
    raise Unread(f"no line {name!r} with a number and nothing else")
  for said, _, most in found:
    if most and float(most) != bounds[1] or ranged(said) not in (None, tuple(map(float, bounds))):
      raise Unread(f"{name!r} is on another scale than {bounds[0]} to {bounds[1]}")
  values = {within(value, bounds, name) for _, value, _ in found}
  if len(values) > 1:
    raise Unread(f"{name!r} has {len(values)} different values")
  return values.pop()


def ranged(text: str) -> tuple | None:
  """(1.0, 5.0) of "1-5" or "1 to 5", or None."""
  found = re.fullmatch(rf"{NUMBER} ?(?:-|–|to) ?{NUMBER}", text.strip())
  return (float(found[1]), float(found[2])) if found else None


def within(value: str, bounds: tuple, name: str) -> float:
  if not bounds[0] <= float(value) <= bounds[1]:
    raise Unread(f"{name!r} is {value}, out of {bounds[0]} to {bounds[1]}")
  return float(value)


def elements(question: Question, text: str) -> Answer:
  """Lines "element (type): 0" or 1, then a score; part `elements` is the share of them that is there."""
  names = [question.label, *question.dimensions]
  lines = [found for found in re.findall(r"(?m)^([^\n()]+?) ?\(([^\n()]*)\) ?:([^\n]*)$", text)
           if found[0].lower() not in [n.lower() for n in names] and not ranged(found[1])]
  found = [value.strip() for _, _, value in lines]
  if not found or not set(found) <= {"0", "1"}:
    raise Unread("no line \"element (type): 0\" or 1" if not found else "an element is neither 0 nor 1")
  answer = score(question, text)
  return answer._replace(parts={**answer.parts, "elements": found.count("1") / len(found)})


def words(question: Question, text: str) -> Answer:
  """A list of [word, number], the higher the less well shown, then scores; part `no_mistakes` is the last number."""
  pair = rf"\[ ?(\"[^\"\n]*\"|'[^'\n]*') ?, ?{NUMBER} ?\]"
  found = re.findall(rf"\[\s*({pair}(?:\s*,\s*{pair})*)\s*\]", text)
  if len(found) != 1:
    raise Unread(f"{len(found)} lists of words and numbers, not one")
  listed = [(word[1:-1], within(value, (0, 1), word)) for word, value in re.findall(pair, found[0][0])]
  whole = [value for word, value in listed if word.strip("[]").casefold() == "no_mistakes"]
  if len(whole) != 1:
    raise Unread("the list of words has no number for [No_mistakes]" if not whole else "[No_mistakes] stands twice")
  answer = score(question, text)
  return answer._replace(parts={**answer.parts, "no_mistakes": whole[0]})


READ = {"sentence": sentence, "think": think, "json": structured, "shares": shares, "score": score,
        "elements": elements, "words": words}
