"""What held of what a table expects, from its numbers (`recollect.evaluation.numbers`)."""

from __future__ import annotations

from experiments.tables.table import Bound, Claim
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.numbers import Numbers, cell, signed


def verdict(claim: Claim, numbers: Numbers, setting: str) -> tuple[str, str]:
    """Whether a claim held in a setting, by the paired interval of its difference, and that interval in words."""
    found = numbers.difference(setting, claim.better, claim.worse, claim.metric)
    if found is None:
        return "not measured", ""
    interval, seeds = found
    if interval.low != interval.low:
        return "not decided", f"{signed(interval)}, one seed and no interval"
    wanted = 1 if find_metric(claim.metric).higher_is_better else -1
    why = {wanted: "held", 0: "did not hold (the interval holds 0)", -wanted: "did not hold (the other way round)"}
    return why[interval.sign], f"{signed(interval)}, {seeds} seed{'s' if seeds > 1 else ''}"


def within(bound: Bound, numbers: Numbers, setting: str) -> tuple[str, str]:
    """Whether an arm keeps a bound in a setting, by its mean and by its whole interval, and the value in words."""
    found = numbers.estimate(setting, bound.arm, bound.metric)
    if found is None:
        return "not measured", ""
    up = find_metric(bound.metric).higher_is_better
    kept = [value >= bound.limit if up else value <= bound.limit for value in (found.value, found.low, found.high)]
    if not kept[0]:
        return "did not hold", cell(found)
    known = found.low == found.low
    return "held" if all(kept) else "held in the mean" + (", not over the interval" if known else ", no interval"), cell(found)
