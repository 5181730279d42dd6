"""Captioned scenes by number: record i of a seed is a pure function of (seed, split, i).

Scenes are laid out in chunks of `CHUNK`, vectorised, and the latest chunks are kept; pictures, and the dicts that
describe them, are made on demand.
"""
import functools
import math
import random

import numpy as np

from rewards.scenes import caption as captions
from rewards.scenes import combos as table
from rewards.scenes import long, render
from rewards.scenes import world as worlds

CHUNK = 1024
PLAIN = .3  # share of training records with a plain combination, see combos.py
SPLITS = {"train": 0, "test": 1}


def draw(category, split, world, rng):
  """One combination of a category; training records are plain with probability `PLAIN`, where there are plain ones."""
  plain, refined = strata(category, split, world)
  chosen = plain if plain and (not refined or rng.random() < PLAIN) else refined
  return chosen[int(rng.random() * len(chosen))]


@functools.cache
def strata(category, split, world):
  """(plain, refined) combinations of a category and split."""
  every = table.split(category, split, world)
  return [c for c in every if not c.refined], [c for c in every if c.refined]


@functools.lru_cache(maxsize=1024)  # half a gigabyte for a million records
def chunk(seed, number, split, categories, weights, world):
  """Chunk `number` of a seed: the arguments of `render.render` and a function i -> (caption, spec); see `batch`."""
  words = random.Random(f"scenes/{seed}/{split}/{number}")
  kinds = words.choices(categories, weights, k=CHUNK)
  brief = np.array([kind != "long" for kind in kinds])
  combo = [draw(kind, split, world, words) for kind in kinds if kind != "long"]
  said = [captions.caption(c, words) for c in combo]
  parts, texts, specs = [], [], []
  if combo:
    parts.append(fill(np.random.default_rng([seed, SPLITS[split], number]), combo, world))
  if not brief.all():
    scene, texts, specs = long.make(seed, number, split, int((~brief).sum()), world)
    parts.append(scene)
  place = np.where(brief, brief.cumsum() - 1, len(combo) + (~brief).cumsum() - 1)
  scene = tuple(np.concatenate(column)[place] for column in zip(*parts, strict=True))

  def describe(i):
    k = place[i]
    if k >= len(combo):
      return texts[k - len(combo)], specs[k - len(combo)]
    text, things, relation = said[k]
    return text, described(combo[k], things, relation, render.objects(*(part[i] for part in scene)))

  return scene, describe


def fill(rng, combo, world):
  """Scenes that show these combinations, the rest at random: the arguments of `render.render` without the size."""
  count, shape, color, wanted, relation = codes(combo, world)
  shape = np.where(shape < 0, pick(rng, worlds.SHAPES, world.shapes, shape.shape), shape)
  color = np.where(color < 0, pick(rng, worlds.COLORS, world.colors, color.shape), color)
  xyr = render.layout(rng, count, shape, wanted, relation, world)
  return shape, color, *xyr, np.arange(world.most) < count[:, None]


def codes(combo, world):
  """Combinations as arrays: count [B], shape and colour [B K] with -1 for open, place and relation signs [B 2]."""
  shapes, colors = {n: i for i, n in enumerate(worlds.SHAPES)}, {n: i for i, n in enumerate(worlds.COLORS)}
  rows = []
  for c in combo:
    things = c.things * c.count
    rest = [-1] * (world.most - len(things))
    rows.append([len(things), *(shapes.get(t[0], -1) for t in things), *rest, *(colors.get(t[1], -1) for t in things),
                 *rest, *worlds.PLACES.get(things[0][2], (0, 0)), *worlds.RELATIONS.get(c.relation, (0, 0))])
  rows, k = np.array(rows), world.most
  return rows[:, 0], rows[:, 1:k + 1], rows[:, k + 1:2 * k + 1], rows[:, -4:-2], rows[:, -2:]


def pick(rng, known, allowed, shape):
  """Uniform indices into `known` among those allowed."""
  return np.array([[*known].index(name) for name in allowed])[rng.integers(len(allowed), size=shape)]


def described(combo, things, relation, objects):
  """The spec of a scene, or of a prompt if there are no objects."""
  return {"category": combo.category, "key": combo.key, "objects": objects,
          **captions.clauses(combo, things, relation)}


