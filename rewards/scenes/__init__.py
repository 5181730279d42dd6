"""Scenes: a procedural captioned world in which everything that a caption says can be checked exactly.

`batch` renders scenes with captions, `prompts` lists captions to sample from, `detect` finds objects in images,
`check` and `soft` hold them against a spec, `diversity` compares correct samples, `make` is all of it as a Reward.
Module `clip` does the same for moving scenes. A spec is a plain dict that JSON can write:

  category   single, count, color, two, position, attribution (those of GenEval), long or clip
  key        canonical name of what the caption asserts, equal for all its wordings
  objects    [{"shape", "color", "x", "y", "r"}], the truth of a render, empty for a prompt
  include    GenEval's clauses [{"class", "count", "color"?, "place"?, "position"?: [relation, target]}]
  exclude    [{"class", "count"}], that many are too many
  motion     of clips, instead of include: [{"class", "color", "direction", "speed"}]
"""
from rewards.scenes import clip
from rewards.scenes.check import check, soft
from rewards.scenes.detect import detect
from rewards.scenes.diversity import diversity
from rewards.scenes.reward import make
from rewards.scenes.scenes import batch, prompt, prompts
from rewards.scenes.world import CATEGORIES, COLORS, SHAPES, World
from rewards.scenes.world import make as make_world

__all__ = ["CATEGORIES", "COLORS", "SHAPES", "World", "batch", "check", "clip", "detect", "diversity", "make",
           "make_world", "prompt", "prompts", "soft"]
