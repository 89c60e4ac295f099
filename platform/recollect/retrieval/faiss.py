"""The default index, on Faiss: all vectors compared up to 50,000 of them, and above that those of the nearest cells.

Above, vectors are in about sqrt(N) cells of k-means (an inverted file), and a query looks into the `nprobe` nearest. How many
that must be depends on the data, so building measures it: the fewest whose recall@3, over members that look for their
neighbours, reaches the target. A search restricted to few rows has to look farther: into more cells, by the root of how many
times fewer rows there are, and into all cells where it would else have found too few. So a filter costs time and not answers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from recollect.retrieval.index import Vectors
from recollect.retrieval.local import Candidates, LocalIndex, Searcher, reranked

FILE = "base.faiss"
FLAT_UP_TO = 50_000
RECALL = 0.99  # what the sample must reach, so that others reach 0.98
SAMPLE = 512  # queries that measure it
SPARE = 8  # see exact.py


class FlatSearcher:
    """All vectors, compared one and all."""

    def __init__(self, index: Any, source: Path | None = None) -> None:
        self.index, self.source = index, source

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def vectors(self) -> Vectors:
        found: Vectors = self.index.reconstruct_n(0, len(self))
        return found

    def settings(self) -> dict[str, Any]:
        return {"kind": "flat"}

    def nearest(self, queries: Vectors, w: int, allowed: NDArray[np.bool_] | None) -> Candidates:
        parameters = None if allowed is None else faiss.SearchParameters(sel=_selector(allowed))
        _, positions = self.index.search(queries, min(w + SPARE, len(self)), params=parameters)
        vectors = self.index.reconstruct_batch(np.maximum(positions, 0).ravel())
        return reranked(queries, vectors.reshape(*positions.shape, -1), positions, w)


class CellSearcher:
    """Vectors in cells of k-means, of which a query sees the nearest `nprobe`."""

    def __init__(self, index: Any, nprobe: int, recall: float, source: Path | None = None) -> None:
        self.index, self.nprobe, self.recall, self.source = index, nprobe, recall, source

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def vectors(self) -> Vectors:
        found: Vectors = self.index.reconstruct_n(0, len(self))
        return found

    def settings(self) -> dict[str, Any]:
        return {"kind": "cells", "nlist": self.index.nlist, "nprobe": self.nprobe, "recall_at_3": self.recall}

    def nearest(self, queries: Vectors, w: int, allowed: NDArray[np.bool_] | None) -> Candidates:
        rows, cells = len(self), self.index.nlist
        matching = rows if allowed is None else int(allowed.sum())
        if not matching:
            return Candidates(np.zeros((len(queries), 0)), np.zeros((len(queries), 0), np.int64))
        w = min(w, matching)
        selector = None if allowed is None else _selector(allowed)
        nprobe = min(cells, int(np.ceil(self.nprobe * np.sqrt(rows / matching))))
        squares, positions = self._probe(queries, w, nprobe, selector)
        short = np.flatnonzero(positions[:, -1] < 0)  # -1s are last
        if len(short) and nprobe < cells:
            squares[short], positions[short] = self._probe(queries[short], w, cells, selector)
        return Candidates(np.sqrt(np.where(positions < 0, np.inf, squares)), positions)

    def _probe(self, queries: Vectors, w: int, nprobe: int, selector: Any) -> tuple[Vectors, NDArray[np.int64]]:
        found: tuple[Vectors, NDArray[np.int64]] = self.index.search(
            queries, w, params=faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        )
        return found


class FaissIndex(LocalIndex):
    """Faiss. Settings: `flat_up_to` (vectors compared one and all), `recall` (that building must reach on its sample above)."""

    back_end = "faiss"

    @classmethod
    def searcher(cls, vectors: Vectors, **options: Any) -> Searcher:
        return _build(vectors, **options)

    @classmethod
    def small_searcher(cls, vectors: Vectors, **options: Any) -> Searcher:
        return _flat(vectors)

    @classmethod
    def save_searcher(cls, searcher: Searcher, directory: Path) -> None:
        assert isinstance(searcher, FlatSearcher | CellSearcher)
        if searcher.source is None:
            faiss.write_index(searcher.index, str(directory / FILE))
            return
        try:  # one that is mapped from a file refers to it; files of indexes never change, so two names for it are as good as two
            os.link(searcher.source, directory / FILE)
        except OSError:
            shutil.copyfile(searcher.source, directory / FILE)

    @classmethod
    def open_searcher(cls, directory: Path, mmap: bool, settings: Mapping[str, Any]) -> Searcher:
        path, flat = directory / FILE, settings["kind"] == "flat"
        flags = 0 if not mmap else faiss.IO_FLAG_MMAP_IFC if flat else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        try:
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise ValueError(f"{path} is no index that Faiss can read: {str(error).rpartition('Error: ')[2]}") from None
        source = path if mmap else None
        return FlatSearcher(index, source) if flat else CellSearcher(index, settings["nprobe"], settings["recall_at_3"], source)


def _build(vectors: Vectors, flat_up_to: int = FLAT_UP_TO, recall: float = RECALL) -> Searcher:
    count, dimension = vectors.shape
    if count <= flat_up_to:
        return _flat(vectors)
    cells = 2 ** round(np.log2(np.sqrt(count)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, cells)
    index.cp.min_points_per_centroid = 1  # Faiss prints a warning below 39, which small tests are
    index.train(vectors)
    index.add(vectors)
    nprobe, reached = _calibrated(index, vectors, recall)
    return CellSearcher(index, nprobe, reached)


def _flat(vectors: Vectors) -> FlatSearcher:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return FlatSearcher(index)


def _calibrated(index: Any, vectors: Vectors, target: float) -> tuple[int, float]:
    """The fewest cells whose recall@3 on a sample of members reaches the target (within an eighth), and their recall."""
    own = np.random.default_rng(0).choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
    k = min(4, len(vectors))  # 3 beside the query itself
    _, truth = faiss.knn(vectors[own], vectors, k)

    def recall(nprobe: int) -> float:
        _, found = index.search(vectors[own], k, params=faiss.SearchParametersIVF(nprobe=nprobe))
        wanted = truth != own[:, None]
        return float(((truth[:, :, None] == found[:, None, :]).any(axis=2) & wanted).sum() / wanted.sum())

    low, high = 0, 1
    while high < index.nlist and recall(high) < target:
        low, high = high, 2 * high
    high = min(high, index.nlist)
    while high - low > max(high // 8, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= target else (middle, high)
    return high, recall(high)


def _selector(allowed: NDArray[np.bool_]) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
