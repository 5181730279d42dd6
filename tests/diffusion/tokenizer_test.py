"""The tokenizer: ids, ends, cutting, its file format and refusals."""
import hashlib
import logging

import numpy as np
import pytest

from diffusion import tokenizer
from rewards.scenes import caption, combos, world


def test_words_of_the_shipped_one_keep_their_ids():
  """Trained weights depend on them: append words, never move them."""
  words = tokenizer.load("words")
  ids, mask = words.encode(["a red circle", ""], 6)
  assert ids.tolist() == [[1, 4, 43, 37, 2, 0], [1, 2, 0, 0, 0, 0]] and ids.dtype == np.int32
  assert mask.tolist() == [[True] * 5 + [False], [True] * 2 + [False] * 4]
  first = " ".join(tokenizer.WORDS[:108])
  assert hashlib.sha256(first.encode()).hexdigest()[:8] == "59ee1654"


def test_the_shipped_file_is_what_the_list_of_words_makes(tmp_path):
  tokenizer.train(tokenizer.WORDS).save(tmp_path)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / name).read_text() == (tokenizer.SHIPPED / "words" / name).read_text()


def test_it_knows_every_caption_of_scenes_and_digits():
  words = tokenizer.load("words")
  rng = np.random.default_rng(0)
  captions = [caption.caption(c, rng)[0] for kind in world.CATEGORIES for c in combos.combos(kind) for _ in range(3)]
  words.encode([*captions, "a handwritten seven", "a picture of a handwritten zero", "a handwritten nine in grey"], 20)
  assert words.counts["prompts"] > 500 and words.counts["unknown"] == words.counts["cut"] == 0


def test_case_punctuation_and_composition_do_not_matter():
  words = tokenizer.train(["caf\u00e9 red circle"])
  same = ["caf\u00e9 red circle", "Cafe\u0301, RED circle!", "<eos> caf\u00e9  red-circle."]
  ids, _ = words.encode(same, 8)
  assert ids[0].tolist() == ids[1].tolist() == [1, 4, 5, 6, 2, 0, 0, 0]
  assert ids[2].tolist() == [1, 3, 4, 5, 6, 2, 0, 0]  # a prompt cannot end itself: "eos" is an unknown word


def test_long_prompts_and_unknown_words_are_counted_and_told_once(caplog):
  words = tokenizer.train(["a b c d e f"])
  with caplog.at_level(logging.WARNING):
    ids, mask = words.encode(["a b c d e f", "a b c d e", "a zebra"], 5)
    words.encode(["a b c d e f"], 5)
  assert ids.tolist() == [[1, 4, 5, 6, 2], [1, 4, 5, 6, 2], [1, 4, 3, 2, 0]] and mask.sum() == 14
  assert words.counts == {"prompts": 4, "cut": 3, "unknown": 1}
  assert [r.getMessage().split(" ", 2)[0] for r in caplog.records] == ["prompt", "prompt"]
  assert "has 8 tokens and is cut to 5" in caplog.text and "'a zebra' has words" in caplog.text


def test_round_trip_and_decode(tmp_path):
  words = tokenizer.train(["a red circle", "two blue squares", "a red square"])
  words.save(tmp_path / "mine")
  again = tokenizer.load(tmp_path / "mine")
  assert tokenizer.load(again) is again
  prompts = ["two red squares", "a circle"]
  np.testing.assert_array_equal(again.encode(prompts, 7)[0], words.encode(prompts, 7)[0])
  assert [again.decode(row) for row in again.encode(prompts, 7)[0]] == prompts
  assert again.size == words.size == 4 + 7


def test_size_keeps_the_most_frequent_words():
  words = tokenizer.train(["rare often", "often always", "always often always"], size=6)
  assert words.size == 6
  assert words.encode(["rare often always"], 5)[0].tolist() == [[1, 3, 4, 5, 2]]


def test_numpy_strings_are_prompts():
  words = tokenizer.load("words")
  assert words.encode(np.array(["a circle"]), 4)[0].tolist() == [[1, 4, 37, 2]]


def test_transformers_reads_it(tmp_path):
  transformers = pytest.importorskip("transformers")
  fast = transformers.PreTrainedTokenizerFast.from_pretrained(str(tokenizer.SHIPPED / "words"))
  prompts = ["a photo of two red squares above a circle", "a handwritten seven"]
  theirs = fast(prompts, padding="max_length", max_length=12)
  ids, mask = tokenizer.load("words").encode(prompts, 12)
  assert theirs["input_ids"] == ids.tolist() and theirs["attention_mask"] == mask.astype(int).tolist()


@pytest.mark.parametrize("call,words", [
  (lambda t: t.encode(["a", 7], 4), "prompt = 7 is of type int, but prompts are strings"),
  (lambda t: t.encode(["a", None], 4), "prompt = None is of type NoneType"),
  (lambda t: t.encode("a red circle", 4), "give a list of strings"),
  (lambda t: t.encode(["a"], 1), "length = 1"),
  (lambda t: tokenizer.train(["a"], size=4), "size = 4 must be more than the 4 special tokens"),
  (lambda t: tokenizer.train([3]), "prompt = 3 is of type int"),
  (lambda t: tokenizer.load("word"), "tokens = 'word' is no folder .* \\(words\\)"),
])
def test_refusals(call, words):
  with pytest.raises(ValueError, match=words):
    call(tokenizer.load("words"))


def test_refuses_a_damaged_or_foreign_file(tmp_path):
  (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
  with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
    tokenizer.load(tmp_path)
  good = (tokenizer.SHIPPED / "words" / "tokenizer.json").read_text()
  (tmp_path / "tokenizer.json").write_text(good.replace("<pad>", "[PAD]"))
  with pytest.raises(ValueError, match="has no <pad>"):
    tokenizer.load(tmp_path)
