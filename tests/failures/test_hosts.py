"""A host that dies under Ray Train: a run that may shrink goes on with what is left, and ends where it would have ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from recollect import cluster
from recollect.bundle import open_bundle
from recollect.config import Optimiser, overlay
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.testing import largest_difference
from recollect.training import launch
from tests.failures.searcher import run_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def hosts() -> Iterator[Cluster]:
    """Two raylets with a CPU each; this process is connected to them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        cluster.connect(made.address)
        yield made
    finally:
        cluster.disconnect()
        made.shutdown()


def test_a_run_goes_on_with_the_workers_that_are_left(hosts: Cluster, tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=2, references=2)
    sgd = {"engine.steps": 60, "engine.checkpoint_every": 3, "engine.evaluate_every": 0, "engine.precision": "fp64"}
    run = overlay(run_on(Store.open(tmp_path / "store")), sgd)
    still = Optimiser(kind="sgd", lr=1e-4)  # at 0.01 a young GAN makes 1e-2 of 1e-16, the order of sums, within 60 steps
    run = run.model_copy(update={"optimisers": {"default": still}})
    kept, died = tmp_path / "ray" / "shrinking", list[float]()

    def kill_a_host() -> None:
        while not list(kept.glob("checkpoint_*")):  # until there is something to go on from
            time.sleep(0.05)
        hosts.remove_node(next(iter(hosts.worker_nodes)), allow_graceful=False)
        died.append(time.monotonic())

    killer = threading.Thread(target=kill_a_host, daemon=True)
    killer.start()
    result = launch.train(run, str(tmp_path / "ray"), "shrinking", launch.Resources(workers=2, fewest=1), max_failures=3)
    assert died and sum(node["Alive"] for node in ray.nodes()) == 1, "the run was over before its host was killed"
    launch.fetch(result, tmp_path / "shrunk")
    launch.fetch(launch.train(run, str(tmp_path / "ray"), "whole", launch.Resources(workers=1)), tmp_path / "whole")
    shrunk, whole = (open_bundle(tmp_path / name / "last") for name in ("shrunk", "whole"))
    assert largest_difference(shrunk.state("model"), whole.state("model"))[0] < 1e-10  # sums are in another order
    assert [row["step"] for row in shrunk.metrics()] == [row["step"] for row in whole.metrics()]


def test_numbers_of_workers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=2, references=2)
    run = overlay(run_on(Store.open(tmp_path / "store")), {"engine.batch_size": 8})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster.connect("local", cpus=1, dashboard=False)
    try:
        with pytest.raises(ValueError, match="every number of workers must divide it, and 3 does not"):
            launch.train(run, str(tmp_path), "odd", launch.Resources(workers=4, fewest=1))
        with pytest.raises(ValueError, match="fewest workers are 3 of 2"):
            launch.train(run, str(tmp_path), "odd", launch.Resources(workers=2, fewest=3))
    finally:
        cluster.disconnect()
