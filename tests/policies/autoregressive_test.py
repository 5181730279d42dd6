"""The policy of tokens: replay equals rollout, exact sums, prompts and images, learning, and what it refuses."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align.algorithms import base, dpo, grpo, sft
from align.build import UserError
from align.policies import autoregressive
from align.tree import view as view_of
from diffusion import decode, tokenizer
from diffusion.nets import lm
from rewards.core import Reward, Scores

L, SIZE, G = 8, 8, 4
CAPTIONS = ["a red circle", "a blue square", "two green squares", "a yellow triangle on the left"]
WORDS = tokenizer.load("words")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8)
KINDS = ("image", "prompt", "none")
NET = lm.make("tiny")


def make(cond="image", net=None, **options):
  return autoregressive.make(net or NET, cond, length=L, prompt_length=6, size=SIZE, **options)


def params_of(made, seed=0):
  """Weights with which distributions are neither flat nor certain."""
  leaves, tree = jax.tree.flatten(jax.jit(made.init)(jax.random.key(seed)))
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return tree.unflatten([a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


def batch_of(made, group=1, **more):
  """Four records, each repeated as the stream does."""
  many = lambda values: [v for v in values for _ in range(group)]
  out = made.prepare({"prompt": many(CAPTIONS), "meta": [{}] * 4 * group, "media": np.repeat(IMAGES, group, 0), **more})
  ids = {"prompt_id": jnp.repeat(jnp.arange(4), group), "sample_id": jnp.tile(jnp.arange(group), 4)}
  return {**jax.tree.map(jnp.asarray, {k: v for k, v in out.items() if k not in ("prompt", "meta")}), **ids}


def setup(cond="image", **options):
  made = make(cond, **options)
  batch = batch_of(made)
  return made, params_of(made), batch, base.sample_keys(jax.random.key(1), batch)


@pytest.mark.parametrize("cond", KINDS)
def test_replay_at_the_same_parameters_gives_the_log_probs_of_the_rollout(cond):
  made, view, batch, keys = setup(cond, temperature=0.7, top_p=0.9)
  roll = jax.jit(made.sample)(view, batch["cond"], keys)
  again = jax.jit(made.replay)(view, roll)
  assert np.abs(again.log_prob - roll.log_prob).max() < 1e-4 and np.abs(roll.log_prob).max() > 1
  np.testing.assert_array_equal(again.x, roll.nxt)
  moved = made.replay(jax.tree.map(lambda a: 1.05 * a, view), roll)
  assert np.abs(moved.log_prob - roll.log_prob)[np.asarray(roll.mask) > 0].min() > 1e-5


def test_the_shapes_of_a_rollout():
  made, view, batch, keys = setup(states=True)
  roll = made.sample(view, batch["cond"], keys)
  for name in ("x", "nxt", "log_prob", "std", "mask", "output"):
    assert getattr(roll, name).shape == (4, L), name
  assert roll.mean is None and not roll.std.any() and roll.times.shape == (4, L, 3)
  np.testing.assert_array_equal(roll.x[:, 0], 1)  # <bos>, then each decision's last token
  np.testing.assert_array_equal(roll.x[:, 1:], roll.nxt[:, :-1])
  assert roll.aux["states"].shape == (4, L, 16) and not make().sample(view, batch["cond"], keys).aux
  assert roll.cond is batch["cond"]


@pytest.mark.parametrize("cond", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_prob_is_the_sum_of_the_replayed_tokens(cond, temperature):
  made, view, batch, keys = setup(cond, temperature=temperature)
  roll = made.sample(view, batch["cond"], keys)
  want = made.replay(view, roll).log_prob.sum(1)
  np.testing.assert_allclose(made.log_prob(view, batch["cond"], roll.output, keys), want, atol=1e-4)


def test_log_prob_counts_up_to_the_stop_only():
  made, view, batch, keys = setup()
  x = batch["x"]
  ends = np.asarray(x == 2).argmax(1)
  assert ends.tolist() == [3, 3, 3, 6]
  changed = jnp.where(jnp.arange(L) > ends[:, None], 9, x)
  before = made.log_prob(view, batch["cond"], x, keys)
  np.testing.assert_allclose(made.log_prob(view, batch["cond"], changed, keys), before, atol=1e-5)
  endless = x.at[0, 3].set(4)  # without its stop, the padding is what was said
  assert np.abs(made.log_prob(view, batch["cond"], endless, keys) - before)[0] > 1


def test_the_image_is_what_a_captioner_looks_at():
  made, view, batch, keys = setup()
  other = {"image": batch["cond"]["image"][::-1]}
  gap = made.log_prob(view, batch["cond"], batch["x"], keys) - made.log_prob(view, other, batch["x"], keys)
  assert np.abs(gap).min() > 1e-3
  floats = {"image": batch["cond"]["image"].astype(jnp.float32) / 255}
  np.testing.assert_allclose(made.log_prob(view, floats, batch["x"], keys),
                             made.log_prob(view, batch["cond"], batch["x"], keys), atol=1e-4)


def test_the_prompt_is_what_an_answer_follows():
  made, view, batch, keys = setup("prompt")
  x = jnp.asarray(WORDS.encode(["yellow"] * 4, L + 1)[0][:, 1:])
  found = made.log_prob(view, batch["cond"], x, keys)
  assert np.unique(np.round(found, 3)).size == 4
  plain, _, same, _ = setup("none")
  assert np.ptp(plain.log_prob(params_of(plain), same["cond"], x, keys)) < 1e-5


def test_a_sample_does_not_depend_on_its_batch():
  made, view, batch, keys = setup()
  whole, order = made.sample(view, batch["cond"], keys), jnp.array([3, 1, 0, 2])
  some = lambda cond: jax.tree.map(lambda a: a[order], cond)
  permuted = made.sample(view, some(batch["cond"]), keys[order])
  np.testing.assert_array_equal(permuted.output, whole.output[order])
  alone = made.sample(view, {"image": batch["cond"]["image"][2:3]}, keys[2:3])
  np.testing.assert_array_equal(alone.output, whole.output[2:3])


def test_eta_is_the_temperature_and_greedy_decisions_are_not_trained():
  made, view, batch, keys = setup()
  hot = made.sample(view, batch["cond"], keys, eta=3.0)
  np.testing.assert_allclose(made.replay(view, hot).log_prob, hot.log_prob, atol=1e-4)
  greedy = made.sample(view, batch["cond"], keys, eta=0.0)
  np.testing.assert_array_equal(greedy.output, made.sample(view, batch["cond"], keys[::-1], eta=0.0).output)
  assert not greedy.mask.any() and not greedy.log_prob.any()
  prompt = decode.Prompt(NET.apply({"params": view["net"]}, batch["cond"]["image"] / 127.5 - 1, method="see"),
                         jnp.ones((4, 1), jnp.int32))
  hidden, _ = decode.prefill(NET, view["net"], prompt)
  first = NET.apply({"params": view["net"]}, hidden, method="logits").argmax(-1)
  np.testing.assert_array_equal(greedy.output[:, 0], first)


def test_prepare_tokenises_captions_and_keeps_what_it_was_given():
  made = make()
  out = made.prepare({"prompt": CAPTIONS, "media": IMAGES, "meta": [{}] * 4, "prompt_id": np.arange(4)})
  assert out["prompt"] == CAPTIONS and out["x"].dtype == np.int32
  np.testing.assert_array_equal(out["x"][0], [4, 43, 37, 2, 0, 0, 0, 0])
  np.testing.assert_array_equal(out["cond"]["image"], IMAGES)
  np.testing.assert_array_equal(out["media"], IMAGES)  # rewards compare with it
  assert made.embed(None, out, None) is out and made.prepare({"prompt_id": 1}) == {"prompt_id": 1}
  said = [WORDS.decode(row) for row in made.decode(None, out["x"])]
  assert said == CAPTIONS


@pytest.mark.parametrize("place", ["batch", "meta"])
def test_captions_and_pairs_are_read_from_the_batch_or_from_meta(place):
  made = make("prompt")
  texts = {"caption": ["one"] * 4, "win": ["two"] * 4, "lose": ["a red circle and a very long story of nine words"] * 4}
  meta = [{k: v[i] for k, v in texts.items()} for i in range(4)] if place == "meta" else [{}] * 4
  out = made.prepare({"prompt": CAPTIONS, "meta": meta, **(texts if place == "batch" else {})})
  assert [out[k].shape for k in ("x", "win", "lose")] == [(4, L)] * 3
  assert WORDS.decode(out["x"][0]) == "one" and WORDS.decode(out["win"][3]) == "two" and out["lose"][0, -1] == 2
  assert out["cond"]["tokens"].shape == (4, 6) and out["cond"]["mask"].sum(1).tolist() == [5, 5, 5, 6]
  assert set(made.prepare({"prompt": CAPTIONS})) == {"prompt", "cond"}  # a prompt is no answer to itself
  given = made.prepare({"prompt": CAPTIONS, "meta": meta, "win": np.ones((4, L), np.int32)})["win"]
  assert (given == 1).all()  # token ids are taken as they are


def test_a_captioner_learns_its_captions():
  made = make(net=lm.make("tiny", width=32, sight=1))
  method, batch = sft.make(made), batch_of(make())
  params, tx = {"base": {}, "policy": made.init(jax.random.key(0))}, optax.adam(1e-2)

  @jax.jit
  def step(policy, opt):
    loss = lambda p: method.loss({**params, "policy": p}, batch, jax.random.key(0))[0]
    value, grads = jax.value_and_grad(loss)(policy)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(policy, updates), opt, value
  policy, opt = params["policy"], tx.init(params["policy"])
  for _ in range(80):
    policy, opt, value = step(policy, opt)
  keys = base.sample_keys(jax.random.key(1), batch)
  found = jax.jit(lambda p: made.sample(p, batch["cond"], keys, eta=0.0).output)(policy)
  assert [WORDS.decode(row) for row in found] == CAPTIONS and float(value) < 0.5


def roles(made, seed=0):
  tree, other = params_of(made, seed), params_of(made, 7)
  return {"base": other, "policy": tree}


def experience(made, params, method):
  batch = batch_of(made, G)
  roll = jax.jit(method.rollout)(params, batch, base.sample_keys(jax.random.key(2), batch))
  total = (roll.output % 7).mean(1)
  scores = Scores(total, {}, jnp.ones(len(total), bool))
  memory, _ = method.select(params, (), roll, scores, batch, jax.random.key(2))
  return jax.jit(method.draw)(memory, 0, jax.random.key(2)), batch


def gradient(method, params, batch):
  loss = lambda p: method.loss({**params, "policy": p}, batch, jax.random.key(3))
  (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["policy"])
  return value, out, grads


def test_on_policy_the_gradient_of_grpo_is_that_of_advantage_times_log_prob():
  made = make(temperature=0.8)
  judge = Reward(lambda key: {}, lambda b: b, None, "host", None)
  params, method = roles(made, 1), grpo.make(made, judge, group=G, clip=0.2, std="group")
  batch, cond = experience(made, params, method)
  _, out, found = gradient(method, params, batch)
  assert out["on_policy_gap"] < 1e-4 < out["on_policy_limit"] and abs(out["ratio_mean"] - 1) < 1e-5

  def surrogate(policy):
    each = made.log_prob(view_of({**params, "policy": policy}, "policy"), cond["cond"], batch["rollout"].nxt, None)
    return -(batch["advantage"] * each).sum() / batch["rollout"].mask.sum()
  want = jax.jit(jax.grad(surrogate))(params["policy"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, want)
  assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(want)) > 1e-2
  assert np.asarray(batch["rollout"].mask).mean() < 1  # some answers were shorter


def test_grpo_makes_likely_what_is_rewarded():
  """Twenty experiences of the reward's own making: the share of colour words in an answer."""
  made, group, few = make("none"), 16, WORDS.encode(["red green blue yellow"], 8)[0][0, 1:5]
  judge = Reward(lambda key: {}, lambda b: b, None, "host", None)
  method, tx = grpo.make(made, judge, group=group, clip=0.2, std="group"), optax.adam(0.02)
  policy, batch = made.init(jax.random.key(0)), batch_of(made, group)

  @jax.jit
  def step(policy, opt, n):
    params, key = {"base": policy, "policy": policy}, jax.random.key(n)
    roll = method.rollout(params, batch, base.sample_keys(key, batch))
    share = (jnp.isin(roll.output, few) * roll.mask).mean(1)
    memory, _ = method.select(params, (), roll, Scores(share, {}, jnp.ones(len(share), bool)), batch, key)
    drawn = {**batch, **method.draw(memory, 0, key)}
    grads = jax.grad(lambda p: method.loss({**params, "policy": p}, drawn, key)[0])(policy)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(policy, updates), opt, share.mean()
  opt, shares = tx.init(policy), []
  for n in range(20):
    policy, opt, share = step(policy, opt, n)
    shares.append(float(share))
  assert shares[0] < 0.1 and np.mean(shares[-3:]) > 0.8, shares


