"""Every algorithm over every kind of policy, through the loop: finite, moves what is trained, resumes bit for bit."""
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from align import build, checkpoint, guard, main, tree
from diffusion import folder

# What an algorithm needs beside the toy policy. The others are told by their signature: a reward makes them on-policy.
NEEDS = {
  "sft": {"data": {"name": "toy:data"}}, "dpo": {"data": {"name": "toy:data", "pairs": True}},
  "grpo": {"algorithm": {"clip": 1.0, "updates": 2}},
  "nft": {"algorithm": {"levels": 2, "updates": 2, "old_limit": 0.9}},
  "rwr": {"algorithm": {"updates": 2}},
  "ppo": {"algorithm": {"clip": 1.0, "updates": 2}, "trained": "^(policy|value)/"},
  "dense": {"algorithm": {"clip": 1.0, "stored": 3, "tuples": 8, "updates": 2}},
  "refl": {}, "distill": {"data": {"name": "toy:data"}},
  "fit": {"policy": None, "trained": "^reward/", "data": {"name": "toy:data"},
          "reward": {"name": "classifier", "classes": 8, "size": 4, "channels": 1, "width": 4}},
  "compare": {"policy": None, "trained": "^reward/", "data": {"name": "toy:data", "pairs": True},
              "reward": {"name": "scalar", "net": {"name": "lm", "variant": "tiny"}, "length": 6, "size": 4,
                         "channels": 1}},
}
JUDGES = ("fit", "compare")  # what trains a reward, without a policy
TOKENS = ("sft", "dpo", "grpo", "rwr")  # what serves policies without noise levels, too
ONLINE = ("grpo", "nft", "rwr", "ppo", "dense")
REAL = {"name": "diffusion", "text": {"name": "text", "width": 16, "depth": 1, "heads": 2}, "length": 6, "size": 4,
        "channels": 1, "steps": 5, "kernel": "flow_sde", "law": "uniform", "process": "flow"}
POLICIES = {"flow": {"name": "toy:policy"}, "ddpm": {"name": "toy:policy", "kind": "ddpm"},
            "lora": {"name": "toy:policy"},
            "tokens": {"name": "autoregressive", "net": {"name": "lm", "variant": "tiny"}, "cond": "prompt",
                       "length": 6, "prompt_length": 6},
            "unet": {**REAL, "net": {"name": "unet", "variant": "tiny", "channels": 1}},
            "mmdit": {**REAL, "net": {"name": "mmdit", "variant": "tiny", "channels": 1}},
            "clips": {"name": "toy:policy", "frames": 2}}
MORE = {"lora": {"lora": {"rank": 2, "targets": "^net/.*kernel$"}, "trained": "^policy/lora/"},
        "tokens": {"data": {"name": "toy:texts"}}, "unet": {"mesh": {"data": 2, "fsdp": 4}},
        "mmdit": {"mesh": {"data": 2, "fsdp": 2, "model": 2}}}
CHEAP = ("flow", "ddpm", "tokens", "none")  # of the other policies, most combinations are slow
DAILY = (("dpo", "lora"), ("grpo", "lora"), ("dpo", "clips"), ("nft", "clips"), ("refl", "clips"))
CASES = [pytest.param(a, p, marks=[] if p in CHEAP or (a, p) in DAILY else pytest.mark.slow)
         for a in build.names("align.algorithms") for p in (("none",) if a in JUDGES else POLICIES)
         if p != "tokens" or a in TOKENS]


def config(name, kind, **more):
  """The run of one case: 4 updates, a stop possible after any."""
  needs = NEEDS[name]
  is_online, judge = name in ONLINE, "toy:words" if kind == "tokens" else "toy:reward"
  data = needs.get("data", {"name": "toy:data", "media": False})
  return {
    "task": "train", "steps": 4, "batch": 8, "group": 4 if is_online else 1, "policy": POLICIES.get(kind),
    "log_every": 1, "save_every": 100, "mesh": {"data": 8},
    "reward": {"name": judge} if is_online or name == "refl" else None,
    "optim": {"name": "adamw", "lr": 3e-3},
    **needs, "data": {**data, "frames": 2} if kind == "clips" else data,
    "algorithm": {"name": name, **needs.get("algorithm", {})}, **MORE.get(kind, {}),
    **({"trained": "^(policy/lora|value)/"} if (name, kind) == ("ppo", "lora") else {}), **more,
  }


def state_of(workdir):
  """{step: {leaf: array}} of what a run saved last."""
  saved = checkpoint.open_(workdir, keep=2)
  try:
    step = max(saved.steps())
    leaves = jax.tree_util.tree_leaves_with_path(raw(workdir, step))
    return step, {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}
  finally:
    saved.close()


