"""What parts of an index find together is what the whole finds, whatever was added to and removed from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from recollect.retrieval.directory import Origin, open_index, write_index
from recollect.retrieval.exact import ExactIndex
from recollect.retrieval.faiss import FaissIndex
from recollect.retrieval.shards import merged, part_of


def index_of(kind: Any, seed: int, count: int = 60, added: int = 0, removed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count + added, 5)).astype(np.float32)
    ids, flags = [f"p{number}" for number in range(count + added)], random.integers(0, 2, count + added)
    index = kind.build(vectors[:count], ids[:count], {"flag": flags[:count]})
    if added:
        index.add(vectors[count:], ids[count:], {"flag": flags[count:]})
    index.remove(random.choice(ids, removed, replace=False).tolist())
    return index


@settings(max_examples=40, deadline=None)
@given(
    seed=some.integers(0, 10_000),
    parts=some.integers(1, 7),
    k=some.integers(1, 9),
    added=some.integers(0, 20),
    removed=some.integers(0, 30),
    filtered=some.booleans(),
    faiss=some.booleans(),
)
def test_parts_find_what_the_whole_finds(
    seed: int, parts: int, k: int, added: int, removed: int, filtered: bool, faiss: bool
) -> None:
    whole = index_of(FaissIndex if faiss else ExactIndex, seed, added=added, removed=removed)
    shards = [part_of(whole, number, parts) for number in range(parts)]
    assert sorted(id for shard in shards for id in shard.ids()) == sorted(whole.ids())
    queries = np.random.default_rng(seed + 1).normal(size=(3, 5)).astype(np.float32)
    where = {"flag": 1} if filtered else {}
    exclude = [next(iter(whole.ids())), "", "nobody"]
    found = merged([shard.search(queries, min(k, len(shard)), where, exclude) for shard in shards], k)
    expected = whole.search(queries, k, where, exclude)
    for query in range(3):
        assert found.of(query) == expected.of(query)


def test_a_part_of_a_mapped_index_stays_on_the_disk(tmp_path: Path) -> None:
    write_index(tmp_path / "index", index_of(ExactIndex, 0), Origin(model="x"))
    part = part_of(open_index(tmp_path / "index"), 1, 3)
    vectors = part._state.base.vectors()
    assert len(vectors) == 20 and not vectors.flags.owndata  # a view of what safetensors maps


def test_there_are_at_most_as_many_parts_as_pictures() -> None:
    with pytest.raises(ValueError, match="1 to 4 parts"):
        part_of(index_of(ExactIndex, 0, count=4), 4, 5)
