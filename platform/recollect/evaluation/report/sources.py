"""What a report is about: runs, searches and results, found in the places that a user names.

A place is a bundle, a run's directory, a search's storage, a table's storage, a Parquet table of results, or a folder with any of
these inside; a path or a `pyarrow.fs` URI.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from recollect.bundle import Bundle, localise, open_bundle
from recollect.config import Run
from recollect.evaluation.statistics import Measured, estimate
from recollect.search.space import Spread, choose

DEPTH = 4  # folders below a place that are looked into
JUDGED = {"name", "kind", "metric", "value", "bundle", "data", "source", "target", "split", "pictures"}  # what `evaluate` writes
TABLED = {"arm", "kind", "metric", "value", "seed", "setting", "method", "data", "pictures"}  # what a table's recipe writes
INNER = ("tune", "train", "ray")  # what searches and Ray Train keep for themselves
ROWS = ["name", "kind", "method", "about", "setting", "metric", "value", "low", "high", "pictures", "bundle", "data", "features"]


@dataclass(frozen=True)
class Source:
    """One trained run: its bundle, and where it came from a run's directory, that run's history and samples."""

    name: str
    place: str
    bundle: Bundle
    history: list[dict[str, Any]]
    folder: Path | None = None

    @property
    def run(self) -> Run:
        """Everything that determined it."""
        return self.bundle.run

    @property
    def last_step(self) -> int:
        """How far it was trained."""
        return int(max((row["step"] for row in self.history), default=0))

    def samples(self) -> dict[int, Path]:
        """The sample grids that its training saved, by step."""
        files = (self.folder / "samples").glob("step-*.png") if self.folder else ()
        return dict(sorted((int(file.stem.removeprefix("step-")), file) for file in files))


@dataclass(frozen=True)
class Trials:
    """A search: one trial a row (`objective`, `status`, `step`, `seconds`, `config/<field>`, metrics), and what was searched."""

    name: str
    table: pd.DataFrame
    mode: str
    fields: dict[str, Spread] = field(default_factory=dict)
    run: Run | None = None
    goals: tuple[tuple[str, bool], ...] = ()  # of a search for several: metrics, and whether more is better
    proposed: tuple[float, ...] = ()  # the objective of finished trials in the order in which Optuna proposed them


@dataclass(frozen=True)
class Found:
    """All that was found; names of runs are unique."""

    runs: tuple[Source, ...] = ()
    trials: tuple[Trials, ...] = ()
    results: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ROWS))


def find(places: Iterable[str | os.PathLike[str]], results: Iterable[str | os.PathLike[str]] = ()) -> Found:
    """Everything that lies in these places, and the results of it: those given, and those in tables beside the runs.

    Raises ValueError for a place with nothing to report on.
    """
    runs: list[Source] = []
    trials: list[Trials] = []
    winners: list[Source] = []
    given = [_results(Path(localise(place))) for place in results]
    beside: list[Path] = []
    for place in places:
        count = len(runs) + len(trials) + len(given)
        path = localise(place)
        if path.is_file():
            given.append(_results(path))
        for folder in [path, *_below(path, DEPTH)] if path.is_dir() else ():
            if (folder / "search.json").exists() or (folder / "trials.parquet").exists():
                trials.append(_trials(folder))
                winners += [source for source in [_source(folder / "winner")] if source]
                beside.append(folder.parent)
            elif source := _source(folder):
                runs.append(source)
                beside += [folder, folder.parent, *([source.folder.parent] if source.folder else [])]
            elif folder == path or any(folder.glob("*.parquet")):
                given += [_results(file) for file in sorted(folder.glob("*.parquet")) if _is_results(file)]
        if len(runs) + len(trials) + len(given) == count:
            raise ValueError(
                f"{place} holds nothing to report on; give bundles, runs' directories (with best/ or last/), a search's storage, "
                "a table's storage, or a Parquet table of results"
            )
    sources = _unique(runs or winners)
    files = [file for folder in dict.fromkeys(beside) for file in sorted(folder.glob("*.parquet")) if _is_results(file)]
    return Found(tuple(sources), tuple(trials), _chosen(given, [_results(file) for file in files], sources))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders below a folder, none inside a run, a bundle or a search, which are told by their files."""
    if depth == 0 or any((folder / name).exists() for name in ("search.json", "trials.parquet")) or _bundle_of(folder):
        return
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.name.startswith(".") and inner.name not in INNER:
            yield inner
            yield from _below(inner, depth - 1)


def _bundle_of(folder: Path) -> Path | None:
    """The bundle that a folder is, or the best one of the run that it is."""
    for path in (folder, folder / "best", folder / "last"):
        if (path / "manifest.json").exists() and (path / "config.json").exists():
            return path
    return None


def _source(folder: Path) -> Source | None:
    path = _bundle_of(folder)
    if path is None:
        return None
    opened = open_bundle(path)
    around = path.parent if path != folder or path.name in ("best", "last") else None
    history, log = opened.metrics(), around / "metrics.jsonl" if around else None
    if log is not None and log.exists():  # goes on after the best step
        history = _longer(history, log)
    name = opened.run.name or folder.name
    return Source(name, str(folder), opened, history, around if log is not None and log.exists() else None)


def _longer(history: list[dict[str, Any]], log: Path) -> list[dict[str, Any]]:
    rows = []
    for line in log.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that is being written
            break
    return rows if len(rows) >= len(history) else history


