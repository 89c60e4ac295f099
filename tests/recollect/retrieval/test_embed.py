"""From a bundle and a store to an index: what is in it, that it goes on where it was killed, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recollect.bundle import open_bundle
from recollect.config import Data
from recollect.data.loader import Feed, fixed_batch
from recollect.data.shards import map_here, missing_parts, read_parts, shares, write_part
from recollect.data.store import Store
from recollect.retrieval.directory import open_index, open_version
from recollect.retrieval.embed import _attributes, add_to_index, build_index, open_embedder
from recollect.retrieval.exact import ExactIndex
from tests.recollect.retrieval.embedders import CATALOGUE, records, write_colours, write_records
from tests.serve.translators import write_bundle

ROOT = Path(__file__).parents[3]


def test_an_index_holds_the_pictures_of_its_splits(colours: Path, pictures: Store, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    out = tmp_path / "index"
    manifest = build_index(colours, pictures.uri, out, progress=lambda *numbers: said.append(numbers))
    ids = [id for domain in ("warm", "cold") for id in pictures.ids("train", domain)]
    index = open_index(out, open_embedder(open_bundle(colours)).embedding_digest())
    assert set(index.ids()) == set(ids) and manifest.count == 40 and manifest.back_end == "faiss"
    assert list(index.ids()) == sorted(ids)  # as they are in the store
    assert said[0] == (0, 40) and said[-1] == (40, 40) and len(said) > 2
    assert manifest.origin.store == str(Path(pictures.uri).absolute()) and manifest.origin.store_digest == pictures.digest
    batch = fixed_batch(pictures, ids, 16, 16)
    with torch.inference_mode():
        vectors = open_embedder(open_bundle(colours)).embed(batch.images)
    found = index.search(vectors, 1)
    assert [row[0] for row in found.ids] == ids and found.distances.max() < 1e-4
    assert batch.attributes is not None
    truth = ExactIndex.build(vectors, ids, dict(zip(("Male", "Young"), batch.attributes.T.numpy(), strict=True)))
    for where in ({"Male": 1}, {"Young": 1, "Male": 0}):
        assert index.search(vectors, 3, where).ids == truth.search(vectors, 3, where).ids
    assert sorted(item.name for item in tmp_path.iterdir()) == ["index"]  # the parts are gone


def test_a_selection(colours: Path, pictures: Store, tmp_path: Path) -> None:
    both = build_index(colours, pictures.uri, tmp_path / "both", splits=("val", "train"), domains=("cold",), backend="exact")
    assert (both.count, both.back_end, both.origin.domains) == (23, "exact", ("cold",))
    few = build_index(colours, pictures.uri, tmp_path / "few", limit=5)
    trained = Feed(pictures, Data(domains=("warm", "cold"), size=16, limit=5), 1, 1, seed=3).ids
    assert few.count == 10 and set(open_index(tmp_path / "few").ids()) == {*trained["warm"], *trained["cold"]}


def test_what_cannot_be_built_is_refused_before_anything_is_embedded(colours: Path, pictures: Store, tmp_path: Path) -> None:
    out = tmp_path / "index"
    for arguments, says in (
        ({"splits": ("tset",)}, "no split 'tset'; did you mean 'test'"),
        ({"splits": ("test",)}, "no picture in test of warm, cold"),
        ({"domains": ("hot",)}, "'hot'"),
        ({"backend": "fais"}, "did you mean 'faiss'"),
        ({"limit": 0}, "data.limit is 0"),
    ):
        with pytest.raises(ValueError, match=says):
            build_index(colours, pictures.uri, out, **arguments)
    with pytest.raises(ValueError, match="holds 'tint', which does not embed pictures"):
        build_index(write_bundle(tmp_path / "b"), pictures.uri, out)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["b"]


def test_pictures_are_added_once(colours: Path, tmp_path: Path) -> None:
    store = write_records(tmp_path / "store")
    out = tmp_path / "index"
    build_index(colours, store.uri, out)
    manifest, added = add_to_index(out, colours, splits=("val",))
    assert (manifest.count, added, manifest.added) == (46, 6, 6) and manifest.origin.splits == ("train", "val")
    manifest, added = add_to_index(out, colours, splits=("train", "val"))
    assert (manifest.count, added) == (46, 0)
    grown = write_records(tmp_path / "grown", train=44)
    manifest, added = add_to_index(out, colours, grown.uri)
    assert (manifest.count, added, manifest.origin.store_digest) == (50, 4, grown.digest)
    index, _ = open_version(out)
    batch = fixed_batch(grown, ["train-0041", "val-10002"], 16, 16)
    with torch.inference_mode():
        vectors = open_embedder(open_bundle(colours)).embed(batch.images)
    assert [row[0] for row in index.search(vectors, 1).ids] == ["train-0041", "val-10002"]
    found = index.search(vectors, 5, {"Young": 1}).ids
    assert all(grown.record(id).attributes["Young"] == 1 for row in found for id in row)  # type: ignore[index]
    other = write_records(tmp_path / "other", train=10)
    with pytest.raises(ValueError, match="lacks 'train-00.*holds all of its pictures"):
        add_to_index(out, colours, other.uri)
    with pytest.raises(ValueError, match="belongs to another embedder"):
        add_to_index(out, write_colours(tmp_path / "second", seed=1), splits=("val",))


def test_unknown_attributes_are_found_by_none() -> None:
    table = pa.table({"attributes": pa.array([[("Male", 1)], [], [("Male", 0), ("Young", 1)]], pa.map_(pa.string(), pa.int8()))})

    class Named:
        domains = type("D", (), {"attributes": ("Male", "Young")})

    found = _attributes(table, Named())  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["Male"], [1, np.nan, 0])
    np.testing.assert_array_equal(found["Young"], [np.nan, np.nan, 1])


def test_shares_are_the_shards_of_what_is_wanted(pictures: Store, tmp_path: Path) -> None:
    ids = [*pictures.ids("train", "cold"), "val-10001"]
    todo = shares(pictures, ids)
    assert [len(share.ids) for share in todo] == [8, 8, 5] and {id for share in todo for id in share.ids} == set(ids)
    assert all(share.part.startswith(shard.file[:22]) for share, shard in zip(todo, pictures.manifest.shards, strict=True))
    fewer = shares(pictures, ids[1:])
    assert [a.part == b.part for a, b in zip(todo, fewer, strict=True)] == [False, True, True]  # other pictures, another part
    with pytest.raises(ValueError, match="no picture 'nobody'"):
        shares(pictures, ["nobody"])


def test_parts_are_computed_once(pictures: Store, tmp_path: Path) -> None:
    todo = shares(pictures, pictures.ids("train", "warm"))
    calls: list[tuple[str, ...]] = []

    def make(store: Store) -> object:
        def widths(ids: tuple[str, ...]) -> pa.Table:
            calls.append(ids)
            return pa.table({"id": list(ids), "width": [store.record(id).width for id in ids]})

        return widths

    write_part(make(pictures), todo[1], tmp_path)  # type: ignore[arg-type]
    (tmp_path / f".{todo[0].part}-half").write_bytes(b"PAR1")  # of somebody who was killed
    assert missing_parts(todo, tmp_path) == [todo[0], todo[2]]
    with pytest.raises(ValueError, match="one that all workers share"):
        read_parts(todo, tmp_path)
    table = map_here(make, pictures, todo, tmp_path)  # type: ignore[arg-type]
    assert table["id"].to_pylist() == list(pictures.ids("train", "warm")) and set(table["width"].to_pylist()) == {24}
    assert calls == [todo[1].ids, todo[0].ids, todo[2].ids]
    assert map_here(make, pictures, todo, f"file://{tmp_path}").equals(table) and len(calls) == 3  # type: ignore[arg-type]


BUILD = """
import sys, time
import tests.recollect.retrieval.embedders as embedders
from recollect.retrieval.embed import build_index, open_embedder

