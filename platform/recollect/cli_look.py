"""`recollect report` and `recollect board`: looking at what runs and searches did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Bundles, runs' directories, storages of searches or tables, tables of results."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    results: Annotated[
        list[str] | None,
        typer.Option(help="A Parquet table of results (repeat); those beside the runs are found without being named."),
    ] = None,
    title: Annotated[str, typer.Option(help="The page's title; default: the runs' names.")] = "",
    store: Annotated[str, typer.Option(help="Take pictures from this image store; default: each run's own.")] = "",
    split: Annotated[str, typer.Option(help="Whose pictures.")] = "test",
    rows: Annotated[int, typer.Option(help="Pictures of a grid.")] = 6,
    price_per_hour: Annotated[float | None, typer.Option(help="Of one device; adds what the runs cost.")] = None,
    index: Annotated[str, typer.Option(help="Where neighbours are found; default: the index a run was trained with.")] = "",
    library: Annotated[
        str, typer.Option(help="The store with the index's pictures; default: the one that the index names.")
    ] = "",
    device: str = "cpu",
) -> None:
    """Write one self-contained HTML page about runs and searches: pictures, tables, curves, memories, trials, cost.

    recollect report runs/first -o report.html\n
    recollect report runs/first runs/second runs/search --results runs/results.parquet -o report.html\n
    recollect report runs/tables --price-per-hour 2.5 -o report.html
    """
    from recollect.evaluation.report.write import write_report

    page = write_report(
        out,
        runs,
        tables=results or [],
        title=title,
        store=store,
        split=split,
        rows=rows,
        price=price_per_hour,
        device=device,
        index=index,
        library=library,
        progress=lambda text: print(text, file=sys.stderr),
    )
    print(page)


def board(
    storage: Annotated[str, typer.Argument(help="A folder of runs, a search's storage, or both.")] = "runs",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TensorBoard's; studies take those after it. 0: free ones.")] = 0,
) -> None:
    """TensorBoard on the runs and optuna-dashboard on the studies of a folder, until Ctrl-C.

    recollect board runs\n
    recollect board runs/search --port 6006
    """
    from recollect.board import run_boards

    run_boards(storage, host=host, port=port, say=lambda text: print(text, flush=True))
