"""What a trial of a search does: it trains, reports, and goes on from its checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback
from ray.tune.trainable.function_trainable import wrap_function

from recollect import bundle as bundles
from recollect.config import Run, overlay
from recollect.data.store import Store
from recollect.search import finished
from recollect.search.goals import COSTS, OBJECTIVE, Goal, over
from recollect.training import checkpoint as checkpoints
from recollect.training import launch
from recollect.training.session import domains_of
from recollect.training.session import train as train_here
from recollect.training.trainer import build

if TYPE_CHECKING:
    from recollect.search.tune import Search


def trainable(plan: Search, directory: str, jobs: Sequence[dict[str, Any]] = ()) -> Any:
    """What Ray Tune runs for each trial of a plan, with the resources it needs."""
    fixed = {
        "run": plan.run.model_dump_json(),
        "directory": directory,
        "limits": json.dumps(dict(plan.limits)),
        "scheduler": plan.scheduler,
        "worst": json.dumps({aim.name: aim.worst for aim in (*plan.aims, Goal(OBJECTIVE, plan.mode))}),
        "jobs": json.dumps(list(jobs)),  # of a final: `job` in a trial's config is a number of this list
    }
    if plan.workers == 1:
        each = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
        return tune.with_resources(_restoring(tune.with_parameters(_plain_trial, fixed=fixed)), each)
    fixed["resources"] = json.dumps([plan.workers, plan.cpus, plan.gpus])
    # A driver only waits. Tune refuses an empty request, and a sliver of a CPU would keep the last worker from fitting.
    return tune.with_resources(tune.with_parameters(_driver_trial, fixed=fixed), {"memory": 1_000_000})


def _restoring(trial: Any) -> Any:
    """A trial that goes on although the checkpoint that Tune remembers is gone.

    Tune writes down what it knows every few seconds, and what a kill leaves may be older than the trial's files: the checkpoint
    that it names has been replaced. Then the newest that is whole takes its place; without one the trial begins anew.
    """

    class Trial(wrap_function(trial)):  # type: ignore[misc]
        def restore(self, result: Any) -> None:
            there = _whole(result.checkpoint.filesystem, result.checkpoint.path)
            if there is not None:
                result.checkpoint = tune.Checkpoint(there, result.checkpoint.filesystem)
                super().restore(result)

    return Trial


def _whole(filesystem: fs.FileSystem, path: str) -> str | None:
    """This checkpoint, or the newest one beside it; None where none is whole."""
    selector = fs.FileSelector(os.path.dirname(path), allow_not_found=True)
    others = sorted((one.path for one in filesystem.get_file_info(selector) if "checkpoint_" in one.base_name), reverse=True)
    return next((str(place) for place in (path, *others) if _has_all(filesystem, f"{place}/last")), None)


def _has_all(filesystem: fs.FileSystem, bundle: str) -> bool:
    """Whether all files that a bundle's manifest names are there: they are copied, and deleted, in any order."""
    if filesystem.get_file_info(f"{bundle}/manifest.json").type != fs.FileType.File:
        return False
    with filesystem.open_input_file(f"{bundle}/manifest.json") as stream:
        names = json.loads(stream.read())["files"]
    return all(one.type == fs.FileType.File for one in filesystem.get_file_info([f"{bundle}/{name}" for name in names]))


