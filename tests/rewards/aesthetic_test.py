"""LAION's aesthetic head: layer by layer as PyTorch has it, collapsed to one map, on vectors of unit length."""
import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusion import eyes, weights
from rewards import aesthetic

WIDTHS = (12, 10, 8, 6, 4, 1)
MEDIA = 0.4 + 0.2 * np.random.default_rng(0).random((2, 11, 9, 3)).astype(np.float32)


def published(widths=WIDTHS):
  """The released module, of other widths."""
  torch.manual_seed(0)
  linear = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
  drop = torch.nn.Dropout
  return torch.nn.Sequential(linear[0], drop(0.2), linear[1], drop(0.2), linear[2], drop(0.1), *linear[3:]).eval()


def written(file, module, **change):
  held = {f"layers.{name}": value.numpy() for name, value in module.state_dict().items()}
  return str(weights.save(file, {**held, **change}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return encoders.clip(tmp_path_factory.mktemp("clip"))[0]


@pytest.fixture(scope="module")
def head(folder):
  return written(folder.parent / "head.safetensors", published())


def test_scores_are_those_of_the_published_head_and_collapse_to_one_map(folder, head):
  opened = eyes.open_(folder)
  net, media = eyes.load(opened), jnp.asarray(MEDIA)
  vectors = jax.jit(lambda media: eyes.see(opened, net, media))(media)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
  want = published()(torch.tensor(np.asarray(vectors))).detach().numpy()[:, 0]
  for affine in (False, True):
    reward = aesthetic.make(str(folder), head, affine)
    view = {"net": net, "head": reward.init(jax.random.key(0))["head"]}
    assert len(view["head"]) == (1 if affine else 5)
    total = jax.jit(lambda media, r=reward, v=view: r.score(v, {}, media, None).total)
    np.testing.assert_allclose(total(media), want, atol=1e-6)
  slope = np.asarray(jax.jit(jax.grad(lambda media: total(media).sum()))(media))
  away, step = slope / np.linalg.norm(slope), 0.05
  differ = (total(MEDIA + step * away) - total(MEDIA - step * away)).sum() / (2 * step)
  np.testing.assert_allclose(differ, np.linalg.norm(slope), rtol=3e-2)


def test_the_collapse_is_exact_at_the_published_widths(tmp_path):
  widths = (768, 1024, 128, 64, 16, 1)
  layers = aesthetic.layers_of(written(tmp_path / "head.safetensors", published(widths)), 768)
  vectors = np.random.default_rng(0).normal(size=(4, 768)).astype(np.float32)
  one = aesthetic.collapsed(layers)["fc0"]
  want = published(widths)(torch.tensor(vectors)).detach().numpy()
  assert one["kernel"].shape == (768, 1)
  np.testing.assert_allclose(vectors @ one["kernel"] + one["bias"], want, atol=1e-5)


def test_refusals(folder, head, tmp_path):
  relu = {f"layers.{i}.{word}": np.zeros(1, np.float32) for i in (0, 3, 6, 9, 11) for word in ("weight", "bias")}
  weights.save(tmp_path / "relu.safetensors", relu)
  with pytest.raises(ValueError, match="holds layers.0.bias, .*; it must hold weight and bias of layers.0, 2, 4, 6, 7, "
                                       "the linear layers without activations: convert sac"):
    aesthetic.make(str(folder), str(tmp_path / "relu.safetensors"))
  with pytest.raises(ValueError, match="which must lead from 12, what the model's vectors have, to 1; use the mo"):
    aesthetic.make(str(folder), written(tmp_path / "wide.safetensors", published((8, 10, 8, 6, 4, 1))))
  with pytest.raises(ValueError, match="which must lead from 12"):
    aesthetic.make(str(folder), written(tmp_path / "two.safetensors", published((12, 10, 8, 6, 4, 2))))
  with pytest.raises(ValueError, match="is a pickle"):
    aesthetic.make(str(folder), str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth"))
  with pytest.raises(ValueError, match="is not one of CLIPModel, CLIPVisionModelWithProjection; use a che"):
    aesthetic.make(str(encoders.dinov2(tmp_path)[0]), head)
