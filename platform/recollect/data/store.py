"""The image store: a folder of Parquet shards plus `manifest.json`, on a local disk or any `pyarrow.fs` URI.

The shards carry the columns of `schema.COLUMNS`. Their names contain their SHA-256 and the manifest is written last, so half
a store is no store, and writing over an old store leaves that one readable until the new one is whole.

What a source offers is cut into chunks of so many pictures, whether they are taken or left out, and each chunk becomes its own
shards. So any process can write a chunk without knowing of the others, and all together write what one would.

Row groups are small and the encoded pictures uncompressed, so any record is one short read away; row groups that were read
stay in memory up to a budget, which holds most stores entirely.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import cached_property
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from recollect.batch import Domains
from recollect.bundle import filesystem_of
from recollect.config import Frozen, did_you_mean
from recollect.data.schema import BACKGROUND, COLUMNS, SPLITS, Box, Record

FORMAT = 1
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 32  # what a read of one record costs: the pictures of this many
SHARD_BYTES = 256 << 20  # a shard is hashed and written whole, so it must fit in memory
CACHE_BYTES = 512 << 20
PAYLOAD = ("image", "regions")  # the columns that are read on demand; all others are read when the store is opened


class Shard(Frozen):
    """One Parquet file of a store."""

    file: str
    rows: int
    sha256: str


class Manifest(Frozen):
    """What a store holds. `classes[0]` is the background; `counts` is split -> domain -> pictures.

    `annotated`: some record has boxes; `truth`: some record has a scene and a region mask. `digest` identifies the content:
    SHA-256 over the names and the shards' digests.
    """

    format: int = FORMAT
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    regions: tuple[str, ...]
    source: str = ""
    counts: dict[str, dict[str, int]]
    annotated: bool
    truth: bool
    shards: tuple[Shard, ...]
    digest: str

    def computed_digest(self) -> str:
        """The digest that these names and shards have."""
        names = [self.domains, self.classes, self.attributes, self.regions]
        return hashlib.sha256(json.dumps([names, [shard.sha256 for shard in self.shards]]).encode()).hexdigest()


class Noted(NamedTuple):
    """What a manifest has to know of a record; `boxes`: how many, None where nobody annotated it; `truth`: scene and regions."""

    id: str
    split: str
    domain: str
    boxes: int | None
    truth: bool

    @classmethod
    def of(cls, record: Record) -> Noted:
        """The note of a record."""
        boxes = None if record.boxes is None else len(record.boxes)
        return cls(record.id, record.split, record.domain, boxes, record.scene is not None and record.regions is not None)


class Chunk:
    """The records of one chunk of a store, written as a shard; as several where more bytes would be in one than fit in memory."""

    def __init__(self, uri: str | os.PathLike[str], number: int, names: Domains) -> None:
        self.number, self.names = number, names
        self._filesystem, self._root = filesystem_of(uri)
        self._rows: list[Record] = []
        self._bytes = 0
        self.shards: list[Shard] = []  # that are written

    def add(self, record: Record) -> None:
        """Add a record. Raises ValueError, naming the record, when it does not fit the store's names or its own size."""
        _check(record, self.names)
        self._rows.append(record)
        self._bytes += len(record.image) + len(record.regions or b"")
        if self._bytes >= SHARD_BYTES:
            self._flush()

    def close(self) -> tuple[Shard, ...]:
        """Write what is left; returns the shards, which are none where no record was added."""
        self._flush()
        return tuple(self.shards)

    def _flush(self) -> None:
        if not self._rows:
            return
        content = _encode(self._rows)
        digest = hashlib.sha256(content).hexdigest()
        shard = Shard(file=f"{self.number:05d}-{digest[:16]}.parquet", rows=len(self._rows), sha256=digest)
        with self._filesystem.open_output_stream(f"{self._root}/{shard.file}") as stream:
            stream.write(content)
        self.shards.append(shard)
        self._rows, self._bytes = [], 0


