"""The bundled digits: splits that never overlap, captions that name what is shown."""
import numpy as np
import pytest

from align.build import UserError
from align.data import batches
from align.datasets import digits


def test_splits_are_disjoint_whole_and_balanced():
  sizes = {"train": 797, "reward": 400, "judge": 400, "test": 200}
  parts = {name: digits.make(name) for name in sizes}
  assert {name: part.size for name, part in parts.items()} == sizes
  whole = [r["media"].tobytes() for p in parts.values() for r in map(p.record, range(p.size))]
  every = digits.make("all")
  assert whole == [every.record(i)["media"].tobytes() for i in range(1797)] and len(set(whole)) == 1797
  for name, part in parts.items():
    counts = np.bincount([part.record(i)["label"] for i in range(part.size)])
    assert counts.max() - counts.min() <= (12 if name == "test" else 1), name  # the last takes what is left over


def test_a_record_shows_what_its_caption_says():
  source = digits.make()
  for i in range(50):
    record = source.record(i)
    assert record["media"].shape == (8, 8, 1) and record["media"].dtype == np.uint8
    assert record["prompt"] == f"a handwritten {digits.WORDS[record['label']]}"
    assert record["meta"] == {"category": digits.WORDS[record["label"]], "label": record["label"]}
  media, labels = digits.arrays("train")
  assert media.min() == 0 and media.max() == 255 and labels.dtype == np.int32
  means = np.stack([media[labels == k].mean(0).ravel() for k in range(10)])
  test, truth = digits.arrays("test")
  guess = ((test.reshape(-1, 1, 64) - means) ** 2).sum(-1).argmin(1)
  assert (guess == truth).mean() > 0.85  # labels still belong to their pictures


def test_the_order_is_the_same_everywhere():
  assert digits.arrays("all")[1][:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
  assert int(digits.arrays("train")[0].astype(int).sum()) == 3964839


def test_paraphrases_keep_the_word_and_are_all_used():
  source = digits.make(paraphrases=True)
  prompts = [source.record(i)["prompt"] for i in range(300)]
  assert all("a handwritten " + digits.WORDS[source.record(i)["label"]] in p for i, p in enumerate(prompts))
  assert len(set(prompts)) == 30


def test_it_streams():
  batch = batches(digits.make("reward"), 8).next()
  assert batch["media"].shape == (8, 8, 8, 1) and batch["label"].shape == (8,)


def test_an_unknown_split_is_refused():
  with pytest.raises(UserError, match="split='validation': digits has train, reward, judge, test, all"):
    digits.make("validation")
