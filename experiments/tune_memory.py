"""Search MGUIT's memory: items per class, temperatures and loss weights, with Ray Tune, Optuna and ASHA.

    python experiments/tune_memory.py --small                      a laptop, a few minutes
    ray submit cluster.yaml experiments/tune_memory.py             a cluster
    python experiments/tune_memory.py --store s3://bucket/init --workers-per-trial 4 --trials 64

Without --store it draws and searches the streets world, sunny to night. Trials are judged on the validation split; the best
settings are retrained with several seeds beside those that the search began from, and the winner is read on the test split once,
at the end. Results, below --storage: trials.parquet, final.parquet, summary.md, winner (a bundle), test.parquet.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from experiments import searching

OVER = (
    "model.memory.items_per_class.*",
    "model.memory.*_temperature",
    "weights.con_k",
    "weights.con_v",
    "weights.latent",
    "weights.cyc_rec",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the search, and return the exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        search(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    made = searching.parser(__doc__, "runs/tune_memory")
    made.add_argument("--store", default="", help="an image store (default: the streets world, drawn below --storage)")
    made.add_argument(
        "--method", default="mguit:tiny", help="method:preset, or module:function of a recipe (default: %(default)s)"
    )
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the run before the search"
    )
    made.add_argument(
        "--over", action="append", default=[], metavar="NAME", help=f"a field or glob to search (default: {', '.join(OVER)})"
    )
    made.add_argument("--steps", type=int, default=0, help="steps of the longest trial (default: 600, or 24 with --small)")
    return made


def search(arguments: argparse.Namespace) -> None:
    """The whole search, from the store to the winner's test table."""
    from experiments.stores import streets_store
    from recollect.cluster import connect
    from recollect.config import Run, find_run, overlay
    from recollect.data.store import Store
    from recollect.evaluation.evaluate import append, evaluate, show
    from recollect.training.session import suit

    searching.aims_of(arguments)
    storage = arguments.storage if "://" in arguments.storage else os.path.abspath(arguments.storage)
    if not arguments.store:
        print("no --store given: searching the streets world, sunny to night")
    uri = arguments.store or streets_store(f"{storage}/streets-64", small=arguments.small)
    store = Store.open(uri)
    steps = arguments.steps or (24 if arguments.small else 600)
    run: Run = overlay(
        find_run(arguments.method),
        {"name": "tune-memory", "seed": arguments.seed, "engine": {"steps": steps, "evaluate_every": max(steps // 4, 1)}},
    )
    run = overlay(suit(run, store, print), arguments.set)
    over = arguments.over or [name for name in OVER if _has(run, name)]
    outcome = searching.search(run, store, over, storage, arguments, connect(arguments.address))
    frame = evaluate(outcome.winner, uri, split="test")
    append(f"{storage}/test.parquet", frame)
    show(frame)
    print(f"winner: {outcome.winner}\ntrials: {storage}/trials.parquet, {storage}/summary.md")
    print(f"study:  optuna-dashboard {storage}/study.journal")


def _has(run: object, pattern: str) -> bool:
    """Whether a default pattern applies to the method that is searched."""
    from fnmatch import fnmatch

    from recollect.config import Run
    from recollect.search.space import searchable

    assert isinstance(run, Run)
    return any(fnmatch(name, pattern) for name in searchable(run))


if __name__ == "__main__":
    sys.exit(main())
