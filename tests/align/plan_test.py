"""Plans: what they count, against closed forms and published figures; what they say; what they refuse."""
import importlib.util
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, command

from align import assemble, build, config, costs, main, plan, plan_text, shard, standin, topology
from diffusion import hub, public
from diffusion.mesh import within
from diffusion.nets import attention, mmdit

S, F32 = jax.ShapeDtypeStruct, jnp.float32
TOY = {"task": "train", "steps": 4, "batch": 16, "policy": "toy:policy", "data": {"name": "toy:data", "pairs": True},
       "algorithm": {"name": "dpo", "ema": 0.9}}
GRPO = {"task": "train", "steps": 4, "batch": 4, "group": 4, "policy": "toy:policy", "reward": "toy:reward",
        "data": {"name": "toy:data", "media": False}, "algorithm": {"name": "grpo", "steps": 5}}
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                  reason="libtpu comes as wheels for Linux on x86 alone")


@pytest.fixture(autouse=True)
def eight(monkeypatch):
  """The backend is there, and what a plan changes in the environment is changed back."""
  assert len(jax.devices()) == 8
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])


def resolved(spec, *overrides):
  return config.override(build.resolve(spec), overrides)


def counted(function, *shapes):
  return costs.flops(jax.make_jaxpr(function)(*shapes))


# --- costs -----------------------------------------------------------------------------------------------------------


