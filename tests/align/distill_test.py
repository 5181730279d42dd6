"""Consistency distillation where the teacher's ODE has a closed form: the exact student has loss 0, and is what is
found."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align import build
from align.algorithms import base, distill
from align.policies import diffusion
from align.tree import view
from diffusion import process
from diffusion.core import expand, mean_elements, normal
from tests.support import small

MEAN, STD, STEPS, SEGMENTS = 0.3, 0.5, 8, 2


def spread(t):
  return jnp.sqrt((1 - t) ** 2 * STD ** 2 + t ** 2)


def carried(x, t, end):
  """The probability flow of data N(MEAN, STD^2) under x_t = (1 - t) x0 + t noise, from t to end."""
  return (1 - end) * MEAN + spread(end) / spread(t) * (x - (1 - t) * MEAN)


def line(t, end):
  """(gain, shift) of the velocity gain x + shift that carries x from t to end in one step."""
  zero, one = carried(0.0, t, end), carried(1.0, t, end)
  return (1 - (one - zero)) / (t - end), -zero / (t - end)


def table(count: int):
  """`line` from every level of the teacher's grid to the end of its segment out of `count`."""
  levels = jnp.arange(1, STEPS + 1) / STEPS
  ends = jnp.ceil(levels * count - 1 - 1e-4) / count
  gain, shift = jax.vmap(line)(levels, ends)
  return {"gain": gain, "shift": shift}


class Lines(nn.Module):
  """A velocity that is a line in x, another one at every level of the teacher's grid."""
  @nn.compact
  def __call__(self, x, t, context, mask, pooled):
    gain, shift = (self.param(name, nn.initializers.zeros, (STEPS,)) for name in ("gain", "shift"))
    index = jnp.round(t / 1000 * STEPS).astype(int) - 1
    return expand(gain[index], x) * x + expand(shift[index], x)


def gaussian(kernel="ode"):
  return diffusion.make(Lines(), small.Text(), process.flow(), kernel, length=6, size=4, channels=1, law="uniform")


def params_of(made, student=None):
  """The exact teacher, and a student with the table `student`, by default the teacher's."""
  tree = made.init(jax.random.key(0))
  return {"base": {**tree, "net": table(STEPS)}, "policy": {**tree, "net": student or table(STEPS)}}


def batch_of(made, count=64):
  ids = {"prompt_id": jnp.arange(count), "sample_id": jnp.zeros(count, jnp.int32)}
  cond = made.prepare({"prompt": ["one"] * count})["cond"]
  x = MEAN + STD * normal(base.sample_keys(jax.random.key(3), ids), (4, 4, 1))
  return {"x": x, "cond": jax.tree.map(jnp.asarray, cond), **ids}


def method(made, **options):
  return distill.make(made, **{"segments": SEGMENTS, "steps": STEPS, **options})


def gradient(learned, params, batch):
  """A compiled (policy's parameters) -> (loss, the largest derivative)."""
  run = jax.jit(jax.value_and_grad(lambda tree: learned.loss({**params, "policy": tree}, batch, jax.random.key(5))[0]))

  def of(tree):
    value, grads = run(tree)
    return float(value), max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
  return of


@pytest.mark.parametrize("kernel, distance", [("ode", "square"), ("flow_sde", "huber"), ("dpm2m", "square")])
def test_the_exact_student_has_no_loss_and_no_gradient(kernel, distance):
  made = gaussian(kernel)
  params = params_of(made, table(SEGMENTS))
  of = gradient(method(made, distance=distance), params, batch_of(made))
  value, slope = of(params["policy"])
  assert value < 1e-7 and slope < (1e-6 if distance == "square" else 1e-3)
  value, slope = of({**params["policy"], "net": jax.tree.map(lambda a: a + 0.1, table(SEGMENTS))})
  assert value > 1e-4 and slope > 1e-4


