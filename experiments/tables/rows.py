"""Judging the runs of a table, each once: tidy rows of numbers, and the values by picture that intervals are made of.

A bundle that the same version of the suite judged on the same pictures, by the same instrument, before is not judged again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from experiments.tables.jobs import Job, Outcome, write_bytes
from experiments.tables.suites import Setting, Suite
from recollect.bundle import filesystem_of
from recollect.evaluation.validate import Judgement

# `seed` is -1 for baselines. `steps` were trained, and the weights are of `step`, the best on the validation split. `judged` is
# the suite's version, and `instrument` what judged beside its code (a classifier, by its digest).
KEY = ["arm", "seed", "setting", "cut", "bundle", "data"]
ABOUT = ["arm", "kind", "seed", "setting", "cut", "bundle", "data"]
FACTS = ["method", "steps", "step", "seconds", "parameters", "run", "machine", "judged", "instrument"]
ROWS = [*ABOUT, "metric", "value", "pictures", *FACTS]
PICTURES = [*ABOUT, "picture", "metric", "value", "weight"]  # weight: what the value counts in the metric's mean
CLOSE = 1e-6  # how far a metric may be from what its values by picture give


@dataclass(frozen=True)
class Results:
    """What was measured: a row a number (ROWS), and a row a picture and metric (PICTURES)."""

    rows: pd.DataFrame
    pictures: pd.DataFrame


class Judging:
    """The measurements of a table at its place, and what adds to them.

    Args:
        place: `<place>.parquet` and `<place>-pictures.parquet` hold what was measured.
        suite: what is judged, and by what.
    """

    def __init__(self, place: str, suite: Suite[Any], say: Callable[[str], None]) -> None:
        self.place, self.suite, self.say = place, suite, say
        self._all = Results(_load(f"{place}.parquet", ROWS), _load(f"{place}-pictures.parquet", PICTURES))
        self._cases: dict[tuple[str, Setting], Any] = {}

    def judge(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Judge every finished run that was not judged, and the baselines; an error becomes that of the outcome."""
        found = []
        for outcome in outcomes:
            if outcome.facts is not None and outcome.job.shown:
                try:
                    for setting in self.suite.settings(outcome.job.run):
                        self._judge(outcome, setting)
                except Exception as error:
                    outcome = replace(outcome, error=f"judging failed: {type(error).__name__}: {error}".splitlines()[0])
                    self.say(f"{outcome.job}: {outcome.error}")
            found.append(outcome)
        return found

    def cases(self, job: Job, setting: Setting) -> Any:
        """The pictures to judge on; the same for all runs of one table in a setting."""
        key = (job.run.data.store, setting)
        if key not in self._cases:
            self._cases[key] = self.suite.cases(job.run, setting)
        return self._cases[key]

    def settings(self, outcomes: Sequence[Outcome]) -> list[Setting]:
        """The settings that the shown arms are judged in."""
        shown = [outcome.job.run for outcome in outcomes if outcome.job.shown]
        return list(dict.fromkeys(setting for run in shown for setting in self.suite.settings(run)))

    def results(self, outcomes: Sequence[Outcome]) -> Results:
        """What was measured of these outcomes, and of the baselines on their pictures, by any version of the suite."""
        own: set[tuple[Any, ...]] = set()
        for outcome in outcomes:
            for setting in self.suite.settings(outcome.job.run) if outcome.job.shown else ():
                where = (setting.name, setting.cut)
                own.add(("", *where, outcome.job.data))
                if outcome.facts is not None:
                    own.add((outcome.job.arm, outcome.job.seed, *where, outcome.facts["digest"], outcome.job.data))

        def mine(frame: pd.DataFrame) -> pd.DataFrame:
            keys = frame[KEY].itertuples(index=False, name=None)
            chosen = [key in own or (key[4] == "" and ("", *key[2:4], key[5]) in own) for key in keys]
            return frame.loc[np.array(chosen, dtype=bool)].reset_index(drop=True)

        return Results(mine(self._all.rows), mine(self._all.pictures))

    def outdated(self, results: Results) -> list[str]:
        """The arms and baselines of which something was judged by another version of the suite, or another instrument."""
        rows = results.rows
        wanted = {setting: self.suite.instrument(setting) for setting in rows["setting"].unique()}
        other = [
            judged != self.suite.version or wanted[setting] not in (None, instrument)
            for setting, judged, instrument in zip(rows["setting"], rows["judged"], rows["instrument"], strict=True)
        ]
        return [str(arm) for arm in rows.loc[np.array(other, dtype=bool), "arm"].unique()]

    def _judge(self, outcome: Outcome, setting: Setting) -> None:
        assert outcome.facts is not None
        job, facts = outcome.job, outcome.facts
        where = {"setting": setting.name, "cut": setting.cut, "data": job.data}
        if not self._has(where):  # baselines come first, so they were judged where anything was
            self._judge_baselines(job, setting, where)
        about = {"arm": job.arm, "kind": "method", "seed": job.seed, "bundle": facts["digest"], **where}
        if self._has(about):
            return
        self.say(f"judging {job}, {setting.title}")
        cases = self.cases(job, setting)
        judgement = self.suite.judge(outcome.bundle, cases)
        check(judgement, cases.ids)
        more = {key: facts[key] for key in ("step", "seconds", "parameters", "run", "machine")}
        self._drop(about)
        self._add(about, {"method": job.run.model.name, "steps": job.run.engine.steps, **more}, judgement, cases.ids)
        self._save()

    def _judge_baselines(self, job: Job, setting: Setting, where: dict[str, Any]) -> None:
        self.say(f"judging baselines, {setting.title}")
        cases = self.cases(job, setting)
        nothing = {"method": "", "steps": 0, "step": 0, "seconds": 0.0, "parameters": 0, "run": "", "machine": ""}
        rows = self.suite.baselines(job.run, setting, cases)
        for row in rows:
            check(row.judgement, cases.ids)
        self._drop({**where, "bundle": ""})
        for row in rows:
            about = {"arm": row.name, "kind": row.kind, "seed": -1, "bundle": "", **where}
            self._add(about, nothing, row.judgement, cases.ids)
        self._save()

    def _has(self, about: dict[str, Any]) -> bool:
        return bool(_same(self._all.rows, {**about, **self._by(about)}).any())

    def _by(self, about: dict[str, Any]) -> dict[str, str]:
        """What judges: the version of the suite, and its instrument."""
        return {"judged": self.suite.version, "instrument": self.suite.instrument(about["setting"]) or ""}

    def _drop(self, about: dict[str, Any]) -> None:
        """Forget what another version or instrument measured, or one that was killed before it had written the rows."""
        rows, pictures = self._all.rows, self._all.pictures
        self._all = Results(rows[~_same(rows, about)], pictures[~_same(pictures, about)])

    def _add(self, about: dict[str, Any], more: dict[str, Any], judgement: Judgement, ids: Sequence[str]) -> None:
        facts = {**about, **more, **self._by(about), "pictures": len(ids)}
        rows = [{**facts, "metric": metric, "value": value} for metric, value in judgement.values.items()]
        by_picture = []
        for metric, (values, weights) in judgement.by_picture.items():
            numbers = {"value": values.double().numpy(), "weight": weights.double().numpy()}
            by_picture.append(pd.DataFrame({**about, "picture": list(ids), "metric": metric, **numbers}))
        self._all = Results(
            _joined(self._all.rows, pd.DataFrame(rows, columns=ROWS)), _joined(self._all.pictures, *by_picture)[PICTURES]
        )

    def _save(self) -> None:
        """The pictures first: what has rows is taken for whole."""
        for path, frame in ((f"{self.place}-pictures.parquet", self._all.pictures), (f"{self.place}.parquet", self._all.rows)):
            content = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), content)
            write_bytes(path, content.getvalue())


