"""What every index promises. An index finds, for a vector, the nearest of a set of pictures.

1. Vectors are float32 (N, E); distances are Euclidean. A picture is known by its id, a non-empty string, and is in the set once.
2. `search` answers with the `k` nearest that match, nearest first; ties come in any order. Approximate back-ends may miss a
   near one, and never invent: every distance is that of its id, no id comes twice, and they pad only when fewer than `k`
   pictures match at all.
3. `where` names attributes and the value 0 or 1 that each must have; a picture whose value is unknown never matches.
4. `exclude` gives, for each query, the id or the ids that it must not find. An answer does not depend on the other queries.
5. `add` and `remove` take effect at once. A removed id may be added again.
6. `save` writes into a folder everything that `open` needs to give the same answers; `open(mmap=True)` leaves what is large on
   the disk, where processes share it. `recollect.retrieval.directory` makes versioned, checked directories of it.
7. Any number of threads may search while another one adds or removes; each answer is that of one state.
8. Bad input is a ValueError that says what would have worked, the same in every back-end: it is checked here.

`recollect.testing.IndexContract` enforces these for every back-end that inherits it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recollect.config import did_you_mean

Vectors = NDArray[np.float32]
UNKNOWN = -1  # of an attribute; the others are 0 and 1
LARGEST = 1e15  # squares of larger numbers, summed, may leave float32
SETTINGS = "index.json"  # what each saved index has: its back-end's name and settings


class Matches(NamedTuple):
    """What was found for Q queries, nearest first."""

    ids: tuple[tuple[str, ...], ...]  # Q times k; "" where fewer than k pictures match
    distances: Vectors  # (Q, k) Euclidean, ascending; inf beside ""

    def of(self, query: int) -> list[tuple[str, float]]:
        """The (id, distance) pairs of one query, without padding."""
        pairs = zip(self.ids[query], self.distances[query].tolist(), strict=True)
        return [(id, distance) for id, distance in pairs if id]


class Rows(NamedTuple):
    """Checked rows of an index."""

    vectors: Vectors  # (N, E)
    ids: tuple[str, ...]
    attributes: NDArray[np.int8]  # (N, A): 0, 1 or UNKNOWN


@dataclass(frozen=True)
class Stats:
    """An index in numbers."""

    back_end: str
    count: int  # pictures that can be found
    dimension: int
    added: int  # of them, since the index was last built whole: they are searched one by one
    removed: int  # still there but never found
    attributes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # the back-end's own


class Index(ABC):
    """A set of pictures that can be searched. Back-ends implement the methods with an underscore, on checked input."""

    back_end: ClassVar[str]
    dimension: int  # E
    attributes: tuple[str, ...]  # the names that `where` takes

    @classmethod
    def build(
        cls, vectors: ArrayLike | Tensor, ids: Sequence[str], attributes: Mapping[str, ArrayLike] | None = None, **settings: Any
    ) -> Self:
        """An index of these pictures.

        Args:
            vectors: (N, E), N at least 1.
            ids: N of them.
            attributes: name -> N values 0 or 1, NaN where unknown.
            settings: the back-end's own, by name.

        Raises ValueError for ids that come twice or are empty, another number of ids or values than vectors, and vectors that
        are not finite.
        """
        names = tuple(attributes or {})
        rows = Rows(check_vectors(vectors), tuple(ids), _table(attributes or {}, names, len(ids)))
        if not len(rows.vectors):
            raise ValueError("an index is built of at least one vector, not of none")
        _check_ids(rows.ids, len(rows.vectors))
        return cls._build(rows, names, **settings)

    def add(self, vectors: ArrayLike | Tensor, ids: Sequence[str], attributes: Mapping[str, ArrayLike] | None = None) -> None:
        """Add pictures; attributes that are not given are unknown. Raises ValueError as `build`, and for ids that are there."""
        table = _table(attributes or {}, self.attributes, len(ids))
        rows = Rows(check_vectors(vectors, self.dimension), tuple(ids), table)
        _check_ids(rows.ids, len(rows.vectors))
        if rows.ids:
            self._add(rows)

    def remove(self, ids: Iterable[str]) -> None:
        """Take pictures out. Raises ValueError for ids that are not there, and takes out none then."""
        given = tuple(ids)
        _check_twice(given)
        if given:
            self._remove(given)

    def search(
        self,
        vectors: ArrayLike | Tensor,
        k: int,
        where: Mapping[str, int] | None = None,
        exclude: Sequence[str | Collection[str]] | None = None,
    ) -> Matches:
        """The `k` nearest of each query.

        Args:
            vectors: (Q, E).
            k: how many, at most as many as there are pictures.
            where: attribute -> 0 or 1: only pictures that have all of these.
            exclude: for each query an id, or several, that it must not find; "" and ids that are not there exclude nothing.

        Raises ValueError for another dimension, attributes that the data lacks, and a retrieval set smaller than `k`.
        """
        queries = check_vectors(vectors, self.dimension)
        self._check_k(k)
        excluded = _excluded(exclude, len(queries))
        wanted = self._wanted(where or {})
        if not len(queries):
            return Matches((), np.zeros((0, k), np.float32))
        return self._search(queries, k, wanted, excluded)

    def draw(
        self, k: int, seeds: Sequence[int], exclude: Sequence[str | Collection[str]] | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """For each seed `k` different ids at random, which depend on it and on the set only; never the excluded ones.

        Raises ValueError where fewer than `k` pictures are left.
        """
        self._check_k(k)
        excluded = _excluded(exclude, len(seeds))
        return tuple(self._draw(k, seed, gone) for seed, gone in zip(seeds, excluded, strict=True))

    def _check_k(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least 1")
        if k > len(self):
            raise ValueError(f"a retrieval set smaller than k: it has {len(self)} pictures, and {k} are wanted of each query")

    def _wanted(self, where: Mapping[str, int]) -> dict[int, int]:
        """Column of the attribute table -> value."""
        found = {}
        for name, value in where.items():
            if name not in self.attributes:
                raise ValueError(f"the data lacks the attribute {name!r}{did_you_mean(str(name), self.attributes)}")
            if value not in (0, 1):
                raise ValueError(f"attribute {name!r} is wanted to be {value!r}; it can be 0 or 1")
            found[self.attributes.index(name)] = int(value)
        return found

    @abstractmethod
    def __len__(self) -> int:
        """How many pictures can be found."""

    @abstractmethod
    def __contains__(self, id: object) -> bool:
        """Whether this picture can be found."""

    def lacking(self, ids: Iterable[str]) -> int:
        """How many of these pictures cannot be found; "" is none, and what comes twice counts once."""
        return sum(id not in self for id in set(ids) - {""})

    @abstractmethod
    def ids(self) -> Iterable[str]:
        """The pictures that can be found."""

    @abstractmethod
    def stats(self) -> Stats:
        """This index in numbers."""

    @classmethod
    @abstractmethod
    def _build(cls, rows: Rows, attributes: tuple[str, ...], **settings: Any) -> Self: ...

    @abstractmethod
    def _add(self, rows: Rows) -> None: ...

    @abstractmethod
    def _remove(self, ids: tuple[str, ...]) -> None: ...

    @abstractmethod
    def _search(self, queries: Vectors, k: int, wanted: Mapping[int, int], excluded: Sequence[frozenset[str]]) -> Matches: ...

    @abstractmethod
    def _draw(self, k: int, seed: int, excluded: frozenset[str]) -> tuple[str, ...]: ...

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write this index into an empty folder."""

    @classmethod
    @abstractmethod
    def open(cls, directory: Path, mmap: bool = True) -> Self:
        """The index that `save` wrote; `mmap`: leave what is large on the disk, to read it as it is needed."""


