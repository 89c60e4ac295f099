"""Versions of an index on the disk: who is killed leaves the one before, and what was altered or is another's is refused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import fsspec.implementations.local  # type: ignore[import-untyped]
import numpy as np
import pytest

from recollect.retrieval.contract import cloud
from recollect.retrieval.directory import Origin, change_index, copy_index, open_index, open_version, read_manifest, write_index
from recollect.retrieval.exact import ExactIndex
from recollect.retrieval.faiss import FaissIndex
from recollect.retrieval.index import Index
from recollect.retrieval.manifest import Selection

ROOT = Path(__file__).parents[3]
MODEL, OTHER = "a" * 64, "b" * 64
ORIGIN = Origin(model=MODEL, store="runs/faces", size=16)

WRITER = """
import sys, time
from recollect.retrieval import directory
from recollect.retrieval.contract import cloud
from recollect.retrieval.directory import change_index, write_index, Origin
from recollect.retrieval.faiss import FaissIndex

path, sha256 = sys.argv[1], directory._sha256

def slowly(file):  # so that a kill at any moment falls into the writing, mostly
    time.sleep(0.02)
    return sha256(file)

directory._sha256 = slowly

def change(index, manifest):
    number = manifest.count
    index.add(vectors[:1] + number, [f"added-{number}"], {"Male": [1]})
    return manifest.origin

vectors, ids, attributes = cloud(3000, dimension=32)
write_index(path, FaissIndex.build(vectors, ids, attributes), Origin(model="a" * 64))
print("written", flush=True)
while True:
    change_index(path, change)
    print("changed", flush=True)
