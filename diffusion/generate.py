"""A sampler for people: `python -m diffusion.generate --model=WORKDIR --prompt="a red circle" --out=img.png`.

Reads a self-describing folder (folder.py): a finished run's workdir, its export, or a base that ships with the package;
or a folder in diffusers' layout (hub.py), of which it makes what its pipeline makes of the same noise. A model of clips
writes one animated file, a GIF, PNG or WebP.
"""
import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageSequence

from diffusion import folder, generator, hub, mesh, public, vlm
from diffusion.convert import adapters, core

KEPT = ("size", "steps", "guidance", "negative", "scheduler")  # of a run's description of a public model
AT_ONCE = 64    # images a device, of a public model PUBLIC
PUBLIC = 4
ANIMATED = (".gif", ".png", ".webp")  # files that can hold a clip
PACE = 150      # milliseconds that a frame is shown


def sample(model: str, prompts: list, *, samples: int = 1, seed: int = 0, steps: int = None, eta: float = None,
           noise: np.ndarray = None, batch: int = None, low: Any = None, **options) -> np.ndarray:
  """Images uint8 [P n H W C], or clips [P n F H W C]; the noise of sample i of prompt p depends on (seed, p, i) alone.

  Each device of this process has a part of the images and of the weights. noise: unit noise [P * n, h, w, C], or
  [.. C, h, w] as PyTorch has it, of clips with F before h, in place of what the seed gives. batch: images at once.
  low: of a refiner, see `low_of`. options: guidance; of a public folder also negative, size, dtype, lora, scheduler,
  tiled and clip_skip, as in `opened`.
  """
  public_one = folder.public_of(model)
  devices = jax.local_devices()[:None if public_one else len(prompts) * samples]  # small weights need not be cut
  grid = mesh.grid((1, len(devices), 1), devices)
  made, view = opened(model, grid, **{name: value for name, value in options.items() if value is not None})
  eta = 0.0 if eta is None and not public_one else eta  # a public scheduler's noise is part of it
  p, i = np.divmod(np.arange(len(prompts) * samples), samples)
  fold = jax.vmap(lambda p, i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), i))
  x = None if noise is None else channels_last(noise, (len(p), *made.shape)) * made.start(steps)
  below = low_of(low, model, made.low, prompts, samples, seed)

  def draw(view, cond, keys, x):
    x0 = made.sample(view, made.embed(view, cond), keys, x=x, steps=steps, eta=eta)[0]
    return made.decode(view, x0)

  run, images = jax.jit(mesh.within(grid, draw)), []
  for rows in parts(len(p), batch or grid.size * (PUBLIC if public_one else AT_ONCE), grid.size):
    cond = {**made.encode([prompts[k] for k in p[rows]]), **{name: media[rows] for name, media in below.items()}}
    given = cond, fold(p[rows], i[rows]), None if x is None else x[rows]
    images.append(generator.to_uint8(run(view, *jax.device_put(given, mesh.batch_sharding(grid)))))
  images = np.concatenate(images)[:len(p)]
  return images.reshape((len(prompts), samples) + images.shape[1:])


def low_of(low: Any, model: str, shape: tuple, prompts: list, samples: int, seed: int) -> dict:
  """{"low": [P * n, *shape] in [-1, 1]} for a refiner, which enlarges pictures or clips of that shape, else {}.

  low: uint8 [P n h w C] or what broadcasts to it; a file of one picture or clip; or a model, whose samples of the seed
  after this one are enlarged. ValueError where a refiner has none, another model has one, or the shape is another.
  """
  if not shape and low is None:
    return {}
  wanted = " x ".join(map(str, shape))
  if not shape or low is None:
    raise ValueError(f"--low = {low!r}: {model!r} {f'enlarges what is {wanted}' if shape else 'enlarges nothing'}; "
                     f"{'give a file or a model by --low' if shape else 'leave it out'}")
  if isinstance(low, str):
    low = media_of(low, shape) if Path(low).is_file() else sample(low, prompts, samples=samples, seed=seed + 1)
  if low.shape[-len(shape):] != shape:
    raise ValueError(f"--low is {' x '.join(map(str, low.shape[-len(shape):]))}, but {model!r} enlarges what is "
                     f"{wanted}; give one of this size, pixel by pixel")
  whole = np.broadcast_to(low, (len(prompts), samples, *shape)).reshape(-1, *shape)
  return {"low": whole.astype(np.float32) / 127.5 - 1}


