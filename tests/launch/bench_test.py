"""The benchmark counts right, does the work that it says, and its peer computes the same numbers; nothing is timed."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from commands import command

from diffusion import kernels, process
from launch import bench, gpu, ours, peer, timing
from launch.work import GPU, MEDIUM, TINY, Work

SMALL = Work(width=16, depth=2, heads=2, tokens=5, context=12, pooled=8)
FLAT = TINY._replace(half=False)
# our loop over blocks takes the gradient of its input for all of them, the first of which nobody needs: one of six
DEEP = FLAT._replace(rank=2, depth=6)


@pytest.mark.parametrize("method, work", [
  ("rollout", SMALL), ("dpo", SMALL), ("grpo", SMALL), pytest.param("dpo", DEEP, marks=pytest.mark.slow),
  ("grpo", DEEP._replace(guidance=4.5, beta=0.04, piece=6)), ("grpo", DEEP._replace(trained=2))])
def test_both_sides_do_the_same_work(method, work):
  """Within 5 %: we also count the products of a patch embedding's gradient that torch leaves out."""
  np.testing.assert_allclose(peer.flops(method, work), ours.WORKS[method](work).flops, rtol=0.05)


def test_what_samples_next_is_what_was_trained():
  seen, work = [], FLAT._replace(rank=2)
  loss = lambda params, batch, key: (sum(jnp.square(a).sum() for a in jax.tree.leaves(params["policy"])), {})
  made = ours.updater(loss, ours.roles_of(work, ours.policy(work)), optax.sgd(0.1), 1)
  for _ in range(2):
    seen.append(jax.tree.map(np.asarray, made.policy()))
    made.step({}, jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 0.8 * a, rtol=1e-5), *seen)


def test_what_remat_does_again_is_not_counted():
  plain, again = (ours.dpo_update(SMALL._replace(remat=how)).flops for how in (False, True))
  assert plain == again


def test_the_largest_program_may_be_the_rollout():
  """Which attends in all samples at once, where updates come in pieces of one."""
  work = SMALL._replace(depth=1, steps=2, prompts=16, piece=1)
  scores = 16 * 4 * work.heads * (8 * 8 + work.tokens) ** 2 * 4
  assert ours.grpo_iteration(work).memory() > scores


def test_sizes_are_those_of_the_published_network():
  shapes = jax.eval_shape(ours.policy(MEDIUM).init, jax.random.key(0))["net"]
  assert sum(a.size for a in jax.tree.leaves(shapes)) == pytest.approx(2.24e9, rel=0.01)
  with torch.device("meta"):
    theirs = peer.model(MEDIUM, 0, False)
  assert sum(p.numel() for p in theirs.parameters()) == sum(a.size for a in jax.tree.leaves(shapes))


def test_adapters_are_on_the_same_layers():
  work = FLAT._replace(rank=2)
  mine = jax.eval_shape(ours.policy(work).init, jax.random.key(0))["lora"]
  theirs = sum(p.numel() for p in peer.model(work, 2, False).parameters() if p.requires_grad)
  assert theirs == sum(a.size for a in jax.tree.leaves(mine)) > 0


def test_without_adapters_the_peer_is_its_base():
  made = peer.Peer("eager", FLAT._replace(rank=2))
  x, t = made.noise(2), torch.rand(2)
  before = made.reference(made.predict, x, t)
  with torch.no_grad():
    for p in made.model.parameters():
      if p.requires_grad:
        p.add_(torch.randn_like(p))
    assert (made.predict(made.model, x, t) - before).abs().max() > 1e-4
  assert torch.equal(made.reference(made.predict, x, t), before)


@pytest.mark.parametrize("samples, each, piece, found", [(16, 2, 16, 2), (24, 18, 18, 24), (24, 2, 18, 3), (4, 1, 0, 1),
                                                         (4, 99, 8, 4)])
def test_pieces_divide_the_samples(samples, each, piece, found):
  assert ours.pieces(samples, each, piece) == found


def test_pieces_of_the_peer_are_every_sample_once():
  made = peer.Peer("eager", FLAT._replace(piece=18))
  assert [list(range(24))[part] for part in made.pieces(24, 2)] == [[*range(9)], [*range(9, 18)], [*range(18, 24)]]


