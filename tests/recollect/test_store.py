"""The image store: round trips on several filesystems, refusals, and that half or altered stores are found out."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

import recollect.data.store as module
from recollect.data.schema import Box, Record
from recollect.data.store import ROWS_PER_GROUP, Manifest, Store, StoreWriter, write_store

NAMES: dict[str, Any] = {
    "domains": ("day", "night"),
    "classes": ("background", "car", "person"),
    "attributes": ("wet",),
    "regions": ("sky", "road"),
}


def png(colour: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size, colour).save(sink, "PNG")
    return sink.getvalue()


def record(index: int, domain: str = "day", split: str = "train", **changes: Any) -> Record:
    plain = Record(
        id=f"{domain}/{index}",
        image=png(index),
        domain=domain,
        width=12,
        height=8,
        split=split,
        boxes=(Box("car", 0, 0.5, 12, 8), Box("person", 1, 1, 2, 2))[: index % 3],
        attributes={"wet": index % 2},
        source=f"seed {index}",
        scene=f"scene {index}",
        mode=index % 4,
        regions=png(index % 2, "L"),
    )
    return replace(plain, **changes)


def both(count: int = 70) -> list[Record]:
    return [record(index, domain) for index in range(count) for domain in NAMES["domains"]]


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.FileSystem]:
    """Arrow's own in-memory filesystem. `mock://` makes a new, empty one on every call, so both sides share this one."""
    filesystem, _ = fs.FileSystem.from_uri("mock:///")
    monkeypatch.setattr(module, "filesystem_of", lambda uri: (filesystem, str(uri).removeprefix("mock://").strip("/")))
    yield filesystem


def check_round_trip(uri: str | Path) -> None:
    records = [*both(), record(900, "day", "val"), record(901, "night", "test", boxes=None, scene=None, mode=None, regions=None)]
    manifest = write_store(uri, iter(records), **NAMES, source="a test", rows_per_shard=50)
    store = Store.open(uri, verify=True)
    assert store.manifest == manifest and store.digest == manifest.digest and len(store) == len(records)
    assert [shard.rows for shard in manifest.shards] == [50, 50, 42]
    assert manifest.counts == {"train": {"day": 70, "night": 70}, "val": {"day": 1, "night": 0}, "test": {"day": 0, "night": 1}}
    assert manifest.annotated and manifest.truth and manifest.source == "a test"
    assert store.domains.names == NAMES["domains"] and store.domains.regions == NAMES["regions"]
    assert store.ids("train", "night") == tuple(item.id for item in records if item.domain == "night" and item.split == "train")
    assert store.ids("val", "night") == ()
    shuffled = random.Random(0).sample(records, len(records))
    assert store.records(item.id for item in shuffled) == tuple(shuffled)
    assert store.scene("scene 3", "night") == ("night/3",) and store.scene("scene 901", "night") == ()


def test_round_trip_local(tmp_path: Path) -> None:
    check_round_trip(tmp_path / "deep" / "store")


def test_round_trip_file_uri(tmp_path: Path) -> None:
    check_round_trip((tmp_path / "store").as_uri())


def test_round_trip_in_memory(mock: fs.FileSystem) -> None:
    check_round_trip("mock:///bucket/store")
    assert mock.get_file_info("bucket/store/manifest.json").type == fs.FileType.File


box = st.tuples(*[st.floats(0, 1, width=32)] * 4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1), st.one_of(st.none(), st.lists(box)), st.text(), st.booleans()), min_size=1))
def test_any_record_comes_back(rows: list[tuple[bytes, list[tuple[float, ...]] | None, str, bool]]) -> None:
    records = []
    for number, (content, corners, text, wet) in enumerate(rows):
        valid = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners or () if a != c and b != d]
        boxes = None if corners is None else tuple(Box("car", *corner) for corner in valid)
        records.append(record(number, image=content, boxes=boxes, source=text, scene=text, attributes={"wet": int(wet)}))
    filesystem, _ = fs.FileSystem.from_uri("mock:///")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "filesystem_of", lambda uri: (filesystem, "x"))
        write_store("x", records, **{**NAMES, "domains": ("day",)}, rows_per_shard=3)
        assert Store.open("x").records(item.id for item in records) == tuple(records)


