"""What several configs share: the Scenes generator, its data and its verdict; public models, their rewards and how they
are aligned."""
import ml_collections

SCENES = {
  "name": "diffusion", "size": 16, "channels": 3, "length": 20, "steps": 8,
  "net": {"name": "unet", "variant": "scenes"}, "text": {"name": "text", "variant": "scenes"},
  "process": {"name": "flow", "predict": "x0"},
  "kernel": "flow_sde", "eta": 0.7,  # for rollouts that explore; at eta 0, as in every evaluation, it is the Euler step
}
CLIPS = {
  **SCENES, "frames": 6, "net": {"name": "clips", "variant": "scenes"},
  "process": {"name": "flow", "predict": "x0", "shift": 2.0}, "law_shift": 2.0,  # frames repeat what noise hides in one
}
MOVING = {"frames": 6, "most": 1}  # the world of CLIPS, an option of its data: one thing that moves
REWARD = {"name": "scenes", "strict": 0.5, "soft": 0.5}
WAYS = ("lora", "full")   # of training a public model: adapters, or the whole denoiser
UNET = r"^net/.*(self|cross)/(q|k|v|out)/kernel$"  # the attention of Stable Diffusion 1.5 to XL
MMDIT = r"^net/.*(x|c)_(qkv/(q|k|v)|out)/kernel$"  # of SD3.5, but not its second one
REWARDS = {  # of public models; "model" is a description of the network: a run needs the folder
  "jpeg": {"name": "jpeg"},  # of any picture, without weights
  "pickscore": {"name": "pickscore", "model": "clip_h14"}, "hps": {"name": "hps", "model": "clip_h14"},
  "clip": {"name": "clip", "model": "clip_l14"}, "image_reward": {"name": "image_reward", "model": "image_reward"},
  "geneval": {"name": "geneval", "detector": "module:function"},
}


def held_out(count: int = 480, seed: int = 0) -> dict:
  """Prompts whose combinations no training caption has, balanced over the six categories."""
  return {"name": "scenes_prompts", "split": "test", "count": count, "seed": seed}


def held_out_clips(count: int = 480, seed: int = 0) -> dict:
  """Prompts of clips, each of a thing whose shape, colour, direction and speed no training caption has together."""
  return {**held_out(count, seed), **MOVING}


def probe(every: int, count: int = 60, samples: int = 4) -> dict:
  """A small held-out evaluation while training, on other prompts than the verdict's."""
  return {"every": every, "data": held_out(count, seed=1), "rewards": {"scenes": REWARD}, "success": "scenes/exact",
          "diversity": "scenes", "samples": samples, "batch": 120}


def verdict(arms: dict, samples: int = 4, **more) -> dict:
  """The evaluation of Scenes arms: success by GenEval's rules, by equality, and diversity among correct samples."""
  rewards = {"scenes": REWARD, "equal": {**REWARD, "exact": True}}
  return {"task": "evaluate", "arms": arms, "data": held_out(), "rewards": rewards,
          "success": "scenes/exact", "diversity": "scenes", "samples": samples, "batch": 120, **more}


def picked(how: str, *groups: tuple) -> list:
  """One name of each group out of "a,b"; of a group that is not named its first."""
  words, known = how.split(","), [name for group in groups for name in group]
  for word in words:
    if word not in known:
      raise ValueError(f"how = {how!r}: {word!r} is not one of {', '.join(known)}; choose of them, with commas between")
  named = [[name for name in group if name in words] for group in groups]
  for found in named:
    if len(found) > 1:
      raise ValueError(f"how = {how!r}: {' and '.join(found)} exclude each other; choose one of them")
  return [found[0] if found else group[0] for found, group in zip(named, groups, strict=True)]


def diffusion_dpo(model: str, how: str, *, size: int, beta: float, steps: int, warmup: int, optim: dict):
  """Diffusion-DPO of a public model on Pick-a-Pic v2. model: a shipped description, enough for --print and --plan; give
  --config.model a folder to train. how: "full", or "lora" with rank 32 in the attention."""
  if how not in WAYS:
    raise ValueError(f"how = {how!r} is not one of {', '.join(WAYS)}; choose one of them")
  config = ml_collections.ConfigDict({
    "task": "train", "steps": steps, "batch": 2048, "micro": 128, "drop": 0.2,
    "data": {"name": "pickapic", "path": "pickapic_v2", "split": "train", "size": size},
    "policy": {"name": "public", "model": model, "size": size, "dtype": "bfloat16", "remat": True, "law": "uniform"},
    "algorithm": {"name": "dpo", "beta": beta},
    "optim": {**optim, "lr": 2.048e-5, "warmup_steps": warmup}, "log_every": 1, "save_every": 100,
    "mesh": {"data": 1, "fsdp": -1},  # weights in parts over all devices: no copy of them fits beside its optimiser
  })
  if how == "lora":
    config.lora = {"rank": 32, "alpha": 64.0, "targets": UNET}
    config.optim.lr = 1e-4
    config.policy.param_dtype = "bfloat16"
  config.trained = "^policy/lora/" if how == "lora" else "^policy/net/"
  return config


def asked(reward: str) -> dict:
  """Prompts for a reward of the table, which GenEval's needs with their metadata."""
  return {"name": "geneval", "path": "geneval.jsonl"} if reward == "geneval" else {"name": "prompts",
                                                                                   "path": "prompts.txt"}


def aligned(model: str, way: str, *, size: int, targets: str, rank: int, alpha: float, lr: float, policy: dict,
            algorithm: dict, reward: str = "jpeg", optim: dict = None, **more):
  """Alignment of a public model with pictures of its own. way: "lora", adapters of the leaves `targets`, or "full", the
  whole denoiser. reward: of the table above. policy, algorithm, optim: their options; more: of the run, over all."""
  config = ml_collections.ConfigDict({
    "task": "train", "data": asked(reward), "reward": REWARDS[reward],
    "policy": {"name": "public", "model": model, "size": size, "dtype": "bfloat16", "param_dtype": "bfloat16",
               "remat": True, **policy},
    "trained": "^policy/lora/" if way == "lora" else "^policy/net/", "algorithm": algorithm,
    "optim": {"name": "adamw", "lr": lr, "weight_decay": 1e-4, "clip": 1.0, **(optim or {})},
    "log_every": 1, "save_every": 50, "mesh": {"data": 1, "fsdp": -1}, **more,
  })
  if way == "lora":
    config.lora = {"rank": rank, "alpha": alpha, "targets": targets}
  return config


def grpo(**options) -> dict:
  """Old values come from a replay: in bfloat16 one is not as near to the sampler as the clip range asks for."""
  return {"name": "grpo", "recompute": True, **options}
