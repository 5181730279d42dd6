"""Questions about pictures and clips that a generator made, labelled by a collection of pairs: a judge learns what it
will judge.

Pairs are those of a `collect` run whose score is the exact detector, in the place of people who look at a generator's
own pictures: its mistakes, such as colours that change places, are nearer to the caption than other scenes are. Asked
are, equally often, the pairs and points of rewards/judging/scenes.json, about pictures or clips, whichever there are.
As in UnifiedReward's pointwise format (2503.05236) the judge first names what the caption asks for, and whether it is
there, but before that all that the detector sees, whether it was asked for or not:

  a red square top left and a cyan triangle right. a cyan square: no. a triangle: yes
  Final Score: 4
  a red circle moving left slowly. a red circle: yes. moving left: yes. moving left quickly: no
  Final Score: 4

So every picture teaches what it shows, not only one yes or no, and what is asked for can be read from what was written.
A score is 5 where all of the caption holds, else 1 to 4 in proportion to what does; of a pair both are scored, and the
one with the higher score is better. Pairs are any two pictures of a prompt, often equally good: where one was always
better, a judge learned to say that of either place, without looking. The questions have no words for a tie; its verdict
is random, and both orders make it one.

A collection has few pictures. With `rendered` a share of the questions is about four renders made for the question: two
of a combination that training captions name, one of another of its category that differs in little, as a generator's
mistakes do, and one of any; the detector labels them by the caption of the first two. With `data` these questions are
mixed with others, which may be labels of another generator.

With several collections of the same prompts, generators of different quality are compared, in what `collect` kept of
each. With `brief` the words are those of scenes_questions.py about renders: told is only what is seen, a score is 5, 3
or 1, equally often where a prompt has them, and of a pair they differ. But 3 is a picture of which half of the caption
or more holds, where of renders it is one that is damaged. Left out: answers, renders of clips.
"""
import functools
import random

import numpy as np

from align.build import UserError
from align.data import Source
from align.datasets import pairs, scenes_questions
from rewards import scenes
from rewards.judging import questions
from rewards.scenes import caption, combos, render
from rewards.scenes.check import members, verdicts, within
from rewards.scenes.clip import DIRECTIONS, SPEEDS, verdict
from rewards.scenes.combos import NUMBERS
from rewards.scenes.detect import JUNK
from rewards.scenes.scenes import described, fill

TRIES = 12  # combinations of which the nearest is taken
NAMED = 4   # things that are told at most: of a picture those that look most like a shape


def make(path: str | tuple[str, ...], count: int = 16_384, *, data: Source = None, share: float = 0.5,
         rendered: float = 0.0, brief: bool = False, called: str = None, size: int = 32, made: int = 16, seed: int = 0
         ) -> Source:
  """Records as of scenes_questions.py, each a pure function of (seed, its number) and the sources; their kind is the
  task, such as "image_pair".

  Args:
    path: what `collect` wrote to WORKDIR/pairs, of one generator or of several. count: records; pictures come again.
    brief: see above. called: the word of tasks in place of "image" or "video", so that an examination tells them from
      other questions.
    data: other questions, such as {"name": "scenes_questions", ...}, of the same size; share: of the labelled ones.
    rendered: share of those that are about renders, of `made` pixels a side; of pictures only.
    size: pixels of a side, as which pictures are shown.

  Raises: UserError for a share outside 0 to 1, renders beside clips or brief labels, data of another size, collections
  of different prompts or sizes, and where brief labels need two scores of a prompt and none has them.
  """
  paths = (path,) if isinstance(path, str) else tuple(path)
  groups = differing(paths, [*grouped(paths, brief).values()]) if brief else [*grouped(paths).values()]
  medium = "image" if groups[0][1][0][0].ndim == 3 else "video"
  beside = data.record(0)["media"].shape if data else (0, size, size, 3)
  most = max(scenes_questions.PICTURES[f"{medium}_pair"], beside[0])
  world = scenes.make_world(size=made)
  if not 0 <= rendered <= 1 or rendered and (brief or medium == "video"):
    raise UserError(f"scenes_labels: rendered = {rendered} must be a share, 0 to 1, of pictures, and 0 of clips and of "
                    f"brief labels; these are {medium}s, brief = {brief}: correct it")
  if not 0 < share <= 1 or beside[1:] != (size, size, 3):
    raise UserError(f"scenes_labels: share = {share}, size = {size} beside data whose media are {beside}; share must "
                    "be above 0 and at most 1, and media pictures of that size: correct them")

  def padded(pictures):
    return np.concatenate([pictures, np.zeros((most - len(pictures), size, size, 3), np.uint8)])

  def begun(index):
    rng = random.Random(f"labels/{medium}/{seed}/{index}")
    own = data is None or rng.random() < share
    return rng, rng.choice(("pair", "point")) if own else None

  def record(index):
    rng, kind = begun(index)
    if kind is None:
      row = data.record(index % data.size)
      return {**row, "media": padded(row["media"])}
    prompt, labels = drawn(rng, world) if rng.random() < rendered else rng.choice(groups)
    asked = item(medium, kind, rng, prompt, chosen(rng, labels, brief), size)
    return {"prompt": asked.prompt, "media": padded(asked.pictures), "shown": np.int32(len(asked.pictures)),
            "meta": {"task": named_task(kind), "caption": asked.answer, "win": asked.answer, "lose": asked.wrong,
                     "question": asked.question, "truth": asked.truth, "more": ()}}

  named_task = lambda kind: f"{called or medium}_{kind}"

  def kind_of(index):
    kind = begun(index)[1]
    return named_task(kind) if kind else data.kind(index % data.size)

  return Source(count, record, f"labels of {', '.join(paths)}", kind_of if data is None or data.kind else None)


