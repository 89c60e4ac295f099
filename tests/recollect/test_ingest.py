"""Ingestion on Ray: the store that one process writes, byte for byte, also after a kill; and nothing finished is done again."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recollect.cluster import connect, disconnect, map_on_data
from recollect.data.sources.attributes import ingest as ingest_attributes
from recollect.data.sources.coco import Part
from recollect.data.sources.coco import ingest as ingest_coco
from recollect.data.sources.folders import ingest
from recollect.data.store import Store
from recollect.data.taking import OnRay, work_of

ROOT = Path(__file__).parents[2]
BROKEN = 7  # every so many-th picture


def picture(number: int) -> bytes:
    """A picture whose content depends on its number; a fraction of a kilobyte."""
    pixels = np.random.default_rng(number).integers(0, 255, (16 + number % 5, 20, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def folders(root: Path, count: int = 1400) -> Path:
    """So many pictures of two domains, three chunks, of which every seventh is broken."""
    for number in range(count):
        path = root / ("trainA" if number % 2 else "trainB") / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number)[: None if number % BROKEN else 60])
    return root


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("source") / "photos")


@pytest.fixture(scope="module")
def here(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes of `source`."""
    out = tmp_path_factory.mktemp("here") / "store"
    ingest(source, out)
    return out


@pytest.fixture
def cluster() -> Iterator[None]:
    connect("local", cpus=2, dashboard=False)
    yield
    disconnect()


@pytest.mark.usefixtures("cluster")
def test_workers_write_what_one_process_writes(source: Path, here: Path, tmp_path: Path) -> None:
    there, said = tmp_path / "there", list[tuple[int, int]]()
    found = ingest(source, there, workers=OnRay(2), progress=lambda done, total: said.append((done, total)))
    assert content(there) == content(here)
    assert len(found.manifest.shards) == 3 and len(found.skipped) == 200
    assert found.skipped == ingest(source, tmp_path / "again").skipped
    assert said[-1] == (1400, 1400) and [done for done, _ in said] == list(range(1, 1401))
    assert not Path(work_of(str(there))).exists(), "its notes are gone"

    # What happens to boxes, and attributes that not every picture has
    images, boxed = source / "trainA", tmp_path / "boxes.json"
    names = sorted(path.name for path in images.iterdir())[:60]
    boxed.write_text(
        json.dumps(
            {
                "images": [{"id": number, "file_name": name} for number, name in enumerate([*names, "gone.png"])],
                "annotations": [
                    {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [2, 2, 5 + 20 * (number % 3), 6]}
                    for number in range(60)
                ],
                "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "cow"}],
            }
        )
    )
    parts = [Part("day", images, boxed)]
    one = ingest_coco(parts, tmp_path / "coco-here", classes={"car": "car"})
    two = ingest_coco(parts, tmp_path / "coco-there", classes={"car": "car"}, workers=OnRay(2))
    assert one == two and content(tmp_path / "coco-here") == content(tmp_path / "coco-there")
    assert any("dropped" in text for text in one.warnings) and any("clipped" in text for text in one.warnings)
    assert ("trainA/gone.png", "the picture is missing") in two.skipped

    table = tmp_path / "table.csv"
    rows = [f"{name},{number % 2},{'' if number % 3 else 1}" for number, name in enumerate(names)]
    table.write_text("\n".join(["file,glad,tall", *rows]))
    both = [ingest_attributes(images, tmp_path / f"a{n}", table=table, workers=workers) for n, workers in ((0, 2), (1, OnRay(1)))]
    assert both[0] == both[1] and both[0].manifest.attributes == ("glad", "tall")

    broken = source / "trainB" / "00000.png"
    with pytest.raises(ValueError, match=f"^{broken}: it cannot be decoded|^{source / 'trainA' / '00007.png'}: it cannot be"):
        ingest(source, tmp_path / "strict", strict=True, workers=OnRay(2))
    with pytest.raises(ZeroDivisionError):
        list(map_on_data(lambda number: 1 // number, [2, 1, 0], workers=1))


DRIVER = """
import sys
from recollect.cluster import _folders, connect
from recollect.data.sources.folders import ingest
from recollect.data.taking import OnRay

if __name__ == "__main__":
    connect("local", cpus=1, dashboard=False)
    print("folder", *_folders, flush=True)
    found = ingest(sys.argv[1], sys.argv[2], workers=OnRay(1))
    print("digest", found.manifest.digest, "skipped", len(found.skipped), flush=True)
"""


def driver(source: Path, out: Path) -> subprocess.Popen[str]:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
    command = [sys.executable, "-c", DRIVER, str(source), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=known, cwd=out.parent)


@pytest.mark.slow
def test_an_ingest_that_is_killed_goes_on_and_ends_with_the_same_bytes(source: Path, here: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "store", Path(work_of(str(tmp_path / "store")))
    ingest(folders(tmp_path / "old", 20), out)  # what is there stays readable until the new one is whole
    before = Store.open(out).digest
    killed = driver(source, out)
    assert killed.stdout is not None
    folder = killed.stdout.readline().split()[1]
    try:
        while not list(work.glob("[0-9]*.json")):  # the first chunk is done, the second is being written
            assert killed.poll() is None
            time.sleep(0.005)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
    shutil.rmtree(folder)  # which a driver that ends by itself takes away
    assert Store.open(out, verify=True).digest == before
    time.sleep(2)  # its workers end too; one that was writing may yet finish its note
    finished = [shard["file"] for path in work.glob("[0-9]*.json") for shard in json.loads(path.read_text())["shards"]]
    done = {name: (out / name).stat().st_mtime_ns for name in finished}
    assert 1 <= len(done) < 3, "some chunks are done, and not all"

    again = driver(source, out)
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0 and f"digest {Store.open(here).digest} skipped 200" in output, output
    assert content(out) == content(here), "the old store's shards and everything else is gone"
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done, "what was done was not done again"
    assert not work.exists()
