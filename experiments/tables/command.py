"""The command line of a table, the same for all of them."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from experiments.tables.table import PICTURES, Arm, OnRay, Table, chosen, run_table

if TYPE_CHECKING:
    from experiments.tables.jobs import Outcome

Recipe = Callable[[str, bool, bool], Sequence[Arm]]  # the arms, given a store's URI, whether small, and whether of the world
Draw = Callable[[str, bool], str]  # the URI of the world's store, drawn below a storage if it is not there; whether small


def main(table: Table, recipe: Recipe, module: str, argv: Sequence[str] | None = None, draw: Draw | None = None) -> int:
    """The command line of a table: parse, run, and return the exit code (0; 1: a run failed; 2: a mistake; 130: stopped).

    Args:
        recipe: the arms, given a store's URI, whether small, and whether of the world.
        module: the recipe's module, for the help and the page.
        draw: the world that --small and --world mean; None: the streets.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(table, module).parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` says it so
    try:
        outcomes = _run(table, recipe, draw, arguments, f"python -m {module} {shlex.join(words)}".strip())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this ended", file=sys.stderr)
        return 130
    return int(any(outcome.error for outcome in outcomes))


def parser(table: Table, module: str) -> argparse.ArgumentParser:
    """The command line, the same for every table."""
    folder = f"runs/{table.runs or table.name}"  # one for tables that share runs, and the world that they are trained on
    text = f"""{table.title}

{table.about}

    python -m {module} --small --seeds 0 1 2 --parallel 2              two cores, some minutes a run
    python -m {module} --small --steps 300 --seeds 0 --arms {table.reference}    one run
    python -m {module} --world --storage {folder}-world      one GPU, hours
    python -m {module} --store s3://bucket/init --workers 4           the paper's settings on an image store, on Ray
    ray submit cluster.yaml experiments/{module.rpartition(".")[2]}.py --world --workers 1 --parallel 4
    python -m {module} --small --report-only                          write the page again
"""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="tiny presets on a small drawn world: minutes a run on a CPU")
    size.add_argument("--world", action="store_true", help="larger nets on a larger drawn world: hours on a GPU")
    made.add_argument("--store", default="", help="an image store (default: the world, drawn below --storage)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    made.add_argument("--steps", type=int, help="steps of every run (default: the recipe's)")
    made.add_argument(
        "--set", action="append", default=[], metavar="[ARM:]NAME=VALUE", help="change a field of every run, or of one arm's"
    )
    made.add_argument("--arms", nargs="+", metavar="ARM", help="names or globs (default: all); what they start from comes along")
    made.add_argument("--pairs", nargs="+", metavar="A-B", help="only arms on these domains, as in sunny-night (default: all)")
    made.add_argument("--pictures", type=int, default=PICTURES, help="test pictures (default: at most %(default)s)")
    made.add_argument(
        "--storage",
        default=os.environ.get("RECOLLECT_STORAGE", folder),
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


def _run(table: Table, recipe: Recipe, draw: Draw | None, arguments: argparse.Namespace, command: str) -> list[Outcome]:
    storage = arguments.storage if "://" in arguments.storage else os.path.abspath(arguments.storage)
    arms = recipe(_store(arguments, draw, storage), arguments.small, arguments.world)
    arms = chosen(arms, arguments.arms, arguments.pairs)  # before --set: another method may lack the field
    arms = changed(arms, arguments.steps, arguments.set)
    shown = [arm.name for arm in arms if arm.shown]
    if shown and table.reference not in shown:
        table = replace(table, reference=shown[0])
    on = on_ray(arguments) if arguments.workers and not arguments.report_only else None
    options: dict[str, Any] = {"pictures": arguments.pictures, "report_only": arguments.report_only, "command": command}
    try:
        return run_table(table, arms, arguments.seeds, storage, parallel=arguments.parallel, on=on, **options)
    finally:
        if on is not None:
            from recollect.cluster import disconnect

            disconnect()


def changed(arms: Sequence[Arm], steps: int | None, changes: Sequence[str]) -> list[Arm]:
    """The arms with their steps and fields changed: `name=value` in every arm, `arm:name=value` in those of that name or glob.

    Raises ValueError for an arm that is not there, and for fields and values that a run does not have.
    """
    from recollect.config import did_you_mean, overlay

    names, parted = {arm.name for arm in arms}, []
    for change in changes:
        named = re.match(r"(.+):(?=[\w.]+=)", change)  # an arm's name may hold what a field's cannot: "r = 3"
        pattern = named[1] if named else ""
        parted.append((pattern or "*", change[named.end() :] if named else change))
        if pattern and not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"no arm of this table is {pattern!r}{did_you_mean(pattern, names)}")
    made = []
    for arm in arms:
        begun = arm.run if steps is None else overlay(arm.run, {"engine.steps": steps})
        own = [change for pattern, change in parted if fnmatch(arm.name, pattern)]
        made.append(replace(arm, run=overlay(begun, own)))
    return made


def _store(arguments: argparse.Namespace, draw: Draw | None, storage: str) -> str:
    from experiments.stores import streets

    if arguments.store:
        return str(arguments.store)
    if not arguments.small and not arguments.world:
        raise ValueError("the paper's version needs its pictures: --store URI; without them take --small or --world")
    return (draw or streets)(storage, arguments.small)


def on_ray(arguments: argparse.Namespace) -> OnRay:
    """Join or start Ray as the arguments `workers`, `address` and `gpus_per_worker` say."""
    from recollect.cluster import connect
    from recollect.training.launch import Resources

    cluster = connect(arguments.address)
    gpus = arguments.gpus_per_worker
    fitting = Resources.fitting(arguments.workers, cluster.gpus).gpus_per_worker
    return OnRay(cluster.address, arguments.workers, fitting if gpus is None else gpus)
