"""Inline SVG charts for the report: small line charts with direct labels, and intervals by category.

Colours are CSS variables of the page (`--arm-0`, `--ink`, `--rule` ...), so that a chart follows the light or dark
scheme of its reader. Every text is escaped here. Left out: log axes, legends, interaction.
"""
import html
import math
from typing import Any

import numpy as np


def lines(title: str, series: dict, colours: dict, *, width: int = 520, height: int = 240, xlabel: str = "step") -> str:
  """One small line chart -> SVG text.

  Args:
    title: what the y axis shows.
    series: {arm: (steps, values)}; non-finite values are left out, a series of one point is drawn as a level.
    colours: {arm: index of its colour}.
    width, height: in pixels, before the page scales the chart.
    xlabel: what the x axis shows.

  Returns:
    an <svg> element, or "" where no series has a point.
  """
  points = {arm: finite(*xy) for arm, xy in series.items()}
  points = {arm: xy for arm, xy in points.items() if len(xy[0])}
  if not points:
    return ""
  left, right, top, bottom = 52, 22 + 7 * max(map(len, points)), 34, 38
  xs, ys = (np.concatenate([xy[i] for xy in points.values()]) for i in (0, 1))
  (x0, x1), xticks = axis(min(xs.min(), 0), xs.max(), 4, snug=True)
  (y0, y1), yticks = axis(ys.min(), ys.max(), 4)
  place = (lambda x: left + (x - x0) / (x1 - x0) * (width - left - right),
           lambda y: height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom))
  body = [text(0, 14, title, "title"), *y_grid(yticks, place[1], left, width - right),
          *x_ticks(xticks, place[0], height - bottom, (left + width - right) / 2, xlabel)]
  for arm, (x, y) in points.items():
    body += curve(place[0](x), place[1](y), f"var(--arm-{colours[arm]})", (left, width - right))
  body += end_labels({arm: place[1](drawn_end(y)) for arm, (_, y) in points.items()}, colours, width - right + 8)
  return svg(width, height, f"{title} by {xlabel}", body)


def intervals(rows: dict, colours: dict, *, width: int = 1056) -> str:
  """Rates with their intervals, one block of arms per row -> SVG text.

  Args:
    rows: {row name: {arm: (rate, [low, high] or None)}}; a rate of None is left out.
    colours: {arm: index of its colour}.
    width: in pixels.
  """
  left, right, top, pitch, gap = 130, 90, 8, 15, 16
  place = lambda v: left + v * (width - left - right)
  body, y = [], top
  for name, entries in rows.items():
    body.append(text(left - 14, y + pitch * len(entries) / 2 + 4, name, "name", "end"))
    for arm, (rate, interval) in entries.items():
      y += pitch
      if rate is not None:
        body += whisker(place, y - pitch / 2, rate, interval, colours[arm], arm)
    y += gap
    body.append(line(left, y - gap / 2, width - right, y - gap / 2, "rule"))
  ticks = [line(place(v), top - 4, place(v), y - gap / 2, "rule") for v in (0, 0.25, 0.5, 0.75, 1)]
  marks = [text(place(v), y + 8, f"{v:g}", "tick", "middle") for v in (0, 0.25, 0.5, 0.75, 1)]
  title = text((place(0) + place(1)) / 2, y + 26, "success rate", "tick", "middle")
  return svg(width, int(y + 34), "success rate by category", [*ticks, *body, *marks, title])


def whisker(place: Any, y: float, rate: float, interval: Any, colour: int, arm: str) -> list:
  """A dot, its interval, and its value on the right."""
  low, high = interval or (rate, rate)
  ink = f"var(--arm-{colour})"
  return [f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{ink}" '
          'stroke-width="3" stroke-linecap="round" opacity="0.38"/>',
          f'<circle cx="{place(rate):.1f}" cy="{y:.1f}" r="4" fill="{ink}"/>',
          text(max(place(high), place(rate) + 4) + 7, y + 4, f"{arm} {rate:.2f}", "value", fill=ink)]