def _trials(folder: Path) -> Trials:
    if not (folder / "trials.parquet").exists():
        raise ValueError(f"the search in {folder} has not ended: it has no trials.parquet yet; go on with it (--resume)")
    table, plan = pd.read_parquet(folder / "trials.parquet"), folder / "search.json"
    if not plan.exists():
        return Trials(folder.name, table, "min")
    begun = json.loads(plan.read_text())
    run = Run.model_validate(begun["run"])
    fields = {name: spread for name, (spread, _) in choose(run, begun["over"]).items()}
    goals = [words.split(" ", 1) for words in begun.get("goals", [])]  # "maximises content_kept"
    aims = tuple((name, verb == "maximises") for verb, name in goals)
    return Trials(folder.name, table, begun["mode"], fields, run, aims, _proposed(folder / "study.journal"))


def _proposed(journal: Path) -> tuple[float, ...]:
    """The first value of each finished trial of a study, by number; empty without the journal, and without Optuna."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        return ()
    if not journal.exists():
        return ()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:  # reading makes files beside it
        storage = JournalStorage(JournalFileBackend(shutil.copy(journal, folder)))
        studies = storage.get_all_studies()
        trials = storage.get_all_trials(studies[0]._study_id) if studies else []
    finished = sorted((trial for trial in trials if trial.values), key=lambda trial: trial.number)
    return tuple(float(trial.values[0]) for trial in finished if math.isfinite(trial.values[0]))


def _unique(sources: Sequence[Source]) -> list[Source]:
    """One of each bundle, the run's directory before a copy; names told apart by seed, then by folder, then by digest."""
    ordered = sorted(sources, key=lambda source: source.folder is None)
    first = {source.bundle.digest: source for source in reversed(ordered)}
    kept = [source for source in sources if first[source.bundle.digest] is source]

    def apart(suffix: Callable[[Source], str]) -> None:
        counts = Counter(source.name for source in kept)
        kept[:] = [replace(s, name=f"{s.name}{suffix(s)}") if counts[s.name] > 1 else s for s in kept]

    if len({(source.name, source.run.seed) for source in kept}) == len(kept):
        apart(lambda source: f" seed {source.run.seed}")
    apart(lambda source: f" ({Path(source.place).name})")
    apart(lambda source: f" {source.bundle.digest[:6]}")
    return kept


def _is_results(file: Path) -> bool:
    try:
        names = set(pq.read_schema(file).names)
    except Exception:  # not Parquet
        return False
    return "picture" not in names and (names >= JUDGED or names >= TABLED)


def _results(file: Path) -> pd.DataFrame:
    """The rows of `recollect evaluate`, or those of a table of experiments, as ROWS. Raises ValueError for other files."""
    if not file.exists():
        raise ValueError(f"there is no {file}; `recollect evaluate --out` writes a table of results")
    if not _is_results(file):
        raise ValueError(f"{file} is no table of results; `recollect evaluate --out` writes one")
    frame = pd.read_parquet(file)
    if "arm" in frame.columns:
        return _over_seeds(frame)
    words = []
    cut = frame["cut"] if "cut" in frame.columns else pd.Series("", index=frame.index)
    for source, target, split, pictures, own in frame.assign(cut=cut)[
        ["source", "target", "split", "pictures", "cut"]
    ].to_numpy():
        where = source if source == target else f"{source} to {target}"
        words.append(f"{where}, {pictures} {split} pictures" + (f", {own}" if own else ""))
    return frame.assign(setting=words).reindex(columns=ROWS)


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean over its seeds for each arm, with its interval over them where there are two or more."""
    rows = []
    for (arm, kind, setting, metric), own in frame.groupby(["arm", "kind", "setting", "metric"], sort=False):
        found = estimate(Measured.of_seeds(own["value"].astype(float).tolist()))
        low, high = (found.low, found.high) if len(own) > 1 else (float("nan"), float("nan"))
        about = f"{plural_seeds(len(own))}" if kind == "method" else ""
        rows.append({"name": arm, "kind": kind, "method": own["method"].iloc[0], "about": about, "setting": setting,
                     "metric": metric, "value": found.value, "low": low, "high": high, "pictures": own["pictures"].max(),
                     "bundle": "", "data": own["data"].iloc[0], "features": ""})  # fmt: skip
    return pd.DataFrame(rows, columns=ROWS)


def plural_seeds(count: int) -> str:
    """
    >>> plural_seeds(1), plural_seeds(3)
    ('1 seed', 'mean of 3 seeds')
    """
    return "1 seed" if count == 1 else f"mean of {count} seeds"


def _chosen(given: Sequence[pd.DataFrame], beside: Sequence[pd.DataFrame], sources: Sequence[Source]) -> pd.DataFrame:
    """All rows that were given; of other tables those of these runs, with their baselines. Runs have their names here."""
    names = {source.bundle.digest: source.name for source in sources}
    chosen = [frame for frame in given if len(frame)]
    for frame in beside:
        own = frame["bundle"].isin(names)
        settings = set(map(tuple, frame.loc[own, ["setting", "data"]].to_numpy()))
        at = pd.Series([pair in settings for pair in map(tuple, frame[["setting", "data"]].to_numpy())], index=frame.index)
        chosen += [frame[own | (at & (frame["kind"] != "method"))]] if own.any() else []
    if not chosen:
        return pd.DataFrame(columns=ROWS)
    frame = pd.concat(chosen, ignore_index=True)
    frame["name"] = frame["bundle"].map(names).where(frame["bundle"].isin(names), frame["name"])
    keys = ["name", "kind", "bundle", "setting", "data", "metric", "features"]
    return frame.drop_duplicates(keys, keep="last", ignore_index=True)