embed = embedders.Colours.embed
def slowly(self, images):
    time.sleep(float(sys.argv[4]))
    print("embedded", len(images), flush=True)
    return embed(self, images)
embedders.Colours.embed = slowly
build_index(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def build(colours: Path, store: Store, out: Path, delay: float) -> subprocess.Popen[str]:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", "OMP_NUM_THREADS": "1", "RECOLLECT_CATALOGUE": CATALOGUE}
    arguments = [str(colours), store.uri, str(out), str(delay)]
    return subprocess.Popen([sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE, text=True, env=known)


def test_a_build_that_is_killed_goes_on(colours: Path, pictures: Store, tmp_path: Path) -> None:
    killed = build(colours, pictures, tmp_path / "index", 1.0)
    assert killed.stdout is not None
    assert [killed.stdout.readline() for _ in range(2)] == ["embedded 16\n"] * 2  # so the first part is there
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    (parts,) = tmp_path.iterdir()
    assert parts.name.startswith("index.parts-") and len(list(parts.glob("*.parquet"))) == 2
    again = build(colours, pictures, tmp_path / "index", 0.0)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and output == "embedded 8\n"  # and nothing that was there
    build_index(colours, pictures.uri, tmp_path / "whole")
    one, other = open_index(tmp_path / "index"), open_index(tmp_path / "whole")
    queries = np.random.default_rng(0).normal(size=(10, 8))
    assert one.search(queries, 5).ids == other.search(queries, 5).ids and not parts.exists()


def test_a_picture_that_cannot_be_decoded_is_named(colours: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from recollect.data.store import write_store
    from tests.recollect.retrieval.embedders import DOMAINS

    broken = [replace(record, image=b"no picture") if record.id == "train-0003" else record for record in records(8)]
    write_store(tmp_path / "store", broken, domains=DOMAINS.names, attributes=DOMAINS.attributes)
    with pytest.raises(ValueError, match="'train-0003'"):
        build_index(colours, tmp_path / "store", tmp_path / "index")
    shutil.rmtree(tmp_path / "store")
