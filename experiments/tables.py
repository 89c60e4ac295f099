"""One-file-a-table experiments: arms x seeds, trained, judged once on the test split, and written up.

A recipe (`experiments/mguit_ablation.py`) names its arms, the directions to judge, the arm that the others are compared with,
and the orderings it expects; the rest is here and in its neighbours:

    table_jobs.py    which runs there are, where each lies, how each stands
    table_runs.py    training: resumable, in this process, in several, or on Ray
    table_rows.py    judging: rows of numbers, and errors by picture
    table_report.py  the page: means over seeds with intervals, paired differences, which orderings held, pictures

Everything lies in `<storage>/<table>...`: `.md` the page, `.parquet` a row a number, `-pictures.parquet` the errors by picture,
`-<source>-<target>.png` pictures, and a folder with the runs. The same command again does what is missing.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.table_jobs import Outcome
    from recollect.config import Run
    from recollect.evaluation.validate import Cases
    from recollect.pipeline import Pipeline

Direction = tuple[str, str]
PICTURES = 500  # of a split, evenly spread: a real data set has tens of thousands


@dataclass(frozen=True)
class Arm:
    """A row of a table: its name, its run (the table sets the seed, the store its classes), and what it is in words."""

    name: str
    run: Run
    about: str = ""


@dataclass(frozen=True)
class Claim:
    """An ordering that is expected: `better` is better than `worse` in `metric`, in every direction of the table."""

    text: str
    better: str
    worse: str
    metric: str


@dataclass(frozen=True)
class Bound:
    """What is expected of one arm: `metric` is at least `limit`, or at most where less is better, in every direction."""

    text: str
    arm: str
    metric: str
    limit: float


@dataclass(frozen=True)
class Table:
    """What a table shows. `reference` is the arm that the others are compared with; `measures` come on top of the usual ones."""

    name: str
    title: str
    about: str
    directions: tuple[Direction, ...]
    reference: str
    claims: tuple[Claim, ...] = ()
    bounds: tuple[Bound, ...] = ()
    measures: tuple[Callable[[Pipeline, Cases], dict[str, float]], ...] = ()


@dataclass(frozen=True)
class OnRay:
    """Where on Ray the runs go: the cluster's address, workers a run, and GPUs a worker."""

    address: str
    workers: int = 1
    gpus_per_worker: float = 0.0