def differing(paths: tuple, groups: list) -> list:
  """The groups whose scores are not all the same."""
  found = [(prompt, labels) for prompt, labels in groups if len({level for *_, level in labels}) > 1]
  if not found:
    raise UserError(f"scenes_labels: path = {paths}: of no prompt two pictures have different scores, which `brief` "
                    "labels need; collect of more prompts, or of generators that differ more")
  return found


def chosen(rng: random.Random, labels: list, brief: bool) -> list:
  """Two of a prompt's pictures or clips: any, or of different scores that are equally frequent."""
  if not brief:
    return rng.sample(labels, 2)
  levels = rng.sample(sorted({level for *_, level in labels}), 2)
  return [rng.choice([one for one in labels if one[-1] == level]) for level in levels]


def item(medium: str, kind: str, rng: random.Random, prompt: str, two: list, size: int) -> scenes_questions.Item:
  """One question about two pictures or clips of a prompt, or about the first of them."""
  (_, first, level), (_, second, other) = two
  media = [sized(one, size) for one, *_ in two]
  ask = functools.partial(scenes_questions.asked, f"scenes_{medium}_{kind}", prompt)
  if kind == "point":
    return ask(media[:1], [], level, 1 if level > 3 else 5, f"{first}\n")
  lines = scenes_questions.rated(medium.capitalize(), [first, second], (level, other))
  better = int(level > other or level == other and rng.random() < 0.5)
  return ask(media, [], better, 1 - better, lines)


def sized(media: np.ndarray, size: int) -> np.ndarray:
  """A picture, or every frame of a clip, as a square of this side."""
  return questions.squared(media, size) if media.ndim == 3 else np.stack([questions.squared(f, size) for f in media])


# --- what is labelled ------------------------------------------------------------------------------------------------


def grouped(paths: tuple, brief: bool = False) -> dict:
  """{prompt_id: (prompt, its pictures or clips with their labels)} of all collections."""
  groups, shape = {}, None
  for path in paths:
    rows = pairs.read(path)
    for row in map(rows.record, range(rows.size)):
      prompt, _, media = groups.setdefault(int(row["prompt_id"]), (row["prompt"], row["meta"], []))
      shape = shape or row["win"].shape
      if (prompt, shape) != (row["prompt"], row["win"].shape):
        raise UserError(f"scenes_labels: path = {path!r}: its prompt {row['prompt_id']} is {row['prompt']!r} with "
                        f"media {row['win'].shape}, but in the paths before it is {prompt!r} with {shape}; generators "
                        "are compared of the same prompts and size: collect with the same `data`")
      media.extend([row["win"], row["lose"]])
  return {number: (prompt, labelled(spec, media, brief)) for number, (prompt, spec, media) in groups.items()}


def drawn(rng: random.Random, world: scenes.World) -> tuple:
  """(prompt, four renders with their labels): two of its own combination, one of one that is near, one of any of its
  category."""
  category = rng.choice(scenes.CATEGORIES)
  known = combos.split(category, "train", world)
  own, other = rng.choice(known), rng.choice(known)
  near = max((c for c in rng.choices(known, k=TRIES) if c != own), key=lambda c: shared(own, c), default=other)
  text, things, relation = caption.caption(own, rng)
  made = fill(np.random.default_rng(rng.getrandbits(63)), [own, own, near, other], world)
  return text, labelled(described(own, things, relation, []), [*render.render(*made, world.size)])


