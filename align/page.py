"""Pieces of a self-contained HTML page: its style, tables, images as base64 PNG.

Nothing refers outside the page. Strings handed to these functions are HTML already: `esc` what comes from people.
"""
import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #ffffff; --ink: #1c2126; --soft: #626b75; --rule: #e4e6e8;
  --good: #23834f; --bad: #c43d4b; --good-wash: #e6f4ec; --bad-wash: #fbe9ea; --arm-0: #0b63a5; --arm-1: #7b838d;
  --arm-2: #b86e00; --arm-3: #7a4fb5; --arm-4: #0f7f77; --arm-5: #b03a77; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1b1f23; --ink: #e6e9ec; --soft: #98a2ad;
  --rule: #2e343a; --good: #55c088; --bad: #ef7d87; --good-wash: #1a3327; --bad-wash: #3a2024; --arm-0: #62b0ee;
  --arm-1: #9aa3ad; --arm-2: #e3a548; --arm-3: #b697ea; --arm-4: #4fc4ba; --arm-5: #e884b5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 32px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 56px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 12px; margin: 32px 0 8px; color: var(--soft); font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; }
p { margin: 0 0 14px; max-width: 92ch; }
.soft, .note { color: var(--soft); } .note { font-size: 13.5px; }
.lead { font-size: 17px; margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 28px 0 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px 14px; }
.card .name { color: var(--soft); font-size: 13.5px; }
.card .big { font-size: 33px; line-height: 1.25; font-weight: 600; letter-spacing: -.02em; }
.card .range { color: var(--soft); font-size: 13.5px; }
.good { color: var(--good); } .bad { color: var(--bad); }
.pill { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px; font-weight: 600; }
.pill.good { background: var(--good-wash); } .pill.bad { background: var(--bad-wash); }
.pill.soft { background: var(--rule); }
.scroll { overflow-x: auto; margin: 12px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 8px 0 8px 22px; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.total td { border-bottom: 0; font-weight: 600; } tr.total td small { font-weight: 400; }
td small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; }
.meter { display: block; height: 6px; border-radius: 3px; background: var(--arm-0); opacity: .75; margin-top: 8px;
  min-width: 2px; }
.narrow { max-width: 720px; }
td.wide { width: 45%; min-width: 120px; }
.prompt { margin: 0 0 6px; font-size: 15px; }
.shown { padding: 12px 0 16px; border-bottom: 1px solid var(--rule); }
.arms { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 10px 26px; }
.arms h4 { margin: 0 0 5px; font-size: 13px; font-weight: 600; display: flex; justify-content: space-between; }
.arms h4 span { color: var(--soft); font-weight: 400; }
.tiles { display: grid; grid-template-columns: repeat(var(--samples), minmax(0, 92px)); gap: 6px; }
.tiles.clips { grid-template-columns: minmax(0, 640px); }
.tile { position: relative; border: 3px solid var(--rule); border-radius: 6px; overflow: hidden; line-height: 0; }
.tile img { width: 100%; height: auto; image-rendering: pixelated; } .tile img.fine { image-rendering: auto; }
.tile.right { border-color: var(--good); } .tile.wrong { border-color: var(--bad); }
.tile i { display: block; height: 15px; color: var(--card); font: 700 10.5px/16px system-ui, "DejaVu Sans", sans-serif;
  text-align: center; }
.tile.right i { background: var(--good); } .tile.wrong i { background: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 30px 36px;
  margin-top: 18px; }
figure { margin: 18px 0 0; } .charts figure { margin: 0; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
svg .title { font-size: 14px; font-weight: 600; fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 11.5px; }
svg .label { font-weight: 600; } svg .name { fill: var(--ink); font-size: 13px; } svg .value { font-size: 11.5px; }
svg .rule { stroke: var(--rule); stroke-width: 1; }
details { margin-top: 56px; } summary { cursor: pointer; font-size: 19px; font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; overflow-x: auto;
  font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--rule); color: var(--soft); font-size: 13px; }
@media (max-width: 760px) { main { padding: 28px 16px 48px; } .arms { grid-template-columns: minmax(0, 1fr); } }
@media print { main { padding: 0; max-width: none; } .shown, .card, figure { break-inside: avoid; } }
"""


def esc(value: Any) -> str:
  """Text of people -> HTML."""
  return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
  return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
  return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def span(interval: Any, form: Any) -> str:
  return "" if interval is None else f"{form(interval[0])} to {form(interval[1])}"


def document(title: str, body: str) -> str:
  return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{esc(title)}</title>\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n")


def section(title: str, note: str, *parts: str) -> str:
  return f'<section>\n<h2>{esc(title)}</h2>\n<p class="note">{note}</p>\n' + "\n".join(parts) + "\n</section>"


def table(head: list, rows: list, total: list | None = None) -> str:
  """Rows of HTML cells under column names; `total` is set apart at the end."""
  cells = lambda row, kind: "".join(f"<{kind}>{cell}</{kind}>" for cell in row)
  body = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
  last = [f'<tr class="total">{cells(total, "td")}</tr>'] if total else []
  return (f'<div class="scroll"><table><thead><tr>{cells(map(esc, head), "th")}</tr></thead><tbody>'
          + "\n".join(body + last) + "</tbody></table></div>")


def strip(media: Any) -> Any:
  """One image [H W C] as it is, one clip [F H W C] as its frames from left to right: uint8 [H W' C]."""
  if media.ndim == 3:
    return media
  gap = np.full((media.shape[1], max(1, media.shape[1] // 16), media.shape[3]), 127, np.uint8)
  return np.concatenate([part for frame in media for part in (frame, gap)][:-1], axis=1)


def sheet(rows: Any, side: int = 64) -> Any:
  """Samples [P n H W C] or clips [P n F H W C] -> one image, a row a prompt; small pixels are enlarged."""
  gap = 2
  tiles = [[np.pad(strip(sample), ((0, gap), (0, gap), (0, 0)), constant_values=127) for sample in row] for row in rows]
  whole = np.concatenate([np.concatenate(row, axis=1) for row in tiles])[:-gap, :-gap]
  scale = max(1, side // rows.shape[-3])
  return whole.repeat(scale, 0).repeat(scale, 1)


def png(image: Any, limit: int | None = None) -> bytes:
  """uint8 [H W 1] or [H W 3] -> PNG, made smaller where it is higher than `limit`."""
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  if limit and picture.height > limit:
    picture = picture.resize((max(1, round(picture.width * limit / picture.height)), limit), Image.Resampling.LANCZOS)
  out = io.BytesIO()
  picture.save(out, "PNG", optimize=True)
  return out.getvalue()


def picture(media: Any, alt: str, right: bool | None) -> str:
  """A framed sample: green with a tick where it is right, red with a cross where it is wrong, grey if not judged."""
  image = strip(media)
  data = base64.b64encode(png(image, limit=192)).decode()
  kind, mark = {True: (" right", "✓"), False: (" wrong", "✕"), None: ("", "")}[right]
  words = {True: "right", False: "wrong", None: "not judged"}[right]
  fine = ' class="fine"' if image.shape[0] > 96 else ""
  return (f'<div class="tile{kind}"><img{fine} alt="{esc(alt)}: {words}" src="data:image/png;base64,{data}">'
          + (f"<i>{mark}</i>" if mark else "") + "</div>")
