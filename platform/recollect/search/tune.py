"""Search on Ray Tune: Optuna proposes, ASHA stops, every trial is the one training loop.

A trial that fits one device is a plain Tune function around the engine; with more workers a trial drives a Ray Train run. A
search's directory:

    search.json       what is searched;  study.journal  Optuna's journal (optuna-dashboard opens it)
    tune/             Ray Tune's own state and the trials
    trials.parquet    one row a trial: settings, objective, metrics, status
    winner/           the best trial's bundle;  winner-checkpoint/  the same trial's state, to train it further
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
import ray.train
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pyarrow import fs
from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from recollect import bundle as bundles
from recollect.cluster import require
from recollect.config import Choice, Run, overlay
from recollect.search.space import Spread, choose, inside
from recollect.training import launch
from recollect.training.session import train as train_here

logger = logging.getLogger("recollect")

OBJECTIVE = "objective"

QUIET = {  # what Tune says beside the one line an evaluation that we print
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # every trial writes its own curves; JSON is what the results are read from
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # small trials do report often
}


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    Args:
        run: where every trial starts; its `engine.steps` are the longest trial, `engine.evaluate_every` the first rung of ASHA.
        over: names or globs of searchable fields.
        trials: how many settings are tried; the first is the run's own.
        directory: where everything goes: a path or `pyarrow.fs` URI that all nodes reach. Beside a remote one, Optuna's journal
            is kept on the driver's machine and copied there at the end.
        mode: `min` or `max` of the objective (the validator's).
        workers: per trial; above 1 a trial is a Ray Train run.
        cpus, gpus: per worker.
        concurrent: trials at a time; 0: as many as the cluster holds.
        reduction: ASHA keeps one trial of so many at every rung.
    """

    run: Run
    over: Sequence[str]
    trials: int
    directory: str
    mode: str = "min"
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    concurrent: int = 0
    reduction: int = 2
    seed: int = 0
    fields: dict[str, tuple[Spread, Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", choose(self.run, self.over))


@dataclass(frozen=True)
class Outcome:
    """A finished search: the table of trials, and the winner's bundle and checkpoint."""

    table: pd.DataFrame
    winner: str
    checkpoint: str
    changes: dict[str, Any]


def search(plan: Search, resume: bool = False) -> Outcome:
    """Run a search on the Ray cluster that this process is connected to.

    Args:
        resume: go on with the search in `plan.directory`: finished trials stay, unfinished ones continue from their checkpoints.

    Raises ValueError where a trial does not fit the cluster, the directory holds a search already, or every trial failed.
    """
    require(plan.workers * plan.cpus, plan.workers * plan.gpus, "a trial")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    directory = plan.directory if "://" in plan.directory else os.path.abspath(plan.directory)
    experiment = f"{directory}/tune"
    known = tune.Tuner.can_restore(experiment)
    if known and not resume:
        raise ValueError(f"{directory} holds a search already; go on with it (--resume), or choose another --storage")
    _same_plan(plan, directory, known)
    journal = _journal(directory)
    trial = _trainable(plan, directory)
    if known:
        tuner = tune.Tuner.restore(experiment, trainable=trial, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _tuner(plan, trial, directory, journal)
    grid = tuner.fit()
    _write(directory, journal.name, journal.read_bytes())
    return _conclude(plan, grid, directory)


def _same_plan(plan: Search, directory: str, known: bool) -> None:
    """Write what is searched beside the search; a search that goes on must be the one that was begun."""
    mine = {"trials": plan.trials, "over": sorted(plan.fields), "mode": plan.mode, "run": plan.run.model_dump(mode="json")}
    filesystem, root = bundles.filesystem_of(directory)
    if not known:
        _write(directory, "search.json", json.dumps(mine, indent=2).encode())
        return
    with filesystem.open_input_stream(f"{root}/search.json") as stream:
        begun = json.loads(stream.read())
    changed = [name for name in mine if begun.get(name) != mine[name]]
    if changed:
        now = "; ".join(f"{name} was {begun[name]}" if name != "run" else "the run was another" for name in changed)
        raise ValueError(f"{directory} holds a search with other settings ({now}); go on with those, or choose another --storage")


def _journal(directory: str) -> Path:
    """Where Optuna appends: beside the search, or on this machine where the search's storage is remote."""
    own = hashlib.sha256(directory.encode()).hexdigest()[:12]  # two buckets may hold searches of one name
    folder = Path.home() / ".cache" / "recollect" / own if "://" in directory else Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "study.journal"


def _write(directory: str, name: str, content: bytes) -> None:
    """Put a file into the search's directory, whole or not at all."""
    filesystem, root = bundles.filesystem_of(directory)
    filesystem.create_dir(root, recursive=True)
    with filesystem.open_output_stream(f"{root}/.{name}") as stream:
        stream.write(content)
    filesystem.move(f"{root}/.{name}", f"{root}/{name}")


def _tuner(plan: Search, trial: Any, directory: str, journal: Path) -> tune.Tuner:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    engine = plan.run.engine
    own = {name: inside(spread, value) for name, (spread, value) in plan.fields.items()}
    algorithm = OptunaSearch(
        metric=OBJECTIVE,
        mode=plan.mode,
        points_to_evaluate=[own],
        sampler=optuna.samplers.TPESampler(seed=plan.seed, multivariate=True, n_startup_trials=max(4, plan.trials // 4)),
        study_name=Path(directory).name,
        storage=JournalStorage(JournalFileBackend(str(journal))),
    )
    scheduler = ASHAScheduler(
        metric=OBJECTIVE,
        mode=plan.mode,
        time_attr="step",  # ours: it goes on after a restart, where Tune's own counter starts again
        max_t=engine.steps + 1,  # + 1: a trial that reaches its last step ends by itself, and is not killed while it reports
        grace_period=engine.evaluate_every or engine.steps,
        reduction_factor=plan.reduction,
    )
    return tune.Tuner(
        trial,
        param_space={name: _domain(spread, value) for name, (spread, value) in plan.fields.items()},
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            scheduler=scheduler,
            num_samples=plan.trials,
            max_concurrent_trials=plan.concurrent or _concurrent(plan),
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # not every parameter's name and value
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=directory,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_Progress(plan.trials), JsonLoggerCallback()],
        ),
    )


def _concurrent(plan: Search) -> int:
    have = ray.cluster_resources()
    fits = have.get("CPU", 1) // (plan.workers * plan.cpus)
    if plan.gpus:
        fits = min(fits, have.get("GPU", 0) // (plan.workers * plan.gpus))
    return max(1, int(fits))


def _domain(spread: Spread, value: Any) -> Any:
    if isinstance(spread, Choice):
        return tune.choice(list(spread.options))
    if isinstance(value, int):
        low, high = int(spread.low), int(spread.high) + 1
        return tune.lograndint(low, high) if spread.log else tune.randint(low, high)
    return tune.loguniform(spread.low, spread.high) if spread.log else tune.uniform(spread.low, spread.high)


def _trainable(plan: Search, directory: str) -> Any:
    fixed = {"run": plan.run.model_dump_json(), "directory": directory}
    if plan.workers == 1:
        each = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
        return tune.with_resources(tune.with_parameters(_plain_trial, fixed=fixed), each)
    fixed["resources"] = json.dumps([plan.workers, plan.cpus, plan.gpus])
    # A driver only waits. Tune refuses an empty request, and a sliver of a CPU would keep the last worker from fitting.
    return tune.with_resources(tune.with_parameters(_driver_trial, fixed=fixed), {"memory": 1_000_000})


def _plain_trial(config: dict[str, Any], fixed: dict[str, str]) -> None:
    """One trial in this process."""
    run = _run_of(config, fixed)
    work = Path(tempfile.mkdtemp(prefix="recollect-trial-"))
    state = work / "state"
    try:
        newest = tune.get_checkpoint()
        if newest is not None:
            newest.to_directory(str(state))

        def report(metrics: dict[str, float], _: Path | None) -> None:
            if OBJECTIVE in metrics:  # Tune takes no report without what it steers by: no checkpoint between evaluations
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(state)))

        train_here(run, state, resume=True, report=report)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _driver_trial(config: dict[str, Any], fixed: dict[str, str]) -> None:
    """One trial as a Ray Train run; this function only drives it."""
    workers, cpus, gpus = json.loads(fixed["resources"])
    launch.train(
        _run_of(config, fixed),
        storage=f"{fixed['directory']}/train",
        name=str(tune.get_context().get_trial_id()),  # stable: the same trial, restarted, goes on
        resources=launch.Resources(workers, cpus, gpus),
        callbacks=[_Judged()],
    )


class _Judged(TuneReportCallback):
    """Passes a Train run's reports on to Tune, those with an objective."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if OBJECTIVE in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _run_of(config: dict[str, Any], fixed: dict[str, str]) -> Run:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for every checkpoint
    return overlay(Run.model_validate_json(fixed["run"]), config)


class _Progress(tune.Callback):
    """One line for every evaluation of every trial."""

    def __init__(self, trials: int) -> None:
        self.trials, self.numbers = trials, {}

    numbers: dict[str, int]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = self.numbers.setdefault(trial.trial_id, len(self.numbers) + 1)
        settings = "  ".join(f"{name.split('.', 1)[-1]}={_short(value)}" for name, value in trial.config.items())
        logger.info("trial %d/%d starts: %s", number, self.trials, settings)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if OBJECTIVE in result:
            number = self.numbers.get(trial.trial_id, 0)
            logger.info("trial %d/%d step %d: %s %.4f", number, self.trials, result["step"], OBJECTIVE, result[OBJECTIVE])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        logger.warning("trial %d/%d failed: see %s", self.numbers.get(trial.trial_id, 0), self.trials, trial.error_file)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _conclude(plan: Search, grid: tune.ResultGrid, directory: str) -> Outcome:
    rows = [_row(plan, result) for result in grid]
    table = pd.DataFrame(rows).sort_values(OBJECTIVE, ascending=plan.mode == "min", ignore_index=True)
    if table[OBJECTIVE].isna().all():
        errors = "; ".join(str(error).strip().splitlines()[-1] for error in grid.errors[:3])
        raise ValueError(f"every trial failed: {errors or 'no trial reported'} (details below {directory}/tune)")
    _write(directory, "trials.parquet", table.to_parquet(index=False))
    first = table.iloc[0]
    work = Path(tempfile.mkdtemp(prefix="recollect-winner-"))
    try:
        filesystem, root = bundles.filesystem_of(first["checkpoint"])
        fs.copy_files(root, str(work), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        bundles.copy(work / "best", f"{directory}/winner")
        bundles.copy(work / "last", f"{directory}/winner-checkpoint")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    changes = {name: _plain(first[f"config/{name}"]) for name in plan.fields}
    logger.info("winner: trial %s with %s %.4f -> %s/winner", first["trial"], OBJECTIVE, first[OBJECTIVE], directory)
    return Outcome(table, f"{directory}/winner", f"{directory}/winner-checkpoint", changes)


def _row(plan: Search, result: Any) -> dict[str, Any]:
    history = result.metrics_dataframe
    best = float("nan")
    if history is not None and OBJECTIVE in history:
        best = float(history[OBJECTIVE].min() if plan.mode == "min" else history[OBJECTIVE].max())
    metrics = result.metrics or {}
    checkpoint = metrics.get(CHECKPOINT_PATH_KEY) or (result.checkpoint.path if result.checkpoint else None)
    step = int(metrics.get("step", 0))
    status = "failed" if result.error else "finished" if step >= plan.run.engine.steps else "stopped by ASHA"
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float) and k not in ("step", OBJECTIVE, "time_this_iter_s")}
    return {
        "trial": metrics.get("trial_id", ""),
        OBJECTIVE: best,
        "status": status,
        "step": step,
        **{f"config/{name}": (metrics.get("config") or result.config or {}).get(name) for name in plan.fields},
        **{name: value for name, value in numbers.items() if not name.startswith("time_")},
        "seconds": float(metrics.get("time_total_s", 0.0)),
        "host": str(metrics.get("hostname", "")),
        "checkpoint": checkpoint,
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
