"""transformers' CLIPModel and CLIPVisionModelWithProjection (OpenAI's CLIP, OpenCLIP's, PickScore) <-> nets/clip.py."""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.convert import clip
from diffusion.convert.core import Layout, Way, patches, refuse
from diffusion.nets import text, vit
from diffusion.nets.clip import Clip

CLASS, PICTURES = "CLIPModel", "CLIPVisionModelWithProjection"
ROW = Way(lambda a: a[None], lambda a: a[0])  # also of a scalar
SAID, SEEN = "text_model", "vision_model"
RULES = (
  (r"^text/projection/", "text_projection/"), (r"^text/token/", f"{SAID}/embeddings/token_embedding/"),
  (r"^text/position$", f"{SAID}/embeddings/position_embedding/embedding"),
  (r"^text/norm/", f"{SAID}/final_layer_norm/"), (r"^text/blocks/", f"{SAID}/encoder/layers/{{i}}/"),
  (r"^vision/patch_in/", f"{SEEN}/embeddings/patch_embedding/"),
  (r"^vision/class$", f"{SEEN}/embeddings/class_embedding"),
  (r"^vision/position$", f"{SEEN}/embeddings/position_embedding/embedding"),
  (r"^vision/pre_norm/", f"{SEEN}/pre_layrnorm/"), (r"^vision/norm/", f"{SEEN}/post_layernorm/"),
  (r"^vision/blocks/", f"{SEEN}/encoder/layers/{{i}}/"), *clip.LAYER,
)
# What an entry means that a config.json leaves out, as releases from 4.26 on do with these.
SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
OF_TEXT = {**SHARED, "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
           "max_position_embeddings": 77}
OF_VISION = {**SHARED, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3,
             "image_size": 224, "patch_size": 32}


def make(config: Mapping, dtype: str = "float32", remat: bool | str = False) -> Layout:
  """From a config.json. ValueError names what the network does not have."""
  alone = (config.get("architectures") or [CLASS])[0] == PICTURES
  seen = {**OF_VISION, **(config if alone else config.get("vision_config") or {})}
  said = {**OF_TEXT, **(config.get("text_config") or {})}
  refuse(f"convert: {CLASS}", seen, {"hidden_act": tuple(dict.fromkeys(("quick_gelu", *text.ACTIVATIONS))),
                                     "num_channels": (3,)})
  width = config.get("projection_dim", 512)
  vision = vit.make("clip_l14", image=seen["image_size"], patch=seen["patch_size"], width=seen["hidden_size"],
                    depth=seen["num_hidden_layers"], heads=seen["num_attention_heads"],
                    inner=seen["intermediate_size"], activation=seen["hidden_act"], epsilon=seen["layer_norm_eps"],
                    remat=remat, dtype=dtype)
  pixels = jax.ShapeDtypeStruct((1, vision.image, vision.image, 3), jnp.float32)
  ways = ((r"^(vision/class|logit_scale)$", ROW), (r"^vision/patch_in/kernel$", patches(vision.patch)))
  older = [(f"{SEEN}.embeddings.position_ids", (vision.image // vision.patch) ** 2 + 1)]
  words = None
  if not alone:
    words = clip.make({**said, "projection_dim": width, "architectures": [clip.PROJECTED]}, dtype, remat).net
    older.append((f"{SAID}.embeddings.position_ids", words.length))
  example = lambda: (pixels,) if alone else (pixels, jax.ShapeDtypeStruct((1, 2), jnp.int32))
  return Layout(Clip(vision, words, width), example, RULES, ways, {"blocks": 0},
                older={name: ((1, n), lambda n=n: np.arange(n)[None]) for name, n in older})
