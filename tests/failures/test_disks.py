"""A disk that is full, and one that cannot be written to: a clear error, and what was finished is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect.bundle import open_bundle
from recollect.config import Run, overlay
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.testing import largest_difference
from recollect.training.session import train
from tests.failures.searcher import run_on

ROOT = Path(__file__).parents[2]
BYTES = 8_000_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no disk: mounting one needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    uri = tmp_path_factory.mktemp("world") / "store"
    build_streets(uri, size=32, train=6, val=2, test=2, references=2)
    return overlay(run_on(Store.open(uri)), {"engine.steps": 6})


def fill(disk: Path, leaving: int) -> Path:
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - leaving))
    return disk / "ballast"


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=280)


@pytest.mark.parametrize("leaving", [20_000, 250_000])
def test_a_full_disk_is_said_in_a_line_and_the_checkpoint_is_whole(run: Run, disk: Path, leaving: int) -> None:
    place = disk / "run"
    train(run, place)
    before = open_bundle(place / "last", verify=True).digest
    ballast = fill(disk, leaving)
    further = ["-m", "recollect.cli", "train", "--resume", "engine.steps=12", "--out", str(place)]
    result = command(*further, cwd=disk.parent)
    assert result.returncode == 2 and "No space left on device" in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    for name in ("last", "best"):
        open_bundle(place / name, verify=True)
    assert open_bundle(place / "last").digest == before and not list(place.glob(".*")), "nothing half is left"
    ballast.unlink()
    assert command(*further, cwd=disk.parent).returncode == 0
    alone = train(run, disk.parent / "alone").parent  # the same, undisturbed
    train(overlay(run, {"engine.steps": 12}), alone, resume=True)
    states = [open_bundle(folder / "last").state("model") for folder in (place, alone)]
    assert largest_difference(*states)[0] == 0


def test_a_disk_that_cannot_be_written_to_is_said_in_a_line(run: Run, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    model = ["--set", "model.width=8", "--set", "data.size=32"]
    for words in (
        [
            "-m",
            "recollect.cli",
            "train",
            "mguit:tiny",
            f"data.store={run.data.store}",
            "engine.steps=2",
            "--out",
            str(disk / "run"),
        ],
        ["-m", "recollect.cli", "data", "streets", str(disk / "store"), "--size", "32", "--train", "4"],
        [str(ROOT / "experiments/tune_memory.py"), "--small", "--address", "local", *model, "--storage", str(disk / "search")],
        [
            "-m",
            "experiments.tune_memory",
            "--store",
            run.data.store,
            *model,
            "--storage",
            str(disk / "search"),
            "--address",
            "local",
        ],
    ):
        result = command(*words, cwd=ROOT)
        assert result.returncode == 2 and "Read-only file system" in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and result.stderr.count("error: ") == 1
