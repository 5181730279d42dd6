"""Writes a folder of a small Qwen2.5-VL in transformers' layout, with random weights, to be trained from nothing.

A picture of 32 x 32 takes 16 tokens: each is a patch of 8 pixels, or 2 x 2 patches of 4, which costs four times as much
in the tower. The tokenizer has one token for each word that it is given, with and without a space in front, for the
words of the template, and for each digit; any other text falls into bytes, so that every text comes back from its
tokens as it was. Left out: towers with windows.
transformers reads the network, the tokenizer and the template; its own processor of pictures only where patch and merge
sizes of preprocessor_config.json are passed on to it.
"""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from diffusion import weights
from diffusion.convert import core, qwen

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")    # of judges that reason
CUT = r"</?[a-z]+>| ?[A-Za-z]+| ?[0-9]|\s|[^\sA-Za-z0-9]"  # what a token may be at the most
ROLES = ("user", "assistant", "system")                   # whom the template names
FRAMES = 2
LEAST, MOST = 16 ** 2, 128 ** 2                            # pixels of a picture
WINDOW = 32  # pixels: no block looks at windows alone, but a tower's grid is filled up to whole ones
CONTEXT = 2048
TEMPLATE = (
  "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% if turn.content is string %}{{ turn.content }}{% else %}"
  "{% for part in turn.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|"
  "{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def write(folder: Path | str, words: tuple, *, width: int = 128, depth: int = 4, tower: int = 3, heads: int = 4,
          patch: int = 8, merge: int = 1, seed: int = 0) -> Path:
  """Writes the folder and returns it.

  Args:
    words: texts whose words become tokens, in any order. width, heads: of the language model and of the tower; depth,
      tower: their layers. patch: its side in pixels; merge: patches of a token's side. seed: of the weights, float32.

  Raises: ValueError for sizes that do not fit each other.
  """
  if min(width, depth, tower, heads) < 1 or width % (8 * heads):
    raise ValueError(f"small model: width = {width}, depth = {depth}, tower = {tower}, heads = {heads}: all must be at "
                     "least 1, and width a multiple of 8 * heads, since pairs turn in three directions; change them")
  if min(patch, merge) < 1 or WINDOW % (patch * merge):
    raise ValueError(f"small model: patch = {patch} and merge = {merge} must be at least 1, and {WINDOW} pixels a "
                     "multiple of their product; change them")
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  made = tokenizer(words)
  made.save(str(folder / "tokenizer.json"))
  config = described(made, width, depth, tower, heads, patch, merge)
  files = {"config": config, "generation_config": {"eos_token_id": [config["eos_token_id"]], "do_sample": False},
           "preprocessor_config": {**PIXELS, "patch_size": patch, "merge_size": merge},
           "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
                                "pad_token": "<|endoftext|>", "model_max_length": CONTEXT}}
  for name, held in files.items():
    weights.write(folder / f"{name}.json", json.dumps(held, indent=1) + "\n")
  weights.write(folder / "chat_template.jinja", TEMPLATE)
  layout = qwen.make(config)
  draw = jax.jit(lambda key: core.initial(layout, key, *(jnp.zeros(a.shape, a.dtype) for a in layout.example())))
  core.save(folder, "model", layout, draw(jax.random.key(seed)))
  return folder


def tokenizer(words: tuple) -> Tokenizer:
  """Bytes, then words, tags and special tokens."""
  cut = pre_tokenizers.Split(Regex(CUT), "isolated")
  byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  cuts = [piece.strip() for text in (*words, *ROLES) for piece, _ in cut.pre_tokenize_str(text)]
  listed = sorted({piece for piece in cuts if piece} | set("0123456789") | set(TAGS))
  spaced = [form for word in listed for form in (word, f" {word}")]
  bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = dict.fromkeys([*bytes_, *(byte.pre_tokenize_str(form)[0][0] for form in spaced)])
  made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], ignore_merges=True))
  made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([cut, byte]), decoders.ByteLevel()
  made.add_special_tokens(list(SPECIAL))
  return made


def described(words: Tokenizer, width: int, depth: int, tower: int, heads: int, patch: int, merge: int) -> dict:
  """The config.json."""
  ids = {f"{name}_token_id": words.token_to_id(f"<|{token}|>") for name, token in (
    ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"),
    ("eos", "im_end"), ("pad", "endoftext"))}
  inner, pairs = -(-width * 8 // 3 // 16) * 16, width // heads // 2
  turning = {"rope_type": "default", "rope_theta": 1e4,
             "mrope_section": [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]}
  text = {"model_type": "qwen2_5_vl_text", "vocab_size": words.get_vocab_size(), "hidden_size": width,
          "num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": max(heads // 2, 1),
          "intermediate_size": inner, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
          "tie_word_embeddings": True, "rope_parameters": turning, "use_sliding_window": False, "bos_token_id": None,
          "eos_token_id": ids["eos_token_id"], "pad_token_id": ids["pad_token_id"]}
  vision = {"model_type": "qwen2_5_vl_vision", "depth": tower, "hidden_size": width, "num_heads": heads,
            "intermediate_size": inner, "out_hidden_size": width, "patch_size": patch, "spatial_merge_size": merge,
            "temporal_patch_size": FRAMES, "window_size": WINDOW, "fullatt_block_indexes": list(range(tower)),
            "tokens_per_second": 2}
  return {"architectures": [qwen.CLASSES[0]], "model_type": "qwen2_5_vl", "dtype": "float32",
          "tie_word_embeddings": True, **ids, "text_config": text, "vision_config": vision}


PIXELS = {"image_processor_type": "Qwen2VLImageProcessor", "temporal_patch_size": FRAMES, "min_pixels": LEAST,
          "max_pixels": MOST, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
