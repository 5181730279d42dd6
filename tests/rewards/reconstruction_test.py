"""Similarity of a sample to a picture of its record: vectors of public encoders, pixels, gradients and refusals."""
import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import eyes
from rewards import reconstruction

GIVEN = np.random.default_rng(0).integers(60, 200, (3, 9, 11, 3)).astype(np.uint8)
MEDIA = np.clip(GIVEN / 255 + 0.1 * np.random.default_rng(1).normal(size=GIVEN.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module", params=["clip", "dinov2"])
def folder(request, tmp_path_factory):
  return getattr(encoders, request.param)(tmp_path_factory.mktemp(request.param))[0]


def test_vectors(folder):
  reward, opened = reconstruction.make(str(folder)), eyes.open_(folder)
  view = {"net": jax.tree.map(lambda a: 3 * a if a.ndim > 1 else a, eyes.load(opened))}  # patches count
  batch = reward.prepare({"prompt": ["a"] * 3, "media": GIVEN})
  total = jax.jit(lambda media: reward.score(view, batch, media, None).total)
  np.testing.assert_allclose(total(jnp.asarray(GIVEN, jnp.float32) / 255), 1, atol=1e-5)
  seen = jax.jit(lambda media: eyes.see(opened, view["net"], media))
  want = (seen(MEDIA) * seen(jnp.asarray(GIVEN, jnp.float32) / 255)).sum(-1)
  assert (np.asarray(want) < 1 - 1e-4).all()
  np.testing.assert_allclose(total(MEDIA), want, atol=1e-5)
  slope = np.asarray(jax.jit(jax.grad(lambda media: total(media).sum()))(MEDIA))
  away, step = slope / np.linalg.norm(slope), 5e-4
  differ = (total(MEDIA + step * away) - total(MEDIA - step * away)).sum() / (2 * step)
  np.testing.assert_allclose(differ, np.linalg.norm(slope), rtol=5e-2)


@pytest.mark.parametrize("kind", ["mse", "psnr"])
def test_pixels(kind):
  reward = reconstruction.make(kind=kind, against="picture")
  batch = reward.prepare({"picture": GIVEN})
  assert reward.init(jax.random.key(0)) == {}
  score = jax.jit(lambda media: reward.score({}, batch, media, None))
  error = ((MEDIA - GIVEN / 255) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(score(MEDIA).parts["mse"], error, rtol=1e-4)
  np.testing.assert_allclose(score(MEDIA).total, 1 - error if kind == "mse" else -10 * np.log10(error), rtol=1e-4)
  same = score(jnp.asarray(GIVEN, jnp.float32) / 255)
  np.testing.assert_allclose(same.total, 1 if kind == "mse" else 100, rtol=1e-5)
  slope = np.asarray(jax.grad(lambda media: score(media).total.sum())(MEDIA))
  away, step = slope / np.linalg.norm(slope), 1e-2
  differ = (score(MEDIA + step * away).total - score(MEDIA - step * away).total).sum() / (2 * step)
  np.testing.assert_allclose(differ, np.linalg.norm(slope), rtol=1e-2)
  assert not score(np.full_like(MEDIA, np.nan)).valid.any()


@pytest.mark.parametrize("options,words", [
  (dict(kind="ssim"), "kind = 'ssim' is not one of cosine, mse, psnr; choose one of them"),
  (dict(), "model = None with kind = 'cosine': a network is what compares by 'cosine', and by that alone; name"),
  (dict(model="x", kind="mse"), "model = 'x' with kind = 'mse'"),
])
def test_refusals(options, words):
  with pytest.raises(ValueError) as error:
    reconstruction.make(**options)
  assert words in str(error.value)


def test_refusals_of_batches():
  reward = reconstruction.make(kind="mse")
  for batch, words in (({"prompt": ["a"]}, "batch entry 'media' is float64 of shape \\(0,\\), .* among prompt; set"),
                       ({"media": MEDIA}, "batch entry 'media' is float32 of shape"),
                       ({"media": GIVEN[:, None]}, "it must be pictures, uint8 \\[B H W C\\]")):
    with pytest.raises(ValueError, match=words):
      reward.prepare(batch)
  with pytest.raises(ValueError, match="compared pixel by pixel with 'media' .*; they must be the same: scale"):
    reward.score({}, reward.prepare({"media": GIVEN}), MEDIA[:, :8], None)
