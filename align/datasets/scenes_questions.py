"""Questions about renders of Scenes with their answers: what a small vision-language judge is made from.

  caption, colour, shape, count,         one picture, a question in words, a short answer
    side, there, list
  talk                                   a conversation of several of these about one picture, at last the list
  compare                                the same about two pictures: which of them shows something
  moves                                  and about a clip, frame by frame: where and how fast things move
  yes_no                                 does the picture show the caption?
  image_pair, image_point                pictures made for a caption: which is better, or a score
  video_pair, video_point                the same of clips, frame by frame
  image_answers, image_answer            answers to a question about a picture: which is better, or a score
  video_answers, video_answer            the same about a clip

From yes_no on, they are asked in the words of rewards/judging/scenes.json, and shown as `questions.conversation` shows
them, so that what is learned here is what a judge is asked later. What is judged is good (5), right but hazy, blurred,
noisy, frozen or shaking (3), or shows something else than the caption (1); of a pair the candidates differ in this.
Answers are right (5) or wrong (1). First and second, yes and no, and the scores are equally frequent.

Judges write first what they see, on lines of their own, so that a verdict is learned as a comparison of their own words
with the caption: the objects of a picture from left to right, or how things move, and their own answer to a question
that others answered. Of a pair of pictures or clips they score each, and then say which is better. Only yes_no is
answered at once.

Captions are of scenes.py's scenes, of which the split "test" shows combinations that "train" never names. Everything
else is asked of scenes with one object to `most`, equally often, of any shapes and colours at any place: answers are
balanced, nothing is held out, and another seed has other scenes.

Every record has as many pictures as the task that shows the most; `shown` says how many of them are there, the others
are black and the policy leaves them out. So all batches have one shape, a program is compiled once, and yet no prompt
holds a picture that a judge would not see. A picture on which candidates stand side by side would be cheaper, but no
judge is asked so. The kind of a record is its task. Left out: ties, reasons behind a verdict.
"""
import functools
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rewards.judging
from align.build import UserError, nearest
from align.data import Source
from rewards import scenes
from rewards.judging import formats, questions
from rewards.scenes import combos, defects, render
from rewards.scenes.scenes import CHUNK, SPLITS, fill

FILE = Path(rewards.judging.__file__).parent / "scenes.json"
ASKED = questions.published(FILE, formats.TABLE)
FRAMES = ASKED["scenes_video_pair"].frames
PLAIN = {"caption": "Describe the image.", "colour": "What colour is the {shape}?",
         "shape": "What shape is the {color} object?", "count": "How many objects are there?",
         "side": "On which side is the {color} object?", "there": "Is there a {color} {shape}?",
         "list": "List the objects."}
ONE_OF = "On which image is there a {}?"
CLIP = {"caption": "Describe the video.", "direction": "Where does the {color} {class} move?",
        "speed": "How does the {color} {class} move?"}
CHOICES = {"direction": tuple(scenes.clip.DIRECTIONS), "speed": tuple(scenes.clip.SPEEDS)}
LEVELS = (5, 3, 1)
TRIALS = 200
TURNS = 2     # questions of a conversation, before the list
CLEAR = .08   # from the middle, in fractions of the side, where a side is asked for
COVERED = .05  # share of a cell from which it shows an object


class Item(NamedTuple):
  """One question. question: the name of its format, "" for plain words; truth: what its answer is read as; more:
  questions and answers that follow; objects: of the scene, where its pictures' cells can be named; seen:
  what is shown, where the answer is only one of many that are right."""
  pictures: list
  prompt: str
  answer: str
  wrong: str
  question: str
  truth: Any
  more: tuple = ()
  objects: tuple = ()
  seen: str = ""


class Draw(NamedTuple):
  """Where scenes come from. scene, clip (rng) -> (picture or frames, caption, spec); free (rng) -> (picture, objects).
  """
  scene: Any
  clip: Any
  free: Any


# --- what is shown, and what is wrong with it ------------------------------------------------------------------------


