"""What a run found: `report.html` in one file, `results.json`, and sample grids as PNG.

The page refers to nothing outside itself (page.py, charts.py) and escapes all text from configs and data. Prompts shown
are the first of each category, not picked. Left out: interaction, and any number that is not in `results`: this file
draws and does not compute (statistics.py does).
"""
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align import charts, findings, page

esc = page.esc


def write(workdir: Any, results: dict, *, arms: dict, prompts: Sequence[str], categories: Sequence[str],
          curves: dict | None = None, config: Any = None, examples: Mapping | None = None, per_category: int = 2,
          per_prompt: int = 4) -> pathlib.Path:
  """Writes WORKDIR/report.html, WORKDIR/results.json and WORKDIR/images/ARM.png -> path of the report.

  Args:
    workdir: folder of the run.
    results: what `results.json` holds. Only `arms` and its `overall` must be there; a part of the page whose entry is
      missing is left out:
      {"arms": {arm: {"overall": entry, "categories": {name: entry},      # entries of statistics.rates
                      "diversity": {"value", "interval"}}},
       "scores": {arm: {"reward/part": mean}},
       "differences": {"aligned - base": {"overall": gain, "categories": {name: gain}}},   # statistics.paired
       "diversity_ratio": {"value", "interval", "prompts"},               # primary arm over base, statistics.ratio
       "targets": [{"name": str, "value": float or None, "at_least" or "at_most": float}],    # "met" is added here
      "alarms": {arm: {"step", "began", "good", "reasons": [sentence], "action"}},           # of health.py
       "collected", "examined", "swapped": what pipeline.py puts there,
       "stages": [{"name": str, "seconds": float, "peak_memory_bytes": int, "device_memory_bytes"?: int}],
       "primary": arm that the run is about (the last arm if missing), "seed": int, "versions": {name: version}}
    arms: {arm: {"images": uint8 [P n H W C] or clips [P n F H W C], "success": bool [P n] or missing}}, the samples
      of all arms from the same prompts and noise.
    prompts: [P] texts.
    categories: [P] names.
    curves: {arm: {metric name: (steps, values)}}; a chart per metric name, in order of appearance.
    config: the resolved config, nested mappings.
    examples: {examination: entries of its examples.npz}, see examine.py.
    per_category: how many prompts of a category are shown.
    per_prompt: how many samples of a prompt are shown.

  Raises:
    ValueError: images that are not uint8, have other axes, or do not match the prompts.
  """
  workdir, curves = pathlib.Path(workdir), curves or {}
  arms = {name: checked(name, arm, len(prompts)) for name, arm in arms.items()}
  chosen = chosen_prompts(prompts, categories, per_category)
  results = judged(plain(results))
  (workdir / "images").mkdir(parents=True, exist_ok=True)
  for name, arm in arms.items():
    grid = page.png(page.sheet(arm["images"][chosen, :per_prompt]))
    atomic(workdir / "images" / (re.sub(r"[^A-Za-z0-9_-]+", "_", name) + ".png"), grid)
  text = json.dumps(results, indent=2, allow_nan=False) + "\n"
  atomic(workdir / "results.json", text.encode())
  body = sections(workdir.resolve().name, results, arms, prompts, categories, curves, config, examples or {}, chosen,
                  per_prompt)
  atomic(workdir / "report.html", page.document(f"{workdir.resolve().name}: report", "\n".join(body)).encode())
  return workdir / "report.html"


