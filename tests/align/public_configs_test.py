"""Alignment of public models as the shipped configs have it, at a reduced size: two updates from tiny folders of
generators and of rewards, by adapters and of the whole network."""
import json

import encoders
import folders
import numpy as np
import pytest
import vlms
from commands import command
from PIL import Image

from align import build, standin, train
from align import config as configs
from configs import common
from diffusion import eyes, hub, sizes, weights
from diffusion.convert import core

SMALL = {"batch": 2, "micro": 1, "steps": 2}
POLICY = {"size": 32, "dtype": "float32", "param_dtype": "float32", "remat": False, "steps": 2}
GROUP = {"group": 2}
GRPO = {**GROUP, "algorithm.steps": 4, "algorithm.updates": 2}
NFT = {**GROUP, "algorithm.steps": 3, "algorithm.levels": 2}
REFL = {"algorithm.steps": 4, "algorithm.weight": 1.0, "algorithm.margin": 100.0}
DENSE = {**GROUP, "algorithm.steps": 3, "algorithm.stored": 2, "algorithm.tuples": 2, "algorithm.updates": 2,
         "chunks": 2, "algorithm.clip": 1.0}
DETECTOR = """
def dogs(pictures):  # none, one or two, red or blue, as the bytes of a picture happen to be
  found = []
  for total in pictures.astype(int).sum((1, 2, 3)):
    dog = {"class": "dog", "score": 0.95, "box": (0, 0, 4, 4), "color": ("red", "blue")[total % 2]}
    found.append([dog] * (total // 2 % 3))
  return found
"""
CASES = [  # config, its argument, generator, reward, what is small
  ("sd35_grpo", "pickscore,lora", "sd3", "clip", GRPO),
  ("sd35_grpo", "geneval,fast,full", "sd3", "geneval", GRPO),
  ("flux_grpo", "hps,lora", "flux", "clip", GRPO),
  ("flux_grpo", "hps,full", "flux", "clip", GRPO),
  ("sd35_nft", "geneval,lora", "sd3", "geneval", NFT),
  ("sd35_nft", "mixture,full", "sd3", "mixture", NFT),
  ("sd15_refl", "released,lora", "sd15", "image_reward", REFL),
  ("sd15_refl", "paper,full", "sd15", "image_reward", {**REFL, "data.size": 32}),
  ("sd15_dense", "single,lora", "sd15", "image_reward", DENSE),
  ("sd15_dense", "multi,hps,full", "sd15", "clip", DENSE),
]


def generator(kind, where):
  """A tiny folder; what SD1.5's own scheduler says of clipping, this one's says too."""
  folder = folders.MAKERS[kind](where)
  file = folder / "scheduler" / "scheduler_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), "clip_sample": False}))
  return folder


def judged(kind, where):
  """Overrides that name a tiny folder of the reward."""
  if kind == "geneval":
    (where / "detector.py").write_text(DETECTOR)
    return {"reward.detector": "detector:dogs"}
  if kind == "image_reward":
    return {"reward.model": encoders.image_reward(where)}
  folder = encoders.clip(where / "judge")[0]
  return ({f"reward.rewards.{part}.model": folder for part in ("pickscore", "hps", "clip")} if kind == "mixture" else
          {"reward.model": folder})


