"""Pictures with a table of binary attributes: any folder with a CSV or Parquet file, and what other such data sets share.

The table has a row a picture. One column names its file, relative to the folder; `split` and `domain`, if there, say where it
goes; every other column is an attribute: 1 or true, 0 or false, -1 for 0 as CelebA writes it, empty where nobody knows.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recollect.config import did_you_mean
from recollect.data.schema import SPLITS, Record
from recollect.data.sources.annotated import position
from recollect.data.sources.folders import SPLIT_NAMES
from recollect.data.sources.pictures import Ingest, Picture, read_picture
from recollect.data.store import StoreWriter
from recollect.data.taking import Reader, Tally, Workers, finish, take

VALUES = {"1": 1, "true": 1, "0": 0, "false": 0, "-1": -1}  # as they are written, in lower case
FILE, SPLIT, DOMAIN = "file", "split", "domain"  # columns that are no attributes


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture to take: its id and place in the store, its file, what to call that in the store, and what is known of it."""

    id: str
    file: Path
    source: str
    domain: str
    split: str
    attributes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it was read: its columns, a dictionary a row, and where each row stands, for messages."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    places: tuple[str, ...]


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    attributes: Sequence[str] | None = None,
    domain: str = "pictures",
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn a folder of pictures and a table of their attributes into a store.

    Args:
        folder: what the files in the table are relative to.
        uri: where the store goes; one that is there is replaced.
        table: a `.csv` or `.parquet` file; None: the only one in the folder. The column `file`, or else the
            first, names pictures.
        attributes: these columns only, in this order; None: all but `split` and `domain`.
        domain: what to call the domain where the table has no such column.
        val, test: shares of the pictures, by the hash of their paths, where the table has no column `split`.
        seed: of the division into splits.
        strict: fail at the first picture that is missing or broken instead of listing it.
        max_side: pictures with a longer side are made smaller and encoded again.
        workers: threads that decode (0: none), or workers on Ray (`OnRay`).
        progress: called with (done, total) after every picture.

    Raises ValueError, naming file and line, for columns that are not there and cells that are no such value.
    """
    root = Path(folder)
    found = read_table(find_table(root) if table is None else Path(table))
    files = FILE if FILE in found.columns else found.columns[0]
    names = attribute_columns(found, files, attributes)
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"shares of val {val} and test {test} leave no training pictures; each is at least 0, together below 1")
    items = []
    for row, where, known in zip(found.rows, found.places, read_attributes(found, names), strict=True):
        path = str(row[files] or "").strip().replace("\\", "/")
        if not path:
            raise ValueError(f"{where}: the column {files!r} names no picture")
        items.append(
            Labelled(
                id=path,
                file=root / path,
                source=f"{root.resolve().name}/{path}",
                domain=str(row.get(DOMAIN) or domain),
                split=read_split(row[SPLIT], where) if SPLIT in found.columns else split_of(path, val, test, seed),
                attributes=known,
            )
        )
    return ingest_labelled(
        items,
        uri,
        attributes=names,
        source=f"attributes: {root.resolve().name}",
        read=partial(read_picture, max_side=max_side),
        strict=strict,
        workers=workers,
        progress=progress,
    )


def find_table(root: Path) -> Path:
    """The only table in the folder. Raises ValueError when there is none, or a choice."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    tables = sorted(item for item in root.iterdir() if item.suffix.lower() in (".csv", ".parquet") and item.is_file())
    if len(tables) != 1:
        names = ", ".join(item.name for item in tables) or "none"
        raise ValueError(f"{root} needs one table, .csv or .parquet; there is: {names}; say which with --table")
    return tables[0]


def read_table(file: Path) -> Table:
    """A table with its cells as they stand. Raises ValueError, naming the file and line, when it cannot be read."""
    if not file.is_file():
        near = [item.name for item in file.parent.iterdir()] if file.parent.is_dir() else []
        raise ValueError(f"there is no table {file}{did_you_mean(file.name, near)}")
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{file} is neither a .csv nor a .parquet file")
    table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    if len(set(table.columns)) < len(table.columns) or not all(table.columns):
        raise ValueError(f"{file}: columns must have distinct names, not {', '.join(map(repr, table.columns))}")
    if not table.rows:
        raise ValueError(f"{file} has no row")
    return table


def _read_csv(file: Path) -> Table:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = tuple(name.strip() for name in next(reader, []))
            rows, places = [], []
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    raise ValueError(
                        f"{file}:{reader.line_num} has {len(cells)} cells; the first line names {len(header)} columns"
                    )
                if cells:
                    rows.append(dict(zip(header, cells, strict=True)))
                    places.append(f"{file}:{reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8: {error}") from None
    return Table(file, header, tuple(rows), tuple(places))


def _read_parquet(file: Path) -> Table:
    try:
        content = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no Parquet file: {error}") from None
    places = tuple(f"{file}, row {number}" for number in range(content.num_rows))
    return Table(file, tuple(content.column_names), tuple(content.to_pylist()), places)


