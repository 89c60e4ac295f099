"""The sections with curves: losses, validation, the memory's health, and whatever else was logged; runs overlaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recollect.evaluation.curves import Curve, all_log, number, overlay
from recollect.evaluation.metrics import METRICS
from recollect.evaluation.report.html import Section, card, charts, folded, key, known, labelled, plural, said
from recollect.evaluation.report.sources import Source

ABOUT = {
    "Losses": "Unweighted terms by step: running means; of a single run with every logged value behind. Log scales are marked.",
    "Validation": "What the validation split said during training; the objective is what the best weights were chosen by.",
    "Memory over time": "How the memory fared: how alike a class's items are, how many are dead, and how it is read.",
}
HIDDEN = ("step", "seconds", "device_hours")


def sections(runs: Sequence[Source]) -> list[Section]:
    """A section for each group of curves that some run has."""
    groups: dict[str, list[str]] = {heading: [] for heading in (*ABOUT, "Other curves")}
    for name in dict.fromkeys(name for run in runs for row in run.history for name in row if name not in HIDDEN):
        groups[_group(name)].append(name)
    groups["Validation"].sort(key=_rank)
    names = key([run.name for run in runs])
    histories = [run.history for run in runs]
    found = []
    for heading, logged in groups.items():
        wholes = [text for name in logged if not _is_part(name) if (text := _card(name, histories))]
        parts = [text for name in logged if _is_part(name) if (text := _card(name, histories))]
        if not wholes or heading == "Other curves":
            wholes, parts = [], wholes + parts
        words = f"{plural(len(parts), 'curve')} more" if wholes else plural(len(parts), "curve")
        content = charts(wholes) + folded(words, charts(parts))
        found.append(Section(heading, f"{said(ABOUT.get(heading, ''))}{names}{content}" if content else ""))
    return found


def _is_part(name: str) -> bool:
    """Whether it is one of a metric's parts, by region or class or attribute."""
    return "/" in name and not name.startswith("loss/") and name not in METRICS


def _group(name: str) -> str:
    if name.startswith("loss/"):
        return "Losses"
    metric = known(name)
    if metric is not None:
        return "Memory over time" if metric.needs == "memory" else "Validation"
    if name == "objective":
        return "Validation"
    return "Memory over time" if name.startswith("memory/") else "Other curves"


def _rank(name: str) -> tuple[int, int]:
    """The objective first, then the registry's order, and a metric's parts after all wholes."""
    metric = known(name)
    return ("/" in name, list(METRICS).index(metric.name) if metric else -1)


def _card(name: str, histories: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    curves = [Curve.of(name, history) for history in histories]
    there = [curve for curve in curves if curve is not None]
    if not there:
        return ""
    log = ", log scale" if all_log(there) else ""
    last = [curve.values[-1] for curve in there]
    fact = (
        f"{number(last[0])} at step {there[0].steps[-1]}"
        if len(there) == 1
        else f"{number(min(last))} to {number(max(last))} at the end"
    )
    return card(labelled(name.removeprefix("loss/")), fact + log, overlay(curves))