def written(where):
  """A file that every data set of these configs can read: prompts, GenEval's clauses, pictures."""
  lines = [{"prompt": prompt, "tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}],
            "image": f"{i}.png"} for i, prompt in enumerate(("a red dog", "a cat"))]
  for i in range(len(lines)):
    noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(where / f"{i}.png")
  (where / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return where / "data.jsonl"


def ran(file, options, where):
  """A run in WHERE/run, as a user starts one there."""
  code, said = command("align.main", f"--config=configs/{file}", f"--workdir={where / 'run'}",
                       *(f"--config.{name}={value}" for name, value in options.items()), where=where)
  assert code == 0, said


def updates(workdir):
  """The rows of a run's updates, each of which has moved something."""
  rows = [json.loads(line) for line in open(workdir / "metrics.jsonl")]
  found = [row for row in rows if "train/loss" in row]
  assert all(row["train/skipped"] == 0 and row["train/update_norm"] > 0 for row in found), found
  return found


@pytest.mark.slow  # a sampler, a reward and an update to compile, each
@pytest.mark.parametrize("name, how, kind, reward, small", CASES, ids=[f"{name}:{how}" for name, how, *_ in CASES])
def test_two_updates(name, how, kind, reward, small, tmp_path):
  way = how.split(",")[-1]
  options = {**SMALL, **{f"policy.{k}": v for k, v in POLICY.items()}, **small, **judged(reward, tmp_path),
             **({"lora.rank": 2} if way == "lora" else {}), "optim.lr": 1e-3,
             "model": generator(kind, tmp_path), "data.path": written(tmp_path)}
  ran(f"{name}.py:{how}", options, tmp_path)
  assert len(updates(tmp_path / "run")) == 2
  export = tmp_path / "run" / "export"
  assert (export / "pytorch_lora_weights.safetensors").is_file() == (way == "lora") != hub.is_public(export)


@pytest.mark.slow  # pictures, a judge of two questions and an update to compile
@pytest.mark.parametrize("way", common.WAYS)
def test_pairs_are_sampled_judged_and_learned_from(way, tmp_path):
  model, judge = generator("sdxl_turbo", tmp_path), tmp_path / "judge"
  vlms.qwen(judge)
  pairs = {"model": model, "data.path": written(tmp_path), "samples": 4, "batch": 4, "policy.size": 32,
           "policy.dtype": "float32", "rewards.rank.reading": "probability", "rewards.points.reading": "expected",
           **{f"rewards.{part}.model": judge for part in ("rank", "points")}}
  train = {**SMALL, **{f"policy.{k}": v for k, v in POLICY.items()}, "model": model, "optim.lr": 1e-3,
           "optim.warmup_steps": 0, **({"lora.rank": 2} if way == "lora" else {})}
  ran(f"sdxl_turbo_dpo.py:{way}", {f"runs.{run}.{name}": value for run, options in (("pairs", pairs), ("train", train))
                                   for name, value in options.items()}, tmp_path)
  assert len(updates(tmp_path / "run" / "train")) == 2
  assert 1 <= json.loads((tmp_path / "run" / "pairs" / "results.json").read_text())["pairs"] <= 2


# --- what needs no run ------------------------------------------------------------------------------------------------


def test_words_choose_one_of_each_group():
  groups = ("a", "b"), ("c", "d")
  assert common.picked("a", *groups) == ["a", "c"] and common.picked("d,b", *groups) == ["b", "d"]
  with pytest.raises(ValueError, match="how = 'a,x': 'x' is not one of a, b, c, d; choose of them, with commas"):
    common.picked("a,x", *groups)
  with pytest.raises(ValueError, match="how = 'a,b': a and b exclude each other; choose one of them"):
    common.picked("a,b", *groups)


def test_published_settings_follow_the_reward_and_the_way():
  load = lambda file: build.resolve(configs.load(f"configs/{file}"))
  assert [load(f"sd35_grpo.py:{how}")["algorithm"]["beta"] for how in ("geneval", "pickscore", "fast,pickscore")] == [
    0.04, 0.01, 0.0]
  assert load("flux_grpo.py:full,hps")["trained"] == "^policy/net/" and load("flux_grpo.py:full")["lora"] is None
  mixture = load("sd35_nft.py:mixture")
  assert (mixture["algorithm"]["beta"], mixture["reward"]["weights"]) == (0.1, {"pickscore": 1 / 26})
  assert load("sd15_dense.py:multi")["reward"]["name"] == "image_reward"


def test_a_reward_that_is_a_description_is_not_trained_with(tmp_path):
  """Nothing is loaded: two encoders without weights, one of them in a mixture."""
  spec = build.resolve(configs.load("configs/sd35_nft.py:mixture"))
  small = {"name": "jpeg"}
  for reward, at in (({"name": "pickscore", "model": "clip_h14"}, "config.reward.model = 'clip_h14' is a description"),
                     ({"name": "mix", "rewards": {"a": small, "b": spec["reward"]["rewards"]["clip"]}},
                      "config.reward.rewards.b.model = 'clip_l14' is a description without weights and tokenizer")):
    with pytest.raises(build.UserError, match=at):
      train.train(str(tmp_path), steps=1, data={"name": "digits", "split": "prompts"}, reward=reward, group=2,
                  algorithm={"name": "nft", "levels": 1}, policy={"name": "toy:policy"})


@pytest.mark.parametrize("name, count", [("clip_h14", 986_109_441), ("clip_l14", 427_616_513)])
def test_descriptions_of_encoders_have_the_published_sizes(name, count):
  """Numbers of parameters as the models' own pages say them."""
  opened = eyes.open_(name)
  assert sum(a.size for _, a in weights.leaves(core.shapes(opened.layout))) == count
  with pytest.raises(ValueError, match="clip_.14 holds no tokenizer"):
    eyes.words(opened)
  with standin.opened({}):
    assert eyes.words(opened)(["a dog", "a cat"]).shape == (2, 77)  # enough for a plan


def test_unknown_descriptions_are_refused(tmp_path):
  known = "clip_h14, clip_l14, image_reward"
  with pytest.raises(ValueError, match=f"sizes: 'clip_h15' is not one of {known}; choose one of them"):
    sizes.encoder("clip_h15")
  with pytest.raises(ValueError, match=f"clip_h15/config.json cannot be read.*; without weights, there are {known}"):
    eyes.open_("clip_h15")
