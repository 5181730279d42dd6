"""What a plan is made with in place of weights, tokenizers and data: only shapes count.

A public model's shipped description becomes a folder that has its configs and tokenizers without words; a batch is one
record, repeated. Data sets that are made on the fly, or whose files are here, give a record of their own; of others it
is a picture of the policy's size, or two where the algorithm learns from pairs.
"""
import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from align import assemble, build, train
from align import data as batches
from diffusion import hub, prompts, public, sizes

CLIP = 77                         # tokens; T5's number is the pipeline's
PAIRS = ("dpo", "compare")        # algorithms that learn from `win` and `lose`
WRITES = ("pickapic",)            # data sets that the first reading writes to disk


@contextlib.contextmanager
def opened(config: dict):
  """The config with a folder for a model that is a description alone; it is gone afterwards. Inside, features that a
  cache keeps of prompts are zeros."""
  policy = config.get("policy") or {}
  name = config.get("model") or policy.get("model")
  with tempfile.TemporaryDirectory() as folder:
    if name in sizes.shipped() and not hub.is_public(name):
      write(name, Path(folder))
      config = {**config, "model": folder, "policy": {**policy, "model": folder}}
    token = prompts.STORE.set(blank)
    try:
      yield config
    finally:
      prompts.STORE.reset(token)


def blank(model: hub.Model, read: Callable, folder: Path) -> Callable:
  """In place of prompts.cached: features in the shapes that the encoders would give them, from no weights."""
  def every(tokens):
    fresh = {role: jax.eval_shape(lambda key, part=model.parts[role]: public.fresh(part.layout, key), jax.random.key(0))
             for role in tokens}
    return {name: np.zeros(a.shape, a.dtype) for name, a in jax.eval_shape(read, fresh, tokens).items()}
  return every


def write(name: str, folder: Path) -> None:
  """A folder in diffusers' layout without weights."""
  from tokenizers import Tokenizer, models
  from transformers import PreTrainedTokenizerFast  # seconds of import
  described = sizes.configs(name)
  files = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
  for part, config in described.items():
    file = folder / files.get(part, f"{part}/config.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))
  for _, _, tokenizer, longest in hub.FAMILIES[described["model_index"]["_class_name"]].texts:
    words = Tokenizer(models.WordLevel({"-": 0}, unk_token="-"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="-", unk_token="-",
                                   model_max_length=longest or CLIP)
    made.save_pretrained(folder / tokenizer)


def arrays(parts: assemble.Parts, config: dict) -> dict:
  """The arrays of a batch as the devices get it, ShapeDtypeStructs [B ...] without shardings."""
  source = batches.Source(1, lambda i: record(parts, config), "plan")
  found, _ = train.prepared(parts, batches.batches(source, 1, threads=0).next())
  count = config["batch"] * config["group"]
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)),
                      found)


def record(parts: assemble.Parts, config: dict) -> dict:
  """One record of the config's data, or one like it."""
  data = config["data"]
  is_here = "path" not in data or Path(str(data["path"])).expanduser().exists() and data["name"] not in WRITES
  if is_here:
    return build.build("align.datasets", data).record(0)
  entries = (() if parts.algorithm.rollout else
             ("win", "lose") if config["algorithm"]["name"] in PAIRS else ("media",))
  low = {"low": np.zeros(parts.policy.low, np.uint8)} if parts.policy and parts.policy.low else {}
  return {"prompt": "a", **low, **{name: np.zeros(picture(config), np.uint8) for name in entries}}


def picture(config: dict) -> tuple:
  """(height, width, channels) of what the policy makes, of clips with frames before, or the reward judges."""
  made = config.get("policy") or config["reward"]
  if made.get("model"):
    return public.sizes(hub.open_(made["model"]), made.get("size"))[1]
  frames = (made["frames"],) if made.get("frames") else ()
  return *frames, made["size"], made["size"], made["channels"]
