"""What a search found: its trials in order, which fields mattered, all settings at once, and what was traded for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from recollect.config import Choice, Range
from recollect.evaluation.curves import number
from recollect.evaluation.report.drawings import axis, bars, front, parallel, progress
from recollect.evaluation.report.html import Section, card, charts, heading, known, labelled, plain_table, plural, said
from recollect.evaluation.report.sources import Trials

OBJECTIVE = "objective"
PREFIX = "config/"
ENOUGH = 4  # trials with an objective, or importances say nothing
PAIRS = 3  # fronts shown


def section(searches: Sequence[Trials]) -> Section:
    """The section: a part for each search."""
    content = ""
    for found in searches:
        content += heading(found.name) if len(searches) > 1 else ""
        content += one(found)
    return Section("Search", content)


def one(found: Trials) -> str:
    """One search."""
    table = found.table
    if OBJECTIVE not in table.columns:
        return plain_table(table.reset_index(drop=True))
    upward = found.mode == "max"
    ordered = table.sort_values(OBJECTIVE, ascending=not upward, na_position="last").reset_index(drop=True)
    done = ordered.dropna(subset=[OBJECTIVE]).reset_index(drop=True)
    counts = table["status"].value_counts().items() if "status" in table else ()
    status = ", ".join(f"{count} {name}" for name, count in counts)
    words = f"{plural(len(table), 'trial')}{f' ({status})' if status else ''}; {'more' if upward else 'less'} of the objective "
    words += "is better."
    content = said(words)
    cards = [_progress(found, upward), _importance(found, done)]
    content += charts([text for text in cards if text], "wide")
    content += _parallel(found, done) + _fronts(found, done, upward)
    return content + heading("All trials, the best first") + plain_table(_readable(ordered))


def _readable(ordered: pd.DataFrame) -> pd.DataFrame:
    """The trials with what was chosen first, and without places on disks."""
    first = [name for name in ("trial", OBJECTIVE, "status", "step", "seconds") if name in ordered.columns]
    fields = [name for name in ordered.columns if name.startswith(PREFIX)]
    rest = [name for name in ordered.columns if name not in (*first, *fields, "checkpoint")]
    return ordered[[*first, *fields, *rest]].rename(columns=lambda name: labelled(str(name).removeprefix(PREFIX)))


def _progress(found: Trials, upward: bool) -> str:
    """The objective in the order in which the trials were proposed, and the best so far."""
    if len(found.proposed) < 2:
        return ""
    best = max(found.proposed) if upward else min(found.proposed)
    fact = f"rings: trials in the order in which they were proposed; line: the best so far, {number(best)}"
    return card("Objective by trial", fact, progress(found.proposed, upward))


def _importance(found: Trials, done: pd.DataFrame) -> str:
    """How much of the objective's variation each field explains (PED-ANOVA), and which way is better."""
    names = [name for name in found.fields if done.get(PREFIX + name) is not None and done[PREFIX + name].nunique() > 1]
    if len(done) < ENOUGH or not names:
        return ""
    shares = importances(found, done)
    if not shares:
        return ""
    rows = []
    for name, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        rows.append((name, share, f"{100 * share:.0f} %{_way(done, name, found.mode == 'max')}"))
    fact = (
        f"share of the objective's variation over {len(done)} trials (PED-ANOVA); which values were better, by rank correlation"
    )
    return card("Which fields mattered", fact, bars(rows))


def importances(found: Trials, done: pd.DataFrame) -> dict[str, float]:
    """The share of each field; empty where nothing varies."""
    import optuna  # not at the top: most reports have no search

    from recollect.search.summary import shares

    columns = [name for name in found.fields if PREFIX + name in done.columns]
    rows = done.dropna(subset=[PREFIX + name for name in columns])
    space = {name: _distribution(optuna.distributions, found.fields[name], rows[PREFIX + name]) for name in columns}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = []
    for _, row in rows.iterrows():
        settings = {name: _plain(row[PREFIX + name]) for name in columns}
        trials.append(optuna.trial.create_trial(params=settings, distributions=space, value=float(row[OBJECTIVE])))
    return shares(trials, found.mode)


