"""A public text-to-image model as a Policy: the networks, scheduler and prompts of a folder in diffusers' layout.

  policy = {"name": "public", "model": DIR}

Begins from the folder's weights; what is trained is by default the denoiser alone ("^policy/net/"), or adapters of it.
Latents of data are drawn from the autoencoder's distribution. Sampling is that of the folder's pipeline, with its
scheduler or with another kernel on the same times; see diffusion/public.py.
"""
import jax

from align.core import Policy
from align.policies import diffusion
from diffusion import hub, public

HELD = ("float32", "bfloat16", "float16")


def check_held(param_dtype: str) -> None:
  if param_dtype not in HELD:
    raise ValueError(f"param_dtype = {param_dtype!r} is not one of {', '.join(HELD)}; choose one of them")


def make(model: str = "sd15", size: int = None, steps: int = None, guidance: float = None, kernel: str = None,
         eta: float = None, negative: str = None, scheduler: str = None, frozen: bool = True, cache: str = None,
         tiled: bool = False, dtype: str = "float32", remat: bool | str = False, law: str = "uniform",
         law_mean: float = 0.0, law_std: float = 1.0, law_shift: float = 1.0, clip_skip: int = 0,
         param_dtype: str = "float32", law_levels: tuple[float, ...] = ()) -> Policy:
  """model: a folder; or a shipped description, of which there are shapes alone. dtype: what networks compute in; the
  autoencoder stays float32. remat: see layers.remat. law*: of t in log_prob, uniform for SD1.5 to SDXL, "logit_normal"
  for flows, "levels" for networks of few steps. clip_skip: as in hub.open_. param_dtype: what parameters are held in
  that are not trained, bfloat16 for half of their memory; trained ones and the autoencoder are float32. The rest, None
  for the folder's own, as in diffusion/public.py's build."""
  opened = hub.open_(model, dtype=dtype, remat=remat, clip_skip=clip_skip)
  made = public.build(opened, size=size, steps=steps, guidance=guidance, kernel=kernel, eta=eta, negative=negative,
                      scheduler=scheduler, frozen=frozen, cache=cache, tiled=tiled)
  check_held(param_dtype)

  def init(key):
    as_held = lambda role, tree: tree if role == "vae" else jax.tree.map(lambda a: a.astype(param_dtype), tree)
    return {role: as_held(role, tree) for role, tree in made.init(key).items()}

  policy = diffusion.over(made, diffusion.law_of_t(law, law_mean, law_std, law_shift, law_levels))
  return policy._replace(init=init, still="vae/|text" if frozen else "vae/")