class StoreWriter:
    """Writes a store record by record; a context manager that closes itself unless an error passes through.

    Args:
        uri: a local folder or `pyarrow.fs` URI; a store that is there is replaced, once this one is whole.
        domains, classes, attributes, regions: the ordered names behind all indices; `classes` starts with the background.
            A record may lack attributes (unknown, or they do not apply to it); it cannot have others.
        source: what made this store, in words.
        rows_per_shard: pictures a chunk, those that are left out among them.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        domains: Iterable[str],
        classes: Iterable[str] = (BACKGROUND,),
        attributes: Iterable[str] = (),
        regions: Iterable[str] = (),
        source: str = "",
        rows_per_shard: int = 512,
    ) -> None:
        self.domains = Domains(tuple(domains), tuple(classes), tuple(attributes), tuple(regions))
        _check_names(self.domains)
        self.uri, self.source, self.rows_per_shard = os.fspath(uri), source, rows_per_shard
        self.manifest: Manifest | None = None
        self._filesystem, self._root = filesystem_of(uri)
        self._filesystem.create_dir(self._root, recursive=True)
        self._old = {info.base_name for info in _shard_files(self._filesystem, self._root)}
        self._seen: set[str] = set()
        self._counts = {split: dict.fromkeys(self.domains.names, 0) for split in SPLITS}
        self._annotated = self._truth = False
        self._offered = 0  # pictures, of those that were left out too
        self._chunk = Chunk(self.uri, 0, self.domains)
        self._shards: list[Shard] = []
        self._written: list[Shard] = []  # by this process

    def add(self, record: Record) -> None:
        """Add a record. Raises ValueError, naming the record, when it does not fit the store's names or its own size."""
        self._refuse_twin(record.id)
        self._chunk.add(record)
        self._note(Noted.of(record))
        self._count()

    def leave_out(self) -> None:
        """Count a picture that is not taken: the next ones stay in the chunks that they would have been in."""
        self._count()

    def adopt(self, shards: Iterable[Shard], notes: Iterable[Noted]) -> None:
        """Take over a chunk that another process wrote, as the next one. Raises ValueError for an id that is there already."""
        assert not self._offered, "either all chunks are adopted, or none"
        for note in notes:
            self._refuse_twin(note.id)
            self._note(note)
        self._shards += shards

    def close(self) -> Manifest:
        """Write what is left and then the manifest. Raises ValueError when a domain has no training picture."""
        if self.manifest is not None:
            return self.manifest
        empty = [name for name, count in self._counts["train"].items() if not count]
        if empty:
            found = {split: dict(counts) for split, counts in self._counts.items()}
            raise ValueError(f"empty domain: {empty[0]!r} has no training picture; pictures found: {found}")
        self._end_chunk()
        draft = Manifest(
            domains=self.domains.names,
            classes=self.domains.classes,
            attributes=self.domains.attributes,
            regions=self.domains.regions,
            source=self.source,
            counts=self._counts,
            annotated=self._annotated,
            truth=self._truth,
            shards=tuple(self._shards),
            digest="",
        )
        manifest = draft.model_copy(update={"digest": draft.computed_digest()})
        with self._filesystem.open_output_stream(f"{self._root}/.{MANIFEST}") as stream:
            stream.write((manifest.model_dump_json(indent=2) + "\n").encode())
        self._filesystem.move(f"{self._root}/.{MANIFEST}", f"{self._root}/{MANIFEST}")
        self._delete(self._old - {shard.file for shard in self._shards})
        self.manifest = manifest
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.close()
        finally:
            if self.manifest is None:
                self._delete({shard.file for shard in (*self._written, *self._chunk.shards)} - self._old)

    def _refuse_twin(self, id: str) -> None:
        if id in self._seen:
            raise ValueError(f"two records have the id {id!r}")

    def _note(self, note: Noted) -> None:
        self._seen.add(note.id)
        self._counts[note.split][note.domain] += 1
        self._annotated |= note.boxes is not None
        self._truth |= note.truth

    def _count(self) -> None:
        self._offered += 1
        if self._offered % self.rows_per_shard == 0:
            self._end_chunk()

    def _end_chunk(self) -> None:
        shards = self._chunk.close()
        self._shards += shards
        self._written += shards
        self._chunk = Chunk(self.uri, self._chunk.number + 1, self.domains)

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._filesystem.delete_file(f"{self._root}/{name}")


