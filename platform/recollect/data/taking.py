"""From what a source offers to a store's shards: in this process, or chunk by chunk on Ray.

On Ray each chunk (`StoreWriter.rows_per_shard` consecutive pictures of the source) is one task: it decodes its pictures, writes
its shards straight into the store's folder, and then a note of what became of each picture into a work directory beside the
store. No picture passes through the driver, which reads the notes in order and writes the manifest last. So the store is the one
that a single process writes, byte for byte.

A note's name is a digest of all that its chunk is made of (the files' sizes and times, annotations, settings), so an ingest that
was killed goes on with the same command, and a file that changed in between is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pyarrow import fs

from recollect import __version__
from recollect.batch import Domains
from recollect.bundle import absolute, filesystem_of
from recollect.data.loader import in_order
from recollect.data.schema import Record
from recollect.data.shards import remove_work
from recollect.data.store import Chunk, Manifest, Noted, Shard, StoreWriter

Item = TypeVar("Item")


@dataclass(slots=True)
class Tally:
    """What happened to boxes: a count for each (event, class), and where each event happened first."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, event: str, name: str, where: str = "") -> None:
        """Count one event."""
        self.counts[event, name] += 1
        self.first.setdefault(event, where)

    def add(self, other: Tally) -> None:
        """Count all events of another."""
        self.counts += other.counts
        self.first = other.first | self.first

    def of(self, event: str) -> dict[str, int]:
        """The classes of an event and how often each, most often first."""
        return {name: count for (one, name), count in self.counts.most_common() if one == event}


@dataclass(frozen=True)
class OnRay:
    """Ray workers, each with a CPU; `address` as `recollect.cluster.connect` takes it, unless this process is connected."""

    workers: int
    address: str | None = "local"


Workers = int | OnRay  # threads of this process that decode (0: none but the caller's), or Ray workers
Outcome = tuple[Noted | str, Tally]  # a picture that is in the store, or why it was left out; and what happened to its boxes


@dataclass(frozen=True)
class Reader(Generic[Item]):
    """How a source's pictures are read. On Ray it is pickled, and its functions are called where only files are the same.

    Args:
        read: the record of a picture, or why there is none, and what happened to its boxes.
        file: where the picture lies.
        known: all that the record is made of besides the file's bytes: plain values, which are told apart by their `repr`.
    """

    read: Callable[[Item], tuple[Record | str, Tally]]
    file: Callable[[Item], Path]
    known: Callable[[Item], object]


def take(writer: StoreWriter, items: Sequence[Item], reader: Reader[Item], workers: Workers) -> Iterator[Outcome]:
    """Bring pictures into a store, in their order; yields what became of each. The caller closes the writer, when all are taken.

    Raises ValueError for records that do not fit the store, and on Ray for a picture that a worker does not see although it is
    there.
    """
    if isinstance(workers, OnRay):
        yield from _take_on_ray(writer, items, reader, workers)
        return
    with closing(in_order(reader.read, items, workers)) as results:
        for result, tally in results:
            if isinstance(result, Record):
                writer.add(result)
                yield Noted.of(result), tally
            else:
                writer.leave_out()
                yield result, tally


def work_of(uri: str) -> str:
    """Where an ingest on Ray into that store keeps its notes until it is done."""
    return f"{absolute(uri).rstrip('/')}.ingest"


def _take_on_ray(writer: StoreWriter, items: Sequence[Item], reader: Reader[Item], on: OnRay) -> Iterator[Outcome]:
    from recollect.cluster import connected, map_on_data  # Ray, which small uses do without

    place, size = absolute(writer.uri), writer.rows_per_shard
    task = _Task(place, work_of(place), os.getcwd(), writer.domains, reader)
    filesystem, work = filesystem_of(task.work)
    filesystem.create_dir(work, recursive=True)
    chunks = [(number, items[start : start + size]) for number, start in enumerate(range(0, len(items), size))]
    with connected(on.address, cpus=on.workers if on.address == "local" else None):
        answers = map_on_data(partial(_call, task), chunks, workers=on.workers)
        with closing(answers):
            for (_, chunk), note in zip(chunks, answers, strict=True):
                _refuse_unseen(note, [reader.file(item) for item in chunk])
                shards, outcomes = _read_note(note)
                writer.adopt(shards, [found for found, _ in outcomes if isinstance(found, Noted)])
                yield from outcomes


