"""One HTML page that says what a run did: pictures, tables with baselines, curves, the memory, trials, the configuration.

The page is self-contained: pictures are inside as base64, curves are inline SVG, there is no script and no network. It follows
the reader's light or dark setting, and on a phone wide tables scroll in boxes of their own.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from recollect.config import Run
from recollect.evaluation.curves import Curve, chart, number
from recollect.evaluation.evaluate import KINDS, short, table
from recollect.evaluation.grids import save_png
from recollect.evaluation.memory.report import Drawing, Panel
from recollect.evaluation.metrics import METRICS, Metric, find_metric

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --card: #fff; --ink: #1d1d20; --soft: #66666e; --rule: #e2e2e0;
  --accent: #2b63c6; --faint: #b9cdf0; --mark: #eef3fc; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --card: #1e1f23; --ink: #e9e9ea; --soft: #a0a0a8; --rule: #36373d;
  --accent: #86aef5; --faint: #3d5484; --mark: #232b3b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 75ch; }
.soft, figcaption { color: var(--soft); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px 20px; margin: 16px 0; }
.facts dt { color: var(--soft); font-size: 12px; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.box { overflow: auto; max-height: 70vh; margin: 8px 0; width: fit-content; max-width: 100%; }
.box, .chart, pre { border: 1px solid var(--rule); border-radius: 6px; background: var(--card); }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tr:last-child td, tr:last-child th { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--card); font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; z-index: 1; background: var(--card); }
tbody th { font-weight: 400; }
tr.method > * { background: var(--mark); font-weight: 600; } tr.first > * { border-top: 2px solid var(--rule); }
td small { color: var(--soft); font-weight: 400; display: block; }
figure { margin: 12px 0; } figure .box { padding: 6px; background: #fff; max-height: none; }
figure img { display: block; max-width: 100%; min-width: min(640px, 100%); height: auto; margin: 0 auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(215px, 1fr)); gap: 12px; }
.chart { padding: 8px 10px 4px; min-width: 0; }
.chart b { display: block; font-size: 13px; overflow-wrap: anywhere; } .chart span { color: var(--soft); font-size: 12px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 4px; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; } .grid { stroke: var(--rule); stroke-width: 1; }
.raw { fill: none; stroke: var(--faint); stroke-width: 1; } .line { fill: none; stroke: var(--accent); stroke-width: 1.6; }
.dot { fill: var(--accent); } .even { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); }
.dots { fill: none; stroke-width: 4; stroke-linecap: round; } .disc { stroke: var(--card); stroke-width: 1.2; }
svg .on { fill: #fff; font-weight: 700; paint-order: stroke; stroke: #0006; stroke-width: 1.5px; } svg .name { font-size: 12px; }
svg .over { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.figures { display: flex; flex-wrap: wrap; gap: 0 16px; } .figures figure { max-width: 100%; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: 12px; font-size: 12px; }
@media (max-width: 500px) { main { padding: 16px 12px 48px; } h1 { font-size: 22px; }
  .charts { grid-template-columns: 1fr; } figure img { max-width: none; width: 640px; }
  .figures img { width: auto; min-width: 0; max-width: 820px; } }
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    run: Run,
    metrics_history: Sequence[Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    grids: Mapping[str, str | os.PathLike[str]],
    search: pd.DataFrame | None = None,
    facts: Mapping[str, str] | None = None,
    memory: Sequence[Panel] = (),
) -> Path:
    """Write the page; a reader sees the old page or the new one, never a half.

    Args:
        metrics_history: the rows of a bundle's `metrics.jsonl`: `step`, `loss/<term>`, metrics by name.
        tables: caption -> rows of `evaluate` (shown with intervals, baselines and regions), or any other frame, shown as it is.
        grids: caption -> a PNG file.
        search: one trial a row; sorted by its column `objective`.
        facts: what the reader should know first, in short words.
        memory: what `memory_panels` found inside a method's memory.

    Parts for which there is nothing are left out.
    """
    parts = [
        _head(title, run, facts or {}),
        _section("Pictures", "".join(_figure(caption, file) for caption, file in grids.items())),
        _section("Results", "".join(_result(caption, frame) for caption, frame in tables.items())),
        _section("Inside the memory", "".join(map(_panel, memory))),
        *_curves(metrics_history),
        _section("Search", _search(search, run) if search is not None and len(search) else ""),
        _section("Configuration", _configuration(run)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = f"<main>{''.join(parts)}</main>"
    return _write(Path(path), f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n')


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".part", encoding="utf-8") as stream:
        stream.write(page)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)
    return path


def _head(title: str, run: Run, facts: Mapping[str, str]) -> str:
    source, target = run.direction()
    size = f"{run.data.size} x {run.data.size}"
    what = f"The method {run.model.name}, {run.engine.steps} steps on {size} pixels, translating {source} to {target}."
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<h1>{escape(title)}</h1><p class="soft">{escape(what)}</p>' + (f'<dl class="facts">{listed}</dl>' if listed else "")


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>" if content else ""


def _figure(caption: str, file: str | os.PathLike[str]) -> str:
    return _picture(caption, Path(file).read_bytes())


def _picture(caption: str, png: bytes) -> str:
    picture = base64.b64encode(png).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{picture}">'
    return f'<figure><div class="box">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _panel(panel: Panel) -> str:
    """A panel of the memory: drawings as SVG beside one another, pictures below, then the numbers."""
    charts = "".join(_drawing(drawing, drawing.image) for drawing in panel.drawings if isinstance(drawing.image, str))
    content = f'<div class="charts{" wide" if panel.wide else ""}">{charts}</div>' if charts else ""
    figures = ""
    for drawing in panel.drawings:
        if not isinstance(drawing.image, str):
            png = io.BytesIO()
            save_png(drawing.image, png)
            figures += _picture(drawing.caption, png.getvalue())
    content += f'<div class="figures">{figures}</div>' if figures else ""
    content += _plain_table(panel.numbers) if panel.numbers is not None else ""
    return f'<h3>{escape(panel.title)}</h3><p class="soft">{escape(panel.about)}</p>{content}'


def _drawing(drawing: Drawing, svg: str) -> str:
    return f'<div class="chart"><b>{escape(drawing.caption)}</b><span>{escape(drawing.fact)}</span>{svg}</div>'


def _result(caption: str, frame: pd.DataFrame) -> str:
    if not {"metric", "value", "kind"} <= set(frame.columns):
        return f"<h3>{escape(caption)}</h3>{_plain_table(frame)}"
    wide = table(frame)
    regions = [name for name in wide.columns if name.startswith("scene_error/")]
    memory = [name for name in wide.columns if (metric := _known(name)) is None or metric.needs == "memory"]
    deciding = [name for name in wide.columns if name not in regions and name not in memory]
    content = f"<h3>{escape(caption)}</h3>{_wide_table(wide[deciding], frame)}{_glossary(deciding, frame)}"
    if regions:
        content += f"<h3>Errors by region</h3>{_wide_table(wide[regions])}"
    if memory:
        numbers = wide[memory].dropna(how="all").droplevel("kind").T.map(number)
        content += f"<h3>Memory</h3>{_plain_table(numbers.rename_axis('').rename(_labelled))}{_glossary(memory, None)}"
    return content


def _known(name: str) -> Metric | None:
    try:
        return find_metric(name)
    except ValueError:
        return None


def _labelled(name: str) -> str:
    metric = _known(name)
    return f"{name} {metric.arrow}" if metric else name


def _glossary(columns: Iterable[str], frame: pd.DataFrame | None) -> str:
    """What the columns mean, and what the baselines had."""
    metrics = dict.fromkeys(metric for name in columns if (metric := _known(name)))
    lines = [(f"{metric.name} {metric.arrow}", metric.about) for metric in metrics]
    if frame is not None:
        rows = frame[frame["kind"] != "method"].drop_duplicates("name")
        lines += [(str(row["name"]), str(row["about"])) for _, row in rows.iterrows()]
        lines.append(("small figures", "95 % intervals over the pictures"))
    return '<p class="soft">' + "<br>".join(f"<b>{escape(name)}</b> {escape(about)}" for name, about in lines) + "</p>"


def _wide_table(wide: pd.DataFrame, frame: pd.DataFrame | None = None) -> str:
    bounds = [table(frame.assign(value=frame[side])) for side in ("low", "high")] if frame is not None else []
    head = "".join(f"<th>{_heading(name)}</th>" for name in wide.columns)
    body, before = "", ""
    for place, values in wide.iterrows():
        assert isinstance(place, tuple)
        kind = str(place[0])
        first = " first" if before and kind != before else ""
        before = kind
        cells = "".join(_cell(values[name], *(_at(side, place, name) for side in bounds)) for name in wide.columns)
        body += f'<tr class="{kind if kind in KINDS else ""}{first}"><th>{escape(str(place[1]))}</th>{cells}</tr>'
    return f'<div class="box"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _heading(name: str) -> str:
    metric, shown = _known(name), name.removeprefix("scene_error/")
    return escape(shown).replace("@", "<wbr>@") + (f" {metric.arrow}" if metric else "")


def _at(side: pd.DataFrame, place: tuple[Any, ...], name: str) -> float:
    return float(side[name][place]) if name in side.columns and place in side.index else math.nan


def _cell(value: float, low: float = math.nan, high: float = math.nan) -> str:
    if pd.isna(value):
        return "<td></td>"
    return f"<td>{short(value)}" + ("" if pd.isna(low) else f"<small>{short(low)} to {short(high)}</small>") + "</td>"


def _plain_table(frame: pd.DataFrame) -> str:
    index = not isinstance(frame.index, pd.RangeIndex)
    head = "".join(f"<th>{escape(str(name))}</th>" for name in ([frame.index.name or ""] if index else []) + list(frame.columns))
    body = ""
    for place, values in frame.iterrows():
        cells = [escape(_text(value)) for value in ([place] if index else []) + list(values)]
        body += f"<tr><th>{cells[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _curves(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sections with curves: losses, validation, memory, and whatever else was logged."""
    groups: dict[str, list[Curve]] = {"Losses": [], "Validation": [], "Memory": [], "Other": []}
    for name in dict.fromkeys(name for row in history for name in row if name != "step"):
        curve = Curve.of(name, history)
        if curve is not None:
            groups[_group(name)].append(curve)
    groups["Validation"].sort(key=lambda curve: _rank(curve.name))
    notes = {"Losses": "Unweighted terms by step: every logged value faint, a running mean strong. Log scales are marked."}
    sections = []
    for heading, curves in groups.items():
        cards = '<div class="charts">' + "".join(_card(curve) for curve in curves) + "</div>" if curves else ""
        if heading == "Other" and cards:
            cards = f"<details><summary>{len(curves)} curves</summary>{cards}</details>"
        sections.append(
            _section(heading, (f'<p class="soft">{notes[heading]}</p>' if heading in notes else "") * bool(curves) + cards)
        )
    return sections


