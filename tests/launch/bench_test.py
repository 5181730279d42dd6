"""The benchmark counts right, does the work that it says, and its peer computes the same numbers; nothing is timed."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from align.algorithms import base
from diffusion import kernels, process
from launch import bench


@pytest.fixture(autouse=True)
def small(monkeypatch):
  for name, value in {"WIDTH": 16, "DEPTH": 2, "HEADS": 2, "TOKENS": 5, "CONTEXT": 12, "POOLED": 8}.items():
    monkeypatch.setattr(bench, name, value)


def test_flops_of_loops_and_products():
  w = jnp.ones((8, 16))
  one = lambda x: jnp.tanh(x @ w) @ w.T
  assert bench.flops(one, jnp.ones((4, 8))) == 2 * 2 * 4 * 8 * 16
  many = lambda x: jax.lax.scan(lambda x, _: (one(x), None), x, None, length=7)[0]
  assert bench.flops(jax.jit(many), jnp.ones((4, 8))) == 7 * bench.flops(one, jnp.ones((4, 8)))
  conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  assert bench.flops(conv, jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 5))) == 2 * (2 * 6 * 6 * 5) * 3 * 3 * 3


def test_both_sides_do_the_same_work():
  """Within 5 %: we also count the products of a patch embedding's gradient that torch leaves out."""
  count = bench.GROUP * bench.PROMPTS
  policy = bench.our_policy()
  params, batch = bench.shaken(policy), bench.our_batch(policy, count, bench.GROUP)
  keys = base.sample_keys(jax.random.key(0), batch)
  ours = bench.flops(lambda p: policy.sample(p, batch["cond"], keys, steps=bench.STEPS), params)
  np.testing.assert_allclose(bench.peer_flops("rollout", count), ours, rtol=0.05)


def test_the_peers_step_is_flow_sde():
  peer, (x, v) = bench.Peer("eager", 2), np.random.default_rng(0).normal(size=(2, 2, 3, 3, 1)).astype(np.float32)
  for t, t_next in ((1.0, 0.75), (0.5, 0.25), (0.25, 0.0)):
    mean, std, _ = kernels.flow_sde().step(process.flow(), x, v, jnp.float32(t), jnp.float32(t_next), 0.7, ())
    theirs, theirs_std = peer.moved(torch.tensor(x), torch.tensor(v), t, t_next)
    np.testing.assert_allclose(theirs.numpy(), mean, atol=1e-5)
    assert theirs_std == pytest.approx(float(np.max(std)), abs=1e-6)
    if theirs_std:
      nxt = mean + 0.1
      ours = kernels.gaussian(nxt, mean, jnp.full(2, theirs_std))
      np.testing.assert_allclose(peer.log_prob(torch.tensor(np.asarray(nxt)), theirs, theirs_std), ours, rtol=1e-4)


def test_the_ratio_is_of_medians_with_an_interval():
  found = bench.ratio([2.0, 2.2, 2.1, 9.0, 2.0], [1.0, 1.1, 1.0, 1.0, 5.0])
  assert found["ratio"] == pytest.approx(2.1) and found["interval"][0] <= 2.1 <= found["interval"][1]


@pytest.mark.parametrize("what", ["rollout", "dpo", "grpo"])
def test_a_run_prints_a_table_and_writes_json(what, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(bench, "FORMS", ("eager",))
  assert bench.main([what, "--repeats=2", f"--json={tmp_path / 'b.json'}", "--anyway"]) == 0
  found = json.loads((tmp_path / "b.json").read_text())[what]
  assert found["ours"]["flops"] == pytest.approx(found["PyTorch eager"]["flops"], rel=0.05)
  assert "times ours" in capsys.readouterr().out and found["PyTorch eager"]["interval"][0] > 0


def test_memory_of_reward_gradients_is_flat():
  found = bench.refl_memory(1)
  for mode in ("refl", "draft"):
    assert found[f"{mode}, 40 steps"]["bytes"] < 1.05 * found[f"{mode}, 5 steps"]["bytes"]


def test_nothing_is_compiled_after_the_first_iteration():
  found = bench.compiles(1)
  assert found["4 iterations"]["programs"] <= found["1 iteration"]["programs"]


def test_a_loaded_machine_is_refused(monkeypatch, capsys):
  monkeypatch.setattr(bench.os, "getloadavg", lambda: (64.0, 0, 0))
  monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
  assert bench.main(["rollout"]) == 2 and "the load is 64.0 on 2 cores" in capsys.readouterr().err
