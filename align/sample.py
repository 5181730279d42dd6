"""The task that writes what a generator makes of prompts as a data set, for runs that begin from it: what a refiner
enlarges, or own samples to learn from."""
from pathlib import Path

import numpy as np

from align import build, evaluate, shard
from align.datasets import samples as dataset


def run(config: dict, workdir: str) -> dict:
  return sample(workdir, **{k: v for k, v in config.items() if k != "task"})


def sample(workdir: str, *, model: str, data: dict, policy: dict = None, samples: int = 1, batch: int = 96,
           steps: int = None, seed: int = 0, mesh: dict = None) -> dict:
  """Writes WORKDIR/samples (datasets/samples.py): every prompt of `data` `samples` times, at eta 0.

  Args: model: a workdir, folder or shipped name. policy: its options, where they are not its own. batch: samples at
    once. steps: of the sampler, None for the policy's own. mesh: of the devices that sample, as in training.
  """
  if samples < 1:
    raise build.UserError(f"config.samples = {samples} must be at least 1; correct it")
  mesh, source = shard.mesh(**(mesh or {})), build.build("align.datasets", data)
  with build.blame("config.model"):
    made, view = evaluate.opened(model, mesh, {}, policy)
  images, records = evaluate.sample_all(made, view, source, samples=samples, batch=batch, seed=seed, steps=steps,
                                        mesh=mesh)
  provenance = {"model": str(model), "steps": steps, "data": data}
  path = dataset.write(Path(workdir) / "samples", [
    {"prompt": record["prompt"], "media": images[p, n], "meta": record.get("meta", {}), "seed": seed, "prompt_id": p,
     "sample_id": n, "provenance": provenance} for p, record in enumerate(records) for n in range(samples)])
  return {"prompts": len(records), "samples": int(np.prod(images.shape[:2])), "path": str(path)}
