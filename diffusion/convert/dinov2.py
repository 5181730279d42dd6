"""transformers' Dinov2Model and Dinov2WithRegistersModel <-> nets/vit.py.

The largest size has gated MLPs and is refused. The vector that pretraining put in place of patches is kept as it is.
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffusion.convert.core import Layout, Way, patches, refuse
from diffusion.nets import text, vit

CLASS, REGISTERS = "Dinov2Model", "Dinov2WithRegistersModel"
SINGLE = Way(lambda a: a[0], lambda a: a[None])
RULES = (
  (r"^patch_in/", "embeddings/patch_embeddings/projection/"), (r"^class$", "embeddings/cls_token"),
  (r"^position$", "embeddings/position_embeddings"), (r"^mask$", "embeddings/mask_token"),
  (r"^registers$", "embeddings/register_tokens"), (r"^norm/", "layernorm/"), (r"^blocks/", "encoder/layer/{i}/"),
  (r"/q/", "/attention/attention/query/"), (r"/k/", "/attention/attention/key/"),
  (r"/v/", "/attention/attention/value/"), (r"/out/", "/attention/output/dense/"), (r"/fc([12])/", r"/mlp/fc\1/"),
  (r"/gain([12])$", r"/layer_scale\1/lambda1"),
)
ALIASES = tuple((rf"\.attention\.{new}_proj\.", f".attention.{old}.") for new, old in (  # release 5's own names
  ("q", "attention.query"), ("k", "attention.key"), ("v", "attention.value"), ("o", "output.dense")))


def make(config: Mapping, dtype: str = "float32", remat: bool | str = False) -> Layout:
  """From a config.json. ValueError names what the network does not have."""
  registers = (config.get("architectures") or [CLASS])[0] == REGISTERS
  refuse(f"convert: {CLASS}", config, {
    "hidden_act": tuple(text.ACTIVATIONS)[1:], "use_swiglu_ffn": (False,), "qkv_bias": (True,), "num_channels": (3,)})
  width, patch = config["hidden_size"], config["patch_size"]
  net = vit.make("dinov2_l14", image=config["image_size"], patch=patch, width=width, depth=config["num_hidden_layers"],
                 heads=config["num_attention_heads"], inner=int(width * config.get("mlp_ratio", 4)),
                 activation=config.get("hidden_act", "gelu"), epsilon=config.get("layer_norm_eps", 1e-6),
                 registers=config.get("num_register_tokens", 4) * registers,
                 mask=registers or config.get("use_mask_token", True),
                 places="antialias" if registers else "bicubic", remat=remat, dtype=dtype)
  ways = ((r"^(class|position|registers)$", SINGLE), (r"^patch_in/kernel$", patches(patch)))
  example = lambda: (jax.ShapeDtypeStruct((1, patch, patch, 3), jnp.float32),)
  return Layout(net, example, RULES, ways, {"blocks": 0}, ALIASES)