def run_table(
    table: Table,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    storage: str,
    *,
    parallel: int = 1,
    on: OnRay | None = None,
    pictures: int | None = PICTURES,
    report_only: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train what is not trained, judge what is not judged, and write the page; returns how every run stands.

    Args:
        arms: with their stores in `run.data.store`.
        seeds: every arm is trained with each; equal seeds see equal pictures in equal order.
        storage: a folder, or a URI (then only finished runs are kept, and Ray's checkpoints).
        parallel, on: see `table_runs.train_jobs`.
        pictures: how many source pictures of the test split; None: all.
        report_only: write the page of what is there; train and judge nothing.
        command: for the page.

    Raises ValueError for arms that cannot stand in one table. A run that fails is reported, here and on the page.
    """
    from experiments.table_jobs import look, plan
    from experiments.table_report import write_grids, write_page
    from experiments.table_rows import Judging
    from experiments.table_runs import at_work, train_jobs

    _check(table, arms)
    storage = storage if "://" in storage else os.path.abspath(storage)
    place = f"{storage}/{table.name}"
    jobs = plan(arms, seeds, place)
    with at_work(place):
        outcomes = [look(job) for job in jobs] if report_only else train_jobs(jobs, parallel, on, say)
        judging = Judging(place, table.directions, pictures, table.measures, say)
        if not report_only:
            outcomes = judging.judge(outcomes)
            write_grids(place, table, outcomes, judging)
        page = write_page(place, table, arms, outcomes, judging.results(outcomes), command)
    say(f"page: {page}")
    return outcomes


def _check(table: Table, arms: Sequence[Arm]) -> None:
    from recollect.config import did_you_mean

    if not arms:
        raise ValueError(f"{table.name} has no arms to train")
    for arm in arms:
        if not any(set(direction) <= set(arm.run.data.domains) for direction in table.directions):
            shown = ", ".join("-".join(direction) for direction in table.directions)
            raise ValueError(f"{arm.name} is trained on {arm.run.data.domains}, which is no direction of {table.name} ({shown})")
    stores = sorted({arm.run.data.store for arm in arms})
    if len(stores) > 1:
        raise ValueError(f"the arms of a table are judged on one store, not on {' and '.join(stores)}")
    names = {arm.name for arm in arms}
    if table.reference not in names:
        raise ValueError(f"the reference {table.reference!r} is not among the arms{did_you_mean(table.reference, names)}")


def main(table: Table, recipe: Callable[[str, bool, bool], Sequence[Arm]], module: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a table: parse, run, and return the exit code (0; 1: a run failed; 2: a mistake; 130: stopped).

    Args:
        recipe: the arms, given a store's URI, whether small, and whether of the world.
        module: the recipe's module, for the help and the page.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(table, module).parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` says it so
    try:
        outcomes = _run(table, recipe, arguments, f"python -m {module} {shlex.join(words)}".strip())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this ended", file=sys.stderr)
        return 130
    return int(any(outcome.error for outcome in outcomes))


def parser(table: Table, module: str) -> argparse.ArgumentParser:
    """The command line, the same for every table."""
    text = f"""{table.title}

{table.about}

    python -m {module} --small --seeds 0 1 2 --parallel 2              two cores, some minutes a run
    python -m {module} --small --steps 300 --seeds 0 --arms {table.reference}    one run
    python -m {module} --world --storage runs/{table.name}-world      one GPU, hours
    python -m {module} --store s3://bucket/init --workers 4           the paper's settings on an image store, on Ray
    ray submit cluster.yaml experiments/{module.rpartition(".")[2]}.py --world --workers 1 --parallel 4
    python -m {module} --small --report-only                          write the page again
"""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="tiny presets on the streets world at 64 px")
    size.add_argument("--world", action="store_true", help="larger nets on the streets world at 128 px")
    made.add_argument("--store", default="", help="an image store (default: the streets world, drawn below --storage)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    made.add_argument("--steps", type=int, help="steps of every run (default: the recipe's)")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of every run")
    made.add_argument("--arms", nargs="+", metavar="ARM", help="names or globs (default: all)")
    made.add_argument("--pairs", nargs="+", metavar="A-B", help="only arms on these domains, as in sunny-night (default: all)")
    made.add_argument("--pictures", type=int, default=PICTURES, help="test pictures a direction (default: at most %(default)s)")
    made.add_argument(
        "--storage",
        default=os.environ.get("RECOLLECT_STORAGE", f"runs/{table.name}"),
        help="a path or URI; with --workers one that all nodes reach (default: %(default)s)",
    )
    made.add_argument(
        "--parallel", type=int, default=1, help="runs at a time, each in a process of its own (default: 1, in this)"
    )
    made.add_argument("--workers", type=int, default=0, help="train on Ray, with so many workers a run (default: 0, without Ray)")
    made.add_argument("--address", help="`local` for a private Ray; default: join the cluster here, else start one")
    made.add_argument("--gpus-per-worker", type=float, help="default: 1 where the cluster has GPUs now, else 0")
    made.add_argument("--report-only", action="store_true", help="write the page of what is there; train and judge nothing")
    return made


def _run(
    table: Table, recipe: Callable[[str, bool, bool], Sequence[Arm]], arguments: argparse.Namespace, command: str
) -> list[Outcome]:
    from recollect.config import overlay

    storage = arguments.storage if "://" in arguments.storage else os.path.abspath(arguments.storage)
    arms = recipe(_store(arguments, storage), arguments.small, arguments.world)
    arms = chosen(arms, arguments.arms, arguments.pairs)  # before --set: another method may lack the field
    steps = {} if arguments.steps is None else {"engine.steps": arguments.steps}
    arms = [replace(arm, run=overlay(overlay(arm.run, steps), arguments.set)) for arm in arms]
    if table.reference not in {arm.name for arm in arms}:
        table = replace(table, reference=arms[0].name)
    on = on_ray(arguments) if arguments.workers and not arguments.report_only else None
    options: dict[str, Any] = {"pictures": arguments.pictures, "report_only": arguments.report_only, "command": command}
    try:
        return run_table(table, arms, arguments.seeds, storage, parallel=arguments.parallel, on=on, **options)
    finally:
        if on is not None:
            from recollect.cluster import disconnect

            disconnect()


def _store(arguments: argparse.Namespace, storage: str) -> str:
    from experiments.stores import streets_store

    if arguments.store:
        return str(arguments.store)
    if not arguments.small and not arguments.world:
        raise ValueError("the paper's version needs its pictures: --store URI; without them take --small or --world")
    return streets_store(f"{storage}/streets-64") if arguments.small else world_store(f"{storage}/streets-128")


def world_store(uri: str) -> str:
    """Draw the streets world at 128 px into `uri` (kept where it is there already); returns `uri`."""
    from recollect.data.worlds import build_streets

    def progress(done: int, total: int) -> None:
        if done == total or done % 1000 == 0:
            print(f"drawing streets: {done}/{total} pictures", file=sys.stderr)

    build_streets(uri, size=128, train=2000, val=48, test=120, progress=progress)
    return uri


def chosen(arms: Sequence[Arm], names: Sequence[str] | None, pairs: Sequence[str] | None) -> list[Arm]:
    """The arms whose name matches one of `names` (globs) and whose domains are one of `pairs` (`sunny-night`); None: all.

    Raises ValueError, with what there is, for one that chooses nothing.
    """
    from recollect.config import did_you_mean

    found = list(arms)
    for wanted, of in ((names, lambda arm: arm.name), (pairs, lambda arm: "-".join(arm.run.data.domains))):
        for pattern in wanted or ():
            if not any(fnmatch(of(arm), pattern) for arm in arms):
                raise ValueError(f"no arm of this table is {pattern!r}{did_you_mean(pattern, {of(arm) for arm in arms})}")
        found = [arm for arm in found if wanted is None or any(fnmatch(of(arm), pattern) for pattern in wanted)]
    if not found:
        raise ValueError("no arm of this table has both such a name and such domains")
    return found


def on_ray(arguments: argparse.Namespace) -> OnRay:
    from recollect.cluster import connect
    from recollect.training.launch import Resources

    cluster = connect(arguments.address)
    gpus = arguments.gpus_per_worker
    fitting = Resources.fitting(arguments.workers, cluster.gpus).gpus_per_worker
    return OnRay(cluster.address, arguments.workers, fitting if gpus is None else gpus)
