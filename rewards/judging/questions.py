"""What a judge is asked, as data: one Question a format, and the conversation that it makes of a prompt and its media.

A text is a template whose fields {prompt}, {first}, {second} and {answer} are replaced in one pass, so that braces in a
prompt, or in the JSON that a text shows, are only characters. Media stand before the text, candidate 1 before candidate
2, as UnifiedReward (2503.05236) was trained. The texts that come with the package (formats.py) are in words of our own:
for a published checkpoint write its exact prompt into a file that `published` reads. Left out: system prompts, which
the chat template has, and media between the words.
"""
import difflib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffusion import pictures

MEDIUMS = ("image", "video")
TASKS = ("generation", "understanding")
PARSERS = {"pair": ("sentence", "think", "json"), "pair_score": ("shares",), "point": ("score", "elements", "words"),
           "yes": ("sentence",)}
SPREADS = ("left", "ends")
FIELDS = {("generation", False): ("prompt",), ("generation", True): ("prompt",),
          ("understanding", False): ("prompt", "answer"), ("understanding", True): ("prompt", "first", "second")}
REQUIRED = ("name", "medium", "task", "kind", "version", "media", "text", "parser")


class Question(NamedTuple):
  """A format: what is shown, what is said, how the answer is read."""
  name: str
  medium: str              # "image" or "video"
  task: str                # "generation": media are candidates; "understanding": answers about media are
  kind: str                # "pair" | "pair_score" | "point" | "yes"
  version: str             # "v1", "v1.5", "2.0", "think", "flex", or any other
  media: int               # images or videos that are shown
  text: str                # the template
  parser: str              # of answers.py
  frames: int | None = None   # of each video; None: all that there are
  spread: str = "left"     # frames floor(i N / n), "left", or evenly from the first to the last one, "ends"
  as_images: bool = False  # whether the frames of a video are shown as images of their own
  rate: float | None = None  # frames a second of the videos that are given: without `frames` about two a second are
                             # shown, as Qwen2-VL and Qwen2.5-VL do, and these hear how fast; None: not known
  side: int | None = None  # media become squares of this side, whatever their shape; None: as they are
  sentences: tuple = ()    # answers that say the first is better, the second is, a tie (pair); yes, no (yes);
                           # how the candidates are called (pair_score)
  label: str = ""          # what stands before the verdict, "Final Score"; without, points are the mean of `dimensions`
  range: tuple = ()        # lowest and highest score
  dimensions: tuple = ()   # names of further scores, all of which an answer must have
  part_range: tuple = ()   # their range, where it is not `range`
  begun: str | None = None  # how an answer begins whose next words are the verdict, for reading without writing; may
                            # have {dimension}; None: no reading but "text"


class Asked(NamedTuple):
  """One thing to judge: media are uint8, [H W 3] or [T H W 3] for a video; answers are strings."""
  prompt: str
  media: tuple = ()
  answers: tuple = ()


def nearest(word: Any, words: Any) -> str:
  close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
  return f" (nearest: {close[0]!r})" if close else ""


def two(question: Question) -> bool:
  """Whether two candidates are compared."""
  return question.kind in ("pair", "pair_score")


# --- conversations ----------------------------------------------------------------------------------------------------


def conversation(question: Question, asked: Asked, swap: bool = False) -> list:
  """[{"role": "user", "content": [{"type": "image", "image": [H W 3]} | {"type": "video", "video": [T H W 3]} ...,
  {"type": "text", "text"}]}]. swap: candidate 2 is shown first.

  Raises ValueError for another number of media or answers, a prompt that is empty, a video without frames, arrays of
  another form."""
  if swap and not two(question):
    raise ValueError(f"question {question.name!r}: swap = True, but a {question.kind} question has one candidate; ask "
                     "it without")
  check_asked(question, asked)
  generation, order = question.task == "generation", -1 if swap else 1
  media = asked.media[::order] if generation else asked.media
  answers = asked.answers[::order]
  fields = dict(zip(FIELDS[question.task, two(question)], (asked.prompt, *answers), strict=True))
  content = [part for medium in media for part in shown(question, medium)]
  return [{"role": "user", "content": [*content, {"type": "text", "text": filled(question.text, fields)}]}]


def filled(template: str, fields: dict) -> str:
  return re.sub(r"\{(" + "|".join(fields) + r")\}", lambda found: fields[found[1]], template)


def shown(question: Question, medium: np.ndarray) -> list:
  """The parts of a message that show one image or video."""
  if question.medium == "image":
    return [{"type": "image", "image": squared(medium, question.side)}]
  frames = np.stack([squared(frame, question.side) for frame in medium[places(question, len(medium))]])
  if question.as_images:
    return [{"type": "image", "image": frame} for frame in frames]
  pace = {} if question.rate is None else {"fps": question.rate * len(frames) / len(medium)}
  return [{"type": "video", "video": frames, **pace}]


