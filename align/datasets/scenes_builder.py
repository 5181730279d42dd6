"""The Scenes data set on disk: a TFDS builder that writes ArrayRecord without TensorFlow.

Pictures are given as encoded PNG, the only form in which TFDS writes them without TensorFlow. `prepare` is all that is
needed; reading is `scenes.make(data_dir=...)`, or any TFDS reader with `as_data_source`.
"""
import io
import json
from pathlib import Path

import tensorflow_datasets
from PIL import Image

from align.build import UserError
from rewards import scenes

HELD = 20     # one render of a held-out combination for so many of training
BLOCK = 1024  # records rendered at a time
DEFAULT = scenes.World()


class ScenesConfig(tensorflow_datasets.core.BuilderConfig):
  """How many renders, how large, from which seed; the name says it, so that no two share a folder."""

  def __init__(self, *, size=16, count=20_000, seed=0, categories=None, world=DEFAULT):
    parts = [f"{size}px-{count}-seed{seed}", *(categories or ())]
    if world != DEFAULT:
      parts += [f"most{world.most}", *world.shapes, *world.colors]
    super().__init__(name="-".join(parts), description=f"{count} renders of {size}x{size}")
    self.size, self.count, self.seed, self.categories, self.world = size, count, seed, categories, world


class Scenes(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Splits "train" (`count` renders) and "test" (one for 20, with captions that share no combination with train)."""

  VERSION = tensorflow_datasets.core.Version("1.0.0")
  BUILDER_CONFIGS = [ScenesConfig(), ScenesConfig(count=100_000), ScenesConfig(size=32), ScenesConfig(size=64)]

  def _info(self):
    features = tensorflow_datasets.features
    side = self.builder_config.size
    return tensorflow_datasets.core.DatasetInfo(
      builder=self, description="A procedural captioned world of coloured shapes.", features=features.FeaturesDict({
        "image": features.Image(shape=(side, side, 3), encoding_format="png"), "caption": features.Text(),
        "category": features.Text(), "meta": features.Text()}))

  def _split_generators(self, dl_manager):
    count = self.builder_config.count
    sizes = {"train": count, "test": -(-count // HELD)}
    return {split: self._generate_examples(split, size) for split, size in sizes.items()}

  def _generate_examples(self, split, count):
    config = self.builder_config
    for start in range(0, count, BLOCK):
      media, texts, specs = scenes.batch(config.seed, start, min(BLOCK, count - start), split, config.size,
                                         config.categories, world=config.world)
      for i, (picture, text, spec) in enumerate(zip(media, texts, specs, strict=True)):
        yield start + i, {"image": io.BytesIO(png(picture)), "caption": text, "category": spec["category"],
                          "meta": json.dumps(spec)}


def png(picture) -> bytes:
  """A uint8 picture [H W 3] as PNG."""
  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, "PNG")
  return stream.getvalue()


def prepare(data_dir: str, *, size: int = 16, count: int = 20_000, seed: int = 0,
            categories: tuple[str, ...] | None = None, shapes: tuple[str, ...] = scenes.SHAPES,
            colors: tuple[str, ...] = tuple(scenes.COLORS), most: int = 4) -> str:
  """Writes the data set below `data_dir`, unless it is there already.

  Args: as of `scenes.make`.

  Returns: the folder of the prepared version, for `scenes.make(data_dir=...)`.

  Raises: UserError for impossible arguments or a folder that cannot be written.
  """
  try:
    world = scenes.make_world(shapes=tuple(shapes), colors=tuple(colors), most=most)
    scenes.batch(seed, 0, 1, "train", size, categories and tuple(categories), world=world)
    if count < 1:
      raise ValueError(f"scenes: count={count}; 1 or more is needed: correct it")
    config = ScenesConfig(size=size, count=count, seed=seed, categories=categories and tuple(categories), world=world)
    config = Scenes.builder_configs.get(config.name, config)  # TFDS refuses a second one of the same name
    builder = Scenes(data_dir=str(Path(data_dir).expanduser()), config=config, file_format="array_record")
    builder.download_and_prepare(download_config=tensorflow_datasets.download.DownloadConfig(try_download_gcs=False))
  except OSError as error:
    raise UserError(f"scenes: data_dir={data_dir!r} cannot be written ({error}); free space there or choose "
                    "another") from None
  except ValueError as error:
    raise UserError(str(error)) from None
  return str(builder.data_path)
