"""Every back-end keeps the promises of `recollect.retrieval.index`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from recollect.retrieval.contract import IndexContract, cloud
from recollect.retrieval.exact import ExactIndex
from recollect.retrieval.faiss import FaissIndex
from recollect.retrieval.index import Index
from recollect.retrieval.milvus import MilvusIndex

Given = Mapping[str, ArrayLike] | None


class TestExact(IndexContract):
    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Given = None) -> Index:
        return ExactIndex.build(vectors, ids, attributes)


class TestExactInChunks(IndexContract):
    """On the GPU where there is one."""

    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Given = None) -> Index:
        return ExactIndex.build(vectors, ids, attributes, chunk=7, device="cuda" if torch.cuda.is_available() else "cpu")


class TestFaissFlat(IndexContract):
    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Given = None) -> Index:
        return FaissIndex.build(vectors, ids, attributes)


class TestFaissCells(IndexContract):
    recall = 0.9

    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Given = None) -> Index:
        return FaissIndex.build(vectors, ids, attributes, flat_up_to=0)


class TestMilvus(IndexContract):
    examples = 3  # each makes a collection

    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Given = None) -> Index:
        return MilvusIndex.build(vectors, ids, attributes)


def test_cells_are_chosen_by_what_they_find() -> None:
    everything, _, _ = cloud(4300, dimension=16)
    vectors, queries, ids = everything[:4000], everything[4000:], [str(number) for number in range(4000)]
    fewer, more = (FaissIndex.build(vectors, ids, flat_up_to=0, recall=recall) for recall in (0.6, 0.995))
    settings = fewer.stats().settings, more.stats().settings
    assert settings[0]["nlist"] == settings[1]["nlist"] == 64
    assert settings[0]["nprobe"] < settings[1]["nprobe"] <= 64
    assert settings[0]["recall_at_3"] >= 0.6 and settings[1]["recall_at_3"] >= 0.995
    truth = ExactIndex.build(vectors, ids).search(queries, 3).ids
    found = more.search(queries, 3).ids
    assert np.mean([len(set(a) & set(b)) / 3 for a, b in zip(found, truth, strict=True)]) >= 0.98
    assert FaissIndex.build(vectors, ids).stats().settings == {"kind": "flat"}


def test_a_search_among_few_looks_everywhere() -> None:
    vectors, ids, _ = cloud(4000, dimension=16)
    rare = np.zeros(4000)
    rare[[5, 1700, 3999]] = 1
    index = FaissIndex.build(vectors, ids, {"rare": rare}, flat_up_to=0, recall=0.6)
    found = index.search(vectors[:20], 3, {"rare": 1})
    assert all(set(row) == {ids[5], ids[1700], ids[3999]} for row in found.ids)
