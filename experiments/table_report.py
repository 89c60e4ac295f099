"""The page of a table: means over seeds with intervals, paired differences, what held, how it was made; and grids of pictures.

Everything on it is computed from the rows; see `recollect.evaluation.statistics` for the intervals.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from experiments.table_jobs import Outcome, write_bytes
from experiments.table_rows import Judging, Results
from experiments.tables import Arm, Bound, Claim, Direction, Table
from recollect.data.transforms import to_uint8, to_unit
from recollect.evaluation.evaluate import KINDS, short
from recollect.evaluation.grids import picture_grid, save_png
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.statistics import Interval, Measured, difference, estimate
from recollect.pipeline import Pipeline
from recollect.training.engine import pick_device

SHOWN = 6  # rows of a grid
REGION = "scene_error/"
HOW = """Values are means over seeds, and bold is the best arm. In brackets are 95 % intervals over the test pictures and, with
two seeds or more, over seeds (pictures: bootstrap; seeds: t-distribution; distances between sets of pictures: seeds alone).
Differences are paired, of equal seeds and equal pictures, with a * where the interval does not hold 0. Nothing is corrected for
the number of comparisons. Translations are deterministic, with the weights that were best on the validation split; the fitted
baselines had the truth of validation pictures in hand."""


class Numbers:
    """What was measured, ready for statistics: by direction, row of the table, and metric."""

    def __init__(self, results: Results) -> None:
        self.rows = results.rows
        order = ["source", "target", "arm", "seed", "metric"]
        by_picture = results.pictures.sort_values("picture").groupby(order, sort=False)[["value", "weight"]]
        self._pictures = {key: torch.tensor(frame.to_numpy(float)) for key, frame in by_picture}  # (B, 2)
        self._scalars = self.rows.set_index(order)["value"].to_dict()

    def of(self, direction: Direction) -> pd.DataFrame:
        """The rows of a direction."""
        return self.rows[(self.rows["source"] == direction[0]) & (self.rows["target"] == direction[1])]

    def names(self, direction: Direction, kind: str) -> list[str]:
        """The rows of a kind in the order in which they were judged."""
        rows = self.of(direction)
        return [str(name) for name in rows[rows["kind"] == kind]["arm"].unique()]

    def seeds(self, direction: Direction, name: str) -> list[int]:
        """The seeds of an arm that were judged; [-1] for a baseline."""
        rows = self.of(direction)
        return sorted(int(seed) for seed in rows[rows["arm"] == name]["seed"].unique())

    def measured(self, direction: Direction, name: str, metric: str, seeds: Sequence[int]) -> Measured | None:
        """What was measured of an arm with these seeds; None where one of them lacks the metric."""
        keys = [(*direction, name, seed) for seed in seeds]
        if not keys or any((*key, metric) not in self._scalars for key in keys):
            return None
        parts = [metric]
        if metric == "scene_error":
            parts = sorted({str(key[4]) for key in self._pictures if key[:4] == keys[0] and str(key[4]).startswith(REGION)})
        if any((*keys[0], part) not in self._pictures for part in parts):
            return Measured.of_seeds([float(self._scalars[(*key, metric)]) for key in keys])
        found = torch.stack([torch.stack([self._pictures[(*key, part)] for part in parts], -1) for key in keys])  # (S, B, 2, G)
        return Measured(found[:, :, 0], found[0, :, 1])

    def estimate(self, direction: Direction, name: str, metric: str) -> Interval | None:
        """The mean over all seeds of an arm, with its interval."""
        measured = self.measured(direction, name, metric, self.seeds(direction, name))
        return None if measured is None else estimate(measured)

    def difference(self, direction: Direction, one: str, other: str, metric: str) -> tuple[Interval, int] | None:
        """`one` minus `other` over the seeds that both have, and how many those are."""
        seeds = [self.seeds(direction, name) for name in (one, other)]
        common = sorted(set(seeds[0]) & set(seeds[1]))
        chosen = [own if own == [-1] else (common if -1 not in seeds[0] + seeds[1] else own) for own in seeds]
        measured = [self.measured(direction, name, metric, own) for name, own in zip((one, other), chosen, strict=True)]
        if measured[0] is None or measured[1] is None:
            return None
        return difference(measured[0], measured[1]), max(map(len, chosen))

    def metrics(self, direction: Direction) -> tuple[list[str], list[str], list[str]]:
        """The metrics of translations, the regions of scene_error, and the metrics of memories, each in the registry's order."""
        seen = list(self.of(direction)["metric"].unique())
        listed = [metric for metric in METRICS if metric in seen]
        memory = [metric for metric in listed if find_metric(metric).needs == "memory"]
        return [metric for metric in listed if metric not in memory], [name for name in seen if name.startswith(REGION)], memory


