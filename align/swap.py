"""The task that asks where along the chain an image is decided: the prompt is swapped after k of its S steps.

  {"task": "swap", "model": "scenes", "data": {"name": "scenes_prompts", "count": 96}, "success": "scenes/exact", ...}

From the same noise, steps 0 .. k - 1 are taken with one prompt and the others with a second one of the same category;
the image is then judged by both captions, for k = 0 (the second prompt alone) to S (the first alone). Where the first
caption is met more often than the second, the steps before k decided more than those after it. That early steps decide
is why Dense Reward (2402.08265) discounts late ones. With eta above 0 the noise of the steps after a swap is new for
every k in between; the ends are plain sampling from the same keys.
Left out: swaps of anything but the prompt, and back again.
"""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from align import build, evaluate, findings, page, report, shard, statistics
from align import data as batches
from diffusion.core import fold
from diffusion.generator import to_uint8
from diffusion.mesh import batch_sharding, within

SHOWN = 6


def run(config: dict, workdir: str) -> dict:
  return swap(workdir, **{k: v for k, v in config.items() if k != "task"})


def check(config: dict) -> None:
  """Refuses what cannot be before anything is sampled."""
  for spec in config["rewards"].values():
    build.build("rewards", spec)
  if config["success"].split("/")[0] not in config["rewards"]:
    raise build.UserError(f"config.success = {config['success']!r} is of none of the rewards "
                          f"{', '.join(config['rewards'])}; it must be REWARD/PART")
  evaluate.check_models(config["rewards"], config["models"])
  partners(batches.readable(build.build("align.datasets", config["data"])))


def swap(workdir: str, *, model: str, data: dict, rewards: dict, success: str, policy: dict = None, models: dict = None,
         steps: int = 10, eta: float = 0.0, batch: int = 96, seed: int = 0, title: str = "Prompt swap",
         mesh: dict = None) -> dict:
  """Writes results.json, {"first", "second": [success at k = 0 .. S by that caption], "decided": {category: k}}, and
  report.html.

  Args:
    model: folder, workdir or shipped name. policy: its description, where it is not its own (another kernel).
    data: prompts; each is paired with the next one of its category. rewards, models, success: as in `evaluate`.
    steps, eta: S, and the kernel's noise. batch: pairs sampled at a time.

  Raises: UserError for a category with one prompt, and an unknown score.
  """
  workdir, mesh = Path(workdir), shard.mesh(**(mesh or {}))
  records = batches.readable(build.build("align.datasets", data))
  judges, others = evaluate.load_rewards(rewards, models, seed, mesh), partners(records)
  with build.blame("config.model"):
    made, view = evaluate.opened(model, mesh, {}, policy)
  images = swapped(made, view, records, [records[j] for j in others], steps, eta, batch, seed, mesh)
  judged = lambda said: [judge(judges, images[:, k:k + 1], said, success, batch, seed, mesh) for k in range(steps + 1)]
  kinds = evaluate.categories([r.get("meta", {}) for r in records])
  curves = [[statistics.rates(np.nan_to_num(v) > 0.5, kinds, valid=~np.isnan(v), seed=seed) for v in judged(said)]
            for said in (records, [records[j] for j in others])]
  results = {"steps": steps, "eta": eta, "first": curves[0], "second": curves[1], "decided": decided(*curves),
             "prompts": len(records), "seed": seed, "success": success, "title": title,
             "versions": evaluate.versions()}
  workdir.mkdir(parents=True, exist_ok=True)
  report.atomic(workdir / "results.json", json.dumps(results, indent=1).encode())
  report.atomic(workdir / "report.html", html(results, images[:SHOWN],
                                              [(records[i]["prompt"], records[others[i]]["prompt"])
                                               for i in range(min(SHOWN, len(records)))]).encode())
  return results


def partners(records: list) -> list:
  """Of every record the index of the next one of its category, the first one after the last."""
  kinds = evaluate.categories([r.get("meta", {}) for r in records])
  places = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds)}
  for kind, found in places.items():
    if len(found) < 2:
      raise build.UserError(f"config.data has {len(found)} prompt of the category {kind!r}; two or more of each are "
                            "needed to swap them: raise its count, or leave the category out")
  after = {i: found[(n + 1) % len(found)] for found in places.values() for n, i in enumerate(found)}
  return [after[i] for i in range(len(records))]


def chains(policy, view, first, second, keys, steps: int, eta: float):
  """Media [B S + 1 ...] that end chains with the condition `first` for k steps and `second` for the others."""
  sample = lambda cond, keys, **more: policy.sample(view, cond, keys, eta=eta, **more)
  whole, times = sample(first, keys, steps=steps, keep=jnp.arange(steps)), policy.process.times(steps)
  ends = [sample(second, keys, steps=steps).output]
  ends += [sample(second, fold(keys, steps + k), x=whole.x[:, k], steps=times[k:]).output for k in range(1, steps)]
  return jnp.stack([policy.decode(view, x, None) for x in (*ends, whole.output)], 1)


def swapped(policy, view, firsts, seconds, steps, eta, batch, seed, mesh):
  """uint8 [P S + 1 ...], one chain a pair, `batch` pairs at a time."""
  evaluate.check_images(policy)
  batch, total = evaluate.even(min(batch, len(firsts)), mesh), len(firsts)
  draw = jax.jit(within(mesh, lambda *given: chains(policy, *given, steps, eta)))
  out = []
  for start in range(0, total, batch):
    index = np.minimum(np.arange(start, start + batch), total - 1)  # the last batch is padded: one shape for all
    keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.key(seed), p))(index)
    conds = [policy.prepare({"prompt": [said[i]["prompt"] for i in index]})["cond"] for said in (firsts, seconds)]
    out.append(to_uint8(shard.to_host(draw(view, *shard.put((*conds, keys), batch_sharding(mesh))))))
  return np.concatenate(out)[:total]


def judge(judges, images, records, success: str, batch: int, seed: int, mesh):
  """The score `success` [P 1] of images [P 1 ...] by the captions of `records`, NaN where it failed."""
  values = evaluate.judge(judges, images, records, batch=batch, seed=seed, mesh=mesh)
  if success not in values:
    raise build.UserError(f"config.success = {success!r} is not one of the scores {', '.join(values)}; choose one of "
                          "them")
  return values[success]


def decided(first: list, second: list) -> dict:
  """{"overall" or category: the least k from which on the first caption is met at least as often as the second}."""
  names = ["overall", *first[0]["categories"]]
  ahead = {name: np.array([rate(a, name) >= rate(b, name) for a, b in zip(first, second, strict=True)])
           for name in names}
  return {name: int(np.flatnonzero(~won)[-1] + 1) if not won.all() else 0 for name, won in ahead.items()}


def rate(found: dict, name: str) -> float:
  """NaN where every score failed."""
  value = (found["overall"] if name == "overall" else found["categories"][name])["rate"]
  return np.nan if value is None else value


def html(results: dict, images, prompts: list) -> str:
  """A page: what is decided when, and some chains."""
  count = results["steps"] + 1
  samples = "".join(f"<p>{page.esc(a)} → {page.esc(b)}</p><div class=\"tiles\" style=\"--samples:{count}\">"
                    + "".join(page.picture(image, f"{a}, then {b}", None) for image in row) + "</div>"
                    for (a, b), row in zip(prompts, images, strict=True))
  return page.document(results["title"], f"<header><h1>{page.esc(results['title'])}</h1></header>"
                       + findings.decision(results, "Where the image is decided")
                       + page.section("Samples", "The first pairs, not picked; from left to right k = 0 to S.",
                                      samples))
