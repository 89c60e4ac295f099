"""What the search scripts share: their command line, and one search from a run to its winner."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recollect.cluster import Cluster
    from recollect.config import Run
    from recollect.data.store import Store
    from recollect.search.goals import Goal, Mode
    from recollect.search.tune import Outcome


def parser(about: str, storage: str) -> argparse.ArgumentParser:
    """The options that all searches have."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trials", type=int, default=0, help="settings to try (default: 24, or 4 with --small)")
    made.add_argument("--workers-per-trial", type=int, default=1, help="above 1 every trial is a Ray Train run (default: 1)")
    made.add_argument(
        "--storage",
        default=os.environ.get("RECOLLECT_STORAGE", storage),
        help="a path or URI that all nodes reach (default: %(default)s)",
    )
    made.add_argument(
        "--gpus-per-worker",
        type=float,
        help="default: 1 where the cluster has GPUs now, else 0; with 0.5 two trials of one worker share one",
    )
    made.add_argument(
        "--concurrent", type=int, default=0, help="trials at a time; above what the cluster holds it grows (default: fitting)"
    )
    directions: dict[str, tuple[Mode | None, str]] = {
        "--objective": (None, "a metric to steer by, in its own direction; several are traded off (default: the method's own)"),
        "--minimise": ("min", "the same, and an error where more is better"),
        "--maximise": ("max", "the same, and an error where less is better"),
    }
    for option, (mode, about) in directions.items():
        kind = partial(_aim, mode)
        made.add_argument(option, dest="aims", action="append", default=[], type=kind, metavar="METRIC", help=about)
    made.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="COST=NUMBER",
        help="at most so much of parameters, or of seconds_per_step",
    )
    made.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="PLACE",
        help="begin with what is known: an earlier search's trials.parquet, a JSON file of names to values, or a bundle",
    )
    made.add_argument(
        "--scheduler",
        choices=["asha", "pbt", "none"],
        default="asha",
        help="asha ends the worse trials early, pbt changes them on the way (default: %(default)s)",
    )
    made.add_argument(
        "--retries", type=int, default=3, help="of a trial that lost its process or host (default: %(default)s; -1: any)"
    )
    made.add_argument(
        "--seeds",
        type=int,
        help="of the final, in which the best settings meet those it began from; 0: none (default: 3, small: 1)",
    )
    made.add_argument("--final-steps", type=int, default=0, help="of each run of the final (default: twice the longest trial)")
    made.add_argument("--small", action="store_true", help="few small trials, to see that everything works")
    made.add_argument("--resume", action="store_true", help="go on with the search in --storage")
    made.add_argument("--address", default=None, help="`local` for a private Ray; default: join the cluster here, else start one")
    made.add_argument("--seed", type=int, default=0)
    return made


def search(
    run: Run,
    store: Store,
    over: Sequence[str],
    directory: str,
    arguments: argparse.Namespace,
    cluster: Cluster,
    resume: bool | None = None,
) -> Outcome:
    """One search of `run` over fields, judged on the validation split; prints what it steers by and the table of trials.

    Args:
        cluster: the one that this process is connected to.
        resume: None: as the arguments say.

    Raises ValueError where nothing can judge the trials, and as `recollect.search.tune.search` does.
    """
    from recollect.config import overlay
    from recollect.search.known import known_settings
    from recollect.search.space import choose
    from recollect.search.tune import Search, confirm
    from recollect.search.tune import search as run_search
    from recollect.training.session import judge_of

    aims, limits = aims_of(arguments)
    if aims:
        run = overlay(run, {"evaluation.metric": aims[0].name})
    judge = judge_of(run, store)
    if judge is None:
        raise ValueError(f"{store.uri} has no validation pictures to judge trials by")
    print(f"objective: {judge.about}{''.join(f'; {aim}' for aim in aims[1:])}")
    workers = arguments.workers_per_trial
    gpus = arguments.gpus_per_worker if arguments.gpus_per_worker is not None else float(cluster.gpus >= workers)
    plan = Search(
        run,
        over=over,
        trials=arguments.trials or (4 if arguments.small else 24),
        directory=directory,
        mode=judge.mode,
        goals=tuple(aims) if len(aims) > 1 else (),
        limits=limits,
        start=known_settings(arguments.start, choose(run, over)),
        scheduler=arguments.scheduler,
        workers=workers,
        gpus=gpus,
        concurrent=arguments.concurrent,
        retries=arguments.retries,
        seed=arguments.seed,
    )
    outcome = run_search(plan, resume=arguments.resume if resume is None else resume)
    seeds = (1 if arguments.small else 3) if arguments.seeds is None else arguments.seeds
    if seeds and arguments.scheduler != "pbt":  # whose winner's settings are a schedule: it is trained already
        outcome = confirm(plan, outcome, seeds, arguments.final_steps)
    print(f"\n{outcome.summary}")
    return outcome


def aims_of(arguments: argparse.Namespace) -> tuple[list[Goal], dict[str, float]]:
    """What the arguments steer by, and the limits that they set; asked before a cluster is, because they may be wrong.

    Raises ValueError for names and directions that do not exist, and for a cost as the first or only aim.
    """
    from recollect.search.goals import COSTS, goal, parse_limits

    aims = [goal(name, mode) for mode, name in arguments.aims]
    if aims and aims[0].name in COSTS:
        raise ValueError(f"{aims[0].name} is a cost: name a metric first, which chooses the checkpoints and the winner")
    if len(aims) > 1 and arguments.scheduler == "pbt":
        raise ValueError("pbt is for one objective; take the scheduler asha, and several are traded off by NSGA-II")
    return aims, parse_limits(arguments.limit)


def _aim(mode: Mode | None, name: str) -> tuple[Mode | None, str]:
    return mode, name
