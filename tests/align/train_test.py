"""The update of a run: pieces of a minibatch add up, and what is exported is whole."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STEPS, G, batch_of, params_of, policy, reward, scores_of

from align import optim, train, tree
from align.algorithms import base, dense, dpo, grpo, nft, ppo, rwr
from align.core import Rollout, State
from align.update import cut, divides, make_train_step, worst_of
from diffusion import folder

CLASSIFIER = {"name": "classifier", "classes": 8, "size": 4, "channels": 1}
METHODS = {
  "dpo": ("flow_sde", lambda made: dpo.make(made, reward(), online=True, group=G, steps=STEPS)),
  "dense": ("ddim", lambda made: dense.make(made, reward(), group=G, steps=STEPS, stored=G, tuples=6, tuple_size=2,
                                          clip=10.0)),
  "grpo": ("flow_sde", lambda made: grpo.make(made, reward(), group=G, steps=STEPS)),
  "nft": ("ode", lambda made: nft.make(made, reward(), group=G, steps=STEPS, levels=2)),
  "ppo": ("flow_sde", lambda made: ppo.make(made, reward(), group=G, steps=STEPS)),
  "rwr": ("ode", lambda made: rwr.make(made, reward(), group=G, steps=STEPS)),
}


@pytest.mark.parametrize("name", METHODS)
def test_pieces_of_a_minibatch_add_up_whatever_failed_in_them(name):
  """Scores that failed and groups that tie lie in one piece and not in another."""
  kernel, make = METHODS[name]
  made = policy(kernel)
  method, batch, key = make(made), batch_of(made), jax.random.key(1)
  params = params_of(made, 0.1)
  params |= {role: init(jax.random.key(4)) for role, init in method.nets.items()}
  rollout = jax.jit(method.rollout)(params, batch, base.sample_keys(key, batch))
  scores = scores_of(made, params, rollout)
  scores = scores._replace(valid=scores.valid.at[:2].set(False), total=scores.total.at[4:8].set(1.0))
  memory = method.draw(method.select(params, (), rollout, scores, batch, key)[0], 0, key)
  trained = "^(policy|value)/"
  chosen, frozen = tree.partition(params, trained)
  tx = optim.sgd(lr=1.0).tx
  moved = []
  for micro in (1, 3):
    step = make_train_step(method.loss, tx, micro, trained)
    state, out = jax.jit(step)(State(jnp.int32(0), chosen, tx.init(chosen), ()), frozen, memory, key)
    assert not out["skipped"]
    moved.append(({k: np.asarray(v) for k, v in tree.flatten(state.params).items()}, out))
  (whole, one), (pieces, three) = moved
  assert float(one["grad_norm"]) > 1e-6
  np.testing.assert_allclose(three["loss"], one["loss"], rtol=1e-4, atol=1e-6)
  for leaf in whole:
    np.testing.assert_allclose(pieces[leaf], whole[leaf], atol=1e-5 + 1e-4 * float(one["grad_norm"]), err_msg=leaf)


DECISIONS = {
  "grpo": lambda made: grpo.make(made, reward(), group=G, steps=STEPS, clip=0.5, beta=0.5, kl="true"),
  "a mean over samples": lambda made: grpo.make(made, reward(), group=G, steps=STEPS, clip=0.5, per="sample", beta=0.5,
                                                kl="v", ratio="gaussian", reweight=True),
  "ppo": lambda made: ppo.make(made, reward(), group=G, steps=STEPS, clip=0.5, beta=0.5),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_pieces_of_decisions_add_up(name):
  """Off policy, with a decision that no sample may learn from and some that single ones may not."""
  made = policy()
  method, params, batch, key = DECISIONS[name](made), params_of(made, 0.1), batch_of(made), jax.random.key(1)
  params |= {role: init(jax.random.key(4)) for role, init in method.nets.items()}
  rollout = jax.jit(method.rollout)({**params, "policy": params["base"]}, batch, base.sample_keys(key, batch))
  mask = rollout.mask.at[:, 2].set(0).at[1, 0].set(0).at[7, 1:].set(0)
  scores = scores_of(made, params, rollout)
  memory = method.select(params, (), rollout._replace(mask=mask), scores, batch, key)[0]
  drawn = method.draw(memory, 0, key)
  trained, tx = "^(policy|value)/", optim.sgd(lr=1.0).tx
  chosen, frozen = tree.partition(params, trained)
  found = {}
  for micro in (1, 2, 12, 48):  # 12 samples with four decisions each
    step = jax.jit(make_train_step(method.loss, tx, micro, trained, decisions=method.decisions))
    state, out = step(State(jnp.int32(0), chosen, tx.init(chosen), ()), frozen, drawn, key)
    assert not out["skipped"]  # and no sample may learn from the middle third
    assert np.isfinite([float(v) for k, v in out.items() if not k.endswith("_middle")]).all()
    found[micro] = {k: np.asarray(v) for k, v in tree.flatten(state.params).items()}, out
  whole, one = found.pop(1)
  assert float(one["grad_norm"]) > 1e-3 and one["on_policy_gap"] > 1e-4
  for moved, out in found.values():
    for metric in ("loss", "grad_norm", "on_policy_gap", "trained_steps"):
      np.testing.assert_allclose(out[metric], one[metric], rtol=2e-5, atol=1e-6, err_msg=metric)
    for leaf in whole:
      np.testing.assert_allclose(moved[leaf], whole[leaf], atol=2e-6 * (1 + float(one["grad_norm"])), err_msg=leaf)


def drawn(samples, each):
  numbers = jnp.arange(samples * each).reshape(samples, each)
  rollout = Rollout(*[numbers] * 8, None, {"of": jnp.arange(samples)})
  return {"rollout": rollout._replace(cond=jnp.arange(samples)[:, None]), "advantage": jnp.arange(samples),
          "share": numbers}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12, 24, 48])
def test_every_decision_is_in_one_piece_with_what_belongs_to_it(count):
  batch, seen = drawn(12, 4), []
  for i in range(count):
    one = cut(batch, count, i, True)
    assert one["rollout"].x.size == 48 // count and (one["share"] == one["rollout"].x).all()
    for of in (one["advantage"], one["rollout"].cond[:, 0], one["rollout"].aux["of"]):
      np.testing.assert_array_equal(of, one["rollout"].x[:, 0] // 4)
    seen += one["rollout"].x.reshape(-1).tolist()
  assert sorted(seen) == list(range(48))


def test_tokens_stay_together():
  batch = drawn(12, 4)
  assert cut(batch, 4, 1, False)["share"].shape == (3, 4)
  assert [n for n in range(1, 49) if divides(n, 12, 4)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
  assert [n for n in range(1, 49) if divides(n, 12, 1)] == [1, 2, 3, 4, 6, 12]


def test_pieces_of_decisions_move_between_no_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), drawn(32, 4))
  compiled = jax.jit(lambda batch, i: cut(batch, 16, i, True)).lower(shapes, 0).compile()
  assert compiled.output_shardings["share"].shard_shape((8, 1)) == (1, 1)
  assert not any(f"{kind}(" in compiled.as_text() for kind in ("all-gather", "all-reduce", "all-to-all", "permute"))


def test_the_gap_of_a_minibatch_is_that_of_its_worst_piece():
  def loss(params, batch, key):
    level = jnp.where(batch["x"].max() > 1, jnp.nan, batch["x"].mean())
    return (params["policy"]["w"] * batch["x"]).mean(), {"on_policy_gap": batch["x"].max(), "error_low": level}
  tx = optim.sgd(lr=1.0).tx
  params = {"policy": {"w": jnp.ones(())}}
  step = make_train_step(loss, tx, 2)
  _, out = step(State(jnp.int32(0), params, tx.init(params), ()), {}, {"x": jnp.array([0.0, 2, 1, 5])}, None)
  # the pieces are 0, 1 and 2, 5: every second sample
  assert out["on_policy_gap"] == 5 and out["error_low"] == 0.5 and out["loss"] == 2


def test_pieces_without_a_gap_count_where_all_are():
  assert worst_of(jnp.array([1.0, jnp.inf, 3])) == 3 and worst_of(jnp.full(2, jnp.inf)) == jnp.inf
  assert jnp.isnan(worst_of(jnp.array([1.0, jnp.nan])))


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_partly_trained_reward_is_exported_whole(tmp_path, ema):
  trained = "^reward/.*Dense"
  train.train(str(tmp_path), steps=2, batch=8, data={"name": "toy:data"}, reward=CLASSIFIER, trained=trained,
              algorithm={"name": "fit", "ema": ema}, optim={"name": "sgd", "lr": 0.1})
  first = tmp_path / "untrained"
  train.train(str(first), steps=1, batch=8, data={"name": "toy:data"}, reward=CLASSIFIER, trained=trained,
              algorithm={"name": "fit"}, optim={"name": "sgd", "lr": 1e-30})
  found, start = (tree.flatten(folder.load(str(p), "reward")) for p in (tmp_path, first))
  assert set(found) == set(start) and any("Conv" in name for name in found)
  for name in found:
    assert np.array_equal(found[name], start[name]) == ("Dense" not in name), name


def compiled(micro, rows=512, width=256):
  """The update of a linear map on a batch that is spread over all devices."""
  mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  at = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  loss = lambda params, batch, key: (((batch["x"] @ params["policy"]["w"]) ** 2).mean(), {})
  tx = optim.sgd(lr=1.0).tx
  params = {"policy": {"w": jax.ShapeDtypeStruct((width, width), jnp.float32, sharding=at())}}
  state = State(jax.ShapeDtypeStruct((), jnp.int32, sharding=at()), params, jax.eval_shape(tx.init, params), ())
  batch = {"x": jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=at("data"))}
  return jax.jit(make_train_step(loss, tx, micro)).lower(state, {}, batch, None).compile()


def test_memory_does_not_grow_with_the_number_of_pieces():
  few, many = (compiled(micro).memory_analysis().temp_size_in_bytes for micro in (2, 16))
  assert many < few + 256 * 256 * 4  # less than one gradient more


def test_each_device_keeps_its_share_of_every_piece():
  """Pieces that lie on one device alone would be gathered, and computed by all."""
  text = compiled(8).as_text()
  assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
