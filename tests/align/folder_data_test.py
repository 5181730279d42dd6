"""A user's own data: folders, JSON lines, prompt files, and everything that may be wrong with them."""
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from align.build import UserError
from align.data import Unreadable, batches
from align.datasets import folder, jsonl, prompts, tfds


def save(path, array, **options):
  Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
  path.with_suffix(".txt").write_text(f" a picture called {path.stem}\n")


def huge_png(path, side=50_000):
  """A PNG whose header promises side x side pixels; there is nothing behind it."""
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
  path.with_suffix(".txt").write_text("huge")


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
  (tmp_path / "sub").mkdir()
  for i, name in enumerate(["b.png", "a.webp", "sub/c.bmp"]):
    save(tmp_path / name, np.full((4, 6, 3), 10 * i), **({"lossless": True} if "webp" in name else {}))
  (tmp_path / "notes.md").write_text("no picture")
  source = folder.make(str(tmp_path))
  records = [source.record(i) for i in range(source.size)]
  assert [r["meta"]["file"] for r in records] == ["a.webp", "b.png", "sub/c.bmp"]
  assert [r["prompt"] for r in records] == [f"a picture called {n}" for n in "abc"]
  assert [int(r["media"][0, 0, 0]) for r in records] == [10, 0, 20]
  assert all(r["media"].shape == (4, 6, 3) and r["media"].dtype == np.uint8 for r in records)
  assert batches(source, 3).next()["media"].shape == (3, 4, 6, 3)


def test_pictures_are_scaled_to_cover_and_cut_around_the_centre(tmp_path):
  image = np.zeros((10, 30, 3))
  image[:, 10:20] = 255
  save(tmp_path / "a.png", image)
  for size, shape in ((5, (5, 5, 3)), ((10, 10), (10, 10, 3)), ((4, 8), (4, 8, 3))):
    assert folder.make(str(tmp_path), size).record(0)["media"].shape == shape
  assert (folder.make(str(tmp_path), 10).record(0)["media"] == 255).all()
  assert folder.make(str(tmp_path), 10, channels=1).record(0)["media"].shape == (10, 10, 1)


