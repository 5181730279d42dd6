"""A sampler for people: `python -m diffusion.generate --model=WORKDIR --prompt="a red circle" --out=img.png`.

Reads a self-describing folder (folder.py): a finished run's workdir, its export, or a base that ships with the package.
"""
import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from diffusion import folder, generator


def sample(model: str, prompts: list, *, samples: int = 1, seed: int = 0, steps: int = None, eta: float = 0.0,
           guidance: float = None) -> np.ndarray:
  """Images uint8 [P n H W C]; the noise of sample i of prompt p depends on (seed, p, i) alone."""
  description = folder.describe(model)
  if guidance is not None:
    description["guidance"] = guidance
  made = generator.build(description)
  view = folder.load(model, like=jax.eval_shape(made.init, jax.random.key(0)))
  p, i = np.divmod(np.arange(len(prompts) * samples), samples)
  fold = jax.vmap(lambda p, i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), i))
  cond = made.encode([prompts[k] for k in p])
  draw = jax.jit(lambda view, cond, keys: made.decode(view, made.sample(view, cond, keys, steps=steps, eta=eta)[0]))
  images = generator.to_uint8(draw(view, cond, fold(p, i)))
  return images.reshape((len(prompts), samples) + images.shape[1:])


def sheet(images: np.ndarray, scale: int) -> Image.Image:
  """[P n H W C] -> one picture, a row a prompt, every pixel enlarged `scale` times."""
  p, n, h, w, c = images.shape
  rows = images.transpose(0, 2, 1, 3, 4).reshape(p * h, n * w, c)
  rows = rows.repeat(scale, 0).repeat(scale, 1)
  return Image.fromarray(rows[..., 0] if c == 1 else rows)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m diffusion.generate", description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="a finished run's workdir, an export folder, or a shipped base: "
                      + ", ".join(folder.shipped()))
  parser.add_argument("--prompt", required=True, action="append", help="may be given several times")
  parser.add_argument("--out", default="out.png")
  parser.add_argument("--samples", type=int, default=4, help="images a prompt")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, help="sampling steps, by default the model's own")
  parser.add_argument("--eta", type=float, default=0.0, help="noise of a stochastic kernel")
  parser.add_argument("--guidance", type=float, help="classifier-free guidance scale, by default the model's own")
  parser.add_argument("--scale", type=int, default=8, help="pixels an image pixel is shown as")
  args = parser.parse_args(argv)
  try:
    for name in ("samples", "scale", "steps"):
      if getattr(args, name) is not None and getattr(args, name) < 1:
        raise ValueError(f"--{name} = {getattr(args, name)} must be at least 1; give a positive number")
    images = sample(args.model, args.prompt, samples=args.samples, seed=args.seed, steps=args.steps, eta=args.eta,
                    guidance=args.guidance)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    sheet(images, args.scale).save(args.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{len(args.prompt)} prompts x {args.samples} images: {args.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