def check_vectors(given: ArrayLike | Tensor, dimension: int | None = None) -> Vectors:
    """`given` as float32 (N, E). Raises ValueError for another shape or dimension, and numbers that are not finite."""
    array = given.detach().float().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
        raise ValueError(f"vectors are numbers of shape (N, E), not {array.dtype} {tuple(array.shape)}")
    if dimension is not None and array.shape[1] != dimension:
        raise ValueError(
            f"vectors of dimension {array.shape[1]} do not fit an index of dimension {dimension}; embed pictures with the model "
            "that the index was built with"
        )
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=np.float32)
    if found.size and not np.abs(found).max() <= LARGEST:  # NaN is not at most anything
        row = int(np.flatnonzero(~(np.abs(found) <= LARGEST).all(axis=1))[0])
        raise ValueError(f"vector {row} has numbers that are not finite, or beyond {LARGEST:g}; leave that picture out")
    return found


def _check_ids(ids: tuple[str, ...], count: int) -> None:
    if len(ids) != count:
        raise ValueError(f"one id a vector: there are {count} vectors and {len(ids)} ids")
    wrong = next((id for id in ids if not isinstance(id, str) or not id), None)
    if wrong is not None:
        raise ValueError(f"ids are strings that are not empty, not {wrong!r}")
    _check_twice(ids)


def _check_twice(ids: tuple[str, ...]) -> None:
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"the id {twice!r} comes twice; a picture is in an index once")


def _table(given: Mapping[str, ArrayLike], names: tuple[str, ...], count: int) -> NDArray[np.int8]:
    """Values (N, A) in the order of `names`; those that are not given are unknown."""
    table = np.full((count, len(names)), UNKNOWN, np.int8)
    for name, values in given.items():
        if name not in names:
            raise ValueError(f"this index knows no attribute {name!r}{did_you_mean(str(name), names)}")
        column = np.asarray(values, dtype=np.float64)
        if column.shape != (count,):
            raise ValueError(f"one value a picture: there are {count} ids, and {name!r} has values of shape {column.shape}")
        known = ~np.isnan(column)
        if not np.isin(column[known], (0, 1)).all():
            raise ValueError(f"values of {name!r} are 0, 1, or NaN where unknown, not {column[known].max():g}")
        table[known, names.index(name)] = column[known]
    return table


def _excluded(given: Sequence[str | Collection[str]] | None, count: int) -> list[frozenset[str]]:
    if given is None:
        return [frozenset()] * count
    if isinstance(given, str) or len(given) != count:
        said = repr(given) if isinstance(given, str) else f"{len(given)} entries"
        raise ValueError(f"exclude has an entry for each of the {count} queries (an id, several, or an empty one), not {said}")
    return [frozenset((item,) if isinstance(item, str) else item) - {""} for item in given]