def drawer(seed: int, split: str, size: int, categories: tuple | None, world: scenes.World, index: int) -> Draw:
  """Draws from the block of scenes around a record, which are laid out together."""
  first = index // CHUNK * CHUNK

  def scene(rng):
    return one(scenes.batch(seed, first + rng.randrange(CHUNK), 1, split, size, categories, None, world))

  def clip(rng):
    return one(scenes.clip.batch(seed, first + rng.randrange(CHUNK), 1, split, size, FRAMES, world))

  def free(rng):
    at = rng.randrange(CHUNK)
    drawn = [part[at:at + 1] for part in crowd(seed, index // CHUNK, split, world)]
    return render.render(*drawn, size)[0], render.objects(*(part[0] for part in drawn))
  return Draw(scene, clip, free)


@functools.lru_cache(maxsize=1024)
def crowd(seed: int, number: int, split: str, world: scenes.World) -> tuple:
  """A chunk of scenes with any objects, each number equally often: the arguments of `render.render` but the size."""
  rng = np.random.default_rng([seed, SPLITS[split], number, 1])
  free = [combos.Combo("count", (("object", "", ""),), int(n)) for n in rng.integers(1, world.most + 1, CHUNK)]
  return fill(rng, free, world)


def one(made: tuple) -> tuple:
  return tuple(column[0] for column in made)


def shows(spec: dict, other: dict) -> bool:
  """Whether a scene or clip is also one of this spec."""
  if "motion" in spec:
    things = [tuple(sorted(thing.items())) for thing in other["motion"]]
    return all(tuple(sorted(thing.items())) in things for thing in spec["motion"])
  return scenes.check(spec, other["objects"])


def another(rng: random.Random, draw: Any, spec: dict) -> tuple:
  """A draw that does not show this spec."""
  for _ in range(TRIALS):
    found = draw(rng)
    if not shows(spec, found[2]):
      return found
  raise UserError(f"scenes questions: {TRIALS} scenes all show {spec['key']!r}, but a wrong one is needed; give the "
                  "world more shapes, colors or categories")


def damaged(rng: random.Random, media: np.ndarray) -> np.ndarray:
  """uint8 [H W 3] or [F H W 3], in one of the ways of the docstring."""
  if media.ndim == 4 and rng.random() < 2 / 3:
    return defects.moved_badly(rng, media)
  return defects.looking_badly(rng, media)


def graded(rng: random.Random, draw: Any, media: np.ndarray, spec: dict, level: int) -> tuple[np.ndarray, str]:
  """(media of this level, what is seen)."""
  if level == 3:
    return damaged(rng, media), f"no good {'image' if media.ndim == 3 else 'video'}"
  media, _, spec = (media, "", spec) if level == 5 else another(rng, draw, spec)
  return media, told(spec)


def told(spec: dict) -> str:
  """What a scene or a clip shows."""
  if "motion" in spec:
    return " and ".join(f"a {m['color']} {m['class']} moving {m['direction']} {m['speed']}" for m in spec["motion"])
  return listed(spec["objects"])


# --- plain questions -------------------------------------------------------------------------------------------------


def plain(task: str, rng: random.Random, draw: Draw, world: scenes.World) -> Item:
  """A question about one picture, a right answer and a wrong one."""
  if task == "caption":
    media, text, spec = draw.scene(rng)
    return Item([media], PLAIN[task], text, another(rng, draw.scene, spec)[1], "", text, seen=told(spec))
  for _ in range(TRIALS):
    media, objects = draw.free(rng)
    found = about(task, rng, objects, world)
    if found:
      return Item([media], *found, "", found[1], objects=tuple(objects))
  raise UserError(f"scenes questions: in {TRIALS} scenes there is nothing to ask of kind {task!r}; give the world more "
                  "shapes or colors")


def about(task: str, rng: random.Random, objects: list, world: scenes.World) -> tuple | None:
  """(question, answer, a wrong one) about a scene, None where nothing of this kind has one answer."""
  shapes, colors = ([thing[name] for thing in objects] for name in ("shape", "color"))
  other = lambda right, choices: rng.choice([choice for choice in choices if choice != right])
  if task == "count":
    right = combos.NUMBERS[len(objects)]
    return PLAIN[task], right, other(right, combos.NUMBERS[1:world.most + 1])
  if task == "list":
    changed = {**objects[-1], "color": other(colors[-1], world.colors)}
    return PLAIN[task], listed(objects), listed([*objects[:-1], changed])
  if task == "there":
    is_there, thing = rng.random() < .5, rng.choice(objects)
    absent = [(c, s) for c in world.colors for s in world.shapes
              if (c, s) not in zip(colors, shapes, strict=True) and (c in colors or s in shapes)]
    if not absent:
      return None
    color, shape = (thing["color"], thing["shape"]) if is_there else rng.choice(absent)
    return PLAIN[task].format(color=color, shape=shape), *(("yes", "no") if is_there else ("no", "yes"))
  named = shapes if task == "colour" else colors
  single = [o for o, name in zip(objects, named, strict=True) if named.count(name) == 1
            and (task != "side" or abs(o["x"] - .5) > CLEAR)]
  if not single:
    return None
  thing = rng.choice(single)
  right, choices = {"colour": (thing["color"], world.colors), "shape": (thing["shape"], world.shapes),
                    "side": ("left" if thing["x"] < .5 else "right", ("left", "right"))}[task]
  return PLAIN[task].format(**thing), right, other(right, choices)


def listed(objects: list) -> str:
  """From left to right."""
  return " and ".join(f"a {o['color']} {o['shape']}" for o in sorted(objects, key=lambda o: o["x"]))


def talk(rng: random.Random, draw: Draw, world: scenes.World) -> Item:
  """Several questions about one picture and at last its list, which would tell the other answers."""
  media, objects = draw.free(rng)
  kinds = [kind for kind in PLAIN if kind not in ("caption", "list")]
  found = [made for kind in rng.sample(kinds, len(kinds)) if (made := about(kind, rng, objects, world))][:TURNS]
  first, *rest = [*found, about("list", rng, objects, world)]
  more = tuple(text for question, answer, _ in rest for text in (question, answer))
  return Item([media], *first, "", first[1], more, tuple(objects))


def compare(rng: random.Random, draw: Draw) -> Item:
  """Questions about what only one of two pictures shows."""
  for _ in range(TRIALS):
    pictures, listed_ = zip(*(draw.free(rng) for _ in range(2)), strict=True)
    named = [{name for o in objects for name in (f"{o['color']} {o['shape']}", o["shape"], f"{o['color']} object")}
             for objects in listed_]
    alone = [sorted(named[0] - named[1]), sorted(named[1] - named[0])]
    if all(alone):
      break
  else:
    raise UserError(f"scenes questions: {TRIALS} pairs of scenes show the same; give the world more shapes or colors")
  sides = [rng.randrange(2) for _ in range(TURNS + 1)]
  (first, answer), *rest = [(ONE_OF.format(rng.choice(alone[side])), f"Image {side + 1}") for side in sides]
  more = tuple(text for pair in rest for text in pair)
  return Item([*pictures], first, answer, f"Image {2 - sides[0]}", "", answer, more)


def words(objects: tuple, size: int, side: int) -> list:
  """[side * side] texts, row by row: the object that covers most of a cell, or "nothing"."""
  take = lambda name: np.array([thing[name] for thing in objects])
  shape = np.array([scenes.SHAPES.index(thing["shape"]) for thing in objects])
  cover = render.coverage(shape, take("x"), take("y"), take("r"), size)
  cover = cover.reshape(len(objects), side, size // side, side, size // side).mean((2, 4)).reshape(len(objects), -1)
  return [f"{objects[best]['color']} {objects[best]['shape']}" if part[best] > COVERED else "nothing"
          for best, part in zip(cover.argmax(0), cover.T, strict=True)]


def about_clip(rng: random.Random, draw: Draw) -> Item:
  """A question about a clip."""
  media, text, spec = draw.clip(rng)
  task, thing = rng.choice([*CLIP]), rng.choice(spec["motion"])
  if task == "caption":
    return Item(list(media), CLIP[task], text, another(rng, draw.clip, spec)[1], "", text, seen=told(spec))
  wrong = rng.choice([choice for choice in CHOICES[task] if choice != thing[task]])
  return Item(list(media), CLIP[task].format(**thing), thing[task], wrong, "", thing[task])


def moves(rng: random.Random, draw: Draw) -> Item:
  """Two questions about where and how fast things in a clip move, and at last its caption."""
  media, text, spec = draw.clip(rng)
  asked = [(CLIP[task].format(**thing), thing[task], rng.choice([c for c in CHOICES[task] if c != thing[task]]))
           for thing in spec["motion"] for task in CHOICES]
  first, *rest = rng.sample(asked, 2)
  more = [part for question, answer, _ in rest for part in (question, answer)]
  return Item(list(media), *first, "", first[1], (*more, CLIP["caption"], text))


# --- what judges are asked -------------------------------------------------------------------------------------------


def asked(name: str, prompt: str, media: list, answers: list, truth: float, wrong: float, seen: str) -> Item:
  """truth, wrong: what the right and a wrong answer are read as: 1, the first is better, or yes, or a score. seen: the
  lines in front of the verdict."""
  question = ASKED[name]
  *shown, text = questions.conversation(question, questions.Asked(prompt, tuple(media), tuple(answers)))[0]["content"]
  say = lambda value: seen + (f"{question.begun}{value}" if question.kind == "point" else question.sentences[1 - value])
  return Item([part["image"] for part in shown], text["text"], say(truth), say(wrong), name, float(truth))


def rated(noun: str, said: list, scores: tuple) -> str:
  """Lines that score each candidate of a pair."""
  return "".join(f"{noun} {i + 1}: {text}. Score: {score}\n"
                 for i, (text, score) in enumerate(zip(said, scores, strict=True)))


def generated(medium: str, kind: str, rng: random.Random, draw: Draw) -> Item:
  """Media that were made for a caption."""
  source = draw.scene if medium == "image" else draw.clip
  media, text, spec = source(rng)
  levels = rng.sample((5, 1) if kind == "yes" else LEVELS, 2)
  made, said = zip(*(graded(rng, source, media, spec, level) for level in levels[:1 + (kind == "pair")]), strict=True)
  truth, wrong = levels if kind == "point" else (int(levels[0] > levels[1]), int(levels[0] < levels[1]))
  seen = "" if kind == "yes" else f"{said[0]}\n" if kind == "point" else rated(medium.capitalize(), said, levels)
  return asked(f"scenes_{medium}_{kind}", text, made, [], truth, wrong, seen)


def understood(medium: str, kind: str, rng: random.Random, draw: Draw, world: scenes.World) -> Item:
  """Answers to a question about a picture or a clip."""
  item = plain(rng.choice([*PLAIN]), rng, draw, world) if medium == "image" else about_clip(rng, draw)
  said = rng.sample([item.answer, item.wrong], 2)
  first = int(said[0] == item.answer)
  truth, wrong = (first, 1 - first) if kind == "answers" else (1 + 4 * first, 5 - 4 * first)
  media = item.pictures if medium == "image" else [np.stack(item.pictures)]
  said = said if kind == "answers" else said[:1]
  return asked(f"scenes_{medium}_{kind}", item.prompt, media, said, truth, wrong, f"{item.seen or item.answer}\n")


def item(task: str, rng: random.Random, draw: Draw, world: scenes.World) -> Item:
  if task in PLAIN:
    return plain(task, rng, draw, world)
  if task in ("talk", "compare", "moves"):
    return talk(rng, draw, world) if task == "talk" else compare(rng, draw) if task == "compare" else moves(rng, draw)
  medium, kind = task.split("_") if task != "yes_no" else ("image", "yes")
  return generated(medium, kind, rng, draw) if kind in ("pair", "point", "yes") else (
    understood(medium, kind, rng, draw, world))


PICTURES = {**dict.fromkeys([*PLAIN, "talk", "yes_no", "image_point", "image_answers", "image_answer"], 1),
            **dict.fromkeys(["compare", "image_pair"], 2), "video_pair": 2 * FRAMES,
            **dict.fromkeys(["moves", "video_point", "video_answers", "video_answer"], FRAMES)}


def texts() -> list:
  """Texts in which every word of every question and answer occurs, for a tokenizer."""
  things = [noun + ending for noun in ("object", *scenes.SHAPES) for ending in ("", "s")]
  said = [*scenes.COLORS, *things, *combos.NUMBERS, *PLAIN.values(), ONE_OF, *CLIP.values(),
          "a an at on of to the and with that is exactly photo picture image clip video moving slowly quickly",
          "left right top bottom above below over under up down middle large small nothing yes no"]
  return said + [text for q in ASKED.values() for text in (q.text, q.label, *q.sentences)]


def make(split: str = "train", count: int = 100_000, *, tasks: tuple[str, ...] = tuple(PLAIN),
         weights: tuple[float, ...] | None = None, size: int = 32, cells: int = 0, seed: int = 0,
         categories: tuple[str, ...] | None = None, shapes: tuple[str, ...] = scenes.SHAPES,
         colors: tuple[str, ...] = tuple(scenes.COLORS), most: int = 4,
         detail: float = 1.0) -> Source:
  """Records: "prompt", "media" uint8 [n size size 3], "shown" int32, how many of these are there, and "meta": {"task",
  "caption" and "win" (the answer), "lose" (a wrong one), "question" (the format's name or ""), "truth", "more" (a
  talk's further questions and answers)} and, with cells, "cells" (what each shows, [] where that is not known).

  Args:
    split: "train" or "test": which combinations captions name; none is in both.
    count: records; record i is a pure function of (seed, split, i) and the other options.
    tasks: a mixture of those above. weights: their relative frequencies, by default equal.
    size: pixels of a side. categories: of pictures with captions, names among the six of GenEval and "long", by default
      the six. shapes, colors, most, detail: the world, as in scenes.py.

  Raises: UserError for a value that is impossible.
  """
  wrong = next((task for task in tasks if task not in PICTURES), None)
  if wrong is not None or not tasks:
    raise UserError(f"scenes questions: tasks holds {wrong!r}, allowed are one or more of {', '.join(PICTURES)}; "
                    f"correct it{nearest(wrong, PICTURES)}")
  weights = tuple(weights) if weights else (1.,) * len(tasks)
  if len(weights) != len(tasks) or min(weights) < 0 or sum(weights) <= 0 or count < 1:
    raise UserError(f"scenes questions: count = {count}, weights = {weights} for {len(tasks)} tasks; there must be a "
                    "record, and a weight of 0 or more for each task with a positive sum: correct them")
  if cells < 0 or cells and size % cells:
    raise UserError(f"scenes questions: cells = {cells} must divide size = {size}, or be 0; change one of them")
  most_shown = max(PICTURES[task] for task in tasks)

  def begun(index):
    rng = random.Random(f"questions/{seed}/{split}/{index}")
    return rng, rng.choices(tasks, weights)[0]

  def record(index):
    rng, task = begun(index)
    made = item(task, rng, drawer(seed, split, size, categories, world, index), world)
    media = np.zeros((most_shown, size, size, 3), np.uint8)
    media[:len(made.pictures)] = made.pictures
    named = {"cells": words(made.objects, size, cells) if made.objects else []} if cells else {}
    return {"prompt": made.prompt, "media": media, "shown": np.int32(len(made.pictures)),
            "meta": {**named, "task": task, "caption": made.answer, "win": made.answer, "lose": made.wrong,
                     "question": made.question, "truth": made.truth, "more": made.more}}

  try:
    world = scenes.make_world(shapes=tuple(shapes), colors=tuple(colors), most=most, size=size, detail=detail)
    record(0)
  except ValueError as error:
    raise UserError(str(error)) from None
  return Source(count, record, f"scenes_questions/{split}", lambda index: begun(index)[1])
