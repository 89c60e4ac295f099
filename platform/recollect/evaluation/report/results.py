"""What was measured: tables with intervals and baselines, errors by class against the truth, and the memory's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from recollect.evaluation.evaluate import KINDS, short, table
from recollect.evaluation.metrics import METRICS, Metric
from recollect.evaluation.report.drawings import Mark, Row, dot_rows
from recollect.evaluation.report.html import (
    Section,
    card,
    charts,
    folded,
    heading,
    key,
    known,
    labelled,
    plain_table,
    said,
    text_of,
)

MOST = 48  # parts of a family in a drawing; more are a table alone


def section(frame: pd.DataFrame, runs: Sequence[str]) -> Section:
    """A table and its drawings for each setting (direction, split, number of pictures) that was measured, and each data set.

    Args:
        runs: the page's runs by name, each in its colour; what else was measured has the colours after them.
    """
    content, frame = "", frame.reset_index(drop=True)
    data = frame["data"].fillna("") if "data" in frame.columns else pd.Series("", frame.index)
    for setting, here in frame.groupby("setting", sort=False):
        digests = data[here.index].unique()
        for digest in digests:
            caption = f"{setting}, data {digest[:8]}" if len(digests) > 1 else str(setting)
            content += result(caption, here[data[here.index] == digest], runs)
    return Section("Results", content)


def result(caption: str, frame: pd.DataFrame, runs: Sequence[str]) -> str:
    """The rows of one setting."""
    wide = table(frame)
    memory = [name for name in wide.columns if (metric := known(name)) is None or metric.needs == "memory"]
    families = _families([name for name in wide.columns if name not in memory])
    parts = [name for members in families.values() for name in members]
    deciding = [name for name in wide.columns if name not in parts and name not in memory]
    content = heading(caption)
    content += _wide_table(wide[deciding], frame) + _glossary(deciding, frame) if deciding else ""
    for family, members in families.items():
        content += _by_part(family, members, frame, wide, runs)
    if memory:
        numbers = wide[memory].dropna(how="all").droplevel("kind").T.map(text_of).rename_axis("")
        wholes = numbers[[name in METRICS or known(str(name)) is None for name in numbers.index]]
        folds = numbers.drop(wholes.index)
        content += heading("Memory") + (plain_table(wholes.rename(labelled)) if len(wholes) else "")
        content += folded(f"{len(folds)} numbers by class", plain_table(folds.rename(labelled))) if len(folds) else ""
        content += _glossary(memory, None)
    return content


def _families(names: Sequence[str]) -> dict[str, list[str]]:
    """The parts of a metric by its name: those of metrics that say by what they are parted."""
    found: dict[str, list[str]] = {}
    for name in names:
        family, slash, _ = name.rpartition("/")
        metric = known(name)
        if slash and name not in METRICS and metric is not None and metric.parts:
            found.setdefault(family, []).append(name)
    return found


def _by_part(family: str, members: Sequence[str], frame: pd.DataFrame, wide: pd.DataFrame, runs: Sequence[str]) -> str:
    """A family's parts as a drawing, methods in colours and baselines in grey, and as a table."""
    metric = known(family)
    assert metric is not None
    words = f"{metric.about}; {'more' if metric.higher_is_better else 'less'} is better"
    title = f"{heading(f'{family} {metric.arrow} by {metric.parts}')}{said(words[0].upper() + words[1:] + '.')}"
    upright = wide[list(members)].dropna(how="all")
    numbers = upright.droplevel("kind").rename(columns=lambda name: str(name).rpartition("/")[2]).T
    content = ""
    if len(members) <= MOST and (frame["kind"] == "method").any():
        judged = [str(name) for name in dict.fromkeys(frame.loc[frame["kind"] == "method", "name"])]
        every = list(dict.fromkeys([*runs, *judged]))
        methods = {name: every.index(name) for name in judged}
        first = list(dict.fromkeys(frame.loc[frame["kind"] == "baseline", "name"]))[:1]
        ceilings = list(dict.fromkeys(frame.loc[frame["kind"] == "ceiling", "name"]))[:1]
        rows = [Row(name.rpartition("/")[2], tuple(_marks(name, frame, methods, first, ceilings))) for name in members]
        fact = "whiskers: 95 % intervals over the pictures"
        fact += "".join(f"; grey stroke: {name}" for name in first) + "".join(f"; dotted: {name}" for name in ceilings)
        content = key(list(methods), list(methods.values())) + charts([card(family, fact, dot_rows(rows), "scroll")], "full")
    shown = plain_table(numbers.map(text_of).rename_axis(""))
    return title + (content + folded("As numbers, with all baselines", shown) if content else shown)


