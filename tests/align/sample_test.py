"""Samples on disk: what comes back is what was made, as media to learn from or for a refiner to enlarge."""
import jax
import numpy as np
import pytest

from align import build, sample
from align.datasets import samples
from diffusion import folder, generate, generator

PARTS = {"name": "diffusion", "net": {"name": "unet", "variant": "tiny", "layers": 1, "widths": [8], "depth": [0],
                                      "alone": [False], "head": [8], "channels": 1},
         "text": {"name": "text", "vocab": 128, "width": 16, "depth": 1, "heads": 2}, "channels": 1,
         "process": {"name": "flow"}, "kernel": "ode", "length": 8, "size": 4, "steps": 2}


def record(i, shape, channels=3):
  media = np.random.default_rng(i).integers(0, 256, (*shape, channels)).astype(np.uint8)
  return {"prompt": f"a {i}", "media": media, "meta": {"frames": "three", "k": i}, "seed": 5, "prompt_id": i,
          "sample_id": 0, "provenance": {"model": "m"}}


@pytest.mark.parametrize("shape, channels", [((4, 6), 3), ((4, 6), 1), ((3, 4, 6), 3)])
@pytest.mark.parametrize("entry", samples.ENTRIES)
def test_pictures_and_clips_come_back_as_they_were(shape, channels, entry, tmp_path):
  wanted = [record(i, shape, channels) for i in range(3)]
  samples.write(tmp_path / "samples", wanted)
  source = samples.make(str(tmp_path / "samples"), entry)
  assert source.size == 3
  for i, want in enumerate(wanted):
    found = source.record(i)
    assert sorted(found) == sorted(("prompt", "meta", entry)) and found["prompt"] == want["prompt"]
    np.testing.assert_array_equal(found[entry], want["media"])
    assert found[entry].dtype == np.uint8
    assert {k: found["meta"][k] for k in ("frames", "k", "seed", "prompt_id", "sample_id")} == {
      "frames": "three", "k": i, "seed": 5, "prompt_id": i, "sample_id": 0}


def test_the_task_writes_what_the_model_makes(tmp_path):
  view = jax.tree.map(lambda a: 2 * a, jax.jit(generator.build(PARTS).init)(jax.random.key(0)))
  model = str(folder.save(tmp_path / "model", "policy", PARTS, view))
  spec = {"task": "sample", "model": model, "data": {"name": "toy:data", "media": False, "count": 3}, "samples": 2,
          "seed": 3, "steps": 1, "batch": 6}
  assert sample.run(build.resolve(spec), str(tmp_path / "run"))["samples"] == 6
  source = build.build("align.datasets", {"name": "samples", "path": str(tmp_path / "run" / "samples")})
  found = [source.record(i) for i in range(source.size)]
  prompts = [f"a handwritten {word}" for word in ("one", "two", "three")]
  assert [r["prompt"] for r in found] == [p for p in prompts for _ in range(2)]
  assert [(r["meta"]["prompt_id"], r["meta"]["sample_id"]) for r in found] == [(p, i) for p in range(3)
                                                                              for i in range(2)]
  made = generate.sample(model, prompts, samples=2, seed=3, steps=1)  # of the same noise
  np.testing.assert_allclose(np.stack([r["media"] for r in found]).astype(int), made.reshape(6, 4, 4, 1), atol=1)
  assert made.std() > 0 and f'"model": "{model}"' in found[0]["meta"]["provenance"]


def test_what_cannot_be_is_refused(tmp_path):
  with pytest.raises(build.UserError, match="entry = 'win' is not one of media, low; choose one of them"):
    samples.make(str(tmp_path), "win")
  with pytest.raises(build.UserError, match="holds no prepared data set"):
    samples.make(str(tmp_path))
  with pytest.raises(build.UserError, match="config.samples = 0 must be at least 1"):
    sample.sample(str(tmp_path), model="scenes", data={}, samples=0)