def test_the_peers_step_is_flow_sde():
  side, (x, v) = peer.Peer("eager", SMALL), np.random.default_rng(0).normal(size=(2, 2, 3, 3, 1)).astype(np.float32)
  for t, t_next in ((1.0, 0.75), (0.5, 0.25), (0.25, 0.0)):
    mean, std, _ = kernels.flow_sde().step(process.flow(), x, v, jnp.float32(t), jnp.float32(t_next), 0.7, ())
    theirs, theirs_std = side.moved(torch.tensor(x), torch.tensor(v), t, t_next)
    np.testing.assert_allclose(theirs.numpy(), mean, atol=1e-5)
    assert theirs_std == pytest.approx(float(np.max(std)), abs=1e-6)
    if theirs_std:
      nxt = mean + 0.1
      found = kernels.gaussian(nxt, mean, jnp.full(2, theirs_std))
      np.testing.assert_allclose(side.log_prob(torch.tensor(np.asarray(nxt)), theirs, theirs_std), found, rtol=1e-4)


def test_the_ratio_is_of_medians_with_an_interval():
  found = timing.ratio([2.0, 2.2, 2.1, 9.0, 2.0], [1.0, 1.1, 1.0, 1.0, 5.0])
  assert found["ratio"] == pytest.approx(2.1) and found["interval"][0] <= 2.1 <= found["interval"][1]


