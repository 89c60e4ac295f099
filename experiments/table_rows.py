"""Judging the runs of a table, each once: tidy rows of numbers, and the errors by picture that intervals are made of.

A bundle that was judged on the same pictures before is not judged again. Legend: B pictures, R regions.
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

from experiments.table_jobs import Outcome, write_bytes
from experiments.tables import Direction
from recollect.bundle import filesystem_of
from recollect.config import Run
from recollect.data.store import Store
from recollect.evaluation import baselines
from recollect.evaluation.evaluate import FITTING
from recollect.evaluation.memory.use import memory_use
from recollect.evaluation.validate import Cases, Judgement, examine_memory, gather, judge, translate_all
from recollect.pipeline import Pipeline
from recollect.training.engine import pick_device

# `seed` is -1 for baselines. `steps` were trained, and the weights are of `step`, the best on the validation split.
ABOUT = ["arm", "kind", "seed", "source", "target", "cut", "bundle", "data"]
ROWS = [*ABOUT, "method", "metric", "value", "pictures", "steps", "step", "seconds", "parameters", "run", "machine"]
PICTURES = [*ABOUT, "picture", "metric", "value", "weight"]  # weight: the pixels of a region in the picture; 1 for content_kept
KEY = ["arm", "seed", "source", "target", "cut", "bundle", "data"]


@dataclass(frozen=True)
class Results:
    """What was measured: a row a number (ROWS), and a row a picture and metric (PICTURES)."""

    rows: pd.DataFrame
    pictures: pd.DataFrame


class Judging:
    """The measurements of a table at its place, and what adds to them.

    Args:
        place: `<place>.parquet` and `<place>-pictures.parquet` hold what was measured.
        directions: what to judge, of each run those that it was trained for.
        pictures: how many source pictures; None: all of the test split.
        measures: further metrics of a translator.
    """

    def __init__(
        self,
        place: str,
        directions: Sequence[Direction],
        pictures: int | None,
        measures: Sequence[Callable[[Pipeline, Cases], dict[str, float]]],
        say: Callable[[str], None],
    ) -> None:
        self.place, self.directions, self.count, self.say = place, directions, pictures, say
        self.measures = (examine_memory, memory_use, *measures)
        self._all = Results(_load(f"{place}.parquet", ROWS), _load(f"{place}-pictures.parquet", PICTURES))
        self._cases: dict[tuple[str, Direction, str], Cases] = {}

    def judge(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Judge every finished run that was not judged, and the baselines; an error becomes that of the outcome."""
        found = []
        for outcome in outcomes:
            if outcome.facts is not None:
                try:
                    for direction in self.directions_of(outcome.job.run):
                        self._judge(outcome, direction)
                except Exception as error:
                    outcome = replace(outcome, error=f"judging failed: {type(error).__name__}: {error}".splitlines()[0])
                    self.say(f"{outcome.job}: {outcome.error}")
            found.append(outcome)
        return found

    def directions_of(self, run: Run) -> list[Direction]:
        """The table's directions between the run's domains."""
        return [direction for direction in self.directions if set(direction) <= set(run.data.domains)]

    def cases(self, run: Run, direction: Direction) -> Cases:
        """The pictures to judge on; the same for all runs of one table and direction."""
        key = (run.data.store, direction, self.cut(run))
        if key not in self._cases:
            store, data = Store.open(run.data.store), run.data
            self._cases[key] = gather(store, direction, "test", data.size, self.count, data.short_side)
        return self._cases[key]

    def cut(self, run: Run) -> str:
        """What was judged: split, size, short side before the crop, and how many pictures at most."""
        return f"test/{run.data.size}/{run.data.short_side or run.data.size}/{self.count or 'all'}"

    def results(self, outcomes: Sequence[Outcome]) -> Results:
        """What was measured of these outcomes, and of the baselines on their pictures."""
        own: set[tuple[Any, ...]] = set()
        for outcome in outcomes:
            for direction in self.directions_of(outcome.job.run):
                where = (*direction, self.cut(outcome.job.run))
                own.add(("", *where, outcome.job.data))
                if outcome.facts is not None:
                    own.add((outcome.job.arm, outcome.job.seed, *where, outcome.facts["digest"], outcome.job.data))

        def mine(frame: pd.DataFrame) -> pd.DataFrame:
            keys = frame[KEY].itertuples(index=False, name=None)
            chosen = [key in own or (key[5] == "" and ("", *key[2:5], key[6]) in own) for key in keys]
            return frame.loc[np.array(chosen, dtype=bool)].reset_index(drop=True)

        return Results(mine(self._all.rows), mine(self._all.pictures))

    def _judge(self, outcome: Outcome, direction: Direction) -> None:
        assert outcome.facts is not None
        job, facts = outcome.job, outcome.facts
        run = job.run
        where = {"source": direction[0], "target": direction[1], "cut": self.cut(run), "data": job.data}
        if not self._has({**where, "bundle": ""}):
            self._judge_baselines(run, direction, where)
        about = {"arm": job.arm, "kind": "method", "seed": job.seed, "bundle": facts["digest"], **where}
        if self._has(about):
            return
        self.say(f"judging {job}, {' to '.join(direction)}")
        cases = self.cases(run, direction)
        pipeline = Pipeline.open(outcome.bundle, pick_device(run.engine.device))
        judgement = judge(translate_all(pipeline, cases), cases)
        for measure in self.measures:
            judgement.values.update(measure(pipeline, cases))
        more = {key: facts[key] for key in ("step", "seconds", "parameters", "run", "machine")}
        self._add(about, {"method": run.model.name, "steps": run.engine.steps, **more}, judgement, cases)
        self._save()

    def _judge_baselines(self, run: Run, direction: Direction, where: dict[str, Any]) -> None:
        self.say(f"judging baselines, {' to '.join(direction)}")
        store, cases = Store.open(run.data.store), self.cases(run, direction)
        fitting = None
        if cases.truth is not None and all(store.ids("val", domain) for domain in direction):
            fitting = gather(store, direction, "val", run.data.size, FITTING, run.data.short_side)
        nothing = {"method": "", "steps": 0, "step": 0, "seconds": 0.0, "parameters": 0, "run": "", "machine": ""}
        for row in baselines.rows(cases, fitting):
            about = {"arm": row.name, "kind": row.kind, "seed": -1, "bundle": "", **where}
            self._add(about, nothing, row.judgement, cases)
        self._save()

    def _has(self, about: dict[str, Any]) -> bool:
        rows = self._all.rows
        same = pd.Series(True, index=rows.index)
        for name in set(about) & set(KEY):
            same &= rows[name] == about[name]
        return bool(same.any())

    def _add(self, about: dict[str, Any], more: dict[str, Any], judgement: Judgement, cases: Cases) -> None:
        facts = {**about, **more, "pictures": len(cases)}
        rows = [{**facts, "metric": metric, "value": value} for metric, value in judgement.values.items()]
        parts = {"content_kept": (judgement.kept.tolist(), [1.0] * len(cases))}
        if judgement.errors is not None:
            for r, region in enumerate(cases.regions):
                parts[f"scene_error/{region}"] = (judgement.errors.error[:, r].tolist(), judgement.errors.pixels[:, r].tolist())
        by_picture = [
            pd.DataFrame({**about, "picture": list(cases.ids), "metric": metric, "value": values, "weight": weights})
            for metric, (values, weights) in parts.items()
        ]
        self._all = Results(
            _joined(self._all.rows, pd.DataFrame(rows, columns=ROWS)), _joined(self._all.pictures, *by_picture)[PICTURES]
        )

    def _save(self) -> None:
        """The pictures first: what has rows is taken for whole."""
        pictures = self._all.pictures.drop_duplicates([*KEY, "picture", "metric"], keep="last", ignore_index=True)
        self._all = Results(self._all.rows, pictures)
        for path, frame in ((f"{self.place}-pictures.parquet", pictures), (f"{self.place}.parquet", self._all.rows)):
            content = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), content)
            write_bytes(path, content.getvalue())


def _load(uri: str, columns: list[str]) -> pd.DataFrame:
    filesystem, root = filesystem_of(uri)
    if filesystem.get_file_info(root).type != fs.FileType.File:
        return pd.DataFrame(columns=columns)
    frame: pd.DataFrame = pq.read_table(root, filesystem=filesystem).to_pandas()
    return frame


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    """One frame of several; an empty one has no types and would spoil theirs."""
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
