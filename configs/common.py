"""What several configs share: the Scenes generator, its data and its verdict."""

SCENES = {
  "name": "diffusion", "size": 16, "channels": 3, "length": 20, "steps": 8,
  "net": {"name": "unet", "variant": "scenes"}, "text": {"name": "text", "variant": "scenes"},
  "process": {"name": "flow", "predict": "x0"},
  "kernel": "flow_sde", "eta": 0.7,  # for rollouts that explore; at eta 0, as in every evaluation, it is the Euler step
}
REWARD = {"name": "scenes", "strict": 0.5, "soft": 0.5}


def held_out(count: int = 480, seed: int = 0) -> dict:
  """Prompts whose combinations no training caption has, balanced over the six categories."""
  return {"name": "scenes_prompts", "split": "test", "count": count, "seed": seed}


def probe(every: int, count: int = 60, samples: int = 4) -> dict:
  """A small held-out evaluation while training, on other prompts than the verdict's."""
  return {"every": every, "data": held_out(count, seed=1), "rewards": {"scenes": REWARD}, "success": "scenes/exact",
          "diversity": "scenes", "samples": samples, "batch": 120}


def verdict(arms: dict, samples: int = 4, **more) -> dict:
  """The evaluation of Scenes arms: success by GenEval's rules, by equality, and diversity among correct samples."""
  rewards = {"scenes": REWARD, "equal": {**REWARD, "exact": True}}
  return {"task": "evaluate", "arms": arms, "data": held_out(), "rewards": rewards,
          "success": "scenes/exact", "diversity": "scenes", "samples": samples, "batch": 120, **more}
