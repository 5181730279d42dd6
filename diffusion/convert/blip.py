"""THUDM's ImageReward <-> nets/blip.py, under the names of Salesforce's BLIP.

A folder holds the tensors of ImageReward.pt as `renamed` gives them, and a config.json that `describe` makes of their
shapes in the words of transformers' BlipConfig.
"""
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.convert.core import Layout, Way, patches, refuse
from diffusion.nets import bert, blip, vit

CLASS = "ImageReward"
VISION, TEXT = "blip.visual_encoder", "blip.text_encoder"
PLACES = (0, 2, 4, 6, 7)  # of the head's linear layers in the file; dropout lies between the others
CHANNELS = 64             # of an attention head, in every public size: shapes do not tell
BESIDE = r"^blip\.(vision|text)_proj\.|\.position_ids$"  # in the file, and used by nothing
ROW = Way(lambda a: a[0], lambda a: a[None])
RULES = (
  *((f"^mlp/fc{i}/", f"mlp/layers/{place}/") for i, place in enumerate(PLACES)),
  ("^vision/class$", "vision/cls_token"), ("^vision/position$", "vision/pos_embed"),
  ("^vision/patch_in/", "vision/patch_embed/proj/"), ("^vision/blocks/([qkv])/", r"vision/blocks/attn/\1/"),
  ("^vision/blocks/out/", "vision/blocks/attn/proj/"), ("^vision/blocks/(fc[12])/", r"vision/blocks/mlp/\1/"),
  ("^vision/blocks/", "vision/blocks/{i}/"), ("^vision/", f"{VISION}/"),
  ("^text/token/", "text/embeddings/word_embeddings/"), ("^text/norm/", "text/embeddings/LayerNorm/"),
  ("^text/position$", "text/embeddings/position_embeddings/embedding"),
  ("^text/blocks/norm/", "text/blocks/output/LayerNorm/"), ("^text/blocks/fc1/", "text/blocks/intermediate/dense/"),
  ("^text/blocks/fc2/", "text/blocks/output/dense/"), ("/self/", "/attention/"), ("/cross/", "/crossattention/"),
  ("attention/q/", "attention/self/query/"), ("attention/k/", "attention/self/key/"),
  ("attention/v/", "attention/self/value/"), ("attention/out/", "attention/output/dense/"),
  ("attention/norm/", "attention/output/LayerNorm/"), ("^text/blocks/", "text/encoder/layer/{i}/"),
  ("^text/", f"{TEXT}/"),
)


def make(config: Mapping, dtype: str = "float32", remat: bool | str = False) -> Layout:
  """From a config.json that `describe` made. ValueError names what the network does not have, KeyError an entry that is
  missing."""
  where, seen, said = f"convert: {CLASS}", config["vision_config"], config["text_config"]
  refuse(f"{where}: vision_config", seen, {"hidden_act": ("gelu",), "layer_norm_eps": (1e-6,)})
  refuse(f"{where}: text_config", said, {"hidden_act": ("gelu",), "layer_norm_eps": (bert.EPSILON,)})
  sizes = lambda held: {"width": held["hidden_size"], "depth": held["num_hidden_layers"], "remat": remat,
                        "heads": held["num_attention_heads"], "inner": held["intermediate_size"], "dtype": dtype}
  vision = vit.make("blip_l16", image=seen["image_size"], patch=seen["patch_size"], **sizes(seen))
  text = bert.make("blip", vocab=said["vocab_size"], length=said["max_position_embeddings"], **sizes(said))
  shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)
  example = lambda: (shape(jnp.float32, 1, vision.image, vision.image, 3), shape(jnp.int32, 1, 2), shape(bool, 1, 2))
  ways = ((r"^vision/patch_in/kernel$", patches(vision.patch)), (r"^vision/(class|position)$", ROW))
  return Layout(blip.ImageReward(vision, text, tuple(config["head"])), example, RULES, ways, {"blocks": 0})


def renamed(tensors: Mapping) -> dict:
  """{name: array} of ImageReward.pt as a folder holds them: queries, keys and values apart, which are one tensor there,
  and without what nothing uses."""
  out = {}
  for name, array in tensors.items():
    if ".attn.qkv." in name:
      out |= {name.replace("qkv", one): part for one, part in zip("qkv", np.split(array, 3), strict=True)}
    elif not re.search(BESIDE, name):
      out[name] = array
  return out


def describe(tensors: Mapping) -> dict:
  """The config.json of {name: array} of ImageReward.pt. ValueError names what it must have."""
  def shape(name):
    if name not in tensors:
      raise ValueError(f"convert: {CLASS} must have {name}, but this one begins with {', '.join(sorted(tensors)[:3])}; "
                       "give the tensors of ImageReward.pt under their own names")
    return tensors[name].shape

  def sizes(width, layers, dense):
    held = {name[len(layers):].split(".")[0] for name in tensors if name.startswith(layers)}
    return {"hidden_size": width, "intermediate_size": shape(f"{layers}0.{dense}.weight")[0], "hidden_act": "gelu",
            "num_hidden_layers": len(held), "num_attention_heads": max(width // CHANNELS, 1)}

  width, _, _, patch = shape(f"{VISION}.patch_embed.proj.weight")
  side = math.isqrt(shape(f"{VISION}.pos_embed")[1] - 1) * patch
  vocab, wide = shape(f"{TEXT}.embeddings.word_embeddings.weight")
  seen = {**sizes(width, f"{VISION}.blocks.", "mlp.fc1"), "image_size": side, "patch_size": patch,
          "layer_norm_eps": 1e-6}
  said = {**sizes(wide, f"{TEXT}.encoder.layer.", "intermediate.dense"), "vocab_size": vocab, "layer_norm_eps": 1e-12,
          "encoder_hidden_size": width,
          "max_position_embeddings": shape(f"{TEXT}.embeddings.position_embeddings.weight")[0]}
  return {"architectures": [CLASS], "model_type": "blip", "vision_config": seen, "text_config": said,
          "head": [shape(f"mlp.layers.{place}.weight")[0] for place in PLACES[:-1]]}
