"""What indexes in this process share: the table of ids and attributes, removals, additions, and how answers are put together.

A local index is a base that never changes, a small set of additions, and a mark for each row that says whether it was removed.
The three make one immutable state; a change makes a new one and puts it in the old one's place, so readers need no lock.
Positions number the rows: first those of the base, then the additions.

Legend: Q queries, E numbers a vector, N rows, w candidates of a query.
"""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recollect.retrieval.index import SETTINGS, UNKNOWN, Index, Matches, Rows, Stats, Vectors

ROWS, ADDED = "rows.parquet", "added.safetensors"
COMPACT = 0.2  # an index with a larger share of added and removed rows is saved as one that was built anew


class Candidates(NamedTuple):
    """The nearest of a set of vectors, by position in it."""

    distances: NDArray[np.floating[Any]]  # (Q, w) Euclidean, ascending; inf where there is none
    positions: NDArray[np.int64]  # (Q, w); -1 where there is none


class Searcher(Protocol):
    """Vectors that can be searched: what a local back-end provides. It never changes."""

    def __len__(self) -> int: ...

    def nearest(self, queries: Vectors, w: int, allowed: NDArray[np.bool_] | None) -> Candidates:
        """The `w` nearest of the allowed rows, fewer where there are not so many."""
        ...

    def vectors(self) -> Vectors:
        """All vectors (N, E), as they were given."""
        ...

    def settings(self) -> dict[str, Any]:
        """What it was made with and what was measured, for people and for `open`."""
        ...


@dataclass(frozen=True)
class State:
    """One state of a local index."""

    base: Searcher
    added: Searcher | None
    ids: tuple[str, ...]  # by position
    positions: dict[str, int]  # of those that can be found
    table: NDArray[np.int8]  # (N, A)
    alive: NDArray[np.bool_]  # (N,)

    @cached_property
    def living(self) -> NDArray[np.int64]:
        """The positions that can be found, ascending."""
        return np.flatnonzero(self.alive)

    def allowed(self, wanted: Mapping[int, int]) -> NDArray[np.bool_] | None:
        """Which rows may be found (N,); None: all."""
        if not wanted and len(self.positions) == len(self.ids):
            return None
        found = self.alive.copy()
        for column, value in wanted.items():
            found &= self.table[:, column] == value
        return found

    def nearest(self, queries: Vectors, w: int, allowed: NDArray[np.bool_] | None) -> Candidates:
        """The `w` nearest of base and additions together."""
        size = len(self.base)
        first = self.base.nearest(queries, w, None if allowed is None else allowed[:size])
        if self.added is None:
            return first
        second = self.added.nearest(queries, w, None if allowed is None else allowed[size:])
        positions = np.where(second.positions < 0, -1, second.positions + size)
        return _ordered(np.hstack([first.distances, second.distances]), np.hstack([first.positions, positions]))