def write_page(place: str, table: Table, arms: Sequence[Arm], outcomes: Sequence[Outcome], results: Results, command: str) -> str:
    """Write `<place>.md` and return where it is."""
    numbers = Numbers(results)
    directions = [direction for direction in table.directions if len(numbers.of(direction))]
    parts = [f"# {table.title}\n\n{table.about}"]
    for direction in directions:
        parts += _direction(table, numbers, direction)
    parts += [
        _claims(table.claims, numbers, directions),
        _bounds(table.bounds, numbers, directions),
        _runs(arms, outcomes),
        _troubles(outcomes),
        _made(outcomes, command),
    ]
    write_bytes(f"{place}.md", ("\n\n".join(part for part in parts if part) + "\n").encode())
    return f"{place}.md"


def _direction(table: Table, numbers: Numbers, direction: Direction) -> list[str]:
    main, regions, memory = numbers.metrics(direction)
    names = [name for kind in KINDS for name in numbers.names(direction, kind)]
    methods = numbers.names(direction, "method")
    count = int(numbers.of(direction)["pictures"].max())
    parts = [f"## {direction[0]} to {direction[1]}\n\n{count} test pictures."]
    parts.append(_values(numbers, direction, names, methods, main, intervals=True))
    if regions:
        parts += ["### scene_error by region", _values(numbers, direction, names, methods, regions, intervals=False)]
    if memory:
        parts += ["### Memory", _values(numbers, direction, methods, methods, memory, intervals=True)]
    others = [name for name in methods if name != table.reference]
    if table.reference in methods and others:
        rows = [[name, *(_shown(numbers.difference(direction, name, table.reference, m)) for m in main)] for name in others]
        parts += [f"### Paired differences from {table.reference}", _markdown(["", *map(_head, main)], rows)]
    parts.append(f"![{direction[0]} to {direction[1]}]({table.name}-{direction[0]}-{direction[1]}.png)")
    return parts


def _values(
    numbers: Numbers,
    direction: Direction,
    names: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    *,
    intervals: bool,
) -> str:
    found = {(name, metric): numbers.estimate(direction, name, metric) for name in names for metric in metrics}
    best = {metric: _best(methods, metric, found) for metric in metrics}
    rows = [[name, *(_cell(found[name, m], name in best[m], intervals) for m in metrics)] for name in names]
    return _markdown(["", *map(_head, metrics)], rows)


def _best(names: Sequence[str], metric: str, found: dict[tuple[str, str], Interval | None]) -> list[str]:
    """The arms with the best value, where there is more than one arm to choose from."""
    values = {name: interval.value for name in names if (interval := found[name, metric]) is not None}
    best = (max if find_metric(metric).higher_is_better else min)(values.values(), default=0.0)
    return [name for name, value in values.items() if value == best] if len(values) > 1 else []


def _head(metric: str) -> str:
    return f"{metric.removeprefix(REGION)} {find_metric(metric).arrow}"


def _cell(interval: Interval | None, bold: bool, with_ends: bool) -> str:
    if interval is None:
        return ""
    value = f"**{short(interval.value)}**" if bold else short(interval.value)
    return value + (f" ({short(interval.low)} to {short(interval.high)})" if with_ends and interval.low == interval.low else "")


def _shown(found: tuple[Interval, int] | None) -> str:
    if found is None:
        return ""
    interval = found[0]
    return _signed(interval) + (" *" if interval.sign else "")


def _signed(interval: Interval) -> str:
    ends = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval.low == interval.low else ""
    return f"{interval.value:+.3f}{ends}"


def _claims(claims: Iterable[Claim], numbers: Numbers, directions: Sequence[Direction]) -> str:
    rows = []
    for claim in claims:
        for direction in directions:
            rows.append([claim.text, claim.metric, " to ".join(direction), *verdict(claim, numbers, direction)])
    if not rows:
        return ""
    heads = ["expected", "metric", "direction", "", "difference"]
    return "## Expected orderings\n\n" + _markdown(heads, rows)


def verdict(claim: Claim, numbers: Numbers, direction: Direction) -> tuple[str, str]:
    """Whether a claim held in a direction, by the paired interval of its difference, and that interval in words."""
    found = numbers.difference(direction, claim.better, claim.worse, claim.metric)
    if found is None:
        return "not measured", ""
    interval, seeds = found
    if interval.low != interval.low:
        return "not decided", f"{_signed(interval)}, one seed and no interval"
    wanted = 1 if find_metric(claim.metric).higher_is_better else -1
    why = {wanted: "held", 0: "did not hold (the interval holds 0)", -wanted: "did not hold (the other way round)"}
    return why[interval.sign], f"{_signed(interval)}, {seeds} seed{'s' if seeds > 1 else ''}"


def _bounds(bounds: Iterable[Bound], numbers: Numbers, directions: Sequence[Direction]) -> str:
    rows = []
    for bound in bounds:
        sign = "≥" if find_metric(bound.metric).higher_is_better else "≤"
        for direction in directions:
            wanted = f"{bound.metric} {sign} {bound.limit:g}"
            rows.append([bound.text, wanted, " to ".join(direction), *within(bound, numbers, direction)])
    return "## Expected of one arm\n\n" + _markdown(["expected", "", "direction", "", "measured"], rows) if rows else ""