def places(question: Question, total: int) -> np.ndarray:
  """Which of `total` frames are shown; one that is asked for more often than it is there comes again."""
  if question.frames is None:
    return np.arange(total) if question.rate is None else pictures.at_rate(total, question.rate)
  return pictures.uniform(total, question.frames, last=question.spread == "ends")


def squared(image: np.ndarray, side: int | None) -> np.ndarray:
  """[H W 3] uint8 -> [side side 3], bicubic, the aspect not kept."""
  if side is None or image.shape[:2] == (side, side):
    return image
  return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def check_asked(question: Question, asked: Asked) -> None:
  name, rank = f"question {question.name!r}", 3 if question.medium == "image" else 4
  wanted = len(FIELDS[question.task, two(question)]) - 1
  if not isinstance(asked.prompt, str) or not asked.prompt.strip():
    raise ValueError(f"{name}: prompt = {asked.prompt!r} is empty, but a judge needs a caption or a question; leave "
                     "this record out or give it one")
  if len(asked.media) != question.media:
    raise ValueError(f"{name}: {len(asked.media)} media are given, {question.media} are needed; a pair question takes "
                     "the two candidates, others take one")
  if len(asked.answers) != wanted or any(not isinstance(a, str) for a in asked.answers):
    raise ValueError(f"{name}: answers = {asked.answers!r}, but {wanted} texts are needed; only questions about "
                     "understanding judge answers")
  for i, medium in enumerate(asked.media):
    shape, kind = np.shape(medium), getattr(medium, "dtype", None)
    if len(shape) == 4 == rank and shape[0] < 2:
      raise ValueError(f"{name}: media {i} has shape {shape}, a video of {shape[0]} frame{'s' * (shape[0] != 1)}; at "
                       "least two are needed to see how anything moves: leave this record out, or ask a question about "
                       "images")
    if len(shape) != rank or shape[-1] != 3 or 0 in shape or kind != np.uint8:
      form = "[H W 3]" if rank == 3 else "[frames H W 3]"
      raise ValueError(f"{name}: media {i} has shape {shape} and type {kind}, but {form} uint8 is needed; convert it, "
                       f"or choose a question about {MEDIUMS[rank == 3]}s")


# --- formats that a user brings ---------------------------------------------------------------------------------------


def find(name: str, questions: dict) -> Question:
  """A question of {name: Question} by its name; ValueError with the nearest one."""
  if name not in questions:
    raise ValueError(f"question = {name!r} is not one of {', '.join(questions)}; choose one of them"
                     f"{nearest(name, questions)}")
  return questions[name]


def published(path: str | Path, known: dict) -> dict:
  """{name: Question} of a JSON file, or of all in a folder: each has one object, or a list of them.

  An object has the fields of Question, or "like": the name of a question of `known` whose fields it takes where it has
  none of its own, so that {"name", "like", "text"} is enough for the exact prompt of a checkpoint. Raises ValueError
  with the file, the question and the field."""
  path = Path(path)
  files = sorted(path.glob("*.json")) if path.is_dir() else [path]
  if not files or not files[0].is_file():
    raise ValueError(f"questions = {str(path)!r}: there is no such JSON file, nor a folder with any; write one with "
                     f"the fields {', '.join(REQUIRED)}")
  found = {}
  for file in files:
    for place, fields in enumerate(objects(file)):
      question = made(fields, known, f"{file}, question {place + 1}")
      if question.name in found:
        raise ValueError(f"{file}: name = {question.name!r} is there twice; rename one of the two")
      found[question.name] = question
  return found


def objects(file: Path) -> list:
  try:
    data = json.loads(file.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{file} is not JSON ({error}); one object with the fields of a question is needed, or a list of "
                     "them") from error
  data = data if isinstance(data, list) else [data]
  if not data or any(not isinstance(one, dict) for one in data):
    raise ValueError(f"{file}: found {str(data)[:80]}, but an object with the fields of a question is needed, or a "
                     "list of them; put them between braces")
  return data


def made(fields: dict, known: dict, at: str) -> Question:
  """A checked Question. at: where the fields come from, for messages."""
  allowed = ("like", *Question._fields)
  for name in fields:
    if name not in allowed:
      raise ValueError(f"{at}: there is no field {name!r}; the fields are {', '.join(allowed)}; rename it"
                       f"{nearest(name, allowed)}")
  try:
    base = find(fields["like"], known)._asdict() if "like" in fields else {}
  except ValueError as error:
    raise ValueError(f"{at}: like: {error}") from error
  fields = {**base, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "like"}}
  missing = [name for name in REQUIRED if name not in fields]
  if missing:
    raise ValueError(f"{at}: field {missing[0]!r} is missing; {', '.join(REQUIRED)} are needed, or \"like\"; add it")
  check_types(fields, at)
  return check(Question(**fields), at)


