"""The feed whose pictures Ray tasks decode: the local feed's batches, bit by bit, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from recollect.batch import Batch
from recollect.bundle import open_bundle
from recollect.cluster import ahead_on_ray, connect, disconnect
from recollect.config import Data, Optimiser, Run, overlay, preset
from recollect.data.loader import Feed
from recollect.data.remote import RemoteFeed
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.testing import largest_difference
from recollect.training import launch
from recollect.training.session import suit, train
from tests import processes


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect("local", cpus=3)
    yield
    disconnect()


def tensors(batch: Batch) -> dict[str, torch.Tensor | None]:
    """Everything that a batch holds and can be compared."""
    several = {name: getattr(batch, name) or () for name in ("boxes", "labels")}
    single = {name: getattr(batch, name) for name in ("images", "domain", "classes", "attributes", "regions", "modes")}
    return single | {f"{name}/{row}": tensor for name, rows in several.items() for row, tensor in enumerate(rows)}


def same(one: Batch, two: Batch) -> bool:
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys() and (one.ids, one.slots) == (two.ids, two.slots)
    for name, tensor in first.items():
        other = second[name]
        assert (tensor is None) == (other is None), name
        if tensor is not None and other is not None:
            assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
            assert torch.equal(tensor.nan_to_num(7.0), other.nan_to_num(7.0)), name
    return True


def decoders() -> list[int]:
    """The pids of the processes of this cluster that decode, and then of those that have just done so."""
    session = ray._private.worker.global_worker.node.get_session_dir_path()  # type: ignore[attr-defined]
    return [pid for title in ("ray::_applied", "ray::IDLE") for pid in processes.workers(session, title)]


def test_the_batches_are_those_of_the_local_feed_also_when_decoders_die(tmp_path: Path) -> None:
    build_streets(tmp_path / "streets", size=48, train=24, val=2, test=2, references=1)
    build_faces(tmp_path / "faces", size=32, train=24, val=2, test=2)
    whole = {"truth": True, "rank": 1, "world": 2}
    for name, domains in (("streets", ("night", "sunny")), ("faces", ())):
        feed = Feed(Store.open(tmp_path / name), Data(domains=domains, size=32, short_side=36), 8, 4, seed=5, **whole)  # type: ignore[arg-type]
        killed, steps = list[int](), []
        stream = RemoteFeed(feed, ahead=3).stream(7, 27)
        for step, batches in stream:
            steps.append(step)
            assert all(same(one, two) for one, two in zip(batches, feed.batches(step), strict=True))
            if step == 12 and name == "streets":
                killed = decoders()[:2]
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
        assert steps == list(range(7, 27)) and (killed or name == "faces")
        assert feed.batches(9)[0].regions is not None and (feed.batches(9)[0].attributes is None) == (name == "streets")
    begun = RemoteFeed(feed, ahead=2).stream(0, 1000)
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    assert list(RemoteFeed(feed, ahead=2).stream(4, 4)) == []


@pytest.fixture
def run(store: Store) -> Run:
    small = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 1, "generator_blocks": 1}
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={**small, "memory": {"value_dim": 8}},
        engine={"steps": 4, "batch_size": 2, "log_every": 2, "checkpoint_every": 2, "precision": "fp64", "threads": 1},
        evaluation={"pictures": 2},
    )
    return suit(made, store).model_copy(update={"optimisers": {"default": Optimiser(kind="sgd", lr=0.01)}})


@pytest.mark.slow
def test_a_run_fed_from_elsewhere_ends_bit_equal_also_resumed(run: Run, tmp_path: Path) -> None:
    whole = open_bundle(train(run, tmp_path / "whole").parent / "last").state("model")
    train(overlay(run, {"engine.steps": 2}), tmp_path / "half")
    fed = overlay(run, {"engine.feed": "ray", "engine.feed_ahead": 2})
    resumed = train(fed, tmp_path / "rest", resume=tmp_path / "half" / "last").parent  # what began locally goes on with Ray
    assert largest_difference(whole, open_bundle(resumed / "last").state("model"))[0] == 0
    result = launch.train(fed, str(tmp_path / "ray"), "pair", launch.Resources(workers=2))
    launch.fetch(result, tmp_path / "pair")
    assert largest_difference(whole, open_bundle(tmp_path / "pair" / "last").state("model"))[0] < 1e-10  # as with local feeds
    with pytest.raises(ValueError, match=r"its workers and one task that decodes .*needs 4 CPUs"):
        launch.train(overlay(fed, {"engine.batch_size": 3}), str(tmp_path), "large", launch.Resources(workers=3))


def test_a_store_that_is_another_one_elsewhere_is_refused(run: Run, tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=4, references=3)
    feed = Feed(Store.open(tmp_path / "store"), run.data, 2, 4, 0)
    shutil.rmtree(tmp_path / "store")
    build_streets(tmp_path / "store", size=32, train=13, val=4, test=4, references=3)
    with pytest.raises(ValueError, match="another one where pictures are decoded"):
        list(RemoteFeed(feed, ahead=1).stream(0, 2))


def test_what_decodes_nowhere_is_an_error_and_no_hang(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no node of the cluster has the resource 'decode'.*ray start --resources="):
        next(ahead_on_ray(str, [1], ahead=1, resource="decode"))
    with pytest.raises(ValueError, match="it would do nothing without feed=ray"):
        overlay(run, {"engine.feed_resource": "decode"})
    monkeypatch.setenv("RECOLLECT_NODES_WAIT_S", "1")
    guests = [ray.remote(num_cpus=1)(occupy).remote() for _ in range(3)]
    try:
        time.sleep(3)
        with pytest.raises(ValueError, match="it needs a free CPU; of 3 CPUs 0 are free"):
            next(ahead_on_ray(str, [1], ahead=1))
    finally:
        for guest in guests:
            ray.cancel(guest, force=True)


def occupy() -> None:
    time.sleep(1000)