def _shard_files(filesystem: fs.FileSystem, root: str) -> list[fs.FileInfo]:
    """The files in a folder that look like a shard: number, SHA-256 prefix, `.parquet`."""
    files = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return [info for info in files if len(info.base_name) == 30 and info.base_name[5] == "-" and info.extension == "parquet"]


def _check_names(names: Domains) -> None:
    if names.classes[:1] != (BACKGROUND,):
        raise ValueError(f"the first class must be {BACKGROUND!r}; the classes are {', '.join(names.classes) or 'none'}")
    kinds = {"domains": names.names, "classes": names.classes, "attributes": names.attributes, "regions": names.regions}
    for kind, given in kinds.items():
        if len(set(given)) != len(given) or not all(given):
            raise ValueError(f"{kind} must be distinct names, not {', '.join(map(repr, given))}")


def _check(record: Record, names: Domains) -> None:
    where = f"record {record.id!r}" + (f" (from {record.source})" if record.source else "")
    if not record.id or not record.image:
        raise ValueError(f"{where} has no {'image bytes' if record.id else 'id'}")
    if record.domain not in names.names:
        raise ValueError(f"{where}: there is no domain {record.domain!r}{did_you_mean(record.domain, names.names)}")
    if record.split not in SPLITS:
        raise ValueError(f"{where}: there is no split {record.split!r}{did_you_mean(record.split, SPLITS)}")
    if record.width < 1 or record.height < 1:
        raise ValueError(f"{where} is {record.width}x{record.height} pixels; a picture has at least one")
    objects = names.classes[1:]
    for box in record.boxes or ():
        if box.label not in objects:
            raise ValueError(f"{where}: there is no class {box.label!r}{did_you_mean(box.label, objects)}")
        if not (0 <= box.x1 < box.x2 <= record.width and 0 <= box.y1 < box.y2 <= record.height):
            size = f"{record.width}x{record.height}"
            raise ValueError(f"{where}: {box} is not inside its picture of {size} pixels (0 <= x1 < x2 <= width, and so for y)")
    given = record.attributes or {}
    for name, value in given.items():
        if name not in names.attributes:
            known = did_you_mean(name, names.attributes, "; this store has: ")
            raise ValueError(f"{where} has the unknown attribute {name!r}{known}")
        if value not in (0, 1):
            raise ValueError(f"{where}: attribute {name!r} is {value}; it must be 0 or 1")
    if record.regions is not None and not names.regions:
        raise ValueError(f"{where} has a region mask, but this store names no regions")


def _encode(records: list[Record]) -> pa.Buffer:
    """A Parquet file: row groups of `ROWS_PER_GROUP`, pictures as they are, everything else compressed."""
    light = [name for name in COLUMNS.names if name not in PAYLOAD]
    sink = pa.BufferOutputStream()
    compression = dict.fromkeys(_leaves(COLUMNS), "zstd") | dict.fromkeys(PAYLOAD, "none")
    with pq.ParquetWriter(
        sink,
        COLUMNS,
        compression=compression,
        use_dictionary=["domain", "split"],
        write_statistics=[name for name in light if name in ("id", "domain", "split", "scene")],
        store_schema=True,
    ) as writer:
        for start in range(0, len(records), ROWS_PER_GROUP):
            rows = [_row(record) for record in records[start : start + ROWS_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=COLUMNS))
    return sink.getvalue()


