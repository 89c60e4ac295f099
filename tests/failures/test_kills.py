"""A search whose trials, driver and head are killed at random points: nothing finished is lost or trained twice, and what
resumes ends bit-equal. KILLS says how many; SEED says which (`make test-failures`)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from recollect.bundle import open_bundle
from recollect.config import overlay
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.testing import largest_difference
from recollect.training.session import train
from tests import processes
from tests.failures.searcher import STEPS, TRIALS, run_on

ROOT = Path(__file__).parents[2]
KILLS, SEED = int(os.environ.get("KILLS", "6")), int(os.environ.get("SEED", "0"))
VICTIMS = ("trial", "trial", "trial", "driver", "trial", "trial", "head")  # in turn: a driver takes its private Ray along

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Driver:
    """A driver in a process of its own, and the Ray that it started."""

    def __init__(self, store: Path, directory: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
        self.log = directory.parent / f"driver-{time.monotonic_ns()}.log"
        command = [sys.executable, str(ROOT / "tests" / "failures" / "searcher.py"), str(store), str(directory)]
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=directory.parent, env=environment
            )

    @property
    def folder(self) -> str:
        words = [line.split() for line in self.log.read_text().splitlines() if line.startswith("folder ")]
        return words[0][1] if words else ""

    def wait_for(self, what: str, seconds: float) -> list[int]:
        """Pids of its trials or of its head, once there are some; none where it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            if self.folder:
                found = processes.head(self.folder) if what == "head" else processes.workers(self.folder, "ray::Trial")
                if found:
                    return found
            time.sleep(0.05)
        return []

    def end(self, seconds: float = 120) -> None:
        """Wait for it, and for what it leaves behind."""
        self.process.wait(seconds)
        folder, deadline = self.folder, time.monotonic() + seconds
        while folder and (left := processes.everything(folder)) and time.monotonic() < deadline:
            if processes.head(folder) == [] or time.monotonic() > deadline - seconds / 2:
                for pid in left:  # of a Ray without a head nothing ends by itself for a minute
                    processes.kill(pid)
            time.sleep(0.2)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def test_a_search_survives_random_kills(tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=2, references=2)
    directory, chance = tmp_path / "search", random.Random(SEED)
    register: dict[str, int] = {}  # finished trials, and when each was written
    done: list[str] = []
    driver = Driver(tmp_path / "store", directory)
    while len(done) < KILLS and driver.process.poll() is None:
        victim = VICTIMS[len(done) % len(VICTIMS)]
        there = driver.wait_for("head" if victim == "head" else "trial", 240)
        time.sleep(chance.uniform(0.0, 6.0))  # anywhere: while it starts, trains, evaluates, writes
        pids = [driver.process.pid] if victim == "driver" else driver.wait_for(victim, 240) if there else []
        if not pids or driver.process.poll() is not None:
            break
        if processes.kill(chance.choice(pids)):
            done.append(victim)
        if victim != "trial":
            if victim == "head":
                driver.end(180)
                assert driver.process.returncode != 0, "a driver that has lost its head says so"
            driver.end()
            driver = Driver(tmp_path / "store", directory)
        for path in (directory / "finished").glob("*.json"):
            assert register.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "trained twice"
    driver.process.wait(900)
    driver.end()
    assert driver.process.returncode == 0, driver.log.read_text()[-3000:]
    print("killed:", ", ".join(done))
    assert done, "the search was over before anything was killed"

    for name, written in register.items():
        assert (directory / "finished" / name).stat().st_mtime_ns == written, "a finished trial was trained again"
    trials = pd.read_parquet(directory / "trials.parquet")
    assert len(trials) == TRIALS and (trials["status"] == "finished").all() and (trials["step"] == STEPS).all()
    run = run_on(Store.open(tmp_path / "store"))
    for _, row in trials.iterrows():
        alone = train(overlay(run, {"weights.con_k": row["config/weights.con_k"]}), tmp_path / f"alone-{row['trial']}").parent
        states = [open_bundle(place / "last").state("model") for place in (Path(row["checkpoint"]), alone)]
        assert largest_difference(*states)[0] == 0, f"trial {row['trial']} did not end where it would have"
