"""Losses on small fixed arrays against values worked out from the papers' formulas in NumPy float64.

The network is y = A x_t + B t + C of an element, so that everything behind it can be written down again: noising,
targets, steps of the sampler and their densities. What the code draws (levels, noise, stored decisions) is given.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.algorithms import base, dpo, grpo, nft, ppo, sft
from align.core import Rollout
from align.policies import diffusion
from diffusion import process
from diffusion.core import fold, normal
from rewards.core import Reward

B, SHAPE, GROUP, ETA = 4, (2, 2, 1), 2, 0.7
ROLES = {"base": (0.3, 0.1, -0.2), "policy": (0.4, -0.1, 0.1), "old": (0.35, 0.05, 0.0)}
IDS = {"prompt_id": jnp.repeat(jnp.arange(2), 2), "sample_id": jnp.tile(jnp.arange(2), 2)}
DRAWN = np.random.default_rng(3)
WIN, LOSE = (DRAWN.normal(size=(B, *SHAPE)) for _ in range(2))


class Line(nn.Module):
  @nn.compact
  def __call__(self, x, t, context, mask=None, pooled=None):
    a, b, c = (self.param(name, nn.initializers.zeros, ()) for name in "abc")
    return a * x + b * t[:, None, None, None] / 1000 + c


class Text(nn.Module):
  @nn.compact
  def __call__(self, tokens, mask):
    zero = self.param("zero", nn.initializers.zeros, (1,))
    return jnp.zeros((*tokens.shape, 1)), jnp.zeros((len(tokens), 1)) + zero


def policy(kind="flow", kernel="flow_sde"):
  made = process.flow() if kind == "flow" else process.ddpm()
  return diffusion.make(Line(), Text(), made, kernel, length=4, size=2, channels=1, steps=4, law="uniform")


def params():
  net = lambda abc: {k: jnp.float32(v) for k, v in zip("abc", abc, strict=True)}
  return {role: {"net": net(abc), "text": {"zero": jnp.zeros(1)}} for role, abc in ROLES.items()}


def said(role, x, t):
  """The network in float64; t in [0, 1] of any shape that broadcasts."""
  a, b, c = (np.float64(np.float32(v)) for v in ROLES[role])
  return a * x + b * t + c


def judge():
  return Reward(lambda key: {}, lambda b: b, None, "host", None)


def batch_of(made, **more):
  cond = made.prepare({"prompt": ["one"] * B})["cond"]
  return jax.tree.map(jnp.asarray, {"cond": cond, **IDS, **more})


def value_of(method, batch, seed=5):
  return float(jax.jit(lambda p: method.loss(p, batch, jax.random.key(seed))[0])(params()))


def levels_and_noise(made, batch, seed=5):
  keys = base.sample_keys(jax.random.key(seed), batch)
  t = np.asarray(made.law(fold(keys, 0)), np.float64)
  return t, np.asarray(normal(fold(keys, 1), SHAPE), np.float64)


def error(kind, made, role, x, t, noise):
  """mean_D (y - target)^2: of v = noise - x on the line from x to noise, or of the noise at the scales of ddpm."""
  level = t[:, None, None, None]
  if kind == "flow":
    a, s, target = 1 - level, level, noise - x
  else:
    a, s = (np.asarray(v, np.float64) for v in made.process.scales(jnp.float32(level)))
    target, level = noise, level - 1e-3  # its timesteps 0 .. 999 are read at t = (k + 1) / 1000
  return ((said(role, a * x + s * noise, level) - target) ** 2).mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
def test_supervised(kind):
  made = policy(kind, "ode" if kind == "flow" else "ddim")
  batch = batch_of(made, x=WIN.astype(np.float32))
  t, noise = levels_and_noise(made, batch)
  assert value_of(sft.make(made), batch) == pytest.approx(error(kind, made, "policy", WIN, t, noise).mean(), rel=1e-4)


@pytest.mark.parametrize("kind,options", [
  ("ddpm", {"beta": 2000.0}), ("ddpm", {"beta": 5.0}), ("flow", {"beta": 100.0}), ("flow", {"beta": 3.0}),
  ("flow", {"beta": 3.0, "weighting": "time"}), ("flow", {"beta": 3.0, "gamma": 0.8, "chain": 6}),
  ("flow", {"beta": 3.0, "gamma": 0.5, "chain": 3, "weighting": "time"})])
def test_diffusion_dpo_and_flow_dpo(kind, options):
  """-log sigmoid(-beta / 2 [(e_w - e_w^ref) - (e_l - e_l^ref)]), times (1 - t)^2 or N p_k where asked for."""
  made = policy(kind, "ode" if kind == "flow" else "ddim")
  batch = batch_of(made, win=WIN.astype(np.float32), lose=LOSE.astype(np.float32))
  t, noise = levels_and_noise(made, batch)
  gain = lambda x: error(kind, made, "policy", x, t, noise) - error(kind, made, "base", x, t, noise)
  beta = options["beta"] * ((1 - t) ** 2 if options.get("weighting") == "time" else 1)
  if "gamma" in options:
    steps = options["chain"]
    powers = options["gamma"] ** np.arange(steps)
    beta = beta * (steps * powers / powers.sum())[np.minimum(np.floor((1 - t) * steps).astype(int), steps - 1)]
  want = np.log1p(np.exp(0.5 * beta * (gain(WIN) - gain(LOSE)))).mean()
  assert value_of(dpo.make(made, **options), batch) == pytest.approx(want, rel=2e-4)


# --- decisions -------------------------------------------------------------------------------------------------------

TIMES = np.linspace(1, 0, 5)


def moved(role, x, t, t_next):
  """Mean and std of Flow-SDE's step from t to t_next (2505.05470): sigma = eta sqrt(t / (1 - t)), at t = 1 with the
  next level in the denominator."""
  v, dt = said(role, x, t), t_next - t
  sigma = ETA * np.sqrt(t / (1 - (t_next if t == 1 else t)))
  mean = x * (1 + sigma ** 2 / (2 * t) * dt) + v * (1 + sigma ** 2 * (1 - t) / (2 * t)) * dt
  return mean, sigma * np.sqrt(-dt)


def log_density(x, mean, std):
  return (-(x - mean) ** 2 / (2 * std ** 2) - np.log(std) - 0.5 * np.log(2 * np.pi)).mean((1, 2, 3))


def stored():
  """Three decisions of four samples by role `old`, with all that a NumPy loss needs."""
  rng, x, rows = np.random.default_rng(8), None, []
  for t, t_next in zip(TIMES[:3], TIMES[1:4], strict=True):
    x = rng.normal(size=(B, *SHAPE)) if x is None else x
    mean, std = moved("old", x, t, t_next)
    nxt = mean + std * rng.normal(size=mean.shape)
    rows.append((x, nxt, mean, std, t, t_next))
    x = nxt
  return rows


def rollout(made, rows):
  pile = lambda values: jnp.asarray(np.stack(values, 1), jnp.float32)
  x, nxt, mean = (pile([row[i] for row in rows]) for i in range(3))
  std = pile([np.full(B, row[3]) for row in rows])
  times = pile([np.tile([row[4], row[5], ETA], (B, 1)) for row in rows])
  logs = pile([log_density(row[1], row[2], row[3]) for row in rows])
  cond = batch_of(made)["cond"]
  return Rollout(cond, x, nxt, times, logs, mean, std, jnp.ones((B, len(rows))), None, {})


ADVANTAGE = np.array([1.2, -0.7, 0.4, -2.0])


def ppo_clip(change, a, clip):
  rho = np.exp(change)
  return np.maximum(-a * rho, -a * np.clip(rho, 1 - clip, 1 + clip))


def changes(kind):
  """[3 B] log-ratios of the policy to `old`, from log-densities, or RatioNorm's mean of z times the shift."""
  out = []
  for x, nxt, mean, std, t, t_next in stored():
    now, _ = moved("policy", x, t, t_next)
    ratio = log_density(nxt, now, std) - log_density(nxt, mean, std)
    unbiased = (ratio + ((now - mean) ** 2).mean((1, 2, 3)) / (2 * std ** 2)) * std
    out.append(unbiased if kind == "norm" else ratio)
  return np.stack(out)


