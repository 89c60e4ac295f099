"""Storage that is slow, and storage that hangs: slow is only slow, hanging is said in a line, and what was finished is whole."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from recollect.bundle import filesystem_of, open_bundle, read_text
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.testing import largest_difference
from tests.buckets import Bucket, Line, needs_server, serving

ROOT = Path(__file__).parents[2]
BYTES_PER_S = 100_000
WORLD = ["--size", "32", "--train", "6", "--val", "2", "--test", "2", "--references", "2"]
TRAIN = ["mguit:tiny", 'data.domains=["sunny","night"]', "data.size=32", "model.width=8", "model.critic_width=8"]
TRAIN += ["engine.batch_size=2", "evaluation.pictures=2", "engine.threads=1"]
pytestmark = [needs_server, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(tmp_path_factory.mktemp("s3") / "log") as bucket:
        yield bucket


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("world") / "store"
    build_streets(uri, size=32, train=6, val=2, test=2, references=2)
    return str(uri)


def recollect(line: Line, *words: str) -> subprocess.Popen[str]:
    known = {**line.environment, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recollect.cli", *words]
    return subprocess.Popen(command, env=known, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[str], within_s: float) -> str:
    try:
        return process.communicate(timeout=within_s)[0]
    finally:
        process.kill()


def test_a_slow_line_is_only_slow(bucket: Bucket, store: str) -> None:
    line = Line(bucket.port, BYTES_PER_S)
    began = time.monotonic()
    drawing = recollect(line, "data", "streets", f"{bucket.uri}/slow", *WORLD)
    output = ended(drawing, 300)
    assert drawing.returncode == 0, output
    assert Store.open(f"{bucket.uri}/slow", verify=True).digest == Store.open(store).digest
    assert time.monotonic() - began > 1 and line.sent > BYTES_PER_S, "it came over the line"
    line.close()


def test_storage_that_hangs_while_a_store_is_drawn_is_said_in_a_line(bucket: Bucket, store: str) -> None:
    line = Line(bucket.port, BYTES_PER_S)
    drawing = recollect(line, "data", "streets", f"{bucket.uri}/hung", *WORLD)
    wait_for(lambda: line.sent > 50_000, drawing)
    line.hang()
    output = ended(drawing, 500)
    assert drawing.returncode == 2 and "Traceback" not in output, output
    assert sum(text.startswith("error: ") for text in output.splitlines()) == 1 and "hung" in output, output
    with pytest.raises(ValueError):
        Store.open(f"{bucket.uri}/hung")
    line.close()
    again = recollect(Line(bucket.port), "data", "streets", f"{bucket.uri}/hung", *WORLD)
    assert ended(again, 120) and again.returncode == 0
    assert Store.open(f"{bucket.uri}/hung", verify=True).digest == Store.open(store).digest


def test_a_run_whose_storage_hangs_ends_and_goes_on_bit_equal(bucket: Bucket, store: str, tmp_path: Path) -> None:
    place, line = f"{bucket.uri}/runs/hung", Line(bucket.port)
    words = [*TRAIN, f"data.store={store}", "engine.steps=100", "engine.evaluate_every=10"]
    training = recollect(line, "train", *words, "--workers", "1", "--out", place)
    wait_for(lambda: len(checkpoints(f"{place}/ray/run")) > 1, training)
    line.hang()
    output = ended(training, 800)
    last = output.splitlines()[-1]
    assert training.returncode == 2 and last.startswith("error: the training failed again and again"), output
    assert "Timeout was reached" in last and last.endswith(f"--resume goes on in {place}"), last
    line.close()
    kept = checkpoints(f"{place}/ray/run")
    whole = [one for one in kept if read_text(f"{one}/last/manifest.json")]
    assert whole and all(open_bundle(f"{one}/last", verify=True) for one in whole)
    resumed = recollect(Line(bucket.port), "train", "--resume", "--workers", "1", "--out", place)
    output = ended(resumed, 200)
    assert resumed.returncode == 0 and "going on from" in output, output
    alone = recollect(Line(bucket.port), "train", *words, "--out", str(tmp_path / "alone"))
    assert ended(alone, 200) and alone.returncode == 0
    states = [open_bundle(run).state("model") for run in (f"{place}/last", tmp_path / "alone" / "last")]
    assert largest_difference(*states)[0] == 0


def checkpoints(place: str) -> list[str]:
    """Those that Ray has begun to write, the oldest first."""
    filesystem, root = filesystem_of(place)
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(f"{place}/{one.base_name}" for one in found if one.base_name.startswith("checkpoint_"))


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not what():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)
