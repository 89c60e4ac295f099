"""The commands that measure: `recollect evaluate`, `compare`, `metrics`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from recollect.bundle import Bundle
    from recollect.evaluation.measuring import Progress
    from recollect.evaluation.results import Results
    from recollect.evaluation.suite import Request

RESULTS = "runs/results.parquet"

Index = Annotated[str, typer.Option(help="Where its neighbours are found; default: the index it was trained with.")]
Library = Annotated[str, typer.Option(help="The store with the index's pictures; default: the one that the index names.")]
Suite = Annotated[str, typer.Option(help="Scores by protocol beside the rest: quick, mguit or rg_unit.")]
Features = Annotated[str, typer.Option(help="What sets are compared in: a bundle (`recollect features train`), or `inception`.")]
Lpips = Annotated[str, typer.Option(help="What pairs are compared in: alex, vgg, squeeze, or a bundle of features.")]
Download = Annotated[bool, typer.Option("--download", help="Published weights may be downloaded.")]
Workers = Annotated[int, typer.Option(help="Ray workers that share the scores of a suite; 0: this process, without Ray.")]
Address = Annotated[str | None, typer.Option(help="Ray: `local`, or a cluster's address.")]
Again = Annotated[bool, typer.Option("--again", help="Measure also what the table of results has.")]


def evaluate(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    store: Annotated[str, typer.Option(help="An image store; default: the one it was trained on.")] = "",
    split: str = "test",
    pictures: Annotated[int | None, typer.Option(help="At most so many pictures.")] = None,
    suite: Suite = "",
    features: Features = "inception",
    lpips: Lpips = "",
    download: Download = False,
    workers: Workers = 0,
    address: Address = "local",
    domain: Annotated[list[str] | None, typer.Option(help="A detector: judge it in this domain (repeat).")] = None,
    index: Index = "",
    library: Library = "",
    device: str = "cpu",
    out: Annotated[str, typer.Option(help=f"Append the rows to this Parquet table; default with --suite: {RESULTS}.")] = "",
    again: Again = False,
) -> None:
    """Judge a translator beside its baselines, a retriever, a classifier, or a detector.

    With --suite also by FID, KID, IS, CIS and LPIPS. What the table has under the same digests is not measured again, so a run
    that was killed goes on with the same command.

    recollect evaluate runs/first/best --out runs/results.parquet\n
    recollect evaluate runs/first/best --suite quick --features runs/streets-features --workers 4\n
    recollect evaluate runs/sunny-detector/best --domain night\n
    recollect evaluate runs/guided/best --index runs/faces-index --library s3://bucket/faces
    """
    from recollect.bundle import open_bundle
    from recollect.evaluation.evaluate import measure, show
    from recollect.evaluation.results import save

    where = store or open_bundle(bundle).run.data.store
    _of_a_suite(suite, features=features != "inception", lpips=lpips, workers=workers, again=again, download=download)
    if not suite:
        result = measure(bundle, where, split, pictures, device=device, domains=domain, index=index, library=library)
        show(result.rows)
        if out:
            save(out, result)
            print(f"rows appended to {out}")
        return
    if domain:
        raise ValueError("--domain is for detectors, and no suite has scores of these; leave --suite out")
    request = _request(bundle, where, suite, split, pictures, features, lpips, download, device, index=index, library=library)
    result = _measured(request, out or RESULTS, workers, address, again)
    show(result.rows)
    print(f"rows in {out or RESULTS}")


def _of_a_suite(suite: str, **given: object) -> None:
    """Raise ValueError for options that only a suite of scores reads, where there is none."""
    idle = [f"--{name}" for name, value in given.items() if value]
    if idle and not suite:
        raise ValueError(f"{', '.join(idle)} would do nothing without a suite: say --suite quick, mguit or rg_unit")


def compare(
    bundles: Annotated[list[str], typer.Argument(metavar="A B...", help="Bundles, or names of runs in the table of results.")],
    results: Annotated[str, typer.Option(help="The table of results, from which they are taken.")] = RESULTS,
    store: Annotated[str, typer.Option(help="Of bundles to evaluate: an image store; default: each one's own.")] = "",
    split: str = "test",
    pictures: Annotated[int | None, typer.Option(help="Of bundles to evaluate: at most so many pictures.")] = None,
    suite: Suite = "",
    features: Features = "inception",
    lpips: Lpips = "",
    download: Download = False,
    workers: Workers = 0,
    address: Address = "local",
    index: Annotated[
        str, typer.Option(help="Of bundles that neighbours guide: where these are found; default: each one's own.")
    ] = "",
    library: Library = "",
    device: str = "cpu",
    parts: Annotated[bool, typer.Option("--parts", help="Also by region, attribute, class.")] = False,
    beside: Annotated[bool, typer.Option("--beside", help="Also all baselines, and the ceiling.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the page to this file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the numbers to this file.")] = None,
) -> None:
    """Bundles side by side: values with intervals, and paired differences from the first.

    Those that the table of results lacks are evaluated first. Runs that differ in their seed alone are one column.

    recollect compare runs/first/best runs/second/best --suite quick --features runs/streets-features\n
    recollect compare runs/mguit-*/best runs/drit-*/best --markdown runs/compared.md\n
    recollect compare mguit-night drit-night --results runs/results.parquet
    """
    from recollect.evaluation import compare as comparing
    from recollect.evaluation.evaluate import measure
    from recollect.evaluation.results import load, save

    _of_a_suite(suite, features=features != "inception", lpips=lpips, workers=workers, download=download)
    guided: list[str] = []

    def evaluated(word: str, opened: Bundle, guide: Mapping[str, str]) -> None:
        where = store or opened.run.data.store
        guided.extend(guide)
        if suite:
            request = _request(word, where, suite, split, pictures, features, lpips, download, device, **guide)
            _measured(request, results, workers, address, False)
        else:
            save(results, measure(opened, where, split, pictures, _said, device, known=load(results), **guide))

    chosen = [comparing.as_subject(word, {"index": index, "library": library}, evaluated) for word in bundles]
    if (index or library) and not guided:
        raise ValueError("no neighbours guide any of these bundles; leave --index and --library out")
    sections = comparing.compare(load(results), chosen, parts, beside)
    for section in sections:
        for title, rows in comparing.tables(section):
            _print(title, rows)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(comparing.markdown(sections))
        print(f"page: {markdown}")
    if parquet is not None:
        parquet.parent.mkdir(parents=True, exist_ok=True)
        comparing.frame(sections).to_parquet(parquet)
        print(f"rows: {parquet}")


def _said(text: str) -> None:
    print(text, file=sys.stderr)


def metrics() -> None:
    """Every metric: which way is better, its unit, what it needs, what it costs, what it says.

    recollect metrics
    """
    from recollect.evaluation.metrics import METRICS

    rows = [["", "unit", "needs", "costs", "what"]]
    rows += [[f"{name} {one.arrow}", one.unit, one.needs, one.cost, one.about] for name, one in METRICS.items()]
    _print("metrics", rows, left=True)


def _request(
    bundle: str,
    store: str,
    suite: str,
    split: str,
    pictures: int | None,
    features: str,
    lpips: str,
    download: bool = False,
    device: str = "cpu",
    index: str = "",
    library: str = "",
) -> Request:
    from recollect.evaluation.suite import Request

    return Request(bundle, store, suite, split, pictures, features, lpips, download, device, index, library)


def _measured(request: Request, out: str, workers: int, address: str | None, again: bool) -> Results:
    from recollect.evaluation.measuring import measure_suite

    with _progress() as told:
        found, left_out = measure_suite(request, out=out, workers=workers, address=address, again=again, progress=told)
    for what, why in left_out.items():
        print(f"{what}: not measured, {why}", file=sys.stderr)
    return found


class Lines:
    """Says what is being measured, a line each: for logs."""

    def begin(self, total: int) -> None:
        if total:
            print(f"{total} translations to make", file=sys.stderr)

    def now(self, what: str) -> None:
        print(f"measuring {what}" if "@" in what or what.startswith("lpips") else what, file=sys.stderr)

    def tick(self, translations: int) -> None:
        pass


def _progress() -> AbstractContextManager[Progress]:
    """A bar on a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else nullcontext(Lines())


class Bar:
    """A bar over the translations that are made."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Drawn

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self.drawn = Drawn(*columns, console=Console(stderr=True))
        self.task = self.drawn.add_task("opening", total=None)

    def __enter__(self) -> Bar:
        self.drawn.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.drawn.stop()

    def begin(self, total: int) -> None:
        self.drawn.reset(self.task, total=total)

    def now(self, what: str) -> None:
        self.drawn.update(self.task, description=what)

    def tick(self, translations: int) -> None:
        self.drawn.advance(self.task, translations)


def _print(title: str, rows: list[list[str]], left: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"[italic]{title}[/italic]", highlight=False)
    shown = Table(header_style="bold", show_edge=False, pad_edge=False)
    for place, head in enumerate(rows[0]):
        shown.add_column(head, justify="left" if left or not place else "right", overflow="fold", no_wrap=not place)
    for row in rows[1:]:
        shown.add_row(*row)
    console.print(shown, highlight=False)