def _leaves(schema: pa.Schema) -> list[str]:
    """The dotted paths of the Parquet columns behind a schema (a list of structs has one for each field)."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet.names))]


def _row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in COLUMNS.names}
    if record.boxes is not None:
        row["boxes"] = [{"label": b.label, "x1": b.x1, "y1": b.y1, "x2": b.x2, "y2": b.y2} for b in record.boxes]
    if record.attributes is not None:
        row["attributes"] = list(record.attributes.items())
    return row


def write_store(
    uri: str | os.PathLike[str],
    records: Iterable[Record],
    *,
    domains: Iterable[str],
    classes: Iterable[str] = (BACKGROUND,),
    attributes: Iterable[str] = (),
    regions: Iterable[str] = (),
    source: str = "",
    rows_per_shard: int = 512,
) -> Manifest:
    """Write all `records` as a store; the arguments are those of `StoreWriter`."""
    writer = StoreWriter(
        uri,
        domains=domains,
        classes=classes,
        attributes=attributes,
        regions=regions,
        source=source,
        rows_per_shard=rows_per_shard,
    )
    with writer:
        for record in records:
            writer.add(record)
    return writer.close()


class Store:
    """A store, opened for reading: `Store.open(uri)`. Safe to read from several threads; pickled as its URI and opened anew."""

    def __init__(self, uri: str, manifest: Manifest, shards: _Shards, table: pa.Table) -> None:
        self.uri, self.manifest = uri, manifest
        self.domains = Domains(manifest.domains, manifest.classes, manifest.attributes, manifest.regions)
        self._shards, self._table = shards, table
        ids: list[str] = table["id"].to_pylist()
        self._rows = {id: row for row, id in enumerate(ids)}
        domains = table["domain"].to_pylist()
        self._by_split = _grouped(table["split"].to_pylist(), domains, ids)
        self._by_scene = _grouped(table["scene"].to_pylist(), domains, ids)

    @classmethod
    def open(cls, uri: str | os.PathLike[str], verify: bool = False, cache_bytes: int = CACHE_BYTES) -> Store:
        """Open a store; reads everything but pictures and masks.

        Args:
            uri: a local folder or `pyarrow.fs` URI.
            verify: also compare every shard with its SHA-256.
            cache_bytes: how many bytes of encoded pictures may stay in memory.

        Raises ValueError when there is no store, its format is unknown, or a shard is missing or altered.
        """
        filesystem, root = filesystem_of(uri)
        manifest = _read_manifest(filesystem, root, os.fspath(uri))
        shards = _Shards(filesystem, root, manifest, cache_bytes)
        if verify:
            shards.verify()
        table = shards.metadata()
        return cls(os.fspath(uri), manifest, shards, table)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        return Store.open, (self.uri, False, self._shards.cache_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    @property
    def digest(self) -> str:
        """The identity of the content, SHA-256."""
        return self.manifest.digest

    def ids(self, split: str, domain: str) -> tuple[str, ...]:
        """The ids of a split and domain in the order in which they were written; may be empty.

        Raises ValueError for an unknown split or domain.
        """
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}")
        self.domains.index(domain)
        return self._by_split.get((split, domain), ())

    def boxes(self, split: str, domain: str) -> dict[str, int] | None:
        """How many boxes of each class the pictures of a split and domain have; None where nobody annotated any of them."""
        given = [boxes for boxes in self._boxes(split, domain) if boxes is not None]
        if not given:
            return None
        counts = Counter(box["label"] for boxes in given for box in boxes)
        return {name: counts[name] for name in self.domains.classes[1:]}

    def unannotated(self, split: str, domain: str) -> int:
        """How many pictures of a split and domain nobody annotated."""
        return sum(boxes is None for boxes in self._boxes(split, domain))

    def _boxes(self, split: str, domain: str) -> list[list[dict[str, Any]] | None]:
        rows = pa.array([self._rows[id] for id in self.ids(split, domain)], pa.int64())
        found: list[list[dict[str, Any]] | None] = self._table["boxes"].take(rows).to_pylist()
        return found

    def attributes(
        self, ids: Iterable[str] | None = None, *, split: str | None = None, domain: str | None = None
    ) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The attributes of many pictures without reading any.

        Args:
            ids: of these, in this order; None: of all of a split and domain, in the order in which they were written.
            split, domain: None: of all. They go without `ids`.

        Returns the ids and their attributes (n, A): 0, 1, or NaN where unknown; A is in the order of `domains.attributes`.
        Raises ValueError for ids, splits and domains that are not there.
        """
        if ids is not None:
            if split is not None or domain is not None:
                raise ValueError("attributes of given ids, or of a split and domain; not both")
            asked = tuple(ids)
            return asked, self._attributes[[self._row(id) for id in asked]]
        splits, domains = SPLITS if split is None else (split,), self.domains.names if domain is None else (domain,)
        rows = sorted(self._rows[id] for one in splits for name in domains for id in self.ids(one, name))
        return tuple(self._table["id"].take(pa.array(rows, pa.int64())).to_pylist()), self._attributes[rows]

    def column(self, name: str, ids: Iterable[str]) -> tuple[Any, ...]:
        """What is known of these pictures besides the pictures, by the name of a `Record`'s field, such as "scene" or "mode".

        Raises ValueError for ids that are not there, for unknown fields, and for those that are read picture by picture.
        """
        if name not in self._table.column_names:
            raise ValueError(f"there is no light column {name!r}{did_you_mean(name, self._table.column_names)}")
        rows = pa.array([self._row(id) for id in ids], pa.int64())
        return tuple(self._value(name, value) for value in self._table[name].take(rows).to_pylist())

    @cached_property
    def _attributes(self) -> NDArray[np.float32]:
        """By row and attribute: 0, 1, or NaN where a record lacks it."""
        names = self.domains.attributes
        column = self._table["attributes"].combine_chunks()
        keys = pc.index_in(column.keys, pa.array(names, pa.string())).to_numpy()
        rows = np.repeat(np.arange(len(self)), np.diff(column.offsets.to_numpy()))
        table = np.full((len(self), len(names)), np.nan, np.float32)
        table[rows, keys] = column.items.to_numpy()
        return table

    def record(self, id: str) -> Record:
        """The record with that id. Raises ValueError when there is none."""
        row = self._row(id)
        payload, offset = self._shards.payload(row)
        return self._record(row, payload["image"][offset].as_py(), payload["regions"][offset].as_py())

    def records(self, ids: Iterable[str]) -> tuple[Record, ...]:
        """The records with these ids, in their order."""
        return tuple(self.record(id) for id in ids)

    def scene(self, scene: str, domain: str) -> tuple[str, ...]:
        """The ids that show this scene in that domain, in the order written; empty where it is not shown in it.

        Raises ValueError for an unknown domain, and in a store without scenes.
        """
        self.domains.index(domain)
        if not self._by_scene:
            raise ValueError(f"the store {self.uri} knows no scenes (it has no truth); worlds do, see `recollect data`")
        return self._by_scene.get((scene, domain), ())

    def _row(self, id: str) -> int:
        if id not in self._rows:
            some = list(self._rows)[:3]
            raise ValueError(f"there is no picture {id!r} among the {len(self)} of {self.uri}; ids look like {', '.join(some)}")
        return self._rows[id]

    def _record(self, row: int, image: bytes, regions: bytes | None) -> Record:
        table = self._table
        values: dict[str, Any] = {name: self._value(name, table[name][row].as_py()) for name in table.column_names}
        return Record(image=image, regions=regions, **values)

    @staticmethod
    def _value(name: str, value: Any) -> Any:
        """A cell of the table as a `Record` has it."""
        if value is None:
            return None
        if name == "boxes":
            return tuple(Box(**box) for box in value)
        return dict(value) if name == "attributes" else value


