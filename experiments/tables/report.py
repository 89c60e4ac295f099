"""The page of a table: what was measured in each setting, what held, and how it was made; and grids of pictures.

Everything on it is computed from the rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from pyarrow import fs

from experiments.tables.jobs import Outcome, write_bytes
from experiments.tables.numbers import verdict, within
from experiments.tables.rows import Judging
from experiments.tables.suites import Setting
from experiments.tables.table import Arm, Bound, Claim, Table
from recollect.bundle import filesystem_of
from recollect.evaluation.evaluate import KINDS
from recollect.evaluation.grids import save_png
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.numbers import Numbers, cell, signed
from recollect.evaluation.statistics import Interval

WIDE = 12  # parts of a metric side by side; more stand one below the other
HOW = """Values are means over seeds, and bold is the best arm. In brackets are 95 % intervals over the test pictures and, with
two seeds or more, over seeds (pictures: bootstrap; seeds: t-distribution; distances between sets of pictures: seeds alone).
Differences are paired, of equal seeds and equal pictures, with a * where the interval does not hold 0. Nothing is corrected for
the number of comparisons."""


def write_page(place: str, table: Table, arms: Sequence[Arm], outcomes: Sequence[Outcome], judging: Judging, command: str) -> str:
    """Write `<place>.md` and return where it is."""
    results = judging.results(outcomes)
    numbers = Numbers(results)
    settings = [setting for setting in judging.settings(outcomes) if len(numbers.of(setting.name))]
    parts = [f"# {table.title}\n\n{table.about}"]
    for setting in settings:
        parts += _setting(place, table, numbers, setting)
    parts += [
        _claims(table.claims, numbers, settings),
        _bounds(table.bounds, numbers, settings),
        _runs(arms, outcomes),
        _troubles(outcomes, judging.outdated(results)),
        _made(outcomes, results.rows, judging.suite.how, command),
    ]
    write_bytes(f"{place}.md", ("\n\n".join(part for part in parts if part) + "\n").encode())
    return f"{place}.md"


def _setting(place: str, table: Table, numbers: Numbers, setting: Setting) -> list[str]:
    own = setting.name
    main, parts_by_family, memory = numbers.metrics(own)
    names = [name for kind in KINDS for name in numbers.names(own, kind)]
    methods = numbers.names(own, "method")
    parts = [f"## {setting.title}\n\n{int(numbers.of(own)['pictures'].max())} test pictures."]
    if main:
        parts.append(_values(numbers, own, names, methods, main, intervals=True))
    for family, metrics in parts_by_family.items():
        values = (_values if len(metrics) <= WIDE else _upright)(numbers, own, names, methods, metrics, intervals=False)
        parts += [f"### {family} by {find_metric(family).parts}", values]
    if memory:
        parts += ["### Memory", _values(numbers, own, names, methods, memory, intervals=True)]
    reference = table.compared_with(methods)
    others = [name for name in methods if name != reference]
    if main and reference is not None and others:
        rows = [[name, *(_shown(numbers.difference(own, name, reference, m)) for m in main)] for name in others]
        parts += [f"### Paired differences from {reference}", _markdown(["", *map(_head, main)], rows)]
    if table.more is not None:
        parts.append(table.more(numbers, own))
    picture = f"{place}-{own}.png"
    if _is_file(picture):
        parts.append(f"![{setting.title}]({picture.rpartition('/')[2]})")
    return parts


def _values(
    numbers: Numbers,
    setting: str,
    names: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    *,
    intervals: bool,
) -> str:
    found = {(name, metric): numbers.estimate(setting, name, metric) for name in names for metric in metrics}
    names = [name for name in names if any(found[name, metric] is not None for metric in metrics)]
    best = {metric: _best(methods, metric, found) for metric in metrics}
    rows = [[name, *(cell(found[name, m], name in best[m], intervals) for m in metrics)] for name in names]
    return _markdown(["", *(_head(metric, short=not intervals) for metric in metrics)], rows)


def _upright(
    numbers: Numbers,
    setting: str,
    names: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    *,
    intervals: bool,
) -> str:
    """`_values` with a row a metric and a column a name: for families of many parts."""
    found = {(name, metric): numbers.estimate(setting, name, metric) for name in names for metric in metrics}
    names = [name for name in names if any(found[name, metric] is not None for metric in metrics)]
    best = {metric: _best(methods, metric, found) for metric in metrics}
    rows = [[_head(m, short=True), *(cell(found[name, m], name in best[m], intervals) for name in names)] for m in metrics]
    return _markdown(["", *names], rows)


def _best(names: Sequence[str], metric: str, found: dict[tuple[str, str], Interval | None]) -> list[str]:
    """The arms with the best value, where there is more than one arm to choose from."""
    values = {name: interval.value for name in names if (interval := found[name, metric]) is not None}
    best = (max if find_metric(metric).higher_is_better else min)(values.values(), default=0.0)
    return [name for name, value in values.items() if value == best] if len(values) > 1 else []


def _head(metric: str, short: bool = False) -> str:
    """The metric, or (`short`) its part alone, with which way is better."""
    return f"{metric.rpartition('/')[2] if short else metric} {find_metric(metric).arrow}"


def _shown(found: tuple[Interval, int] | None) -> str:
    if found is None:
        return ""
    return signed(found[0]) + (" *" if found[0].sign else "")


def _claims(claims: Iterable[Claim], numbers: Numbers, settings: Sequence[Setting]) -> str:
    rows = []
    for claim in claims:
        for setting in _where(claim.metric, numbers, settings):
            rows.append([claim.text, claim.metric, setting.title, *verdict(claim, numbers, setting.name)])
    if not rows:
        return ""
    heads = ["expected", "metric", "", "", "difference"]
    return "## Expected orderings\n\n" + _markdown(heads, rows)


def _bounds(bounds: Iterable[Bound], numbers: Numbers, settings: Sequence[Setting]) -> str:
    rows = []
    for bound in bounds:
        sign = "≥" if find_metric(bound.metric).higher_is_better else "≤"
        for setting in _where(bound.metric, numbers, settings):
            wanted = f"{bound.metric} {sign} {bound.limit:g}"
            rows.append([bound.text, wanted, setting.title, *within(bound, numbers, setting.name)])
    return "## Expected of one arm\n\n" + _markdown(["expected", "", "", "", "measured"], rows) if rows else ""


def _where(metric: str, numbers: Numbers, settings: Sequence[Setting]) -> list[Setting]:
    """The settings in which something is expected: settings of another kind do not have the metric."""
    names = numbers.measured_in([setting.name for setting in settings], metric)
    return [setting for setting in settings if setting.name in names]


def _runs(arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> str:
    rows = []
    for arm in arms:
        own = [o for o in outcomes if o.job.arm == arm.name and arm.run.data.domains in ((), o.job.run.data.domains)]
        facts = [outcome.facts for outcome in own if outcome.facts is not None]
        run = own[0].job.run
        about = "; ".join(filter(None, [arm.about, f"from {', '.join(arm.parents)}" if arm.parents else ""]))
        seeds = " ".join(str(outcome.job.seed) for outcome in own if outcome.facts is not None)
        cells: list[Any] = [arm.name, ", ".join(run.data.domains), about, run.model.name, seeds]
        cells += [run.engine.steps, run.engine.batch_size]
        if facts:
            cells += [" ".join(str(fact["step"]) for fact in facts), f"{facts[0]['parameters']:,}"]
            cells.append(f"{fmean(fact['seconds'] for fact in facts) / 60:.1f}")
        rows.append([str(cell) for cell in cells] + [""] * (10 - len(cells)))
    heads = ["arm", "domains", "", "method", "seeds", "steps", "batch", "weights of step", "parameters", "minutes a run"]
    return "## Runs\n\n" + _markdown(heads, rows)


def _troubles(outcomes: Sequence[Outcome], outdated: Sequence[str]) -> str:
    failed = [f"- {outcome.job}: {outcome.error}" for outcome in outcomes if outcome.error]
    missing = [str(outcome.job) for outcome in outcomes if outcome.facts is None and not outcome.error]
    parts = ["## What is missing"] if failed or missing or outdated else []
    parts += ["Failed (logs: `log.txt` in the runs' folders):\n\n" + "\n".join(failed)] if failed else []
    parts += [f"Not trained: {', '.join(missing)}."] if missing else []
    parts += [f"Judged when the table measured something else, and not since: {', '.join(outdated)}."] if outdated else []
    return "\n\n".join(parts)


def _made(outcomes: Sequence[Outcome], measured: pd.DataFrame, how: str, command: str) -> str:
    facts = [outcome.facts for outcome in outcomes if outcome.facts is not None]
    data = sorted({outcome.job.data for outcome in outcomes})
    seconds = sum(fact["seconds"] for fact in facts)
    lines = [f"- command: `{command}`"] if command else []
    lines += [f"- data: {', '.join(digest[:16] for digest in data)}"]
    lines += _judged_by(measured)
    lines += [f"- trained on: {machine}" for machine in sorted({fact["machine"] for fact in facts})]
    lines.append(f"- {len(facts)} runs, {seconds / 3600:.1f} hours of training")
    lines.append(f"- recollect {', '.join(sorted({fact['recollect'] for fact in facts}))}")
    return f"## How this was made\n\n{HOW}\n{how}\n\n" + "\n".join(lines)


def _judged_by(rows: pd.DataFrame) -> list[str]:
    """What judged beside the code; with the arms where it was not the same for all, which does not compare."""
    found = {str(name): list(own["arm"].unique()) for name, own in rows.groupby("instrument", sort=False) if name}
    return [f"- judged by {name}" + (f": {', '.join(arms)}" if len(found) > 1 else "") for name, arms in found.items()]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _is_file(uri: str) -> bool:
    filesystem, root = filesystem_of(uri)
    return bool(filesystem.get_file_info(root).type == fs.FileType.File)


def write_grids(place: str, table: Table, outcomes: Sequence[Outcome], judging: Judging) -> None:
    """One picture a setting, `<place>-<setting>.png`, of every arm with the first seed, where the suite has one to show.

    What goes wrong is said, and no more: the numbers do not need it.
    """
    first = outcomes[0].job.seed if outcomes else 0
    for setting in judging.settings(outcomes):
        own = [
            outcome
            for outcome in outcomes
            if outcome.facts and outcome.job.shown and outcome.job.seed == first and setting in judging.settings([outcome])
        ]
        if not own:
            continue
        bundles = {outcome.job.arm: outcome.bundle for outcome in own}
        try:
            grid = judging.suite.grid(judging.cases(own[0].job, setting), bundles, table.reference)
            if grid is not None:
                picture = io.BytesIO()
                save_png(grid, picture)
                write_bytes(f"{place}-{setting.name}.png", picture.getvalue())
        except Exception as error:
            judging.say(f"no pictures of {setting.title}: {type(error).__name__}: {error}".splitlines()[0])