def _plain_trial(config: dict[str, Any], fixed: dict[str, str]) -> None:
    """One trial in this process."""
    run = _run_of(config, fixed)
    digest = finished.digest_of(run)
    work = Path(tempfile.mkdtemp(prefix="recollect-trial-"))
    state, limits = work / "state", json.loads(fixed["limits"])
    alone = fixed["scheduler"] != "pbt"  # else its settings are not what it was trained with all along
    costs: dict[str, float] = {}
    try:
        done = finished.look(fixed["directory"], digest) if alone else None
        if done is not None:
            download(done.checkpoint(), state)
            for metrics in (done.best, done.last):
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(state)))
            return
        if _too_large(run, fixed):
            return
        newest = tune.get_checkpoint()
        if newest is not None:
            newest.to_directory(str(state))
            checkpoints.adopt(state / "last", run)

        def report(metrics: dict[str, float], _: Path | None) -> None:
            if OBJECTIVE in metrics:  # Tune takes no report without what it steers by: no checkpoint between evaluations
                costs.update({name: metrics[name] for name in COSTS if name in metrics})
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(state)))
                if over(metrics, limits):
                    raise _TooDear

        train_here(run, state, resume=True, report=report)
        if alone:  # its history knows what it reported before it was killed
            rows = [row | costs for row in bundles.open_bundle(state / "last").metrics() if OBJECTIVE in row]
            place = f"{fixed['directory']}/{_own_folder()}"
            finished.note(fixed["directory"], digest, finished.Finished(_best(rows, fixed), rows[-1], place))
    except _TooDear:
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _TooDear(Exception):
    """A step takes longer than the limit: the trial ends."""


def _own_folder() -> str:
    """This trial's folder, from the search's directory."""
    context = tune.get_context()
    return f"{context.get_experiment_name()}/{context.get_trial_id()}"


def _best(reports: Sequence[dict[str, Any]], fixed: dict[str, str]) -> dict[str, Any]:
    smaller = json.loads(fixed["worst"])[OBJECTIVE] > 0
    return (min if smaller else max)(reports, key=lambda metrics: metrics[OBJECTIVE])


def _too_large(run: Run, fixed: dict[str, str]) -> bool:
    """Whether the run has more parameters than the limit; then that is its report, and the worst score."""
    limits = json.loads(fixed["limits"])
    if "parameters" not in limits:
        return False
    model = build(run.model_copy(update={"model": run.model.with_parents()}), domains_of(run, Store.open(run.data.store)))
    costs = {"parameters": float(sum(parameter.numel() for parameter in model.parameters()))}
    if not over(costs, limits):
        return False
    tune.report({"step": 0.0, **json.loads(fixed["worst"]), **costs})
    return True


def _driver_trial(config: dict[str, Any], fixed: dict[str, str]) -> None:
    """One trial as a Ray Train run; this function only drives it."""
    workers, cpus, gpus = json.loads(fixed["resources"])
    run = _run_of(config, fixed)
    digest = finished.digest_of(run)
    done = finished.look(fixed["directory"], digest)
    if done is not None:
        for metrics in (done.best, done.last):
            tune.report({**metrics, CHECKPOINT_PATH_KEY: done.checkpoint()})
        return
    if _too_large(run, fixed):
        return
    trial = str(tune.get_context().get_trial_id())
    result = launch.train(
        run,
        storage=f"{fixed['directory']}/train",
        name=trial,  # stable: the same trial, restarted, goes on
        resources=launch.Resources(workers, cpus, gpus),
        callbacks=[_Judged()],
    )
    assert result.checkpoint is not None, "a finished run has reported at least once"
    checkpoint = uri_of(fixed["directory"], result.checkpoint.path)
    place = f"{fixed['directory']}/train/{trial}"
    rows = [row for row in bundles.open_bundle(f"{checkpoint}/last").metrics() if OBJECTIVE in row]
    finished.note(fixed["directory"], digest, finished.Finished(_best(rows, fixed), rows[-1], place))


def uri_of(directory: str, path: str) -> str:
    """Where a checkpoint lies, whose path Ray tells without the storage's scheme."""
    scheme, separator, _ = directory.partition("://")
    return path if "://" in path or not separator else f"{scheme}://{path}"


class _Judged(TuneReportCallback):
    """Passes a Train run's reports on to Tune, those with an objective."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if OBJECTIVE in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _run_of(config: dict[str, Any], fixed: dict[str, str]) -> Run:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for every checkpoint
    if "job" in config:
        config = json.loads(fixed["jobs"])[config["job"]]["changes"]
    return overlay(Run.model_validate_json(fixed["run"]), config)


def download(uri: str, folder: Path) -> None:
    """Copy a checkpoint to this machine."""
    filesystem, root = bundles.filesystem_of(uri)
    folder.mkdir(parents=True, exist_ok=True)
    fs.copy_files(root, str(folder), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
