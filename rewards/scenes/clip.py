"""Clips: one or two objects that move in a direction at a speed, rendered, captioned and checked.

A moving thing is (shape, colour, direction, speed). Held out are things: no training caption names one, every test
caption names at least one. Two objects of a clip differ in shape and colour, so that they can be followed by these.
Left out: clips of objects that rest, turn, or meet.
"""
import hashlib
import itertools
import random

import numpy as np

from rewards.scenes import caption as captions
from rewards.scenes import combos, render
from rewards.scenes import world as worlds
from rewards.scenes.detect import detect as objects_in

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": (.10, .16), "quickly": (.34, .42)}  # way in fractions of the side over the whole clip
FAST = .25   # way from which a motion is quick
STILL = .05  # way below which nothing moves
SEEN = .75   # share of the frames in which a thing must be recognised
TRIALS = 2000


def held(thing):
  """Whether (shape, colour, direction, speed) belongs to the test split."""
  digest = hashlib.sha256(("clip/" + "-".join(thing)).encode()).digest()
  return int.from_bytes(digest[:4], "big") < combos.HELD_OUT * 2 ** 32


def batch(seed, start, count, split="train", size=16, frames=8, world=None):
  """Clips with captions; clip i is a pure function of (seed, split, i).

  Args:
    seed: int.
    start: number of the first clip.
    count: number of clips.
    split: "train" or "test".
    size: pixels of a side.
    frames: of a clip, at least 2.
    world: a `World`, by default the easy one; `size` goes before its size.

  Returns:
    uint8 [count F size size 3], list of captions, list of specs with `motion` instead of `include`.
  """
  check_split(split)
  if frames < 2:
    raise ValueError(f"scenes clips: frames {frames}, allowed are 2 or more; correct it")
  world = worlds.make(**{**(world or worlds.World())._asdict(), "size": size})
  made = [one(random.Random(f"clips/{seed}/{split}/{i}"), split, frames, world) for i in range(start, start + count)]
  media = [render.render(*track, size) for _, _, track in made]
  return np.stack(media), [text for text, _, _ in made], [spec for _, spec, _ in made]


def one(rng, split, frames, world):
  """(caption, spec, arrays of its frames) of one clip."""
  for _ in range(TRIALS):
    things = draw(rng, world)
    if any(map(held, things)) == (split == "test"):
      tracks = [track(rng, thing, world) for thing in things]
      if separate(tracks, things, frames, world):
        text, spec = described(rng, things)
        return text, {**spec, "objects": objects(things, tracks)}, arrays(things, tracks, frames)
  raise ValueError(f"scenes clips: no room after {TRIALS} trials with radius {world.radius}, allowed is what fits "
                   "twice beside its way; use smaller objects")


def check_split(split):
  if split not in ("train", "test"):
    raise ValueError(f"scenes clips: split {split!r}, allowed are 'train' and 'test'; choose one of them")


def prompts(split="test", count=480, seed=0, world=None):
  """Captions of clips to sample from; things come again, in other company or words, when there are fewer.

  Returns:
    List of (caption, spec); the specs have no objects.
  """
  check_split(split)
  rng, world = random.Random(f"clip prompts/{seed}/{split}"), world or worlds.World()
  made = []
  while len(made) < count:
    things = draw(rng, world)
    if any(map(held, things)) == (split == "test"):
      made.append(described(rng, things))
  return made


def draw(rng, world):
  """One or two things to move, different in shape and in colour."""
  number = 1 + (rng.random() < .5 and world.most > 1)
  shapes, colors = rng.sample(world.shapes, number), rng.sample(world.colors, number)
  return [(s, c, rng.choice([*DIRECTIONS]), rng.choice([*SPEEDS])) for s, c in zip(shapes, colors, strict=True)]


def track(rng, thing, world):
  """(x, y, r, way x, way y) of a thing: where it starts and how far it goes in all. One that is alone in its world may
  be as large as in pictures, where its way leaves room for that."""
  r = rng.uniform(*world.radius[2 if world.most > 1 else 0])
  way = np.multiply(DIRECTIONS[thing[2]], rng.uniform(*SPEEDS[thing[3]]))
  r = min(r, *((1 - np.abs(way) - 2 * world.edge) / np.multiply(worlds.EXTENT[thing[0]], 2)))
  half = np.multiply(worlds.EXTENT[thing[0]], r) + world.edge
  least, most = half - np.minimum(way, 0), 1 - half - np.maximum(way, 0)
  x, y = (least[k] + rng.random() * max(most[k] - least[k], 0.) for k in (0, 1))
  return x, y, r, *way


