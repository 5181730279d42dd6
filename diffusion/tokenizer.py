"""A word-level tokenizer in the `tokenizers` file format, as transformers' PreTrainedTokenizerFast loads it.

`load` takes a folder with a tokenizer.json, or the name of one that ships with the package. "words" knows the captions
of Scenes and of the digits, one token a word. Text is NFC-normalised and lower-cased and punctuation is dropped, so
that no prompt can spell <eos>. The library is imported when one is made or read, since benchmarks do without. Left
out: sub-word models.
"""
import collections
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

SHIPPED = Path(__file__).parent / "tokenizers"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
# Of the tokenizer "words". The order gives the ids, and trained weights depend on them: only ever append.
WORDS = """
a an and exactly with of the that is in on at to are there photo picture image handwritten object objects shape shapes
zero one two three four five six seven eight nine
circle circles square squares triangle triangles red green blue yellow purple cyan grey
left right top bottom above below over under center middle side
moving moves slowly quickly up down upwards downwards leftwards rightwards small large
orange white black pink brown gray star stars diamond diamonds ring rings cross crosses
showing shows scene background dark video clip corner next between digit number towards from still fast slow
no not which both same different its it
""".split()

log = logging.getLogger(__name__)


class Tokenizer(NamedTuple):
  """encode([prompt], length) -> tokens int32 [B length], mask bool [B length]; both ends count and always stand.

  ValueError for a prompt that is no string. Longer prompts are cut; cut prompts and unknown words are counted.
  """
  encode: Callable
  decode: Callable   # ([id]) -> str, without special tokens
  save: Callable     # (folder) -> None; tokenizer.json and what transformers wants beside it
  size: int          # of the vocabulary; ids are smaller
  counts: dict       # {"prompts", "cut", "unknown"} since it was loaded


def train(captions: Iterable[str], size: int = None) -> Tokenizer:
  """A tokenizer of the words in these captions (or of a list of words), in order of appearance, after special ones.

  size: of the vocabulary with its 4 special tokens; the rarest words are left out. None keeps all.
  """
  import tokenizers
  from tokenizers import normalizers, processors
  splitter, counts = pieces(), collections.Counter()
  for caption in captions:
    normal = unicodedata.normalize("NFC", text(caption)).lower()
    counts.update(word for word, _ in splitter.pre_tokenize_str(normal))
  if size is not None and size <= len(SPECIAL):
    raise ValueError(f"tokenizer: size = {size} must be more than the {len(SPECIAL)} special tokens; raise it")
  common = {word for word, _ in counts.most_common(None if size is None else size - len(SPECIAL))}
  vocab = {word: i for i, word in enumerate([*SPECIAL, *(word for word in counts if word in common)])}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
  made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  made.pre_tokenizer = splitter
  made.post_processor = processors.TemplateProcessing(
    single="<bos> $A <eos>", special_tokens=[(name, vocab[name]) for name in ("<bos>", "<eos>")])
  return wrap(made, "trained")


def pieces() -> Any:
  """The library's splitter into runs of letters and digits; everything between them is dropped."""
  import tokenizers
  from tokenizers import pre_tokenizers
  return pre_tokenizers.Split(tokenizers.Regex(r"\w+"), "removed", invert=True)


def load(name: str | Tokenizer) -> Tokenizer:
  """The tokenizer of a folder, a shipped one by name, or the one that is given. ValueError if there is none, or if its
  file cannot be read."""
  if isinstance(name, Tokenizer):
    return name
  import tokenizers
  for folder in (Path(name), SHIPPED / name):
    file = folder / "tokenizer.json"
    if file.is_file():
      try:
        made = tokenizers.Tokenizer.from_file(str(file))
      except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {file} cannot be read ({error}); it must be a file of the `tokenizers` library, "
                         "write it again with `train(...).save(folder)`") from error
      return wrap(made, str(file))
  names = sorted(p.name for p in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
  raise ValueError(f"tokens = {str(name)!r} is no folder with a tokenizer.json and no shipped tokenizer "
                   f"({', '.join(names)}); give one of them")


def text(prompt) -> str:
  """A prompt as it is. ValueError if it is no string."""
  if isinstance(prompt, str):
    return str(prompt)  # numpy's string scalars too
  raise ValueError(f"prompt = {prompt!r} is of type {type(prompt).__name__}, but prompts are strings; convert it")


def wrap(made: Any, source: str) -> Tokenizer:
  """The pure interface over a tokenizer of the library, which must know the four special tokens."""
  missing = [name for name in SPECIAL if made.token_to_id(name) is None]
  if missing:
    raise ValueError(f"tokenizer: {source} has no {', '.join(missing)}; the special tokens are {' '.join(SPECIAL)}, "
                     "make one with `train`")
  pad, _, end, unknown = (made.token_to_id(name) for name in SPECIAL)
  counts, told = {"prompts": 0, "cut": 0, "unknown": 0}, set()

  def tell(kind, message, *values):
    if kind not in told:  # once: encode is called for every batch
      told.add(kind)
      log.warning(message, *values)

  def encode(prompts, length):
    if isinstance(prompts, str) or length < 2:
      raise ValueError(f"tokenizer: prompts = {prompts!r}, length = {length}; give a list of strings and a length of "
                       "at least 2, for <bos> and <eos>")
    prompts = [text(p) for p in prompts]
    distinct = list(dict.fromkeys(prompts))  # a group repeats its prompt
    known = dict(zip(distinct, (f.ids for f in made.encode_batch(distinct)), strict=True))
    found = [known[p] for p in prompts]
    tokens, mask = np.full((len(found), length), pad, np.int32), np.zeros((len(found), length), bool)
    for row, seen, ids, prompt in zip(tokens, mask, found, prompts, strict=True):
      n = min(len(ids), length)
      row[:n], seen[:n] = ids[:n], True
      if len(ids) > length:
        row[-1], counts["cut"] = end, counts["cut"] + 1
        tell("cut", "prompt %r has %d tokens and is cut to %d; further ones are only counted", prompt, len(ids), length)
      if unknown in ids:
        counts["unknown"] += ids.count(unknown)
        tell("unknown", "prompt %r has words that the vocabulary lacks; further ones are only counted", prompt)
    counts["prompts"] += len(found)
    return tokens, mask

  def save(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{n.strip('<>')}_token": n for n in SPECIAL}}
    files = {"tokenizer.json": made.to_str(pretty=True), "tokenizer_config.json": json.dumps(beside, indent=2)}
    for name, body in files.items():
      (folder / f".{name}.tmp").write_text(body + "\n", encoding="utf-8")
      os.replace(folder / f".{name}.tmp", folder / name)

  words = lambda ids: made.decode(list(map(int, ids)), skip_special_tokens=False)
  decode = lambda ids: " ".join(re.sub("|".join(SPECIAL), " ", words(ids)).split())
  return Tokenizer(encode, decode, save, made.get_vocab_size(), counts)
