"""What an index finds, as pictures."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from recollect.bundle import open_bundle
from recollect.data.join import join_stores
from recollect.data.loader import fixed_batch
from recollect.data.store import Store
from recollect.retrieval.directory import open_version
from recollect.retrieval.embed import build_index, open_embedder
from recollect.retrieval.library import Library
from recollect.trainable import Queries, Search
from tests.recollect.retrieval.embedders import write_records


@pytest.fixture(scope="module")
def index(colours: Path, pictures: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("library") / "index"
    build_index(colours, pictures.uri, out)
    return out


@pytest.fixture(scope="module")
def vectors(colours: Path, pictures: Store) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = open_embedder(open_bundle(colours)).embed(fixed_batch(pictures, IDS, 16, 16).images)
    return found


IDS = tuple(f"train-{number:04d}" for number in range(6))


def test_pictures_come_nearest_first_and_cut_as_a_fixed_batch(index: Path, pictures: Store, vectors: torch.Tensor) -> None:
    library: Search = Library.open(index, size=12, short_side=18)
    assert isinstance(library, Library)
    queries = Queries(3, IDS, vectors)
    found = library(queries)
    assert found.shape == (6, 3, 3, 12, 12) and found.dtype == torch.float32 and found.abs().max() <= 1
    matches = library.find(queries)
    assert all(own not in row for own, row in zip(IDS, matches.ids, strict=True))
    assert (np.diff(matches.distances) >= 0).all()
    for row, ids in enumerate(matches.ids):
        torch.testing.assert_close(found[row], fixed_batch(pictures, ids, 12, 12, 18).images, rtol=0, atol=0)
    itself = library.find(Queries(1, ("",) * 6, vectors))
    assert tuple(row[0] for row in itself.ids) == IDS
    torch.testing.assert_close(library.pictures(IDS), fixed_batch(pictures, IDS, 12, 12, 18).images, rtol=0, atol=0)
    assert library(Queries(2, (), vectors[:0])).shape == (0, 2, 3, 12, 12)


def test_draws_depend_on_their_seeds_only_and_never_are_the_query(index: Path) -> None:
    library = Library.open(index, size=16)
    queries = Queries(4, IDS, seeds=tuple(range(6)))
    found = library.find(queries)
    assert all(own not in row and len(set(row)) == 4 for own, row in zip(IDS, found.ids, strict=True))
    assert np.isnan(found.distances).all() and len(set(found.ids)) == 6
    assert library.find(Queries(4, IDS[2:4], seeds=(2, 3))).ids == found.ids[2:4]
    pictures = library(queries)
    assert pictures.shape == (6, 4, 3, 16, 16)
    torch.testing.assert_close(pictures[3], library.pictures(found.ids[3]), rtol=0, atol=0)
    for seed in range(200):  # 40 pictures, 39 of which may come
        assert "train-0007" not in library.find(Queries(39, ("train-0007",), seeds=(seed,))).ids[0]


def test_a_retrieval_set_smaller_than_r_is_refused(index: Path, vectors: torch.Tensor) -> None:
    library = Library.open(index, size=16)
    assert library(Queries(39, IDS[:1], vectors[:1])).shape[1] == 39
    for queries in (
        Queries(40, IDS[:1], vectors[:1]),
        Queries(41, ("",), vectors[:1]),
        Queries(41, ("",), seeds=(1,)),
    ):
        with pytest.raises(ValueError, match="a retrieval set smaller than k: it has 40 pictures"):
            library(queries)
    with pytest.raises(ValueError, match="40 pictures are wanted of the 39 that are left"):
        library(Queries(40, IDS[:1], seeds=(1,)))
    for queries in (Queries(1, IDS), Queries(1, IDS, vectors, tuple(range(6)))):
        with pytest.raises(ValueError, match="one of the two"):
            library(queries)


def test_decoded_are_only_the_pictures_found_and_few_stay_in_memory(index: Path, pictures: Store, vectors: torch.Tensor) -> None:
    read: list[str] = []

    class Watched(Store):
        def record(self, id: str):  # type: ignore[no-untyped-def]
            read.append(id)
            return super().record(id)

    store = Watched.open(pictures.uri)
    library = Library(open_version(index)[0], store, 16, cache_bytes=5 * 3 * 16 * 16)
    found = library.find(Queries(3, IDS, vectors))
    unique = {id for row in found.ids for id in row}
    library(Queries(3, IDS, vectors))
    assert sorted(read) == sorted(unique) and len(unique) < 18
    assert len(library._cache) == 5
    last = list(library._cache)
    library.pictures(last)
    assert len(read) == len(unique)  # they were still there
    library.pictures([next(id for id in sorted(unique) if id not in last)])
    assert len(read) == len(unique) + 1


def test_threads_share_a_library(index: Path, vectors: torch.Tensor) -> None:
    library = Library.open(index, size=16)
    library.cache_bytes = 4 * 3 * 16 * 16
    expected, wrong = library(Queries(5, IDS, vectors)), []

    def ask() -> None:
        for _ in range(10):
            if not torch.equal(library(Queries(5, IDS, vectors)), expected):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_an_embedder_in_double_precision_has_the_same_index(index: Path, colours: Path, vectors: torch.Tensor) -> None:
    model = open_embedder(open_bundle(colours)).double()
    library = Library.open(index, 16, model=model.embedding_digest())
    with torch.inference_mode():
        queries = model.embed(library.pictures(IDS).double())
    assert tuple(row[0] for row in library.find(Queries(1, ("",) * 6, queries)).ids) == IDS


def test_a_library_says_how_many_of_the_pictures_that_ask_it_does_not_know(index: Path, pictures: Store, tmp_path: Path) -> None:
    library = Library.open(index, 16)
    training = [id for name in ("warm", "cold") for id in pictures.ids("train", name)]
    assert library.lacking(training) == 0 and library.lacking([*training[:3], "val-10000", "val-10000"]) == 1
    write_records(tmp_path / "more", train=40)
    join_stores([pictures.uri, tmp_path / "more"], tmp_path / "both")  # the stores share ids, which get a prefix
    joined = Store.open(tmp_path / "both")
    ids = [id for name in ("warm", "cold") for id in joined.ids("train", name)]
    assert len(ids) == 80 and library.lacking(ids) == 80
    assert library.origin is not None and library.origin.splits == ("train",)


def test_a_library_of_another_store_or_model_is_refused(index: Path, tmp_path: Path) -> None:
    other = write_records(tmp_path / "other", train=20)
    with pytest.raises(ValueError, match=f"of the store with digest .*{other.digest}.*`recollect index add`"):
        Library.open(index, 16, store=other.uri)
    with pytest.raises(ValueError, match="belongs to another embedder"):
        Library.open(index, 16, model="0" * 64)
    with pytest.raises(ValueError, match="short_side is 8, below the size 16"):
        Library.open(index, 16, 8)
