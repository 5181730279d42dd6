"""The text in a picture: known verdicts, edits against a plain recursion, and what is refused."""
import functools
import random

import numpy as np
import pytest

from align import build
from rewards import ocr
from rewards.core import CHUNKS

MEDIA = np.full((1, 8, 8, 3), 0.5, np.float32)


def reader(said):
  """What reads `said`, whatever is shown."""
  return lambda pictures: [said] * len(pictures)


def read_nothing(pictures):
  """A reader that a config names."""
  assert pictures.dtype == np.uint8 and pictures.shape[-1] == 3
  return [""] * len(pictures)


def score(said, prompt, meta=None, media=MEDIA):
  return ocr.make(reader(said)).score({}, {"prompt": [prompt], "meta": [meta or {}]}, media, None)


@pytest.mark.parametrize("said, prompt, total", [
  ("hello", 'a sign "hello"', 1),
  ("Hello World", 'a sign "hello world" in a town', 1),       # letters' size and white space do not count
  ("HELLO\n WORLD ", 'a sign "h ello world"', 1),
  ("welcome: hello, world", 'a sign "hello,"', 1),            # other text costs nothing where all is there
  ("hallo", 'a sign "hello"', 0.8),
  ("hell", 'a sign "hello"', 0.8),
  ("helloo", 'a sign "hello"', 1),
  ("hexllo", 'a sign "hello"', 0.8),
  ("", 'a sign "hello"', 0),
  ("a very long text of other letters", 'a sign "hello"', 0),  # never below 0
  ("open", 'signs "open" and "closed"', 1),                   # the first pair of quotes
  ("ab", 'a sign "ba"', 0),                                   # a swap is two edits
])
def test_verdicts(said, prompt, total):
  found = score(said, prompt)
  np.testing.assert_allclose(found.total, [total], atol=1e-6)
  assert found.total.dtype == np.float32 and found.valid.all()
  assert found.parts["exact"][0] == (total == 1)


def test_a_reader_reads_one_chunk_while_the_next_is_sampled():
  assert ocr.make(reader("")).chunks == CHUNKS


def test_meta_names_a_text_before_the_prompt_does():
  assert score("bye", 'a sign "hello"', {"text": "Bye"}).total[0] == 1


def test_edits_are_levenshtein_s():
  @functools.cache
  def plain(a, b):
    if not a or not b:
      return len(a) + len(b)
    return min(plain(a[1:], b) + 1, plain(a, b[1:]) + 1, plain(a[1:], b[1:]) + (a[0] != b[0]))

  draw = random.Random(0)
  for _ in range(200):
    a, b = ("".join(draw.choices("abc", k=draw.randint(low, 7))) for low in (0, 1))
    assert ocr.distance(a, b) == (0 if b in a else min(plain(a, b), len(b)))


def test_pictures_that_could_not_be_read_have_no_score():
  read = lambda pictures: ["hello", None, "hello"]
  media = np.repeat(MEDIA, 3, 0)
  media[2, 0, 0] = np.nan
  found = ocr.make(read).score({}, {"prompt": ['"hello"'] * 3}, media, None)
  assert found.valid.tolist() == [True, False, False] and found.total.tolist() == [1, 0, 0]


def test_a_config_names_the_reader():
  made = build.build("rewards", {"name": "ocr", "reader": f"{__name__}:read_nothing"})
  assert made.score({}, {"prompt": ['"hello"']}, MEDIA[..., :1], None).total.tolist() == [0]


@pytest.mark.parametrize("call, message", [
  (lambda: score("x", "a sign"), "prompt 'a sign' with meta\\['text'\\] = None names no text; it must stand between"),
  (lambda: score("x", 'a sign "'), "names no text"),
  (lambda: score("x", 'a sign " "'), "names no text"),
  (lambda: score("x", "a", {"text": 3}), "meta\\['text'\\] = 3 names no text"),
  (lambda: score("x", '"a"', media=MEDIA[None]), r"reward ocr: media have shape \(1, 1, 8, 8, 3\), but pictures are"),
  (lambda: ocr.make(lambda p: []).score({}, {"prompt": ['"a"']}, MEDIA, None), "reader gave 0 results for 1 pictures"),
  (lambda: ocr.make(reader("")).score({}, {"prompt": []}, MEDIA, None), "batch has 0 prompts and 1 meta for 1 samples"),
  (lambda: ocr.make("tesseract"), "reader = 'tesseract' must be 'module:function', or a function; name one"),
  (lambda: ocr.make("no_such_module:f"), "reader = 'no_such_module:f' must be importable .No module named"),
  (lambda: ocr.make("json:no_such"), "reader = 'json:no_such' must be importable"),
  (lambda: ocr.make("json:__doc__"), "reader = 'json:__doc__' must be 'module:function'"),
])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
