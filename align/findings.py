"""Parts of the report about what a pipeline did beside training: pairs collected, examinations, prompts swapped.

As report.py: draws what is in `results` and computes nothing.
"""
from collections.abc import Mapping

import numpy as np

from align import charts, page

esc = page.esc
PROMPTS = ("first prompt", "second prompt")  # of swap.py
EXAMPLES, PICTURES = 3, 3  # that are shown of an examination, and of a question


def collected(results: dict) -> str:
  """What every collection made, a row a way of making pairs: results["collected"] of pipeline.py."""
  rows = [[esc(name), esc(way), f"{made['prompts']:,}", f"{found['pairs']:,}",
           esc(", ".join(f"{count:,} {why}" for why, count in found["dropped"].items() if count) or "–"),
           share(found, "right"), share(found, "better"), share(found, "worse")]
          for name, made in (results.get("collected") or {}).items() for way, found in made["ways"].items()]
  if not rows:
    return ""
  head = ["", "way", "prompts", "pairs", "left out", "right, of those that differ", "better", "worse"]
  took = "; ".join(f"{esc(name)}: " + ", ".join(f"{what} {spent:,.1f} s" for what, spent in made["seconds"].items())
                   for name, made in results["collected"].items() if "seconds" in made)
  return page.section("Pairs", "Made by a reward or a judge; the last columns are what another one says of them, "
                      f"shares with 95 % intervals. {took}", page.table(head, rows))


def share(found: dict, what: str) -> str:
  one = (found.get("audit") or {}).get(what) or {"share": None, "interval": None}
  return f"{page.number(one['share'])}<small>{page.span(one['interval'], page.number)}</small>"


def examined(results: dict, examples: Mapping) -> str:
  """What examinations found, and their first examples: {name: entries of examine.py's examples.npz}."""
  found = results.get("examined") or {}
  if not found:
    return ""
  columns = list(dict.fromkeys(name for one in found.values() for name in measured(one)))
  rows = [[esc(name), *(page.number(measured(one).get(column)) for column in columns)] for name, one in found.items()]
  shown = [pictured(name, examples[name]) for name in found if "media" in examples.get(name, ())]
  note = "Shares of right answers, and means of what was measured of what was said."
  note += " Below, first examples." if shown else ""
  return page.section("Examinations", note, page.table(["", *columns], rows), *shown)


def measured(one: dict) -> dict:
  """{column: number} of one examination."""
  kinds = {kind: entry["accuracy"] for kind, entry in one.get("scores", {}).items()}
  return {**({"accuracy": one["accuracy"]} if "accuracy" in one else {}), **(kinds if len(kinds) > 1 else {}),
          **one.get("means", {})}


def pictured(name: str, kept: Mapping) -> str:
  """Each picture with what was said of it and, where that was painted, what became of it; questions with an answer."""
  cells = []
  for i, said in enumerate(kept["said"][:EXAMPLES]):
    media = np.asarray(kept["media"][i])
    media = [media] if media.ndim == 3 else media[:min(int(kept["shown"][i]), PICTURES)]
    right = bool(kept["right"][i]) if "right" in kept else None
    tiles = [page.picture(one, "shown", None) for one in media]
    tiles += [page.picture(kept["made"][i], "painted", None)] if "made" in kept else []
    mark = "" if right is None else f' <b class="{"good" if right else "bad"}">{"✓" if right else "✕"}</b>'
    asked = "" if right is None else f'<p class="prompt">{esc(kept["prompt"][i])}</p>'
    cells.append(f'<div>{asked}<div class="tiles" style="--samples:{len(tiles)}">{"".join(tiles)}</div>'
                 f'<p class="note">{esc(said)}{mark}</p></div>')
  return (f'<div class="shown"><h3>{esc(name)}</h3><div class="arms" style="--columns:3">' + "\n".join(cells)
          + "</div></div>")


def swapped(results: dict) -> str:
  """Where along the chain a picture is decided: results["swapped"] of pipeline.py."""
  return "\n".join(decision(found, f"Where the image is decided: {name}")
                   for name, found in (results.get("swapped") or {}).items())


def decision(found: dict, title: str) -> str:
  """A section about results of swap.py: a chart a category and the numbers."""
  ks, curves = range(found["steps"] + 1), dict(zip(PROMPTS, (found["first"], found["second"]), strict=True))
  of = lambda entry, name: (entry["overall"] if name == "overall" else entry["categories"][name])["rate"]
  known = lambda entries, name: [np.nan if of(entry, name) is None else of(entry, name) for entry in entries]
  colours = {arm: i for i, arm in enumerate(PROMPTS)}
  drawn = [charts.lines(name, {arm: (ks, known(entries, name)) for arm, entries in curves.items()}, colours,
                        xlabel="steps with the first prompt") for name in found["decided"]]
  cell = lambda entry: f"{page.number(entry['rate'])}<small>{page.span(entry['interval'], page.number)}</small>"
  rows = [[str(k), *(cell(entries[k]["overall"]) for entries in curves.values())] for k in ks]
  said = "; ".join(f"{name} {k}" for name, k in found["decided"].items())
  note = (f"{found['prompts']} pairs, {found['steps']} steps, eta {found['eta']:g}. From this many steps on the first "
          f"prompt's caption is met at least as often as the second's: {esc(said)}. Success rates and 95 % intervals.")
  return page.section(title, note, '<div class="charts">' + "".join(f"<figure>{c}</figure>" for c in drawn) + "</div>",
                      page.table(["k", *PROMPTS], rows))
