"""Samplers against diffusers' schedulers, step by step, on a fixed linear network in place of a trained one."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import kernels, process, sample
from diffusion.core import expand

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 4, 3)).astype(np.float32)
W = (0.5 * RNG.standard_normal((3, 3))).astype(np.float32)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def network(x, clock):
  """A linear map that changes with the network's clock, for arrays of either library."""
  return x @ W - 0.3 * x * (clock / 1000)


def theirs(scheduler, **options):
  x = torch.from_numpy(X)
  weight = torch.from_numpy(W)
  for i, t in enumerate(scheduler.timesteps):
    clock = options["clocks"][i] if "clocks" in options else float(t)
    y = x @ weight - 0.3 * x * (clock / 1000)
    extra = options["extra"](i) if "extra" in options else {}
    x = scheduler.step(y, t, x, return_dict=False, **extra)[0]
  return x.numpy()


def ours(kernel, made, times):
  predict = lambda x, t: network(x, expand(made.timestep(t), x))
  return sample.chain(predict, made, kernel, jnp.asarray(X), times, 0.0, jax.random.split(jax.random.key(0), 2))[0]


@pytest.mark.parametrize("name, their_name", [("scaled_linear", "scaled_linear"), ("linear", "linear"),
                                              ("cosine", "squaredcos_cap_v2")])
def test_alphas_are_those_of_diffusers(name, their_name):
  expected = diffusers.DDIMScheduler(**{**SD, "beta_schedule": their_name}).alphas_cumprod.numpy()
  a, s = process.ddpm(schedule=name).scales((jnp.arange(1000) + 1) / 1000)
  np.testing.assert_allclose(np.asarray(a) ** 2, expected, rtol=3e-4, atol=1e-8)
  np.testing.assert_allclose(np.asarray(s) ** 2, 1 - expected, rtol=3e-4, atol=1e-7)     # 1 - x rounds in theirs


@pytest.mark.parametrize("predict", NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(predict, eta):
  scheduler = diffusers.DDIMScheduler(**SD, prediction_type=NAMES[predict], clip_sample=False)
  scheduler.set_timesteps(10)
  noise = RNG.standard_normal((10, *X.shape)).astype(np.float32)
  extra = lambda i: {"eta": eta, "variance_noise": torch.from_numpy(noise[i])} if eta else {}
  made, kernel, x = process.ddpm(predict), kernels.ddim(), jnp.asarray(X)
  times = made.times(10)
  np.testing.assert_allclose(made.timestep(times[:-1]), scheduler.timesteps, atol=1e-3)
  for i in range(10):
    t, t_next = (expand(jnp.full(2, u), x) for u in times[i:i + 2])
    mean, std, _ = kernel.step(made, x, network(x, made.timestep(t)), t, t_next, eta, ())
    x = mean + std * noise[i]
  expected = theirs(scheduler, extra=extra)
  np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("predict", NAMES)
@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_on_the_ddpm_chain(predict, steps):
  scheduler = diffusers.DPMSolverMultistepScheduler(**SD, prediction_type=NAMES[predict], solver_order=2,
                                                    solver_type="midpoint", lower_order_final=True)
  scheduler.set_timesteps(steps)
  made = process.ddpm(predict)
  expected = theirs(scheduler)
  np.testing.assert_allclose(ours(kernels.dpm2m(), made, made.times(steps)), expected, rtol=1e-3,
                             atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("steps, shift", [(5, 1.0), (20, 1.0), (10, 3.0)])
def test_dpm_solver_on_a_flow(steps, shift):
  scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                                    flow_shift=shift, solver_order=2, final_sigmas_type="zero")
  scheduler.set_timesteps(steps)
  times = scheduler.sigmas.numpy()
  assert times[0] == pytest.approx(0.999, abs=1e-3) and times[-1] == 0
  np.testing.assert_allclose(ours(kernels.dpm2m(), process.flow(), times), theirs(scheduler, clocks=1000 * times),
                             atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_flow_and_its_grid(shift):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
  scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
  made = process.flow(shift=shift)
  np.testing.assert_allclose(made.times(10), scheduler.sigmas, atol=1e-6)
  np.testing.assert_allclose(made.timestep(made.times(10))[:-1], scheduler.timesteps, rtol=1e-5)
  np.testing.assert_allclose(ours(kernels.ode(), made, made.times(10)), theirs(scheduler), atol=1e-5)
