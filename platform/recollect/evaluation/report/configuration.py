"""What determined the runs: what differs between them, and everything, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from recollect.config import Run
from recollect.evaluation.report.html import Section, folded, heading, plain_table, said
from recollect.evaluation.report.sources import Source

FEW = 8  # runs side by side; more are rows
OWN = ("name",)  # fields that differ between any two runs, and say nothing


def section(runs: Sequence[Source]) -> Section:
    """The section; the differing fields stand first where there are several runs."""
    content = ""
    if len(runs) > 1:
        table = differences({run.name: run.run for run in runs})
        words = "Every field that is not the same in all of these runs; – where a run's method has no such field."
        content += heading("What differs") + (said(words) + plain_table(table) if len(table) else said("Nothing but the names."))
        content += heading("Everything")
    for run in runs:
        summary = "Everything that determines the run, as JSON" if len(runs) == 1 else run.name
        content += folded(summary, f"<pre>{escape(as_text(run.run))}</pre>")
    return Section("Configuration", content)


def differences(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The fields that are not the same in all runs: a row a field and a column a run, or the other way where there are many."""
    flat = {name: dict(_flat(run.model_dump(mode="json"))) for name, run in runs.items()}
    fields = [field for field in dict.fromkeys(key for own in flat.values() for key in own) if field not in OWN]
    rows = {}
    for field in fields:
        values = [own.get(field, "–") for own in flat.values()]
        if any(value != values[0] for value in values):
            rows[field] = [value if value != "" else "(empty)" for value in values]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(flat), dtype=object)
    return frame if len(flat) <= FEW else frame.T


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tuple(tree) if isinstance(tree, list) else tree)]
    return [pair for name, inner in tree.items() for pair in _flat(inner, f"{prefix}.{name}".strip("."))]


def as_text(run: Run) -> str:
    """The run as JSON that people can read: short lists stand on one line."""
    text = json.dumps(run.model_dump(mode="json"), indent=2)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)