def test_digest_follows_every_byte_and_name(tmp_path: Path) -> None:
    def digest(changed: list[Record], **names: Any) -> str:
        return write_store(tmp_path / "s", changed, **{**NAMES, **names}).digest

    first = digest(both(3))
    assert digest(both(3)) == first
    altered = both(3)
    altered[4] = replace(altered[4], image=altered[4].image[:-1] + b"\0")
    assert digest(altered) != first
    altered[4] = replace(both(3)[4], boxes=(Box("car", 0, 0, 1, 1),))
    assert digest(altered) != first
    assert digest(both(3), regions=("road", "sky")) != first


def test_an_altered_byte_is_found(tmp_path: Path) -> None:
    write_store(tmp_path, both(3), **NAMES)
    shard = next(tmp_path.glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    position = content.index(both(3)[2].image) + 40
    content[position] ^= 1
    shard.write_bytes(content)
    Store.open(tmp_path)  # cheap: the shards are not hashed
    with pytest.raises(ValueError, match="not the file that was written"):
        Store.open(tmp_path, verify=True)


def test_an_altered_manifest_or_missing_shard_is_found(tmp_path: Path) -> None:
    write_store(tmp_path, both(3), **NAMES)
    path = tmp_path / "manifest.json"
    original = json.loads(path.read_text())
    path.write_text(json.dumps(original | {"classes": ["background", "person", "car"]}))
    with pytest.raises(ValueError, match="was altered"):
        Store.open(tmp_path)
    path.write_text(json.dumps(original | {"format": 9}))
    with pytest.raises(ValueError, match="store format 9; this version of recollect reads 1"):
        Store.open(tmp_path)
    path.write_text(json.dumps({"format": 1, "files": {}}))
    with pytest.raises(ValueError, match="not the manifest of an image store"):
        Store.open(tmp_path)
    outside = Manifest.model_validate(original | {"shards": [original["shards"][0] | {"file": "../x.parquet"}]})
    path.write_text(outside.model_dump_json())
    with pytest.raises(ValueError, match="no plain file name"):
        Store.open(tmp_path)
    path.write_text(json.dumps(original))
    shard = next(tmp_path.glob("*.parquet"))
    shard.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="no Parquet file"):
        Store.open(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        Store.open(tmp_path)


def test_half_a_store_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StoreWriter(tmp_path, **NAMES, rows_per_shard=2) as writer:
        for item in both(3):
            writer.add(item)
        assert list(tmp_path.glob("*.parquet"))
        raise RuntimeError("the power fails")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="recollect data"):
        Store.open(tmp_path)


def test_a_store_stays_until_its_successor_is_whole(tmp_path: Path) -> None:
    (tmp_path / "notes.parquet").write_bytes(b"not ours")
    old = write_store(tmp_path, both(3), **NAMES)
    with pytest.raises(RuntimeError), StoreWriter(tmp_path, **NAMES, rows_per_shard=2) as writer:
        for item in both(9):
            writer.add(item)
        raise RuntimeError("the power fails")
    assert Store.open(tmp_path, verify=True).records(["day/2"]) == (record(2),)
    new = write_store(tmp_path, both(9), **NAMES)
    assert new.digest != old.digest and len(Store.open(tmp_path, verify=True)) == 18
    assert len(list(tmp_path.iterdir())) == 3  # one shard, the manifest, and the file that is not ours


