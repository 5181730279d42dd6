"""Whole vision-language models beside transformers: prompts, positions, logits, and greedy answers over 64 tokens."""
import jax
import numpy as np
import pytest
import torch
import vlms

from diffusion import decode, vlm

LENGTH, GAP = 64, 2e-4   # tokens; how much the best logit must lead for the choice to be the same

MODELS = {
  "qwen2_5": {"kind": "2_5"},
  "qwen2_5-deep": {"kind": "2_5", "seed": 1, "vision": {"depth": 4, "fullatt_block_indexes": [0, 3], "num_heads": 4},
                   "text": {"num_key_value_heads": 4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}},
  "qwen2": {"kind": "2", "seed": 2},
  "llava": {"seed": 4}, "llava-wide": {"seed": 5, "most": 1, "vision": {"image_size": 24, "num_attention_heads": 2},
                                       "grid": ((2, 2), (1, 3), (3, 3))},
  "qwen2-one": {"kind": "2", "seed": 3, "text": {"num_key_value_heads": 1, "hidden_size": 48,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 1]}}, "pixels": (28 * 28, 28 * 28 * 30)},
}
MORE = {  # a minute of compiling
  "qwen2_5-tied": {"kind": "2_5", "seed": 6, "tie_word_embeddings": True, "text": {"num_hidden_layers": 3}},
  "qwen2_5-windows": {"kind": "2_5", "seed": 7, "text": {"rope_theta": 500.0, "rms_norm_eps": 1e-3},
                      "vision": {"window_size": 56, "fullatt_block_indexes": [2], "num_heads": 4}},
  "qwen2-tied": {"kind": "2", "seed": 8, "tie_word_embeddings": True, "vision": {"depth": 3, "mlp_ratio": 3}},
  "qwen2-wide": {"kind": "2", "seed": 9, "vision": {"num_heads": 4},
                 "text": {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 700.0,
                          "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}}},
  "llava-deep": {"seed": 10, "text": {"num_hidden_layers": 3, "num_key_value_heads": 4},
                 "vision": {"num_hidden_layers": 3}},
  "llava-few": {"seed": 11, "text": {"num_key_value_heads": 1, "hidden_size": 48}, "grid": ((1, 1), (2, 2)), "most": 4},
}


def picture(rng, height, width):
  coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
  return np.kron(coarse, np.ones((-(-height // 4), -(-width // 4), 1), np.uint8))[:height, :width]


def conversations(rng):
  image = lambda *size: {"type": "image", "image": picture(rng, *size)}
  clip = {"type": "video", "video": np.stack([picture(rng, 60, 90) for _ in range(4)]), "fps": 8.0}  # short, for the
  # library counts on by the picture's side, see chat.positions
  word = lambda text: {"type": "text", "text": text}
  return {
    "text": [{"role": "user", "content": "Say something."}],
    "image": [{"role": "user", "content": [image(75, 130), word("What is it?")]}],
    "images": [{"role": "system", "content": "Be brief."},
               {"role": "user", "content": [word("One: "), image(200, 41), image(56, 56), word("Which is better?")]}],
    "video": [{"role": "user", "content": [clip, word("What moves?")]}],
  }


def patches(pixels, patch=14, merge=2):
  """[S T H W 3] -> transformers' [S h w, 3 T patch patch], cells of one merged cell beside each other."""
  s, t, height, width, c = pixels.shape
  h, w = height // patch // merge, width // patch // merge
  out = pixels.reshape(s, t, h, merge, patch, w, merge, patch, c).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return out.reshape(s * h * w * merge * merge, -1)


def reference(model, row, sizes):
  """What transformers takes for one conversation, from our tokens and pixels. sizes: (height, width) of its images."""
  if "llava" in model.config.model_type:
    return of_llava(row, model.config, sizes)
  ids = torch.tensor(row.ids.astype(np.int64))[None]
  config = model.config
  kinds = torch.where(ids == config.image_token_id, 1, torch.where(ids == config.video_token_id, 2, 0))
  given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
  seen = [s for _, s in row.shown]
  if seen:
    name = "video" if (kinds == 2).any() else "image"
    values = torch.tensor(np.concatenate([patches(s.pixels) for s in seen]))
    given["pixel_values" + ("_videos" if name == "video" else "")] = values
    given[f"{name}_grid_thw"] = torch.tensor([[s.grid[0], 2 * s.grid[1], 2 * s.grid[2]] for s in seen])
    if name == "video" and config.model_type == "qwen2_5_vl":
      given["second_per_grid_ts"] = torch.tensor([s.seconds for s in seen])
  return given


def of_llava(row, config, sizes):
  ids = torch.tensor(row.ids.astype(np.int64))[None]
  given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
  crops = [torch.tensor(seen.pixels[:, 0]).permute(0, 3, 1, 2) for _, seen in row.shown]
  if (ids == config.video_token_id).any():
    return {**given, "pixel_values_videos": torch.stack(crops)}
  if crops:
    given |= {"pixel_values": torch.stack(crops), "image_sizes": torch.tensor(sizes),
              "batch_num_images": torch.tensor([len(sizes)])}
  return given


def sizes_of(talk):
  return [part["image"].shape[:2] for turn in talk if not isinstance(turn["content"], str) for part in turn["content"]
          if part["type"] == "image"]


@pytest.fixture(scope="module", params=[*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  make = vlms.llava if request.param.startswith("llava") else vlms.qwen
  theirs, _ = make(folder, **{**MODELS, **MORE}[request.param])
  model = vlm.open_(folder)
  return theirs, model, vlm.load(model), vlm.speaker(model)


def test_logits_and_positions_of_a_padded_batch(pair):
  theirs, model, params, _ = pair
  talks = list(conversations(np.random.default_rng(0)).values())
  rows = [vlm.row(model, talk) for talk in talks]
  arrays = vlm.batch(model, rows)

  @jax.jit
  def logits(params, arrays):
    given = vlm.prompt(model.net, params, arrays)
    tokens, prefix, mask = decode.laid(given)
    hidden, _ = model.net.apply({"params": params}, tokens, prefix, mask, None, given.positions)
    return model.net.apply({"params": params}, hidden, method="logits")
  found = np.asarray(logits(params, arrays))
  for i, row in enumerate(rows):
    given = reference(theirs, row, sizes_of(talks[i]))
    with torch.no_grad():
      wanted = theirs(**given).logits[0].numpy()
    n = len(row.ids)
    if row.shown and model.net.lm.sections:
      grids = {k: given.get(k) for k in ("image_grid_thw", "video_grid_thw")}
      more = {k: given[k] for k in ("second_per_grid_ts",) if k in given}
      places, _ = theirs.model.get_rope_index(given["input_ids"], given["mm_token_type_ids"], **grids, **more)
      np.testing.assert_array_equal(arrays["positions"][i, :n], places[:, 0].T.numpy())
    np.testing.assert_allclose(found[i, :n], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_greedy_answers_are_the_same_tokens(pair):
  theirs, model, params, speaker = pair
  talks = conversations(np.random.default_rng(1))
  found = speaker.answer(params, list(talks.values()), jax.random.split(jax.random.key(0), len(talks)), LENGTH)
  for (name, talk), answer in zip(talks.items(), found, strict=True):
    given = reference(theirs, vlm.row(model, talk), sizes_of(talk))
    out = theirs.generate(**given, do_sample=False, max_new_tokens=LENGTH, output_scores=True,
                          return_dict_in_generate=True)
    wanted = out.sequences[0, given["input_ids"].shape[1]:].numpy()
    best = torch.stack(out.scores)[:, 0].topk(2).values
    close = np.flatnonzero((best[:, 0] - best[:, 1]).numpy() < GAP)
    until = min([len(wanted), *close])
    assert until > LENGTH // 4 or until == len(wanted), f"{name}: no lead to compare by"
    assert answer.tokens[:until].tolist() == wanted[:until].tolist(), name
