"""A bundle measured by a suite: in this process or on Ray, and only what a table of results does not have yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from recollect.bundle import absolute
from recollect.evaluation.evaluate import facts_of, measure, results_of
from recollect.evaluation.frechet import Measurement
from recollect.evaluation.results import SETTING, Results, load, nothing, save
from recollect.evaluation.suite import Bench, Request

TOGETHER = {"cis": "is", "fid": "kid"}  # what is measured from the same translations


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, total: int) -> None: ...  # translations to make
    def now(self, what: str) -> None: ...  # what is being measured
    def tick(self, translations: int) -> None: ...


class Silent:
    """Nobody is told."""

    def begin(self, total: int) -> None:
        pass

    def now(self, what: str) -> None:
        pass

    def tick(self, translations: int) -> None:
        pass


@dataclass(frozen=True)
class Opening:
    """How a worker opens its bench: of plain values, so that Ray can carry it."""

    request: Request

    def __call__(self) -> Bench:
        return Bench(self.request)


def measure_suite(
    request: Request,
    *,
    out: str | os.PathLike[str] | None = None,
    workers: int = 0,
    address: str | None = "local",
    again: bool = False,
    progress: Progress = Silent(),
) -> tuple[Results, dict[str, str]]:
    """What `recollect evaluate` judges, and the scores of a suite; and what was left out, with the reason.

    Each score is written to `out` as it is measured, so that a killed run goes on after the last one: what is there under the
    same digests of bundle, data and features is not measured again.

    Args:
        out: a Parquet file or URI; None: nothing is kept.
        workers: so many Ray workers share every score, which is to 1e-6 that of one process; 0: this process does it.
        address: Ray: `local`, or a cluster's address.
        again: measure also what is there.

    Raises ValueError as `Bench` and `measure`.
    """
    kept = nothing() if out is None or again else load(out)
    bench = Bench(request, tick=None if workers else progress.tick)  # everything that can be said against it is said first
    place = (request.store, request.split, request.pictures)
    own: dict[str, Any] = {"index": request.index, "library": request.library, "device": request.device}
    found = measure(bench.bundle, *place, progress=progress.now, known=kept, **own)
    count = int(found.rows["pictures"].max())
    about = facts_of(bench.bundle, bench.store, bench.source, bench.target, request.split, count, bench.pipeline, request.index)
    _keep(out, found)
    known = kept.of({name: about[name] for name in ("bundle", "index", *SETTING)})
    metrics = known.rows.loc[known.rows["features"] != "", "metric"]
    todo = [score for name, score in bench.scores.items() if name not in set(metrics)]
    for name in bench.scores:
        if name in set(metrics):
            found += _of_score(known, name)
    progress.begin(sum(score.translations for score in todo))
    with _measuring(bench, request, workers if todo else 0, address) as measured:
        for score in todo:
            progress.now(score.metric)
            result = measured(score.metric)
            if workers:
                progress.tick(score.translations)
            more = results_of(about, result.judgement, _ids(bench, result), str(result.about["digest"]))
            _keep(out, more)
            found += more
    return found, bench.left_out


@contextmanager
def _measuring(bench: Bench, request: Request, workers: int, address: str | None) -> Iterator[Callable[[str], Measurement]]:
    """What measures a score by its name."""
    if not workers:
        yield bench.measure
        return
    from recollect.cluster import connected, crew  # Ray, which small uses do without

    places = {"bundle": request.bundle, "store": request.store, "index": request.index, "library": request.library}
    bundles = {name: text for name in ("features", "lpips") if os.path.exists(text := getattr(request, name))}
    there: dict[str, Any] = {name: absolute(text) for name, text in {**places, **bundles}.items()}
    with connected(address), crew(Opening(replace(request, **there)), workers) as together:  # they stand in other folders
        yield lambda metric: together.call("measure", metric)


def _ids(bench: Bench, result: Measurement) -> tuple[str, ...]:
    return tuple(bench.asked.ids) if result.judgement.by_picture else ()


def _of_score(known: Results, name: str) -> Results:
    """The rows of a score and of its parts; `is` comes with `cis`, and `kid` with `fid`."""
    kind, _, protocol = name.partition("_")
    names = [name, f"{TOGETHER[kind]}_{protocol}"] if kind in TOGETHER else [name]

    def mine(metric: str) -> bool:
        return any(metric == own or metric.startswith(f"{own}/") for own in names)

    return Results(known.rows[known.rows["metric"].map(mine)], known.pictures[known.pictures["metric"].map(mine)])


def _keep(out: str | os.PathLike[str] | None, results: Results) -> None:
    if out is not None:
        save(out, results)
