"""Training on a public folder: the shipped configs at a reduced size, what they leave, and what reads it."""
import json
import shutil

import diffusers
import folders
import jax
import numpy as np
import published
import pytest
import torch
from commands import ROOT, command

from align import assemble, build, main, train, tree
from align import config as configs
from diffusion import folder, generate, hub, weights
from diffusion.convert import core


@pytest.fixture(scope="module", params=["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def model(request, tmp_path_factory):
  return request.param, folders.MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return published.pickapic(tmp_path_factory.mktemp("data"))


def trained(model, data, workdir, how, *more):
  name, where = model
  code, said = command("align.main", f"--config=configs/{name}_dpo.py:{how}", f"--workdir={workdir}",
                       f"--config.model={where}", f"--config.data.path={data}", *published.SMALL, *more, where=ROOT)
  assert code == 0, said


@pytest.mark.slow
def test_a_trained_network_is_left_as_a_folder_that_diffusers_loads(model, data, tmp_path):
  trained(model, data, tmp_path / "run", "full")
  where, export = model[1], tmp_path / "run" / "export"
  opened = hub.open_(where)
  for role, part in opened.parts.items():
    before, after = ({core.alias(part.layout, name): tensor for name, tensor in published.tensors(
      root / part.folder / f"{part.stem}.safetensors").items()} for root in (where, export))
    assert before.keys() == after.keys()
    same = [np.array_equal(before[name], after[name]) for name in before]
    assert all(same) if role != "net" else sum(same) < len(same) / 2
  pipe = diffusers.DiffusionPipeline.from_pretrained(export, local_files_only=True)
  changed = weights.load(export / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
  np.testing.assert_array_equal(pipe.unet.conv_in.weight.detach().numpy(), changed)
  images = [generate.sample(str(m), ["a red dog"], size=32, steps=2) for m in (where, export, tmp_path / "run")]
  assert (images[0] != images[1]).any() and (images[1] == images[2]).all()


@pytest.mark.slow
def test_adapters_are_left_as_a_file_that_diffusers_loads(model, data, tmp_path):
  trained(model, data, tmp_path / "run", "lora", "--config.lora.rank=4", "--config.optim.lr=0.1")
  export = tmp_path / "run" / "export"
  assert sorted(p.name for p in export.iterdir()) == ["policy.json", "pytorch_lora_weights.safetensors"]
  plain, merged, apart = (generate.sample(str(m), ["a red dog"], size=32, steps=2, **more) for m, more in (
    (model[1], {}), (tmp_path / "run", {}), (model[1], {"lora": str(export)})))
  assert (plain != merged).any() and (merged == apart).all()
  pipe = diffusers.DiffusionPipeline.from_pretrained(model[1], local_files_only=True)
  pipe.load_lora_weights(export)
  pipe.fuse_lora()
  name, kernel = next((n, p) for n, p in pipe.unet.state_dict().items() if n.endswith("attn2.to_q.base_layer.weight"))
  view = folder.load(str(tmp_path / "run"))
  opened = hub.open_(model[1])
  entry = next(e for e in core.entries(opened.parts["net"].layout) if e.name == name.replace(".base_layer", ""))
  ours = core.theirs(entry, dict(weights.leaves(view["net"]))[entry.path], np.float32)
  np.testing.assert_allclose(ours, kernel.numpy(), atol=1e-6)


def test_a_description_is_not_trained(tmp_path):
  with pytest.raises(build.UserError, match="config.model: model = 'sd15' is a description without weights"):
    train.train(str(tmp_path), steps=1, data={"name": "not there"}, algorithm={"name": "dpo"},
                policy={"name": "public", "model": "sd15"})


@pytest.mark.slow  # a third and fourth compiled run
def test_a_public_policy_begins_from_its_folder(model, data, tmp_path):
  trained(model, data, tmp_path / "run", "full", "--config.steps=1", "--config.optim.lr=0.0")
  view, base = folder.load(str(tmp_path / "run")), hub.load(hub.open_(model[1]))
  jax.tree.map(np.testing.assert_array_equal, view, base)


def test_an_autoencoder_is_not_trained(model):
  with pytest.raises(build.UserError, match="matches 'policy/.* stands still here, as an autoencoder"):
    train.check(build.resolve({"task": "train", "steps": 1, "model": str(model[1]), "policy": {"name": "public"},
                               "algorithm": "dpo", "data": "digits", "batch": 8}))


@pytest.mark.slow  # a third and fourth compiled run
def test_kept_prompts_give_the_same_training(model, data, tmp_path):
  """With a cache of embeddings the encoders are no parameters, and nothing else changes."""
  rows = []
  # of one update, as AdamW makes steps of roundings; at the published beta of 5000 they alone move the loss by 2e-4
  for name, more in (("a", []), ("b", [f"--config.policy.cache={tmp_path / 'cache'}"])):
    trained(model, data, tmp_path / name, "full", "--config.steps=1", "--config.algorithm.beta=10.0", *more)
    rows.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
  plain, kept = rows
  for name in ("loss", "error_win", "error_lose"):  # the loss is log 2 whatever prompts say, errors are not
    np.testing.assert_allclose(kept[f"train/{name}"], plain[f"train/{name}"], rtol=1e-6)
  np.testing.assert_allclose(kept["train/grad_norm"], plain["train/grad_norm"], rtol=1e-4)
  assert len(list((tmp_path / "cache").glob("*.safetensors"))) > 0


@pytest.mark.slow  # three compiled runs
@pytest.mark.parametrize("how", ["full", "lora"])
def test_weights_and_batch_over_a_mesh_train_as_on_one_device(model, data, tmp_path, how):
  name, where = model
  # at the published beta of 5000 rounding alone moves a loss by its ten-thousandth
  options = ["--config.batch=8", "--config.micro=1", "--config.algorithm.beta=10.0"]
  trained(model, data, tmp_path / "one", how, *options)
  small = [option for option in published.SMALL if "batch" not in option]
  config = configs.override(configs.load(str(ROOT / f"configs/{name}_dpo.py:{how}")), [
    tuple(option.removeprefix("--").split("=")) for option in (*small, *options)])
  # weights gathered over fsdp for the whole network, matrix products in parts over model for adapters
  mesh = {"data": 2, "fsdp": 4} if how == "full" else {"data": 2, "fsdp": 2, "model": 2}
  config.update(model=str(where), mesh=mesh)
  config["data"]["path"] = str(data)
  main.run(config, str(tmp_path / "eight"))
  rows = [[json.loads(line) for line in open(tmp_path / run / "metrics.jsonl")] for run in ("one", "eight")]
  for one, eight in zip(*([row for row in run if "train/loss" in row] for run in rows), strict=True):
    np.testing.assert_allclose(eight["train/loss"], one["train/loss"], rtol=1e-4)
    np.testing.assert_allclose(eight["train/grad_norm"], one["train/grad_norm"], rtol=1e-3)


def test_small_changes_are_not_rounded_away_by_the_type_of_a_file(model, tmp_path):
  """A trained leaf is exported as it is, an untouched one in the type of the file, bit for bit."""
  where = tmp_path / "half"
  pipe = diffusers.DiffusionPipeline.from_pretrained(model[1], local_files_only=True)
  pipe.to(dtype=torch.bfloat16)
  pipe.save_pretrained(where)
  opened = hub.open_(where)
  view = jax.tree.map(lambda a: np.asarray(a, np.float32), hub.load(opened))
  view["net"]["conv_in"]["kernel"] *= 1 + 1e-4
  out = folder.save_public(tmp_path / "out", {"model": str(where)}, {"net": view["net"]})
  before, after = (published.tensors(root / "unet" / "diffusion_pytorch_model.safetensors") for root in (where, out))
  changed = {name for name in before if before[name].dtype != after[name].dtype}
  assert changed == {"conv_in.weight"} and after["conv_in.weight"].dtype == np.float32
  assert (after["conv_in.weight"] != before["conv_in.weight"].astype(np.float32)).any()
  assert all((before[name].view(np.uint8) == after[name].view(np.uint8)).all() for name in before.keys() - changed)
  again = diffusers.UNet2DConditionModel.from_pretrained(out / "unet").conv_in.weight.detach().numpy()
  np.testing.assert_array_equal(again, after["conv_in.weight"])


def test_frozen_text_encoders_are_not_trained(model):
  config = {"task": "train", "steps": 1, "model": str(model[1]), "policy": {"name": "public"}, "algorithm": "dpo",
            "data": "digits", "batch": 8, "trained": "^policy/text"}
  with pytest.raises(build.UserError, match="matches 'policy/text/.* unless config.policy.frozen is False"):
    train.check(build.resolve(config))
  train.check(build.resolve({**config, "policy": {"name": "public", "frozen": False}}))


def test_files_that_do_not_fit_are_refused_before_data_are_read(model, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(model[1], broken)
  file = broken / "unet" / "diffusion_pytorch_model.safetensors"
  tensors = published.tensors(file)
  tensors.pop("conv_in.weight")
  weights.save(file, tensors)
  with pytest.raises(build.UserError, match="(?s)config.model: .*missing: conv_in.weight"):
    train.train(str(tmp_path / "run"), steps=1, data={"name": "not there"}, algorithm={"name": "dpo"},
                policy={"name": "public", "model": str(broken)})
  with pytest.raises(build.UserError, match="config.lora: .*targets = 'vae/'"):
    train.train(str(tmp_path / "run"), steps=1, data={"name": "not there"}, algorithm={"name": "dpo"},
                policy={"name": "public", "model": str(model[1])}, lora={"targets": "vae/"})


def test_parameters_that_stand_still_may_be_held_in_half(model):
  policy = {"name": "public", "param_dtype": "bfloat16"}
  config = {"task": "train", "steps": 1, "model": str(model[1]), "policy": policy, "algorithm": "dpo", "data": "digits",
            "batch": 8, "trained": "^policy/net/"}
  parts, where = assemble.prospect({k: v for k, v in build.resolve(config).items() if k != "task"})
  kinds = {name: leaf.dtype for name, leaf in tree.flatten(where.shapes).items()}
  assert {kind for name, kind in kinds.items() if name.startswith(("policy/", "base/vae/"))} == {np.dtype(np.float32)}
  held = {name for name, kind in kinds.items() if kind == "bfloat16"}
  assert held == {name for name in kinds if name.startswith(("base/net/", "base/text"))}
  roles = assemble.begin(parts, where, 0, {"policy": str(model[1])})
  flat = tree.flatten(roles)
  assert {name: leaf.dtype for name, leaf in flat.items()} == kinds
  for name in kinds:
    if name.startswith("policy/"):
      np.testing.assert_array_equal(flat[name], flat["base" + name.removeprefix("policy")].astype(np.float32))
  memory = lambda role: [shard.data.unsafe_buffer_pointer() for name, leaf in flat.items() if name.startswith(role)
                         for shard in leaf.addressable_shards]
  ours = memory("policy/")  # which is donated
  assert len(set(ours)) == len(ours) and not set(ours) & set(memory("base/"))
