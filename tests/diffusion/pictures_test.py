"""Picture files of all kinds, hostile ones among them, and which frames of a clip are looked at."""
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion import pictures


def smooth(height, width):
  rows, columns = np.mgrid[:height, :width]
  return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
  held = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(held, kind, **options)
  return held.getvalue()


@pytest.mark.parametrize("kind,most", [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("WEBP", 0), ("JPEG", 8)])
def test_files(kind, most, tmp_path):
  picture = smooth(30, 50)
  data = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
  (tmp_path / "file").write_bytes(data)
  for source in (data, tmp_path / "file", str(tmp_path / "file")):
    got = pictures.read(source)
    assert got.dtype == np.uint8 and np.abs(got.astype(int) - picture).max() <= most * 8 and got.shape == picture.shape


def test_a_picture_is_turned_as_its_file_says():
  picture = smooth(30, 50)
  exif = Image.Exif()
  exif[0x0112] = 6
  np.testing.assert_array_equal(pictures.read(encoded(picture, exif=exif)), np.rot90(picture, -1))


def test_of_an_animation_the_first_frame():
  frames = [Image.fromarray(smooth(20, 20)).quantize(32), Image.new("P", (20, 20))]
  got = pictures.read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
  np.testing.assert_array_equal(got, np.asarray(frames[0].convert("RGB")))


def test_transparency_is_white():
  picture = np.dstack([smooth(4, 6), np.tile(np.uint8([[0, 255, 51]]), (4, 2))])
  got = pictures.rgb(Image.fromarray(picture))
  want = (picture[..., :3].astype(int) * picture[..., 3:] + 255 * (255 - picture[..., 3:].astype(int))) / 255
  np.testing.assert_allclose(got, want, atol=1)
  assert (got[:, 0] == 255).all()


def test_grey():
  grey = smooth(5, 7)[..., 0]
  for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 256)):
    np.testing.assert_array_equal(pictures.rgb(image), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(pictures.read(encoded(image)), np.repeat(grey[..., None], 3, -1))


def test_a_large_jpeg_is_decoded_smaller():
  picture = smooth(160, 240)
  data = encoded(picture, "JPEG", quality=95)
  assert pictures.read(data, 160 * 240).shape == (160, 240, 3)
  for most, sides in ((160 * 240 - 1, (80, 120)), (80 * 120 - 1, (40, 60)), (20 * 30, (20, 30))):
    got = pictures.read(data, most)
    assert got.shape == (*sides, 3)
    want = np.asarray(Image.fromarray(picture).resize(sides[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(got - want)[..., :2].mean() < 3
  with pytest.raises(ValueError, match=r"160 x 240 pixels \(height x width\), at most 599 are decoded; scale it down"):
    pictures.read(data, 599)
  assert pictures.read(encoded(smooth(4, 300), "JPEG"), 400).shape == (2, 150, 3)


def test_a_large_file_is_refused_before_it_is_decoded(monkeypatch):
  """A PNG whose header speaks of more pixels than the file could ever hold."""
  def never(*args, **kwargs):
    raise MemoryError
  data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
  data[16:24] = (9000).to_bytes(4, "big") * 2
  data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
  monkeypatch.setattr(Image.Image, "load", never)
  with pytest.raises(ValueError, match="9000 x 9000 pixels .* at most 67108864 are decoded"):
    pictures.read(bytes(data))
  data[16:24] = (90000).to_bytes(4, "big") * 2
  data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
  with pytest.raises(ValueError, match=r"cannot be read .far more than the 67108864 pixels .* scale it down"):
    pictures.read(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL tells of odd tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files(kind):
  """Cut short or changed: a picture or a ValueError, never anything else."""
  data = encoded(Image.fromarray(smooth(40, 40)).convert("P" if kind == "GIF" else "RGB"), kind)
  with pytest.raises(ValueError, match=r"picture of \d+ bytes cannot be read \(.*\); replace it"):
    pictures.read(data[:len(data) // 2])
  generator = np.random.default_rng(0)
  for _ in range(60):
    changed = np.frombuffer(data, np.uint8).copy()
    changed[generator.integers(0, len(data), 8)] = generator.integers(0, 256, 8)
    try:
      assert pictures.read(changed.tobytes(), 10**6).shape[-1] == 3
    except ValueError as error:
      assert "cannot be read" in str(error)


@pytest.mark.parametrize("source,words", [
  (b"", "picture of 0 bytes cannot be read"), (b"<svg></svg>", "picture of 11 bytes cannot be read (cannot identify"),
  ("nowhere.png", "picture 'nowhere.png' cannot be read ([Errno 2]"), ("/", "picture '/' cannot be read ("),
])
def test_no_picture(source, words):
  with pytest.raises(ValueError) as error:
    pictures.read(source)
  assert words in str(error.value) and str(error.value).endswith("; replace it")


@pytest.mark.parametrize("picture,words", [
  (np.zeros((4, 4), np.uint8), "picture is uint8 of shape (4, 4), it must be a PIL image or uint8 [H W 3]; convert it"),
  (np.zeros((4, 4, 4), np.uint8), "uint8 of shape (4, 4, 4)"), (np.zeros((4, 4, 3)), "float64 of shape (4, 4, 3)"),
  ([[0]], "picture is int64 of shape (1, 1)"), ("a.png", "picture is <U5 of shape ()"),
  (np.zeros((0, 4, 3), np.uint8), "picture of shape (0, 4, 3) holds no pixel"),
  (Image.new("F", (4, 4)), "picture has F pixels, whose range is not known"),
  (Image.new("I", (4, 4)), "picture has I pixels"),
])
def test_no_rgb(picture, words):
  with pytest.raises(ValueError) as error:
    pictures.rgb(picture)
  assert words in str(error.value)


def test_uniform():
  assert pictures.uniform(20, 8).tolist() == [int(i * 20 / 8) for i in range(8)] == [0, 2, 5, 7, 10, 12, 15, 17]
  assert pictures.uniform(20, 5, last=True).tolist() == [0, 4, 9, 14, 19]
  assert pictures.uniform(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
  for total in range(1, 40):
    for last in (False, True):
      found = pictures.uniform(total, 8, last)
      assert found[0] == 0 and (np.diff(found) >= 0).all() and found[-1] < total
      assert not last or found[-1] == total - 1


def test_at_rate():
  assert pictures.at_rate(48, 24).tolist() == [0, 12, 24, 36]  # at least 4
  assert len(pictures.at_rate(240, 24)) == 20
  assert len(pictures.at_rate(240, 24, fps=1.1)) == 10  # a multiple of 2
  assert len(pictures.at_rate(100000, 24)) == 768
  assert pictures.at_rate(3, 24).tolist() == [0, 1] and pictures.at_rate(1, 24).tolist() == [0]


@pytest.mark.parametrize("call,words", [
  (lambda: pictures.uniform(0, 8), "8 frames of a clip of 0: both must be at least 1"),
  (lambda: pictures.uniform(8, 0), "0 frames of a clip of 8"),
  (lambda: pictures.at_rate(0, 24), "2 frames of a clip of 0"),
  (lambda: pictures.at_rate(8, 0), "rate = 0 and fps = 2.0 must be more than 0"),
  (lambda: pictures.at_rate(8, 24, fps=-1), "rate = 24 and fps = -1 must be more than 0"),
])
def test_frames_that_are_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