def attribute_columns(table: Table, files: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The columns to take as attributes. Raises ValueError for one that is not there, and where none is left."""
    columns = tuple(name for name in table.columns if name not in (files, SPLIT, DOMAIN))
    for name in wanted or ():
        if name not in columns:
            raise ValueError(f"{table.file} has no attribute {name!r}{did_you_mean(name, columns)}")
    names = columns if wanted is None else tuple(wanted)
    if not names:
        raise ValueError(f"{table.file} has no column of attributes; it has {', '.join(table.columns)}")
    return names


def read_attributes(table: Table, names: Sequence[str]) -> list[dict[str, int]]:
    """The known attributes of every row, 0 or 1.

    Raises ValueError, naming row and column, for any other value, and for a column with both 0 and -1: nobody can know whether
    0 means "no" or "not known" there.
    """
    found: list[dict[str, int]] = [{} for _ in table.rows]
    for name in names:
        first: dict[int, str] = {}
        for row, place, known in zip(table.rows, table.places, found, strict=True):
            value = read_value(row[name], name, place)
            if value is not None:
                known[name] = max(0, value)
                first.setdefault(value, place)
        if {0, -1} <= first.keys():
            raise ValueError(
                f"the attribute {name!r} is 0 ({first[0]}) and -1 ({first[-1]}); write one of them for no, and nothing where it "
                "is not known"
            )
    return found


def read_value(cell: Any, name: str, where: str) -> int | None:
    """1, 0 or -1 of a cell; None where it is empty. Raises ValueError, naming attribute and row, for anything else."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    text = str(cell).strip().lower().removesuffix(".0")
    if not text:
        return None
    if text not in VALUES:
        hint = "1, 0, -1 (for 0), true, false, or nothing where it is not known"
        raise ValueError(f"{where}: attribute {name!r} is {cell!r}; write {hint}, or leave the column out with --attributes")
    return VALUES[text]


def read_split(cell: Any, where: str) -> str:
    """One of SPLITS. Raises ValueError, naming `where`, for anything else."""
    name = str(cell or "").strip().lower()
    if name not in SPLIT_NAMES:
        raise ValueError(f"{where}: there is no split {str(cell or '')!r}{did_you_mean(name, SPLITS)}")
    return SPLIT_NAMES[name]


def split_of(key: str, val: float, test: float, seed: int = 0) -> str:
    """The split of a picture by the hash of its key: below `test` "test", in the next `val` "val"."""
    place = position(key, seed)
    return "test" if place < test else "val" if place < test + val else "train"


def ingest_labelled(
    items: Sequence[Labelled],
    uri: str | os.PathLike[str],
    *,
    attributes: Sequence[str],
    source: str,
    read: partial[Picture],
    strict: bool = False,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Write pictures with attributes as a store.

    Args:
        items: the pictures, in the store's order; their domains, in order of appearance, become the store's.
        uri: where the store goes; one that is there is replaced.
        attributes: the store's attributes.
        source: what made this store, in words.
        read: a file's picture as the store takes it: a function with its settings. It raises OSError or ValueError where it
            cannot.
        strict: a picture that is missing or broken is an error.
        workers: threads that decode (0: none), or workers on Ray (`OnRay`).
        progress: called with (done, total) after every picture.

    Raises ValueError for two pictures of one id and a domain without training pictures.
    """
    if not items:
        raise ValueError(f"{source}: there is no picture to take")
    domains = tuple(dict.fromkeys(item.domain for item in items))
    left: list[tuple[str, str]] = []
    taken: list[Labelled] = []
    with StoreWriter(uri, domains=domains, attributes=attributes, source=source) as writer:
        settings = read.func.__qualname__, read.args, read.keywords
        reader = Reader(partial(_record, read=read), file=lambda item: item.file, known=lambda item: (item, settings))
        outcomes = take(writer, items, reader, workers)
        for done, (item, (result, _)) in enumerate(zip(items, outcomes, strict=True), start=1):
            if not isinstance(result, str):
                taken.append(item)
            elif strict:
                raise ValueError(f"{item.file}: {result}")
            else:
                left.append((item.source, result))
            if progress:
                progress(done, len(items))
        _require_training(domains, taken, left)
    return Ingest(finish(writer), tuple(left), tuple(_notes(taken, domains, attributes)))


def _record(item: Labelled, *, read: Callable[[Path], Picture]) -> tuple[Record | str, Tally]:
    """The record of a picture, or why there is none."""
    try:
        picture = read(item.file)
    except FileNotFoundError:
        return "the picture is missing", Tally()
    except (OSError, ValueError) as error:
        return str(error), Tally()
    record = Record(
        id=item.id,
        image=picture.content,
        domain=item.domain,
        width=picture.width,
        height=picture.height,
        split=item.split,
        attributes=item.attributes,
        source=item.source,
    )
    return record, Tally()


def _require_training(domains: Sequence[str], taken: Sequence[Labelled], left: Sequence[tuple[str, str]]) -> None:
    counts = Counter((item.domain, item.split) for item in taken)
    for domain in domains:
        if not counts[domain, "train"]:
            has = ", ".join(f"{counts[domain, split]} {split}" for split in SPLITS)
            reasons = f"; {len(left)} left out, the first: {': '.join(left[0])}" if left else ""
            raise ValueError(f"empty domain: {domain!r} has no training picture ({has}){reasons}")


def _notes(taken: Sequence[Labelled], domains: Sequence[str], attributes: Sequence[str]) -> list[str]:
    """What a user should know of splits and attributes, in sentences."""
    counts = Counter((item.domain, item.split) for item in taken)
    notes = [f"domain {domain!r} has no {split} picture" for domain in domains for split in SPLITS if not counts[domain, split]]
    known = Counter(name for item in taken for name in item.attributes)
    true = Counter(name for item in taken for name, value in item.attributes.items() if value)
    for name in attributes:
        if not known[name]:
            notes.append(f"the attribute {name!r} is known of no picture")
        elif true[name] in (0, known[name]):
            notes.append(f"the attribute {name!r} is {int(true[name] > 0)} in every picture: nothing can be learnt of it")
    bare = sum(not item.attributes for item in taken)
    if bare:
        notes.append(f"{bare} of {len(taken)} pictures have no attributes: nothing is known of them")
    return notes
