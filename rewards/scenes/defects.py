"""What may be wrong with a picture or a clip whatever it shows: defects that are planted, so that judges learn to see
them.

  of motion   frozen: the first frame alone; shaken: every frame moved by an eighth of the side, each its own way
  of looks    hazy: a third of the contrast; blurred: over a twelfth of the side; noisy: 60 of 255

All are functions of uint8 media [H W C] or [F H W C], and give uint8 of the same shape. `rng` is a random.Random.
"""
import numpy as np
from scipy import ndimage


def frozen(clip):
  """The first frame of [F H W C] all along."""
  return np.repeat(clip[:1], len(clip), 0)


def shaken(rng, clip):
  """Every frame of [F H W C] rolled by an eighth of the side up or down and left or right."""
  far = max(clip.shape[1] // 8, 1)
  return np.stack([np.roll(frame, [rng.choice((-far, far)), rng.choice((-far, far))], (0, 1)) for frame in clip])


def hazy(media):
  return rounded(128 + .3 * (media.astype(np.float32) - 128))


def blurred(media):
  spread = media.shape[-2] / 12
  return rounded(ndimage.gaussian_filter(media.astype(np.float32), [0] * (media.ndim - 3) + [spread, spread, 0]))


def noisy(rng, media):
  return rounded(media + np.random.default_rng(rng.getrandbits(32)).normal(0, 60, media.shape))


def rounded(values):
  return np.clip(values, 0, 255).astype(np.uint8)


def moved_badly(rng, clip):
  return frozen(clip) if rng.random() < .5 else shaken(rng, clip)


def looking_badly(rng, media):
  kind = rng.randrange(3)
  return (hazy, blurred)[kind](media) if kind < 2 else noisy(rng, media)