def test_products_and_convolutions_count_two_a_multiply_add():
  assert counted(lambda a, b: a @ b, S((3, 5), F32), S((5, 7), F32)) == 2 * 3 * 5 * 7
  batched = counted(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), S((2, 3, 5), F32), S((2, 5, 7), F32))
  assert batched == 2 * 2 * 3 * 5 * 7
  conv = lambda x, k, stride, groups: jax.lax.conv_general_dilated(
    x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
  assert counted(lambda x, k: conv(x, k, 1, 1), S((2, 8, 8, 4), F32), S((3, 3, 4, 6), F32)) == 2 * 2 * 64 * 6 * 9 * 4
  assert counted(lambda x, k: conv(x, k, 2, 2), S((2, 8, 8, 4), F32), S((3, 3, 2, 6), F32)) == 2 * 2 * 16 * 6 * 9 * 2
  # both gradients of a strided convolution cost what it costs
  whole = jax.grad(lambda x, k: (conv(x, k, 2, 1) ** 2).sum(), (0, 1))
  assert counted(whole, S((2, 8, 8, 4), F32), S((3, 3, 4, 6), F32)) == 3 * 2 * 2 * 16 * 6 * 9 * 4


def test_loops_count_as_often_as_they_turn_and_remat_counts_again():
  def layers(x, ws, wrap):
    return (jax.lax.scan(lambda h, w: (wrap(lambda h, w: jnp.tanh(h @ w))(h, w), None), x, ws)[0] ** 2).sum()
  shapes, one = (S((3, 5), F32), S((4, 5, 5), F32)), 4 * 2 * 3 * 5 * 5
  assert counted(lambda x, ws: layers(x, ws, lambda f: f), *shapes) == one
  assert counted(jax.grad(lambda x, ws: layers(x, ws, lambda f: f), (0, 1)), *shapes) == 3 * one
  # what is computed again is the product itself, since tanh's gradient needs its value
  assert counted(jax.grad(lambda x, ws: layers(x, ws, jax.checkpoint), (0, 1)), *shapes) == 4 * one
  dear = lambda p, a: jax.lax.cond(p, lambda a: a @ a @ a, lambda a: a @ a, a)
  assert counted(dear, S((), bool), S((5, 5), F32)) == 2 * 2 * 5 ** 3


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_attention_counts_whichever_kernel_computes_it(kernel):
  q = S((16, 1024, 2, 64), F32)
  mesh = shard.mesh(data=2, fsdp=4)
  with attention.using(kernel):
    counts = counted(within(mesh, lambda q: attention.attend(q, q, q)), q)
  assert counts == 2 * 2 * 16 * 2 * 1024 * 1024 * 64


def gradient_of_blocks(remat, kernel: str = "xla", depth: int = 6):
  """(function of the parameters, their shapes): a loss's gradient in an MMDiT."""
  net = mmdit.make("tiny", depth=depth, remat=remat)
  given = jnp.ones((2, 16, 16, 3)), jnp.full(2, 0.5), jnp.ones((2, 5, 24)), None, jnp.ones((2, 8))
  apply = lambda params: (net.apply(params, *given) ** 2).mean()

  def gradient(params):
    with attention.using(kernel):
      return jax.grad(apply)(params)
  return gradient, jax.eval_shape(net.init, jax.random.key(0), *given)


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_remat_that_keeps_attention_does_it_once(kernel):
  plain, kept, again = (counted(*gradient_of_blocks(how, kernel)) for how in (False, "attention", True))
  attended = 6 * 2 * 2 * 69 * 69 * 16
  if kernel == "splash":  # which has a rule of its own for gradients, tested in attention_test.py; tiles are padded
    assert plain < kept < again - 2 * attended
    return
  assert plain < kept and again - kept == attended  # scores are needed for the gradient, their product is not
  found = [jax.jit(gradient)(jax.tree.map(lambda a: jnp.full(a.shape, 0.1, a.dtype), shapes)) for gradient, shapes in (
    gradient_of_blocks(how) for how in (False, "attention"))]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_a_program_does_not_grow_with_depth():
  short, long = (len(jax.jit(gradient).lower(shapes).as_text()) for gradient, shapes in (
    gradient_of_blocks(True, depth=depth) for depth in (6, 24)))
  assert long < 1.2 * short


def test_networks_cost_what_is_published():
  """TFLOP of a forward pass, as PyTorch counts them on diffusers' modules of the same sizes."""
  model = hub.open_("sd35_medium")
  count = lambda part, *given, **more: counted(
    lambda p, *a: part.layout.net.apply({"params": p}, *a, **more),
    jax.eval_shape(lambda key: public.fresh(part.layout, key), jax.random.key(0)), *given) / 1e12
  net = count(model.parts["net"], S((1, 64, 64, 16), F32), S((1,), F32), S((1, 205, 4096), F32), None,
              S((1, 2048), F32))
  assert net == pytest.approx(2.22, abs=0.005)
  assert count(model.parts["vae"], S((1, 64, 64, 16), F32), method="decode") == pytest.approx(2.5, abs=0.05)


HLO = """HloModule jit_f
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = f32[8,4]{1,0:T(8,128)} all-gather(%x), channel_id=1, dimensions={0}, metadata={op_name="jit(f)/layer" id=1}
  %beside = bf16[16]{0} fusion(%a), kind=kCustom, calls=%middle
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}
%middle (p: f32[4]) -> f32[16] {
  ROOT %m = bf16[16]{0} all-gather(%p), channel_id=2
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
%start (p: f32[4]) -> f32[16] {
  ROOT %s = bf16[16]{0} all-gather(%p), channel_id=2
}
%done (p: f32[4]) -> f32[16] {
  ROOT %d = bf16[16]{0} all-gather(%p), channel_id=2
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t0), condition=%condition, body=%body
  %u = (s32[], f32[8]) while(%t0), condition=%c, body=%d, backend_config={"known_trip_count":{"n":"3"}}
  %f = bf16[16]{0} fusion(%a), kind=kCustom, calls=%start
  %g = bf16[16]{0} fusion(%a), kind=kCustom, calls=%done
  %r = (f32[2]{0}, f32[3]{0}) reduce-scatter(%a, %b), channel_id=3, replica_groups=[2,3]<=[6], to_apply=%add
  %p = (bf16[1,96]{1,0:T(8)S(1)}, bf16[1,96]{1,0}, u32[]{:S(2)}) collective-permute-start(%q), channel_id=4
  %v = (f32[2]{0}, /*index=1*/f32[5]{0}) all-reduce(%q), channel_id=5, replica_groups={{0,1,2}}, to_apply=%add
  ROOT %o = f32[8] add(%r, %g)
}
"""


def test_collectives_count_once_and_as_often_as_their_loop_turns():
  every = costs.collectives(HLO)
  found = {c.kind + str(c.times): c for c in every}
  assert found["all-gather8"] == costs.Collective("all-gather", 8 * 4 * 4, 8, "jit(f)/layer")
  assert found["all-gather1"].bytes == 16 * 2 and found["reduce-scatter1"].bytes == 3 * (2 + 3) * 4
  assert found["collective-permute1"].bytes == 96 * 2 and found["all-reduce1"].bytes == 7 * 4 and len(every) == 5


@pytest.mark.parametrize("written", ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}"])
def test_groups_are_read_in_every_form(written):
  assert costs.group(f"replica_groups={written}, x={{}}") == 4


@pytest.mark.parametrize("said,needs", [
  ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.17T) exceeds "
   "available HBM (15.75G).", 1.17 * 2 ** 40),
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.55G of 15.75G hbm. Exceeded hbm capacity by "
   "6.80G.", 22.55 * 2 ** 30),
  ("RESOURCE_EXHAUSTED: otherwise", 0), ("INTERNAL: Used 22.55G of 15.75G hbm", None)])
