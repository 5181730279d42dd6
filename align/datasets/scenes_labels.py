"""Questions about pictures that a generator made, labelled by a collection of pairs: a judge learns what it will judge.

Pairs are those of a `collect` run whose score is the exact detector, in the place of people who look at a generator's
own pictures: its mistakes, such as colours that change places, are nearer to the caption than other scenes are. Asked
are `image_pair` and `image_point` of rewards/judging/scenes.json, equally often. As in UnifiedReward's pointwise format
(2503.05236) the judge first names what the caption asks for, and whether it is there:

  a cyan square: no. a triangle: yes
  Final Score: 3

A score is 5 where all of the caption holds, else 1 to 4 in proportion to what does; of a pair both are scored, and the
one with the higher score is better. Pairs are any two pictures of a prompt, often equally good: where one was always
better, a judge learned to say that of either place, without looking. The questions have no words for a tie; its verdict
is random, and both orders make it one.

A collection has few pictures. With `rendered` a share of the questions is about four renders made for the question: two
of a combination that training captions name, one of another of its category that differs in little, as a generator's
mistakes do, and one of any; the detector labels them by the caption of the first two. With `data` these questions are
mixed with others. Left out: clips, answers.
"""
import random

import numpy as np

from align.build import UserError
from align.data import Source
from align.datasets import pairs, scenes_questions
from rewards import scenes
from rewards.judging import questions
from rewards.scenes import caption, combos, render
from rewards.scenes.check import members, verdicts
from rewards.scenes.combos import NUMBERS
from rewards.scenes.scenes import described, fill

TRIES = 12  # combinations of which the nearest is taken


def make(path: str, count: int = 16_384, *, data: Source = None, share: float = 0.5, rendered: float = 0.0,
         size: int = 32, made: int = 16, seed: int = 0) -> Source:
  """Records as of scenes_questions.py, each a pure function of (seed, its number) and the sources.

  Args:
    path: what `collect` wrote to WORKDIR/pairs. count: records; pictures come again.
    data: other questions, such as {"name": "scenes_questions", ...}, of the same size; share: of the labelled ones.
    rendered: share of those that are about renders, of `made` pixels a side.
    size: pixels of a side, as which pictures are shown.

  Raises: UserError for a share outside 0 to 1, or data of another size.
  """
  groups = [*grouped(pairs.read(path)).values()]
  room = data.record(0)["media"].shape if data else (2, size, size, 3)
  world = scenes.make_world(size=made)
  if not 0 <= rendered <= 1:
    raise UserError(f"scenes_labels: rendered = {rendered} must be a share, 0 to 1; correct it")
  if not 0 < share <= 1 or room[1:] != (size, size, 3) or room[0] < 2:
    raise UserError(f"scenes_labels: share = {share}, size = {size} beside data whose media are {room}; share must be "
                    "above 0 and at most 1, and media at least two pictures of that size: correct them")

  def record(index):
    rng = random.Random(f"labels/{seed}/{index}")
    if data and rng.random() >= share:
      return data.record(index % data.size)
    group = drawn(rng, world) if rendered and rng.random() < rendered else rng.choice(groups)
    asked = item(rng, *group, size)
    media = np.zeros(room, np.uint8)
    media[:len(asked.pictures)] = asked.pictures
    return {"prompt": asked.prompt, "media": media, "shown": np.int32(len(asked.pictures)),
            "meta": {"task": asked.question.removeprefix("scenes_"), "caption": asked.answer, "win": asked.answer,
                     "lose": asked.wrong, "question": asked.question, "truth": asked.truth, "more": ()}}
  return Source(count, record, f"labels of {path}")


def grouped(rows: Source) -> dict:
  """{prompt_id: (prompt, spec, its pictures)}."""
  groups = {}
  for row in map(rows.record, range(rows.size)):
    groups.setdefault(int(row["prompt_id"]), (row["prompt"], row["meta"], []))[2].extend([row["win"], row["lose"]])
  return groups


def drawn(rng: random.Random, world: scenes.World) -> tuple:
  """(prompt, spec, four renders): two of its own combination, one of one that is near, one of any of its category."""
  category = rng.choice(scenes.CATEGORIES)
  known = combos.split(category, "train", world)
  own, other = rng.choice(known), rng.choice(known)
  near = max((c for c in rng.choices(known, k=TRIES) if c != own), key=lambda c: shared(own, c), default=other)
  text, things, relation = caption.caption(own, rng)
  made = fill(np.random.default_rng(rng.getrandbits(63)), [own, own, near, other], world)
  return text, described(own, things, relation, []), list(render.render(*made, world.size))


def shared(a: combos.Combo, b: combos.Combo) -> int:
  """How many words two combinations have in common, the number and the relation among them."""
  words = lambda c: [c.count, c.relation, *(word for thing in c.things for word in thing)]
  return sum(x == y for x, y in zip(words(a), words(b), strict=False))


def item(rng: random.Random, prompt: str, spec: dict, pictures: list, size: int) -> scenes_questions.Item:
  """One question about two pictures of a prompt, or about one of them."""
  shown = rng.sample(pictures, 2)
  (first, level), (second, other) = (seen(spec, picture) for picture in shown)
  media = [questions.squared(picture, size) for picture in shown]
  if rng.random() < 0.5:
    wrong = 1 if level > 3 else 5
    return scenes_questions.asked("scenes_image_point", prompt, media[:1], [], level, wrong, f"{first}\n")
  lines = scenes_questions.rated("Image", [first, second], (level, other))
  better = int(level > other or level == other and rng.random() < 0.5)
  return scenes_questions.asked("scenes_image_pair", prompt, media, [], better, 1 - better, lines)


def seen(spec: dict, picture: np.ndarray) -> tuple[str, int]:
  """(each of what a caption asks for and whether the detector finds it, a score of 1 to 5)."""
  found, = scenes.detect(picture[None])
  limits = {clause["class"]: clause["count"] for clause in spec["exclude"]}
  said = []
  for clause, parts in zip(spec["include"], verdicts(spec, found), strict=True):
    holds = min(parts) >= 1 and len(members(clause, found)) < limits.get(clause["class"], np.inf)
    said.append(f"{element(clause, spec['include'])}: {'yes' if holds else 'no'}")
  return ". ".join(said), 5 if scenes.check(spec, found) else min(4, round(1 + 4 * scenes.soft(spec, found)))


def element(clause: dict, include: list) -> str:
  """What a clause asks for: "two red squares", "a square top left", "a square above a red circle"."""
  noun = " ".join(word for word in (clause.get("color"), clause["class"]) if word)
  one = f"a{'n' * (noun[0] in 'aeiou')} {noun}"
  words = [one if clause["count"] == 1 else f"{NUMBERS[clause['count']]} {noun}s", clause.get("place", "")]
  if "position" in clause:
    relation, target = clause["position"]
    words += [relation, element(include[target], include)]
  return " ".join(word for word in words if word)