@pytest.mark.parametrize("what", ["rollout", "dpo", "grpo"])
def test_a_run_prints_a_table_and_writes_json(what, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(bench, "SMALL", SMALL)
  monkeypatch.setattr(peer, "FORMS", ("eager",))
  assert bench.main([what, "--repeats=2", f"--json={tmp_path / 'b.json'}", "--anyway"]) == 0
  found = json.loads((tmp_path / "b.json").read_text())[what]
  assert found["ours"]["flops"] == pytest.approx(found["PyTorch eager"]["flops"], rel=0.05)
  assert "times ours" in capsys.readouterr().out and found["PyTorch eager"]["interval"][0] > 0


def test_memory_of_reward_gradients_is_flat(monkeypatch):
  monkeypatch.setattr(bench, "SMALL", SMALL)
  found = bench.refl_memory(1)
  for mode in ("refl", "draft"):
    assert found[f"{mode}, 40 steps"]["bytes"] < 1.05 * found[f"{mode}, 5 steps"]["bytes"]


@pytest.mark.slow  # four compiled gradients
def test_a_program_is_as_long_for_any_depth(monkeypatch, capsys):
  monkeypatch.setattr(bench, "SMALL", SMALL)
  found = bench.by_depth(1)
  short, long = (found[f"{depth} blocks"] for depth in (6, 24))
  assert long["characters"] < 1.2 * short["characters"] and min(short["seconds"], long["seconds"]) > 0
  bench.printed("depth", found)
  assert "characters" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_iteration():
  found = bench.compiles(1)
  assert found["4 iterations"]["programs"] <= found["1 iteration"]["programs"]


def test_a_loaded_machine_is_refused(monkeypatch, capsys):
  monkeypatch.setattr(bench.os, "getloadavg", lambda: (64.0, 0, 0))
  monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
  assert bench.main(["rollout"]) == 2 and "the load is 64.0 on 2 cores" in capsys.readouterr().err


# --- at the size of a GPU --------------------------------------------------------------------------------------------


@pytest.mark.slow  # a process a side
@pytest.mark.parametrize("name", GPU)
def test_the_works_of_a_gpu_run_small(name, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(gpu, "SIDES", ("ours", "eager"))
  monkeypatch.setattr(gpu, "BLOCKS", 1)
  file = tmp_path / "b.json"
  assert bench.main(["gpu", f"--only={name}", "--size=tiny", "--repeats=2", f"--json={file}", "--anyway"]) == 0
  found = json.loads(file.read_text())[name]
  assert set(found) == {"ours", "eager"} and "failed" not in json.dumps(found), found
  assert found["ours"]["flops"] == pytest.approx(found["eager"]["flops"], rel=0.15)  # two blocks, see DEEP
  assert found["ours"]["memory"] > 0 and f"% of {gpu.PEAK / 1e12:.0f} TFLOP/s" in capsys.readouterr().out


def test_a_side_that_fails_says_why(monkeypatch):
  monkeypatch.setattr(gpu, "SIDES", ("elsewhere",))
  *_, found = gpu.run("rollout", "tiny", 2, 100)
  assert "argument --side: invalid choice" in found["elsewhere"]["failed"]


def test_a_side_for_which_no_time_is_left_says_so():
  *_, found = gpu.run("grpo", "tiny", 2, 0.1)
  assert set(found) == set(gpu.SIDES) and "no time was left" in found["compiled"]["failed"]


def test_what_is_done_outlives_what_fails_later(monkeypatch):
  """A side that fails in its second block, and a kernel that ends its process."""
  calls = iter([([{"seconds": [2.0, 2.0], "flops": 790e12}], None), ([{"seconds": [3.0, 3.0], "flops": 790e12}], None),
                ([{"seconds": [2.0, 2.0], "flops": 790e12}], None), ([], "out of memory")])
  monkeypatch.setattr(gpu, "SIDES", ("ours", "eager"))
  monkeypatch.setattr(gpu, "child", lambda *_: next(calls))  # a process with a GPU
  first, *_, last = gpu.run("rollout", "tiny", 4, 100)
  assert set(first) == {"ours"} and first["ours"]["share"] == 0.5
  assert last["eager"]["ratio"] == 1.5 and last["eager"]["failed"] == "out of memory" and "failed" not in last["ours"]
  calls = iter([([{"shape": "1024 x 64", "seconds": [2.0], "flops": 1},
                  {"shape": "1024 x 64 grad", "failed": "memory"}], "Segmentation fault"), ([], None), ([], None)])
  *_, last = gpu.run("attention", "tiny", 4, 100)
  assert last["1024 x 64 cudnn"]["seconds"] == 2 and last["1024 x 64 grad cudnn"] == {"failed": "memory"}
  assert last["cudnn"] == {"failed": "Segmentation fault"}


def test_a_shape_that_fails_leaves_the_others(monkeypatch, capsys):
  monkeypatch.setattr(gpu, "ATTENTION", {"impossible": (8, 16, -1), "8 x 16": (8, 16, 2)})
  assert gpu.main(["--work", "attention", "--side", "xla", "--repeats", "1"]) == 0
  found = {row["shape"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
  assert list(found) == ["impossible", "impossible grad", "8 x 16", "8 x 16 grad"]
  assert "invalid tensor dimension" in found["impossible"]["failed"] and len(found["8 x 16 grad"]["seconds"]) == 1


def test_numbers_are_added_to_a_file_by_name(tmp_path, monkeypatch, capsys):
  file = tmp_path / "b.json"
  runs = {"depth": lambda repeats: {"a": {"programs": 1}}, "refl": lambda repeats: {"a": {"bytes": repeats}}}
  monkeypatch.setattr(bench, "RUNS", runs)
  for name in ("depth", "refl", "depth"):
    assert bench.main([name, f"--json={file}", "--anyway"]) == 0
  found = json.loads(file.read_text())
  assert found == {"machine": bench.machine(), "depth": {"a": {"programs": 1}}, "refl": {"a": {"bytes": 20}}}
  file.write_text(json.dumps({**found, "machine": {"cores": 1000}}))
  with pytest.raises(SystemExit):
    bench.main(["depth", f"--json={file}", "--anyway"])
  assert "holds numbers of another machine, {'cores': 1000}" in capsys.readouterr().err
  file.write_text("{")
  with pytest.raises(SystemExit):
    bench.main(["depth", f"--json={file}", "--anyway"])
  assert "is there but holds no numbers" in capsys.readouterr().err


@pytest.mark.slow  # three processes
def test_attention_is_measured_by_every_kernel():
  *_, found = gpu.run("attention", "tiny", 1, 300)
  assert {name.split()[-1] for name in found} == set(gpu.KERNELS) | {"torch"}
  assert len(found) == 6 and found["1024 x 64 torch"]["flops"] == 4 * 1024 ** 2 * 1536


def test_an_unknown_work_is_refused(capsys):
  with pytest.raises(SystemExit):
    bench.main(["gpu", "--only=dpo"])
  assert "--only = 'dpo': dpo is not one of dpo_full," in capsys.readouterr().err


@pytest.mark.slow
def test_our_side_needs_no_other_package(tmp_path):
  """Where nothing but jax, flax, optax, numpy and what these need is installed, in each process."""
  for name in ("ml_collections", "clu", "grain", "tensorflow_datasets", "transformers", "tokenizers", "safetensors",
               "PIL", "orbax", "tensorstore", "scipy", "sklearn", "tqdm", "pyarrow", "torch", "diffusers"):
    # of the folder that the command runs in, and so before the installed one
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is absent')")
  file = tmp_path / "b.json"
  code, said = command("launch.bench", "gpu", "--only=dpo_lora", "--size=tiny", "--repeats=1", "--anyway",
                       f"--json={file}", where=tmp_path)
  assert code == 0, said
  found = json.loads(file.read_text())["dpo_lora"]
  assert found["ours"]["flops"] > 0 and "failed" not in found["ours"], found
  assert all("torch is absent" in found[side]["failed"] for side in ("eager", "compiled"))
