"""The peer of the benchmark of rewards: transformers' CLIP, BLIP and DINOv2 in plain PyTorch, as scripts around them
are written, in float32 on the CPU; and the small random checkpoints that both sides open.

Pictures are scaled by PyTorch's bicubic interpolation with antialiasing, which has a gradient. Prompts of CLIP are
padded to the longest of a batch, ImageReward's to 35 tokens, as its release has it. Left out: torch.compile. Needs
torch and transformers.
"""
import json
import re
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors import torch as st
from tokenizers import pre_tokenizers, processors, trainers
from torch import nn
from transformers.models.blip import modeling_blip_text

from launch.judging import CAPTIONS
from launch.scoring import Shown, Work
from rewards import convert

ENDS = ("<|startoftext|>", "<|endoftext|>")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NAMES = (  # a tensor's name in ImageReward -> that in its release, which has Salesforce's names of BLIP
  (r"^eye\.embeddings\.class_embedding", "eye.cls_token"), (r"^eye\.embeddings\.position_embedding", "eye.pos_embed"),
  (r"^eye\.embeddings\.patch_embedding", "eye.patch_embed.proj"), (r"^eye\.encoder\.layers", "eye.blocks"),
  (r"^eye\.post_layernorm", "eye.norm"), (r"\.self_attn\.qkv", ".attn.qkv"),
  (r"\.self_attn\.projection", ".attn.proj"), (r"\.layer_norm([12])", r".norm\1"), (r"^eye", "blip.visual_encoder"),
  (r"^text", "blip.text_encoder"), (r"^mlp", "mlp.layers"),
)


def head(width: int, widths: tuple) -> nn.Sequential:
  """Linear layers to one number, with dropout behind the first three, as ImageReward's and LAION's are numbered."""
  sizes = (width, *widths, 1)
  linear = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
  drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
  return nn.Sequential(linear[0], drop[0], linear[1], drop[1], linear[2], drop[2], *linear[3:])


class ImageReward(nn.Module):
  """transformers' BLIP blocks put together as ImageReward's network is; sizes as BlipVisionConfig and BlipTextConfig
  name them. (pixels [B 3 H W], tokens [B L], mask [B L]) -> (number [B], hidden [B L width])."""

  def __init__(self, vision: dict, text: dict, widths: tuple):
    super().__init__()
    self.eye = transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision, layer_norm_eps=1e-6))
    self.text = modeling_blip_text.BlipTextModel(transformers.BlipTextConfig(
      **text, encoder_hidden_size=vision["hidden_size"], is_decoder=True), add_pooling_layer=False)
    self.mlp = head(text["hidden_size"], widths)

  def forward(self, pixels, tokens, mask):
    image = self.eye(pixels).last_hidden_state
    hidden = self.text(tokens, attention_mask=mask, encoder_hidden_states=image, is_decoder=False).last_hidden_state
    return self.mlp(hidden[:, 0])[:, 0], hidden


def released(name: str) -> str:
  """The name that a tensor of ImageReward has in its release."""
  for pattern, replacement in NAMES:
    name = re.sub(pattern, replacement, name)
  return name


def write(root: Path, work: Work) -> None:
  """Folders clip, dinov2 and image_reward, and head.safetensors."""
  torch.manual_seed(0)
  words = byte_pairs()
  ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "vocab_size": len(words)}
  width = work.text["hidden_size"]
  saved(root / "clip", work, transformers.CLIPModel(transformers.CLIPConfig(
    vision_config=work.vision, text_config={**work.text, **ids}, projection_dim=width)))
  words.save_pretrained(root / "clip")
  less = {name: value for name, value in work.vision.items() if name != "intermediate_size"}
  saved(root / "dinov2", work, transformers.Dinov2Model(transformers.Dinov2Config(**less)))
  (root / "words").mkdir()
  text = sorted({word for caption in CAPTIONS for word in re.findall(r"\w+|,", caption)})
  (root / "words" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *text]))
  made = scattered(ImageReward(*of_blip(work, root))).state_dict()
  st.save_file({released(name): value for name, value in made.items()}, root / "ImageReward.safetensors")
  convert.convert(str(root / "ImageReward.safetensors"), str(root / "image_reward"), str(root / "words"))
  st.save_file({f"layers.{name}": value for name, value in scattered(head(width, work.head)).state_dict().items()},
               root / "head.safetensors")


