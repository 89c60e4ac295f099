"""What the search scripts share: their command line, and one search from a run to its winner."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recollect.cluster import Cluster
    from recollect.config import Run
    from recollect.data.store import Store
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
    made.add_argument("--gpus-per-worker", type=float, help="default: 1 where the cluster has GPUs now, else 0")
    made.add_argument(
        "--concurrent", type=int, default=0, help="trials at a time; above what the cluster holds it grows (default: fitting)"
    )
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
    from recollect.search.tune import Search
    from recollect.search.tune import search as run_search
    from recollect.training.session import judge_of

    judge = judge_of(run, store)
    if judge is None:
        raise ValueError(f"{store.uri} has no validation pictures to judge trials by")
    print(f"objective: {judge.about}")
    workers = arguments.workers_per_trial
    gpus = arguments.gpus_per_worker if arguments.gpus_per_worker is not None else float(cluster.gpus >= workers)
    outcome = run_search(
        Search(
            run,
            over=over,
            trials=arguments.trials or (4 if arguments.small else 24),
            directory=directory,
            mode=judge.mode,
            workers=workers,
            gpus=gpus,
            concurrent=arguments.concurrent,
            seed=arguments.seed,
        ),
        resume=arguments.resume if resume is None else resume,
    )
    columns = ["trial", "objective", "status", "step", *(name for name in map(str, outcome.table) if name.startswith("config/"))]
    print(outcome.table[columns].to_string(index=False, float_format="%.4g"))
    return outcome