def test_what_the_compiler_lacks_is_read(said, needs):
  assert costs.wanted(said) == (needs and round(needs))


def test_what_the_partitioner_says_is_heard(capfd):
  with costs.overheard() as found:
    os.write(2, b"other\nW1 x.cc:656] [SPMD] Involuntary full rematerialization. The compiler cannot go from sharding "
                b"{devices=[1,64]<=[64]} to {} efficiently for HLO operation %d = bf16[32,4]{1,0} dynamic-slice(%s), "
                b"metadata={op_name=\"jit(update)/split\" stack_frame_id=1}. As the last resort\n")
  assert found == [costs.Collective("copy", 32 * 4 * 2, 1, "jit(update)/split")]
  assert capfd.readouterr().err == "other\n"


# --- topologies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,message", [
  ("v5e:3x3", "v5e comes as 1x1, 2x2, 2x4, .*16x16, and .*; choose one of them .nearest: 'v5e:2x4'"),
  ("v5p:4x4", "v5p comes as 2x2x1, .*nearest: 'v5p:2x2x4'"), ("v5e:12", "nearest: 'v5e:4x4'"),
  ("v7:2x2", "must be cpu:1 to cpu:1024, or a slice of v5e, v5p, v6e such as v5e:4x4"),
  ("cpu:0", "must be cpu:1 to cpu:1024"), ("cpu:1025", "must be cpu:1 to cpu:1024"),
  ("v5e:", "v5e comes as 1x1, .*'v5e' alone is the smallest that is enough; choose one of them$")])
def test_impossible_topologies_are_refused(name, message, capsys):
  assert main.main(["--config=configs/digits.py", f"--plan={name}"]) == 2
  error = capsys.readouterr().err
  assert f"--plan = '{name}': " in error and re.search(message, error)


def test_without_libtpu_its_installation_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(build.UserError, match="libtpu, is not installed; .* python -m pip install 'libtpu"):
    topology.ready("v5e:4x4")


def test_more_cpu_devices_than_there_are_need_a_new_process():
  with pytest.raises(build.UserError, match="cpu:64': jax has 8 CPU devices in this process already"):
    topology.ready("cpu:64")


# --- stand-ins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,tokens", [("sd15", [77]), ("sdxl", [77, 77]), ("sd35_medium", [77, 77, 256]),
                                         ("flux_dev", [77, 512])])
def test_a_description_stands_for_a_folder(name, tokens):
  spec = resolved({"task": "train", "steps": 1, "batch": 8, "data": {"name": "pickapic", "path": "nowhere"},
                   "policy": {"name": "public", "model": name, "size": 256}, "algorithm": "dpo",
                   "trained": "^policy/net/"})
  with standin.opened(spec) as opened:
    parts, _ = assemble.prospect(opened)
    arrays = standin.arrays(parts, opened)
  assert [a.shape for a in arrays["cond"]["tokens"].values()] == [(8, n) for n in tokens]
  assert arrays["win"].shape == arrays["lose"].shape == (8, 256, 256, 3) and arrays["win"].dtype == np.uint8
  assert {a.shape[0] for a in jax.tree.leaves(arrays)} == {8}


