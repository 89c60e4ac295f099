"""The report: one self-contained HTML page about any number of runs, searches and tables of results.

Pictures are inside as base64, drawings are inline SVG, there is no script and no network. The page follows the reader's light or
dark setting, and on a phone wide tables and pictures scroll in boxes of their own. A section is a function of what there is, and
is left out where there is nothing:

    Results               tables with intervals; errors by class against the truth
    Pictures              translations side by side, random and exemplar styles, retrieved neighbours, detections, answers
    Samples over time     the grids that training saved
    Inside the memory     maps, thumbnails, styles by class, t-SNE
    Losses, Validation, Memory over time    curves, runs overlaid
    Search                progress, importances, parallel coordinates, fronts, all trials
    Time and cost
    Configuration         what differs, and everything
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from recollect.evaluation.report import configuration, cost, losses, results, samples, search
from recollect.evaluation.report.html import facts, plain_table, plural, series, write_page
from recollect.evaluation.report.sources import Found, Source, find
from recollect.evaluation.report.translations import Studio, memory_section, pictures_section

ROWS = 6  # pictures of a grid


def write_report(
    path: str | os.PathLike[str],
    places: Iterable[str | os.PathLike[str]],
    *,
    tables: Iterable[str | os.PathLike[str]] = (),
    title: str = "",
    store: str = "",
    split: str = "test",
    rows: int = ROWS,
    price: float | None = None,
    device: str = "cpu",
    index: str = "",
    library: str = "",
    about: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the page; a reader sees the old page or the new one, never a half.

    Args:
        path: where the page goes.
        places: bundles, runs' directories, storages of searches and tables, tables of results, or folders with these inside.
        tables: further Parquet tables of results. Those beside the runs are found without being named.
        store: where pictures are taken from; empty: each run's own store.
        split: whose pictures; where a store has none of it, validation pictures.
        rows: pictures of a grid.
        price: of a device hour.
        index, library: as `open_pipeline` takes them, for methods that are guided by neighbours.
        about: what the reader should know first, in short words.
        progress: told in words what is being done.

    A run whose store is gone has its numbers and no pictures, and the page says so.
    Raises ValueError for a place with nothing to report on, and for fewer than one row.
    """
    if rows < 1:
        raise ValueError(f"a grid has at least one row, not {rows}")
    found = find(places, tables)
    studio = Studio(store, split, rows, device, progress or (lambda text: None), index, library)
    parts = [
        results.section(found.results, [run.name for run in found.runs]),
        pictures_section(found.runs, studio),
        samples.section(found.runs),
        memory_section(found.runs, studio),
        *losses.sections(found.runs),
        search.section(found.trials),
        cost.section(found.runs, found.trials, price),
        configuration.section(found.runs),
    ]
    return write_page(Path(path), title or _title(found), _head(found, about or {}), parts)


def _title(found: Found) -> str:
    if len(found.runs) == 1:
        return found.runs[0].name
    if found.runs:
        return f"{plural(len(found.runs), 'run')}: {', '.join(run.name for run in found.runs[:4])}" + " …" * (len(found.runs) > 4)
    return f"Search {found.trials[0].name}" if found.trials else "Results"


def _head(found: Found, about: Mapping[str, str]) -> str:
    pairs = dict(about)
    if len(found.runs) == 1:
        run = found.runs[0]
        pairs = _facts(run) | pairs
        return f'<p class="soft">{escape(_what(run))}</p>{facts(pairs)}'
    return (_overview(found.runs) if found.runs else "") + facts(pairs)


def _what(run: Source) -> str:
    own, size = run.run, run.run.data.size
    domains = own.data.domains
    where = f"between {' and '.join(domains)}" if len(domains) > 1 else f"on {', '.join(domains)}"
    return f"The method {own.model.name}, trained for {plural(run.last_step, 'step')} at {size} x {size} pixels {where}."


def _facts(run: Source) -> dict[str, str]:
    digest, parents = run.bundle.digest, run.bundle.manifest["parents"]
    found = {"bundle": digest[:16], "place": run.place}
    if "data" in parents:
        found["data"] = f"{run.run.data.store or ''} ({parents['data'][:16]})".strip()
    return found


def _overview(runs: Sequence[Source]) -> str:
    """A row a run, in its colour."""
    frame = pd.DataFrame(
        {
            "method": [run.run.model.name for run in runs],
            "steps": [run.last_step for run in runs],
            "pixels": [run.run.data.size for run in runs],
            "domains": [", ".join(run.run.data.domains) for run in runs],
            "objective": [_objective(run) for run in runs],
            "bundle": [run.bundle.digest[:12] for run in runs],
        },
        index=[run.name for run in runs],
    )
    table = plain_table(frame)
    for place, run in enumerate(runs):
        head = f"<th>{escape(run.name)}</th>"
        table = table.replace(f"<tr>{head}", f'<tr class="{series(place)}"><th><i class="swatch"></i>{escape(run.name)}</th>', 1)
    return table


def _objective(run: Source) -> float:
    """The best objective of the validation split, whichever way is up: that of the bundle's own weights."""
    values = [row["objective"] for row in run.bundle.metrics() if "objective" in row]
    return float(values[-1]) if values else float("nan")