class LocalIndex(Index):
    """An index in this process. Back-ends say how a set of vectors is searched and how it is kept in a file."""

    def __init__(self, state: State, attributes: tuple[str, ...], dimension: int, options: Mapping[str, Any]) -> None:
        self.attributes, self.dimension, self._options = attributes, dimension, dict(options)
        self._state = state
        self._change = threading.Lock()  # one change at a time; readers do not wait

    @classmethod
    @abstractmethod
    def searcher(cls, vectors: Vectors, **options: Any) -> Searcher:
        """The base of an index of these vectors."""

    @classmethod
    @abstractmethod
    def small_searcher(cls, vectors: Vectors, **options: Any) -> Searcher:
        """Additions, which change often: made at once and searched exactly."""

    @classmethod
    @abstractmethod
    def save_searcher(cls, searcher: Searcher, directory: Path) -> None: ...

    @classmethod
    @abstractmethod
    def open_searcher(cls, directory: Path, mmap: bool, settings: Mapping[str, Any]) -> Searcher: ...

    @classmethod
    def _build(cls, rows: Rows, attributes: tuple[str, ...], **settings: Any) -> Self:
        state = State(
            cls.searcher(rows.vectors, **settings),
            None,
            rows.ids,
            {id: position for position, id in enumerate(rows.ids)},
            rows.attributes,
            np.ones(len(rows.ids), np.bool_),
        )
        return cls(state, attributes, rows.vectors.shape[1], settings)

    def __len__(self) -> int:
        return len(self._state.positions)

    def __contains__(self, id: object) -> bool:
        return id in self._state.positions

    def ids(self) -> tuple[str, ...]:
        """The pictures that can be found, in the order in which they came."""
        return tuple(self._state.positions)

    def _add(self, rows: Rows) -> None:
        with self._change:
            old = self._state
            known = next((id for id in rows.ids if id in old.positions), None)
            if known is not None:
                raise ValueError(f"the id {known!r} is in this index; remove it first, or add it under another id")
            vectors = rows.vectors if old.added is None else np.concatenate([old.added.vectors(), rows.vectors])
            start = len(old.ids)
            self._state = replace(
                old,
                added=self.small_searcher(vectors, **self._options),
                ids=old.ids + rows.ids,
                positions=old.positions | {id: start + offset for offset, id in enumerate(rows.ids)},
                table=np.concatenate([old.table, rows.attributes]),
                alive=np.concatenate([old.alive, np.ones(len(rows.ids), np.bool_)]),
            )

    def _remove(self, ids: tuple[str, ...]) -> None:
        with self._change:
            old = self._state
            strange = next((id for id in ids if id not in old.positions), None)
            if strange is not None:
                raise ValueError(f"there is no picture {strange!r} in this index, so it cannot be removed; nothing was")
            gone = [old.positions[id] for id in ids]
            alive = old.alive.copy()
            alive[gone] = False
            positions = old.positions.copy()
            for id in ids:
                del positions[id]
            self._state = replace(old, positions=positions, alive=alive)

    def _search(self, queries: Vectors, k: int, wanted: Mapping[int, int], excluded: Sequence[frozenset[str]]) -> Matches:
        state = self._state
        spare = max(map(len, excluded))
        found = state.nearest(queries, k + spare, state.allowed(wanted))
        if spare:
            found = _without(found, [[state.positions.get(id, -1) for id in gone] for gone in excluded], spare)
        distances = np.full((len(queries), k), np.inf, np.float32)
        width = min(k, found.distances.shape[1])
        distances[:, :width] = found.distances[:, :width]
        names = state.ids
        rows = [[names[position] if position >= 0 else "" for position in row] for row in found.positions[:, :width].tolist()]
        return Matches(tuple(tuple(row + [""] * (k - width)) for row in rows), distances)

    def _draw(self, k: int, seed: int, excluded: frozenset[str]) -> tuple[str, ...]:
        state = self._state
        gone = {state.positions[id] for id in excluded if id in state.positions}
        if k > len(state.living) - len(gone):
            raise ValueError(f"{k} pictures are wanted of the {len(state.living) - len(gone)} that are left; ask for fewer")
        chosen = np.random.default_rng(seed).choice(len(state.living), k + len(gone), replace=False)
        kept = [position for position in state.living[chosen].tolist() if position not in gone]
        return tuple(state.ids[position] for position in kept[:k])

    def stats(self) -> Stats:
        return self._stats(self._state)

    def _stats(self, state: State) -> Stats:
        return Stats(
            self.back_end,
            len(state.positions),
            self.dimension,
            int(state.alive[len(state.base) :].sum()),
            len(state.ids) - len(state.positions),
            self.attributes,
            state.base.settings(),
        )

    def compacted(self) -> Self:
        """An index of the same pictures built anew: nothing added, nothing removed."""
        state = self._state
        if not len(state.living):
            raise ValueError("an index without pictures cannot be built anew; add some first")
        vectors = state.base.vectors()
        if state.added is not None:
            vectors = np.concatenate([vectors, state.added.vectors()])
        ids = tuple(state.ids[position] for position in state.living.tolist())
        return self._build(Rows(vectors[state.living], ids, state.table[state.living]), self.attributes, **self._options)

    def part(self, number: int, parts: int) -> Self:
        """An index of the part `number` of `parts` runs of rows; see `shards.part_of`. Only that part is read."""
        state = self._state
        bounds = [len(state.living) * place // parts for place in (number, number + 1)]
        own = state.living[bounds[0] : bounds[1]]
        first, last, size = int(own[0]), int(own[-1]) + 1, len(state.base)
        vectors = state.base.vectors()[min(first, size) : min(last, size)]  # a view: what is mapped stays on the disk
        if state.added is not None and last > size:
            vectors = np.concatenate([vectors, state.added.vectors()[max(first - size, 0) : last - size]])
        if len(own) < last - first:  # removed rows lie between
            vectors = vectors[own - first]
        ids = tuple(state.ids[position] for position in own.tolist())
        return self._build(Rows(vectors, ids, state.table[own]), self.attributes, **self._options)

    def save(self, directory: Path) -> None:
        state = self._state
        loose = len(state.ids) - len(state.base) + len(state.ids) - len(state.positions)
        if len(state.living) and loose > COMPACT * len(state.living):
            self.compacted().save(directory)
            return
        directory.mkdir(parents=True, exist_ok=True)
        self.save_searcher(state.base, directory)
        if state.added is not None:
            save_file({"vectors": np.ascontiguousarray(state.added.vectors())}, directory / ADDED)
        columns: dict[str, Any] = {"id": list(state.ids), "alive": state.alive}
        for column, name in enumerate(self.attributes):
            values = state.table[:, column]
            columns[f"attribute/{name}"] = pa.array(values, pa.int8(), mask=values == UNKNOWN)
        pq.write_table(pa.table(columns), directory / ROWS, compression="zstd")
        stats = self._stats(state)
        content = {
            "back_end": self.back_end,
            "dimension": self.dimension,
            "attributes": self.attributes,
            "added": stats.added,
            "removed": stats.removed,
            "options": self._options,
            "settings": stats.settings,
        }
        (directory / SETTINGS).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def open(cls, directory: Path, mmap: bool = True) -> Self:
        content = json.loads((directory / SETTINGS).read_text())
        table = pq.read_table(directory / ROWS)
        ids: tuple[str, ...] = tuple(table["id"].to_pylist())
        alive = table["alive"].to_numpy()
        names = tuple(content["attributes"])
        values = [table[f"attribute/{name}"].fill_null(UNKNOWN).to_numpy().astype(np.int8) for name in names]
        added = None
        if (directory / ADDED).exists():
            added = cls.small_searcher(load_file(directory / ADDED)["vectors"], **content["options"])
        state = State(
            cls.open_searcher(directory, mmap, content["settings"]),
            added,
            ids,
            {ids[position]: position for position in np.flatnonzero(alive).tolist()},
            np.stack(values, axis=1) if values else np.zeros((len(ids), 0), np.int8),
            alive,
        )
        return cls(state, names, content["dimension"], content["options"])


def reranked(queries: Vectors, vectors: Vectors, positions: NDArray[np.int64], w: int) -> Candidates:
    """Candidates (Q, any) whose vectors (Q, any, E) are given, by their exact distances; the `w` nearest.

    A matrix product finds candidates fast and loses digits where distances are small beside the vectors' lengths; and what it
    loses depends on the batch. Differences in float64 do not.
    """
    apart = vectors.astype(np.float64) - queries[:, None]
    distances = np.sqrt(np.einsum("qwe,qwe->qw", apart, apart))
    distances[positions < 0] = np.inf
    found = _ordered(distances, positions)
    return Candidates(found.distances[:, :w], found.positions[:, :w])


def _ordered(distances: NDArray[np.floating[Any]], positions: NDArray[np.int64]) -> Candidates:
    """Nearest first; ties by position."""
    order = np.lexsort((positions, distances))
    return Candidates(np.take_along_axis(distances, order, 1), np.take_along_axis(positions, order, 1))


def _without(found: Candidates, gone: Sequence[Sequence[int]], width: int) -> Candidates:
    """`found` without each query's own excluded positions; those behind move up."""
    excluded = np.full((len(gone), width), -1, np.int64)
    for row, own in enumerate(gone):
        excluded[row, : len(own)] = own
    hit = (found.positions[:, :, None] == excluded[:, None, :]).any(axis=2)
    order = np.argsort(hit, axis=1, kind="stable")
    distances = np.where(hit, np.inf, found.distances)
    positions = np.where(hit, -1, found.positions)
    return Candidates(np.take_along_axis(distances, order, 1), np.take_along_axis(positions, order, 1))
