"""An index in Milvus, for sets that outgrow a machine: `pip install 'recollect[milvus]'`.

With a URI (`http://milvus:19530`) the pictures are in a collection of that server or cluster, and what is saved is where to find
it, with a digest of the ids, vectors and attributes that were there: versions differ where their content does. But they do not
keep it: a change is seen by everybody at once, before it is saved and in old versions too. Where a change ends with an error,
what was added and removed before that stays done, and nothing is saved; `open` then warns that the number of pictures is another,
and the next change that is saved has the digest of what is there. To add again is safe, since only what is missing is added.

Without a URI, the embedded engine keeps the pictures in a folder of its own, which `save` copies and `open` copies back, as the
engine writes into it; such an index is as any other. A token for the server comes from RECOLLECT_MILVUS_TOKEN and is never
written down.

Nothing of the set is in this process but its size, which is read when the index is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from recollect.retrieval.index import SETTINGS, Index, Matches, Rows, Stats, Vectors
from recollect.retrieval.local import reranked

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ModuleNotFoundError:
    raise ValueError("the back-end milvus needs `pip install 'recollect[milvus]'`; faiss and exact are there without") from None

logger = logging.getLogger("recollect")

TOKEN = "RECOLLECT_MILVUS_TOKEN"
ENGINE = "engine.db"
BATCH = 2000  # rows or ids a message: well below the 64 MB that gRPC takes
QUERIES = 256
LONGEST = 1024  # bytes of an id
COPIES = 100  # of a changing engine, 0.1 s apart, before it is an error


class MilvusIndex(Index):
    """Milvus. Settings: `uri` (a server; empty: the embedded engine), `index_type` (as Milvus names it)."""

    back_end = "milvus"

    def __init__(
        self,
        client: Any,
        collection: str,
        attributes: tuple[str, ...],
        dimension: int,
        uri: str,
        next_row: int,
        content: int | None,
        folder: Path | None,
    ) -> None:
        self.attributes, self.dimension, self.collection, self.uri = attributes, dimension, collection, uri
        self._client, self._next_row, self._content, self._folder = client, next_row, content, folder
        self._change = threading.Lock()
        self._count = int(client.query(collection, filter="", output_fields=["count(*)"])[0]["count(*)"])
        weakref.finalize(self, _close, client, folder)

    @classmethod
    def _build(cls, rows: Rows, attributes: tuple[str, ...], **settings: Any) -> Self:
        return cls._create(rows, attributes, **settings)

    @classmethod
    def _create(cls, rows: Rows, attributes: tuple[str, ...], uri: str = "", index_type: str = "") -> Self:
        folder = None if uri else Path(tempfile.mkdtemp(prefix="recollect-milvus-"))
        client = _connect(uri or str(folder / ENGINE if folder else ""))
        collection = f"recollect_{uuid.uuid4().hex}"
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
        schema.add_field("row", DataType.INT64)  # what `draw` draws
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.vectors.shape[1])
        for column in range(len(attributes)):
            schema.add_field(f"a{column}", DataType.INT8)  # names of attributes are not always names of fields
        kind = client.prepare_index_params()
        kind.add_index("vector", index_type=index_type or ("AUTOINDEX" if uri else "FLAT"), metric_type="L2")
        client.create_collection(collection, schema=schema, index_params=kind, consistency_level="Strong")
        index = cls(client, collection, attributes, rows.vectors.shape[1], uri, 0, 0, folder)
        index._add(rows)
        return index

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self._present((id,)))

    def lacking(self, ids: Iterable[str]) -> int:
        wanted = tuple({id for id in ids if id})
        return len(wanted) - len(self._present(wanted))

    def _present(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that are there."""
        found: list[str] = []
        for start in range(0, len(ids), BATCH):
            rows = self._client.get(self.collection, ids=list(ids[start : start + BATCH]), output_fields=["id"])
            found += [row["id"] for row in rows]
        return found

    def ids(self) -> Iterator[str]:
        for page in self._pages(["id"]):
            yield from (row["id"] for row in page)

    def _add(self, rows: Rows) -> None:
        long = next((id for id in rows.ids if len(id.encode()) > LONGEST), None)
        if long is not None:
            raise ValueError(f"the id {long[:40]!r}... takes more than {LONGEST} bytes, which Milvus does not; take shorter ids")
        with self._change:
            known = self._present(rows.ids)
            if known:
                raise ValueError(f"the id {known[0]!r} is in this index; remove it first, or add it under another id")
            for start in range(0, len(rows.ids), BATCH):
                part = [self._row(rows, number) for number in range(start, min(start + BATCH, len(rows.ids)))]
                self._client.insert(self.collection, [{**row, "row": self._next_row + n} for n, row in enumerate(part)])
                self._changed(part, 1)  # at once: the next message may fail, and these are there
                self._next_row += len(part)

    def _row(self, rows: Rows, number: int) -> dict[str, Any]:
        values = {f"a{column}": int(value) for column, value in enumerate(rows.attributes[number])}
        return {"id": rows.ids[number], "vector": rows.vectors[number].tolist(), **values}

    def _changed(self, rows: Sequence[Mapping[str, Any]], sign: int) -> None:
        """Count rows that came (1) or went (-1)."""
        self._count += sign * len(rows)
        if self._content is not None:
            self._content = (self._content + sign * self._sum(rows)) % 2**256

    def _sum(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """The sum of the digests of rows, so that no order of changes matters."""
        total = 0
        for row in rows:
            flags = np.array([row[f"a{column}"] for column in range(len(self.attributes))], np.int8)
            numbers = np.array(row["vector"], np.float32).tobytes() + flags.tobytes()
            total += int.from_bytes(hashlib.sha256(f"{row['id']}\0".encode() + numbers).digest(), "big")
        return total

    @property
    def _fields(self) -> list[str]:
        return ["id", "vector", *(f"a{column}" for column in range(len(self.attributes)))]

    def _pages(self, fields: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows, some at a time."""
        pages = self._client.query_iterator(self.collection, batch_size=BATCH, output_fields=list(fields))
        while page := pages.next():
            yield page
        pages.close()

    def _remove(self, ids: tuple[str, ...]) -> None:
        with self._change:
            present = set(self._present(ids))
            strange = next((id for id in ids if id not in present), None)
            if strange is not None:
                raise ValueError(f"there is no picture {strange!r} in this index, so it cannot be removed; nothing was")
            for start in range(0, len(ids), BATCH):
                part = list(ids[start : start + BATCH])
                rows = self._client.get(self.collection, ids=part, output_fields=self._fields)
                self._client.delete(self.collection, ids=part)
                self._changed(rows, -1)

    def _search(self, queries: Vectors, k: int, wanted: Mapping[int, int], excluded: Sequence[frozenset[str]]) -> Matches:
        condition = " and ".join(f"a{column} == {value}" for column, value in wanted.items())
        spare = max(map(len, excluded))
        hits: list[list[dict[str, Any]]] = []
        for start in range(0, len(queries), QUERIES):
            hits += self._client.search(
                self.collection,
                data=queries[start : start + QUERIES].tolist(),
                limit=k + spare,
                filter=condition,
                output_fields=["id", "vector"],
            )
        rows = [_matching(query, found, k, gone) for query, found, gone in zip(queries, hits, excluded, strict=True)]
        return Matches(tuple(ids for ids, _ in rows), np.stack([distances for _, distances in rows]))

    def _draw(self, k: int, seed: int, excluded: frozenset[str]) -> tuple[str, ...]:
        gone = set(self._present(tuple(excluded)))
        if k > self._count - len(gone):
            raise ValueError(f"{k} pictures are wanted of the {self._count - len(gone)} that are left; ask for fewer")
        order = _numbers(self._next_row, seed)
        chosen: list[str] = []
        while len(chosen) < k:
            numbers = [number for number, _ in zip(order, range(4 * k), strict=False)]
            if not numbers:
                raise ValueError(
                    f"only {len(chosen)} of {k} pictures could be drawn: the collection changed elsewhere; open it anew"
                )
            found = self._client.query(self.collection, filter=f"row in {numbers}", output_fields=["id", "row"])
            names = {row["row"]: row["id"] for row in found}
            chosen += [names[number] for number in numbers if number in names and names[number] not in gone]
        return tuple(chosen[:k])

    def stats(self) -> Stats:
        settings = {"uri": self.uri or "embedded", "collection": self.collection}
        return Stats(self.back_end, self._count, self.dimension, 0, 0, self.attributes, settings)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with self._change:
            self._client.flush(self.collection)
            if self._content is None:
                self._content = sum(self._sum(page) for page in self._pages(self._fields)) % 2**256
            if self._folder is not None:
                _copy_at_rest(self._folder / ENGINE, directory / ENGINE)
            content = {
                "back_end": self.back_end,
                "dimension": self.dimension,
                "attributes": self.attributes,
                "added": 0,  # Milvus tends to its own segments
                "removed": 0,
                "settings": self.stats().settings,
                "uri": self.uri,
                "collection": self.collection,
                "next_row": self._next_row,
                "count": self._count,
                "content": f"{self._content:064x}",
            }
        (directory / SETTINGS).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def open(cls, directory: Path, mmap: bool = True) -> Self:
        content = json.loads((directory / SETTINGS).read_text())
        folder = None
        if not content["uri"]:
            folder = Path(tempfile.mkdtemp(prefix="recollect-milvus-"))
            shutil.copytree(directory / ENGINE, folder / ENGINE)
        client = _connect(content["uri"] or str(folder / ENGINE if folder else ""))
        if not client.has_collection(content["collection"]):
            raise ValueError(f"the Milvus at {content['uri']} has no collection {content['collection']}; build the index again")
        client.load_collection(content["collection"])
        names, next_row = tuple(content["attributes"]), content["next_row"]
        if content["uri"]:
            next_row = _free_row(client, content["collection"], next_row)
        own, known = str(content["collection"]), content.get("content")
        index = cls(client, own, names, content["dimension"], content["uri"], next_row, known and int(known, 16), folder)
        if index._count != content.get("count", index._count):
            index._content = None  # to be read from what is there
            logger.warning(
                "the collection %s has %d pictures, and this version of the index was saved with %d: it was changed since, or a "
                "change ended with an error",
                *(own, index._count, content["count"]),
            )
        return index


def _connect(uri: str) -> Any:
    try:
        return MilvusClient(uri, token=os.environ.get(TOKEN, ""))
    except MilvusException as error:
        raise ValueError(f"no Milvus answers at {uri} ({error.message}); its token is read from {TOKEN}") from None


def _copy_at_rest(engine: Path, target: Path) -> None:
    """Copy the files of an embedded engine, which merges its segments and builds their indexes on a thread of its own.

    A copy counts when nothing changed while it was made. Indexes of segments stay behind: they are not written at once, and the
    engine builds those that it lacks when a collection is loaded.
    """
    for _ in range(COPIES):
        before = _files(engine)
        try:
            shutil.copytree(engine, target, ignore=shutil.ignore_patterns("LOCK", "indexes"))
        except (shutil.Error, FileNotFoundError):  # a segment was merged away
            pass
        else:
            if _files(engine) == before:
                return
        shutil.rmtree(target, ignore_errors=True)
        time.sleep(0.1)
    raise ValueError(f"the embedded Milvus kept changing its files in {engine} while they were copied; save the index again")


def _files(engine: Path) -> list[tuple[str, int, int]]:
    """The names, sizes and times of change of an engine's files, without the indexes of its segments."""
    found = []
    for folder, folders, names in os.walk(engine):
        folders[:] = [name for name in folders if name != "indexes"]
        for name in names:
            try:
                state = os.stat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            found.append((os.path.join(folder, name), state.st_size, state.st_mtime_ns))
    return sorted(found)


def _free_row(client: Any, collection: str, known: int) -> int:
    """The first number that no row has; rows from `known` on are of changes that were not saved here."""
    pages = client.query_iterator(collection, batch_size=BATCH, filter=f"row >= {known}", output_fields=["row"])
    found = known
    while page := pages.next():
        found = max(found, 1 + max(row["row"] for row in page))
    pages.close()
    return found


def _close(client: Any, folder: Path | None) -> None:
    client.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _matching(query: Vectors, found: Iterable[dict[str, Any]], k: int, gone: frozenset[str]) -> tuple[tuple[str, ...], Vectors]:
    """The ids (k) and exact distances (k,) of one query's hits."""
    kept = [hit for hit in found if hit["id"] not in gone]
    distances = np.full(k, np.inf, np.float32)
    if not kept:
        return ("",) * k, distances
    vectors = np.array([hit["entity"]["vector"] for hit in kept], np.float32)
    near = reranked(query[None], vectors[None], np.arange(len(kept))[None], k)
    width = near.positions.shape[1]
    distances[:width] = near.distances[0]
    return tuple([kept[position]["id"] for position in near.positions[0].tolist()] + [""] * (k - width)), distances


def _numbers(count: int, seed: int) -> Iterator[int]:
    """0..count-1 in an order that the seed determines, drawn as they are asked for."""
    random, seen = np.random.default_rng(seed), set[int]()
    while len(seen) < count:
        for number in random.integers(count, size=64).tolist():
            if number not in seen:
                seen.add(number)
                yield number
