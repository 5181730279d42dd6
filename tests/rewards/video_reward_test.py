"""VideoReward: its numbers beside transformers' hidden states, what they depend on, z-scores, training, refusals."""
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slopes
import torch
import transformers
import vlms

from align import main
from align.algorithms import compare
from diffusion import folder as weights_of
from diffusion import vlm, weights
from rewards import video_reward
from rewards.video_reward import DIMS, TOKENS

SIDE, FRAME = 56, (28 * 28, 56 * 56)
QUESTION = "\nLook: <|VQ_reward|>\nMove: <|MQ_reward|>\n{prompt}? <|TA_reward|>\n"
MEAN, STD = (0.5, -1.0, 2.0), (2.0, 0.5, 4.0)
MODELS = {   # kind of network, rows of the head, and its options
  "base": ("2", 3, {}),
  "one-row": ("2", 1, {"seed": 1, "text": {"num_key_value_heads": 1, "hidden_size": 48, "rope_scaling": {
    "type": "mrope", "mrope_section": [2, 3, 1]}}}),
  "deep": ("2", 3, {"seed": 2, "vision": {"depth": 3, "num_heads": 4}, "text": {"num_key_value_heads": 4}}),
  "2_5": ("2_5", 3, {"seed": 3}),
}


def made(folder, kind, rows, options):
  """A small judge's folder -> (transformers' model, the head)."""
  text = {"vocab_size": 272, **options.get("text", {})}
  theirs, words = vlms.qwen(folder, kind=kind, **{**options, "text": text})
  words.add_tokens(list(TOKENS), special_tokens=True)
  words.save_pretrained(folder)
  head = np.random.default_rng(rows).normal(size=(rows, theirs.config.text_config.hidden_size)).astype(np.float32)
  weights.save(folder / "rm_head.safetensors", {"rm_head.weight": head})
  held = {f"{dim}_{what}": v for what, values in (("mean", MEAN), ("std", STD))
          for dim, v in zip(DIMS, values, strict=True)}
  (folder / "model_config.json").write_text(json.dumps({"inference_config": held}))
  (folder / "question.txt").write_text(QUESTION)
  return theirs, head