def _marks(
    name: str, frame: pd.DataFrame, methods: Mapping[str, int], baselines: Sequence[str], ceilings: Sequence[str]
) -> Iterable[Mark]:
    """What one part's line shows: the baseline and the ceiling beneath the methods."""
    rows = frame[frame["metric"] == name].drop_duplicates("name", keep="last").set_index("name")
    places: list[tuple[str, int | None]] = [(label, None) for label in [*baselines, *ceilings]]
    for label, place in [*places, *methods.items()]:
        if label in rows.index:
            row: Any = rows.loc[label]
            yield Mark(float(row["value"]), float(row["low"]), float(row["high"]), place, label, label in ceilings)


def _glossary(columns: Iterable[str], frame: pd.DataFrame | None) -> str:
    """What the columns mean, and what the baselines had."""
    metrics: dict[Metric, None] = dict.fromkeys(metric for name in columns if (metric := known(name)))
    lines = [(f"{metric.name} {metric.arrow}", metric.about) for metric in metrics]
    if frame is not None:
        rows = frame[(frame["kind"] != "method") & (frame["about"] != "")].drop_duplicates("name")
        lines += [(str(row["name"]), str(row["about"])) for _, row in rows.iterrows()]
        lines += [("small figures", "95 % intervals over the pictures")] if frame.get("low", pd.Series()).notna().any() else []
    return '<p class="soft">' + "<br>".join(f"<b>{escape(name)}</b> {escape(about)}" for name, about in lines) + "</p>"


def _wide_table(wide: pd.DataFrame, frame: pd.DataFrame) -> str:
    bounds = [table(frame.assign(value=frame[side])) for side in ("low", "high")] if "low" in frame.columns else []
    head = "".join(f"<th>{_heading(str(name))}</th>" for name in wide.columns)
    methods = [place for place in wide.index if place[0] == "method"]
    best = {name: _best(wide.loc[methods, name], str(name)) for name in wide.columns} if len(methods) > 1 else {}
    body, before = "", ""
    for place, values in wide.iterrows():
        assert isinstance(place, tuple)
        kind = str(place[0])
        first = " first" if before and kind != before else ""
        before = kind
        cells = ""
        for name in wide.columns:
            low, high = [_at(side, place, str(name)) for side in bounds] or [math.nan, math.nan]
            cells += _cell(values[name], low, high, place in best.get(name, ()))
        body += f'<tr class="{kind if kind in KINDS else ""}{first}"><th>{escape(str(place[1]))}</th>{cells}</tr>'
    return f'<div class="box"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _best(values: pd.Series[float], name: str) -> list[Any]:
    """The places of the best value, where it is known which way is better."""
    metric = known(name)
    if metric is None or values.isna().all():
        return []
    return list(values.index[values == (values.max() if metric.higher_is_better else values.min())])


def _heading(name: str) -> str:
    metric = known(name)
    return escape(name).replace("@", "<wbr>@") + (f" {metric.arrow}" if metric else "")


def _at(side: pd.DataFrame, place: tuple[Any, ...], name: str) -> float:
    return float(side[name][place]) if name in side.columns and place in side.index else math.nan


def _cell(value: float, low: float, high: float, best: bool) -> str:
    if pd.isna(value):
        return "<td></td>"
    interval = "" if pd.isna(low) else f"<small>{short(low)} to {short(high)}</small>"
    own = ' class="best"' if best else ""
    return f"<td{own}>{short(value)}{interval}</td>"