REFUSED = {
    "there is no domain 'nigth'; did you mean 'night'": record(0, "nigth"),
    "there is no split 'training'; did you mean 'train'": record(0, split="training"),
    "there is no class 'cat'; did you mean 'car'": record(0, boxes=(Box("cat", 0, 0, 1, 1),)),
    "there is no class 'background'": record(0, boxes=(Box("background", 0, 0, 1, 1),)),
    r"'day/0' \(from seed 0\): Box.*not inside its picture of 12x8": record(0, boxes=(Box("car", 0, 0, 12.5, 8),)),
    "x1=3.*not inside": record(0, boxes=(Box("car", 3, 0, 3, 8),)),
    "x1=-1.*not inside": record(0, boxes=(Box("car", -1, 0, 3, 8),)),
    "nan.*not inside": record(0, boxes=(Box("car", float("nan"), 0, 3, 8),)),
    "unknown attribute 'dry'; this store has: wet": record(0, attributes={"wet": 1, "dry": 0}),
    "unknown attribute 'wte'; did you mean 'wet'": record(0, attributes={"wte": 1}),
    "attribute 'wet' is 2": record(0, attributes={"wet": 2}),
    "attribute 'wet' is None": record(0, attributes={"wet": None}),
    "no image bytes": record(0, image=b""),
    "has no id": record(0, id=""),
    "0x8 pixels": record(0, width=0),
    "two records have the id 'day/7'": record(7),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_records(tmp_path: Path, message: str) -> None:
    writer = StoreWriter(tmp_path, **NAMES)
    writer.add(record(7))
    with pytest.raises(ValueError, match=message):
        writer.add(REFUSED[message])


def test_refused_names_and_domains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty domain: 'night' has no training picture.*'val': {'day': 0, 'night': 1}"):
        write_store(tmp_path, [record(0), record(1, "night", "val")], **NAMES)
    with pytest.raises(ValueError, match="first class must be 'background'"):
        StoreWriter(tmp_path, domains=("a",), classes=("car", "background"))
    with pytest.raises(ValueError, match="domains must be distinct names, not 'a', 'a'"):
        StoreWriter(tmp_path, domains=("a", "a"))
    with pytest.raises(ValueError, match="names no regions"):
        StoreWriter(tmp_path, **{**NAMES, "regions": ()}).add(record(0))


def test_questions_without_answer(tmp_path: Path) -> None:
    write_store(tmp_path / "s", both(3), **NAMES)
    store = Store.open(tmp_path / "s")
    with pytest.raises(ValueError, match="no split 'trian'; did you mean 'train'"):
        store.ids("trian", "day")
    with pytest.raises(ValueError, match="no domain 'dya'; did you mean 'day'"):
        store.ids("train", "dya")
    with pytest.raises(ValueError, match="no picture 'day/99' among the 6.*ids look like day/0, night/0"):
        store.record("day/99")
    with pytest.raises(ValueError, match="no domain 'dusk'"):
        store.scene("scene 1", "dusk")
    with pytest.raises(ValueError, match="no image store at .*`recollect data` makes one"):
        Store.open(tmp_path / "t")
    write_store(tmp_path / "plain", [record(0, scene=None)], **{**NAMES, "domains": ("day",)})
    plain = Store.open(tmp_path / "plain")
    assert not plain.manifest.truth
    with pytest.raises(ValueError, match="knows no scenes"):
        plain.scene("scene 0", "day")


KNOWN = st.lists(st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=90)


@settings(max_examples=25, deadline=None)
@given(KNOWN, st.randoms(use_true_random=False))
def test_attributes_are_read_in_columns_as_they_were_written(rows: list[dict[str, int] | None], shuffle: random.Random) -> None:
    """Whatever records lack, in whatever row groups and shards they lie: 0, 1, NaN, in the order of the store's names."""
    splits = ["train", *(shuffle.choice(("train", "val", "test")) for _ in rows)]
    records = [record(i, split=splits[i], attributes=known) for i, known in enumerate(rows)]
    filesystem, _ = fs.FileSystem.from_uri("mock:///")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "filesystem_of", lambda uri: (filesystem, "x"))
        write_store("x", records, **{**NAMES, "domains": ("day",), "attributes": ("c", "a", "b")}, rows_per_shard=37)
        store = Store.open("x")
    expected = {f"day/{i}": [(known or {}).get(name, np.nan) for name in "cab"] for i, known in enumerate(rows)}

    def check(ids: tuple[str, ...], table: NDArray[np.float32]) -> None:
        assert table.shape == (len(ids), 3) and table.dtype == np.float32
        np.testing.assert_array_equal(table, np.array([expected[id] for id in ids], np.float32).reshape(-1, 3))

    ids, table = store.attributes()
    assert ids == tuple(expected)
    check(ids, table)
    for split in ("train", "val", "test"):
        ids, table = store.attributes(split=split)
        assert ids == store.ids(split, "day")
        check(ids, table)
    some = tuple(shuffle.sample(sorted(expected), len(expected) // 2))
    assert store.attributes(some)[0] == some
    check(some, store.attributes(iter(some))[1])
    table[:] = 7  # what is handed out is a copy
    check(*store.attributes())


def test_what_is_known_of_pictures_is_read_without_them(tmp_path: Path) -> None:
    write_store(tmp_path, [*both(40), record(90, scene=None, mode=None, boxes=None, attributes=None)], **NAMES)
    store = Store.open(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()  # so nothing can be read from now on
    assert store.column("scene", ["night/3", "day/90", "day/1"]) == ("scene 3", None, "scene 1")
    assert store.column("mode", ["day/7", "day/6"]) == (3, 2) and store.column("split", []) == ()
    assert store.column("boxes", ["day/90", "day/1"]) == (None, record(1).boxes)
    assert store.column("attributes", ["day/1", "day/90"]) == ({"wet": 1}, None)
    ids, table = store.attributes(domain="night", split="train")
    assert ids == store.ids("train", "night") and table[:4, 0].tolist() == [0, 1, 0, 1]
    assert store.attributes(split="val")[1].shape == (0, 1)
    with pytest.raises(ValueError, match="no light column 'image'; .*scene"):
        store.column("image", ["day/1"])
    with pytest.raises(ValueError, match="no picture 'day/99'"):
        store.column("scene", ["day/99"])
    with pytest.raises(ValueError, match="no picture 'day/99'"):
        store.attributes(["day/1", "day/99"])
    with pytest.raises(ValueError, match="not both"):
        store.attributes(["day/1"], split="train")
    with pytest.raises(ValueError, match="no split 'tset'; did you mean 'test'"):
        store.attributes(split="tset")
    with pytest.raises(ValueError, match="no domain 'dusk'"):
        store.attributes(domain="dusk")


def digest_and_record(store: Store) -> tuple[str, Record]:
    return store.digest, store.record("night/2")


def test_another_process_opens_it_by_uri(tmp_path: Path) -> None:
    write_store(tmp_path, both(3), **NAMES)
    store = Store.open(tmp_path)
    assert len(pickle.dumps(store)) < 500
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(digest_and_record, (store,)) == digest_and_record(store)


def test_a_record_is_one_small_read_and_memory_is_bounded(tmp_path: Path) -> None:
    records = [record(index, image=random.Random(index).randbytes(1000)) for index in range(10 * ROWS_PER_GROUP)]
    names = {**NAMES, "domains": ("day",)}
    manifest = write_store(tmp_path, records, **names)
    footer = pq.ParquetFile(tmp_path / manifest.shards[0].file).metadata
    assert footer.num_row_groups == 10 and footer.row_group(0).column(1).compression == "UNCOMPRESSED"
    reads: list[tuple[int, int]] = []
    store = Store.open(tmp_path, cache_bytes=3 * 40_000)
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, *arguments: Any, **options: Any) -> Any:
        reads.append((group, 0))
        return original(self, group, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", counted)
        assert store.record("day/5") == records[5] and store.record("day/6") == records[6]
        assert reads == [(0, 0)]
        assert store.records(item.id for item in records) == tuple(records)
        assert len(reads) == 10
        assert store.record("day/319") == records[319] and len(reads) == 10  # the latest are still there
        assert store.record("day/0") == records[0] and len(reads) == 11  # the oldest are not
        for index in range(0, 320, 20):
            assert store.record("day/3") == records[3] and store.record(f"day/{index}") == records[index]
        assert reads[11:].count((0, 0)) == 0  # what is asked for again and again stays


def test_threads_read_the_same(tmp_path: Path) -> None:
    records = both(100)
    write_store(tmp_path, records, **NAMES, rows_per_shard=40)
    store = Store.open(tmp_path, cache_bytes=20_000)
    order = random.Random(1).choices(records, k=600)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.record, [item.id for item in order])) == order


def test_a_chunk_is_what_was_offered_and_large_ones_are_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {**NAMES, "domains": ("day",)}
    with StoreWriter(tmp_path / "some", **names, rows_per_shard=4) as writer:
        for number in range(12):
            if number in (1, 4, 5, 6, 7):  # of the second chunk nothing is left
                writer.leave_out()
            else:
                writer.add(record(number))
    manifest = writer.close()
    assert [(shard.file[:5], shard.rows) for shard in manifest.shards] == [("00000", 3), ("00002", 4)]
    monkeypatch.setattr("recollect.data.store.SHARD_BYTES", 1)  # no two pictures fit into one
    large = write_store(tmp_path / "large", map(record, range(12)), **names, rows_per_shard=5)
    assert [(shard.file[:5], shard.rows) for shard in large.shards] == [(f"0000{number // 5}", 1) for number in range(12)]
    assert len(Store.open(tmp_path / "large", verify=True)) == 12