def _distribution(kinds: Any, spread: Range | Choice, values: pd.Series[Any]) -> Any:
    """A field's range, widened to what was really tried."""
    if isinstance(spread, Choice):
        return kinds.CategoricalDistribution(tuple(dict.fromkeys([*spread.options, *map(_plain, values)])))
    low, high = min(spread.low, float(values.min())), max(spread.high, float(values.max()))
    if float(spread.low).is_integer() and pd.api.types.is_integer_dtype(values):
        return kinds.IntDistribution(int(low), int(high), log=spread.log)
    return kinds.FloatDistribution(low, high, log=spread.log)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _way(done: pd.DataFrame, name: str, upward: bool) -> str:
    """Whether larger or smaller values went with better objectives, where ranks say so clearly."""
    values = done[PREFIX + name]
    if not pd.api.types.is_numeric_dtype(values):
        return ""
    ranks = float(values.rank().corr(done[OBJECTIVE].rank()))
    if math.isnan(ranks) or abs(ranks) < 0.3:
        return ""
    return ", larger is better" if (ranks > 0) == upward else ", smaller is better"


def _parallel(found: Trials, done: pd.DataFrame) -> str:
    """All settings at once: a line a trial, from its fields to its objective."""
    fields = [name for name in done.columns if name.startswith(PREFIX) and done[name].nunique() > 1]
    if len(done) < 2 or not fields:
        return ""
    axes = []
    for column in fields:
        name = column.removeprefix(PREFIX)
        spread = found.fields.get(name)
        axes.append(axis(name, [_plain(value) for value in done[column]], isinstance(spread, Range) and spread.log))
    axes.append(axis(OBJECTIVE, [float(value) for value in done[OBJECTIVE]]))
    shades = [place / max(len(done) - 1, 1) for place in range(len(done))]  # they come sorted
    words = "A line is a trial; the thick one is the best, and colours go from blue (better) over green to orange (worse)."
    return heading("All settings") + said(words) + f'<div class="chart scroll">{parallel(axes, shades, 0)}</div>'


def _fronts(found: Trials, done: pd.DataFrame, upward: bool) -> str:
    """The first goal beside the others; of a search for one objective, beside other numbers of the trials and their time."""
    first, first_up = found.goals[0] if found.goals else (OBJECTIVE, upward)
    cards = []
    for name, up in _others(found, done)[:PAIRS]:
        rows = done.dropna(subset=[name])
        xs = [float(value) for value in rows[first if first in rows.columns else OBJECTIVE]]
        ys = [float(value) for value in rows[name]]
        if len(rows) < 2:
            continue
        ahead = undominated(xs, ys, first_up, up)
        names = [str(trial) for trial in rows["trial"]] if "trial" in rows.columns else [str(row) for row in rows.index]
        drawn = front(xs, ys, ahead, names, (f"{first} {'↑' if first_up else '↓'}", f"{name} {'↑' if up else '↓'}"))
        cards.append(card(f"{first} and {name}", f"{sum(ahead)} of {len(rows)} trials on the front", drawn))
    if not cards:
        return ""
    words = "Filled: no other trial is at least as good in both and better in one (the Pareto front)."
    return heading("What was traded for what") + said(words) + charts(cards, "wide")


def _others(found: Trials, done: pd.DataFrame) -> list[tuple[str, bool]]:
    """What stands beside the first goal, and whether more of it is better."""
    if found.goals:
        return [(name, up) for name, up in found.goals[1:] if name in done.columns]
    metrics = {name: metric for name in done.columns if "/" not in name and (metric := known(name)) is not None}
    judged = {name: metric.higher_is_better for name, metric in metrics.items() if metric.needs != "memory"}
    candidates = [*judged.items(), *((name, False) for name in ("seconds_per_step", "seconds") if name in done.columns)]
    return [(name, up) for name, up in candidates if done[name].nunique() > 1 and not _same(done[name], done[OBJECTIVE])]


def _same(one: pd.Series[Any], other: pd.Series[Any]) -> bool:
    return bool(((one.astype(float) - other.astype(float)).abs().fillna(0) < 1e-12).all())


def undominated(xs: Sequence[float], ys: Sequence[float], x_up: bool, y_up: bool) -> list[bool]:
    """Which points no other one beats: at least as good in both numbers, and better in one.

    >>> undominated([1, 2, 3, 3], [3, 1, 2, 1], False, False)
    [True, True, False, False]
    """
    points = [(x if x_up else -x, y if y_up else -y) for x, y in zip(xs, ys, strict=True)]
    return [not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in points) for p in points]