def curve(x: Any, y: Any, ink: str, extent: tuple) -> list:
  """A line in pixels: a level for one point, the points faint beneath a running mean for many."""
  if len(x) == 1:
    return [f'<line x1="{extent[0]}" x2="{extent[1]}" y1="{y[0]:.1f}" y2="{y[0]:.1f}" stroke="{ink}" '
            'stroke-width="1.5" stroke-dasharray="2 4" stroke-linecap="round"/>',
            f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3" fill="{ink}"/>']
  if len(x) <= 40:
    dots = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="{ink}"/>' for a, b in zip(x, y, strict=True)]
    return [path(x, y, ink, 2, 1.), *(dots if len(x) <= 16 else [])]
  return [path(x, y, ink, 1, 0.25), path(x, smooth(y), ink, 2, 1.)]


def smooth(y: Any) -> Any:
  """Centred running mean over about a twentieth of the points, shorter at the ends."""
  half = max(len(y) // 40, 1)
  total = np.concatenate([[0.], np.cumsum(y)])
  i = np.arange(len(y))
  low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
  return (total[high] - total[low]) / (high - low)


def drawn_end(y: Any) -> float:
  """Where the drawn line ends."""
  return float(smooth(y)[-1] if len(y) > 40 else y[-1])


def end_labels(ends: dict, colours: dict, x: float) -> list:
  """Names at the ends of the lines, pushed apart where they would overlap."""
  body, last = [], -math.inf
  for arm, y in sorted(ends.items(), key=lambda item: item[1]):
    last = max(y, last + 14)
    body.append(text(x, last + 4, arm, "label", fill=f"var(--arm-{colours[arm]})"))
  return body


def y_grid(ticks: list, place: Any, x0: float, x1: float) -> list:
  return [item for v in ticks for item in (
    line(x0, place(v), x1, place(v), "rule"), text(x0 - 8, place(v) + 4, f"{v:.4g}", "tick", "end"))]


def x_ticks(ticks: list, place: Any, y: float, centre: float, xlabel: str) -> list:
  marks = [text(place(v), y + 17, f"{v:,.0f}" if abs(v) >= 1 or v == 0 else f"{v:g}", "tick", "middle") for v in ticks]
  return [*marks, text(centre, y + 33, xlabel, "tick", "middle")]


def finite(steps: Any, values: Any) -> tuple:
  """Steps and values as float arrays without the points that have no value."""
  x, y = np.asarray(steps, float).ravel(), np.asarray(values, float).ravel()
  if len(x) != len(y):
    raise ValueError(f"curve: {len(x)} steps beside {len(y)} values; there must be one value a step: "
                     "pass (steps, values) of one length")
  keep = np.isfinite(x) & np.isfinite(y)
  return x[keep], y[keep]


def axis(low: float, high: float, count: int, snug: bool = False) -> tuple:
  """Limits and round ticks that hold [low, high]; snug limits end at the data."""
  span = high - low or max(abs(high), 1.) * 0.1
  raw = span / count
  unit = 10. ** math.floor(math.log10(raw))
  step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  last = max(last, first + 1)
  ticks = [i * step for i in range(first, last + 1)]
  if not snug or high == low:
    return (ticks[0], ticks[-1]), ticks
  return (low, high), [v for v in ticks if low <= v <= high]


def path(x: Any, y: Any, ink: str, width: float, opacity: float) -> str:
  points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
  return (f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="{width}" opacity="{opacity}" '
          'stroke-linejoin="round" stroke-linecap="round"/>')


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
  return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str, anchor: str = "start", fill: str = "") -> str:
  style = f' style="fill:{fill}"' if fill else ""
  return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(str(words))}</text>'


def svg(width: int, height: int, label: str, body: list) -> str:
  return (f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
          f'aria-label="{html.escape(label)}">{"".join(body)}</svg>')