def _group(name: str) -> str:
    if name.startswith("loss/"):
        return "Losses"
    metric = _known(name)
    if metric is not None:
        return "Memory" if metric.needs == "memory" else "Validation"
    return "Validation" if name == "objective" else "Memory" if name.startswith("memory/") else "Other"


def _rank(name: str) -> tuple[int, int]:
    """The objective first, then the registry's order, and a metric's parts after all wholes."""
    metric = _known(name)
    return ("/" in name, list(METRICS).index(metric.name) if metric else -1)


def _card(curve: Curve) -> str:
    metric = _known(curve.name)
    arrow = f" {metric.arrow}" if metric else ""
    label = curve.name.removeprefix("loss/")
    last = f"{number(curve.values[-1])} at step {curve.steps[-1]}" + (", log scale" if curve.log else "")
    return f'<div class="chart"><b>{escape(label)}{arrow}</b><span>{escape(last)}</span>{chart(curve)}</div>'


def _search(search: pd.DataFrame, run: Run) -> str:
    if "objective" not in search.columns:
        return _plain_table(search.reset_index(drop=True))
    metric = _known(run.evaluation.metric)  # "auto" stands for metrics of which less is better
    upward = metric is not None and metric.higher_is_better
    ordered = search.sort_values("objective", ascending=not upward, na_position="last")
    first = [name for name in ("trial", "objective") if name in ordered.columns]
    ordered = ordered[first + [name for name in ordered.columns if name not in first]].reset_index(drop=True)
    best = f"{len(ordered)} trials, the best first ({'most' if upward else 'least'} objective)."
    return f'<p class="soft">{best}</p>{_plain_table(ordered)}'


def _configuration(run: Run) -> str:
    text = json.dumps(run.model_dump(mode="json"), indent=2)
    text = re.sub(
        r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text
    )  # short lists on one line
    return f"<details><summary>Everything that determines the run, as JSON</summary><pre>{escape(text)}</pre></details>"