def media_of(path: str, shape: tuple) -> np.ndarray:
  """uint8 [h w C] of a picture's file, or [F h w C] of a clip's, with the channels and rank of `shape`."""
  with Image.open(path) as file:
    frames = [np.asarray(frame.convert("L" if shape[-1] == 1 else "RGB")) for frame in ImageSequence.Iterator(file)]
  whole = np.stack(frames).reshape(len(frames), *frames[0].shape[:2], shape[-1])
  return whole if len(shape) == 4 else whole[0]


def parts(total: int, batch: int, devices: int) -> list[np.ndarray]:
  """Indices of `total` images in batches of one size that the devices divide, about `batch`; the last image is repeated
  where they are more than there are."""
  size = min(max(batch // devices, 1), -(-total // devices)) * devices
  return [np.minimum(np.arange(first, first + size), total - 1) for first in range(0, total, size)]


def opened(model: str, grid: Any, **options) -> tuple[generator.Generator, dict]:
  """(generator, parameters on the mesh) of a folder of either layout. ValueError names an option that its layout does
  not have."""
  aligned = folder.public_of(model)
  if aligned:
    where, own, description = aligned
    lora, held = options.pop("lora", None), {"clip_skip": description.get("clip_skip", 0)}
    found = hub.open_(where, **{**held, **{k: options.pop(k) for k in ("dtype", "clip_skip") if k in options}})
    kept = {name: description[name] for name in KEPT if description.get(name) is not None}
    made = public.build(found, **{**kept, **options})
    view = hub.load(found, {role: mesh.places(core.shapes(part.layout), grid) for role, part in found.parts.items()})
    for each in filter(None, (own, lora)):
      view = adapters.fused(view, each, found)
    return made, view
  if vlm.at(model):
    raise ValueError(f"model = {model!r} is a vision-language model, which makes words; give a model that makes "
                     f"pictures, or ask this one by python -m rewards.judge --model={model} --chat TEXT PICTURE")
  beyond = sorted(set(options) - {"guidance"})
  if beyond:
    raise ValueError(f"{', '.join(beyond)}: {model!r} is a folder of our own layout, which has no such option; leave "
                     "it out")
  made = generator.build({**folder.describe(model), **options})
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  return made, jax.device_put(folder.load(model, like=shapes), mesh.places(shapes, grid))


def channels_last(noise: np.ndarray, shape: tuple) -> np.ndarray:
  """Noise [B h w C] or [B C h w] as [B h w C]; of clips there is an axis F before h."""
  torch = (shape[0], shape[-1], *shape[1:-1])
  if noise.shape == shape:
    return noise.astype(np.float32)
  if noise.shape == torch:
    return np.moveaxis(noise, 1, -1).astype(np.float32)
  raise ValueError(f"noise of shape {noise.shape} must be {shape}, or {torch} as PyTorch has it: one for each "
                   "sample of each prompt; change --size, --samples or the file")


def noise_of(path: str | None) -> np.ndarray | None:
  """The array of a .npy file. ValueError for one that is none."""
  if path is None:
    return None
  try:
    return np.load(path, allow_pickle=False)
  except (OSError, ValueError) as error:
    raise ValueError(f"--noise = {path!r} cannot be read ({error}); give a .npy file of numbers, as numpy.save writes "
                     "it") from error


def sides(text: str) -> int | tuple:
  """"512" -> 512, "768x1024" -> (768, 1024)."""
  try:
    numbers = tuple(int(n) for n in text.split("x"))
  except ValueError:
    numbers = ()
  if len(numbers) not in (1, 2):
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels or HEIGHTxWIDTH, such as 768x1024")
  return numbers[0] if len(numbers) == 1 else numbers


def sheet(images: np.ndarray, scale: int) -> Image.Image:
  """[P n H W C] -> one picture, a row a prompt, every pixel enlarged `scale` times."""
  p, n, h, w, c = images.shape
  rows = images.transpose(0, 2, 1, 3, 4).reshape(p * h, n * w, c)
  rows = rows.repeat(scale, 0).repeat(scale, 1)
  return Image.fromarray(rows[..., 0] if c == 1 else rows)


def check_out(model: str, out: str) -> None:
  """Refuses a file that cannot hold what a model makes. ValueError names those that can."""
  if folder.describe(model).get("frames") and Path(out).suffix.lower() not in ANIMATED:
    raise ValueError(f"--out = {out!r}: this model makes clips, for which the name must end in {', '.join(ANIMATED)}; "
                     "change it")


def write(images: np.ndarray, scale: int, out: str) -> None:
  """The sheet of images [P n H W C] as a picture file; of clips [P n F H W C], one sheet a frame, as an animated one.
  """
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  if images.ndim < 6:
    return sheet(images, scale).save(out)
  first, *rest = [sheet(frame, scale) for frame in np.moveaxis(images, 2, 0)]
  lossless = {"lossless": True} if Path(out).suffix.lower() == ".webp" else {}
  return first.save(out, save_all=True, append_images=rest, duration=PACE, loop=0, **lossless)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m diffusion.generate", description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="a finished run's workdir, an export folder, a folder in "
                      "diffusers' layout, or a shipped base: " + ", ".join(folder.shipped()))
  parser.add_argument("--prompt", required=True, action="append", help="may be given several times")
  parser.add_argument("--out", default="out.png")
  parser.add_argument("--samples", type=int, help="images a prompt, by default 4, of a public model 1")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, help="sampling steps, by default the model's own")
  parser.add_argument("--eta", type=float, help="noise of a stochastic kernel, by default 0, of a public model its "
                      "scheduler's")
  parser.add_argument("--guidance", type=float, help="classifier-free guidance scale, by default the model's own")
  parser.add_argument("--batch", type=int, help="images at once, by default 64 a device, of a public model 4")
  parser.add_argument("--scale", type=int, help="pixels an image pixel is shown as, by default 8, of a public model 1")
  parser.add_argument("--low", help="what a refiner enlarges: the file of a picture or clip, or a model")
  public_only = parser.add_argument_group("for folders in diffusers' layout")
  public_only.add_argument("--negative", help="the prompt that guidance leads away from")
  public_only.add_argument("--size", type=sides, help="pixels of a side, or HEIGHTxWIDTH")
  public_only.add_argument("--lora", help="a file or folder of adapters, as diffusers or peft write them")
  public_only.add_argument("--noise", help="a .npy file of unit noise, [samples, height / 8, width / 8, channels] or "
                           "[samples, channels, height / 8, width / 8]")
  public_only.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="what networks compute in")
  public_only.add_argument("--scheduler", help="the class that scheduler_config.json is read as")
  public_only.add_argument("--clip-skip", type=int, help="read CLIP's output so many layers before the usual one")
  public_only.add_argument("--tiled", action="store_true", default=None, help="decode in tiles, for large images")
  args = parser.parse_args(argv)
  try:
    for name in ("samples", "scale", "steps", "batch"):
      if getattr(args, name) is not None and getattr(args, name) < 1:
        raise ValueError(f"--{name} = {getattr(args, name)} must be at least 1; give a positive number")
    check_out(args.model, args.out)
    samples, scale = (1, 1) if folder.public_of(args.model) else (4, 8)
    options = {name: getattr(args, name) for name in ("negative", "size", "lora", "dtype", "scheduler", "clip_skip",
                                                      "tiled")}
    images = sample(args.model, args.prompt, samples=args.samples or samples, seed=args.seed, steps=args.steps,
                    eta=args.eta, guidance=args.guidance, noise=noise_of(args.noise), batch=args.batch, low=args.low,
                    **options)
    write(images, args.scale or scale, args.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  kind = "clips" if images.ndim == 6 else "images"
  print(f"{images.shape[0]} prompts x {images.shape[1]} {kind}: {args.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