def shared(a: combos.Combo, b: combos.Combo) -> int:
  """How many words two combinations have in common, the number and the relation among them."""
  words = lambda c: [c.count, c.relation, *(word for thing in c.things for word in thing)]
  return sum(x == y for x, y in zip(words(a), words(b), strict=False))


def labelled(spec: dict, media: list, brief: bool = False) -> list:
  """[(picture or clip, what is seen in it, a score of 1 to 5)]."""
  found = (scenes.clip.detect if "motion" in spec else scenes.detect)(np.stack(media))
  return [(one, *(seen_briefly if brief else seen)(spec, objects)) for one, objects in zip(media, found, strict=True)]


def seen(spec: dict, found: list) -> tuple[str, int]:
  """(what the detector found, and whether each of what a caption asks for is there; a score). found: objects of a
  picture, or of every frame of a clip."""
  said = [f"{text}: {'yes' if holds else 'no'}" for text, holds in elements(spec, found)]
  right, soft = held(spec, found)
  told = moving if "motion" in spec else pictured
  return ". ".join([told(found), *said]), 5 if right else min(4, round(1 + 4 * soft))


def seen_briefly(spec: dict, found: list) -> tuple[str, int]:
  """(what the detector found; 5, 3 or 1)."""
  right, soft = held(spec, found)
  return moving(found) if "motion" in spec else pictured(found, places=False), 5 if right else 3 if soft >= 0.5 else 1


def held(spec: dict, found: list) -> tuple[bool, float]:
  """(whether all of a caption holds, how much of it)."""
  checks = scenes.clip if "motion" in spec else scenes
  return checks.check(spec, found), checks.soft(spec, found)


# --- words for it ----------------------------------------------------------------------------------------------------


def pictured(objects: list, places: bool = True) -> str:
  """What a picture shows, whether it has a known shape or not, from left to right, and where each is."""
  shown = sorted(objects[:NAMED], key=lambda thing: thing["x"])
  where = lambda thing: [name for name in ("top", "bottom", "left", "right") if within(thing, name)] or ["middle"]
  said = [[named(thing["color"], thing["shape"]), *(where(thing) if places else ())] for thing in shown]
  return " and ".join(map(" ".join, said)) or "nothing"


def moving(frames: list) -> str:
  """What a clip shows most of the time, colour by colour, and how it moves, where it goes straight in one direction."""
  said = [moved(color, frames) for color in sorted({thing["color"] for objects in frames for thing in objects})]
  return " and ".join([*filter(None, said)][:NAMED]) or "nothing"


def moved(color: str, frames: list) -> str:
  """The same of one colour; "" where it is not there so often."""
  for shape, by in (*((shape, ("shape", "color")) for shape in scenes.SHAPES), (JUNK, ("color",))):
    ways = {f" moving {d} {s}": verdict({"class": shape, "color": color, "direction": d, "speed": s}, frames, by)
            for d in DIRECTIONS for s in SPEEDS}
    if all(parts[0] >= 1 for parts in ways.values()):
      return named(color, shape) + next((way for way, parts in ways.items() if min(parts) >= 1), "")
  return ""


def named(color: str, shape: str) -> str:
  noun = " ".join(filter(None, (color, "object" if shape == JUNK else shape)))
  return f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def elements(spec: dict, found: list) -> list:
  """[(one of what a caption asks for, whether the detector finds it)]."""
  if "motion" in spec:
    words = [(named(thing["color"], thing["class"]), way := f"moving {thing['direction']}", f"{way} {thing['speed']}")
             for thing in spec["motion"]]
    return [(text, part >= 1) for texts, parts in zip(words, scenes.clip.verdicts(spec, found), strict=True)
            for text, part in zip(texts, parts, strict=True)]
  limits = {clause["class"]: clause["count"] for clause in spec["exclude"]}
  return [(element(clause, spec["include"]),
           min(parts) >= 1 and len(members(clause, found)) < limits.get(clause["class"], np.inf))
          for clause, parts in zip(spec["include"], verdicts(spec, found), strict=True)]


def element(clause: dict, include: list) -> str:
  """What a clause asks for: "two red squares", "a square top left", "a red square above a circle". The colour of that
  circle is what its own clause asks for."""
  color, shape, count = clause.get("color", ""), clause["class"], clause["count"]
  words = [named(color, shape) if count == 1 else f"{NUMBERS[count]} {color} {shape}s", clause.get("place", "")]
  if "position" in clause:
    relation, target = clause["position"]
    words += [relation, named("", include[target]["class"])]
  return " ".join(" ".join(words).split())