"""


def made(count: int = 50, kind: type[Index] = FaissIndex) -> Index:
    vectors, ids, attributes = cloud(count)
    return kind.build(vectors, ids, attributes)


def add(id: str) -> object:
    def change(index: Index, manifest: object) -> Origin:
        index.add(np.full((1, 8), 7.0), [id])
        return ORIGIN

    return change


def versions(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if not item.name.startswith("."))


@pytest.mark.parametrize("kind", [ExactIndex, FaissIndex])
def test_versions_follow_each_other_and_readers_keep_theirs(kind: type[Index], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "index"
    first = write_index(path, made(kind=kind), ORIGIN)
    assert versions(path) == ["CURRENT", "v000001"] and first.count == 50 and first.attributes == ("Male", "Young")
    reader = open_index(path, MODEL)
    before = reader.search(np.zeros((1, 8)), 3)
    for number in range(4):
        manifest = change_index(path, add(f"new-{number}"), MODEL)  # type: ignore[arg-type]
    assert versions(path) == ["CURRENT", "v000004", "v000005"] and (path / "CURRENT").read_text() == "v000005\n"
    assert manifest.count == 54 and manifest.added == 4 and manifest.origin == ORIGIN
    assert len(reader) == 50 and reader.search(np.zeros((1, 8)), 3).ids == before.ids  # although its files are gone
    opened, same = open_version(path, verify=True)
    assert len(opened) == 54 and "new-3" in opened and same == manifest == read_manifest(path)
    assert first.digest != manifest.digest and manifest.metric == "l2" and manifest.dimension == 8


def test_an_error_in_a_change_changes_nothing(tmp_path: Path) -> None:
    write_index(tmp_path / "index", made(), ORIGIN)

    def change(index: Index, manifest: object) -> Origin:
        index.remove(["0-1"])
        index.remove(["nobody"])
        return ORIGIN

    with pytest.raises(ValueError, match="nobody"):
        change_index(tmp_path / "index", change)
    assert versions(tmp_path / "index") == ["CURRENT", "v000001"] and "0-1" in open_index(tmp_path / "index")


def test_an_index_of_another_embedder_is_refused_with_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "index"
    write_index(path, made(), ORIGIN)
    says = f"{MODEL}.*{OTHER}.*`recollect index build BUNDLE --store runs/faces --out {path}`"
    with pytest.raises(ValueError, match=says):
        open_index(path, OTHER)
    with pytest.raises(ValueError, match=says):
        change_index(path, add("new"), OTHER)  # type: ignore[arg-type]
    assert versions(path) == ["CURRENT", "v000001"]


def test_what_is_no_index_or_was_altered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no index at .*`recollect index build` makes one"):
        open_index(tmp_path / "none")
    with pytest.raises(ValueError, match="no index at"):
        change_index(tmp_path / "none", add("new"))  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is no index; choose another place"):
        write_index(tmp_path / "mine", made(), ORIGIN)
    path = tmp_path / "index"
    write_index(path, made(), ORIGIN)
    version = path / "v000001"
    rows = bytearray((version / "rows.parquet").read_bytes())
    rows[10] ^= 1
    (version / "rows.parquet").write_bytes(rows)
    with pytest.raises(ValueError, match=r"rows\.parquet is not the file that was written"):
        open_index(path, verify=True)
    (version / "rows.parquet").unlink()
    with pytest.raises(ValueError, match=r"rows\.parquet is missing"):
        open_index(path)
    manifest = json.loads((version / "manifest.json").read_text())
    for change, says in (
        ({"format": 9}, "index format 9"),
        ({"files": {"../../thesis": "0"}}, "outside of its directory"),
        ({"back_end": "fais", "files": {}}, "'fais'; did you mean 'faiss'"),
        ({"count": "many"}, "not the manifest of an index"),
    ):
        (version / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=says):
            open_index(path)
    (path / "CURRENT").write_text("../elsewhere\n")
    with pytest.raises(ValueError, match="no version of an index"):
        open_index(path)


def test_a_file_that_faiss_cannot_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    made().save(tmp_path / "saved")
    (tmp_path / "saved" / "base.faiss").write_bytes(b"IxF2 and nothing else")
    for mmap in (True, False):
        with pytest.raises(ValueError, match="no index that Faiss can read"):
            FaissIndex.open(tmp_path / "saved", mmap)


def test_a_copy_is_an_index(tmp_path: Path) -> None:
    write_index(tmp_path / "index", made(), ORIGIN)
    change_index(tmp_path / "index", add("new"))  # type: ignore[arg-type]
    manifest = copy_index(tmp_path / "index", f"file://{tmp_path}/copy")
    assert versions(tmp_path / "copy") == ["CURRENT", "v000001"] and manifest.version == "v000001"  # the copy counts for itself
    assert len(open_index(f"file://{tmp_path}/copy", MODEL, verify=True)) == 51
    assert manifest == read_manifest(tmp_path / "copy") and manifest.digest == read_manifest(tmp_path / "index").digest


class Watched(fsspec.implementations.local.LocalFileSystem):  # type: ignore[misc]
    """The disk as another file system, as S3 is one; keeps what was read, and says what CURRENT named at each write."""

    protocol = "watched"
    cachable = False
    read: ClassVar[list[str]] = []
    written: ClassVar[list[tuple[str, str]]] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        pointer = Path(path).parents[0 if path.endswith("CURRENT") else 1] / "CURRENT"
        if "r" in mode:
            self.read.append(Path(path).name)
        else:
            self.written.append((Path(path).name, pointer.read_text().strip() if pointer.exists() else ""))
        return super()._open(path, mode, **options)


@pytest.fixture
def remote(tmp_path: Path) -> str:
    fsspec.register_implementation("watched", Watched, clobber=True)
    Watched.read.clear()
    Watched.written.clear()
    return f"fsspec+watched://{tmp_path}/remote/index"


def test_a_copy_over_a_remote_index_is_its_next_version(remote: str, tmp_path: Path) -> None:
    there = tmp_path / "remote" / "index"
    write_index(tmp_path / "one", made(), ORIGIN)
    write_index(tmp_path / "two", made(30), ORIGIN)
    copy_index(tmp_path / "one", remote)
    before = {item.name: item.read_bytes() for item in (there / "v000001").iterdir()}
    Watched.written.clear()
    manifest = copy_index(tmp_path / "two", remote)  # whose own version is 1 too
    assert manifest.version == "v000002" and (manifest.count, read_manifest(remote)) == (30, manifest)
    assert {item.name: item.read_bytes() for item in (there / "v000001").iterdir()} == before  # whom readers have open
    assert [name for name, _ in Watched.written][-2:] == ["manifest.json", "CURRENT"]
    assert {current for _, current in Watched.written} == {"v000001"}  # which readers open until all is there
    assert len(open_index(remote, MODEL, verify=True)) == 30
    (there / "v000003").mkdir()  # of somebody who was killed
    (there / "v000003" / "index.json").write_text("{")
    assert copy_index(tmp_path / "one", remote).version == "v000004" and versions(there) == ["CURRENT", "v000002", "v000004"]
    (tmp_path / "remote" / "mine").mkdir()
    (tmp_path / "remote" / "mine" / "thesis.tex").touch()
    for place in (remote.replace("index", "mine"), str(tmp_path / "remote" / "mine")):
        with pytest.raises(ValueError, match="mine is there already and is no index"):
            copy_index(tmp_path / "one", place)


def test_of_a_remote_index_only_the_manifest_is_read_to_know_what_it_is(remote: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no index at {re.escape(remote)} \(no CURRENT\)"):
        read_manifest(remote)
    with pytest.raises(ValueError, match=rf"no index at {re.escape(remote)} \(no CURRENT\)"):
        open_index(remote)
    manifest = write_index(tmp_path / "one", made(), ORIGIN)
    copy_index(tmp_path / "one", remote)
    Watched.read.clear()
    assert read_manifest(remote) == manifest and Watched.read == ["CURRENT", "manifest.json"]


def test_an_origin_says_what_was_taken() -> None:
    built = ORIGIN.model_copy(update={"splits": ("train",), "domains": ("a",), "limit": 5})
    assert built.taken() == (Selection(splits=("train",), domains=("a",), limit=5),)
    assert built.with_selection(built.taken()[0]) == built.model_copy(update={"selections": built.taken()})
    val = Selection(splits=("val",), domains=("b",))
    more = built.with_selection(val)
    assert (more.splits, more.domains, more.limit) == (("train", "val"), ("a", "b"), 5)  # val knows no limit
    assert more.taken() == (*built.taken(), val) and more.with_selection(val) == more
    everything = more.with_selection(Selection(splits=("train",)))
    assert (everything.splits, everything.domains, everything.limit) == (("train", "val"), (), None)
    assert Origin.model_validate_json(everything.model_dump_json()) == everything


def test_a_writer_that_is_killed_leaves_an_index(tmp_path: Path) -> None:
    path, chance = tmp_path / "index", random.Random(0)
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", "OMP_NUM_THREADS": "1"}
    counts, torn = [], 0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=known)
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        assert process.stdout.readline() == "changed\n"
        time.sleep(0.2 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        index, manifest = open_version(path, MODEL, verify=True)
        assert len(index) == manifest.count >= 3000
        assert all(f"added-{number}" in index for number in range(3000, manifest.count))
        counts.append(manifest.count)
        torn += bool(list(path.glob(".v*"))) or sorted(path.glob("v*"))[-1].name != manifest.version
        assert len(versions(path)) <= 4, attempt
    assert min(counts) > 3000
    assert torn, "no writer was killed while it wrote"
    change_index(path, lambda index, manifest: manifest.origin)  # the lock of the killed is free, and what they left goes
    assert not list(path.glob(".v*")) and len(versions(path)) == 3


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "index"
    write_index(path, made(), ORIGIN)
    code = """
import sys, time
import numpy as np
from recollect.retrieval.directory import change_index
print("ready", flush=True)
sys.stdin.readline()
for number in range(8):
    def change(index, manifest):
        time.sleep(0.03)
        index.add(np.full((1, 8), 7.0), [f"{sys.argv[2]}-{number}"])
        return manifest.origin
    change_index(sys.argv[1], change)
"""
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], stdin=pipe, stdout=pipe, text=True, env=known)
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        print(file=writer.stdin, flush=True)
    seen = []
    while any(writer.poll() is None for writer in writers):
        seen.append(len(open_index(path)))  # versions come and go under the reader
    assert [writer.returncode for writer in writers] == [0, 0]
    index = open_index(path, verify=True)
    assert len(index) == 66 and seen == sorted(seen)
    assert all(f"{name}-{number}" in index for name in ("one", "two") for number in range(8))
