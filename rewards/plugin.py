"""Functions of one's own inside a reward, such as a detector or a reader of text, and what they are shown.

A config names one as "module:function"; in Python the function itself may stand there. They see uint8 pictures
[B H W 3], numpy, so that what is written for files serves here too.
"""
import importlib
from typing import Any, Callable

import numpy as np

from rewards.judging.reward import pixels


def function(given: Any, option: str) -> Callable:
  """What stands at "module:function". ValueError where there is nothing that can be called."""
  if callable(given):
    return given
  module, colon, name = given.partition(":") if isinstance(given, str) else ("", "", "")
  try:
    found = getattr(importlib.import_module(module), name) if module and colon else None
  except (ImportError, AttributeError) as error:
    raise ValueError(f"{option} = {given!r} must be importable ({error}); correct it, or PYTHONPATH") from error
  if not callable(found):
    raise ValueError(f"{option} = {given!r} must be 'module:function', or a function; name one")
  return found


def shown(media: Any, reward: str) -> tuple[np.ndarray, np.ndarray]:
  """media [B H W C] in [0, 1], C 1 or 3 -> (uint8 [B H W 3], whether each is finite [B]). ValueError for clips."""
  media = np.asarray(media)
  if media.ndim != 4 or media.shape[-1] not in (1, 3):
    raise ValueError(f"reward {reward}: media have shape {media.shape}, but pictures are [B H W C] with 1 or 3 "
                     "channels; choose a policy that makes such pictures")
  return pixels(media), np.isfinite(media.reshape(len(media), -1)).all(1)


def one_each(found: Any, count: int, option: str) -> list:
  """What a function gave for `count` pictures, checked."""
  found = list(found)
  if len(found) != count:
    raise ValueError(f"{option} gave {len(found)} results for {count} pictures; it must give one each, mend it")
  return found
