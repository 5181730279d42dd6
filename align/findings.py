"""Parts of the report about what a pipeline did beside training: pairs that were collected, and examinations.

As report.py: draws what is in `results` and computes nothing.
"""
from collections.abc import Mapping

import numpy as np

from align import page

esc = page.esc
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
  return page.section("Pairs", "Made by a reward or a judge; the last columns are what another one says of them, "
                      "shares with 95 % intervals.", page.table(head, rows))


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
