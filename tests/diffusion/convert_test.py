"""The command for public checkpoints, and what is refused of them: damage, pickles, options, other models."""
import json
import os
import shutil
import subprocess
import sys
import weakref

import diffusers
import folders
import jax
import numpy as np
import pytest
import torch
import transformers
from commands import ROOT
from huggingface_hub import split_torch_state_dict_into_shards
from published import tensors
from safetensors import numpy as st

from diffusion import folder, hub, lora, prompts, public, weights
from diffusion.convert import __main__ as convert
from diffusion.convert import core, t5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return folders.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def copy(model, tmp_path):
  return shutil.copytree(model, tmp_path / "copy")


def edit(path, **change):
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_verify_reads_all_and_compares(model, copy, capsys):
  assert convert.main(["verify", str(model), f"--against={copy}"]) == 0
  said = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in said] == ["unet", "vae", "text_encoder", "text_encoder_2"]
  assert all(line.endswith("bit for bit") and "float32" in line for line in said)
  file = copy / "unet" / "diffusion_pytorch_model.safetensors"
  held = tensors(file)
  held["conv_in.bias"] = held["conv_in.bias"] + 1
  st.save_file(held, file)
  assert convert.main(["verify", str(model), f"--against={copy}"]) == 1
  assert "1 leaves differ: conv_in/bias" in capsys.readouterr().out
  st.save_file({n: t.astype(np.float16).astype(np.float32) for n, t in held.items()}, file)
  half = shutil.copytree(copy, copy.parent / "half")
  st.save_file({n: t.astype(np.float16) for n, t in held.items()}, half / "unet" / file.name)
  assert convert.main(["verify", str(copy), f"--against={half}"]) == 1  # equal values of another type
  assert "unet" in capsys.readouterr().out
  held["conv_in.bias"][0] = np.nan
  st.save_file(held, file)
  assert convert.main(["verify", str(copy)]) == 1
  assert "1 of them hold values that are not finite" in capsys.readouterr().out


def test_export_writes_shards_that_verify_finds_equal(model, tmp_path, capsys):
  assert convert.main(["export", str(model), f"--out={tmp_path / 'out'}", "--shard-bytes=50000"]) == 0
  assert len(list((tmp_path / "out" / "unet").glob("*-of-*.safetensors"))) > 2
  assert convert.main(["verify", str(tmp_path / "out"), f"--against={model}"]) == 0
  assert convert.main(["export", str(model), f"--out={tmp_path / 'out'}"]) == 2
  assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_types_of_the_files_are_kept(kind, model, copy, tmp_path):
  """Read as float32 and written back, half precision is what it was."""
  file = copy / "vae" / "diffusion_pytorch_model.safetensors"
  held = {name: tensor.astype(jax.numpy.dtype(kind)) for name, tensor in tensors(file).items()}
  st.save_file(held, file)
  opened = hub.open_(copy)
  back = hub.save(opened, hub.load(opened, dtype="float32"), tmp_path / "back")
  after = tensors(back / "vae" / "diffusion_pytorch_model.safetensors")
  for name, tensor in held.items():
    assert after[name].dtype == tensor.dtype and after[name].tobytes() == tensor.tobytes(), name


