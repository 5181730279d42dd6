"""The language model against transformers' Qwen2ForCausalLM with the same random weights."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusion import decode
from diffusion.nets import lm

transformers = pytest.importorskip("transformers")

RULES = [
  (r"^model\.", ""), (r"embed_tokens\.weight", "token/embedding"), (r"self_attn\.([qkv])_proj", r"attn/\1"),
  (r"self_attn\.o_proj", "attn/out"), (r"mlp\.(gate|up|down)_proj", r"\1"), (r"input_layernorm", "norm1"),
  (r"post_attention_layernorm", "norm2"), (r"lm_head", "head"),
]
VOCAB, COLUMNS = 40, 9


def renamed(state: dict) -> dict:
  """A torch state dict -> our nested parameters; layers are stacked."""
  flat, stacks = {}, {}
  for name, value in state.items():
    array, layer = value.numpy(), re.search(r"layers\.(\d+)\.", name)
    name = name.replace(layer[0], "") if layer else name
    for pattern, to in RULES:
      name = re.sub(pattern, to, name)
    name = name.replace(".", "/")
    if name.endswith("/weight"):
      name, array = (name[:-6] + "scale", array) if array.ndim == 1 else (name[:-6] + "kernel", array.T)
    if layer:
      stacks.setdefault(f"blocks/{name}", []).append(array)
    else:
      flat[name] = array
  tree = {}
  for name, array in {**flat, **{k: np.stack(v) for k, v in stacks.items()}}.items():
    *path, leaf = name.split("/")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(array)
  return tree


def both(heads, kv, tied, theta=1e4):
  """(transformers' module, our network, our parameters); every weight moved, so that no norm is the identity."""
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=heads,
    num_key_value_heads=kv, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": theta})
  module = transformers.Qwen2ForCausalLM(config).eval()
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * 0.1)
  state = {k: v for k, v in module.state_dict().items() if not (tied and k.startswith("lm_head"))}
  net = lm.make("qwen2_0.5b", vocab=VOCAB, width=32, inner=48, depth=3, heads=heads, kv=kv, tied=tied, theta=theta)
  return module, net, {"params": renamed(state)}


def theirs(module, **inputs):
  with torch.no_grad():
    return module(**{k: torch.as_tensor(np.asarray(v)) for k, v in inputs.items()}).logits.numpy()


def logits_of(net, params, *inputs):
  return net.apply(params, net.apply(params, *inputs)[0], method="logits")


def tokens_of(seed=0):
  return np.random.default_rng(seed).integers(0, VOCAB, (3, COLUMNS))


@pytest.mark.parametrize("heads,kv,tied,theta", [(4, 2, True, 1e4), (4, 4, False, 1e6), (8, 1, False, 1e4),
                                                 (2, 2, True, 1e6)])
def test_same_as_qwen2(heads, kv, tied, theta):
  module, net, params = both(heads, kv, tied, theta)
  tokens = tokens_of()
  want = theirs(module, input_ids=tokens)
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(jax.jit(logits_of, static_argnums=0)(net, params, tokens), want, atol=1e-4)


@pytest.mark.parametrize("heads,kv,tied", [(4, 2, True), (4, 4, False)])
def test_prefill_and_decode_are_their_full_forward(heads, kv, tied):
  """Four columns at once, then one after the other from the cache."""
  module, net, params = both(heads, kv, tied)
  tokens = tokens_of()
  want = theirs(module, input_ids=tokens)
  call = jax.jit(lambda t, cache: net.apply(params, t, None, None, cache))
  hidden, cache = call(tokens[:, :4], lm.empty(net, 3, COLUMNS))
  found = [hidden]
  for i in range(4, COLUMNS):
    hidden, cache = call(tokens[:, i:i + 1], cache)
    found.append(hidden)
  logits = net.apply(params, jnp.concatenate(found, 1), method="logits")
  np.testing.assert_allclose(logits, want, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_theirs(side):
  module, net, params = both(4, 2, True)
  tokens, lengths = tokens_of(), np.array([[9], [5], [2]])
  mask = np.arange(COLUMNS) < lengths if side == "right" else np.arange(COLUMNS) >= COLUMNS - lengths
  places = np.maximum(np.cumsum(mask, 1) - 1, 0)
  want = theirs(module, input_ids=tokens, attention_mask=mask.astype(np.int64), position_ids=places)
  found = np.asarray(logits_of(net, params, tokens, None, mask))
  np.testing.assert_allclose(found[mask], want[mask], atol=1e-4)


def test_a_prefix_is_their_embeddings():
  module, net, params = both(4, 2, True)
  tokens = tokens_of()
  prefix = np.random.default_rng(1).normal(size=(3, 4, 32)).astype(np.float32)
  words = module.model.embed_tokens(torch.as_tensor(tokens)).detach().numpy()
  want = theirs(module, inputs_embeds=np.concatenate([prefix, words], 1))
  np.testing.assert_allclose(logits_of(net, params, tokens, prefix), want, atol=1e-4)


def test_greedy_answers_are_theirs():
  module, net, params = both(4, 2, False)
  tokens = tokens_of()[:, :3]
  with torch.no_grad():
    ids = torch.as_tensor(tokens)
    want = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0,
                           eos_token_id=None).numpy()
  keys = jax.random.split(jax.random.key(0), 3)
  draw = jax.jit(lambda p: decode.sample(net, p, decode.Prompt(tokens=tokens), keys, length=6, stop=(), temperature=0))
  np.testing.assert_array_equal(draw(params["params"]).tokens, want[:, 3:])
