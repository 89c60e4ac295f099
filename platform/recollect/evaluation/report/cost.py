"""What the runs and searches cost: seconds a step, pictures a second, device hours, and money where an hour has a price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd

from recollect.evaluation.report.html import Section, heading, plain_table, said
from recollect.evaluation.report.sources import Source, Trials

ABOUT = (
    "Seconds a step and pictures a second are medians over the logged intervals, without evaluation. Device hours are the time "
    "of all devices (a device is a GPU, or a process on the CPU) from the first step to the last log, with evaluation and "
    "checkpoints; what a kill threw away is not in them."
)
ESTIMATED = "* Runs from before device hours were logged: steps times seconds a step on one device, without evaluation."


@dataclass(frozen=True)
class Cost:
    """What one run cost; `estimated` where it did not log its device hours."""

    steps: int
    seconds_per_step: float
    images_per_second: float
    device_hours: float
    estimated: bool


def cost_of(run: Source) -> Cost | None:
    """The cost of a run; None where it logged no speed."""
    speeds = [float(row["images_per_s"]) for row in run.history if row.get("images_per_s")]
    if not speeds:
        return None
    speed = median(speeds)
    per_step = run.run.engine.batch_size * len(run.run.data.domains) / speed
    hours = [float(row["device_hours"]) for row in run.history if "device_hours" in row]
    spent = hours[-1] if hours else run.last_step * per_step / 3600
    return Cost(run.last_step, per_step, speed, spent, not hours)


def section(runs: Sequence[Source], searches: Sequence[Trials], price: float | None) -> Section:
    """The section: a row a run, and a row a search. `price` is of a device hour."""
    content = _of_runs(runs, price) + _of_searches(searches, price)
    return Section("Time and cost", content)


def _of_runs(runs: Sequence[Source], price: float | None) -> str:
    costs = {run.name: cost for run in runs if (cost := cost_of(run)) is not None}
    if not costs:
        return ""
    table = pd.DataFrame(
        {
            "steps": [cost.steps for cost in costs.values()],
            "seconds a step": [f"{cost.seconds_per_step:.3g}" for cost in costs.values()],
            "pictures a second": [f"{cost.images_per_second:.3g}" for cost in costs.values()],
            "device hours": [f"{cost.device_hours:.3g}{'*' * cost.estimated}" for cost in costs.values()],
        },
        index=list(costs),
    )
    if price is not None:
        table["cost"] = [f"{cost.device_hours * price:.2f}" for cost in costs.values()]
    words = ABOUT + (f" {ESTIMATED}" if any(cost.estimated for cost in costs.values()) else "")
    words += "" if price is None else f" Cost at {price:g} a device hour."
    total = sum(cost.device_hours for cost in costs.values())
    summed = f"In all {total:.3g} device hours" + (f", {total * price:.2f}." if price is not None else ".")
    return said(words) + plain_table(table) + (said(summed) if len(costs) > 1 else "")


def _of_searches(searches: Sequence[Trials], price: float | None) -> str:
    rows = {}
    for found in searches:
        if "seconds" in found.table.columns:
            hours = found.table.groupby("status")["seconds"].sum() / 3600 if "status" in found.table.columns else None
            stopped = float(hours.get("stopped by ASHA", 0.0)) if hours is not None else 0.0
            spent = float(found.table["seconds"].sum()) / 3600
            row = {"trials": str(len(found.table)), "trial hours": f"{spent:.3g}", "of these in stopped trials": f"{stopped:.3g}"}
            rows[found.name] = row | ({"cost": f"{spent * price:.2f}"} if price is not None else {})
    if not rows:
        return ""
    words = "A trial hour is an hour of one trial on its own workers." + ("" if price is None else " Cost at one device a trial.")
    return heading("Searches") + said(words) + plain_table(pd.DataFrame.from_dict(rows, orient="index"))
