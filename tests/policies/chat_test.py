"""A public vision-language model as a policy: likelihoods are PyTorch's, replay is the rollout, runs leave a model."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import vlms
from transformers import Qwen2_5_VLForConditionalGeneration

from align import lora
from align.algorithms import base, dpo, sft
from align.build import UserError
from align.policies import chat
from align.tree import view as view_of
from diffusion import folder as folders
from diffusion import vlm

PROMPTS, ANSWERS = ["What is it?", "How many?"], ["A dog.", "Two of them."]
MEDIA = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  place = tmp_path_factory.mktemp("talker")
  theirs, _ = vlms.qwen(place, seed=5)
  return place, theirs


@pytest.fixture(scope="module")
def made(model):
  return chat.make(str(model[0]), columns=64, length=16)


@pytest.fixture(scope="module")
def net(model):
  return folders.load(str(model[0]))


def batch_of(made, **more):
  out = made.prepare({"prompt": PROMPTS, "media": MEDIA, **more})
  ids = {"prompt_id": jnp.arange(2), "sample_id": jnp.zeros(2, jnp.int32)}
  return {**jax.tree.map(jnp.asarray, {k: v for k, v in out.items() if not isinstance(v, list)}), **ids}


def test_likelihoods_of_answers_are_those_of_pytorch(model, made, net):
  _, theirs = model
  batch = batch_of(made, caption=ANSWERS)
  found = jax.jit(made.log_prob)(net, batch["cond"], batch["x"], None)
  opened = vlm.open_(model[0])
  for i, talk in enumerate(chat.conversations(PROMPTS, MEDIA)):
    row, answer = vlm.row(opened, talk), batch["x"][i][batch["x"][i] != opened.chat.pad]
    ids = torch.tensor(np.concatenate([row.ids, answer]).astype(np.int64))[None]
    (_, seen), = row.shown
    values = seen.pixels.reshape(1, 2, 2, 2, 14, 2, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(16, -1)
    with torch.no_grad():
      logits = theirs(input_ids=ids, pixel_values=torch.tensor(values), image_grid_thw=torch.tensor([[1, 4, 4]]),
                      mm_token_type_ids=(ids == opened.chat.image).long()).logits[0].log_softmax(-1)
    n = len(answer)
    wanted = logits[-n - 1:-1].gather(1, ids[0, -n:, None]).sum()
    np.testing.assert_allclose(found[i], wanted, rtol=1e-4)


def test_replay_is_the_rollout_and_supervised_training_raises_likelihoods(made, net):
  batch = batch_of(made, caption=ANSWERS)
  keys = base.sample_keys(jax.random.key(1), batch)
  roll = jax.jit(made.sample)(net, batch["cond"], keys)
  again = jax.jit(made.replay)(net, roll)
  assert np.abs(again.log_prob - roll.log_prob).max() < 1e-4 and np.abs(roll.log_prob).max() > 1
  learn = sft.make(made)
  slope = jax.jit(jax.value_and_grad(lambda net: learn.loss({"base": net, "policy": net}, batch, jax.random.key(0))[0]))
  before, grads = slope(net)
  after, _ = slope(jax.tree.map(lambda a, g: a - 1e-3 * g / (1e-6 + jnp.abs(g).max()), net, grads))
  assert after < before


def test_adapters_begin_at_the_network_and_pairs_at_log_two(made, net):
  adapted = lora.wrap(made, rank=2, alpha=4.0, targets="lm/.*/(q|v)/kernel$")
  branch = jax.jit(lambda key: adapted.init(key)["lora"])(jax.random.key(0))
  batch = batch_of(made, win=ANSWERS, lose=ANSWERS[::-1])
  learn = dpo.make(adapted, beta=0.1)
  loss, metrics = jax.jit(lambda p: learn.loss(p, batch, jax.random.key(0)))({"base": net, "policy": {"lora": branch},
                                                                           "ref": {}})
  np.testing.assert_allclose(loss, np.log(2), atol=1e-5)
  assert "lora" in view_of({"base": net, "policy": {"lora": branch}}, "policy")


def test_a_question_for_all_makes_the_prompt_the_answer(model, made):
  asked = chat.make(str(model[0]), question="What is it?", columns=64, length=16)
  np.testing.assert_array_equal(asked.prepare({"prompt": ANSWERS, "media": MEDIA})["x"],
                                made.prepare({"prompt": PROMPTS, "media": MEDIA, "caption": ANSWERS})["x"])


def test_a_batch_takes_the_smallest_sizes_that_hold_it_and_means_the_same(model, made, net):
  several = chat.make(str(model[0]), columns=(24, 48, 64), length=(8, 16))
  short, long_ = ({"prompt": prompts, "media": MEDIA, "shown": np.array([1, 1], np.int32), "caption": answers}
                  for prompts, answers in ((PROMPTS, ["A dog", "Two"]), (["What is it, if I may ask?"] * 2, ANSWERS)))
  for batch, sizes in ((short, (48, 8)), (long_, (64, 16))):
    small, whole = several.prepare(dict(batch)), made.prepare(dict(batch))
    assert (small["cond"]["tokens"].shape[1], small["x"].shape[1]) == sizes
    assert (whole["cond"]["tokens"].shape[1], whole["x"].shape[1]) == (64, 16)
    found, wanted = (jax.jit(made.log_prob)(net, jax.tree.map(jnp.asarray, b["cond"]), jnp.asarray(b["x"]), None)
                     for b in (small, whole))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_better_and_worse_answers_have_one_size_whichever_is_longer(model, net):
  several = chat.make(str(model[0]), columns=64, length=(8, 16))
  learn = dpo.make(several, beta=0.1)
  loss = jax.jit(lambda net, batch: learn.loss({"base": net, "policy": net, "ref": {}}, batch, jax.random.key(0))[0])
  for win, lose in ((["A dog"] * 2, ANSWERS), (ANSWERS, ["A dog"] * 2)):
    batch = batch_of(several, win=win, lose=lose)
    assert batch["win"].shape == batch["lose"].shape == (2, 16)
    found = loss(net, batch)
    np.testing.assert_allclose(found, np.log(2), atol=1e-5)


def test_answers_of_a_talk_count_as_one_by_one_behind_what_was_said(model, made, net):
  """The questions between them are read, but not learned."""
  opened, more = vlm.open_(model[0]), [["How many?", "Two."], ["Is it?", "No. It is."]]
  whole = chat.make(str(model[0]), columns=64, length=64)
  metas = [{"caption": answer, "more": rest} for answer, rest in zip(ANSWERS, more, strict=True)]
  batch = batch_of(whole, meta=metas)
  found = jax.jit(whole.log_prob)(net, batch["cond"], batch["x"], None)
  wanted = np.asarray(jax.jit(made.log_prob)(net, batch["cond"], batch_of(made, caption=ANSWERS)["x"], None))
  rows = [vlm.row(opened, [*talk, {"role": "assistant", "content": answer}, {"role": "user", "content": rest[0]}])
          for talk, answer, rest in zip(chat.conversations(PROMPTS, MEDIA), ANSWERS, more, strict=True)]
  later = batch_of(made, caption=[rest[1] for rest in more])["x"]
  wanted = wanted + jax.jit(whole.log_prob)(net, jax.tree.map(jnp.asarray, vlm.each(opened, rows, 96)), later, None)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  assert (np.asarray(batch["x"]) < 0).any() and np.abs(found).max() > 1


def test_words_of_cells_are_read_at_their_columns(model, made, net):
  opened, cells = vlm.open_(model[0]), [["a"] * 4, ["b", "c", "d", "e"]]
  metas = [{"caption": answer, "cells": names} for answer, names in zip(ANSWERS, cells, strict=True)]
  batch, plain = batch_of(made, meta=metas), batch_of(made, caption=ANSWERS)
  likely = jax.jit(made.log_prob)
  found = likely(net, batch["cond"], batch["x"], None) - likely(net, plain["cond"], plain["x"], None)

  @jax.jit
  def columns(net, cond):
    given = vlm.prompt(opened.net, net["net"], cond)
    hidden, _ = opened.net.apply({"params": net["net"]}, None, given.prefix, given.mask, None, given.positions)
    return jax.nn.log_softmax(opened.net.apply({"params": net["net"]}, hidden, method="logits"))
  log_p = columns(net, plain["cond"])
  for i, names in enumerate(cells):
    at = np.flatnonzero(np.asarray(plain["cond"]["tokens"][i]) == opened.chat.image)
    ids = [opened.chat.encode(f" {name}") for name in names]
    wanted = sum(log_p[i, column, token] for column, tokens in zip(at, ids, strict=True) for token in tokens)
    np.testing.assert_allclose(found[i], wanted, rtol=1e-4)


def test_floats_bytes_and_several_pictures(made):
  small = np.stack([MEDIA, 255 - MEDIA], 1)[:, :, :28, :28]
  as_bytes, as_floats = (made.prepare({"prompt": PROMPTS, "media": m})["cond"]["pixels"] for m in (small, small / 255.))
  np.testing.assert_allclose(as_bytes, as_floats, atol=1e-6)
  assert as_bytes.shape[:2] == (2, 2)
  assert "pixels" not in made.prepare({"prompt": PROMPTS})["cond"]


def test_what_is_saved_is_what_transformers_and_we_read(model, net, tmp_path):
  place, theirs = model
  moved = jax.tree.map(np.asarray, net)
  moved["net"]["lm"]["norm"]["scale"] = moved["net"]["lm"]["norm"]["scale"] + 1
  folders.save_talking(tmp_path / "export", {"name": "chat", "model": str(place)}, moved["net"])
  again = folders.load(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, again, moved)
  loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "export")
  for (name, a), b in zip(theirs.state_dict().items(), loaded.state_dict().values(), strict=True):
    shift = 1 if name == "model.language_model.norm.weight" else 0
    assert torch.equal(a + shift, b), name


def test_refusals(model, made):
  with pytest.raises(UserError, match="config.policy.columns: .* must be at least"):
    made.prepare({"prompt": ["x" * 80, "y"], "media": MEDIA})
  with pytest.raises(UserError, match="config.policy.length = 16 must be at least 41"):
    made.prepare({"prompt": PROMPTS, "caption": ["a" * 40, "b"]})
  with pytest.raises(UserError, match="'more' has 1 texts, but it goes on with a question and its answer"):
    made.prepare({"prompt": ["a"], "meta": [{"caption": "b", "more": ["c"]}]})
  with pytest.raises(UserError, match="'cells' has 3 texts, but the pictures take 4 tokens"):
    made.prepare({"prompt": ["a"], "media": MEDIA[:1], "meta": [{"caption": "b", "cells": ["c"] * 3}]})
  with pytest.raises(UserError, match="'cells': '.*' takes .* tokens, but at most 2"):
    made.prepare({"prompt": ["a"], "media": MEDIA[:1], "meta": [{"caption": "b", "cells": ["four or five words"] * 4}]})
  for columns in ((), (64, 32), (0, 32), (32, 32), 3.5, "64", (True, 32), 0):
    with pytest.raises(ValueError, match=r"policy: columns = .* must be a positive whole number, or several from"):
      chat.make(str(model[0]), columns=columns)
  with pytest.raises(ValueError, match="temperature = 0.* must be positive"):
    chat.make(str(model[0]), temperature=0.0)
  with pytest.raises(ValueError, match="param_dtype = 'int8' is not one of"):
    chat.make(str(model[0]), param_dtype="int8")
  with pytest.raises(ValueError, match="is the folder that was opened"):
    folders.save_talking(model[0], {"name": "chat", "model": str(model[0])}, {})
