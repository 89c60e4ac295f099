"""The test battery that ships for indexes: a back-end inherits `IndexContract` in its test and gets its promises checked.

    class TestMine(IndexContract):
        def make(self, vectors, ids, attributes=None):
            return MyIndex.build(vectors, ids, attributes)

The checks are those of `recollect.retrieval.index`, against brute force in float64 and against the exact index.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from recollect.retrieval.exact import ExactIndex
from recollect.retrieval.index import Index, Matches, Vectors

NAMES = ("Male", "Young")


@dataclass
class Model:
    """The same set as dictionaries, searched by brute force."""

    vectors: dict[str, Vectors] = field(default_factory=dict)
    attributes: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def add(self, vectors: Vectors, ids: Sequence[str], attributes: Mapping[str, Sequence[float]]) -> None:
        """As `Index.add`."""
        for row, id in enumerate(ids):
            self.vectors[id] = vectors[row]
            self.attributes[id] = tuple(attributes[name][row] for name in NAMES)

    def matching(self, where: Mapping[str, int], gone: Sequence[str]) -> dict[str, Vectors]:
        """The pictures that a search may find."""
        wanted = [(NAMES.index(name), value) for name, value in where.items()]
        return {
            id: vector
            for id, vector in self.vectors.items()
            if id not in gone and all(self.attributes[id][column] == value for column, value in wanted)
        }

    def distances(self, query: Vectors, where: Mapping[str, int], gone: Sequence[str]) -> dict[str, float]:
        """Id -> distance of everything that matches."""
        found = self.matching(where, gone).items()
        return {id: float(np.linalg.norm(vector.astype(np.float64) - query.astype(np.float64))) for id, vector in found}


def cloud(count: int, dimension: int = 8, seed: int = 0) -> tuple[Vectors, tuple[str, ...], dict[str, list[float]]]:
    """Vectors in clusters, ids, and attributes of which a tenth are unknown."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, dimension)) * 3
    vectors = (centres[random.integers(5, size=count)] + random.normal(size=(count, dimension))).astype(np.float32)
    ids = tuple(f"{seed}-{number}" for number in range(count))
    return vectors, ids, {name: random.choice([0, 1, np.nan], count, p=[0.45, 0.45, 0.1]).tolist() for name in NAMES}