def within(bound: Bound, numbers: Numbers, direction: Direction) -> tuple[str, str]:
    """Whether an arm keeps a bound in a direction, by its mean and by its whole interval, and the value in words."""
    found = numbers.estimate(direction, bound.arm, bound.metric)
    if found is None:
        return "not measured", ""
    up = find_metric(bound.metric).higher_is_better
    kept = [value >= bound.limit if up else value <= bound.limit for value in (found.value, found.low, found.high)]
    if not kept[0]:
        return "did not hold", _cell(found, False, True)
    known = found.low == found.low
    return "held" if all(kept) else "held in the mean" + (", not over the interval" if known else ", no interval"), _cell(
        found, False, True
    )


def _runs(arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> str:
    rows = []
    for arm in arms:
        own = [o for o in outcomes if (o.job.arm, o.job.run.data.domains) == (arm.name, arm.run.data.domains)]
        facts = [outcome.facts for outcome in own if outcome.facts is not None]
        engine, pair = own[0].job.run.engine, ", ".join(arm.run.data.domains)
        seeds = " ".join(str(outcome.job.seed) for outcome in own if outcome.facts is not None)
        cells: list[Any] = [arm.name, pair, arm.about, arm.run.model.name, seeds, engine.steps, engine.batch_size]
        if facts:
            cells += [" ".join(str(fact["step"]) for fact in facts), f"{facts[0]['parameters']:,}"]
            cells.append(f"{fmean(fact['seconds'] for fact in facts) / 60:.1f}")
        rows.append([str(cell) for cell in cells] + [""] * (10 - len(cells)))
    heads = ["arm", "domains", "", "method", "seeds", "steps", "batch", "weights of step", "parameters", "minutes a run"]
    return "## Runs\n\n" + _markdown(heads, rows)


def _troubles(outcomes: Sequence[Outcome]) -> str:
    failed = [f"- {outcome.job}: {outcome.error}" for outcome in outcomes if outcome.error]
    missing = [str(outcome.job) for outcome in outcomes if outcome.facts is None and not outcome.error]
    parts = ["## What is missing"] if failed or missing else []
    parts += ["Failed (logs: `log.txt` in the runs' folders):\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts + ([f"Not trained: {', '.join(missing)}."] if missing else []))


def _made(outcomes: Sequence[Outcome], command: str) -> str:
    facts = [outcome.facts for outcome in outcomes if outcome.facts is not None]
    data = sorted({outcome.job.data for outcome in outcomes})
    seconds = sum(fact["seconds"] for fact in facts)
    lines = [f"- command: `{command}`"] if command else []
    lines += [f"- data: {', '.join(digest[:16] for digest in data)}"]
    lines += [f"- trained on: {machine}" for machine in sorted({fact["machine"] for fact in facts})]
    lines.append(f"- {len(facts)} runs, {seconds / 3600:.1f} hours of training")
    lines.append(f"- recollect {', '.join(sorted({fact['recollect'] for fact in facts}))}")
    return f"## How this was made\n\n{HOW}\n\n" + "\n".join(lines)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_grids(place: str, table: Table, outcomes: Sequence[Outcome], judging: Judging) -> None:
    """One picture a direction, `<place>-<source>-<target>.png`: input | every arm with the first seed | nearest true render.

    The true render is the nearest to the reference's translation.
    """
    for direction in table.directions:
        first = outcomes[0].job.seed if outcomes else 0
        own = [
            outcome
            for outcome in outcomes
            if outcome.facts and outcome.job.seed == first and direction in judging.directions_of(outcome.job.run)
        ]
        if not own:
            continue
        picture = io.BytesIO()
        save_png(grid(table, direction, own, judging), picture)
        write_bytes(f"{place}-{direction[0]}-{direction[1]}.png", picture.getvalue())


def grid(table: Table, direction: Direction, outcomes: Sequence[Outcome], judging: Judging) -> torch.Tensor:
    """Test pictures and their translations by these outcomes, as a picture (3, height, width) uint8."""
    cases = judging.cases(outcomes[0].job.run, direction)
    rows = min(SHOWN, len(cases))
    index = torch.arange(rows) * len(cases) // rows
    columns = {f"{direction[0]} (input)": cases.images[index]}
    for outcome in outcomes:
        pipeline = Pipeline.open(outcome.bundle, pick_device(outcome.job.run.engine.device))
        answer = pipeline(to_unit(cases.images[index]), direction[1], source=direction[0])
        columns[outcome.job.arm] = to_uint8(answer.images.cpu())
    if cases.truth is not None:
        nearest_to = columns.get(table.reference, columns[outcomes[0].job.arm])
        references = cases.truth.references[index]
        distance = (references.float() - nearest_to[:, None].float()).abs().flatten(2).mean(2)
        columns[f"true {direction[1]}"] = references[torch.arange(rows), distance.argmin(1)]
    return picture_grid(columns)
