"""A refiner as a policy: what it enlarges comes from the data, in training, evaluation and at the start of a run."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align import assemble, build, collect, data, evaluate, shard, standin, tree
from align.algorithms import base, grpo, ppo, sft
from align.datasets import pairs
from align.policies import diffusion
from diffusion import folder, process, refiner
from tests.support import small

WORDS = ["one", "two", "three"]


class Net(nn.Module):
  """Sees x, the low resolution beside it, the time and the text, pixel by pixel."""
  @nn.compact
  def __call__(self, x, t, context, mask, pooled):
    said = nn.Dense(8)(jnp.concatenate([pooled, t[:, None] / 1000], -1))[:, None, None]
    return nn.Dense(1)(jnp.tanh(nn.Dense(8, name="in")(x) + said))


def policy(**options):
  return diffusion.make(Net(), small.Text(), process.flow(), "flow_sde", length=6, channels=1, law="uniform",
                        **{"size": 8, "steps": 3, "refines": 2, **options})


def records(*names, side=4):
  """Prompts with pictures of the entries `names`: low [4 4 1], media [8 8 1]."""
  sides = {"low": side, "media": 2 * side}
  made = lambda i, name: np.random.default_rng(i).integers(0, 256, (sides[name], sides[name], 1)).astype(np.uint8)
  return data.Source(3, lambda i: {"prompt": WORDS[i], **{name: made(i, name) for name in names}}, "toy")


def batch(*names, count=3, **more):
  rows = [records(*names, **more).record(i % 3) for i in range(count)]
  return {"prompt": [r["prompt"] for r in rows], **{name: np.stack([r[name] for r in rows]) for name in names},
          "prompt_id": np.arange(count, dtype=np.int32), "sample_id": np.zeros(count, np.int32)}


def embedded(made, given, seed=0):
  """The batch as algorithms get it."""
  whole = made.prepare(given)
  arrays = jax.tree.map(jnp.asarray, {k: v for k, v in whole.items() if k != "prompt"})
  return made.embed({}, arrays, base.sample_keys(jax.random.key(seed), arrays))


def test_what_is_enlarged_is_the_data_s_or_the_means_of_their_media():
  made, given = policy(law_low=0.0), batch("low", "media")
  assert made.low == (4, 4, 1)
  np.testing.assert_allclose(made.prepare(batch("low"))["cond"]["low"], given["low"] / 127.5 - 1, atol=1e-6)
  assert "low" not in made.prepare(batch("low"))
  means = refiner.reduced(given["media"], 2) / 127.5 - 1
  np.testing.assert_allclose(embedded(made, batch("media"))["cond"]["low"], means, atol=1e-5)
  np.testing.assert_allclose(embedded(made, given)["cond"]["low"], given["low"] / 127.5 - 1, atol=1e-5)


def test_noise_is_added_to_it_where_media_are_learned_from_and_only_there():
  made, count = policy(law_low=0.2), 300
  without = policy(law_low=0.0)
  shaken = lambda *names, seed=0: np.asarray(embedded(made, batch(*names, count=count), seed)["cond"]["low"] -
                                             embedded(without, batch(*names, count=count))["cond"]["low"])
  assert not shaken("low").any()
  noise = shaken("low", "media")
  levels = noise.reshape(count, -1).std(-1)
  assert levels.min() < 0.03 and 0.17 < levels.max() < 0.35 and abs(levels.mean() - 0.1) < 0.02
  assert np.abs(noise - shaken("low", "media", seed=1)).max() > 0.1 and abs(noise.mean()) < 0.01


def test_supervised_training_looks_at_it():
  made = policy()
  params = {"base": made.init(jax.random.key(0))}
  given = embedded(made, batch("media"))
  learned = sft.make(made)
  slope = jax.grad(lambda tree: learned.loss({**params, "policy": tree}, given, jax.random.key(1))[0])(params["base"])
  assert np.abs(slope["net"]["in"]["kernel"][1]).max() > 1e-4  # the row of the low resolution


@pytest.mark.parametrize("names", [("low",), ("media",)])
def test_evaluation_samples_from_what_the_records_have(names):
  made = policy()
  view, mesh = made.init(jax.random.key(0)), shard.mesh()
  run = lambda source: evaluate.sample_all(made, view, source, samples=2, batch=4, seed=0, mesh=mesh)[0]
  images = run(records(*names))
  assert images.shape == (3, 2, 8, 8, 1)
  source = records(*names)
  flat = lambda i: {**source.record(i), names[0]: 0 * source.record(i)[names[0]]}
  assert (run(source._replace(record=flat)) != images).any()


def test_a_batch_without_it_and_one_of_another_size_are_refused():
  made = policy()
  with pytest.raises(build.UserError, match=r"data entry 'low' is missing, there is cond, prompt.* enlarges 4 x 4 x 1 "
                     r"\(config.policy.refines\).* the task 'sample' writes them"):
    made.prepare({"prompt": WORDS})
  with pytest.raises(build.UserError, match="data entry 'low' is 5 x 5 x 1, but the policy .*4 x 4 x 1"):
    made.prepare(batch("low", side=5))
  with pytest.raises(build.UserError, match="data entry 'low' is missing"):
    evaluate.sample_all(made, {}, records(), samples=1, batch=4, seed=0, mesh=shard.mesh())
  with pytest.raises(ValueError, match="law_low = -0.1 must be at least 0"):
    policy(law_low=-0.1)


@pytest.mark.parametrize("clip", [(), (3,)])
def test_pairs_keep_what_was_enlarged(clip, tmp_path):
  made = lambda i, side: np.random.default_rng(i).integers(0, 256, (*clip, side, side, 1)).astype(np.uint8)
  options = {"score": "r/total", "rank": None, "seed": 0, "model": "m", "data": {}, "rewards": {}}
  row = collect.record([[made(1, 8), made(2, 8)]], {"r/total": np.array([[1.0, 0.0]])},
                       [{"prompt": "one", "low": made(0, 4)}], (0, 0, 1), "point", options)
  pairs.write(tmp_path, [row])
  found = pairs.make(str(tmp_path)).record(0)
  for name, want in {"low": made(0, 4), "win": made(1, 8), "lose": made(2, 8)}.items():
    np.testing.assert_array_equal(found[name], want)
  if not clip:
    cond = policy().prepare({"prompt": ["one"], **{name: found[name][None] for name in ("low", "win", "lose")}})["cond"]
    np.testing.assert_allclose(cond["low"], made(0, 4)[None] / 127.5 - 1, atol=1e-6)


def test_a_value_network_knows_its_shape():
  x, cond = ppo.example(policy())
  assert x.shape == (1, 8, 8, 1) and cond["low"].shape == (1, 4, 4, 1)


def test_a_plan_without_data_has_it():
  parts = assemble.Parts(policy(), None, grpo.make(policy(), small.reward(), group=2), None, None, None, None)
  config = {"data": {"name": "prompts", "path": "nowhere.txt"}, "algorithm": {"name": "grpo"}}
  assert standin.record(parts, config)["low"].shape == (4, 4, 1)


def test_a_run_starts_from_a_generator_without_it(tmp_path):
  plain, wide = policy(size=4, refines=0), policy()
  saved = folder.save(tmp_path, "policy", {"name": "diffusion"}, plain.init(jax.random.key(0)))
  shapes = {"base": jax.eval_shape(wide.init, jax.random.key(0)), "reward": {"net": np.zeros(1)}}
  found = assemble.load_start(shapes, {"policy": str(saved)}, shapes, wide.low[-1])
  kernel, own = found["base/net/in/kernel"], folder.load(str(saved))["net"]["in"]["kernel"]
  assert sorted(found) == sorted("base/" + name for name in tree.flatten(shapes["base"]))
  np.testing.assert_array_equal(kernel, np.concatenate([own, 0 * own]))
  assert own.shape == (1, 8) and np.abs(own).min() > 0
