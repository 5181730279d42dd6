"""The diffusion policy on tiny networks: replay equals rollout, guidance, the bound, gradients through sampling."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.policies import diffusion as policy
from diffusion import generator, kernels, process
from diffusion.core import expand, fold, normal
from diffusion.nets import text, unet

NOISY = ("ddim", "flow_sde", "dance_sde", "cps")
PROMPTS = ["a red circle", "a blue square", "two green squares", ""]
SIZE = 8


class Tiny(nn.Module):
  """A convolution that sees the time, the unmasked context and the pooled text."""
  @nn.compact
  def __call__(self, x, t, context, mask, pooled):
    words = jnp.where(mask[..., None], context, 0).sum(1)
    features = nn.Dense(8, name="text")(jnp.concatenate([words, pooled, t[:, None] / 1000], -1))
    h = jnp.tanh(nn.Conv(8, (3, 3), name="first")(x) + features[:, None, None])
    return nn.Conv(x.shape[-1], (3, 3), name="last")(h)


def make(kernel="flow_sde", made=None, net=None, words=None, **options):
  words = text.make(**{"vocab": 128, "width": 16, "depth": 1, "heads": 2, **(words or {})})
  made = process.flow(shift=2.0) if made is None else made
  return policy.make(Tiny() if net is None else net, words, made, kernel, length=8, size=SIZE,
                     **{"steps": 4, "eta": 0.7, **options})


def setup(*args, **options):
  """policy, view, cond and keys of four prompts; the null text is far from the prompts."""
  made = make(*args, **options)
  view = jax.tree.map(lambda a: 2 * a, made.init(jax.random.key(0)))
  return made, view, made.prepare({"prompt": PROMPTS})["cond"], keys_of(4)


def keys_of(batch, seed=1):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))


@pytest.mark.parametrize("guidance", [1, 3.0])
@pytest.mark.parametrize("name", NOISY)
def test_replay_at_the_same_parameters_gives_the_log_probs_of_the_rollout(name, guidance):
  made, view, cond, keys = setup(name, guidance=guidance)
  roll = jax.jit(lambda view: made.sample(view, cond, keys, keep=jnp.arange(4)))(view)
  again = jax.jit(made.replay)(view, roll)
  size = np.maximum(1, np.abs(roll.log_prob))
  assert np.abs((again.log_prob - roll.log_prob) / size).max() < 2e-6
  np.testing.assert_allclose(again.mean, roll.mean, atol=2e-5)
  np.testing.assert_array_equal(again.x, roll.nxt)
  np.testing.assert_allclose(again.std, roll.std, atol=1e-7)
  moved = jax.jit(made.replay)(jax.tree.map(lambda a: 1.01 * a, view), roll)
  assert np.abs(moved.log_prob - roll.log_prob)[:, :3].min() > 1e-6      # and it notices other parameters


def test_replay_of_decisions_kept_one_a_sample_and_another_process():
  made, view, cond, keys = setup("ddim", process.ddpm("v"), eta=1.0, guidance=3.0)
  keep = jnp.array([[0, 2], [1, 0], [2, 1], [0, 3]])
  roll = made.sample(view, cond, keys, keep=keep)
  again = made.replay(view, roll)
  assert roll.x.shape == (4, 2, SIZE, SIZE, 3) and roll.times.shape == (4, 2, 3)
  np.testing.assert_allclose(again.log_prob, roll.log_prob, rtol=3e-6, atol=3e-6)
  grid = made.process.times(4)
  np.testing.assert_allclose(roll.times[..., 0], grid[:-1][keep], atol=1e-7)
  np.testing.assert_allclose(roll.times[..., 1], grid[1:][keep], atol=1e-7)
  np.testing.assert_allclose(roll.times[..., 2], 1.0)
  np.testing.assert_array_equal(roll.mask, [[1, 1], [1, 1], [1, 1], [1, 0]])    # step 3 ends at t = 0


def test_the_mask_excludes_steps_without_noise():
  made, view, cond, keys = setup("cps")
  roll = made.sample(view, cond, keys, eta=jnp.array([0.0, 0.5, 0.0, 0.5]), keep=jnp.arange(4))
  np.testing.assert_array_equal(roll.mask, np.tile([0, 1, 0, 0], (4, 1)))
  assert not np.asarray(roll.log_prob)[:, [0, 2, 3]].any()
  made, view, cond, keys = setup("ode")
  assert not np.asarray(made.sample(view, cond, keys, keep=jnp.arange(4)).mask).any()
  assert made.sample(view, cond, keys).x is None


def test_sample_starts_midway_from_given_times():
  made, view, cond, keys = setup("ode", guidance=2.0)
  whole = made.sample(view, cond, keys, keep=jnp.arange(4))
  times = made.process.times(4)
  tail = made.sample(view, cond, keys, x=whole.x[:, 2], steps=times[2:])
  np.testing.assert_allclose(tail.output, whole.output, atol=1e-5)
  np.testing.assert_array_equal(whole.x[:, 0], normal(fold(keys, 0), (SIZE, SIZE, 3)))
  np.testing.assert_allclose(made.sample(view, cond, keys, steps=4).output, whole.output, atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch():
  made, view, cond, keys = setup("flow_sde", guidance=3.0)
  order = jnp.array([3, 1, 0, 2])
  whole = made.sample(view, cond, keys).output
  permuted = made.sample(view, jax.tree.map(lambda a: a[order], cond), keys[order]).output
  np.testing.assert_allclose(permuted, whole[order], atol=1e-5)
  np.testing.assert_allclose(made.sample(view, jax.tree.map(lambda a: a[2:3], cond), keys[2:3]).output, whole[2:3],
                             atol=1e-5)


def test_guidance_is_two_separate_calls():
  made, view, cond, keys = setup("ode", guidance=3.0)
  x, t = normal(keys, (SIZE, SIZE, 3)), jnp.array([0.9, 0.5, 0.3, 0.1])
  null = made.prepare({"prompt": [""] * 4})["cond"]
  given, without = made.denoise(view, cond, x, t), made.denoise(view, null, x, t)
  assert np.abs(given - without)[:3].max() > 1e-2
  np.testing.assert_allclose(made.denoise(view, cond, x, t, guided=True), without + 3 * (given - without), atol=1e-4)
  np.testing.assert_allclose(made.denoise(view, null, x, t, guided=True), without, atol=1e-5)   # the prompt is empty


def test_denoise_is_x0_of_the_network_and_the_last_ode_step():
  made, view, cond, keys = setup("ode", guidance=3.0)
  x = normal(keys, (SIZE, SIZE, 3))
  step = made.step(view, cond, x, 0.4, 0.0, keys, 0.0)
  np.testing.assert_allclose(made.denoise(view, cond, x, 0.4, guided=True), step.x, atol=1e-5)
  assert not np.asarray(step.std).any() and not np.asarray(step.log_prob).any()


def test_steps_by_hand_are_the_sample():
  made, view, cond, keys = setup("dpm2m", guidance=2.0)
  times, x, carry = made.process.times(4), normal(fold(keys, 0), (SIZE, SIZE, 3)), None
  for i in range(4):
    step = made.step(view, cond, x, times[i], times[i + 1], keys, 0.0, carry=carry)
    x, carry = step.x, step.carry
  np.testing.assert_allclose(x, made.sample(view, cond, keys).output, atol=2e-5)


@pytest.mark.parametrize("process_of", [process.flow, lambda: process.flow("x0"), process.ddpm,
                                        lambda: process.ddpm("v")])
def test_log_prob_is_minus_half_the_weighted_mean_squared_error(process_of):
  made, view, cond, keys = setup("ode", process_of(), guidance=3.0)     # guidance must not enter
  x, t = normal(fold(keys, 7), (SIZE, SIZE, 3)), jnp.array([0.9, 0.5, 0.3, 0.1])
  noise, level = normal(fold(keys, 1), (SIZE, SIZE, 3)), expand(t, x)
  a, s = made.process.scales(level)
  xt = a * x + s * noise
  words = text.make(vocab=128, width=16, depth=1, heads=2)
  context, pooled = words.apply({"params": view["text"]}, cond["tokens"], cond["mask"])
  y = Tiny().apply({"params": view["net"]}, xt, made.process.timestep(t), context, cond["mask"], pooled)
  error = made.process.weight(level) * (y - made.process.target(x, noise, level)) ** 2
  np.testing.assert_allclose(made.log_prob(view, cond, x, keys, t), -0.5 * error.mean((1, 2, 3)), rtol=1e-5)
  same = made.log_prob(view, cond, x, keys, 0.5)
  np.testing.assert_allclose(same[1], made.log_prob(view, cond, x, keys, t)[1], rtol=1e-5)


def test_log_prob_draws_t_from_its_law_and_shares_it_between_winner_and_loser():
  made, view, cond, keys = setup("ode")
  x = normal(fold(keys, 7), (SIZE, SIZE, 3))
  drawn = made.law(fold(keys, 0))
  np.testing.assert_allclose(made.log_prob(view, cond, x, keys), made.log_prob(view, cond, x, keys, drawn), rtol=1e-6)
  assert np.unique(np.asarray(drawn)).size == 4


@pytest.mark.parametrize("law, options, median, quarter", [
  ("uniform", {}, 0.5, 0.25), ("uniform", {"law_shift": 3.0}, 0.75, 0.5), ("logit_normal", {}, 0.5, 0.3375),
  ("logit_normal", {"law_mean": 1.0, "law_std": 2.0}, 0.7311, 0.4136)])
def test_laws_have_their_quantiles(law, options, median, quarter):
  t = np.asarray(make("ode", law=law, **options).law(keys_of(20000)))
  assert 0 < t.min() and t.max() < 1
  assert np.quantile(t, 0.5) == pytest.approx(median, abs=0.012)
  assert np.quantile(t, 0.25) == pytest.approx(quarter, abs=0.012)


def test_the_law_of_levels_draws_each_as_often():
  """Those of SDXL-Turbo: timesteps 249, 499, 749 and 999 of 1000."""
  made = make("ode", process.ddpm(), law="levels", law_levels=(0.25, 0.5, 0.75, 1.0))
  t, count = np.unique(np.asarray(made.law(keys_of(20000))), return_counts=True)
  assert t.tolist() == [0.25, 0.5, 0.75, 1.0] and (np.abs(count / 20000 - 0.25) < 0.012).all()
  assert np.asarray(made.process.timestep(t)).tolist() == [249, 499, 749, 999]


@pytest.mark.parametrize("name, guidance", [("ode", 2.0), ("flow_sde", 1), ("dpm2m", 1)])
def test_the_gradient_through_sampling_is_that_of_finite_differences(name, guidance):
  made, view, cond, keys = setup(name, guidance=guidance)
  kernel = view["net"]["last"]["kernel"]

  @jax.jit
  def brightness(shift):
    last = {**view["net"]["last"], "kernel": kernel.at[1, 1, 2, 0].add(shift)}
    return made.sample({**view, "net": {**view["net"], "last": last}}, cond, keys).output[..., 0].mean()
  slope, width = jax.grad(brightness)(0.0), 1e-2
  numeric = (brightness(width) - brightness(-width)) / (2 * width)
  assert abs(float(slope)) > 1e-4
  np.testing.assert_allclose(slope, numeric, rtol=2e-2, atol=2e-4)


def test_gradients_reach_every_network_and_stay_finite():
  made, view, cond, keys = setup("flow_sde", guidance=3.0)
  roll = made.sample(view, cond, keys, keep=jnp.arange(4))
  slopes = jax.jit(jax.grad(lambda view: made.replay(view, roll).log_prob.sum()))(view)
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(slopes))
  assert all(any(np.abs(a).max() > 0 for a in jax.tree.leaves(slopes[part])) for part in ("net", "text"))


def test_embed_scales_media_and_pairs_and_keeps_the_rest():
  made = make("ode")
  media = np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3)
  out = made.embed(None, {"media": media, "win": media, "lose": 255 - media, "prompt_id": np.arange(1)}, None)
  assert set(out) == {"x", "win", "lose", "prompt_id"}
  np.testing.assert_allclose(np.ravel(out["x"]), [-1, 1, -0.6], atol=1e-6)
  np.testing.assert_allclose(out["win"], out["x"])
  np.testing.assert_allclose(out["lose"], -out["win"], atol=1e-6)


def test_decode_inverts_embed_and_clips():
  made = make("ode")
  media = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  x = made.embed(None, {"media": media}, None)["x"]
  np.testing.assert_array_equal(generator.to_uint8(made.decode(None, x)), media)
  np.testing.assert_allclose(np.ravel(made.decode(None, jnp.array([-3.0, 0.0, 3.0]))), [0, 0.5, 1])


def test_prepare_tokenises_and_keeps_the_prompt():
  made = make("ode")
  batch = made.prepare({"prompt": PROMPTS, "prompt_id": np.arange(4)})
  assert batch["prompt"] == PROMPTS and batch["cond"]["tokens"].shape == (4, 8)
  assert batch["cond"]["mask"].dtype == bool and batch["cond"]["mask"].sum(1).tolist() == [5, 5, 5, 2]
  assert made.prepare({"prompt_id": np.arange(4)}).keys() == {"prompt_id"}


@pytest.mark.slow
def test_the_tiny_unet_is_a_policy_too():
  made, view, cond, keys = setup("cps", net=unet.make("tiny"), guidance=2.0)
  out = jax.jit(lambda view: made.step(view, cond, normal(keys, (SIZE, SIZE, 3)), 0.9, 0.7, keys, 0.5))(view)
  assert out.x.shape == (4, SIZE, SIZE, 3) and np.isfinite(out.x).all() and np.isfinite(out.log_prob).all()


@pytest.mark.parametrize("build, words", [
  (lambda: make("euler"), ["kernel", "'euler'", *kernels.NAMES, "choose"]),
  (lambda: make("flow_sde", process.ddpm()), ["kernel", "'flow_sde'", "rectified flow", "use process 'flow'"]),
  (lambda: make("dance_sde", process.ddpm("v")), ["kernel", "'dance_sde'", "rectified flow", "'ddim'"]),
  (lambda: make("ode", law="normal"), ["law", "'normal'", "logit_normal", "choose"]),
  (lambda: make("ode", law_shift=0.0), ["law_shift", "0.0", "positive"]),
  (lambda: make("ode", law_std=-1.0), ["law_std", "-1.0", "positive"]),
  (lambda: make("ode", law="levels"), ["law_levels = ()", "'levels'", "(0, 1]", "0.25"]),
  (lambda: make("ode", law="levels", law_levels=(0.5, 0.0)), ["law_levels = (0.5, 0.0)", "(0, 1]"]),
  (lambda: make("ode", law="uniform", law_levels=(0.5,)), ["law_levels = (0.5,)", "'uniform'", "() for others"]),
  (lambda: make("ode", tokens="nowhere"), ["tokens", "'nowhere'", "words"]),
  (lambda: make("ode", steps=0), ["steps", "0", "at least 1"]),
  (lambda: make("ode", words={"vocab": 20}), ["vocab", "20", "tokens of tokens = 'words'", "or more"]),
])
def test_refusals(build, words):
  with pytest.raises(ValueError) as error:
    build()
  assert all(word in str(error.value) for word in words), str(error.value)
