"""What was measured, as rows that a Parquet file keeps: a row a number, and beside it a row a picture and metric.

    results.parquet             COLUMNS
    results-pictures.parquet    PICTURES: what intervals and paired differences are made of

A number is known by KEY: measured again under the same digests (of bundle, data, and the index that guided it, if any), and of
pictures that were cut alike, it replaces the old one. A reader sees the old file or the new
one, never a half; two writers at once are not for one file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from recollect.bundle import filesystem_of
from recollect.evaluation.validate import Judgement

SETTING = ["data", "source", "target", "split", "pictures", "cut"]  # numbers of one setting are of the same pictures
KEY = ["kind", "name", "bundle", "index", *SETTING, "metric"]
COLUMNS = ["name", "kind", "method", "about", "seed", "source", "target", "split", "cut", "metric", "value", "low", "high",
           "pictures", "bundle", "index", "data", "features", "config"]  # fmt: skip
PICTURES = ["name", "kind", "seed", "source", "target", "split", "cut", "pictures", "bundle", "index", "data", "metric",
            "picture", "value", "weight"]  # fmt: skip
NO_SEED = -1  # of baselines


@dataclass(frozen=True)
class Results:
    """Rows (COLUMNS), and the values by picture (PICTURES) of those metrics that are made of pictures."""

    rows: pd.DataFrame
    pictures: pd.DataFrame

    def __add__(self, other: Results) -> Results:
        """Both, what is in both as in `other`."""
        return Results(
            _latest([self.rows, other.rows], KEY, COLUMNS), _latest([self.pictures, other.pictures], [*KEY, "picture"], PICTURES)
        )

    def of(self, about: Mapping[str, Any]) -> Results:
        """What has these values in its columns."""
        return Results(self.rows[_same(self.rows, about)], self.pictures[_same(self.pictures, about)])


def nothing() -> Results:
    """No results."""
    return Results(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=PICTURES))


def by_picture(facts: Mapping[str, Any], judgement: Judgement, ids: Sequence[str]) -> pd.DataFrame:
    """The values by picture of a judgement of the pictures with these ids, and what each counts."""
    found = [pd.DataFrame(columns=PICTURES)]
    known = {name: facts[name] for name in PICTURES if name in facts}
    for metric, (values, weights) in judgement.by_picture.items():
        numbers = {"value": values.double().numpy(), "weight": weights.double().numpy()}
        found.append(pd.DataFrame({**known, "metric": metric, "picture": list(ids), **numbers}))
    full = [frame for frame in found if len(frame)]
    return pd.concat(full, ignore_index=True)[PICTURES] if full else found[0]


def load(path: str | os.PathLike[str]) -> Results:
    """What a file holds, and the one beside it; nothing where there is none."""
    return Results(_read(os.fspath(path), COLUMNS), _read(beside(path), PICTURES))


def save(path: str | os.PathLike[str], more: Results) -> Results:
    """Add results to a file (a path or any `pyarrow.fs` URI) and to the one beside it; returns all.

    The values by picture are written first: what has a row is taken for whole.
    """
    found = load(path) + more
    if len(found.pictures):
        _write(beside(path), found.pictures)
    _write(os.fspath(path), found.rows)
    return found


def append(path: str | os.PathLike[str], frame: pd.DataFrame) -> pd.DataFrame:
    """`save` of rows alone; returns all rows."""
    return save(path, Results(frame, pd.DataFrame(columns=PICTURES))).rows


def beside(path: str | os.PathLike[str]) -> str:
    """Where the values by picture of a file are.

    >>> beside("runs/results.parquet")
    'runs/results-pictures.parquet'
    """
    text = os.fspath(path)
    return f"{text.removesuffix('.parquet')}-pictures.parquet"


def _latest(frames: Sequence[pd.DataFrame], key: list[str], columns: list[str]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]  # an empty one has no types and would spoil those of the others
    if not full:
        return pd.DataFrame(columns=columns)
    return pd.concat(full, ignore_index=True).drop_duplicates(key, keep="last", ignore_index=True)


def _same(frame: pd.DataFrame, about: Mapping[str, Any]) -> pd.Series[bool]:
    same = pd.Series(True, index=frame.index)
    for name, value in about.items():
        same &= frame[name] == value
    return same


def _read(path: str, columns: list[str]) -> pd.DataFrame:
    filesystem, root = filesystem_of(path)
    if filesystem.get_file_info(root).type != fs.FileType.File:
        return pd.DataFrame(columns=columns)
    try:
        frame: pd.DataFrame = pq.read_table(root, filesystem=filesystem).to_pandas()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no table of results: {error}") from None
    for name, before in (("seed", NO_SEED), ("config", ""), ("cut", ""), ("index", "")):  # from before rows had them
        if name in columns and name not in frame.columns:
            frame[name] = before
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} is no table of results: it lacks the column {missing[0]!r}; give another --out")
    return frame[columns]


def _write(path: str, frame: pd.DataFrame) -> None:
    filesystem, root = filesystem_of(path)
    folder, _, name = root.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    work = f"{folder}/.{name}-{uuid.uuid4().hex[:8]}"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), work, filesystem=filesystem)
    filesystem.move(work, root)