def test_the_exact_student_takes_as_many_steps_as_there_are_segments():
  made, x = gaussian(), jax.random.normal(jax.random.key(5), (3, 4, 4, 1))
  params, batch = params_of(made, table(SEGMENTS)), batch_of(made, 3)
  keys = base.sample_keys(jax.random.key(0), batch)
  end = lambda role, steps: made.sample(view(params, role), batch["cond"], keys, x=x, steps=steps, eta=0.0).output
  np.testing.assert_allclose(end("policy", SEGMENTS), MEAN + STD * x, atol=1e-5)
  np.testing.assert_allclose(end("ref", STEPS), MEAN + STD * x, atol=1e-5)
  assert np.abs(end("ref", SEGMENTS) - (MEAN + STD * x)).max() > 0.1  # which the teacher does not


@pytest.mark.parametrize("ema", [None, 0.9])
def test_training_finds_it(ema):
  """From the teacher, with fresh noise every update, and with an average as the target."""
  made = gaussian()
  params, batch, learned = params_of(made), batch_of(made), method(made, distance="square", ema=ema)
  params |= {"ema": params["policy"]} if ema else {}
  tx = optax.adam(optax.linear_schedule(0.05, 0.0, 1500))

  def update(state, key):
    params, opt = state
    gradient = jax.grad(lambda tree: learned.loss({**params, "policy": tree}, batch, key)[0])(params["policy"])
    step, opt = tx.update(gradient, opt)
    params = {**params, "policy": optax.apply_updates(params["policy"], step)}
    if ema:
      mix = lambda old, new: ema * old + (1 - ema) * new
      params["ema"] = jax.tree.map(mix, params["ema"], params["policy"])
    return (params, opt), None
  keys = jax.random.split(jax.random.key(1), 1500)
  (params, _), _ = jax.jit(lambda state: jax.lax.scan(update, state, keys))((params, tx.init(params["policy"])))
  for name, wanted in table(SEGMENTS).items():
    np.testing.assert_allclose(params["policy"]["net"][name], wanted, atol=0.01)


def test_where_the_flow_is_straight_the_teacher_is_the_student():
  """Of data that are one point the velocity (x - MEAN) / t is constant along the way: one step is exact."""
  made = gaussian()
  level = jnp.arange(1, STEPS + 1) / STEPS
  params = params_of(made, {"gain": 1 / level, "shift": -MEAN / level})
  params["base"] = params["policy"]
  batch = batch_of(made)
  value, slope = gradient(method(made, segments=1), params, {**batch, "x": jnp.full((64, 4, 4, 1), MEAN)})(
    params["policy"])
  assert value < 1e-7 and slope < 1e-3
  out = made.sample(view(params, "policy"), batch["cond"], base.sample_keys(jax.random.key(0), batch), steps=1, eta=0.0)
  np.testing.assert_allclose(out.output, MEAN, atol=1e-5)


@pytest.mark.parametrize("made", [small.policy(guidance=3.0, noise=process.flow(predict="x0")),
                                  small.policy("ddim", process.ddpm())])
def test_as_many_segments_as_steps_is_the_teacher_itself(made):
  """The goal is then the teacher's own step, whatever the networks are."""
  learned = distill.make(made, segments=4, steps=4, distance="square")
  params, batch = small.params_of(made), small.batch_of(made)
  of = gradient(learned, params, batch)
  value, slope = of(params["policy"])
  assert value < 1e-12 and slope < 1e-7
  value, slope = of(small.params_of(made, 0.3)["policy"])
  assert value > 0 and 0 < slope < np.inf


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_loss_is_the_distance_of_two_jumps_to_the_end_of_the_segment(ema):
  """Against the same in words, at one level, with the known noise."""
  made = small.policy("ode")
  params, batch = small.params_of(made, 0.3), small.batch_of(made)
  params["ema"] = jax.tree.map(lambda a: 0.9 * a, params["policy"])
  learned, key = distill.make(made, segments=1, steps=2, distance="square", ema=ema), jax.random.key(5)
  each = base.fold(base.sample_keys(key, batch), 1)
  index = jax.vmap(lambda k: jax.random.randint(k, (), 0, 2))(base.fold(base.sample_keys(key, batch), 0))
  t = 1 - index / 2
  xt = expand(1 - t, batch["x"]) * batch["x"] + expand(t, batch["x"]) * normal(each, (4, 4, 1))
  velocity = lambda role, x, t: (x - made.denoise(view(params, role), batch["cond"], x, t)) / expand(t, x)
  nxt = xt - 0.5 * velocity("ref", xt, t)
  at_half = nxt - 0.5 * velocity("ema" if ema else "policy", nxt, jnp.full_like(t, 0.5))
  goal = jnp.where(expand(index, nxt) == 0, at_half, nxt)
  wanted = mean_elements((xt - expand(t, xt) * velocity("policy", xt, t) - goal) ** 2)
  value, _ = learned.loss(params, batch, key)
  assert 0 < index.sum() < len(index)
  np.testing.assert_allclose(value, wanted.mean(), rtol=1e-4)