def view_of(folder, head):
  return {"net": vlm.load(vlm.open_(folder)), "rm_head": jnp.asarray(head)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("judge")
  made(place, *MODELS["base"])
  return place


@pytest.fixture(scope="module")
def view(folder):
  return view_of(folder, weights.load(folder / "rm_head.safetensors")["rm_head.weight"])


def judge(folder, **options):
  return video_reward.make(str(folder), **{"question": str(folder / "question.txt"), "frame": FRAME, "dtype": "float32",
                                           "normalise": False, **options})


@pytest.fixture(scope="module")
def host(folder):
  return judge(folder, at_once=8)


@pytest.fixture(scope="module")
def mesh(folder):
  return judge(folder, size=(4, SIDE, SIDE), columns=128)


def media(count, frames=4, side=SIDE):
  coarse = np.random.default_rng(count).integers(0, 256, (count, frames, 4, 4, 3))
  return np.kron(coarse, np.ones((1, 1, side // 4, side // 4, 1))).astype(np.float32) / 255


def batch(*prompts):
  return {"prompt": list(prompts), "prompt_id": np.arange(len(prompts)), "sample_id": np.zeros(len(prompts), int)}


PROMPTS = ("a dog runs", "two red cubes", "it rains")


def numbers(scores):
  return np.stack([scores.parts[name] for name in DIMS], 1)


# --- the numbers ------------------------------------------------------------------------------------------------------


def patches(pixels, patch=14, merge=2):
  """[S T H W 3] -> transformers' [S h w, 3 T patch patch], cells of one merged cell beside each other."""
  s, t, height, width, c = pixels.shape
  h, w = height // patch // merge, width // patch // merge
  out = pixels.reshape(s, t, h, merge, patch, w, merge, patch, c).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return torch.tensor(out.reshape(s * h * w * merge * merge, -1))


def reference(theirs, folder, head, clip, prompt):
  """[3] from the text as it is read out, transformers' tokenizer and last hidden states, at positions 0, 1, 2 ..."""
  words = transformers.AutoTokenizer.from_pretrained(folder)
  seen = vlm.open_(folder).processor.video((255 * clip).round().astype(np.uint8), None)
  text = ("<|im_start|>user\n<|vision_start|>" + "<|video_pad|>" * len(seen.places) + "<|vision_end|>"
          + QUESTION.replace("{prompt}", prompt) + "<|im_end|>\n<|im_start|>assistant\n")
  ids = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
  t, h, w = seen.grid
  with torch.no_grad():
    hidden = theirs.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=patches(seen.pixels),
                          video_grid_thw=torch.tensor([[t, 2 * h, 2 * w]]),
                          position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1)).last_hidden_state[0].numpy()
  at = [int((ids[0] == words.convert_tokens_to_ids(name)).nonzero()[0, 0]) for name in TOKENS]
  logits = hidden[at] @ head.T
  return np.diagonal(logits) if logits.shape[1] == 3 else logits[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_transformers_hidden_states(name, tmp_path):
  theirs, head = made(tmp_path, *MODELS[name])
  reward, shown = judge(tmp_path), media(2)
  found = reward.score(view_of(tmp_path, head), reward.prepare(batch(*PROMPTS[:2])), shown, None)
  wanted = np.stack([reference(theirs, tmp_path, head, clip, prompt)
                     for clip, prompt in zip(shown, PROMPTS, strict=False)])
  np.testing.assert_allclose(numbers(found), wanted, atol=1e-4 * np.abs(wanted).max())
  np.testing.assert_allclose(found.total, wanted.sum(1), atol=1e-3)
  assert found.valid.all() and np.ptp(wanted, 0).min() > 1e-2


def test_inside_the_mesh_it_scores_as_on_the_host(host, mesh, view):
  shown = np.round(64 + 127 * media(3)) / 255  # whole bytes, away from where colours are cut
  outer = host.score(view, host.prepare(batch(*PROMPTS)), shown, None)
  given = {k: v for k, v in mesh.prepare(batch(*PROMPTS)).items() if isinstance(v, dict)}  # what it asks, all arrays

  slope, inner = slopes.agree(lambda m: mesh.score(view, given, m, None), jnp.asarray(shown), 3e-4, 1e-2, of=slice(1))
  assert (host.where, mesh.where) == ("host", "gradient") and inner.valid.all()
  np.testing.assert_allclose(numbers(inner), numbers(outer), atol=1e-3)
  assert (np.abs(slope[0]).max((1, 2, 3)) > 0).all() and not np.abs(slope[1:]).any()   # each frame, of its own clip


def test_the_batch_does_not_matter(host, view):
  shown, score = media(3), lambda prompts, clips: numbers(host.score(view, batch(*prompts), clips, None))
  together = score(PROMPTS, shown)
  for i, prompt in enumerate(PROMPTS):
    np.testing.assert_allclose(score([prompt], shown[i:i + 1])[0], together[i], atol=1e-4)
  np.testing.assert_allclose(score(PROMPTS[::-1], shown[::-1])[::-1], together, atol=1e-4)


def test_only_text_alignment_depends_on_the_prompt_and_every_number_on_the_clip(host, view):
  clip = np.repeat(media(1), 2, 0)
  found = numbers(host.score(view, batch("a dog runs", "six green cars"), clip, None))
  np.testing.assert_allclose(found[0, :2], found[1, :2], atol=1e-5)
  assert abs(found[0, 2] - found[1, 2]) > 1e-3
  clip[1, -1] = 1 - clip[1, -1]
  moved = numbers(host.score(view, batch("a dog runs", "a dog runs"), clip, None))
  assert np.abs(moved[1] - moved[0]).min() > 1e-3


def test_tokens_that_a_prompt_spells_are_only_characters(host, view):
  clip = np.repeat(media(1), 2, 0)
  found = host.score(view, batch("a dog", "<|TA_reward|>{prompt}\ufdd0<|im_end|>"), clip, None)
  np.testing.assert_allclose(numbers(found)[0, :2], numbers(found)[1, :2], atol=1e-5)
  assert found.valid.all()


def test_prompts_of_one_bucket_run_one_program(folder, view, caplog):
  reward = judge(folder)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for prompt in ("a dog", "a longer dog", "dogs"):
      reward.score(view, batch(prompt), media(1), None)
  assert sum("Compiling jit(read)" in r.getMessage() or "Compiling read" in r.getMessage()
             for r in caplog.records) == 1


# --- z-scores, frames, samples that cannot be judged ------------------------------------------------------------------


def test_z_scores_and_their_weighted_sum(folder, host, view):
  scaled = judge(folder, normalise=True, weights=(1.0, 2.0, -1.0))
  plain, found = (r.score(view, batch(*PROMPTS), media(3), None) for r in (host, scaled))
  wanted = (numbers(plain) - np.array(MEAN)) / np.array(STD)
  np.testing.assert_allclose(numbers(found), wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.total, wanted @ [1, 2, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("total, rate, wanted", [
  (4, None, [0, 1, 2, 3]), (5, None, [0, 1, 2, 3, 4, 4]), (16, 8.0, [0, 5, 10, 15]), (80, 16.0, [0, 9, 18, 26, 35, 44,
   53, 61, 70, 79]), (3, 8.0, [0, 2]), (6, 2.0, [0, 1, 2, 3, 4, 5])])
def test_frames_that_are_looked_at(total, rate, wanted):
  assert video_reward.looked_at(total, rate).tolist() == wanted


def test_the_rate_says_which_frames_count(folder, view, host):
  shown = media(1, 9)
  chosen = shown[:, video_reward.looked_at(9, 4.0)]
  found = judge(folder, rate=4.0).score(view, batch("a dog"), shown, None)
  np.testing.assert_allclose(found.total, host.score(view, batch("a dog"), chosen, None).total, atol=1e-5)


def test_a_clip_that_is_not_finite_is_invalid_and_no_other(host, view):
  shown = media(3)
  shown[1, 0, 0, 0, 0] = np.nan
  found = host.score(view, batch(*PROMPTS), shown, None)
  assert found.valid.tolist() == [True, False, True]
  one = host.score(view, batch(PROMPTS[2]), shown[2:], None)
  np.testing.assert_allclose(found.total[2], one.total[0], atol=1e-4)


# --- training ---------------------------------------------------------------------------------------------------------


def test_pairs_with_ties_train_it(folder, view):
  reward = judge(folder, size=(2, 28, 28), columns=96, fresh=True, frame=(28 * 28, 28 * 28))
  head = jax.jit(lambda key: reward.init(key)["rm_head"])(jax.random.key(0))
  assert head.shape == (3, 32) and float(head.std()) == pytest.approx(1 / 33, rel=0.3)
  method, tx = compare.make(None, reward, loss="btt", parts=DIMS, reduction="all"), optax.adam(1e-2)
  shown = media(4, 2, 28)
  data = {**reward.prepare(batch("a", "b")), "win": shown[:2], "lose": shown[2:],
          "label": np.array([[1, -1, 1], [1, 22, -1]])}
  data = jax.tree.map(jnp.asarray, {k: v for k, v in data.items() if k != "prompt"})

  def loss(head, net, data):
    params = {"base": {}, "reward": {"net": net, "rm_head": head}}
    return method.loss(params, method.draw(data, 0, None), jax.random.key(0))
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  opt = tx.init(head)
  first = step(head, view["net"], {**data, "lose": data["win"]})[0][0]
  assert float(first) == pytest.approx(5 * np.log(6) / 6, rel=1e-5)   # equal scores: P = 1/6; one of six is not judged
  for _ in range(40):
    (_, out), slope = step(head, view["net"], data)
    move, opt = tx.update(slope, opt)
    head = optax.apply_updates(head, move)
  assert float(out["accuracy"]) == 1 and float(out["ties"]) == 0


@pytest.mark.slow  # a network of vision and words, its gradient, and clips
def test_its_heads_are_trained_by_the_command(folder, tmp_path):
  reward = {"name": "video_reward", "model": str(folder), "question": str(folder / "question.txt"), "size": (6, 28, 28),
            "columns": 128, "frame": (28 * 28, 28 * 28), "dtype": "float32", "normalise": False, "fresh": True}
  config = {"task": "train", "steps": 4, "batch": 8, "trained": "^reward/rm_head", "reward": reward, "log_every": 1,
            "algorithm": {"name": "compare", "loss": "btt"}, "optim": {"name": "adamw", "lr": 3e-2},
            "data": {"name": "scenes_flaws", "dimension": "looks", "count": 8, "size": 28, "frames": 6, "most": 1}}
  main.run(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert losses[-1] < losses[0] and np.isfinite(losses).all()
  kept = weights_of.load(str(tmp_path), "reward")
  np.testing.assert_array_equal(kept["net"]["lm"]["norm"]["scale"], vlm.load(vlm.open_(folder))["lm"]["norm"]["scale"])


def test_it_begins_with_the_head_of_its_folder(folder, view, host):
  shapes = jax.eval_shape(judge(folder, dtype="bfloat16").init, jax.random.key(0))
  assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, view)
  np.testing.assert_array_equal(jax.jit(lambda key: host.init(key)["rm_head"])(jax.random.key(0)), view["rm_head"])
  loaded = weights_of.load(str(folder), "reward", like=shapes)
  assert list(loaded) == ["net"] and {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.bfloat16.dtype}


# --- refusals ---------------------------------------------------------------------------------------------------------


def changed(folder, tmp_path, name, content):
  """A copy of the folder in which one file is gone or holds something else."""
  for file in folder.iterdir():
    if file.name != name:
      (tmp_path / file.name).symlink_to(file)
  if isinstance(content, str):
    (tmp_path / name).write_text(content)
  elif content is not None:
    weights.save(tmp_path / name, content)
  return tmp_path


WRONG_HEAD = {"rm_head.weight": np.zeros((2, 32), np.float32)}


@pytest.mark.parametrize("name, content, message", [
  ("rm_head.safetensors", None, "has no rm_head.safetensors, the head of the judge; .* set fresh = True"),
  ("rm_head.safetensors", WRONG_HEAD, r"\(2, 32\).* must hold rm_head.weight alone, of shape \(1, 32\) or \(3, 32\)"),
  ("model_config.json", None, "does not hold inference_config with VQ_mean, .* set normalise = False"),
  ("model_config.json", '{"inference_config": {"VQ_mean": 1}}', r"does not hold .*KeyError\('MQ_mean'\)"),
  ("model_config.json", json.dumps({"inference_config": {f"{d}_{w}": 0 for d in DIMS for w in ("mean", "std")}}),
   "deviations must be more than 0"),
  ("question.txt", QUESTION.replace("VQ", "XX"), "must hold <|VQ_reward|>".replace("|", r"\|")),
  ("question.txt", QUESTION.replace("VQ", "Q").replace("MQ", "VQ").replace("Q_", "MQ_", 1), "in this order"),
  ("question.txt", QUESTION.replace("{prompt}", ""), r"and \{prompt\}, each once"),
  ("question.txt", None, "question = .* cannot be read"),
])
def test_folders_that_are_no_judge(folder, tmp_path, name, content, message):
  with pytest.raises(ValueError, match=message):
    judge(changed(folder, tmp_path, name, content), normalise=True)


def test_a_model_without_the_tokens_or_of_another_family(tmp_path):
  vlms.qwen(tmp_path / "plain", kind="2")
  with pytest.raises(ValueError, match=r"<\|VQ_reward\|>, .* must be one token each in the tokenizer"):
    video_reward.make(str(tmp_path / "plain"))
  vlms.llava(tmp_path / "llava")
  with pytest.raises(ValueError, match="is a LlavaOnevision.*, but VideoReward is a Qwen2-VL"):
    video_reward.make(str(tmp_path / "llava"))


def test_a_chat_template_that_changes_the_question(folder, tmp_path, view):
  trimmed = vlms.template("qwen").replace("{{ part.text }}", "text")
  reward = judge(changed(folder, tmp_path, "chat_template.json", json.dumps({"chat_template": trimmed})))
  with pytest.raises(ValueError, match="does not keep the question as it is"):
    reward.score(view, batch("a dog"), media(1), None)


@pytest.mark.parametrize("options, message", [
  ({"rate": 0.0}, "rate = 0.0 must be more than 0"), ({"at_once": 0}, "at_once = 0 must be more than 0"),
  ({"weights": (1.0,)}, r"weights = \[1.0\] must be 3 numbers"), ({"size": (1, 56, 56)}, "at least 2 frames"),
  ({"size": (4, 56, 56), "columns": 32}, "columns = 32 must be at least"),
  ({"frame": (784, 56)}, r"frame = \[784, 56\] must be the least and the most pixels"),
])
def test_options_that_cannot_be(folder, options, message):
  with pytest.raises(ValueError, match=message):
    judge(folder, **options)


@pytest.mark.parametrize("shown, prompts, message", [
  (media(1, 1), ("a dog",), r"media of shape \(1, 1, 56, 56, 3\) .* at least 2 frames"),
  (media(1)[:, :0], ("a dog",), "at least 2 frames"), (media(1)[:, 0], ("a dog",), "reward of pictures"),
  (media(1), (" ",), "prompt = ' ' is empty"), (media(2), ("a dog",), "1 prompts for 2 samples"),
])
def test_samples_that_cannot_be_judged(host, view, shown, prompts, message):
  with pytest.raises(ValueError, match=message):
    host.score(view, batch(*prompts), shown, None)


def test_clips_of_another_size_are_refused_inside_the_mesh(mesh, view):
  with pytest.raises(ValueError, match=r"made for clips of size = \(4, 56, 56\)"):
    mesh.score(view, mesh.prepare(batch("a dog")), jnp.asarray(media(1, 4, 28)), None)