def _grouped(first: list[str | None], second: list[str], ids: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(first, second) -> the ids of the rows with these values, in order; rows without a first value are left out."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one, two, id in zip(first, second, ids, strict=True):
        if one is not None:
            groups.setdefault((one, two), []).append(id)
    return {key: tuple(members) for key, members in groups.items()}


def _read_manifest(filesystem: fs.FileSystem, root: str, uri: str) -> Manifest:
    path = f"{root}/{MANIFEST}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise ValueError(f"there is no image store at {uri!r} (no {MANIFEST}); `recollect data` makes one")
    with filesystem.open_input_stream(path) as stream:
        content = json.loads(stream.read())
    if content.get("format") != FORMAT:
        raise ValueError(f"{uri} has store format {content.get('format')!r}; this version of recollect reads {FORMAT}")
    if "shards" not in content:
        raise ValueError(f"{path} is not the manifest of an image store; `recollect data` makes one")
    manifest = Manifest.model_validate(content)
    if manifest.digest != manifest.computed_digest():
        raise ValueError(f"{path} was altered: its digest is not that of its names and shards")
    for shard in manifest.shards:
        if "/" in shard.file or "\\" in shard.file:
            raise ValueError(f"{path} names the shard {shard.file!r}, which is no plain file name")
        if filesystem.get_file_info(f"{root}/{shard.file}").type != fs.FileType.File:
            raise ValueError(f"{uri}: the shard {shard.file} is missing")
    return manifest


class _Shards:
    """The files of a store, and the row groups of them that are in memory."""

    def __init__(self, filesystem: fs.FileSystem, root: str, manifest: Manifest, cache_bytes: int) -> None:
        self.filesystem, self.paths = filesystem, [f"{root}/{shard.file}" for shard in manifest.shards]
        self.expected, self.cache_bytes = manifest.shards, cache_bytes
        self._footers: list[pq.FileMetaData] = []
        self._groups: list[tuple[int, int, int]] = []  # by row: shard, row group, offset in it
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def verify(self) -> None:
        for path, shard in zip(self.paths, self.expected, strict=True):
            with self.filesystem.open_input_stream(path) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != shard.sha256:
                raise ValueError(f"{path} is not the file that was written (its SHA-256 differs)")

    def metadata(self) -> pa.Table:
        """All columns but the payload, and as a by-product where each row lies."""
        columns = [name for name in COLUMNS.names if name not in PAYLOAD]
        tables = []
        for number, (path, shard) in enumerate(zip(self.paths, self.expected, strict=True)):
            with self.filesystem.open_input_file(path) as source:
                try:
                    file = pq.ParquetFile(source)
                except pa.ArrowInvalid as error:
                    raise ValueError(f"{path} is no Parquet file: {error}") from None
                if file.schema_arrow.names != COLUMNS.names or file.metadata.num_rows != shard.rows:
                    raise ValueError(
                        f"{path} is not the shard that the manifest describes ({shard.rows} rows of {COLUMNS.names})"
                    )
                self._footers.append(file.metadata)
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self._groups += [(number, group, offset) for offset in range(rows)]
                tables.append(file.read(columns=columns))
        return pa.concat_tables(tables).combine_chunks()

    def payload(self, row: int) -> tuple[pa.Table, int]:
        """The row group that holds `row`, payload columns only, and the offset of the row in it."""
        shard, group, offset = self._groups[row]
        with self._lock:
            if (shard, group) in self._cache:
                self._cache.move_to_end((shard, group))
                return self._cache[shard, group], offset
        with self.filesystem.open_input_file(self.paths[shard]) as source:  # outside the lock: reads may overlap
            file = pq.ParquetFile(source, metadata=self._footers[shard])
            table = file.read_row_group(group, columns=list(PAYLOAD), use_threads=False).combine_chunks()
        with self._lock:
            if (shard, group) not in self._cache:
                self._cache[shard, group] = table
                self._cached += table.nbytes
            while self._cached > self.cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return table, offset