def batch(seed, start, count, split="train", size=16, categories=None, weights=None, world=None):
  """Renders with captions.

  Args:
    seed: int.
    start: number of the first record.
    count: number of records.
    split: "train" or "test", which combinations captions may name.
    size: pixels of a side.
    categories: names among the six and "long", by default the six.
    weights: relative frequency of each category, equal by default.
    world: a `World`, by default the easy one; `size` goes before its size.

  Returns:
    uint8 images [count size size 3], list of captions, list of specs.

  Raises:
    ValueError: an unknown split or category, weights of another length, or a number below its range.
  """
  if start < 0 or count < 1:
    raise ValueError(f"scenes batch: start {start} and count {count}, allowed are 0 or more and 1 or more; correct "
                     "them")
  world = worlds.make(**{**(world or worlds.World())._asdict(), "size": size})
  categories = named(categories, split, seed, world)
  weights = tuple(weights) if weights else (1,) * len(categories)
  if len(weights) != len(categories) or min(weights) < 0 or sum(weights) <= 0:
    raise ValueError(f"scenes weights: {weights} for the categories {categories}, allowed is one of 0 or more each "
                     "with a positive sum; correct them")
  media, texts, specs = [], [], []
  for number in range(start // CHUNK, (start + count - 1) // CHUNK + 1):
    scene, describe = chunk(seed, number, split, categories, weights, world)
    span = range(max(start - number * CHUNK, 0), min(start + count - number * CHUNK, CHUNK))
    media.append(render.render(*(part[span.start:span.stop] for part in scene), world.size))
    pairs = [describe(i) for i in span]
    texts += [text for text, _ in pairs]
    specs += [spec for _, spec in pairs]
  return np.concatenate(media), texts, specs


def named(categories, split, seed, world):
  """The checked categories."""
  categories = tuple(categories or worlds.CATEGORIES)
  wrong = [name for name in categories if name not in (*worlds.CATEGORIES, "long")]
  if wrong:
    raise ValueError(f"scenes categories: {wrong[0]!r} is unknown, allowed are {', '.join(worlds.CATEGORIES)} and "
                     "long; choose among them, clips have a function of their own")
  if split not in SPLITS or seed < 0:
    raise ValueError(f"scenes: split {split!r} and seed {seed}, allowed are {tuple(SPLITS)} and 0 or more; correct "
                     "them")
  if world.most < 2:
    raise ValueError(f"scenes world: most is {world.most}, allowed is 2 or more for pictures, whose captions name two "
                     "objects; raise it, or set frames for clips")
  return categories


def prompts(split="test", count=480, seed=0, categories=None, world=None):
  """Captions to sample from, balanced by category.

  Record i is of category i modulo the number of categories, and goes through the category's combinations in a shuffled
  order before any comes again, in another wording if it has one.

  Returns:
    List of (caption, spec); the specs have no objects.
  """
  world = world or worlds.World()
  categories = named(categories, split, seed, world)
  rng = random.Random(f"prompts/{seed}/{split}")
  every = {kind: table.split(kind, split, world) for kind in categories if kind != "long"}
  orders = {kind: rng.sample(found, len(found)) for kind, found in every.items()}
  each = math.ceil(count / len(categories))
  extra = long.make(seed, 0, split, each, world)[1:] if "long" in categories else ((), ())
  made = []
  for i in range(count):
    kind, k = categories[i % len(categories)], i // len(categories)
    if kind == "long":
      made.append((extra[0][k], {**extra[1][k], "objects": []}))
      continue
    combo = orders[kind][k % len(orders[kind])]
    text, things, relation = captions.caption(combo, rng)
    made.append((text, described(combo, things, relation, [])))
  return made


def prompt(key, seed=0, world=None):
  """One caption of the combination with this canonical name, such as "color/1/none/circle-red", and its spec.

  Args:
    key: `Combo.key`, of either split. seed: of the wording, which is the same every time. world: a `World`.

  Raises:
    ValueError: no combination of this world has that name.
  """
  kind, world = key.split("/")[0], world or worlds.World()
  found = [c for c in (table.combos(kind, world) if kind in worlds.CATEGORIES else ()) if c.key == key]
  if not found:
    raise ValueError(f"scenes prompt: no combination is called {key!r}, allowed are names such as "
                     f"{table.combos('two', world)[1].key!r}, things in alphabetical order; correct it")
  text, things, relation = captions.caption(found[0], random.Random(f"prompt/{seed}/{key}"))
  return text, described(found[0], things, relation, [])
