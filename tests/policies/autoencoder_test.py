"""A captioner and a generator in one: states are those that teacher forcing gives, pictures follow from them, each side
learns alone, and runs resume."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align import build, guard, main, tree
from align.algorithms import base, grpo, nft
from align.build import UserError
from align.datasets import scenes_questions
from align.policies import autoencoder, chat
from diffusion import folder, tokenizer, vlm, vlm_small
from diffusion.nets import text as text_net
from rewards.core import Scores

SIZE, SEEN, L = 8, 16, 6
UNET = {"name": "unet", "variant": "tiny", "widths": (8,), "depth": (1,), "alone": (False,), "head": (8,)}
GENERATOR = {"name": "generator", "size": SIZE, "steps": 2, "length": 6, "kernel": "flow_sde", "eta": 0.7,
             "net": UNET, "text": {"name": "text", "variant": "tiny"},
             "process": {"name": "flow", "predict": "x0"}}
PROMPTS = ["a red circle", "two blue squares"]  # of as many pieces for the captioner as for the text encoder
MEDIA = np.random.default_rng(0).integers(0, 256, (2, SEEN, SEEN, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
  place = tmp_path_factory.mktemp("talker")
  vlm_small.write(place, tuple(scenes_questions.texts()), width=16, depth=1, tower=1, heads=1)
  return {"name": "autoencoder", "captioner": {"model": str(place), "columns": 24, "length": L}, "generator": GENERATOR,
          "connector": {"name": "connector", "inner": 8, "width": 16}}


def make(spec, mode, **more):
  return build.build("align.policies", {**spec, "mode": mode, **more})


@pytest.fixture(scope="module")
def view(spec):
  """Weights with which distributions are neither flat nor certain."""
  shapes, random = jax.eval_shape(make(spec, "draw").init, jax.random.key(0)), np.random.default_rng(0)
  drawn = lambda name, a: 0.3 * random.normal(size=a.shape) + name.endswith("scale")
  return tree.unflatten({name: jnp.asarray(drawn(name, a), a.dtype) for name, a in tree.flatten(shapes).items()})


def batch_of(made, **more):
  out = made.prepare({"prompt": PROMPTS, **more})
  ids = {"prompt_id": jnp.arange(2), "sample_id": jnp.zeros(2, jnp.int32)}
  return {**jax.tree.map(jnp.asarray, {k: v for k, v in out.items() if k != "prompt"}), **ids}


@pytest.fixture(scope="module")
def captions(spec, view):
  """(the policy, its batch, keys, a rollout)."""
  made = make(spec, "caption")
  batch = batch_of(made, media=MEDIA)
  keys = base.sample_keys(jax.random.key(2), batch)
  return made, batch, keys, jax.jit(made.sample)(view, batch["cond"], keys)


def test_states_of_a_caption_are_those_of_teacher_forcing_behind_the_picture(spec, view, captions):
  made, batch, keys, rollout = captions
  talker = chat.make(**spec["captioner"], question="Describe the image.", states=True)
  read = jax.jit(autoencoder.reader(vlm.open_(spec["captioner"]["model"]), talker))
  given, mask = read(view, {**batch["cond"], "said": rollout.output["tokens"]}), np.asarray(rollout.output["mask"])
  np.testing.assert_array_equal(given["mask"], mask)
  np.testing.assert_allclose(given["states"][mask], rollout.output["states"][mask], atol=2e-5)
  blind = read(view, {**batch_of(make(spec, "draw"))["cond"], "said": rollout.output["tokens"]})
  assert np.abs(blind["states"] - given["states"])[mask].min(-1).max() > 1e-4  # the picture is in the states
  likely = read(view, batch["cond"])  # without an answer: the likeliest one
  again = jax.jit(lambda *given: made.sample(*given, eta=0.0).output)(view, batch["cond"], keys)
  np.testing.assert_array_equal(likely["mask"], again["mask"])
  np.testing.assert_allclose(likely["states"], again["states"], atol=2e-5)


def test_alone_words_are_all_that_passes(spec, view, captions):
  _, batch, keys, behind = captions
  made, near = make(spec, "caption", alone=True), dict(atol=2e-5)
  asked = batch_of(made, media=MEDIA)["cond"]
  rollout = jax.jit(made.sample)(view, asked, keys)
  said, mask = rollout.output["tokens"], np.asarray(rollout.output["mask"])
  np.testing.assert_array_equal(said, behind.output["tokens"])  # the captioner does see the picture
  np.testing.assert_allclose(made.log_prob(view, asked, rollout.output, keys),
                             captions[0].log_prob(view, batch["cond"], behind.output, keys), **near)
  talker = chat.make(**spec["captioner"], question="Describe the image.", states=True)
  read = jax.jit(autoencoder.reader(vlm.open_(spec["captioner"]["model"]), talker))
  blind = read(view, {**batch_of(make(spec, "draw"))["cond"], "said": said})  # as a prompt is
  np.testing.assert_allclose(rollout.output["states"][mask], blind["states"][mask], **near)
  other = read(view, {**batch_of(made, media=255 - MEDIA)["cond"], "said": said})
  np.testing.assert_allclose(other["states"][mask], blind["states"][mask], **near)
  embed = lambda mode, **media: jax.jit(make(spec, mode, alone=True).embed)(
    view, batch_of(make(spec, mode, alone=True), **media), keys)["cond"]
  likely = jax.jit(lambda *given: made.sample(*given, eta=0.0).output)(view, asked, keys)
  seen = embed("redraw", media=MEDIA)
  np.testing.assert_allclose(seen["states"][likely["mask"]], likely["states"][likely["mask"]], **near)
  drawn, mask = embed("draw", media=MEDIA), np.asarray(embed("draw", media=MEDIA)["mask"])
  np.testing.assert_allclose(drawn["states"][mask], jax.jit(make(spec, "draw").embed)(
    view, batch_of(make(spec, "draw")), keys)["cond"]["states"][mask], **near)


def test_a_picture_is_painted_from_what_was_said_and_from_its_own_noise(view, captions):
  made, _, _, rollout = captions
  paint, output = jax.jit(made.decode), rollout.output
  picture, mask = np.asarray(paint(view, output)), output["mask"][..., None]
  assert picture.shape == (2, SIZE, SIZE, 3) and picture.min() >= 0 and picture.max() <= 1
  swapped = jax.tree.map(lambda a: a[::-1], output)
  np.testing.assert_allclose(paint(view, swapped)[::-1], picture, atol=1e-5)  # wherever in the batch it stands
  other = lambda more: np.asarray(paint(view, {**output, "states": output["states"] + more}))
  np.testing.assert_allclose(other(3.0 * ~mask), picture, atol=1e-6)  # behind the end nothing is said
  assert np.abs(other(3.0 * mask) - picture).max((1, 2, 3)).min() > 1e-3
  noise = {**output, "keys": output["keys"][::-1]}
  assert np.abs(np.asarray(paint(view, noise)) - picture).max((1, 2, 3)).min() > 1e-3


def test_captions_of_one_picture_are_painted_with_one_noise(spec, view):
  """Else most of what tells them apart would be the noise: GRPO compares captions of one picture."""
  made = make(spec, "caption")
  ids = np.repeat(np.arange(2, dtype=np.int32), 2)
  asked = made.prepare({"prompt": np.repeat(PROMPTS, 2).tolist(), "media": np.repeat(MEDIA, 2, 0), "prompt_id": ids})
  keys = jax.random.split(jax.random.key(5), 4)
  rollout = jax.jit(made.sample)(view, asked["cond"], keys)
  noise = np.asarray(rollout.output["keys"])
  assert (noise[0] == noise[1]).all() and (noise[2] == noise[3]).all() and (noise[0] != noise[2]).any()
  said = np.asarray(rollout.output["tokens"])
  assert (said[0] != said[1]).any() or (said[2] != said[3]).any()  # chance in what is said is a sample's own
  same = {name: a[jnp.array([0, 0, 2, 2])] for name, a in rollout.output.items() if name != "keys"}
  picture = np.asarray(jax.jit(made.decode)(view, {**same, "keys": rollout.output["keys"]}))
  np.testing.assert_allclose(picture[0], picture[1], atol=1e-6)
  found = jax.jit(made.log_prob)(view, asked["cond"], rollout.output, keys)
  np.testing.assert_allclose(found, (rollout.log_prob * rollout.mask).sum(1), atol=1e-4)


def test_a_connector_learns_what_the_generator_s_own_text_encoder_says(spec, view):
  made, text = make(spec, "match"), text_net.make("tiny")
  words = tokenizer.load("words")
  batch = made.prepare({"prompt": PROMPTS})
  states = np.asarray(make(spec, "draw").embed(view, batch_of(make(spec, "draw")), None)["cond"]["states"])
  made_of = np.asarray(build.build("diffusion.nets", spec["connector"]).apply({"params": view["connector"]}, states))
  hidden = np.asarray(text.apply({"params": view["generator"]["text"]}, *words.encode(PROMPTS, GENERATOR["length"]))[0])
  want = [-0.5 * np.mean((made_of[i, :4] - hidden[i, 1:5]) ** 2) for i in range(2)]  # three words and the end
  learned = jax.jit(lambda view: made.log_prob(view, batch["cond"], batch["x"], None))
  np.testing.assert_allclose(learned(view), want, rtol=1e-4)
  slope = jax.grad(lambda view: -learned(view).sum())(view)
  steep = {part: max(np.abs(g).max() for g in jax.tree.leaves(tree)) for part, tree in slope.items()}
  assert steep["connector"] > 0 == steep["generator"]  # nor are the goals moved towards it
  params, tx = view["connector"], optax.adam(1e-2)
  state, value = tx.init(params), jax.jit(jax.value_and_grad(
    lambda c: -made.log_prob({**view, "connector": c}, batch["cond"], batch["x"], None).mean()))
  losses = []
  for _ in range(200):
    loss, grads = value(params)
    updates, state = tx.update(grads, state)
    params = optax.apply_updates(params, updates)
    losses.append(float(loss))
  assert losses[-1] < 0.05 * losses[0]
  with pytest.raises(UserError, match="prompt 'a red circle on top' is 6 pieces .* but 5 for the generator's"):
    made.prepare({"prompt": ["a red circle on top"]})
  with pytest.raises(UserError, match="mode 'match' makes nothing; train it by 'sft'"):
    made.sample(view, batch["cond"], None)


def test_captions_are_those_of_the_captioner(spec, view, captions):
  made, batch, keys, rollout = captions
  alone = chat.make(**spec["captioner"], question="Describe the image.")
  asked = alone.prepare({"prompt": PROMPTS, "media": MEDIA})["cond"]
  jax.tree.map(np.testing.assert_array_equal, asked, jax.tree.map(np.asarray, batch["cond"]))
  found = jax.jit(alone.sample)(view["captioner"], batch["cond"], keys)
  np.testing.assert_array_equal(found.output, rollout.output["tokens"])
  likely = jax.jit(made.log_prob)(view, batch["cond"], rollout.output, keys)
  np.testing.assert_allclose(likely, (rollout.log_prob * rollout.mask).sum(1), atol=1e-4)
  answers, plain = make(spec, "answer", question=None), chat.make(**spec["captioner"])
  asked = [p.prepare({"prompt": PROMPTS, "media": MEDIA})["cond"] for p in (answers, plain)]
  jax.tree.map(np.testing.assert_array_equal, *asked)
  found = jax.eval_shape(answers.sample, view, asked[0], keys)
  assert found.output.shape == (2, L) and found.aux == {}


def steepness(made, learn, view, batch):
  """{part: largest slope of the loss of an experience whose scores differ}."""
  batch = {k: jnp.repeat(v, 2, 0) if k != "cond" else jax.tree.map(lambda a: jnp.repeat(a, 2, 0), v)
           for k, v in batch.items()} | {"sample_id": jnp.tile(jnp.arange(2), 2), "experience": jnp.zeros(4, jnp.int32)}
  scores = Scores(jnp.array([1.0, 0.0, 0.3, 0.9]), {}, jnp.ones(4, bool))

  @jax.jit
  def slope(view):
    params = {"base": view, "policy": view, "old": view}
    keys = base.sample_keys(jax.random.key(4), batch)
    seen = made.embed(view, batch, keys)
    memory, _ = learn.select(params, (), learn.rollout(params, seen, keys), scores, seen, keys[0])
    minibatch = learn.draw(memory, 0, keys[0])
    return jax.grad(lambda view: learn.loss({**params, "policy": view}, minibatch, keys[0])[0])(view)
  return {part: max(np.abs(g).max() for g in jax.tree.leaves(tree)) for part, tree in slope(view).items()}


def test_each_side_learns_alone(spec, view, captions):
  made, batch, *_ = captions
  found = steepness(made, grpo.make(made, "reward", group=2, clip=0.2), view, batch)
  assert found["captioner"] > 0 and found["connector"] == found["generator"] == 0
  made = make(spec, "redraw")
  found = steepness(made, nft.make(made, "reward", group=2, steps=2, levels=1), view, batch_of(made, media=MEDIA))
  assert found["captioner"] == 0 and found["connector"] > 0 and found["generator"] > 0


@pytest.mark.parametrize("mode", ["draw", "redraw"])
def test_pictures_follow_what_is_read(spec, view, mode):
  made = make(spec, mode)
  batch, keys = batch_of(made, media=MEDIA), jax.random.split(jax.random.key(3), 2)
  seen = jax.jit(made.embed)(view, batch, keys)
  assert set(seen["cond"]) == {"states", "mask"} and seen["x"].shape == (2, SIZE, SIZE, 3)
  np.testing.assert_allclose(seen["x"], np.asarray(batch["media"], np.float32) / 127.5 - 1, atol=1e-6)
  draw = jax.jit(lambda cond, keys: made.decode(view, made.sample(view, cond, keys, eta=0.0).output))
  np.testing.assert_allclose(draw(batch["cond"], keys), draw(seen["cond"], keys), atol=1e-5)
  if mode == "draw":  # the first is read behind its picture, the second as a prompt is
    alone = jax.jit(made.embed)(view, batch_of(made), keys)["cond"]["states"]
    apart = np.abs(alone - seen["cond"]["states"])[np.asarray(seen["cond"]["mask"])].reshape(2, -1, 16)
    assert apart[0].max() > 1e-3 and apart[1].max() < 1e-5
  assert np.abs(np.diff(draw(seen["cond"], keys[jnp.zeros(2, int)]), axis=0)).max() > 1e-3


def config(spec, mode, trained, **more):
  return {"task": "train", "steps": 4, "batch": 8, "group": 2, "policy": {**spec, "mode": mode}, "trained": trained,
          "data": {"name": "scenes", "size": SEEN, "count": 16, "most": 3, "categories": ("long",)}, "log_every": 1,
          "algorithm": {"name": "grpo", "clip": 0.2, "updates": 2}, "reward": {"name": "reconstruction", "kind": "mse"},
          "optim": {"name": "adamw", "lr": 3e-3}, **more}


DIFFUSION = {"name": "grpo", "clip": 1.0, "updates": 2, "steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("mode, part, algorithm, alone", [
  ("caption", "captioner", {}, False), ("redraw", "generator/net", DIFFUSION, False),
  ("caption", "captioner", {}, True)])
def test_a_run_moves_its_own_part_and_resumes(spec, tmp_path, monkeypatch, mode, part, algorithm, alone):
  spec = {**spec, "alone": alone}
  run = config(spec, mode, f"^policy/({part}|connector)/" if mode != "caption" else f"^policy/{part}/")
  run |= {"algorithm": algorithm or run["algorithm"]}
  main.run(run, tmp_path / "whole")
  monkeypatch.setenv("ALIGN_FAULT", "stop:1:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(run, tmp_path / "parts")
  monkeypatch.delenv("ALIGN_FAULT")
  main.run(run, tmp_path / "parts")
  main.run({**run, "steps": 2, "optim": {"name": "sgd", "lr": 0.0}}, tmp_path / "still")
  whole, parts, still = (tree.flatten(folder.load(str(tmp_path / w))) for w in ("whole", "parts", "still"))
  for leaf in whole:
    np.testing.assert_array_equal(whole[leaf], parts[leaf], err_msg=leaf)
    own = leaf.startswith((f"{part}/", "connector/") if mode != "caption" else f"{part}/")
    assert own or np.array_equal(whole[leaf], still[leaf]), leaf
  assert sum(not np.array_equal(whole[leaf], still[leaf]) for leaf in whole) > 10
  assert "mode" not in folder.describe(str(tmp_path / "whole"))  # what is left draws
  examined(spec, tmp_path)


def examined(spec, place):
  """What was left is asked for captions, for pictures of them, and questions."""
  exam = {"task": "examine", "model": str(place / "whole"), "batch": 8,
          "data": {"name": "scenes", "size": SEEN, "count": 12, "categories": ("long",)}}
  told = {"told": {"name": "scenes_told", "model": spec["captioner"]["model"]}}
  longer = {"mode": "answer", "captioner": {**spec["captioner"], "length": 64}}  # records have captions of their own
  found = main.run({**exam, "options": longer, "rewards": told}, place / "told")
  assert found["scores"] == {} and 0 <= found["means"]["told/words"] <= 64 and "accuracy" not in found
  alike = {"mse": {"name": "reconstruction", "kind": "mse"}}
  found = main.run({**exam, "options": {"mode": "caption"}, "rewards": alike}, place / "alike")
  assert 0 < found["means"]["mse/mse"] < 1
  asked = {**exam, "options": {"mode": "answer", "question": None},
           "data": {"name": "scenes_questions", "tasks": ("there", "colour"), "count": 12, "size": SEEN}}
  found = main.run(asked, place / "asked")
  assert found["accuracy"] == np.mean([one["accuracy"] for one in found["scores"].values()]) and "means" not in found


@pytest.mark.slow
def test_a_run_begins_from_parts_of_other_runs(spec, tmp_path):
  again = {**spec, "captioner": {**spec["captioner"], "length": 32}}
  first = config(again, "draw", "^policy/generator/net/conv_in/", group=1, steps=1, algorithm={"name": "sft"},
                 reward=None, start={"policy/captioner": spec["captioner"]["model"]})
  main.run(first, tmp_path / "first")
  found = folder.load(str(tmp_path / "first"))
  jax.tree.map(np.testing.assert_array_equal, found["captioner"], folder.load(spec["captioner"]["model"]))
  main.run({**first, "start": {"policy": str(tmp_path / "first")}, "optim": {"name": "sgd", "lr": 0.0}},
           tmp_path / "second")
  jax.tree.map(np.testing.assert_array_equal, found, folder.load(str(tmp_path / "second")))


def test_refusals(spec, tmp_path):
  with pytest.raises(ValueError, match="mode = 'paint' is not one of match, draw, redraw, caption, answer"):
    make(spec, "paint")
  with pytest.raises(ValueError, match="question = None with mode = 'caption': .*only 'answer' asks the prompts"):
    make(spec, "caption", question=None)
  made = make(spec, "redraw")
  with pytest.raises(UserError, match="'media' is missing, the batch has prompt; mode 'redraw' needs pictures"):
    made.prepare({"prompt": PROMPTS})
  for shape in ((2, 12, 12, 3), (2, 1, SEEN, SEEN, 3), (2, 8, 16, 3), (2, 4, 4, 3)):
    with pytest.raises(UserError, match="but the generator makes 8 x 8 x 3 .*: change config.data.size"):
      made.prepare({"prompt": PROMPTS, "media": np.zeros(shape, np.uint8)})
  with pytest.raises(UserError, match="matches 'policy/connector/.*', which stands still here"):
    main.run(config(spec, "caption", "^policy/"), tmp_path / "run")
  with pytest.raises(build.UserError, match="policy.captioner.colums = 3: .*no such option.*nearest: 'columns'"):
    main.run(config({**spec, "captioner": {**spec["captioner"], "colums": 3}}, "caption", "^policy/"), tmp_path / "run")


def test_pictures_are_reduced_to_the_means_of_their_squares():
  media = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.uint8)
  found = autoencoder.reduced({"media": media}, (2, 3, 3))["media"]
  assert found.dtype == np.uint8 and found[0, 0, 0].tolist() == [np.rint(media[0, :2, :2, c].mean()) for c in range(3)]
  np.testing.assert_array_equal(autoencoder.reduced({"media": media}, (4, 6, 3))["media"], media)
