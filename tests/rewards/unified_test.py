"""A vision-language model as a reward: on the host and inside the mesh alike, from the command line too."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes
import vlms
from PIL import Image

from align import assemble, build, evaluate, shard
from diffusion import vlm
from rewards import judge, mix, unified
from rewards.judging import questions

SIDE = 56
QUESTIONS = [
  {"name": "short_point", "like": "image_generation_point_v2", "text": "Rate it. {prompt}", "side": SIDE},
  {"name": "short_sift", "like": "image_generation_point_sift", "text": "Rate it. {prompt}", "side": SIDE},
  {"name": "short_yes", "like": "image_generation_yes_seedream", "text": "Is it {prompt}?", "side": None},
  {"name": "short_clip", "like": "video_generation_point_sift", "text": "Rate it. {prompt}", "side": 28},
  {"name": "short_pair", "like": "image_generation_pair_v1_qwen", "text": "Which is {prompt}?", "side": SIDE},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("judge")
  vlms.qwen(place, seed=7)
  return place


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("questions") / "own.json"
  path.write_text(json.dumps(QUESTIONS))
  return str(path)


@pytest.fixture(scope="module")
def view(folder):
  return {"net": vlm.load(vlm.open_(folder))}


def media(count, side=SIDE):
  return np.random.default_rng(count).integers(0, 256, (count, side, side, 3)).astype(np.float32) / 255


def batch(count, group=1):
  return {"prompt": [f"picture {i // group}" for i in range(count)], "prompt_id": np.arange(count) // group,
          "sample_id": np.arange(count) % group}


def scored(reward, view, given, shown):
  return reward.score(view, reward.prepare(given), shown, jax.random.split(jax.random.key(0), len(shown)))


@pytest.mark.parametrize("question, reading", [
  ("short_point", "expected"), pytest.param("short_yes", "probability", marks=pytest.mark.slow),
  pytest.param("short_sift", "expected", marks=pytest.mark.slow)])
def test_inside_the_mesh_it_scores_as_on_the_host(folder, prompts, view, question, reading):
  make = lambda **options: unified.make(str(folder), question, reading, prompts=prompts, dtype="float32", **options)
  inner, outer = make(size=SIDE, columns=96), make()
  shown = np.round(64 + 127 * media(3)) / 255  # whole bytes, away from where colours are cut
  given = {k: v for k, v in inner.prepare(batch(3)).items() if isinstance(v, dict)}  # what it asks, all arrays
  _, inside = slopes.agree(lambda m: inner.score(view, given, m, None), jnp.asarray(shown), 3e-4, 1e-2)
  host = scored(outer, view, batch(3), shown)
  assert outer.where == "host" and inner.where == "gradient" and host.valid.all() and inside.valid.all()
  np.testing.assert_allclose(inside.total, host.total, atol=2e-3)   # bytes on the host, floats inside
  assert set(inside.parts) < set(host.parts) and "mass" in inside.parts
  for name, part in inside.parts.items():
    np.testing.assert_allclose(part, host.parts[name], atol=2e-3)
  assert np.ptp(host.total) > 0


def test_shares_of_a_group_add_up(folder, prompts, view):
  reward = unified.make(str(folder), "short_pair", "probability", prompts=prompts, dtype="float32", at_once=4)
  found = scored(reward, view, batch(4, 2), media(4))
  np.testing.assert_allclose(found.total.reshape(2, 2).sum(1), 1, atol=1e-5)
  assert found.valid.all() and np.abs(found.total - 0.5).max() > 1e-6
  again = scored(reward, view, batch(4, 2), media(4)[[1, 0, 3, 2]])
  np.testing.assert_allclose(again.total, found.total[[1, 0, 3, 2]], atol=1e-5)


def test_of_a_clip_a_chosen_number_of_frames_is_shown(folder, prompts, view):
  """Spread from the first to the last one, as the question has it; the others do not matter."""
  clips = np.random.default_rng(5).uniform(size=(2, 7, 28, 28, 3)).astype(np.float32)
  made = unified.make(str(folder), "short_clip", "expected", prompts=prompts, dtype="float32", frames=3)
  found, alone, other = (scored(made, view, batch(2), shown).total for shown in (
    clips, clips[:, [0, 3, 6]], clips[:, [0, 2, 6]]))
  np.testing.assert_allclose(found, alone, atol=1e-6)
  assert np.isfinite(found).all() and np.abs(found - other).min() > 1e-6


def test_words_of_a_random_network_are_no_verdict_and_no_zero(folder, prompts, view):
  reward = unified.make(str(folder), "short_point", "text", prompts=prompts, dtype="float32", length=4)
  found = scored(reward, view, batch(2), media(2))
  assert not found.valid.any() and (found.parts["asked_again"] >= 0).all()


@pytest.mark.parametrize("options, message", [
  ({"question": "short_pair", "size": SIDE}, "a question is about one generated picture"),
  ({"question": "short_yes", "size": SIDE, "reading": "text"}, "choose expected or probability"),
  ({"question": "short_yess"}, "question = 'short_yess' is not one of .*nearest: 'short_yes'"),
  ({"question": "short_yes", "reading": "expected"}, "reading = 'expected' is not one of text, probability"),
  ({"question": "short_yes", "frames": 4}, "frames = 4 or rate or as_images is set, but the question shows"),
  ({"question": "short_clip", "frames": 0}, "question 'short_clip': frames = 0 must be at least 1"),
  ({"question": "short_yes", "at_once": 0}, "at_once = 0 must be at least 1")])
def test_refusals(folder, prompts, options, message):
  with pytest.raises((ValueError, build.UserError), match=message):
    unified.make(str(folder), prompts=prompts, **options)


@pytest.mark.slow
def test_judges_of_a_mixture_each_ask_their_own(folder, prompts, view):
  make = lambda name, reading: unified.make(str(folder), name, reading, prompts=prompts, size=SIDE, columns=96,
                                            dtype="float32")
  parts = {"a": make("short_yes", "probability"), "b": make("short_point", "expected")}
  both, shown, key = mix.make(parts), jnp.asarray(media(2)), jax.random.key(0)
  given = both.prepare(batch(2))
  found = both.score({"a": view, "b": view}, given, shown, key)
  for name, part in parts.items():
    alone = part.score(view, part.prepare(batch(2)), shown, key)
    np.testing.assert_allclose(found.parts[name], alone.total, atol=1e-5)


def test_a_judge_begins_from_the_folder_that_it_names(folder, prompts, view):
  own = {"name": "unified", "model": str(folder), "question": "short_yes", "prompts": prompts, "dtype": "float32"}
  both = {"name": "mix", "rewards": {"a": own, "b": {"name": "jpeg"}}}
  found = evaluate.load_rewards({"own": own, "both": both}, None, 0, shard.mesh(devices=jax.devices()[:1]))
  for part in (found["own"][1], found["both"][1]["a"]):
    jax.tree.map(np.testing.assert_array_equal, part, view)
  where = assemble.Place({"reward": {"a": view, "net": {}}}, None, "")
  assert assemble.begun(where, None, both) == {"reward/a": str(folder)}
  assert assemble.begun(assemble.Place({"reward": view}, None, ""), None, own) == {"reward": str(folder)}
  assert assemble.begun(assemble.Place({"policy": {}}, None, ""), None, own) == {}   # it has no parameters in this run


def test_media_of_another_size_are_refused(folder, prompts, view):
  reward = unified.make(str(folder), "short_yes", "probability", prompts=prompts, size=SIDE, columns=96)
  with pytest.raises(ValueError, match="media of 28 x 28 pixels reach a judge that was made for size = 56"):
    scored(reward, view, batch(1), jnp.asarray(media(1, 28)))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  place = tmp_path_factory.mktemp("pictures")
  for i, image in enumerate((255 * media(2)).astype(np.uint8)):
    Image.fromarray(image).save(place / f"{'ab'[i]}.png")
  (place / "broken.png").write_bytes((place / "a.png").read_bytes()[:60])
  return place


def said(capsys, *arguments):
  code = judge.main([str(a) for a in arguments])
  out = capsys.readouterr()
  return code, out.out, out.err


def test_pairs_points_and_chat_print_json(capsys, folder, prompts, files):
  common = ("--model", folder, "--dtype=float32", "--length=4")
  a, b = files / "a.png", files / "b.png"
  asked = ("--prompts", prompts, "--prompt=two cubes")
  code, out, _ = said(capsys, *common, *asked, "--task=short-pair", "--reading=probability", a, b)
  one = json.loads(out)
  code_swapped, out, _ = said(capsys, *common, *asked, "--task=short-pair", "--reading=probability", b, a)
  assert code == code_swapped == 0 and one["valid"] and [o["first"] for o in one["orders"]] == ["A", "B"]
  np.testing.assert_allclose(json.loads(out)["probability_A"], 1 - one["probability_A"], atol=1e-5)
  code, out, _ = said(capsys, *common, *asked, "--task=short_point", a)
  assert code == 0 and json.loads(out)["score"] is None and json.loads(out)["failed"] and json.loads(out)["tokens"]
  opened, told = vlm.open_(folder), json.loads(out)  # asked again, and the tokens are those of the text
  assert told["asked_again"] == 1 and opened.chat.decode(told["tokens"]) == told["text"]
  code, out, _ = said(capsys, *common, "--chat=Describe the image.", a)
  assert code == 0 and set(json.loads(out)) == {"text", "tokens", "log_prob"}


@pytest.mark.parametrize("arguments, message", [
  (["--task=short_pair", "--chat=hi"], "--task and --chat: one of the two must be given"), ([], "one of the two"),
  (["--chat= "], "--chat = '' is an empty text"), (["--chat=hi", "--prompt=x"], "--prompt = 'x' is given with --chat"),
  (["--chat=hi", "--reading=text"], "--reading = 'text' is given with --chat"),
  (["--task=short_yes", "--prompt=x", "--top-p=.5", "a.png"], "--top-p = 0.5 is given with --task"),
  (["--task=image-understanding-point", "--prompt=x", "--answer=", "a.png"], "--answer = '' is an empty text"),
  (["--task=short_yes", "--prompt=x", "--rate=2", "a.png"], "or rate or as_images is set, but the question shows"),
  (["--task=image-generation-pear"], "--task = 'image-generation-pear' is not one of"),
  (["--task=image-generation", "a.png"], "is not one of image_generation_pair_v1_llava"),
  (["--task=short_yes", "--prompt=x", "a.png", "b.png"], "2 media are given, 1 are needed"),
  (["--task=short_yes", "a.png"], "prompt = '' is empty"),
  (["--task=short_yes", "--prompt=x", "broken.png"], "cannot be read"),
  (["--task=short_yes", "--prompt=x", "none.png"], "cannot be read"),
  (["--task=video-generation-point-sift", "--prompt=x", "a.png"], "must be a folder of frames")])
def test_bad_input_is_named(capsys, folder, prompts, files, arguments, message):
  own = () if any(a.startswith("--chat=") for a in arguments) else ("--prompts", prompts)
  code, out, err = said(capsys, "--model", folder, *own, *(files / a if a.endswith("png") else a for a in arguments))
  assert code == 2 and not out and message in err


def test_small_pictures_are_shown_at_the_side_that_a_judge_knows():
  small = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  large = np.stack([questions.squared(picture, 32) for picture in small])
  asked, keys = {"prompt": ["a red circle", "two cubes"]}, jax.random.split(jax.random.key(0), 2)
  view = {"net": vlm.load(vlm.open_("judge"))}


  def told(media, **options):
    made = unified.make("judge", "scenes_image_point", length=6, dtype="float32", **options)
    return made.explain(view, asked, media / 255, keys)
  assert told(small, side=32) == told(large)