def check(judgement: Judgement, ids: Sequence[str]) -> None:
    """Raise ValueError where a judgement breaks its promise, for then its intervals would be those of something else."""
    for metric, own in judgement.by_picture.items():
        if not len(own.values) == len(own.weights) == len(ids):
            raise ValueError(
                f"{metric} has {len(own.values)} values by picture and {len(own.weights)} weights of {len(ids)} pictures"
            )
    for metric, value in judgement.values.items():
        measured = judgement.measured(metric)
        if measured is not None and not abs((found := float(measured.by_seed()[0])) - value) <= CLOSE * max(1.0, abs(value)):
            raise ValueError(f"{metric} is {value:g}, but its values by picture give {found:g}")


def _same(frame: pd.DataFrame, about: dict[str, Any]) -> pd.Series[bool]:
    """The rows with these values of KEY (and `judged` and `instrument`, where they are given)."""
    same = pd.Series(True, index=frame.index)
    for name in set(about) & {*KEY, "judged", "instrument"}:
        same &= frame[name] == about[name]
    return same


def _load(uri: str, columns: list[str]) -> pd.DataFrame:
    """What a file holds; nothing where there is none, or one of before settings (it is judged again).

    Before there were instruments nobody said by which it was judged.
    """
    filesystem, root = filesystem_of(uri)
    if filesystem.get_file_info(root).type != fs.FileType.File:
        return pd.DataFrame(columns=columns)
    frame: pd.DataFrame = pq.read_table(root, filesystem=filesystem).to_pandas()
    if "instrument" in columns and "instrument" not in frame.columns:
        frame["instrument"] = ""
    return frame[columns] if set(columns) <= set(frame.columns) else pd.DataFrame(columns=columns)


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    """One frame of several; an empty one has no types and would spoil theirs."""
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if full else frames[0]