def test_only_the_student_has_a_gradient():
  made = small.policy()
  params, batch = small.params_of(made, 0.3), small.batch_of(made)
  params["ema"] = jax.tree.map(lambda a: 0.9 * a, params["policy"])
  learned = distill.make(made, segments=1, steps=4, ema=0.9)
  grads = jax.grad(lambda params: learned.loss(params, batch, jax.random.key(0))[0])(params)
  size = {role: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[role])) for role in grads}
  assert size.pop("policy") > 1e-5 and set(size.values()) == {0.0}


def test_pseudo_huber_is_square_for_small_and_absolute_for_large_differences():
  near, far = jnp.full((1, 8), 1e-4), jnp.full((1, 8), 10.0)
  np.testing.assert_allclose(distill.gap(near, 0 * near, "huber", 1.0), 0.5 * 1e-8, atol=1e-7)
  np.testing.assert_allclose(distill.gap(far, 0 * far, "huber", 1e-3), 10.0, rtol=1e-3)
  np.testing.assert_allclose(distill.gap(far, 0 * far, "square", 1e-3), 100.0)


def test_the_grid_ends_where_the_student_is_sampled():
  t, nxt, end = distill.grid(process.flow(shift=3.0), 2, 6)
  assert (t > nxt).all() and (nxt >= end).all() and t[0] == 1 and nxt[-1] == end[-1] == 0
  np.testing.assert_allclose(sorted({*end.tolist()}, reverse=True), process.flow(shift=3.0).times(2)[1:])


def uneven():
  flow = process.flow()
  return flow._replace(times=lambda steps: np.linspace(1, 0, steps + 1) ** (1 + steps / 10))


@pytest.mark.parametrize("options, words", [
  ({"segments": 0}, ["segments = 0 must be at least 1", "1 to 16"]),
  ({"segments": 3, "steps": 16}, ["steps = 16 must be a multiple of segments = 3", "change one of them"]),
  ({"segments": 4, "steps": 0}, ["steps = 0 must be a multiple of segments = 4"]),
  ({"distance": "lpips"}, ["distance = 'lpips' is not one of square, huber"]),
  ({"width": 0.0}, ["width = 0.0 must be positive"]),
  ({"ema": 1.0}, ["ema = 1.0 must be in [0, 1)"])])
def test_what_cannot_be_is_refused(options, words):
  with pytest.raises(ValueError) as said:
    distill.make(small.policy(), **options)
  assert all(word in str(said.value) for word in words), said.value


def test_a_process_whose_grids_do_not_nest_is_refused():
  with pytest.raises(ValueError, match="segments = 2: this process puts 2 steps at .* let segments = steps"):
    distill.make(small.policy(noise=uneven()), segments=2, steps=4)


def test_tokens_and_data_without_media_are_refused():
  made = small.policy()
  with pytest.raises(ValueError, match="policy = None: algorithm 'distill' needs a policy"):
    distill.make(None)
  with pytest.raises(ValueError, match="this policy makes tokens"):
    distill.make(made._replace(process=None))
  batch = {k: v for k, v in small.batch_of(made).items() if k != "x"}
  with pytest.raises(build.UserError, match="batch entry 'x' is missing.*'distill' learns from captioned media"):
    distill.make(made).loss(small.params_of(made), batch, jax.random.key(0))
