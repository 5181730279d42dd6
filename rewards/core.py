"""A reward is a NamedTuple of pure functions, wherever its scores come from."""
from typing import Any, Callable, NamedTuple

CHUNKS = 4  # of an experience, for rewards that wait, or compute outside of the devices, while the next is sampled


class Scores(NamedTuple):
  """Scores of B samples; the samples of one prompt are contiguous."""
  total: Any   # [B] float32
  parts: dict  # {name: [B]} what `total` was made of, always logged
  valid: Any   # [B] bool; a failed score is masked and counted, never 0


class Reward(NamedTuple):
  """Judges media against prompts.

  `where` says how `score` may be called: "host" (numpy in, numpy out), "device" (traceable) or
  "gradient" (traceable and differentiable in `media`).
  """
  init: Callable     # (key) -> params
  prepare: Callable  # (batch) -> batch; host: tokenise, templates
  score: Callable    # (view, batch, media, keys) -> Scores
  where: str         # "host" | "device" | "gradient"
  frames: Any        # None, or which frames of a clip it looks at
  fit: Any = None    # None, or how it is trained: (view, batch, keys) -> (loss [B], metrics {name: [B]})
  calibrate: Any = None  # None, or ({part: scores [N] of the samples a run begins from}) -> its leaves under "mix"
  chunks: Any = 1    # pieces of whole prompts that an experience may come in, so that one is judged while the next is
                     # sampled: 1 where that gains nothing, None where all samples must be seen together
  explain: Any = None    # None, or what a judge writes of samples, for messages: (view, batch, media, keys) -> B texts
