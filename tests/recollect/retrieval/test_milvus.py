"""What holds of an index whose pictures are in a server. The embedded engine is taken for one, by a URI as a server has."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from recollect.retrieval import milvus
from recollect.retrieval.contract import cloud
from recollect.retrieval.directory import Origin, change_index, open_index, open_version, read_manifest, write_index
from recollect.retrieval.index import Index
from recollect.retrieval.milvus import MilvusIndex

ORIGIN = Origin(model="a" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    vectors, ids, attributes = cloud(40)
    index = MilvusIndex.build(vectors, ids, attributes, uri=str(tmp_path / "server.db"), index_type="FLAT")
    write_index(tmp_path / "index", index, ORIGIN)
    return tmp_path / "index"


def content(path: Path) -> str:
    return str(json.loads((path / read_manifest(path).version / "index.json").read_text())["content"])


def test_versions_of_a_server_differ_where_their_content_does(path: Path, tmp_path: Path) -> None:
    first, before = read_manifest(path), content(path)
    assert list(first.files) == ["index.json"]  # the pictures are elsewhere
    vectors, ids, attributes = cloud(6, seed=2)

    def add(index: Index, manifest: object) -> Origin:
        index.add(vectors, ids, attributes)
        return ORIGIN

    def remove(index: Index, manifest: object) -> Origin:
        index.remove([*ids[2:], "0-3"])
        return ORIGIN

    assert change_index(path, lambda index, manifest: ORIGIN).digest == first.digest  # nothing was changed
    assert change_index(path, add).digest != first.digest
    added = content(path)
    assert change_index(path, remove).digest != first.digest
    assert len({before, added, content(path)}) == 3

    old, known, values = cloud(40)  # the same pictures in another order, all at once
    rows = [*(n for n in range(39, -1, -1) if n != 3)]
    names = tuple(values)
    whole = MilvusIndex.build(
        np.concatenate([vectors[:2], old[rows]]),
        [*ids[:2], *(known[n] for n in rows)],
        {name: [*attributes[name][:2], *(values[name][n] for n in rows)] for name in names},
    )
    write_index(tmp_path / "whole", whole, ORIGIN)
    assert content(tmp_path / "whole") == content(path)


@pytest.mark.parametrize("part", ["vector", "id", "attribute"])
def test_the_digest_is_of_ids_vectors_and_attributes(part: str, tmp_path: Path) -> None:
    vectors, ids, _ = cloud(3)
    given = [vectors, ids, {"Male": [0, 1, np.nan]}]
    found = []
    for number in range(2):
        index = MilvusIndex.build(*given)  # type: ignore[arg-type]
        write_index(tmp_path / str(number), index, ORIGIN)
        found.append(content(tmp_path / str(number)))
        if part == "vector":
            given[0] = vectors + np.float32(1e-6) * (np.arange(3) == 1)[:, None].astype(np.float32)
        elif part == "id":
            given[1] = (*ids[:2], "other")
        else:
            given[2] = {"Male": [0, 0, np.nan]}
    assert found[0] != found[1]


def test_after_an_error_what_was_done_stays_and_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors, ids, _ = cloud(5, seed=2)

    def fail(index: Index, manifest: object) -> Origin:
        index.add(vectors, ids)
        raise ValueError("the disk is full")

    before = read_manifest(path)
    with pytest.raises(ValueError, match="the disk is full"):
        change_index(path, fail)
    assert read_manifest(path) == before  # nothing is saved
    with caplog.at_level(logging.WARNING, "recollect"):
        index = open_index(path)
    assert ids[0] in index and len(index) == 45
    assert "has 45 pictures, and this version of the index was saved with 40" in caplog.text
    everything = set(index.ids())

    def more(index: Index, manifest: object) -> Origin:
        index.add(vectors[:2] + 1, ["x", "y"])
        return ORIGIN

    manifest = change_index(path, more)
    caplog.clear()
    opened, _ = open_version(path)
    assert manifest.count == len(opened) == 47 and "saved with" not in caplog.text
    old, known, values = cloud(40)
    more_ids = [*known, *ids, "x", "y"]
    unknown = {name: [*column, *[np.nan] * 7] for name, column in values.items()}
    same = MilvusIndex.build(np.concatenate([old, vectors, vectors[:2] + 1]), more_ids, unknown)
    write_index(path.parent / "same", same, ORIGIN)
    assert content(path) == content(path.parent / "same")  # what was left behind counts
    drawn = [set(opened.draw(47, [seed])[0]) for seed in range(3)]  # no two of them have one number
    assert all(one == everything | {"x", "y"} for one in drawn)


def test_an_embedded_engine_is_copied_when_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It merges segments while it is copied, two or five times here: the third copy counts, and two are not enough."""
    engine = tmp_path / "engine.db"
    (engine / "indexes").mkdir(parents=True)
    (engine / "indexes" / "half.idx").write_bytes(b"")
    (engine / "0.parquet").write_text("0")
    copied, merges = shutil.copytree, iter(range(2))

    def copytree(*place: object, **how: object) -> None:
        copied(*place, **how)  # type: ignore[call-overload]
        if (number := next(merges, None)) is not None:
            (engine / f"{number}.parquet").rename(engine / f"{number + 1}.parquet")

    monkeypatch.setattr(shutil, "copytree", copytree)
    milvus._copy_at_rest(engine, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["2.parquet"]
    merges = iter(range(2, 7))
    monkeypatch.setattr(milvus, "COPIES", 5)
    with pytest.raises(ValueError, match="kept changing"):
        milvus._copy_at_rest(engine, tmp_path / "never")
    assert not (tmp_path / "never").exists()