@pytest.mark.parametrize("kind", ["plain", "gaussian", "norm"])
@pytest.mark.parametrize("clip", [0.02, 10.0])
@pytest.mark.parametrize("reweight", [False, True])
def test_the_clipped_objective_with_and_without_ratio_norm(kind, clip, reweight):
  made = policy()
  method = grpo.make(made, judge(), group=GROUP, steps=4, ratio=kind, clip=clip, reweight=reweight)
  memory = {"rollout": rollout(made, stored()), "advantage": jnp.asarray(ADVANTAGE, jnp.float32)}
  found = value_of(method, {**batch_of(made), **method.draw(memory, 0, jax.random.key(0))})
  each = ppo_clip(changes(kind), ADVANTAGE, clip)
  want = (each / 0.25 if reweight else each).mean()
  assert found == pytest.approx(want, rel=2e-4, abs=1e-5)
  inside = np.abs(np.exp(changes(kind)) - 1) < clip
  assert inside.all() == (clip == 10.0)


@pytest.mark.parametrize("kl", grpo.KLS)
def test_penalties_towards_the_reference(kl):
  made, beta = policy(), 0.3
  method = grpo.make(made, judge(), group=GROUP, steps=4, clip=10.0, beta=beta, kl=kl)
  memory = {"rollout": rollout(made, stored()), "advantage": jnp.asarray(ADVANTAGE, jnp.float32)}
  found = value_of(method, {**batch_of(made), **method.draw(memory, 0, jax.random.key(0))})
  far = []
  for x, nxt, _, std, t, t_next in stored():
    now, other = moved("policy", x, t, t_next)[0], moved("base", x, t, t_next)[0]
    square = lambda a, b: ((a - b) ** 2).mean((1, 2, 3))
    d = log_density(nxt, other, std) - log_density(nxt, now, std)
    far.append({"mean": square(now, other), "v": square(said("policy", x, t), said("base", x, t)),
                "true": square(now, other) / (2 * std ** 2), "k3": np.exp(d) - d - 1,
                "code": square(now, other) / (2 * std ** 2) * (t - t_next)}[kl])
  want = ppo_clip(changes("plain"), ADVANTAGE, 10.0).mean() + beta * np.mean(far)
  assert found == pytest.approx(want, rel=5e-4, abs=1e-5)


