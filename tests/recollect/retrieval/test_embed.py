"""From a bundle and a store to an index: what is in it, that it goes on where it was killed, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recollect.bundle import open_bundle
from recollect.config import Data
from recollect.data.loader import Feed, fixed_batch
from recollect.data.shards import Progress, Share, map_here, missing_parts, read_parts, shares, write_part
from recollect.data.store import Store, write_store
from recollect.retrieval.directory import change_index, open_index, open_version
from recollect.retrieval.embed import Embedding, _attributes, add_to_index, build_index, open_embedder
from recollect.retrieval.exact import ExactIndex
from recollect.retrieval.index import Index
from recollect.retrieval.manifest import IndexManifest, Origin, Selection
from tests.recollect.retrieval.embedders import CATALOGUE, DOMAINS, records, write_colours, write_records
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

    def remove(index: Index, manifest: IndexManifest) -> Origin:
        index.remove(["train-0000", "val-10000"])
        return manifest.origin

    change_index(out, remove)
    manifest, added = add_to_index(out, colours)  # all that it was ever made of
    assert (manifest.count, added) == (46, 2)
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


def ids_of(out: Path) -> set[str]:
    return set(open_index(out).ids())


def test_what_is_added_is_chosen_as_the_index_was_unless_it_is_said(colours: Path, tmp_path: Path) -> None:
    store, out = write_records(tmp_path / "store"), tmp_path / "index"
    train, val = ({name: store.ids(split, name) for name in ("warm", "cold")} for split in ("train", "val"))
    built = build_index(colours, store.uri, out, domains=("cold",), limit=5).origin
    assert built.taken() == (Selection(splits=("train",), domains=("cold",), limit=5),)
    first = ids_of(out)
    assert len(first) == 5 and first < set(train["cold"])
    manifest, added = add_to_index(out, colours)
    assert added == 0 and manifest.origin == built.with_selection(built.taken()[0]) and ids_of(out) == first
    manifest, added = add_to_index(out, colours, splits=("val",))
    assert added == 3 and ids_of(out) == first | set(val["cold"])  # of that domain alone
    assert (manifest.origin.splits, manifest.origin.domains, manifest.origin.limit) == (("train", "val"), ("cold",), 5)
    manifest, added = add_to_index(out, colours, domains=("warm",))
    limited = set(Feed(store, Data(domains=("warm",), size=16, limit=5), 1, 1, 0).ids["warm"])
    assert added == 5 and ids_of(out) == first | set(val["cold"]) | limited
    manifest, added = add_to_index(out, colours, domains=("warm",), limit=0)
    assert added == 15 and ids_of(out) == first | set(val["cold"]) | set(train["warm"])
    origin = manifest.origin
    assert [(one.splits, one.domains, one.limit) for one in origin.taken()] == [
        (("train",), ("cold",), 5),
        (("val",), ("cold",), 5),
        (("train",), ("warm",), 5),
        (("train",), ("warm",), None),
    ]
    assert (origin.splits, origin.domains, origin.limit) == (("train", "val"), ("cold", "warm"), None)
    grown = write_records(tmp_path / "grown", train=44)
    before = ids_of(out)
    _, added = add_to_index(out, colours, grown.uri)  # each selection anew: two new warm ones, and the five of the new cold ones
    chosen = set(Feed(grown, Data(domains=("cold",), size=16, limit=5), 1, 1, 0).ids["cold"])
    assert ids_of(out) == before | chosen | set(grown.ids("train", "warm")) and added == len(ids_of(out) - before)
    with pytest.raises(ValueError, match="no split 'tset'"):
        add_to_index(out, colours, splits=("tset",))
    with pytest.raises(ValueError, match="'hot'"):
        add_to_index(out, colours, domains=("hot",))


def test_an_index_holds_pictures_that_the_run_did_not_train_on(tmp_path: Path) -> None:
    everything = [
        replace(record, attributes=record.attributes if number % 4 == 0 else {}) for number, record in enumerate(records(24))
    ]
    write_store(tmp_path / "store", everything, domains=DOMAINS.names, attributes=DOMAINS.attributes)
    store = Store.open(tmp_path / "store")
    run = Data(domains=("warm",), size=16, known=("Male", "Young"))
    assert len(Feed(store, run, 1, 1, 0).ids["warm"]) == 6
    labelled = write_colours(tmp_path / "bundle", known=("Male", "Young"))
    assert build_index(labelled, store.uri, tmp_path / "index").count == 24
    index = open_index(tmp_path / "index")
    found = index.search(np.zeros((1, 8)), 24, {"Young": 1})
    assert len(found.of(0)) == sum(record.attributes.get("Young") == 1 for record in everything if record.attributes)


def test_workers_open_a_remote_bundle_where_it_is(
    colours: Path, pictures: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's copy of it is on the driver's machine alone."""
    (tmp_path / "driver").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "driver"))
    opened: list[str] = []

    def elsewhere(make: Embedding, store: Store, todo: list[Share], work: str, *, workers: int, progress: Progress) -> pa.Table:
        opened.append(make.bundle)
        assert len(list((tmp_path / "driver").glob("recollect-bundle-*"))) == 1
        monkeypatch.setattr(tempfile, "tempdir", None)
        (tmp_path / "driver").rename(tmp_path / "another-machine")
        return map_here(make, store, todo, work, progress)

    monkeypatch.setattr("recollect.cluster.map_shards", elsewhere)
    monkeypatch.setattr("recollect.cluster.connected", lambda address: nullcontext())
    uri = f"fsspec+file://{colours}"
    assert build_index(uri, pictures.uri, tmp_path / "index", workers=2).count == 40 and opened == [uri]


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
    broken = [replace(record, image=b"no picture") if record.id == "train-0003" else record for record in records(8)]
    write_store(tmp_path / "store", broken, domains=DOMAINS.names, attributes=DOMAINS.attributes)
    with pytest.raises(ValueError, match="'train-0003'"):
        build_index(colours, tmp_path / "store", tmp_path / "index")
    shutil.rmtree(tmp_path / "store")