def separate(tracks, things, frames, world):
  """Whether all boxes keep their gap in every frame."""
  for (a, first), (b, second) in itertools.combinations(zip(tracks, things, strict=True), 2):
    offset = np.array(a[:2]) - b[:2] + np.linspace(0, 1, frames)[:, None] * (np.array(a[3:]) - b[3:])
    room = np.multiply(worlds.EXTENT[first[0]], a[2]) + np.multiply(worlds.EXTENT[second[0]], b[2]) + world.gap
    if not (np.abs(offset) > room).any(-1).all():
      return False
  return True


def arrays(things, tracks, frames):
  """Arguments of `render.render`, the frames as its batch."""
  steps = np.linspace(0, 1, frames, dtype=np.float32)[:, None]
  x, y, r, dx, dy = np.array(tracks, np.float32).T
  shape = np.tile([worlds.SHAPES.index(t[0]) for t in things], (frames, 1))
  color = np.tile([[*worlds.COLORS].index(t[1]) for t in things], (frames, 1))
  return shape, color, x + steps * dx, y + steps * dy, np.tile(r, (frames, 1)), np.ones_like(shape, bool)


def objects(things, tracks):
  """What moves, as it is at first, with its way."""
  return [{"shape": t[0], "color": t[1], **{n: round(float(v), 4) for n, v in
           zip(("x", "y", "r", "dx", "dy"), w, strict=True)}} for t, w in zip(things, tracks, strict=True)]


def described(rng, things):
  """(caption, spec) of things that move, the spec without objects."""
  motion = [{"class": t[0], "color": t[1], "direction": t[2], "speed": t[3]} for t in things]
  parts = [f"a {m['color']} {m['class']} moving {m['direction']} {m['speed']}" if rng.random() < .5 else
           f"a {m['color']} {m['class']} {m['speed']} moving {m['direction']}" for m in motion]
  key = "/".join(["clip", *sorted("-".join(t) for t in things)])
  prefix = captions.choose(("a clip of", "a video of", ""), rng)
  return f"{prefix} {' and '.join(parts)}".strip(), {
      "category": "clip", "key": key, "objects": [], "motion": motion, "exclude": []}


def detect(clips):
  """Objects of every frame of clips [B F H W 3]: B lists of F lists, see `detect.detect`."""
  clips = np.asarray(clips)
  if clips.ndim != 5:
    raise ValueError(f"scenes detector: clips have shape {clips.shape}, allowed is [B F H W 3]; add the missing axis")
  flat = objects_in(clips.reshape(-1, *clips.shape[2:]))
  return [flat[i:i + clips.shape[1]] for i in range(0, len(flat), clips.shape[1])]


def verdicts(spec, frames):
  return [verdict(thing, frames, ("shape", "color")) for thing in spec["motion"]]


def verdict(thing, frames, by):
  """[presence, direction, speed] of what has a thing's shape and colour, or only the one that `by` names."""
  wanted = {"shape": thing["class"], "color": thing["color"]}
  at = [(t, o["x"], o["y"]) for t, objects in enumerate(frames) for o in objects[:8]
        if all(o[name] == wanted[name] for name in by)]
  times, seen = np.array([a[0] for a in at], float), min(len({a[0] for a in at}) / len(frames) / SEEN, 1.)
  if len(set(times)) < 2:
    return [seen, 0., 0.]
  way = np.polyfit(times / (len(frames) - 1), np.array([a[1:] for a in at]), 1)[0]
  along = float(way @ DIRECTIONS[thing["direction"]])
  straight = along > STILL and along >= .8 * np.hypot(*way)
  return [seen, float(straight), float(straight and (along >= FAST) == (thing["speed"] == "quickly"))]


def parts(spec, frames):
  """What is right of every thing, one by one; all hold wherever `check` does.

  Returns:
    {"shape", "color", "motion"}: bools. Shape: something of it is recognised in `SEEN` of the frames, in any colour.
    Color: something of it is there so often, of any shape or none. Motion: something of the one or of the other is, and
    moves in the direction at the speed.
  """
  found = {by: np.array([verdict(thing, frames, by) for thing in spec["motion"]]) >= 1
           for by in (("shape",), ("color",), ("shape", "color"))}
  moved = np.any([one.all(1) for one in found.values()], 0)
  return {"shape": bool(found["shape",][:, 0].all()), "color": bool(found["color",][:, 0].all()),
          "motion": bool(moved.all())}


def check(spec, frames):
  """Whether a clip's objects (F lists of them) move as its spec says, strictly; further objects are allowed."""
  return all(min(parts) >= 1 for parts in verdicts(spec, frames))


def soft(spec, frames):
  """The mean over things of the mean over presence, direction and speed, in [0, 1]; 1 wherever `check` holds."""
  return float(np.mean(verdicts(spec, frames)))
