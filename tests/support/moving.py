"""Clips whose motion is known, and clips with planted defects."""
import numpy as np

from rewards.scenes import clip

JUMP = 1 / 16  # of the side


def texture(at, size=32, channels=3, seed=0, waves=6):
  """Pictures [F size size C] of one smooth texture, moved to places `at` [F 2] (right, down) in pixels."""
  rng = np.random.default_rng(seed)
  k = 0.6 * rng.uniform(-1, 1, (waves, 2))
  phase, height = rng.uniform(0, 2 * np.pi, (waves, channels)), rng.uniform(0.3, 1, (waves, channels))
  at = np.asarray(at, float)[:, None, None]
  y, x = np.mgrid[:size, :size]
  turn = (k[:, 0] * (x - at[..., 0])[..., None] + k[:, 1] * (y - at[..., 1])[..., None])[..., None]  # [F H W waves 1]
  return 0.5 + 0.1 * (height * np.cos(turn + phase)).sum(-2)


def steady(speed, frames=6, **options):
  """A texture [F H W C] at a constant speed (right, down), pixels a frame."""
  return texture(np.arange(frames)[:, None] * np.asarray(speed, float), **options)


def scenes(count, seed=0, size=16, frames=8, start=0):
  """Clips [count F size size 3] in [0, 1] of things that move."""
  return clip.batch(seed, start, count, size=size, frames=frames)[0].astype(np.float32) / 255


def frozen(clips, rng):
  return np.repeat(clips[:, :1], clips.shape[1], 1)


def jittery(clips, rng):
  """Every frame moved by up to a sixteenth of the side in each direction."""
  most, out = round(JUMP * clips.shape[2]), clips.copy()
  for i, own in enumerate(clips):
    for t, frame in enumerate(own):
      out[i, t] = np.roll(frame, rng.integers(-most, most + 1, 2), (0, 1))
  return out


def flickering(clips, rng):
  """Every other frame is brighter by 4 to 10 %."""
  more = rng.uniform(0.04, 0.1, (len(clips), 1, 1, 1, 1)) * (np.arange(clips.shape[1]) % 2)[:, None, None, None]
  return np.clip(clips + more, 0, 1).astype(np.float32)


def flickering_by_parts(clips, rng):
  """Every other frame is brighter in one half."""
  more = rng.uniform(0.1, 0.2, (len(clips), 1, 1, 1, 1)) * (np.arange(clips.shape[1]) % 2)[:, None, None, None]
  half = np.arange(clips.shape[3])[:, None] < clips.shape[3] // 2
  return np.clip(clips + more * half, 0, 1).astype(np.float32)


DEFECTS = {"frozen": frozen, "jittery": jittery, "flickering": flickering, "flickering by parts": flickering_by_parts}
