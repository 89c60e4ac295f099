"""A run of two workers whose workers are killed again and again, at random points, ends bit-equal to one that was left alone."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import placement_group_table

from recollect import cluster
from recollect.bundle import open_bundle
from recollect.config import overlay
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.testing import largest_difference
from recollect.training import launch
from tests import processes
from tests.failures.searcher import run_on

TWO = launch.Resources(workers=2, cpus_per_worker=1)
KILLS, SEED = int(os.environ.get("KILLS", "6")) // 2, int(os.environ.get("SEED", "0"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[str]:
    cluster.connect("local", cpus=2)
    yield cluster._folders[0]
    cluster.disconnect()


def test_workers_that_are_killed_again_and_again_change_nothing(folder: str, tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=2, references=2)
    run = overlay(
        run_on(Store.open(tmp_path / "store")), {"engine.steps": 40, "engine.checkpoint_every": 3, "engine.evaluate_every": 0}
    )
    chance, over, killed = random.Random(SEED), threading.Event(), list[int]()

    def kill_some() -> None:
        while len(killed) < KILLS and not over.is_set():
            there = processes.workers(folder, "RayTrainWorker")
            if len(there) == 2 and not over.wait(chance.uniform(0.5, 6.0)) and processes.kill(victim := chance.choice(there)):
                killed.append(victim)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        result = launch.train(run, str(tmp_path / "ray"), "killed", TWO, max_failures=4 * KILLS)
    finally:
        over.set()
        killer.join()
    assert killed, "the run was over before anybody was killed"
    launch.fetch(result, tmp_path / "killed")
    launch.fetch(launch.train(run, str(tmp_path / "ray"), "whole", TWO), tmp_path / "whole")
    states = [open_bundle(tmp_path / name / "last").state("model") for name in ("killed", "whole")]
    assert largest_difference(*states)[0] == 0
    rows = [
        [(row["step"], sorted(row)) for row in open_bundle(tmp_path / name / "last").metrics()] for name in ("killed", "whole")
    ]
    assert rows[0] == rows[1], "no interval is in the history twice"


class KillsOne(WorkerGroupCallback):
    """Kills a worker as soon as its group has started, before its training begins; once."""

    def __init__(self, done: Path) -> None:
        self.done = done

    def after_worker_group_start(self, worker_group: Any) -> None:
        if not self.done.exists():
            self.done.touch()
            ray.kill(worker_group.get_workers()[1].actor)
            time.sleep(2)


def test_what_a_worker_held_that_dies_between_start_and_training_is_given_back(folder: str, tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=4, val=2, test=2, references=2)
    run = overlay(run_on(Store.open(tmp_path / "store")), {"engine.steps": 2})
    killer = KillsOne(tmp_path / "done")
    launch.train(run, str(tmp_path / "ray"), "killed", TWO, callbacks=[killer])  # all CPUs there are, so it needs them back
    assert killer.done.exists()
    assert [group["state"] for group in placement_group_table().values()].count("CREATED") == 0