@pytest.mark.parametrize("more", [0.0, 0.5])
def test_dpo_starts_at_log_2_and_its_gradient_is_that_of_the_sums(more):
  made, beta = make("prompt"), 0.1
  params = {"base": params_of(made), "policy": params_of(made)}
  batch = batch_of(made, win=["a red circle"] * 4, lose=["two"] * 4)
  value, _, found = gradient(dpo.make(made, beta=beta, sft=more), params, batch)
  each = lambda p, name: made.log_prob(p, batch["cond"], batch[name], None).mean()
  liked = lambda p: more * each(p, "win")
  assert float(value) == pytest.approx(np.log(2) - float(liked(params["policy"])), abs=1e-5)
  want = jax.grad(lambda p: -0.5 * beta * (each(p, "win") - each(p, "lose")) - liked(p))(params["policy"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, want)


@pytest.mark.parametrize("build,words", [
  (lambda: make("images"), "cond = 'images' is not one of image, prompt, none"),
  (lambda: make(net=lm.make("tiny", patch=0)), "cond = 'image', but the network has patch = 0"),
  (lambda: make(net=lm.make("tiny", vocab=50)), "vocab = 50 is smaller than the 112 tokens of tokens = 'words'"),
  (lambda: make(temperature=0.0), "temperature = 0.0 must be positive"),
  (lambda: make(top_p=0.0), "top_p = 0.0 must be in (0, 1]"),
  (lambda: autoregressive.make(NET, length=0), "length = 0 must be at least 1"),
  (lambda: make(tokens="nowhere"), "tokens = 'nowhere' is no folder"),
  (lambda: make().prepare({"prompt": CAPTIONS}), "data entry 'media' is missing, the batch has prompt"),
  (lambda: make().prepare({"prompt": CAPTIONS, "media": IMAGES[:, :4]}),
   "data entry 'media' is 4 x 8 x 3, but the policy reads 8 x 8 x 3"),
  (lambda: make().prepare({"prompt": CAPTIONS, "media": IMAGES, "win": IMAGES}),
   "data entry 'win' is uint8 of shape (4, 8, 8, 3), but answers are strings, or token ids [B 8]"),
  (lambda: make("none").prepare({"prompt": CAPTIONS, "x": np.ones((4, 5), np.int32)}),
   "data entry 'x' is int32 of shape (4, 5)"),
  (lambda: make().denoise({}, {}, None, 0.5), "policy.denoise: this policy makes tokens"),
  (lambda: make().step({}, {}, None, 1.0, 0.5, None, 0.0), "policy.step: this policy makes tokens"),
  (lambda: make().log_prob({}, {}, None, None, 0.5), "this policy makes tokens"),
  (lambda: make().sample({}, {}, None, steps=4), "steps = 4: tokens are drawn from the first to the last"),
  (lambda: make().sample({}, {}, None, keep=[0]), "keep = [0]: tokens are drawn from the first to the last"),
])
def test_refusals(build, words):
  with pytest.raises((ValueError, UserError)) as error:
    build()
  assert words in str(error.value), str(error.value)


def test_there_are_no_noise_levels():
  made = make()
  assert made.process is None and made.law is None
