"""The library: what an index finds, as pictures. It is the `Search` that engine, pipeline and endpoint hand to methods.

Pictures are cut as `data.loader.fixed_batch` cuts them, at the centre and never mirrored, and decoded when somebody finds them;
the set is never in memory.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from recollect.data.store import Store
from recollect.data.transforms import joint_crop, to_unit
from recollect.retrieval.directory import open_version
from recollect.retrieval.index import Index, Matches
from recollect.retrieval.manifest import Origin
from recollect.trainable import Queries

CACHE_BYTES = 64 << 20  # of cut pictures: 5,000 of 64 pixels


class Library:
    """`Library(queries)` are the pictures found (Q, k, 3, size, size), float32 in [-1, 1], nearest first, on the CPU.

    Args:
        index: where to look.
        store: where its pictures are.
        size, short_side: how they are cut, in pixels.
        cache_bytes: how many bytes of cut pictures may stay in memory.

    Safe to call from several threads.
    """

    def __init__(
        self, index: Index, store: Store, size: int, short_side: int | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        if short_side is not None and short_side < size:
            raise ValueError(f"short_side is {short_side}, below the size {size}; give at least {size}, or None")
        self.index, self.store, self.size, self.short_side = index, store, size, short_side
        self.cache_bytes = cache_bytes
        self.origin: Origin | None = None  # what the index was made of, where that is known
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # id -> (3, size, size) uint8
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        index: str | os.PathLike[str],
        size: int,
        short_side: int | None = None,
        *,
        model: str | None = None,
        store: str = "",
        cache_bytes: int = CACHE_BYTES,
    ) -> Library:
        """The library of an index on the disk and its pictures.

        Args:
            index: a local path or `pyarrow.fs` URI.
            model: the digest of the embedder whose vectors will be looked up.
            store: where the pictures are; empty: the store that the index names.

        Raises ValueError when the index belongs to another embedder, and when its store is gone or another one by now.
        """
        opened, manifest = open_version(index, model)
        origin = manifest.origin
        if not (store or origin.store):
            raise ValueError(f"the index at {os.fspath(index)} names no store; say where its pictures are")
        pictures = Store.open(store or origin.store)
        if origin.store_digest and pictures.digest != origin.store_digest:
            raise ValueError(
                f"the index at {os.fspath(index)} is of the store with digest {origin.store_digest}, and {pictures.uri} has "
                f"{pictures.digest}; `recollect index add` takes a store that has grown, `recollect index build` any other"
            )
        library = cls(opened, pictures, size, short_side, cache_bytes)
        library.origin = origin
        return library

    def lacking(self, ids: Iterable[str]) -> int:
        """How many of these pictures the index does not know by their id.

        A picture is kept from finding itself by its id alone (`Queries.exclude`). So where the index is of the very pictures that
        ask, this is 0; where it lacks all of them although it was made of the same data, it knows them by other names (stores
        that share ids get a prefix when they are joined), and each query finds itself.
        """
        return self.index.lacking(ids)

    def __call__(self, queries: Queries) -> Tensor:
        return self.shown(self.find(queries))

    def shown(self, found: Matches) -> Tensor:
        """The pictures of what was found (Q, k, 3, size, size), in its order; nothing may be missing from it."""
        unique = {id: number for number, id in enumerate(dict.fromkeys(id for row in found.ids for id in row))}
        if not unique:
            return torch.zeros(*found.distances.shape, 3, self.size, self.size)
        pictures = to_unit(torch.stack([self._picture(id) for id in unique]))
        rows = torch.tensor([[unique[id] for id in row] for row in found.ids])
        return pictures[rows]

    def find(self, queries: Queries) -> Matches:
        """The ids found and their distances, without pictures; distances of random draws are NaN.

        Raises ValueError for queries with both vectors and seeds or with neither, and where a retrieval set is smaller than `k`.
        """
        if (queries.vectors is None) == (queries.seeds is None):
            raise ValueError("queries have vectors, to look up, or seeds, to draw at random: one of the two")
        if queries.vectors is None:
            assert queries.seeds is not None
            ids = self.index.draw(queries.k, queries.seeds, queries.exclude)
            return Matches(ids, np.full((len(ids), queries.k), np.nan, np.float32))
        found = self.index.search(queries.vectors, queries.k, exclude=queries.exclude)
        if any("" in row for row in found.ids):
            raise ValueError(
                f"a retrieval set smaller than k: it has {len(self.index)} pictures, and {queries.k} beside the excluded ones "
                "are wanted of each query"
            )
        return found

    def pictures(self, ids: Iterable[str]) -> Tensor:
        """These pictures (N, 3, size, size) in [-1, 1]. Raises ValueError for ids that the store lacks."""
        found = [self._picture(id) for id in ids]
        return to_unit(torch.stack(found)) if found else torch.zeros(0, 3, self.size, self.size)

    def _picture(self, id: str) -> Tensor:
        with self._lock:
            if id in self._cache:
                self._cache.move_to_end(id)
                return self._cache[id]
        record = self.store.record(id)
        sample = joint_crop(record, self.size, self.short_side, classes=self.store.domains.classes)
        picture: Tensor = sample.image.as_subclass(Tensor)
        with self._lock:
            self._cache[id] = picture
            while len(self._cache) * picture.numel() > self.cache_bytes:
                self._cache.popitem(last=False)
        return picture
