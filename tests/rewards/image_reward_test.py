"""ImageReward: its arithmetic by other means, its gradient, training it, and what it refuses."""
import json
import re
import shutil

import jax
import numpy as np
import pytest

from align.algorithms import compare
from diffusion import folder as folders
from diffusion import weights
from diffusion.convert import blip, core
from rewards import image_reward

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red blue cube ball two of the on table".split()
CONFIG = {
  "architectures": ["ImageReward"], "model_type": "blip", "head": [10, 8, 6, 4],
  "vision_config": {"image_size": 12, "patch_size": 4, "hidden_size": 12, "intermediate_size": 16,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
  "text_config": {"vocab_size": 17, "max_position_embeddings": 40, "hidden_size": 8, "intermediate_size": 12,
                  "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
}
PROMPTS = ["a red cube", "two of the Blue cubes on a table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A small random one, whose scores differ between pictures and prompts."""
  place, layout = tmp_path_factory.mktemp("image_reward"), blip.make(CONFIG)
  rng = np.random.default_rng(0)
  drawn = lambda path, a: (0.4 * rng.normal(size=a.shape) + path.endswith("scale")).astype(np.float32)
  tree = weights.nested({path: drawn(path, a) for path, a in weights.leaves(core.shapes(layout))})
  core.save(place, "model", layout, tree)
  (place / "config.json").write_text(json.dumps(CONFIG))
  (place / "preprocessor_config.json").write_text(json.dumps({
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 12}))
  (place / "vocab.txt").write_text("\n".join(WORDS))
  return place


@pytest.fixture(scope="module")
def view(folder):
  return {"net": core.load(weights.component(folder, "model"), blip.make(CONFIG))}


def media(count=2, height=12, width=12, channels=3):
  return np.random.default_rng(count).uniform(size=(count, height, width, channels)).astype(np.float32)


def asked(reward, prompts):
  """Arrays of the batch."""
  return {name: value for name, value in reward.prepare({"prompt": prompts}).items() if name != "prompt"}


@pytest.fixture(scope="module")
def scored(folder, view):
  """(prompts, pictures, length) -> [B]; one program for a length and a size."""
  made = {length: image_reward.make(str(folder), length) for length in (5, 12, 35)}
  runs = {length: jax.jit(lambda batch, shown, r=reward: r.score(view, batch, shown, None))
          for length, reward in made.items()}
  return lambda prompts, shown, length=35: runs[length](asked(made[length], prompts), shown)


def test_the_head_is_one_affine_map_and_the_scale_is_published(folder, view, scored):
  """From the hidden state of the first token on, by one vector and one number."""
  shown, (given,) = media(), asked(image_reward.make(str(folder)), PROMPTS).values()
  normal = (shown - np.array([0.48145466, 0.4578275, 0.40821073])) / np.array([0.26862954, 0.26130258, 0.27577711])
  _, hidden = jax.jit(blip.make(CONFIG).net.apply)({"params": view["net"]}, normal.astype(np.float32), **given)
  slope, shift = np.eye(8), np.zeros(8)
  for i in range(5):
    layer = jax.tree.map(np.float64, view["net"]["mlp"][f"fc{i}"])
    slope, shift = slope @ layer["kernel"], shift @ layer["kernel"] + layer["bias"]
  want = ((np.float64(hidden[:, 0]) @ slope + shift)[:, 0] - 0.16717362830052426) / 1.0333394966054072
  scores = scored(PROMPTS, shown)
  np.testing.assert_allclose(scores.total, want, rtol=1e-5)
  assert abs(want[0] - want[1]) > 1e-2 and np.asarray(scores.valid).all() and not scores.parts


def test_prompts_are_padded_cut_and_lower_cased(folder, scored):
  shown = media()
  usual = scored(PROMPTS, shown).total
  np.testing.assert_array_equal(scored([p.upper() for p in PROMPTS], shown).total, usual)
  np.testing.assert_allclose(scored(PROMPTS, shown, 12).total, usual, rtol=1e-5)   # padding is not looked at
  whole, cut = ["a red cube on the table"] * 2, ["a red cube"] * 2                 # [CLS] and [SEP] are two of five
  np.testing.assert_array_equal(scored(whole, shown, 5).total, scored(cut, shown, 5).total)
  (given,) = asked(image_reward.make(str(folder)), ["a [PAD]", "a"]).values()
  assert given["tokens"].shape == (2, 35) and given["tokens"][0, :5].tolist() == [2, 5, 0, 3, 0]
  assert given["mask"].sum(1).tolist() == [4, 3]                                   # a prompt may spell a special token


def test_pictures_are_scaled_and_cut_in_the_middle(scored):
  """The short side to that of the network; what lies beside the square in the middle is not looked at."""
  square = np.repeat(np.repeat(media(), 2, 1), 2, 2)
  wide = np.concatenate([np.full((2, 24, 24, 3), 0.3), square, np.full((2, 24, 24, 3), 0.7)], 2).astype(np.float32)
  other = wide.copy()
  other[:, :, :16], other[:, :, 56:] = 1, 0   # farther than the filter reaches
  usual = scored(PROMPTS, wide).total
  np.testing.assert_allclose(scored(PROMPTS, other).total, usual, rtol=1e-5)
  assert np.abs(scored(PROMPTS, wide[:, ::-1]).total - usual).max() > 1e-2


def test_gradient_in_the_picture(folder, view, scored):
  """Along itself, against differences; a sample's gradient is in its own picture, of one channel here."""
  reward, shown = image_reward.make(str(folder)), 0.2 + 0.6 * media(channels=1)
  given = asked(reward, PROMPTS)

  def first(m):
    total = reward.score(view, given, m, None).total
    return total[0], total

  run = jax.jit(jax.value_and_grad(first, has_aux=True))
  (_, total), slope = run(shown)
  np.testing.assert_allclose(scored(PROMPTS, np.repeat(shown, 3, 3)).total, total, rtol=1e-5)
  size = np.linalg.norm(slope)
  found = (run(shown + 0.01 * slope / size)[0][0] - run(shown - 0.01 * slope / size)[0][0]) / 0.02
  np.testing.assert_allclose(found, size, rtol=2e-2)
  assert np.isfinite(slope).all() and size > 1e-2 and not np.abs(slope[1]).any()


def test_it_learns_from_pairs(folder, view):
  """Bradley-Terry at log 2 for equal scores. All has a gradient but biases that shift every score alike, of the head
  and in front of it, as it is affine, and those of keys."""
  reward = image_reward.make(str(folder))
  method, entries = compare.make(None, reward), asked(reward, PROMPTS)
  given = {**entries, "win": media(), "prompt_id": np.arange(2), "sample_id": np.zeros(2, int)}
  loss = lambda net, batch: method.loss({"base": {}, "reward": {"net": net}}, method.draw(batch, 0, None),
                                        jax.random.key(0))[0]
  run = jax.jit(jax.value_and_grad(loss))
  np.testing.assert_allclose(run(view["net"], {**given, "lose": given["win"]})[0], np.log(2), rtol=1e-6)
  value, grads = run(view["net"], {**given, "lose": media() ** 2})
  still = [path for path, leaf in weights.leaves(grads) if np.abs(leaf).max() < 1e-6]
  assert all(re.fullmatch(r"mlp/fc\d/bias|text/blocks/norm/bias|.*/k/bias", path) for path in still), still
  better, _ = run(jax.tree.map(lambda a, g: a - 1e-4 * g, view["net"], grads), {**given, "lose": media() ** 2})
  assert better < value


def test_a_picture_that_is_not_finite_has_no_score(scored):
  shown = media()
  shown[0, 3, 3] = np.nan
  assert scored(PROMPTS, shown).valid.tolist() == [False, True]



def test_a_run_begins_from_the_folder(folder, view):
  jax.tree.map(np.testing.assert_array_equal, folders.load(str(folder), "reward"), view)


@pytest.mark.parametrize("length", [2, 41])
def test_a_length_that_does_not_fit_is_refused(folder, length):
  with pytest.raises(ValueError, match=f"length = {length} must be 3 to 40"):
    image_reward.make(str(folder), length)


def test_another_network_is_refused(folder, tmp_path):
  for file in folder.iterdir():
    shutil.copyfile(file, tmp_path / file.name)
  (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["BlipModel"]}))
  with pytest.raises(ValueError, match=r"architectures = \['BlipModel'\] in .* is not one of ImageReward"):
    image_reward.make(str(tmp_path))


def test_a_folder_without_words_is_refused(folder, tmp_path):
  for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
    shutil.copyfile(folder / file, tmp_path / file)
  reward = image_reward.make(str(tmp_path))
  with pytest.raises(ValueError, match="holds no tokenizer, one of tokenizer.json, vocab.json, vocab.txt"):
    reward.prepare({"prompt": PROMPTS})


def test_clips_are_refused(scored):
  with pytest.raises(ValueError, match=r"media of shape \(2, 4, 16, 16, 3\) and type float32 must be pictures"):
    scored(PROMPTS, np.zeros((2, 4, 16, 16, 3), np.float32))