TYPES = {"media": int, "as_images": bool, "frames": (int, type(None)), "side": (int, type(None)),
         "rate": (int, float, type(None)), "begun": (str, type(None)), "sentences": tuple, "range": tuple,
         "dimensions": tuple, "part_range": tuple}


def check_types(fields: dict, at: str) -> None:
  for name, value in fields.items():
    wanted = TYPES.get(name, str)
    if not isinstance(value, wanted) or isinstance(value, bool) and wanted is not bool:
      words = {tuple: "a list", int: "a whole number", float: "a number", bool: "true or false", str: "a text",
               type(None): "null"}
      allowed = " or ".join(words[t] for t in (wanted if type(wanted) is tuple else (wanted,)))
      raise ValueError(f"{at}: {name} = {value!r} must be {allowed}; change it")


def check(question: Question, at: str) -> Question:
  """The question itself. Raises ValueError for what cannot be asked or read. at: what the message begins with."""
  q = question
  kinds = {"medium": (q.medium, MEDIUMS), "task": (q.task, TASKS), "kind": (q.kind, tuple(PARSERS))}
  for name, (value, allowed) in kinds.items():
    if value not in allowed:
      refuse(at, name, value, f"is not one of {', '.join(allowed)}", f"choose one of them{nearest(value, allowed)}")
  if q.parser not in PARSERS[q.kind]:
    refuse(at, "parser", q.parser, f"does not read a {q.kind} question: {', '.join(PARSERS[q.kind])} do",
           f"choose one of them{nearest(q.parser, PARSERS[q.kind])}")
  media = 2 if two(q) and q.task == "generation" else 1
  if q.media != media:
    refuse(at, "media", q.media, f"must be {media} for a {q.kind} question about {q.task}", "change it")
  check_shown(q, at)
  check_text(q, at)
  check_answers(q, at)
  return q


def refuse(at: str, name: str, value: Any, wrong: str, advice: str) -> None:
  raise ValueError(f"{at}: {name} = {value!r} {wrong}; {advice}")


def check_shown(q: Question, at: str) -> None:
  if q.spread not in SPREADS:
    refuse(at, "spread", q.spread, f"is not one of {', '.join(SPREADS)}", f"choose one{nearest(q.spread, SPREADS)}")
  if q.medium == "image" and (q.frames is not None or q.as_images or q.rate is not None):
    refuse(at, "frames", q.frames, "or rate or as_images is set, but the question shows images", "remove them")
  for name in ("frames", "side"):
    if getattr(q, name) is not None and getattr(q, name) < 1:
      refuse(at, name, getattr(q, name), "must be at least 1", "raise it, or leave it out")
  if q.rate is not None and not q.rate > 0:
    refuse(at, "rate", q.rate, "must be more than 0, frames a second", "give the clips' own rate, or leave it out")


def check_text(q: Question, at: str) -> None:
  wanted = FIELDS[q.task, two(q)]
  for name in wanted:
    if f"{{{name}}}" not in q.text:
      refuse(at, "text", q.text[:60] + "...", f"has no place {{{name}}}", "put one where it belongs")
  for name in re.findall(r"\{([a-z_]+)\}", q.text):
    if name not in wanted:
      refuse(at, "text", q.text[:60] + "...", f"has {{{name}}}, but its places are "
             + ", ".join(f"{{{w}}}" for w in wanted), f"rename it{nearest(name, wanted)}")


def check_answers(q: Question, at: str) -> None:
  counts = {"pair": (2, 3), "pair_score": (2,), "yes": (2,), "point": (0,)}[q.kind]
  lower = [str(s).casefold() for s in q.sentences]
  within = any(a in b for i, a in enumerate(lower) for j, b in enumerate(lower) if i != j)
  if len(q.sentences) not in counts or within or not all(isinstance(s, str) and s for s in q.sentences):
    refuse(at, "sentences", list(q.sentences), f"must be {' or '.join(map(str, counts))} texts, none part of another",
           "write what the answer is for the first, for the second, and for a tie where there may be one")
  for name in ("range", "part_range"):
    value = getattr(q, name)
    numbers = len(value) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if (value and not numbers) or (numbers and not value[0] < value[1]):
      refuse(at, name, list(value), "must be two numbers, the lowest score and a higher one", "change it")
  if (q.kind in ("point", "pair_score") or q.parser == "json") and not q.range:
    refuse(at, "range", list(q.range), f"is needed by the parser {q.parser}", "write the lowest and the highest score")
  if (q.kind == "pair_score" or q.kind == "point" and not q.label) and not q.dimensions:
    refuse(at, "dimensions", [], "must name one or more scores where there is no label", "add them, or a label")
  if len({d.casefold() for d in q.dimensions}) != len(q.dimensions):
    refuse(at, "dimensions", list(q.dimensions), "must differ from each other", "rename one")
  if q.kind == "point" and q.begun is not None and ("{dimension}" in q.begun) == bool(q.label):
    refuse(at, "begun", q.begun, "must have {dimension} where, and only where, there is no label", "change it")