def raw(workdir, step):
  import orbax.checkpoint as orbax
  folder = Path(workdir) / "checkpoints" / str(step) / "state"
  return orbax.PyTreeCheckpointer().restore(os.fspath(folder.resolve()))


@pytest.mark.parametrize("name, kind", CASES)
def test_four_updates_are_two_and_two(name, kind, tmp_path, monkeypatch):
  """The stop falls between two updates (on-policy: after 1, inside an experience), on all 8 devices."""
  spec, stop = config(name, kind), 1 if name in ONLINE else 2
  main.run(spec, tmp_path / "whole")
  monkeypatch.setenv("ALIGN_FAULT", f"stop:{stop}:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(spec, tmp_path / "parts")
  monkeypatch.delenv("ALIGN_FAULT")
  main.run(spec, tmp_path / "parts")
  (at, whole), (same, parts) = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
  assert at == same == 4 and whole.keys() == parts.keys()
  for leaf in whole:
    np.testing.assert_array_equal(whole[leaf], parts[leaf], err_msg=leaf)
  rows = [[{k: v for k, v in json.loads(line).items() if k != "time"} for line in open(tmp_path / w / "metrics.jsonl")]
          for w in ("whole", "parts")]
  assert rows[0] == rows[1]
  losses = [row["train/loss"] for row in rows[0] if "train/loss" in row]
  assert len(losses) == 4 and not any(row.get("train/skipped") for row in rows[0])
  assert np.isfinite([value for row in rows[0] for value in row.values()]).all()


@pytest.mark.parametrize("name", [a for a in build.names("align.algorithms") if a not in JUDGES])
def test_only_trained_leaves_move(name, tmp_path):
  """The text embedding is frozen, and one leaf of the network; everything else of the network moves."""
  trained = r"^policy/net/(in/|out/bias)" + (r"|^value/" if name == "ppo" else "")
  main.run(config(name, "flow", trained=trained, steps=2), tmp_path / "run")
  main.run(config(name, "flow", trained=trained, steps=2, optim={"name": "sgd", "lr": 0.0}), tmp_path / "still")
  after, before = (exported(tmp_path / w) for w in ("run", "still"))
  for leaf in before:
    same = np.array_equal(before[leaf], after[leaf])
    assert same == (not leaf.startswith(("net/in/", "net/out/bias"))), leaf


def test_only_trained_leaves_of_a_reward_move(tmp_path):
  main.run(config("fit", "none", trained="^reward/net/Dense_1", steps=2), tmp_path / "run")
  main.run(config("fit", "none", trained="^reward/net/Dense_1", steps=2, optim={"name": "sgd", "lr": 0.0}),
           tmp_path / "still")
  after, before = (exported(tmp_path / w, "reward") for w in ("run", "still"))
  moved = [leaf for leaf in before if not np.array_equal(before[leaf], after[leaf])]
  assert sorted(moved) == ["net/Dense_1/bias", "net/Dense_1/kernel"]


def exported(workdir, kind="policy"):
  return tree.flatten(folder.load(str(workdir), kind))


@pytest.mark.parametrize("name", [a for a in build.names("align.algorithms") if a not in (*TOKENS, *JUDGES)])
def test_what_needs_noise_refuses_tokens_before_any_work(name, tmp_path):
  with pytest.raises(build.UserError, match="this policy makes tokens; choose a diffusion policy"):
    main.run(config(name, "tokens"), tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_probe_of_tokens_is_refused(tmp_path):
  probed = {**config("grpo", "tokens"), "evaluate": {"every": 1, "data": {"name": "toy:texts"}, "samples": 2,
                                                     "rewards": {"words": {"name": "toy:words"}}}}
  with pytest.raises(build.UserError, match="this policy makes tokens; leave them out"):
    main.run(probed, tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_stop_keeps_the_experience_that_it_fell_into(tmp_path, monkeypatch):
  """The memory of a stopped run is in its checkpoint: going on draws no new samples."""
  spec = config("grpo", "flow")
  monkeypatch.setenv("ALIGN_FAULT", "stop:1:sigterm")
  with pytest.raises(guard.Stopped):
    main.run(spec, tmp_path / "run")
  _, leaves = state_of(tmp_path / "run")
  memory = [v for k, v in leaves.items() if "memory" in k and "advantage" in k]
  assert len(memory) == 1 and memory[0].shape == (32,) and np.abs(memory[0]).max() > 0
