"""Training on Ray Train: any number of workers, failures survived, checkpoints in shared storage, resume by name."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from pyarrow import fs
from ray.train.torch import TorchTrainer

from recollect import bundle as bundles
from recollect.cluster import require
from recollect.config import Run
from recollect.training.checkpoint import is_checkpoint
from recollect.training.finite import NotFinite
from recollect.training.giveback import GiveBack
from recollect.training.session import train as train_here
from recollect.training.sync import local_ranks

logger = logging.getLogger("recollect")
UNFINISHED = "ray"  # where Ray keeps the checkpoints of a run that is not whole yet


@dataclass(frozen=True)
class Resources:
    """What each worker gets, and how many there are.

    `fewest`: a run begins, and goes on after hosts have died, with so many of them; where hosts come, their number grows again,
    once a minute at most. None: always all. What is learnt does not depend on the number of workers, but for the order of sums.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    fewest: int | None = None

    @staticmethod
    def fitting(workers: int, gpus: float, cpus_per_worker: float = 1.0, fewest: int | None = None) -> Resources:
        """A GPU a worker where the cluster has that many."""
        return Resources(workers, cpus_per_worker, 1.0 if gpus >= (fewest or workers) else 0.0, fewest)

    @property
    def counts(self) -> range:
        """How many workers there may be at a time. Raises ValueError where that is none."""
        fewest = self.workers if self.fewest is None else self.fewest
        if not 1 <= fewest <= self.workers:
            raise ValueError(f"the fewest workers are {fewest} of {self.workers}; give a number from 1 to {self.workers}")
        return range(fewest, self.workers + 1)


