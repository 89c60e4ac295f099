"""A part of an index that follows its manifest, and answers of one version, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recollect.retrieval.directory import change_index, open_index
from serve.metrics import Meter, page
from serve.retrieval import GONE, Hit, Part, RemoteIndex
from tests.serve.guided import Guided, write_guided

QUERIES = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
ALL: tuple[frozenset[str], ...] = (frozenset(),) * 3


@pytest.fixture
def guided(tmp_path: Path) -> Guided:
    return write_guided(tmp_path / "guided")


def removed(guided: Guided, id: str, model: str = "") -> str:
    """A version without a picture, and perhaps of another embedder; its digest."""

    def change(index: Any, manifest: Any) -> Any:
        index.remove([id])
        return manifest.origin.model_copy(update={"model": model} if model else {})

    return change_index(guided.index, change).digest


def nearest(part: Part, version: str = "") -> str | list[str]:
    found = part.search(QUERIES, 1, {}, ALL, version)
    return found if isinstance(found, str) else [row[0] for row in found.matches.ids]


def test_a_new_version_is_taken_and_the_one_before_stays_open(guided: Guided) -> None:
    meter = Meter()
    part = Part(str(guided.index), meter=meter)
    assert not part.refresh()
    first, found = part.current.digest, nearest(part)
    second = removed(guided, found[0])
    assert nearest(part) == found  # nobody looked yet
    assert part.refresh() and part.current.digest == second
    assert nearest(part, first) == found and found[0] not in nearest(part)
    assert nearest(part, second) == nearest(part)
    third = removed(guided, str(nearest(part)[1]))
    assert part.refresh() and part.current.digest == third and nearest(part, first) == GONE
    text = page([meter.collect("Retriever", "r")]).decode()
    assert 'recollect_index_swaps_total{deployment="Retriever",outcome="taken",replica="r"} 2.0' in text
    assert 'version="v000003"' in text and 'version="v000001"' not in text


def test_what_does_not_belong_is_left(guided: Guided, caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter()
    part = Part(str(guided.index), meter=meter)
    found, first = nearest(part), part.current.digest
    removed(guided, found[0], model="e" * 64)
    assert not part.refresh() and not part.refresh()
    assert part.current.digest == first and nearest(part) == found
    assert caplog.text.count("belongs to another embedder") == 1  # told once, not at every look
    part_file = next(guided.index.glob("v*/manifest.json"))
    part_file.write_text("{")
    (guided.index / "CURRENT").write_text("../../etc\n")
    assert not part.refresh() and nearest(part) == found


def test_a_store_of_other_pictures_is_refused(guided: Guided, tmp_path: Path) -> None:
    other = write_guided(tmp_path / "other", count=41)
    (guided.store).rename(tmp_path / "gone")
    (other.store).rename(guided.store)
    with pytest.raises(ValueError, match="is of the store with digest"):
        Part(str(guided.index))


class Handle:
    """A part, called as a deployment's handle is."""

    def __init__(self, part: Part) -> None:
        self.part = part

    @property
    def search(self) -> Any:
        return self

    async def remote(self, *question: Any) -> Hit | str | ValueError:
        try:
            return self.part.search(*question)
        except ValueError as error:
            return error


def test_parts_answer_from_one_version_while_a_new_one_is_taken(guided: Guided) -> None:
    parts = [Part(str(guided.index), number, 2) for number in range(2)]
    before = open_index(guided.index).search(QUERIES, 5)
    removed(guided, before.ids[0][0])
    after = open_index(guided.index).search(QUERIES, 5)
    assert before.ids != after.ids

    async def found() -> Any:
        index = RemoteIndex([Handle(part) for part in parts], asyncio.get_running_loop())  # type: ignore[misc]
        matches = await index.searched(QUERIES, 5, {}, ALL)
        return matches.ids, index.version

    old, new = parts[0].current.digest, ""
    for number, part in enumerate(parts):
        assert part.refresh()
        new = part.current.digest
        assert asyncio.run(found()) == ((before.ids, old) if number == 0 else (after.ids, new))


def test_a_wrong_search_is_a_value_error(guided: Guided) -> None:
    async def ask() -> None:
        index = RemoteIndex([Handle(Part(str(guided.index)))], asyncio.get_running_loop())  # type: ignore[list-item]
        await index.searched(QUERIES, 5, {"Mal": 1}, ALL)

    with pytest.raises(ValueError, match="did you mean 'Male'"):
        asyncio.run(ask())