def test_every_kind_of_picture_becomes_eight_bit_rgb(tmp_path):
  red = Image.new("RGB", (8, 8), (255, 0, 0))
  red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
  Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
  Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
  red.quantize(4).save(tmp_path / "palette.png")
  Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
  turned = Image.fromarray(np.array([[[255] * 3] * 8] * 4 + [[[0] * 3] * 8] * 4, np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  turned.save(tmp_path / "turned.png", exif=exif)
  read = lambda name: folder.picture(tmp_path / name, name)
  assert abs(read("cmyk.jpg").astype(int) - [255, 0, 0]).max() < 40
  assert (read("deep.png") == 128).all() and (read("clear.png") == 255).all() and (read("bits.png") == 255).all()
  assert (read("palette.png") == [255, 0, 0]).all()
  assert read("turned.png")[0, 0, 0] == 0 and read("turned.png")[-1, 0, 0] == 255


def broken(tmp_path, kind):
  path = tmp_path / f"{kind}.png"
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
  save(path, noise)
  data = path.read_bytes()
  if kind == "truncated":
    path.write_bytes(data[:len(data) // 2])
  elif kind == "empty":
    path.write_bytes(b"")
  elif kind == "text":
    path.write_text("this is no picture at all")
  elif kind == "flipped":
    path.write_bytes(data[:60] + bytes([data[60] ^ 255]) + data[61:])
  elif kind == "huge":
    huge_png(path)
  elif kind == "animated":
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 99, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
  elif kind == "float":
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")
  elif kind == "uncaptioned":
    path.with_suffix(".txt").unlink()
  elif kind == "blank":
    path.with_suffix(".txt").write_text(" \n")
  elif kind == "latin":
    path.with_suffix(".txt").write_bytes(b"caf\xe9")
  return path


REASONS = {"truncated": "cannot be decoded", "empty": "the file is empty", "text": "cannot be decoded",
           "flipped": "cannot be decoded", "huge": "exceeds limit", "float": "F pixels",
           "animated": "an animation of 3 frames", "uncaptioned": "uncaptioned.txt is missing; put the caption",
           "blank": "blank.txt is empty", "latin": "latin.txt cannot be read"}


@pytest.mark.parametrize("kind", REASONS)
def test_a_broken_picture_is_unreadable_with_its_name_and_reason(tmp_path, kind):
  broken(tmp_path, kind)
  with pytest.raises(Unreadable, match=rf"^{kind}.png: .*{REASONS[kind]}"):
    folder.make(str(tmp_path), 8).record(0)


def test_the_header_alone_refuses_a_large_picture(tmp_path, monkeypatch):
  huge_png(tmp_path / "large.png", 9_000)
  monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
  with pytest.raises(Unreadable, match="9000 x 9000 pixels, at most 67108864 are decoded; scale it down"):
    folder.make(str(tmp_path)).record(0)
  huge_png(tmp_path / "large.png", 100)
  with pytest.raises(Unreadable, match="100 x 100 pixels, at most 9999"):
    folder.make(str(tmp_path), pixels=9999).record(0)


def test_a_folder_with_a_few_broken_pictures_is_read_on(tmp_path):
  for i in range(12):
    save(tmp_path / f"good{i}.png", np.zeros((4, 4, 3)))
  for kind in REASONS:
    broken(tmp_path, kind)
  stream = batches(folder.make(str(tmp_path), 4), 11, limit=0.9)
  for _ in range(10):
    assert all(m["file"].startswith("good") for m in stream.next()["meta"])
  assert len(stream.skipped()) == len(REASONS)


def test_folders_that_cannot_serve_are_refused(tmp_path):
  with pytest.raises(UserError, match=r"holds no picture; one of .png.*caption"):
    folder.make(str(tmp_path))
  with pytest.raises(UserError, match="does not exist.*correct the path"):
    folder.make(str(tmp_path / "nowhere"))


def lines(tmp_path, *rows):
  path = tmp_path / "data.jsonl"
  path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
  return str(path)


def test_json_lines_with_pictures_pairs_and_without(tmp_path):
  save(tmp_path / "a.png", np.full((4, 4, 3), 7))
  save(tmp_path / "b.png", np.full((4, 4, 3), 9))
  source = jsonl.make(lines(tmp_path, {"image": "a.png", "caption": "one", "label": 3, "tag": "x"}, b"",
                            {"prompt": "two", "meta": {"category": "counting"}},
                            {"prompt": "three", "win": "a.png", "lose": "b.png"}))
  one, two, three = map(source.record, range(source.size))
  assert one["prompt"] == "one" and one["media"][0, 0, 0] == 7 and one["label"] == 3
  assert one["meta"] == {"image": "a.png", "tag": "x"}
  assert two == {"prompt": "two", "meta": {"category": "counting"}}
  assert three["win"][0, 0, 0] == 7 and three["lose"][0, 0, 0] == 9


def test_several_pictures_of_a_line_are_one_record(tmp_path):
  for name, value in (("a.png", 7), ("b.png", 9)):
    save(tmp_path / name, np.full((4, 4, 3), value))
  path = lines(tmp_path, {"prompt": "which?", "images": ["b.png", "a.png"], "meta": {"caption": "Image 1"}},
               {"prompt": "what?", "images": ["a.png"], "meta": {"win": "A cat.", "lose": "A dog."}})
  source = jsonl.make(path, several=3)
  two, one = source.record(0), source.record(1)
  assert two["media"][:, 0, 0, 0].tolist() == [9, 7, 0] and two["shown"] == 2 and two["meta"] == {"caption": "Image 1"}
  assert one["media"][:, 0, 0, 0].tolist() == [7, 0, 0] and one["shown"] == 1 and one["meta"]["win"] == "A cat."
  assert source.kind(0) != source.kind(1) and source.kind(0).startswith("2 pictures")
  batch = batches(source, 2, shuffle=False, alike=1).next()
  assert batch["media"].shape == (2, 3, 4, 4, 3)
  with pytest.raises(UserError, match="config.data.several = -1 must be 0 or more"):
    jsonl.make(path, several=-1)


@pytest.mark.parametrize("images, reason", [
  (["a.png"] * 3, r"line 1: images = .* must be a list of 1 to 2 paths"), ([], "must be a list of 1"),
  ("a.png", "images = 'a.png' must be a list"), (["a.png", "c.png"], "line 1: pictures of 2 sizes; set config.data"),
  (["../a.png"], "line 1: '../a.png' lies outside")])
def test_bad_lists_of_pictures_are_named(tmp_path, images, reason):
  save(tmp_path / "a.png", np.zeros((4, 4, 3)))
  save(tmp_path / "c.png", np.zeros((4, 5, 3)))
  with pytest.raises(Unreadable, match=reason):
    jsonl.make(lines(tmp_path, {"prompt": "x", "images": images}), several=2).record(0)


@pytest.mark.parametrize("row, reason", [
  (b"{not json", "line 2: not JSON"), (b"[1]", "line 2: list, but a JSON object"),
  (b'{"prompt": "\xe9"}', "line 2: not JSON"),
  ({"image": "a.png"}, "line 2: no text; one of prompt, caption, text"), ({"prompt": " "}, "line 2: no text"),
  ({"prompt": "x", "image": "gone.png"}, "line 2: gone.png: cannot be decoded"),
  ({"prompt": "x", "image": "../secret.png"}, "line 2: '../secret.png' lies outside"),
  ({"prompt": "x", "image": "/etc/passwd"}, "line 2: '/etc/passwd' lies outside"),
  ({"prompt": "x", "image": 3}, "line 2: the path 3 is no string"),
  (b"[" * 100_000, "line 2: not JSON"),
])
def test_a_bad_line_is_unreadable_by_its_number(tmp_path, row, reason):
  source = jsonl.make(lines(tmp_path, {"prompt": "fine"}, row))
  assert source.record(0)["prompt"] == "fine"
  with pytest.raises(Unreadable, match=reason):
    source.record(1)


def test_pictures_may_lie_in_another_folder(tmp_path):
  (tmp_path / "images").mkdir()
  save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3)))
  path = lines(tmp_path, {"image": "a.png", "caption": "one"})
  assert jsonl.make(path, images=str(tmp_path / "images"), size=2).record(0)["media"].shape == (2, 2, 3)
  with pytest.raises(UserError, match="imagse' does not exist.*holds .*images"):
    jsonl.make(path, images=str(tmp_path / "imagse"))
  with pytest.raises(UserError, match="is empty; a JSON object a line"):
    jsonl.make(lines(tmp_path))


def test_a_prompt_file(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_bytes("\ufefftwo red balls\r\n\n  cafe\u0301 \x07\n".encode() +
                   b'{"prompt": "three", "category": "counting"}\n{"prompt"\ncaf\xe9\n\x07\n')
  source = prompts.make(str(path))
  assert [source.record(i)["prompt"] for i in range(3)] == ["two red balls", "caf\u00e9", "three"]
  assert source.record(2)["meta"] == {"category": "counting"} and source.record(0)["meta"] == {}
  for i, reason in ((3, "line 5: not JSON"), (4, "line 6: not UTF-8"), (5, "line 7: only characters that cannot be")):
    with pytest.raises(Unreadable, match=reason):
      source.record(i)
  assert batches(source, 3, group=2, limit=1).next()["prompt_id"].shape == (6,)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_an_empty_prompt_file_is_refused(tmp_path, content):
  (tmp_path / "prompts.txt").write_bytes(content)
  with pytest.raises(UserError, match="prompts.txt' is empty; one prompt a line is needed"):
    prompts.make(str(tmp_path / "prompts.txt"))
  with pytest.raises(UserError, match="promts.txt' does not exist.*prompts.txt"):
    prompts.make(str(tmp_path / "promts.txt"))


def test_a_prepared_tensorflow_datasets_folder(tmp_path):
  import tensorflow_datasets
  features = tensorflow_datasets.features
  info = {"image": features.Image(shape=(4, 4, 3)), "caption": features.Text(), "label": np.int64,
          "meta": features.Text()}

  class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(info))

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        data = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(data, "PNG")
        yield i, {"image": io.BytesIO(data.getvalue()), "caption": f"number {i}", "label": i,
                  "meta": json.dumps({"category": f"c{i}"})}

  builder = Tiny(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  path = str(builder.data_path)
  source = tfds.make(path, entries=("label",))
  records = sorted((source.record(i) for i in range(source.size)), key=lambda r: r["label"])
  for i, record in enumerate(records):
    assert record["prompt"] == f"number {i}" and (record["media"] == i).all() and record["media"].dtype == np.uint8
    assert record["label"].dtype == np.int32 and record["meta"] == {"category": f"c{i}"}
  assert tfds.make(path, image=None).record(0)["meta"].keys() >= {"label", "category"}
  with pytest.raises(UserError, match="'captoin' is not in .*; it has caption, image, label, meta"):
    tfds.make(path, caption="captoin")
  with pytest.raises(UserError, match="split='test' of .* splits are train"):
    tfds.make(path, split="test")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no prepared data set"):
    tfds.make(str(tmp_path / "empty"))
  with pytest.raises(UserError, match="neither a folder nor a name"):
    tfds.make("no_such_data_set_anywhere")