def of_blip(work: Work, root: Path) -> tuple:
  """What ImageReward is made of."""
  vocab = len((root / "words" / "vocab.txt").read_text().splitlines())
  return work.vision, {**work.text, "vocab_size": vocab, "max_position_embeddings": 512}, work.head


def byte_pairs():
  """A tokenizer whose merges come from the captions, between CLIP's two special tokens."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.train_from_iterator(CAPTIONS, trainers.BpeTrainer(
    vocab_size=400, special_tokens=list(ENDS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  made.post_processor = processors.TemplateProcessing(
    single=f"{ENDS[0]} $A {ENDS[1]}", special_tokens=[(word, made.token_to_id(word)) for word in ENDS])
  return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=ENDS[0], eos_token=ENDS[1],
                                              pad_token=ENDS[1])


def scattered(module: nn.Module) -> nn.Module:
  """Larger weights than usual, so that scores depend on pictures and prompts."""
  with torch.no_grad():
    for p in module.parameters():
      p.add_(torch.randn_like(p) * (0.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1))
  return module.eval()


def saved(folder: Path, work: Work, module: nn.Module) -> None:
  side = work.vision["image_size"]
  scattered(module).save_pretrained(folder)
  (folder / "preprocessor_config.json").write_text(json.dumps({
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side},
    "crop_size": {"height": side, "width": side}}))


class Peer:
  """The networks of `write`."""

  def __init__(self, root: Path, work: Work):
    self.side, width = work.vision["image_size"], work.text["hidden_size"]
    self.clip = transformers.CLIPModel.from_pretrained(root / "clip").eval()
    self.clip_words = transformers.AutoTokenizer.from_pretrained(root / "clip")
    self.dinov2 = transformers.Dinov2Model.from_pretrained(root / "dinov2").eval()
    self.blip, held = ImageReward(*of_blip(work, root)).eval(), st.load_file(root / "ImageReward.safetensors")
    self.blip.load_state_dict({name: held[released(name)] for name in self.blip.state_dict()})
    self.blip_words = transformers.BertTokenizer.from_pretrained(root / "words")
    self.head = head(width, work.head).eval()
    self.head.load_state_dict({name.removeprefix("layers."): value
                               for name, value in st.load_file(root / "head.safetensors").items()})
    for module in (self.clip, self.dinov2, self.blip, self.head):
      module.requires_grad_(False)

  def score(self, name: str, batch: Shown) -> np.ndarray:
    """[B]"""
    with torch.no_grad():
      return self.total(name, self.look(batch.media), batch).numpy()

  def slope(self, name: str, batch: Shown) -> np.ndarray:
    """[B H W 3], of the sum of the scores."""
    media = torch.tensor(batch.media, requires_grad=True)
    self.total(name, self.look(media), batch).sum().backward()
    return media.grad.numpy()

  def look(self, media) -> torch.Tensor:
    """[B H W 3] in [0, 1] -> [B 3 side side], normalised."""
    x = torch.as_tensor(media).permute(0, 3, 1, 2)
    x = nn.functional.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

  def total(self, name: str, pixels: torch.Tensor, batch: Shown) -> torch.Tensor:
    if name == "image_reward":
      said = self.blip_words(batch.prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
      found, _ = self.blip(pixels, said["input_ids"], said["attention_mask"])
      return (found - 0.16717362830052426) / 1.0333394966054072
    if name.startswith("reconstruction"):
      see = self.seen if name.endswith("clip") else self.seen_by_dinov2
      with torch.no_grad():
        wanted = see(self.look(batch.given / np.float32(255)))
      return (see(pixels) * wanted).sum(-1)
    if name == "aesthetic":
      return self.head(self.seen(pixels))[:, 0]
    said = self.clip_words(batch.prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
      said = self.clip.get_text_features(**said).pooler_output
    cosine = (self.seen(pixels) * nn.functional.normalize(said)).sum(-1)
    return cosine * self.clip.logit_scale.exp() if name == "pickscore" else cosine

  def seen(self, pixels: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(self.clip.get_image_features(pixels).pooler_output)

  def seen_by_dinov2(self, pixels: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(self.dinov2(pixels).last_hidden_state[:, 0])