def test_leaves_are_read_onto_their_shards(model):
  """Each device asks for its part alone; together they are the leaf."""
  mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  opened, asked = hub.open_(model), []
  layout, whole = opened.parts["text_2"].layout, hub.load(opened, roles=("text_2",))["text_2"]

  class Watched(weights.Files):
    def tensor(self, name, index=None):
      asked.append((name, index))
      return super().tensor(name, index)
  files = Watched(*weights.component(model / "text_encoder_2", "model"))
  cut = lambda a: next((i for i in reversed(range(a.ndim)) if a.shape[i] % len(jax.devices()) == 0), None)
  spec = lambda a: jax.sharding.PartitionSpec(*("fsdp" if i == cut(a) else None for i in range(a.ndim)))
  place = jax.tree.map(lambda a: jax.sharding.NamedSharding(mesh, spec(a)), core.shapes(layout))
  jax.tree.map(np.testing.assert_array_equal, core.load(files, layout, place), whole)
  parts = [index for name, index in asked if name.endswith("mlp.fc1.weight")]
  assert parts and all(index[0].stop - index[0].start == 48 // len(jax.devices()) for index in parts)


def test_buffers_of_older_releases_are_read_over_and_written_back(model, copy, tmp_path):
  """The published files of SD1.5 hold position_ids, which recent releases of transformers neither write nor need."""
  file = copy / "text_encoder" / "model.safetensors"
  name = "text_model.embeddings.position_ids"
  st.save_file({**tensors(file), name: np.arange(16)[None]}, file)
  opened = hub.open_(copy)
  back = tensors(hub.save(opened, hub.load(opened), tmp_path / "back") / "text_encoder" / "model.safetensors")
  np.testing.assert_array_equal(back[name], np.arange(16)[None])
  assert back[name].dtype == np.int64
  plain = hub.save(hub.open_(model), hub.load(hub.open_(model)), tmp_path / "plain")
  assert name not in tensors(plain / "text_encoder" / "model.safetensors")


def test_components_that_are_not_ours_come_along_whole(copy, tmp_path):
  (copy / "safety_checker").mkdir()
  (copy / "safety_checker" / "model.safetensors").write_bytes(b"weights")
  (copy / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"the same weights again")
  edit(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
  opened = hub.open_(copy)
  back = hub.save(opened, hub.load(opened), tmp_path / "back")
  assert (back / "safety_checker" / "model.safetensors").read_bytes() == b"weights"
  assert sorted(p.name for p in (back / "unet").iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
  assert (back / "tokenizer" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_the_prompt_is_heard_whatever_the_guidance(model, guidance):
  """SDXL-Turbo is sampled with guidance 0, which pipelines read as none."""
  opened = hub.open_(model)
  made, view = public.build(opened, size=32, steps=1, guidance=guidance), hub.load(opened)
  x = np.random.default_rng(0).normal(size=(2, *made.shape)).astype(np.float32)
  x[1] = x[0]
  out = jax.jit(lambda cond: made.predictor(view, cond, True)(x, np.full(2, 0.9, np.float32)))(
    made.encode(["a dog", "two red cats"]))
  assert np.abs(out[0] - out[1]).max() > 1e-4 and made.start() == made.start(1)


CHILD = """
import json, sys, threading, time
import jax
from diffusion import weights
from diffusion.convert import core, t5
def now():
  return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
layout = t5.make(json.loads(sys.argv[2]))
jax.block_until_ready(jax.numpy.zeros(8) + 1)
peak, done, before = [0], [], now()
def watch():
  while not done:
    peak[0] = max(peak[0], now())
    time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
tree = jax.block_until_ready(core.load(weights.component(sys.argv[1], "model"), layout))
done.append(1)
thread.join()
print(peak[0] - before, sum(a.nbytes for a in jax.tree.leaves(tree)))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read as Linux tells it")
def test_the_host_holds_the_target_and_little_more_than_a_shard(tmp_path):
  config = {"vocab_size": 4000, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 8, "num_heads": 16,
            "feed_forward_proj": "gated-gelu", "model_type": "t5"}
  layout = t5.make(config)
  tree = jax.tree.map(lambda a: np.full(a.shape, 0.5, np.float32), core.shapes(layout))
  files = core.save(tmp_path, "model", layout, tree, shard_bytes=100 * 10 ** 6)
  largest = max(file.stat().st_size for file in files)
  done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), json.dumps(config)], capture_output=True,
                        text=True, env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}, check=True)
  peak, target = map(int, done.stdout.split())
  assert len(files) > 4 and target > 4e8
  assert peak <= target + 1.3 * largest + 3e7, (peak, target, largest)  # 30 MB for the interpreter's own needs


def test_a_pickle_is_refused_with_the_command_that_converts_it(model, copy, tmp_path, capsys):
  for folder_, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
    file = copy / folder_ / f"{stem}.safetensors"
    torch.save({n: torch.tensor(t) for n, t in tensors(file).items()},
               copy / folder_ / f"{stem.replace('model', 'pytorch_model') if stem == 'model' else stem}.bin")
    file.unlink()
  assert convert.main(["verify", str(copy)]) == 2
  said = capsys.readouterr().err
  assert "unet holds diffusion_pytorch_model.bin, but no" in said
  assert f"by python -m diffusion.convert import {copy} --out=DIR, and use DIR" in said
  assert convert.main(["import", str(copy), f"--out={tmp_path / 'safe'}"]) == 0
  assert convert.main(["verify", str(tmp_path / "safe"), f"--against={model}"]) == 0


def pickled(folder, stem, name, size=20_000, variant=""):
  """A component's safetensors as shards of torch's, with their index, as diffusers and transformers once wrote them."""
  held = {n: torch.tensor(t) for n, t in tensors(folder / f"{stem}.safetensors").items()}
  split = split_torch_state_dict_into_shards(held, filename_pattern=f"{name}{variant}{{suffix}}.bin",
                                             max_shard_size=size)
  for file, names in split.filename_to_tensors.items():
    torch.save({n: held[n] for n in names}, folder / file)
  index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
  (folder / f"{name}.bin.index{variant}.json").write_text(json.dumps(index))
  (folder / f"{stem}.safetensors").unlink()
  return sorted(split.filename_to_tensors)


def test_shards_of_pickles_become_shards_that_load(model, copy, tmp_path, capsys):
  files = pickled(copy / "unet", "diffusion_pytorch_model", "diffusion_pytorch_model")
  others = pickled(copy / "text_encoder", "model", "pytorch_model", variant=".fp16")
  assert len(files) > 2 and others[0].startswith("pytorch_model.fp16-00001-of-")
  assert convert.main(["import", str(copy), f"--out={tmp_path / 'safe'}"]) == 0
  back = lambda name: {p.name for p in (tmp_path / "safe" / name).iterdir()}
  assert back("unet") == {"config.json", "diffusion_pytorch_model.safetensors.index.json",
                          *(f.replace(".bin", ".safetensors") for f in files)}
  assert back("text_encoder") == {"config.json", "model.safetensors.index.fp16.json", *(
    f.replace("pytorch_", "").replace(".bin", ".safetensors") for f in others)}
  assert convert.main(["verify", str(tmp_path / "safe"), f"--against={model}"]) == 0
  capsys.readouterr()
  (copy / "unet" / files[1]).unlink()
  assert convert.main(["import", str(copy), f"--out={tmp_path / 'again'}"]) == 2
  assert f"lists {files[1]}, which must lie beside it" in capsys.readouterr().err
  assert not (tmp_path / "again").exists()


def test_pickles_that_are_there_twice_are_left_out(model, copy, tmp_path, capsys):
  """Many public folders hold the same weights in both formats, or the index of one whose shards were not fetched."""
  for name in ("text_encoder", "vae"):
    stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
    file = shutil.copy(copy / name / f"{stem}.safetensors", tmp_path)
    pickled(copy / name, stem, "pytorch_model" if stem == "model" else stem)
    shutil.copy(file, copy / name)
  for file in (copy / "vae").glob("*.bin"):
    file.unlink()
  assert convert.main(["import", str(copy), f"--out={tmp_path / 'safe'}"]) == 2
  assert "holds no .bin" in capsys.readouterr().err
  torch.save({"a": torch.ones(1)}, copy / "other.bin")
  assert convert.main(["import", str(copy), f"--out={copy / 'safe'}"]) == 2
  assert "lies in the folder that is read" in capsys.readouterr().err
  assert convert.main(["import", str(copy), f"--out={tmp_path / 'safe'}"]) == 0
  for name, file in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
    assert {p.name for p in (tmp_path / "safe" / name).iterdir()} == {"config.json", f"{file}.safetensors"}
  assert (tmp_path / "safe" / "other.safetensors").is_file()
  assert convert.main(["verify", str(tmp_path / "safe"), f"--against={model}"]) == 0


@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_variants_are_found_under_the_names_that_their_libraries_give_them(size, model, copy, capsys):
  vae = diffusers.AutoencoderKL.from_pretrained(model / "vae")
  text = transformers.CLIPTextModel.from_pretrained(model / "text_encoder")
  for name, net, stem in (("vae", vae, "diffusion_pytorch_model"), ("text_encoder", text, "model")):
    (copy / name / f"{stem}.safetensors").unlink()
    net.save_pretrained(copy / name, variant="fp16", max_shard_size=size)
    assert {"fp16" in p.name for p in (copy / name).glob("*.safetensors*")} == {True}
  assert convert.main(["verify", str(copy), f"--against={model}"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_verify_loads_no_network(model, copy, monkeypatch):
  """Tensor by tensor: two models of any size are compared within the memory of two tensors."""
  held, at_once, tensor = [], [], weights.Files.tensor

  def watched(self, name, index=None):
    made = tensor(self, name, index)
    held.append(weakref.ref(made))
    at_once.append(sum(ref() is not None for ref in held))
    return made
  monkeypatch.setattr(weights.Files, "tensor", watched)
  monkeypatch.setattr(core, "placed", None)
  assert convert.main(["verify", str(model), f"--against={copy}"]) == 0
  assert len(at_once) > 200 and max(at_once) <= 3  # the third is read before the first name is bound anew


def test_verify_names_a_network_that_only_the_other_has(tmp_path, capsys):
  with_t5 = folders.sd3(tmp_path)
  without = shutil.copytree(with_t5, tmp_path / "without")
  edit(without / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
  assert convert.main(["verify", str(without), f"--against={with_t5}"]) == 1
  said = capsys.readouterr().out.splitlines()
  assert said[-1] == f"text_encoder_3: only in {with_t5}" and all(line.endswith("bit for bit") for line in said[:-1])
  assert convert.main(["verify", str(with_t5), f"--against={without}"]) == 1
  assert "text_encoder_3: 21 tensors, 17,392 parameters, float32; 12 leaves differ" in capsys.readouterr().out


@pytest.fixture
def run(model, tmp_path):
  """What a run leaves that trained adapters of two networks."""
  opened = hub.open_(model)
  rng = np.random.default_rng(0)
  draw = lambda a: np.asarray(0.1 * rng.normal(size=a.shape), np.float32)
  whole = {role: core.shapes(opened.parts[role].layout) for role in ("net", "text")}
  shapes = jax.eval_shape(lambda key: lora.init(key, whole, 3, "/(q|conv1)/"), jax.random.key(0))
  folder.save_public(tmp_path / "run" / "export", {"name": "public", "model": str(model)},
                     {"lora": jax.tree.map(draw, shapes)}, 3, 4.0)
  return tmp_path / "run"


def test_verify_adds_adapters_as_export_does(model, run, tmp_path, capsys, monkeypatch):
  assert convert.main(["export", str(run), f"--out={tmp_path / 'whole'}"]) == 0
  monkeypatch.setattr(core, "placed", None)
  for one, other in ((run, tmp_path / "whole"), (tmp_path / "whole", run)):
    assert convert.main(["verify", str(one), f"--against={other}"]) == 0
  capsys.readouterr()
  assert convert.main(["verify", str(run), f"--against={model}"]) == 1
  said = capsys.readouterr().out.splitlines()
  assert [("differ" in line) for line in said] == [True, False, True, False]
  assert "; 1 leaves differ: blocks/q/kernel" in said[2]


def test_adapters_are_written_in_the_other_layout_and_back(model, run, tmp_path, capsys):
  there, back = tmp_path / "peft", tmp_path / "back"
  assert convert.main(["adapters", str(run), f"--out={there}", "--layout=peft"]) == 0
  assert set(capsys.readouterr().out.split()) == {str(there / kind / name) for kind in ("unet", "text_encoder")
                                                 for name in ("adapter_model.safetensors", "adapter_config.json")}
  assert convert.main(["adapters", str(there), f"--out={back}", f"--model={model}"]) == 0
  file = "pytorch_lora_weights.safetensors"
  opened = [weights.opened(folder / file) for folder in (back, run / "export")]  # entries of a header have no order
  assert opened[0].metadata() == opened[1].metadata() and set(opened[0].keys()) == set(opened[1].keys())
  assert all(np.array_equal(*(each.get_tensor(name) for each in opened)) for name in opened[0].keys())
  for args, words in (([str(there)], "is no run that left adapters; give --model"),
                      ([str(model)], "is a whole model, without adapters apart"),
                      ([str(run), "--out", str(back)], "is not empty")):
    assert convert.main(["adapters", "--out", str(tmp_path / "new"), *args]) == 2
    assert words in capsys.readouterr().err


def test_half_precision_comes_out_of_a_pickle_as_it_was(tmp_path):
  value = torch.randn(3, 5).to(torch.bfloat16)
  torch.save({"state_dict": {"a.weight": value, "b.weight": value.float().half()}}, tmp_path / "x.ckpt")
  assert convert.main(["import", str(tmp_path / "x.ckpt"), f"--out={tmp_path / 'out'}"]) == 0
  held = tensors(tmp_path / "out" / "x.safetensors")
  np.testing.assert_array_equal(held["a.weight"].astype(np.float32), value.float().numpy())
  assert held["a.weight"].dtype == jax.numpy.bfloat16 and held["b.weight"].dtype == np.float16


class Payload:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_not_run(tmp_path, capsys):
  torch.save({"a": Payload(str(tmp_path / "ran"))}, tmp_path / "bad.bin")
  assert convert.main(["import", str(tmp_path / "bad.bin"), f"--out={tmp_path / 'out'}"]) == 2
  assert "cannot be read safely" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def broken(what, copy):
  unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
  if what == "truncated":
    unet.write_bytes(unet.read_bytes()[:-100])
  elif what == "renamed":
    st.save_file({("conv_inn.weight" if n == "conv_in.weight" else n): t for n, t in tensors(unet).items()}, unet)
  elif what == "class":
    edit(copy / "model_index.json", unet=["diffusers", "UNet3DConditionModel"])
  elif what == "pipeline":
    edit(copy / "model_index.json", _class_name="KandinskyPipeline")
  elif what == "option":
    edit(copy / "unet" / "config.json", time_embedding_type="fourier")
  elif what == "json":
    (copy / "vae" / "config.json").write_text("{")
  elif what == "index":
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
      json.dumps({"weight_map": {"conv_in.weight": unet.name, "not.there": unet.name}}))
  elif what == "shard":
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
      json.dumps({"weight_map": {"conv_in.weight": "part-2.safetensors"}}))


@pytest.mark.parametrize("what, words", [
  ("truncated", "cannot be read"), ("renamed", "conv_in.weight (nearest: conv_inn.weight)"),
  ("class", "unet = 'UNet3DConditionModel' in model_index.json is not one of"),
  ("pipeline", "_class_name = 'KandinskyPipeline' in model_index.json is not one of StableDiffusionPipeline"),
  ("option", "time_embedding_type = 'fourier' in config.json is not supported, only 'positional'"),
  ("json", "must be a JSON file"), ("index", "lists tensors that are not there: not.there in"),
  ("shard", "part-2.safetensors is no file")])
def test_damage_is_named(what, words, copy, capsys):
  broken(what, copy)
  assert convert.main(["verify", str(copy)]) == 2
  assert words in capsys.readouterr().err


def test_a_folder_that_is_none_and_sizes_that_do_not_fit_are_refused(model, tmp_path):
  with pytest.raises(ValueError, match="holds no model_index.json; give a folder"):
    hub.open_(tmp_path)
  with pytest.raises(ValueError, match="size = 40 x 64 must be multiples of 16.*; take 32 x 64"):
    public.build(hub.open_(model), size=(40, 64))


def test_a_negative_prompt_without_guidance_is_refused(model):
  with pytest.raises(ValueError, match="negative = 'a cat' has no effect: guidance = 1.0 leads away from nothing"):
    public.build(hub.open_(model), size=32, guidance=1.0, negative="a cat")


def test_what_is_cut_from_a_prompt_is_said(model, caplog):
  made = prompts.tokenizers(hub.open_(model))
  made["text"](["a dog"])
  assert not caplog.records
  made["text"](["a dog and a cat in a red house"])
  assert "is cut" in caplog.text and "house" in caplog.text


def test_halves_of_a_policy_of_our_own_are_as_near_as_halves_can_be_and_are_read_back_whole(tmp_path, capsys, model):
  out = tmp_path / "half"
  assert convert.main(["halve", "scenes", f"--out={out}"]) == 0
  whole, half = folder.load("scenes"), folder.load(str(out))
  assert folder.describe("scenes") == folder.describe(str(out))
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
    assert b.dtype == np.float16 and np.abs(a - b).max() <= np.abs(a).max() / 2 ** 11
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), whole)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(folder.load(str(out), like=shapes)))
  assert 2 * (out / "policy.safetensors").stat().st_size < 1.01 * (folder.locate("scenes") / "policy.safetensors"
                                                                   ).stat().st_size
  for given, place, said in (("scenes", out, "is not empty"), (str(model), tmp_path / "b", "give the workdir"),
                             ("judge", tmp_path / "b", "give the workdir"), ("nothing", tmp_path / "b", "nothing")):
    assert convert.main(["halve", given, f"--out={place}"]) == 2 and said in capsys.readouterr().err
    assert place == out or not place.exists()
  large = jax.tree.map(lambda a: a * 0 + 70_000, whole)
  folder.save(tmp_path / "large", "policy", folder.describe("scenes"), large)
  assert convert.main(["halve", str(tmp_path / "large"), f"--out={tmp_path / 'c'}"]) == 2
  assert "float16 cannot, beyond 65,504" in capsys.readouterr().err and not (tmp_path / "c").exists()