def without_arms(workdir: Any, results: dict, *, config: Any = None, examples: Mapping | None = None) -> pathlib.Path:
  """WORKDIR/report.html and results.json of what has no arms: what was collected, examined and swapped -> path of the
  report. Arguments as of `write`; "title" becomes the page's."""
  workdir, results = pathlib.Path(workdir), plain(results)
  atomic(workdir / "results.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
  name = results.get("title", workdir.resolve().name)
  seed = f"seed {results['seed']}" if "seed" in results else ""
  head = f'<header>\n<h1>{esc(name)}</h1>\n<div class="soft">{esc(seed)}</div>\n</header>'
  body = [head, *(part for part in beside(results, examples or {}, config) if part)]
  atomic(workdir / "report.html", page.document(f"{name}: report", "\n".join(body)).encode())
  return workdir / "report.html"


def sections(title: str, results: dict, arms: dict, prompts: Sequence[str], categories: Sequence[str], curves: dict,
             config: Any, examples: Mapping, chosen: list, per_prompt: int) -> list:
  """The parts of the page, those without content left out."""
  names = list(dict.fromkeys([*results["arms"], *arms, *curves]))
  main = primary(results)
  colours = {name: i % 6 for i, name in enumerate([main, *(name for name in names if name != main)])}
  shown = [(i, prompts[i], categories[i]) for i in chosen]
  parts = [header(title, results, main, prompts, arms), headline(results, main), alarms(results), targets(results),
           samples(arms, shown, per_prompt), charts_of(curves, colours), by_category(results, main, colours),
           by_arm(results), *beside(results, examples, config)]
  return [part for part in parts if part]


def beside(results: dict, examples: Mapping, config: Any) -> list:
  """The parts that need no arms."""
  return [findings.collected(results), findings.examined(results, examples), findings.swapped(results), stages(results),
          resolved(config), versions(results)]


def header(title: str, results: dict, main: str, prompts: Sequence[str], arms: dict) -> str:
  overall = results["arms"][main]["overall"]
  facts = [f"{len(prompts):,} prompts"] if prompts else []
  facts += [f"{next(iter(arms.values()))['images'].shape[1]} samples each"] if arms else []
  facts += [f"seed {results['seed']}"] if "seed" in results else []
  return (f'<header>\n<h1>{esc(title)}</h1>\n<div class="soft">{esc(" · ".join(facts))}</div>\n'
          f'<p class="lead"><strong>{esc(main)}</strong> succeeds at a rate of {page.number(overall["rate"])} '
          f"({overall['successes']:,} of {overall['count']:,} samples){gained(results, main)}.</p>\n</header>")


def gained(results: dict, main: str) -> str:
  """The sentence's second half: the gain over every other arm."""
  gains = [(other, entry["overall"]["difference"]) for other, entry in gains_of(results, main).items()]
  said = [f"{esc(page.signed(gain))} against {esc(other)}" for other, gain in gains if gain is not None]
  return ", " + " and ".join(said) if said else ""


def headline(results: dict, main: str) -> str:
  """One card for the rate, each gain, and the diversity that is left."""
  overall = results["arms"][main]["overall"]
  cards = [card(f"Success rate, {main}", page.number(overall["rate"]), overall["interval"])]
  for other, entry in gains_of(results, main).items():
    gain = entry["overall"]
    cards.append(card(f"Gain over {other}", page.signed(gain["difference"]), gain["interval"], page.signed))
  if "diversity_ratio" in results:
    kept = results["diversity_ratio"]
    cards.append(card("Diversity, share kept", page.number(kept["value"]), kept["interval"]))
  return ('<div class="cards">' + "".join(cards) + '</div>\n<p class="note" style="margin-top:12px">Ranges are 95 % '
          "bootstrap intervals clustered by prompt; overall is the unweighted mean over categories.</p>")


def card(name: str, value: str, interval: Any, form: Any = None) -> str:
  return (f'<div class="card"><div class="name">{esc(name)}</div><div class="big">{esc(value)}</div>'
          f'<div class="range">{esc(page.span(interval, form or page.number))}</div></div>')


def alarms(results: dict) -> str:
  """Runs whose held-out samples say that the reward is being hacked."""
  rows = [[esc(name), esc("; ".join(found["reasons"])), str(found["began"]), str(found["step"]), str(found["good"]),
           esc(found["action"])] for name, found in (results.get("alarms") or {}).items()]
  if not rows:
    return ""
  head = ["", "what was seen", "since step", "alarm", "last good step", "action"]
  return page.section("Alarms", "These runs probably learned what the reward pays for, and not what was meant.",
                      page.table(head, rows))


def targets(results: dict) -> str:
  """The verdict, target by target."""
  found = results.get("targets") or []
  if not found:
    return ""
  rows = [[esc(t["name"]), page.number(t["value"]), esc(bound(t)), pill(t["met"])] for t in found]
  reached = sum(t["met"] is True for t in found)
  verdicts = page.table(["", "reached", "wanted", ""], rows)
  return page.section("Targets", f"{reached} of {len(found)} met.", f'<div class="narrow">{verdicts}</div>')


def pill(met: bool | None) -> str:
  kind, words = {True: ("good", "✓ met"), False: ("bad", "✕ missed"), None: ("soft", "unknown")}[met]
  return f'<span class="pill {kind}">{words}</span>'


def samples(arms: dict, shown: list, per_prompt: int) -> str:
  """Before and after: the same prompts and noise, arms side by side."""
  if not arms or not shown:
    return ""
  parts = []
  for category in dict.fromkeys(c for _, _, c in shown):
    parts.append(f"<h3>{esc(category)}</h3>")
    parts += [one_prompt(arms, i, prompt, per_prompt) for i, prompt, c in shown if c == category]
  note = "The first prompts of each category, not picked."
  note += " Samples in the same place of two arms started from the same noise." if len(arms) > 1 else ""
  judged_any = any("success" in arm for arm in arms.values())
  note += ' Framed <b class="good">green ✓</b> if right, <b class="bad">red ✕</b> if wrong.' if judged_any else ""
  return page.section("Samples", note, *parts)


def one_prompt(arms: dict, i: int, prompt: str, per_prompt: int) -> str:
  clips = next(iter(arms.values()))["images"].ndim == 6
  count = min(per_prompt, next(iter(arms.values()))["images"].shape[1])
  columns = min(len(arms), 2) if clips else min(len(arms), 4)
  blocks = []
  for name, arm in arms.items():
    marks = [bool(v) for v in arm["success"][i]] if "success" in arm else None
    tally = f"<span>{sum(marks)} of {len(marks)}</span>" if marks else ""
    tiles = "".join(page.picture(arm["images"][i, j], f"{prompt} ({name})", marks[j] if marks else None)
                    for j in range(min(count, arm["images"].shape[1])))
    kind = "tiles clips" if clips else "tiles"
    blocks.append(f'<div><h4>{esc(name)}{tally}</h4><div class="{kind}" style="--samples:{count}">{tiles}</div></div>')
  return (f'<div class="shown"><p class="prompt">{esc(prompt)}</p><div class="arms" style="--columns:{columns}">'
          + "\n".join(blocks) + "</div></div>")


def charts_of(curves: dict, colours: dict) -> str:
  metrics = dict.fromkeys(metric for arm in curves.values() for metric in arm)
  drawn = [charts.lines(metric, {arm: found[metric] for arm, found in curves.items() if metric in found}, colours)
           for metric in metrics]
  figures = [f"<figure>{chart}</figure>" for chart in drawn if chart]
  note = "Faint lines are single measurements, bold ones their running mean; a dotted line is a level measured once."
  return page.section("Curves", note, f'<div class="charts">{"".join(figures)}</div>') if figures else ""


def by_category(results: dict, main: str, colours: dict) -> str:
  """Rates and gains per category with their intervals, drawn and as a table."""
  arms, gains = results["arms"], gains_of(results, main)
  names = list(dict.fromkeys(c for arm in arms.values() for c in arm.get("categories", {})))
  if not names:
    return ""
  pick = lambda entry, c: entry["overall"] if c == "overall" else entry.get("categories", {}).get(c)
  row = lambda c: [esc(c), *(rate_cell(pick(arm, c)) for arm in arms.values()),
                   *(gain_cell(pick(gain, c)) for gain in gains.values())]
  dots = {c: {arm: (e["rate"], e["interval"]) for arm, entry in arms.items() if (e := pick(entry, c))}
          for c in [*names, "overall"]}
  head = ["", *arms, *(f"gain over {other}" for other in gains)]
  return page.section("By category", "Success rate, its 95 % interval, successes of samples.",
                      f"<figure>{charts.intervals(dots, colours)}</figure>",
                      page.table(head, [row(c) for c in names], row("overall")))


def by_arm(results: dict) -> str:
  """What every arm reached in each score, and kept."""
  scores = results.get("scores", {})
  names = list(dict.fromkeys(name for found in scores.values() for name in found))
  rows = []
  for name, arm in results["arms"].items():
    diversity = arm.get("diversity") or {"value": None, "interval": None}
    rows.append([esc(name), rate_cell(arm["overall"]),
                 f"{page.number(diversity['value'])}<small>{page.span(diversity['interval'], page.number)}</small>",
                 *(page.number(scores.get(name, {}).get(score)) for score in names)])
  head = ["", "success rate", "diversity", *map(esc, names)]
  return page.section("Arms", "Diversity is measured within a prompt; the other columns are means of every score.",
                      page.table(head, rows))


def stages(results: dict) -> str:
  found = results.get("stages") or []
  if not found:
    return ""
  longest = max(max(stage["seconds"] for stage in found), 1e-9)
  rows = [[esc(s["name"]), f"{s['seconds']:,.1f} s", memory(s.get("peak_memory_bytes")) + (
             f", device {memory(s['device_memory_bytes'])}" if s.get("device_memory_bytes") else ""),
           f'<span class="meter" style="width:{100 * s["seconds"] / longest:.1f}%"></span>'] for s in found]
  peaks = [s["peak_memory_bytes"] for s in found if s.get("peak_memory_bytes") is not None]
  seconds = sum(s["seconds"] for s in found)
  total = ["total", f"{seconds:,.1f} s", memory(max(peaks, default=None)), ""]
  made = page.table(["", "time", "peak memory", ""], rows, total).replace('<td><span class="meter"',
                                                                         '<td class="wide"><span class="meter"')
  return page.section("Stages", f"{seconds / 60:.1f} minutes in all.", made)


def resolved(config: Any) -> str:
  if not config:
    return ""
  return f"<details><summary>Resolved config</summary>\n<pre>{esc(formatted(config))}</pre></details>"


def versions(results: dict) -> str:
  found = results.get("versions") or {}
  return f"<footer>{esc(' · '.join(f'{name} {v}' for name, v in found.items()))}</footer>" if found else ""


def rate_cell(entry: dict | None) -> str:
  if entry is None:
    return "–"
  return (f"{page.number(entry['rate'])}<small>{page.span(entry['interval'], page.number)}</small>"
          f"<small>{entry['successes']:,} / {entry['count']:,}</small>")


def gain_cell(entry: dict | None) -> str:
  return "–" if entry is None else (f"{page.signed(entry['difference'])}"
                                    f"<small>{page.span(entry['interval'], page.signed)}</small>")


def gains_of(results: dict, main: str) -> dict:
  """{other arm: gain} of the differences "main - other"."""
  start = f"{main} - "
  return {name[len(start):]: gain for name, gain in results.get("differences", {}).items() if name.startswith(start)}


def primary(results: dict) -> str:
  """The arm that the run is about."""
  name = results.get("primary", list(results["arms"])[-1])
  if name not in results["arms"]:
    raise ValueError(f"primary: {name!r} is no arm; the arms are {', '.join(results['arms'])}: name one of them")
  return name


def judged(results: dict) -> dict:
  """Results whose targets say whether they were met; None where there is no value."""
  if not results.get("targets"):
    return results
  return {**results, "targets": [{**target, "met": met(target)} for target in results["targets"]]}


def met(target: dict) -> bool | None:
  if ("at_least" in target) == ("at_most" in target):
    raise ValueError(f"target: {target['name']!r} has the keys {sorted(target)}; exactly one of at_least and at_most "
                     "must be there: give it one bound")
  if target["value"] is None:
    return None
  return target["value"] >= target["at_least"] if "at_least" in target else target["value"] <= target["at_most"]


def bound(target: dict) -> str:
  return f"at least {target['at_least']:g}" if "at_least" in target else f"at most {target['at_most']:g}"


def memory(count: int | None) -> str:
  return "–" if count is None else f"{count / 2 ** 30:.2f} GiB"


def formatted(value: Any, depth: int = 0) -> str:
  """Nested mappings and lists of mappings as indented `name: value` lines."""
  pad = "  " * depth
  if isinstance(value, Mapping) and value:
    return "\n".join(f"{pad}{k}:\n{formatted(v, depth + 1)}" if deep(v) else f"{pad}{k}: {v!r}"
                     for k, v in value.items())
  if deep(value):
    return "\n".join(f"{pad}-\n{formatted(v, depth + 1)}" if deep(v) else f"{pad}- {v!r}" for v in value)
  return f"{pad}{value!r}"


def deep(value: Any) -> bool:
  """True for what `formatted` spreads over lines."""
  if isinstance(value, Mapping):
    return len(value) > 0
  return isinstance(value, (list, tuple)) and any(deep(v) for v in value)


def checked(name: str, arm: dict, prompts: int) -> dict:
  """An arm with arrays in it, refused where they do not match."""
  images = np.asarray(arm["images"])
  if images.dtype != np.uint8 or images.ndim not in (5, 6) or images.shape[-1] not in (1, 3):
    raise ValueError(f"images of {name}: {images.dtype} {images.shape}; they must be uint8 [P n H W C] or [P n F H W "
                     "C] with C 1 or 3: multiply media in [0, 1] by 255, round, and group them by prompt")
  if len(images) != prompts:
    raise ValueError(f"images of {name}: {len(images)} prompts, but {prompts} texts; there must be one row of samples "
                     "a prompt: pass the prompts that were sampled")
  if "success" not in arm:
    return {"images": images}
  success = np.asarray(arm["success"])
  if success.shape != images.shape[:2]:
    raise ValueError(f"success of {name}: shape {success.shape} beside {images.shape[:2]} samples; it must be [P n]: "
                     "give one flag a sample")
  return {"images": images, "success": success}


def chosen_prompts(prompts: Sequence[str], categories: Sequence[str], per_category: int) -> list:
  """Indices of the first prompts of each category, categories in order of appearance."""
  if len(prompts) != len(categories):
    raise ValueError(f"categories: {len(categories)} beside {len(prompts)} prompts; there must be one a prompt: "
                     "pass one name for all if there is only one")
  return [i for c in dict.fromkeys(categories) for i in [j for j, d in enumerate(categories) if d == c][:per_category]]


def plain(value: Any) -> Any:
  """Arrays, numpy numbers and tuples as JSON knows them; a number that is not finite becomes None."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
    return plain(np.asarray(value).tolist())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def atomic(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all."""
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    partial.write_bytes(data)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