def test_ppo_is_the_clipped_objective_and_the_error_of_values():
  made, clip, weight = policy(), 0.05, 0.7
  method = ppo.make(made, judge(), steps=4, clip=clip, value=weight)
  own = {**params(), "value": jax.tree.map(jnp.zeros_like, method.nets["value"](jax.random.key(0)))}  # V = 0
  target = np.linspace(-1, 1, 12).reshape(B, 3)
  a = np.linspace(2, -1, 12).reshape(B, 3)
  batch = {**batch_of(made), "rollout": rollout(made, stored()), "advantage": jnp.asarray(a, jnp.float32),
           "target": jnp.asarray(target, jnp.float32), "share": jnp.ones((B, 3))}
  found = float(method.loss(own, batch, jax.random.key(0))[0])
  want = ppo_clip(changes("plain"), a.T, clip).mean() + weight * (target ** 2).mean()
  assert found == pytest.approx(want, rel=2e-4)


# --- forward process -------------------------------------------------------------------------------------------------


def noised(made, batch, levels, steps, seed=5):
  """(x0, x_t, t) [B levels ...] as the code draws them."""
  keys = base.sample_keys(jax.random.key(seed), batch)
  t = np.asarray(nft.some_levels(TIMES[:-1] if steps == 4 else None, levels, fold(keys, 0)), np.float64)
  noise = np.stack([np.asarray(normal(fold(fold(keys, 1), i), SHAPE), np.float64) for i in range(levels)], 1)
  level, x0 = t[..., None, None, None], np.repeat(WIN[:, None], levels, 1)
  return x0, (1 - level) * x0 + level * noise, level, noise


@pytest.mark.parametrize("beta,kl", [(1.0, 0.0), (0.1, 0.0), (1.0, 0.5)])
def test_diffusion_nft(beta, kl):
  made, limit, scale, levels = policy("flow", "ode"), 1.5, 5.0, 3
  method = nft.make(made, judge(), group=GROUP, steps=4, levels=levels, beta=beta, kl=kl, limit=limit, scale=scale)
  a = np.clip(ADVANTAGE, -limit, limit)
  batch = batch_of(made, x0=WIN.astype(np.float32), advantage=a.astype(np.float32), weight=np.ones(B, np.float32))
  x0, xt, t, _ = noised(made, batch, levels, 4)
  v = {role: said(role, xt, t) for role in ROLES}
  clean = lambda v: xt - t * v
  part = lambda v: ((clean(v) - x0) ** 2).mean((2, 3, 4)) / np.abs(clean(v) - x0).mean((2, 3, 4))
  r = (0.5 + 0.5 * a / limit)[:, None]
  plus, minus = (1 - beta) * v["old"] + beta * v["policy"], (1 + beta) * v["old"] - beta * v["policy"]
  want = scale * ((r * part(plus) + (1 - r) * part(minus)) / beta).mean() + kl * ((v["policy"] - v["base"]) ** 2).mean()
  assert value_of(method, batch) == pytest.approx(want, rel=2e-4)


@pytest.mark.parametrize("clip", [0.05, 50.0])
def test_advantage_weighted_matching(clip):
  """The clipped objective of l = -mean_D |v - (noise - x0)|^2."""
  made, levels = policy("flow", "ode"), 3
  method = nft.make(made, judge(), group=GROUP, steps=4, levels=levels, objective="awm", clip=clip, kl=0.0)
  batch = batch_of(made, x0=WIN.astype(np.float32), advantage=ADVANTAGE.astype(np.float32),
                   weight=np.ones(B, np.float32))
  x0, xt, t, noise = noised(made, batch, levels, 4)
  log_prob = lambda role: -((said(role, xt, t) - (noise - x0)) ** 2).mean((2, 3, 4))
  want = ppo_clip(log_prob("policy") - log_prob("old"), ADVANTAGE[:, None], clip).mean()
  assert value_of(method, batch) == pytest.approx(want, rel=5e-4, abs=1e-5)
