"""CLIP, PickScore and HPSv2: scores against transformers' own formula, gradients, prompts and refusals."""
import functools

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from align import shard
from diffusion import eyes
from diffusion import mesh as diffusion_mesh
from diffusion.mesh import within
from rewards import clip, hps, pickscore

PROMPTS = ["a red dog", "cat"]
REFERENCES = [{"references": ["dog", "a red cat"]}, {"references": ["a cat"]}]
BATCH = {"prompt": PROMPTS, "meta": REFERENCES}
MEDIA = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
WIDE = 0.4 + 0.2 * np.random.default_rng(1).random((2, 9, 21, 3)).astype(np.float32)
MAKERS = {"cosine": functools.partial(clip.make, kind="cosine"), "pickscore": pickscore.make, "hps": hps.make,
          "clipscore": functools.partial(clip.make, kind="clipscore"),
          "refclipscore": functools.partial(clip.make, kind="refclipscore", references=3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return encoders.clip(tmp_path_factory.mktemp("clip"))


def scored(reward, view, batch, media):
  given = reward.prepare(batch)
  arrays = {k: v for k, v in given.items() if k not in batch}
  return jax.jit(lambda view, media: reward.score(view, arrays, media, None))(view, media)


def expected(folder, media, prefix=""):
  """Cosines [B], between texts [B], and exp(logit_scale), by transformers alone."""
  path, module = folder
  made = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
  words = eyes.words(eyes.open_(path))
  vectors = lambda texts: torch.nn.functional.normalize(module.text_projection(module.text_model(
    torch.tensor(words([prefix + t for t in texts]), dtype=torch.long)).pooler_output), dim=-1).detach().numpy()
  with torch.no_grad():
    out = module(pixel_values=torch.tensor(made(list(media), return_tensors="np")["pixel_values"]),
                 input_ids=torch.tensor(words([prefix + t for t in PROMPTS]), dtype=torch.long))
  said = vectors(PROMPTS)
  near = [max((vectors(m["references"]) @ said[i]).max(), 0) for i, m in enumerate(REFERENCES)]
  return np.diagonal(out.logits_per_image) / np.exp(module.logit_scale.item()), np.array(near), out.logits_per_image


def test_scores_are_those_of_the_published_formulas(folder):
  view, media = {"net": eyes.load(eyes.open_(folder[0]))}, jnp.asarray(MEDIA, jnp.float32) / 255
  plain, _, logits = expected(folder, MEDIA)
  cosine, near, _ = expected(folder, MEDIA, clip.PREFIX)
  first = 2.5 * np.maximum(cosine, 0)
  want = {"cosine": plain, "pickscore": np.diagonal(logits), "hps": plain, "clipscore": first,
          "refclipscore": 2 * first * near / np.maximum(first + near, 1e-12)}
  assert np.abs(plain - cosine).max() > 1e-3 and (first > 0).any() and (near > 0.01).any()
  for name, make in MAKERS.items():
    found = scored(make(str(folder[0])), view, BATCH, media)
    np.testing.assert_allclose(found.total, want[name], rtol=1e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(found.parts["cosine"], cosine if "clipscore" in name else plain, atol=2e-5)
    assert found.valid.all() and found.total.shape == (2,)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_media_are_those_of_finite_differences(folder, name):
  """Of pictures that are scaled and cut, or padded."""
  reward = MAKERS[name](str(folder[0]))
  view = {"net": eyes.load(eyes.open_(folder[0]))}
  arrays = {k: v for k, v in reward.prepare(BATCH).items() if k not in BATCH}
  slope, _ = slopes.agree(lambda media: reward.score(view, arrays, media, None), jnp.asarray(WIDE), 1e-3, 2e-3)
  seen = np.abs(slope).sum((0, 1, 3)) > 1e-7
  assert seen.all() == (name == "hps")  # a crop ignores the sides of a wide picture


def test_hps_pads_where_others_cut(folder):
  view = {"net": eyes.load(eyes.open_(folder[0]))}
  both = np.concatenate([WIDE, WIDE])
  both[2:, :, [0, 1, 19, 20]] = 0
  twice = {"prompt": PROMPTS * 2}
  totals = {name: np.asarray(scored(MAKERS[name](str(folder[0])), view, twice, jnp.asarray(both)).total).reshape(2, 2)
            for name in ("hps", "cosine")}
  assert np.abs(totals["hps"][0] - totals["hps"][1]).min() > 1e-4
  np.testing.assert_allclose(totals["cosine"][0], totals["cosine"][1], atol=1e-5)


def test_what_is_not_finite_has_no_score(folder):
  view, media = {"net": eyes.load(eyes.open_(folder[0]))}, jnp.asarray(MEDIA, jnp.float32) / 255
  found = scored(clip.make(str(folder[0])), view, BATCH, media.at[0, 0, 0, 0].set(jnp.nan))
  np.testing.assert_array_equal(found.valid, [False, True])


@pytest.mark.slow
def test_meshes_agree(folder, monkeypatch):
  """Scores and their gradient on a mesh that cuts every parameter are one device's."""
  monkeypatch.setattr(diffusion_mesh, "SMALL", 8)
  reward, net = pickscore.make(str(folder[0])), eyes.load(eyes.open_(folder[0]))
  arrays = {k: np.tile(v, (4, 1)) for k, v in reward.prepare(BATCH).items() if k not in BATCH}
  media = np.tile(WIDE, (4, 1, 1, 1)) * np.linspace(0.6, 1, 8, dtype=np.float32)[:, None, None, None]

  def run(sizes):
    mesh = shard.mesh(**sizes, devices=jax.devices()[:int(np.prod(list(sizes.values())))])
    score = lambda net, arrays, media: reward.score({"net": net}, arrays, media, None).total
    given = shard.put(net, shard.specs(net, shard.RULES, mesh)), *shard.put_batch((arrays, media), mesh)
    both = jax.value_and_grad(lambda media, net, arrays: (lambda t: (t.sum(), t))(score(net, arrays, media)),
                              has_aux=True)
    (_, total), slope = jax.jit(within(mesh, both))(given[2], given[0], given[1])
    return np.asarray(total), np.asarray(slope)
  (total, slope), (other, cut) = run({"data": 1}), run({"data": 2, "fsdp": 2, "model": 2})
  np.testing.assert_allclose(other, total, rtol=1e-5)
  np.testing.assert_allclose(cut, slope, rtol=1e-4, atol=1e-4 * np.abs(slope).max())


def test_init_has_the_shapes_of_the_folder(folder):
  reward = clip.make(str(folder[0]), dtype="bfloat16")
  shapes = jax.eval_shape(reward.init, jax.random.key(0))
  jax.tree.map(lambda a, b: (a.shape == b.shape and a.dtype == jnp.bfloat16) or pytest.fail(str(a)), shapes,
               {"net": eyes.load(eyes.open_(folder[0]))})
  assert reward.where == "gradient" and reward.frames is None


@pytest.mark.parametrize("options,words", [
  (dict(kind="cos"), "kind = 'cos' is not one of cosine, logit, clipscore, refclipscore; choose one of them"),
  (dict(references=0), "references = 0 must be at least 1, the most captions of a sample; raise it"),
  (dict(frame="zoom"), "frame = 'zoom' is not one of crop, stretch, pad"),
])
def test_refusals(folder, options, words):
  with pytest.raises(ValueError) as error:
    clip.make(str(folder[0]), **options)
  assert words in str(error.value)


@pytest.mark.parametrize("meta", [[{}, {}], [{"references": ["a"] * 4}, {}], [{"references": [1]}, {}]])
def test_refusals_of_references(folder, meta):
  with pytest.raises(ValueError, match="references of 'a red dog' = .* must be 1 to 3 captions in meta"):
    MAKERS["refclipscore"](str(folder[0])).prepare({"prompt": PROMPTS, "meta": meta})
  with pytest.raises(ValueError, match="must be 1 to 3 captions"):
    clip.captions({"prompt": PROMPTS}, 3)


def test_refuses_an_encoder_without_text(tmp_path):
  with pytest.raises(ValueError, match="'Dinov2Model'.* is not one of CLIPModel; use a checkpoint of one of these"):
    pickscore.make(str(encoders.dinov2(tmp_path)[0]))