def test_prompts_that_were_embedded_before_come_as_features():
  spec = resolved({"task": "train", "steps": 1, "batch": 8, "data": {"name": "pickapic", "path": "nowhere"},
                   "policy": {"name": "public", "model": "flux_dev", "size": 64, "cache": "nowhere"},
                   "algorithm": "dpo", "trained": "^policy/net/"})
  with standin.opened(spec) as opened:
    parts, where = assemble.prospect(opened)
    arrays = standin.arrays(parts, opened)
  shapes = jax.tree.map(lambda a: a.shape, arrays["cond"])
  assert shapes == {"context": (8, 512, 4096), "pooled": (8, 768)}
  assert "text" not in where.shapes["base"] and not (ROOT / "nowhere").exists()


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_of_an_offline_run():
  found = plan.plan(resolved(TOY, "config.mesh.data=4", "config.mesh.fsdp=2"), "cpu:8")
  assert found.mesh == {"data": 4, "fsdp": 2, "model": 1} and [p.name for p in found.programs] == [
    "embed", "select", "update"]
  device, over = found.held["trained policy"]
  assert found.held["optimiser"] == (2 * device + 8, 2 * over + 8) and found.held["follower ema"] == (device, over)
  assert found.held["frozen base/text"] == (200 * 4 * 4 // 1, 200 * 4 * 4)  # too small to be cut
  assert found.donated > 0.95 and found.fits() and found.limit is None
  update = found.programs[-1]
  assert update.flops > 0 and update.peak >= sum(d for what, (d, _) in found.held.items() if what != "batch")
  said = plan_text.text(found)
  assert "cpu:8: 8 devices, data 4 x fsdp 2 x model 1" in said and "the peak is" in said
  assert f"an update writes {found.donated:.0%} of the state in place" in said


def test_the_number_of_devices_divides_what_is_cut():
  one, many = (plan.plan(resolved(TOY, *more), name) for name, more in (
    ("cpu:1", ()), ("cpu:8", ("config.mesh.data=1", "config.mesh.fsdp=8"))))
  assert [p.flops for p in one.programs] == [p.flops for p in many.programs]
  assert one.held["batch"][0] == 8 * many.held["batch"][0]
  assert not any(p.traffic for p in one.programs) and many.programs[-1].traffic


@needs_libtpu
def test_a_plan_of_an_online_run_on_a_slice():
  topology.ready("v5e:2x2")
  found = plan.plan(resolved(GRPO), "v5e:2x2")
  assert [p.name for p in found.programs] == ["embed", "rollout", "decode", "score", "select", "update"]
  assert found.devices == 4 and found.limit == 15.75 * 2 ** 30 and found.fits() and found.donated > 0.8
  named = {p.name: p for p in found.programs}
  net = 2 * 16 * 16 * ((4 + 1 + 1) * 16 + 16)             # 16 samples of 16 pixels, two layers
  assert named["rollout"].flops == 5 * net
  assert named["update"].flops == 4 * 3 * net             # the last step has no noise; a gradient is two more
  assert named["update"].peak < 2.2 * 2 ** 20 and plan_text.traffic(named["update"]) < 2 ** 16
  assert found.most == 16  # a decision of one of four samples a device


@needs_libtpu
def test_the_smallest_slice_is_found(tmp_path, capsys, monkeypatch):
  """Of chips with a tenth of a MiB: on one nothing is compiled, on four it ends with the first program."""
  monkeypatch.setitem(topology.CHIPS, "v5e", topology.Chip(0.1 / 1024, topology.FLAT))
  file, numbers = tmp_path / "mine.py", tmp_path / "numbers.json"
  file.write_text(f"def get_config(): return {TOY!r}")
  assert main.main([f"--config={file}", "--plan=v5e", "--config.batch=1024", f"--plan_json={numbers}"]) == 0
  said, progress = capsys.readouterr()
  assert re.match(r"v5e:1x1: 0.26 MiB stay on a device, of 0.10 MiB\nv5e:2x2: embed needs 0.13 MiB of 0.10 MiB, .*\n"
                  r"v5e:2x4: 8 devices", said), said
  assert re.sub(r"\d+ s", "", progress).split(": \n") == ["embed", "embed", "select", "update", ""]
  record, = json.loads(numbers.read_text())
  assert record["fits"] and record["topology"] == "v5e:2x4"


@needs_libtpu
@pytest.mark.parametrize("name, devices, limit", [("v5p:2x2x1", 4, 95.74), ("v6e:2x2", 4, 31.25)])
def test_other_chips_are_planned_for(name, devices, limit):
  topology.ready(name)
  found = plan.plan(resolved(TOY), name, ("update",), quick=True)
  assert (found.devices, found.limit) == (devices, limit * 2 ** 30) and found.fits() and found.programs[-1].flops > 0


@needs_libtpu
def test_a_quick_plan_counts_the_same(tmp_path, capsys):
  file, numbers = tmp_path / "mine.py", tmp_path / "numbers.json"
  file.write_text(f"def get_config(): return {TOY!r}")
  assert main.main([f"--config={file}", "--plan=v5e:2x2", "--quick", f"--plan_json={numbers}"]) == 0
  capsys.readouterr()
  (quick,), found = json.loads(numbers.read_text()), plan_text.record(plan.plan(resolved(TOY), "v5e:2x2"))
  assert quick["quick"] and quick["held"] == found["held"] and quick["donated"] == found["donated"]
  for name, program in found["programs"].items():
    assert quick["programs"][name]["flops"] == program["flops"]
  assert topology.options(jax.devices()[0], True) == topology.options(jax.devices()[0])  # CPUs have no other


@needs_libtpu
def test_no_slice_may_be_large_enough(tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(f"def get_config(): return {TOY!r}")
  assert main.main([f"--config={file}", "--plan=v5e", "--config.mesh.fsdp=3"]) == 2
  out, error = capsys.readouterr()
  assert "v5e:2x2: config.mesh = " in out and "no slice of v5e is large enough" in error


@needs_libtpu
def test_what_does_not_fit_says_by_how_much(tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(f"def get_config(): return {TOY!r}")
  code = main.main([f"--config={file}", "--plan=v5e:2x2", f"--config.batch={2 ** 26}", f"--plan_json={tmp_path / 'j'}"])
  out, error = capsys.readouterr()
  assert code == 2 and f"{file} does not fit" in error
  assert "it does not fit: " in out and "too much" in out and "take more devices" in out and "in place" not in out
  record, = json.loads((tmp_path / "j").read_text())
  assert not record["fits"] and record["donated"] is None and record["overrides"] == [f"config.batch={2 ** 26}"]


def test_impossible_runs_are_refused(capsys):
  with pytest.raises(build.UserError, match="config.mesh = .*'fsdp': 3.* number of devices, 8"):
    plan.plan(resolved(TOY, "config.mesh.fsdp=3"), "cpu:8")
  with pytest.raises(build.UserError, match="config.batch: 12 samples cannot be cut evenly over data x fsdp = 8"):
    plan.plan(resolved(TOY, "config.batch=12"), "cpu:8")
  with pytest.raises(build.UserError, match="config.micro = 3 does not divide the 16 samples"):
    plan.plan(resolved(TOY, "config.micro=3"), "cpu:8")
  with pytest.raises(build.UserError, match="config.task = 'prepare' has no run whose task is 'train'"):
    plan.show({"task": "prepare"}, "cpu:8", {"config": "x"})


def failed(**mesh):
  """A plan whose update does not fit."""
  return plan.Plan("v5e:4x4", 16, {"data": 16, "fsdp": 1, "model": 1, **mesh}, 1e9, {},
                   [plan.Program("update", 1, 0, 0, 0, 0, (), (), 0.0, 2 ** 35)], None, 128)


def test_remedies_are_tried_alone_and_then_together():
  spec = resolved(config.load("configs/sd15_dpo.py"), "config.policy.remat=False", "config.micro=8")
  tried = plan.remedies(spec, failed())
  assert [r[0] for r in tried[:6]] == [
    "config.policy.remat=dots_with_no_batch_dims_saveable", "config.policy.remat=attention", "config.policy.remat=True",
    "config.micro=128", "config.mesh.data=1", "config.lora.rank=32"]
  assert len(tried) == 9 and tried[-1][0] == "config.policy.remat=True" and "config.trained=^policy/lora/" in tried[-1]
  for flags in tried:
    config.override(spec, flags)
  left = [plan.remat(config.override(spec, [f"config.policy.remat={way}"])) for way in ("attention", True)]
  assert left == [[["config.policy.remat=True"]], []] and not plan.remat(resolved(TOY))


def test_a_remedy_that_helps_is_named(monkeypatch):
  better = failed()._replace(programs=[plan.Program("update", 1, 2 ** 20, 2 ** 20, 0, 0, (), (), 0.0, None)])
  seen = []

  def planned(spec, name, names, say, brief, quick):
    """What a remedy does to memory is the compiler's affair and costs minutes; the search among them is tested here."""
    seen.append(names)
    return better if spec["mesh"]["fsdp"] == -1 else failed()
  monkeypatch.setattr(plan, "plan", planned)
  spec = resolved(config.load("configs/sd15_dpo.py"), "config.policy.remat=False", "config.mesh.data=-1",
                  "config.mesh.fsdp=1")
  flags, found = plan.remedy(spec, failed())
  assert flags == ["config.mesh.data=1", "config.mesh.fsdp=-1"] and found is better
  assert seen == [("update",)] * 3 + [()]  # remat leaves the other programs as they are, a mesh does not
  seen.clear()
  lacking = failed()._replace(programs=[plan.Program("embed", 1, 0, 2 ** 31, 0, 0, (), (), 0.0, None)])
  assert plan.remedy(spec, lacking)[1] is better and seen == [()] * 4
  said = plan_text.text(failed(), (flags, found))
  assert "update needs 32.00 GiB of 0.93 GiB, 31.07 GiB too much" in said
  assert "it fits with --config.mesh.data=1 --config.mesh.fsdp=-1: the peak is then 1.00 MiB" in said


DEEP = {**TOY, "algorithm": "dpo", "policy": {
  "name": "diffusion", "net": {"name": "mmdit", "variant": "tiny", "depth": 20}, "text": {"name": "text", "width": 16},
  "process": "flow", "size": 4, "channels": 1, "length": 5}}


@pytest.mark.parametrize("spec, limit, expected", [
  ({**TOY, "batch": 4096}, 3 * 2 ** 20, "config.micro=4096"),
  pytest.param(DEEP, 2 ** 24, "config.policy.net.remat=dots_with_no_batch_dims_saveable", marks=pytest.mark.slow)])
def test_a_remedy_makes_a_run_fit(spec, limit, expected, monkeypatch):
  monkeypatch.setattr(topology, "memory", lambda name: limit)
  before = plan.plan(resolved(spec), "cpu:1")
  (flag,), after = plan.remedy(resolved(spec), before)
  assert flag == expected and not before.fits() and after.fits()
  names = [p.name for p in before.programs]
  assert [p.name for p in after.programs] == names and before.programs[:-1] == after.programs[:-1]
  assert after.programs[-1].peak <= limit < before.programs[-1].peak


def test_a_plan_for_64_devices_is_one_command(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(f"import sys\nsys.path.append({str(ROOT / 'tests' / 'support')!r})\n"
                  f"def get_config(): return {dict(TOY, batch=64)!r}\n")
  code, said = command("align.main", f"--config={file}", "--plan=cpu:64", f"--plan_json={tmp_path / 'plan.json'}",
                       where=ROOT)
  assert code == 0 and "cpu:64: 64 devices, data 64 x fsdp 1 x model 1" in said, said
  record, = json.loads((tmp_path / "plan.json").read_text())
  assert record["fits"] and record["topology"] == "cpu:64" and record["programs"]["update"]["flops"] > 0


def exceeded(budget: dict, found: dict) -> list:
  """Numbers of a plan's record, of the programs that it has, that are more than a twentieth above its budget's."""
  return [f"{name}/{what}: {numbers[what]} > {most}" for name, numbers in found["programs"].items()
          for what, most in budget["programs"][name].items() if numbers[what] > 1.05 * most]


def test_what_exceeds_a_budget_is_named():
  budget = {"programs": {"update": {"peak": 100, "flops": 10}}}
  assert not exceeded(budget, {"programs": {"update": {"peak": 105, "flops": 9}}})
  assert exceeded(budget, {"programs": {"update": {"peak": 106, "flops": 9}}}) == ["update/peak: 106 > 100"]


def dearest(budget: dict) -> tuple:
  """Names of programs to compile for a budget: the update, and the one with the highest peak, with those before it,
  whose results it needs."""
  names = list(budget["programs"])
  highest = max(names, key=lambda name: budget["programs"][name]["peak"])
  return ("update",) if highest == "update" else (*names[:names.index(highest) + 1], "update")


def test_the_program_with_the_highest_peak_is_compared():
  digits, = json.loads((ROOT / "configs" / "plans" / "digits.json").read_text())
  assert dearest(digits) == ("update",)
  peaks = {"embed": 3, "rollout": 9, "decode": 5, "score": 1, "select": 2, "update": 8}
  budget = {"programs": {name: {"peak": peak} for name, peak in peaks.items()}}
  assert dearest(budget) == ("embed", "rollout", "update")
  assert [p.name for p in plan.plan(resolved(GRPO), "cpu:1", dearest(budget)).programs] == [*dearest(budget)]
  found = {"programs": {"embed": {"peak": 3}, "rollout": {"peak": 10}, "update": {"peak": 8}}}
  assert exceeded(budget, found) == ["rollout/peak: 10 > 9"]


@pytest.mark.slow  # minutes of compiling each
@pytest.mark.timeout(3000)
@needs_libtpu
@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "configs" / "plans").glob("*.json")))
def test_a_shipped_config_needs_no_more_than_its_budget(file):
  for budget in json.loads((ROOT / "configs" / "plans" / file).read_text()):
    topology.ready(budget["topology"])
    spec = config.override(config.load(budget["config"]), budget["overrides"])
    spec = spec["runs"][budget["run"]] if "run" in budget else spec
    quick = budget.get("quick", False)
    found = plan_text.record(plan.plan(spec, budget["topology"], dearest(budget), quick=quick))
    assert found["fits"] and found["donated"] >= 0.8 and not exceeded(budget, found)
