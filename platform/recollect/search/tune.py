"""Search on Ray Tune: Optuna proposes, ASHA stops, every trial is the one training loop.

A trial that fits one device is a plain Tune function around the engine; with more workers a trial drives a Ray Train run. A
search's directory:

    search.json       what is searched;  study.journal  Optuna's journal (optuna-dashboard opens it)
    tune/             Ray Tune's own state and the trials;  finished/  what need not be trained again
    trials.parquet    one row a trial: settings, objective, metrics, status;  summary.md  the same for a person, with importances
    final/            the finalists, retrained with several seeds;  final.parquet  one row each
    winner/           the bundle that won;  winner-checkpoint/  its state, to train it further
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from recollect import bundle as bundles
from recollect.cluster import require
from recollect.config import Choice, Run
from recollect.search.goals import OBJECTIVE, Goal, over
from recollect.search.proposals import algorithm, study
from recollect.search.space import Spread, choose, inside, shape_changing
from recollect.search.summary import importances, ranked, summary
from recollect.search.trials import download, trainable, uri_of

logger = logging.getLogger("recollect")

Scheduler = Literal["asha", "pbt", "none"]

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
        goals: two or more numbers of the reports to trade off against each other (NSGA-II); empty: the objective alone. The
            first is what the winner and each trial's best checkpoint are chosen by, so it is the run's `evaluation.metric`.
        limits: what a setting may cost at most, by name. One with too many parameters is not trained, one whose steps take too
            long ends at its first evaluation; neither can win, and Optuna learns where they are.
        start: settings that are tried first, after the run's own.
        scheduler: `asha` ends the worse trials early; `pbt` lets them take over a better one's state and change settings on the
            way (for plain trials, and fields that change no shapes; Optuna proposes nothing then); `none`.
        workers: per trial; above 1 a trial is a Ray Train run.
        cpus, gpus: per worker. Plain trials may share a GPU (0.5); several workers of one trial may not.
        concurrent: trials at a time; 0: as many as the cluster holds.
        reduction: ASHA keeps one trial of so many at every rung.
        retries: how often a trial may lose its process or its host, and go on from its checkpoint, before it counts as failed;
            -1: without end.

    Raises ValueError for what cannot go together.
    """

    run: Run
    over: Sequence[str]
    trials: int
    directory: str
    mode: Literal["min", "max"] = "min"
    goals: tuple[Goal, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    start: Sequence[Mapping[str, Any]] = ()
    scheduler: Scheduler = "asha"
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    concurrent: int = 0
    reduction: int = 2
    retries: int = 3
    seed: int = 0
    fields: dict[str, tuple[Spread, Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", choose(self.run, self.over))
        if len(self.goals) == 1:
            raise ValueError(f"{self.goals[0].name} alone is the objective: set evaluation.metric, and leave goals empty")
        if self.workers > 1 and 0 < self.gpus < 1:
            raise ValueError(
                "workers of one trial cannot share a GPU: NCCL takes one each. Take whole GPUs, or one worker a trial"
            )
        if self.scheduler == "pbt":
            if self.workers > 1 or self.goals:
                raise ValueError("pbt is for trials of one worker and one objective; take the scheduler asha")
            if shaping := shape_changing(self.fields):
                raise ValueError(f"pbt changes a running trial, and these change its shapes: {', '.join(shaping)}")

    @property
    def aims(self) -> tuple[Goal, ...]:
        """What is steered by, the objective where there are no goals."""
        return self.goals or (Goal(OBJECTIVE, self.mode),)


@dataclass(frozen=True)
class Outcome:
    """A finished search: the table of trials, the winner's bundle and checkpoint, and its settings."""

    table: pd.DataFrame
    winner: str
    checkpoint: str
    changes: dict[str, Any]
    importances: dict[str, float]
    summary: str  # Markdown: the trials, the best settings, what mattered, the final
    final: pd.DataFrame | None = None


def search(plan: Search, resume: bool = False) -> Outcome:
    """Run a search on the Ray cluster that this process is connected to.

    Args:
        resume: go on with the search in `plan.directory`: finished trials stay, unfinished ones continue from their checkpoints.

    Raises ValueError where a trial does not fit the cluster, the directory holds a search already, or every trial failed.
    """
    decoding = 1 if plan.run.engine.feed == "ray" else 0
    require(plan.workers * plan.cpus + decoding, plan.workers * plan.gpus, "a trial")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    directory = plan.directory if "://" in plan.directory else os.path.abspath(plan.directory)
    experiment = f"{directory}/tune"
    known = tune.Tuner.can_restore(experiment)
    if known and not resume:
        raise ValueError(f"{directory} holds a search already; go on with it (--resume), or choose another --storage")
    _same_plan(plan, directory, known)
    journal = _journal(directory)
    trial = trainable(plan, directory)
    tuner = _restored(experiment, trial, directory) if known else _tuner(plan, trial, directory, journal)
    grid = tuner.fit()
    if journal.exists():  # PBT keeps none
        _write(directory, journal.name, journal.read_bytes())
    return _conclude(plan, grid, directory, journal)


def _restored(experiment: str, trial: Any, directory: str) -> tune.Tuner:
    """Tune as it was. Raises ValueError where it cannot be read: it is pickled, so another version may not know what is in it."""
    try:
        return tune.Tuner.restore(experiment, trainable=trial, resume_unfinished=True, resume_errored=True)
    except OSError:  # the storage's fault
        raise
    except Exception as error:
        raise ValueError(
            f"what Ray Tune knows of {experiment} cannot be read ({error}); delete its tuner.pkl and experiment_state-* (not the "
            f"trials) and search again: settings whose result is in {directory}/finished are not trained twice"
        ) from error


def _same_plan(plan: Search, directory: str, known: bool) -> None:
    """Write what is searched beside the search; a search that goes on must be the one that was begun."""
    mine = {"trials": plan.trials, "over": sorted(plan.fields), "mode": plan.mode, "run": plan.run.model_dump(mode="json")}
    mine |= {"goals": [str(goal) for goal in plan.goals], "limits": dict(plan.limits), "scheduler": plan.scheduler}
    before = {"goals": [], "limits": {}, "scheduler": "asha"}  # of searches that were begun when there were none
    filesystem, root = bundles.filesystem_of(directory)
    if not known:
        _write(directory, "search.json", json.dumps(mine, indent=2).encode())
        return
    with filesystem.open_input_stream(f"{root}/search.json") as stream:
        begun = json.loads(stream.read())
    begun = {**before, **begun}
    changed = [name for name in mine if begun[name] != mine[name]]
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
    bundles.write_bytes(f"{directory}/{name}", content)


def _tuner(plan: Search, trial: Any, directory: str, journal: Path) -> tune.Tuner:
    return tune.Tuner(
        trial,
        param_space={name: _domain(spread, value) for name, (spread, value) in plan.fields.items()},
        tune_config=tune.TuneConfig(
            search_alg=algorithm(plan, directory, journal),
            scheduler=_scheduler(plan),
            num_samples=plan.trials,
            max_concurrent_trials=plan.concurrent or _concurrent(plan),
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # not every parameter's name and value
        ),
        run_config=_run_config("tune", directory, plan.trials, plan.retries),
    )


def _run_config(name: str, directory: str, trials: int, retries: int) -> tune.RunConfig:
    return tune.RunConfig(
        name=name,
        storage_path=directory,
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=retries),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        callbacks=[_Progress(trials), JsonLoggerCallback()],
    )


def _scheduler(plan: Search) -> TrialScheduler | None:
    engine, steering = plan.run.engine, {"metric": OBJECTIVE, "mode": plan.mode}
    rung = engine.evaluate_every or engine.steps
    if plan.goals or plan.scheduler == "none":  # to stop early, one would have to know which goal counts
        return None
    if plan.scheduler == "pbt":
        return PopulationBasedTraining(
            **steering,
            time_attr="step",
            perturbation_interval=rung,
            hyperparam_mutations={name: _domain(spread, value) for name, (spread, value) in plan.fields.items()},
            custom_explore_fn=_Inside(plan.fields),
            require_attrs=False,
        )
    return ASHAScheduler(
        **steering,
        time_attr="step",  # ours: it goes on after a restart, where Tune's own counter starts again
        max_t=engine.steps + 1,  # + 1: a trial that reaches its last step ends by itself, and is not killed while it reports
        grace_period=rung,
        reduction_factor=plan.reduction,
    )


class _Inside:
    """Brings what PBT made of a setting (it multiplies by 0.8 or 1.2) back inside its range."""

    def __init__(self, fields: dict[str, tuple[Spread, Any]]) -> None:
        self.fields = fields

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {name: inside(self.fields[name][0], value) for name, value in config.items()}


def _concurrent(plan: Search) -> int:
    have = ray.cluster_resources()
    decoding = 1 if plan.run.engine.feed == "ray" else 0  # what is full of trials decodes nothing
    fits = (have.get("CPU", 1) - decoding) // (plan.workers * plan.cpus)
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


class _Progress(tune.Callback):
    """One line for every evaluation of every trial."""

    def __init__(self, trials: int) -> None:
        self.trials, self.numbers = trials, {}

    numbers: dict[str, int]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = self.numbers.setdefault(trial.trial_id, len(self.numbers) + 1)
        if "job" in trial.config:
            logger.info("final %d/%d starts", trial.config["job"] + 1, self.trials)
            return
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


def _conclude(plan: Search, grid: tune.ResultGrid, directory: str, journal: Path) -> Outcome:
    table = ranked([_row(plan, result) for result in grid], plan.aims, plan.limits)
    if table[OBJECTIVE].isna().all():
        errors = "; ".join(str(error).strip().splitlines()[-1] for error in grid.errors[:3])
        raise ValueError(f"every trial failed: {errors or 'no trial reported'} (details below {directory}/tune)")
    _write(directory, "trials.parquet", table.to_parquet(index=False))
    if not table["kept"].iloc[0]:
        limits = ", ".join(f"{name}={limit:g}" for name, limit in plan.limits.items())
        raise ValueError(
            f"no trial keeps the limits {limits} (see {directory}/trials.parquet); raise them, or search smaller fields"
        )
    weights = importances(study(directory, journal), plan.aims[0]) if journal.exists() else {}
    text = summary(table, plan.aims, _began(plan), weights, metric=plan.run.evaluation.metric)
    _write(directory, "summary.md", text.encode())
    first = table.iloc[0]
    _crown(first["checkpoint"], directory)
    changes = {name: _plain(first[f"config/{name}"]) for name in plan.fields}
    logger.info("best trial: %s with %s %.4f -> %s/winner", first["trial"], OBJECTIVE, first[OBJECTIVE], directory)
    return Outcome(table, f"{directory}/winner", f"{directory}/winner-checkpoint", changes, weights, text)


def _began(plan: Search) -> dict[str, Any]:
    return {name: value for name, (_, value) in plan.fields.items()}


def _crown(checkpoint: str, directory: str) -> None:
    """Copy a trial's best bundle and its newest checkpoint to the winner's places."""
    work = Path(tempfile.mkdtemp(prefix="recollect-winner-"))
    try:
        download(checkpoint, work)
        bundles.copy(work / "best", f"{directory}/winner")
        bundles.copy(work / "last", f"{directory}/winner-checkpoint")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def confirm(plan: Search, outcome: Outcome, seeds: int = 3, steps: int = 0) -> Outcome:
    """Train the best settings anew with several seeds, beside the settings that the search began from, and name the winner.

    The best of many trials is partly the luckiest. The settings whose mean over the seeds is better win, and of their runs the
    best on the validation split is the winner's bundle. What is finished is not trained again.

    Args:
        seeds: how many, none of them the search's own.
        steps: of each; 0: twice the search's longest trial.

    Returns the outcome with the final's table: one row a finalist and seed.
    """
    directory = plan.directory if "://" in plan.directory else os.path.abspath(plan.directory)
    steps = steps or 2 * plan.run.engine.steps
    own = _began(plan)
    finalists = {"best trial": outcome.changes} | ({} if outcome.changes == own else {"as it began": own})
    chosen = [plan.run.seed + 1 + number for number in range(seeds)]
    jobs = [
        {"settings": name, "seed": seed, "changes": {**changes, "seed": seed, "engine.steps": steps}}
        for seed in chosen
        for name, changes in finalists.items()
    ]
    final = replace(plan, over=tuple(plan.fields), goals=(), limits={}, scheduler="none")
    trial = trainable(final, directory, jobs)
    experiment = f"{directory}/final"
    if tune.Tuner.can_restore(experiment):
        tuner = _restored(experiment, trial, directory)
    else:
        tuner = tune.Tuner(
            trial,
            param_space={"job": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=plan.concurrent or _concurrent(plan),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=_run_config("final", directory, len(jobs), plan.retries),
        )
    grid = tuner.fit()
    rows = [_row(replace(final, over=()), result) | jobs[int((result.config or {})["job"])] for result in grid]
    table = pd.DataFrame(rows).drop(columns=["changes", "status"]).sort_values(["settings", "seed"], ignore_index=True)
    if table[OBJECTIVE].isna().any():
        raise ValueError(f"a run of the final failed: {'; '.join(map(str, grid.errors[:1]))} (details below {experiment})")
    sign = plan.aims[0].sign
    means = (sign * table.groupby("settings")[OBJECTIVE].mean()).sort_values()
    winner = str(means.index[0])
    best = table[table["settings"] == winner].sort_values(OBJECTIVE, ascending=plan.mode == "min").iloc[0]
    _write(directory, "final.parquet", table.to_parquet(index=False))
    _crown(best["checkpoint"], directory)
    text = summary(outcome.table, plan.aims, own, outcome.importances, table, f"{winner} wins", plan.run.evaluation.metric)
    _write(directory, "summary.md", text.encode())
    logger.info("winner: %s, %s %.4f over %d seeds -> %s/winner", winner, OBJECTIVE, sign * means.iloc[0], seeds, directory)
    return replace(outcome, changes=dict(finalists[winner]), summary=text, final=table)


def _row(plan: Search, result: Any) -> dict[str, Any]:
    """One trial as the table shows it: the numbers of its best checkpoint, and where and how it ended."""
    metrics = dict(result.metrics or {})
    best, history = metrics, result.metrics_dataframe
    if history is not None and OBJECTIVE in history and history[OBJECTIVE].notna().any():
        values = history[OBJECTIVE]
        best = {str(k): v for k, v in history.loc[values.idxmin() if plan.mode == "min" else values.idxmax()].items()}
    checkpoint = metrics.get(CHECKPOINT_PATH_KEY) or (result.checkpoint.path if result.checkpoint else None)
    step = int(metrics.get("step", 0))
    dear = over(metrics, plan.limits)
    status = "finished" if step >= plan.run.engine.steps else "stopped by ASHA"
    status = "failed" if result.error else f"over the limit of {' and '.join(dear)}" if dear else status
    numbers = {k: float(v) for k, v in best.items() if isinstance(v, float) and k not in ("step", OBJECTIVE, "time_this_iter_s")}
    settings = metrics.get("config") or result.config or {}
    return {
        "trial": metrics.get("trial_id", ""),
        OBJECTIVE: float(best.get(OBJECTIVE, "nan")),
        "status": status,
        "step": step,
        **{f"config/{name}": settings.get(name) for name in plan.fields},
        **{name: value for name, value in numbers.items() if not name.startswith(("time_", "config/"))},
        "seconds": float(metrics.get("time_total_s", 0.0)),
        "host": str(metrics.get("hostname", "")),
        "checkpoint": checkpoint and uri_of(plan.directory, checkpoint),
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