def train(
    run: Run,
    storage: str,
    name: str,
    resources: Resources,
    *,
    start: str | None = None,
    max_failures: int = 3,
    callbacks: Sequence[Any] = (),
) -> ray.train.Result:
    """Train a run on a Ray cluster that this process is connected to.

    Args:
        storage: a directory or `pyarrow.fs` URI that all nodes reach.
        name: the run's directory in it. The same name again goes on where it ended, also after a kill.
        start: a checkpoint to begin from where `name` has none yet (the winner of a search, trained further).
        max_failures: how many times workers may die before the run fails.
        callbacks: Ray Train callbacks (Ray Tune's report callback, inside a trial).

    Returns Ray's Result; `fetch` copies its bundle. Raises ValueError where the cluster is too small,
    NotFinite where a loss was not finite, ray.train.TrainingFailedError where workers died too often.
    """
    counts, joint = resources.counts, run.engine.batch_size
    decoding = 1 if run.engine.feed == "ray" else 0
    what = f"run {name!r}" + (", its workers and one task that decodes (engine.feed=ray)," if decoding else "")
    require(counts[0] * resources.cpus_per_worker + decoding, counts[0] * resources.gpus_per_worker, what)
    if odd := [count for count in counts if joint % count]:
        which = (
            f"{odd[0]} workers must divide it"
            if len(counts) == 1
            else f"every number of workers must divide it, and {odd[0]} does not"
        )
        raise ValueError(f"engine.batch_size={joint} is the joint batch; {which}")
    parts = run.engine.accumulate
    if odd := [count for count in counts if joint // count % parts]:
        raise ValueError(
            f"engine.accumulate={parts} does not divide the {joint // odd[0]} pictures of engine.batch_size={joint} that each of "
            f"{odd[0]} workers has"
        )
    each = {"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run.model_dump_json(), "start": start},
        scaling_config=ray.train.ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=each,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage if "://" in storage else os.path.abspath(storage),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[*callbacks, GiveBack()],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    result = _fit(trainer, max_failures)
    if result.return_value:
        where = result.checkpoint.path if result.checkpoint else "nowhere"
        raise NotFinite(f"{result.return_value} (kept as {where}/broken)")
    return result


def claim(run: Run, out: str, resume: bool = False) -> str:
    """Make a place for a run on Ray: a directory that all nodes reach, or a `pyarrow.fs` URI; returns it, absolute.

    Raises ValueError where a run is there already and `resume` is not said, and for a URI with a query.
    """
    out = bundles.absolute(out).rstrip("/")
    if "://" in out and "?" in out:
        raise ValueError(f"{out}: a run's place is a URI without a query; an endpoint of one's own is AWS_ENDPOINT_URL's")
    if not resume and (_is_there(f"{out}/last") or _is_there(f"{out}/{UNFINISHED}")):
        raise ValueError(f"{out} holds a run already; resume it (--resume), or choose another --out")
    bundles.write_text(f"{out}/run.json", run.model_dump_json(indent=2) + "\n")
    return out


def train_into(run: Run, out: str, resources: Resources) -> str:
    """Train a run in a place that was claimed, or go on with the one there; returns its bundle.

    Ray keeps its checkpoints in `out/ray` until the run is whole; then it is what it would be without Ray: `last`, `best`,
    history, samples. Raises as `train` does, but for workers that died or failed too often: a ValueError of one line.
    """
    unfinished, last = f"{out}/{UNFINISHED}", f"{out}/last"
    try:
        result = train(run, unfinished, "run", resources, start=last if _is_there(last) else None)
    except ray.train.TrainingFailedError as error:
        raise ValueError(f"the training failed again and again, at last: {_cause(error)}; --resume goes on in {out}") from error
    filesystem, root = bundles.filesystem_of(out)
    with tempfile.TemporaryDirectory(prefix="recollect-run-") as here:
        best = fetch(result, Path(here)).name
        for name in ("last", "best"):  # each as a bundle, whole or not at all
            if (Path(here) / name).exists():
                bundles.copy(Path(here) / name, f"{out}/{name}")
                shutil.rmtree(Path(here) / name)
        fs.copy_files(here, root, destination_filesystem=filesystem)
    filesystem.delete_dir(f"{root}/{UNFINISHED}")
    return f"{out}/{best}"


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The last line of what a worker said, or of the error itself."""
    failures = [*error.worker_failures.values()] if isinstance(error, ray.train.WorkerGroupError) else []
    said = str((failures or [error])[0]).strip()
    return said.splitlines()[-1] if said else repr((failures or [error])[0])


def _is_there(place: str) -> bool:
    filesystem, path = bundles.filesystem_of(place)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def _fit(trainer: TorchTrainer, max_failures: int) -> ray.train.Result:
    """`trainer.fit()`, again where a worker died while the controller was calling it: Ray retries every other death itself."""
    for failures in range(max_failures + 1):
        try:
            return trainer.fit()
        except ray.train.ControllerError as error:
            if failures == max_failures or not isinstance(error.controller_failure, ray.exceptions.RayActorError):
                raise
            logger.warning("a worker died at an awkward moment; going on from the last checkpoint")
    raise AssertionError("the last failure was raised")


def _worker(config: dict[str, Any]) -> str | None:
    """What every Ray Train worker does: restore the run's directory, train, and report it at every evaluation.

    Returns what was not finite, if something was: all ranks see that at the same step, and trying again would not help.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO, and logs every report of every rank
    logger.setLevel(logging.INFO)
    run, ranks = Run.model_validate_json(config["run"]), local_ranks()
    work = Path(tempfile.mkdtemp(prefix="recollect-run-"))
    state = work / "state"
    try:
        resume = _restore(state)
        if resume is None and config["start"]:
            resume = bundles.localise(config["start"])

        def report(metrics: dict[str, float], _: Path | None) -> None:
            own = ray.train.Checkpoint.from_directory(str(state)) if ranks.rank == 0 else None
            ray.train.report(metrics, checkpoint=own)  # every rank, equally often: it is a barrier

        try:
            train_here(run, state if ranks.rank == 0 else work / "other", resume=resume or False, report=report, ranks=ranks)
        except NotFinite as error:
            report({"broken": 1.0}, None)
            return str(error)
        return None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _restore(state: Path) -> Path | None:
    """Copy the newest checkpoint of this name into `state`; every rank needs its own."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return None
    newest.to_directory(str(state))
    if not is_checkpoint(state / "last"):  # it broke before its first checkpoint
        return None
    logger.info("going on from %s", newest.path)
    return state / "last"


def fetch(result: ray.train.Result, directory: Path) -> Path:
    """Copy a finished run's directory (last, best, history, samples) out of storage; returns the bundle's directory."""
    assert result.checkpoint is not None, "a finished run has reported at least once"
    directory.mkdir(parents=True, exist_ok=True)
    result.checkpoint.to_directory(str(directory))
    return directory / ("best" if (directory / "best").exists() else "last")