class IndexContract:
    """Inherit this and implement `make`."""

    recall: ClassVar[float] = 1.0  # of the k nearest that a search must find, over many
    examples: ClassVar[int] = 25  # of each property

    def make(self, vectors: ArrayLike, ids: Sequence[str], attributes: Mapping[str, ArrayLike] | None = None) -> Index:
        """An index of the back-end that is tested."""
        raise NotImplementedError

    def _both(self, count: int = 300, seed: int = 0) -> tuple[Index, Model]:
        vectors, ids, attributes = cloud(count, seed=seed)
        model = Model()
        model.add(vectors, ids, attributes)
        return self.make(vectors, ids, attributes), model

    def _check(
        self,
        found: Matches,
        model: Model,
        queries: Vectors,
        k: int,
        where: Mapping[str, int] | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Every answer is sound, and together they have the recall that is promised."""
        assert len(found.ids) == len(queries) and found.distances.shape == (len(queries), k)
        assert found.distances.dtype == np.float32
        hits = wanted = 0
        for row, query in enumerate(queries):
            gone = exclude[row] if exclude is not None else ()
            truth = model.distances(query, where or {}, gone)
            nearest = sorted(truth.values())[:k]
            pairs = found.of(row)
            assert found.ids[row][len(pairs) :] == ("",) * (k - len(pairs)) and np.isinf(found.distances[row, len(pairs) :]).all()
            assert len(pairs) == len(nearest), "padded although more pictures match"
            assert len({id for id, _ in pairs}) == len(pairs), "an id comes twice"
            assert (np.diff(found.distances[row, : len(pairs)]) >= 0).all(), "not nearest first"
            for id, distance in pairs:
                assert id in truth, f"{id} does not match"
                assert distance == pytest.approx(truth[id], rel=1e-4, abs=1e-3), f"{distance} is not the distance of {id}"
            limit = nearest[-1] + 1e-3 if nearest else 0.0  # ties are as near as each other
            hits += sum(distance <= limit for _, distance in pairs)
            wanted += len(nearest)
        assert hits >= self.recall * wanted, f"found {hits} of {wanted}"

    def test_it_finds_what_brute_force_finds(self) -> None:
        index, model = self._both()
        queries, _, _ = cloud(64, seed=1)
        for where in ({}, {"Male": 1}, {"Male": 0, "Young": 1}):
            self._check(index.search(queries, 5, where), model, queries, 5, where)
        self._check(index.search(torch.from_numpy(queries).double(), 300), model, queries, 300)

    def test_it_agrees_with_the_exact_index(self) -> None:
        vectors, ids, attributes = cloud(300)
        queries, _, _ = cloud(64, seed=1)
        own, exact = self.make(vectors, ids, attributes), ExactIndex.build(vectors, ids, attributes)
        for where in ({}, {"Young": 0}):
            exclude = [ids[:row] for row in range(len(queries))]
            found, truth = own.search(queries, 10, where, exclude), exact.search(queries, 10, where, exclude)
            same = [len(set(a) & set(b)) for a, b in zip(found.ids, truth.ids, strict=True)]
            assert sum(same) >= self.recall * 10 * len(queries)
        assert own.dimension == exact.dimension and own.attributes == exact.attributes and len(own) == len(exact)

    def test_an_answer_does_not_depend_on_the_other_queries(self) -> None:
        index, _ = self._both()
        queries, _, _ = cloud(40, seed=1)
        exclude = [[f"0-{row}", f"0-{row + 1}"] if row % 2 else "" for row in range(40)]
        together = index.search(queries, 4, exclude=exclude)
        for row in (0, 1, 17, 39):
            alone = index.search(queries[row : row + 1], 4, exclude=exclude[row : row + 1])
            assert alone.ids[0] == together.ids[row]
            np.testing.assert_allclose(alone.distances[0], together.distances[row], rtol=1e-5, atol=1e-3)

    def test_a_picture_finds_itself_unless_it_is_excluded(self) -> None:
        vectors, ids, attributes = cloud(60)
        index = self.make(vectors, ids, attributes)
        assert [row[0] for row in index.search(vectors, 1).ids] == list(ids)
        np.testing.assert_allclose(index.search(vectors, 1).distances, 0, atol=1e-3)
        found = index.search(vectors, 59, exclude=ids)
        assert all(set(row) == set(ids) - {own} for row, own in zip(found.ids, ids, strict=True))

    def test_distances_far_from_zero_keep_their_digits(self) -> None:
        vectors, ids, _ = cloud(200)
        index = self.make(vectors + 300, ids)
        found = index.search((vectors + 300)[:64], 2, exclude=ids[:64])
        near = ExactIndex.build(vectors, ids).search(vectors[:64], 2, exclude=ids[:64])
        np.testing.assert_allclose(np.sort(found.distances), np.sort(near.distances), rtol=1e-3, atol=1e-3)

    def test_changes_are_seen_at_once(self) -> None:
        index, model = self._both()
        vectors, ids, attributes = cloud(40, seed=2)
        index.add(vectors, ids, attributes)
        model.add(vectors, ids, attributes)
        removed = [*ids[:5], "0-0", "0-7", "0-299"]
        index.remove(removed)
        for id in removed:
            del model.vectors[id]
        assert len(index) == len(model.vectors) == 332 and set(index.ids()) == set(model.vectors)
        assert ids[6] in index and ids[0] not in index and "" not in index and None not in index
        assert (
            index.lacking([*ids[4:7], ids[4], ids[0], "nobody", ""]) == 3 and index.lacking([]) == index.lacking(index.ids()) == 0
        )
        for where in ({}, {"Male": 1}):
            self._check(index.search(vectors, 6, where), model, vectors, 6, where)
        index.add(vectors[:2] + 1, ids[:2])  # attributes unknown: found, but by no attribute
        assert index.search(vectors[:1] + 1, 1).ids == ((ids[0],),)
        assert ids[0] not in index.search(vectors[:1] + 1, 50, {"Male": 1}).ids[0]
        index.remove(list(index.ids()))
        assert len(index) == 0 and list(index.ids()) == []
        index.add(vectors[:3], ids[:3])
        assert set(index.search(vectors[:1], 3).ids[0]) == set(ids[:3])

    def test_any_history_of_changes(self) -> None:
        grid = st.lists(st.integers(-3, 3), min_size=3, max_size=3)
        value = st.sampled_from([0.0, 1.0, float("nan")])
        row = st.tuples(grid, value, value)
        step = st.one_of(
            st.tuples(st.just("add"), st.lists(row, min_size=1, max_size=6)),
            st.tuples(st.just("remove"), st.integers(1, 5)),
        )

        @settings(max_examples=self.examples, deadline=None)
        @given(st.lists(row, min_size=3, max_size=12), st.lists(step, max_size=4), st.data())
        def run(start: list[Any], steps: list[Any], data: st.DataObject) -> None:
            model = Model()
            index = self._added(None, model, start, "start")
            for number, (verb, what) in enumerate(steps):
                if verb == "add":
                    self._added(index, model, what, str(number))
                else:
                    gone = data.draw(st.permutations(sorted(model.vectors)))[:what]
                    index.remove(gone)
                    for id in gone:
                        del model.vectors[id]
            assert set(index.ids()) == set(model.vectors)
            if model.vectors:
                self._asked(index, model, data)

        run()

    def _added(self, index: Index | None, model: Model, rows: list[Any], name: str) -> Index:
        vectors = np.array([vector for vector, _, _ in rows], np.float32)
        ids = tuple(f"{name}/{number}" for number in range(len(rows)))
        attributes = {NAMES[0]: [one for _, one, _ in rows], NAMES[1]: [two for _, _, two in rows]}
        model.add(vectors, ids, attributes)
        if index is None:
            return self.make(vectors, ids, attributes)
        index.add(vectors, ids, attributes)
        return index

    def _asked(self, index: Index, model: Model, data: st.DataObject) -> None:
        queries = np.array(data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=3)))
        k = data.draw(st.integers(1, len(model.vectors)))
        where = data.draw(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1)))
        some = st.lists(st.sampled_from([*sorted(model.vectors), "gone", ""]), max_size=3)
        exclude = [data.draw(some) for _ in queries]
        found = index.search(queries, k, where, exclude)
        self._check(found, model, queries.astype(np.float32), k, where, exclude)

    @pytest.mark.parametrize("mmap", [True, False])
    def test_what_is_saved_opens_and_answers_alike(self, mmap: bool, tmp_path: Path) -> None:
        index, model = self._both()
        vectors, ids, attributes = cloud(20, seed=2)
        index.add(vectors, ids, attributes)
        model.add(vectors, ids, attributes)
        index.remove(["0-3", ids[0]])
        del model.vectors["0-3"], model.vectors[ids[0]]
        index.save(tmp_path / "one")
        opened = type(index).open(tmp_path / "one", mmap)
        self._same(index, opened, vectors)
        opened.remove([ids[1]])  # what was opened can be changed, saved and opened again; what is on the disk stays
        opened.add(vectors[:1], ["new"], {"Male": [1]})
        opened.save(tmp_path / "two")
        again = type(index).open(tmp_path / "two", mmap)
        self._same(opened, again, vectors)
        assert "new" in again and ids[1] not in again and len(type(index).open(tmp_path / "one")) == len(index)
        assert again.stats().back_end == index.back_end and again.stats().count == len(again)

    def _same(self, one: Index, other: Index, queries: Vectors) -> None:
        assert len(one) == len(other) and set(one.ids()) == set(other.ids())
        assert one.attributes == other.attributes and one.dimension == other.dimension
        for where in ({}, {"Male": 1}):
            first, second = one.search(queries, 5, where), other.search(queries, 5, where)
            np.testing.assert_allclose(first.distances, second.distances, rtol=1e-5, atol=1e-3)
            assert first.ids == second.ids
        assert one.draw(5, [1, 2]) == other.draw(5, [1, 2])

    def test_much_changed_is_saved_whole(self, tmp_path: Path) -> None:
        index, model = self._both()
        gone = [f"0-{number}" for number in range(0, 300, 2)]
        index.remove(gone)
        for id in gone:
            del model.vectors[id]
        index.save(tmp_path / "index")
        opened = type(index).open(tmp_path / "index")
        assert opened.stats().removed == 0 and opened.stats().count == 150
        queries, _, _ = cloud(20, seed=1)
        self._check(opened.search(queries, 5, {"Male": 1}), model, queries, 5, {"Male": 1})

    def test_draws_depend_on_their_seed_and_are_even(self) -> None:
        index, _ = self._both(20)
        seeds = list(range(400))
        exclude = [f"0-{seed % 20}" for seed in seeds]
        drawn = index.draw(3, seeds, exclude)
        assert all(len(set(row)) == 3 and own not in row for row, own in zip(drawn, exclude, strict=True))
        assert index.draw(3, seeds[7:9], exclude[7:9]) == drawn[7:9]
        assert index.draw(3, seeds[39::-1], exclude[39::-1]) == drawn[39::-1]
        counts = [sum(f"0-{number}" in row for row in drawn) for number in range(20)]
        assert sum(counts) == 1200 and min(counts) > 30 and max(counts) < 95  # 60 are expected, with a deviation of 7
        assert set(index.draw(20, [3])[0]) == set(index.ids())
        with pytest.raises(ValueError, match="20 pictures are wanted of the 19 that are left"):
            index.draw(20, [3], ["0-1"])
        with pytest.raises(ValueError, match="smaller than k"):
            index.draw(21, [3])

    def test_threads_search_while_another_changes(self) -> None:
        index, _ = self._both()
        queries, _, _ = cloud(8, seed=1)
        vectors, ids, attributes = cloud(30, seed=2)
        before = index.search(queries, 5)
        stop, errors = threading.Event(), []

        def read() -> None:
            try:
                while not stop.is_set():
                    found = index.search(queries, 5)
                    assert (np.diff(found.distances) >= 0).all() and all("" not in row for row in found.ids)
                    assert all(len(set(row)) == 5 for row in found.ids)
            except BaseException as error:
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(5):
            index.add(vectors, ids, attributes)
            index.remove(ids)
        stop.set()
        for reader in readers:
            reader.join(60)
        assert errors == [] and index.search(queries, 5).ids == before.ids

    def test_wrong_input_is_refused_and_says_what_is_right(self) -> None:
        vectors, ids, attributes = cloud(10)
        bad = vectors.copy()
        bad[3, 2] = np.nan
        for given_ids, given_vectors, given_attributes, says in (
            (ids[:9], vectors, None, "10 vectors and 9 ids"),
            ((*ids[:9], ids[0]), vectors, None, f"{ids[0]}.* comes twice"),
            ((*ids[:9], ""), vectors, None, "not empty"),
            (ids, bad, None, "vector 3 .*finite"),
            (ids, vectors[0], None, r"shape \(N, E\)"),
            ((), vectors[:0], None, "at least one vector"),
            (ids, vectors, {"Male": [1] * 9}, "10 ids"),
            (ids, vectors, {"Male": [2] * 10}, "0, 1, or NaN"),
        ):
            with pytest.raises(ValueError, match=says):
                self.make(given_vectors, given_ids, given_attributes)
        index = self.make(vectors, ids, attributes)
        for call, says in (
            (lambda: index.search(vectors[:, :5], 1), "dimension 5 .*dimension 8"),
            (lambda: index.search(bad, 1), "vector 3 .*finite"),
            (lambda: index.search(vectors, 11), "retrieval set smaller than k: it has 10 pictures"),
            (lambda: index.search(vectors, 0), "at least 1"),
            (lambda: index.search(vectors, 1, {"Mail": 1}), "lacks the attribute 'Mail'; did you mean 'Male'"),
            (lambda: index.search(vectors, 1, {"Male": 2}), "0 or 1"),
            (lambda: index.search(vectors, 1, exclude=ids[:3]), "each of the 10 queries"),
            (lambda: index.search(vectors, 1, exclude="0-1"), "each of the 10 queries"),
            (lambda: index.add(vectors[:1], [ids[4]]), f"{ids[4]}.* is in this index"),
            (lambda: index.add(vectors[:1], ["new"], {"Mail": [1]}), "no attribute 'Mail'"),
            (lambda: index.add(vectors[:1, :3], ["new"]), "dimension 3"),
            (lambda: index.remove([ids[0], "nobody"]), "'nobody'"),
            (lambda: index.remove([ids[0], ids[0]]), "comes twice"),
        ):
            with pytest.raises(ValueError, match=says):
                call()
        assert set(index.ids()) == set(ids) and len(index) == 10
