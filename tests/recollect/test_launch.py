"""Training on Ray Train: two workers take the steps of one process, a killed worker changes nothing, a name goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from recollect.bundle import open_bundle
from recollect.cluster import connect, disconnect
from recollect.config import Optimiser, Run, overlay, preset
from recollect.data.store import Store
from recollect.testing import largest_difference
from recollect.training import launch
from recollect.training.finite import NotFinite
from recollect.training.session import suit, train
from tests import processes

TWO = launch.Resources(workers=2, cpus_per_worker=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect("local", cpus=2)
    yield
    disconnect()


@pytest.fixture
def run(store: Store) -> Run:
    small = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}
    engine = {"steps": 4, "batch_size": 2, "log_every": 2, "precision": "fp64", "threads": 1}
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={**small, "memory": {"value_dim": 8}},
        engine=engine,
        evaluation={"pictures": 2},
    )
    return suit(made, store).model_copy(update={"optimisers": {"default": Optimiser(kind="sgd", lr=0.01)}})


def test_two_workers_end_where_one_process_ends(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = launch.train(run, str(tmp_path / "ray"), "pair", TWO)
    said = "".join(capfd.readouterr())
    assert "step 4/4" in said and "Reporting training result" not in said  # Ray Train's own lines are long
    bundle = launch.fetch(result, tmp_path / "pair")
    assert bundle == tmp_path / "pair" / "best"
    alone = open_bundle(train(run, tmp_path / "alone").parent / "last")
    pair = open_bundle(tmp_path / "pair" / "last")
    assert largest_difference(alone.state("model"), pair.state("model"))[0] < 1e-10
    assert pair.manifest["parents"] == alone.manifest["parents"]
    assert [row["step"] for row in pair.metrics()] == [row["step"] for row in alone.metrics()]
    assert list((tmp_path / "pair" / "samples").glob("*.png")), "the samples come along"


@pytest.mark.slow
def test_the_same_name_goes_on(run: Run, tmp_path: Path) -> None:
    launch.train(run, str(tmp_path / "ray"), "pair", TWO)
    again = launch.train(overlay(run, {"engine.steps": 6}), str(tmp_path / "ray"), "pair", TWO)
    launch.fetch(again, tmp_path / "further")
    steps = [row["step"] for row in open_bundle(tmp_path / "further" / "last").metrics() if "loss/self_rec" in row]
    assert steps == [2, 4, 6]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_bit_equal(run: Run, tmp_path: Path) -> None:
    run = overlay(run, {"engine.steps": 30, "engine.checkpoint_every": 3})
    killed: list[int] = []

    def kill_one() -> None:
        storage = tmp_path / "ray" / "killed"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(storage.glob("checkpoint_*/last/training.json")):
            time.sleep(0.05)
        workers = train_workers()
        if workers:
            os.kill(workers[-1], signal.SIGKILL)
            killed.append(workers[-1])

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = launch.train(run, str(tmp_path / "ray"), "killed", TWO)
    killer.join()
    assert killed, "no worker was there to kill"
    launch.fetch(result, tmp_path / "killed")
    undisturbed = launch.train(run, str(tmp_path / "ray"), "whole", TWO)
    launch.fetch(undisturbed, tmp_path / "whole")
    states = [open_bundle(tmp_path / name / "last").state("model") for name in ("killed", "whole")]
    assert largest_difference(*states)[0] == 0


def train_workers() -> list[int]:
    """The pids of this cluster's Ray Train workers."""
    session = ray._private.worker.global_worker.node.get_session_dir_path()  # type: ignore[attr-defined]
    return processes.workers(session, "RayTrainWorker")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_its_state_is_kept(run: Run, tmp_path: Path) -> None:
    wild = run.model_copy(update={"optimisers": {"default": Optimiser(kind="sgd", lr=1e200)}})
    with pytest.raises(NotFinite, match=r"step \d.* is not finite.*kept as") as caught:
        launch.train(wild, str(tmp_path / "ray"), "wild", TWO)
    kept = Path(str(caught.value).rsplit("kept as ", 1)[1].rstrip(")"))
    assert open_bundle(kept).manifest["method"] == "mguit"


def test_what_can_never_fit_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"needs 8 CPUs.*has 2"):
        launch.train(run, str(tmp_path), "large", launch.Resources(workers=8))
    with pytest.raises(ValueError, match="2 workers must divide"):
        launch.train(overlay(run, {"engine.batch_size": 3}), str(tmp_path), "odd", TWO)
    with pytest.raises(
        ValueError, match="engine.accumulate=2 does not divide the 1 pictures of engine.batch_size=2 that each of 2"
    ):
        launch.train(overlay(run, {"engine.accumulate": 2}), str(tmp_path), "parts", TWO)
    assert time.monotonic() - began < 5