def finish(writer: StoreWriter) -> Manifest:
    """Close a writer, and delete the notes of an ingest on Ray, where there are any; returns the store's manifest."""
    manifest = writer.close()
    with suppress(FileNotFoundError):
        remove_work(work_of(writer.uri))
    return manifest


@dataclass(frozen=True)
class _Task(Generic[Item]):
    """What all tasks know. `folder` is the driver's current one, which relative paths are meant from."""

    store: str
    work: str
    folder: str
    names: Domains
    reader: Reader[Item]


def _call(task: _Task[Any], job: tuple[int, Sequence[Any]]) -> dict[str, Any]:
    """The note of a chunk, which is read where an attempt before has left it, else made: what runs on a worker."""
    number, items = job
    with suppress(OSError):  # a node without that folder: then relative files are not there either, and the driver says so
        os.chdir(task.folder)
    filesystem, work = filesystem_of(task.work)
    path = f"{work}/{number:05d}-{_key(task, items)}.json"
    kept = _kept(filesystem, path, task.store)
    if kept is not None:
        return kept
    note = _make(task, number, items)
    draft = f"{work}/.{uuid.uuid4().hex}"
    with filesystem.open_output_stream(draft) as stream:
        stream.write(json.dumps(note).encode())
    filesystem.move(draft, path)
    return note


def _key(task: _Task[Any], items: Sequence[Any]) -> str:
    """What a chunk is made of."""
    made = hashlib.blake2b(repr((__version__, task.names)).encode(), digest_size=12)
    for item in items:
        try:
            status = task.reader.file(item).stat()
            there: tuple[int, int] | None = status.st_size, status.st_mtime_ns
        except OSError:
            there = None
        made.update(repr((there, task.reader.known(item))).encode())
    return made.hexdigest()


def _kept(filesystem: fs.FileSystem, path: str, store: str) -> dict[str, Any] | None:
    """A note that is there, if the shards that it names are too."""
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        note: dict[str, Any] = json.loads(stream.read())
    stores, root = filesystem_of(store)
    paths = [f"{root}/{shard['file']}" for shard in note["shards"]]
    return note if all(info.type == fs.FileType.File for info in (stores.get_file_info(paths) if paths else ())) else None


def _make(task: _Task[Any], number: int, items: Sequence[Any]) -> dict[str, Any]:
    """Decode a chunk and write its shards; returns its note: JSON."""
    chunk = Chunk(task.store, number, task.names)
    pictures: list[dict[str, Any]] = []
    for item in items:
        result, tally = task.reader.read(item)
        if isinstance(result, Record):
            chunk.add(result)
        what: dict[str, Any] = {"taken": Noted.of(result)} if isinstance(result, Record) else {"left": result}
        if isinstance(result, str) and not task.reader.file(item).exists():
            what["unseen"] = True
        if tally.counts:
            what["events"] = [[event, name, count] for (event, name), count in tally.counts.items()]
            what["first"] = tally.first
        pictures.append(what)
    return {"shards": [shard.model_dump() for shard in chunk.close()], "pictures": pictures}


def _refuse_unseen(note: dict[str, Any], files: Sequence[Path]) -> None:
    """Raise ValueError where a worker missed a file that is there."""
    for what, file in zip(note["pictures"], files, strict=True):
        if "unseen" in what and file.exists():
            raise ValueError(
                f"{file} is on this machine, but a worker of the cluster does not see it. Put the pictures where all nodes have "
                "them under the same path (a mounted folder), or read them here, without --workers"
            )


def _read_note(note: dict[str, Any]) -> tuple[list[Shard], list[Outcome]]:
    outcomes: list[Outcome] = []
    for what in note["pictures"]:
        counts = Counter({(event, name): count for event, name, count in what.get("events", ())})
        found = Noted(*what["taken"]) if "taken" in what else str(what["left"])
        outcomes.append((found, Tally(counts, what.get("first", {}))))
    return [Shard.model_validate(shard) for shard in note["shards"]], outcomes
