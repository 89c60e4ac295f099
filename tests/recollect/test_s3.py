"""Everything that is kept somewhere, kept in S3: stores, bundles, checkpoints, results, searches. Against a server of one's own.

In the last test the cluster's only node with CPUs has a /tmp and a /dev/shm of its own: it shares nothing with the driver but S3.

`make test-bucket` brings the server, in an environment of its own: what it needs does not go with what we pin.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import fs

from recollect import bundle as bundles
from recollect.bundle import localise, open_bundle
from recollect.cluster import connect, disconnect, free_port
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.evaluation.evaluate import append, evaluate
from recollect.testing import largest_difference
from recollect.training.session import suit, train
from tests.buckets import Bucket, needs_server, serving

ROOT = Path(__file__).parents[2]
pytestmark = needs_server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(tmp_path_factory.mktemp("s3") / "log") as bucket:
        yield bucket


@pytest.fixture(scope="module")
def store(bucket: Bucket) -> Store:
    uri = f"{bucket.uri}/store"
    build_streets(uri, size=32, train=12, val=4, test=4, references=3)
    return Store.open(uri)


@pytest.fixture(scope="module")
def run(store: Store) -> Run:
    small = {"width": 4, "critic_width": 4, "critic_layers": 2, "content_blocks": 1, "generator_blocks": 1}
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={**small, "memory": {"value_dim": 4}},
        engine={"steps": 2, "batch_size": 2, "log_every": 2, "evaluate_every": 2, "threads": 1},
        evaluation={"pictures": 2},
    )
    return suit(made, store)


def test_a_store_in_a_bucket_is_the_one_on_disk(store: Store, bucket: Bucket, tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=12, val=4, test=4, references=3)
    here = Store.open(tmp_path / "store", verify=True)
    assert store.digest == here.digest and store.manifest.counts == here.manifest.counts
    id = store.ids("train", "night")[3]
    assert Store.open(store.uri).record(id).image == here.record(id).image


def test_only_what_is_asked_for_is_read(bucket: Bucket) -> None:
    from tests.recollect.retrieval.embedders import write_records

    write_records(f"{bucket.uri}/wide", train=128)  # 8 shards
    store = Store.open(f"{bucket.uri}/wide")
    before = len(bucket.reads(r"^wide/.*parquet"))
    store.record(store.ids("train", store.domains.names[0])[0])
    fresh = bucket.reads(r"^wide/.*parquet")[before:]
    assert len(set(fresh)) == 1, f"one picture is in one shard of eight; read were {fresh}"


def test_training_goes_on_from_a_bucket_bit_equal(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    first = train(run, tmp_path / "first").parent
    bundles.copy(first / "last", f"{bucket.uri}/runs/last")
    bundles.copy(first / "best", f"{bucket.uri}/runs/best")
    assert open_bundle(f"{bucket.uri}/runs/best").digest == open_bundle(first / "best").digest
    further = overlay(run, {"engine.steps": 4})
    resumed = train(further, tmp_path / "resumed", resume=localise(f"{bucket.uri}/runs/last")).parent
    train(further, first, resume=True)
    states = [open_bundle(folder / "last").state("model") for folder in (first, resumed)]
    assert largest_difference(*states)[0] == 0


def test_results_are_collected_in_a_bucket(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    bundle = train(run, tmp_path / "run")
    bundles.copy(bundle, f"{bucket.uri}/judged")
    frame = evaluate(f"{bucket.uri}/judged", run.data.store, split="test")
    for _ in range(2):
        append(f"{bucket.uri}/tables/test.parquet", frame)
    filesystem, path = bundles.filesystem_of(f"{bucket.uri}/tables/test.parquet")
    with filesystem.open_input_file(path) as stream:
        assert len(pd.read_parquet(stream)) == len(frame), "the same rows are there once"


@pytest.mark.slow
def test_a_search_is_kept_in_a_bucket(run: Run, bucket: Bucket) -> None:
    from recollect.search.tune import Search, confirm, search

    place = f"{bucket.uri}/search"
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    connect("local", cpus=2, dashboard=False, env={name: os.environ[name] for name in names})
    try:
        plan = Search(run, ("weights.con_k",), trials=2, directory=place)
        first = search(plan)
        again = search(plan, resume=True)
        outcome = confirm(plan, first, seeds=1, steps=2)
    finally:
        disconnect()
    assert list(again.table["trial"]) == list(first.table["trial"]) and first.table["objective"].notna().all()
    assert outcome.winner == f"{place}/winner" and open_bundle(outcome.winner).run.seed == 1
    filesystem, root = bundles.filesystem_of(place)
    there = {info.base_name for info in filesystem.get_file_info(fs.FileSelector(root))}
    assert {"trials.parquet", "summary.md", "final.parquet", "study.journal", "finished", "winner"} <= there


def isolated() -> str:
    """What this machine lacks for a node with files of its own; empty: nothing."""
    if not shutil.which("unshare") or os.getuid() != 0:
        return "a node with files of its own needs unshare (util-linux) and root"
    probe = ["unshare", "--mount", "--ipc", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return "" if subprocess.run(probe, capture_output=True).returncode == 0 else "this kernel or container allows no namespaces"


@pytest.fixture
def apart(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster whose head has no CPUs, and whose other node has files of its own."""
    reason = isolated()
    if reason:
        pytest.skip("no hosts: " + reason)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    for name in ("PYTHONPATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    port, ray = free_port(), str(Path(sys.executable).with_name("ray"))
    address, memory = f"127.0.0.1:{port}", "--object-store-memory=100000000"
    # Ray's sockets live below this folder
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="apart-") as short, Path(short, "log").open("w") as said:
        head = [ray, "start", "--head", f"--port={port}", f"--temp-dir={short}/ray", "--num-cpus=0", memory, "--block"]
        node = [
            ray,
            "start",
            f"--address={address}",
            "--num-cpus=3",
            "--resources=" + json.dumps({"decode": 2}),
            memory,
            "--block",
        ]
        own = f"mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && mkdir -p {short} && exec {shlex.join(node)}"
        alone = ["unshare", "--mount", "--ipc", "--fork", "--kill-child", "sh", "-c", own]
        options: dict[str, Any] = {"stdout": said, "stderr": subprocess.STDOUT, "start_new_session": True}
        processes = [subprocess.Popen([*head, "--include-dashboard=false"], **options)]
        try:
            wait_for(port, processes[0], Path(short, "log"))
            processes.append(subprocess.Popen(alone, **options))
            yield address
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                process.wait(60)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.2)


@pytest.mark.slow
def test_nodes_share_nothing_but_the_storage(apart: str, run: Run, bucket: Bucket, tmp_path: Path) -> None:
    code = "import sys; from tests.recollect.test_s3 import drive; drive(*sys.argv[1:])"
    known = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}/platform:{ROOT}",
    }  # a driver by itself: Ray reads at its import whether tokens are used
    command = [sys.executable, "-c", code, apart, run.model_dump_json(), bucket.uri, str(tmp_path)]
    done = subprocess.run(command, env=known, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "held\n" in done.stdout, done.stdout[-2000:] + done.stderr[-6000:]


def drive(address: str, run: str, uri: str, folder: str) -> None:
    """What the driver does, and what must come of it."""
    import ray

    connect(address)
    deadline = time.monotonic() + 120
    while ray.cluster_resources().get("CPU", 0) < 3:
        assert time.monotonic() < deadline, "the other node does not join"
        time.sleep(0.5)
    check_apart(Run.model_validate_json(run), uri, Path(folder))
    disconnect()
    print("held")


def check_apart(run: Run, bucket: str, tmp_path: Path) -> None:
    from recollect.data.sources.folders import ingest
    from recollect.data.taking import OnRay
    from recollect.retrieval.directory import open_index
    from recollect.retrieval.embed import build_index
    from recollect.training import launch
    from tests.recollect.test_ingest import folders

    # Raw pictures: where only the driver has them it is an error that says so; in a folder that all have, the store is the same
    with pytest.raises(ValueError, match="a worker of the cluster does not see it. Put the pictures where all nodes"):
        ingest(folders(tmp_path / "photos", 40), f"{bucket}/unseen", workers=OnRay(2))
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".mounted-") as mounted:
        photos = folders(Path(mounted) / "photos", 40)
        there = ingest(photos, f"{bucket}/ingested", workers=OnRay(2))
        here = ingest(photos, tmp_path / "ingested")
    assert there == here and Store.open(f"{bucket}/ingested", verify=True).digest == here.manifest.digest
    filesystem, root = bundles.filesystem_of(f"{bucket}/ingested.ingest")
    assert not filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)), "its notes are gone"

    # Training: here with pictures that the other node decodes, and wholly there
    alone = open_bundle(train(run, tmp_path / "alone").parent / "last")
    fed = overlay(run, {"engine.feed": "ray", "engine.feed_resource": "decode"})
    by_others = open_bundle(train(fed, tmp_path / "fed").parent / "last")
    result = launch.train(fed, f"{bucket}/runs", "there", launch.Resources(1))
    launch.fetch(result, tmp_path / "there")
    elsewhere = open_bundle(tmp_path / "there" / "last")
    for other in (by_others, elsewhere):
        assert largest_difference(alone.state("model"), other.state("model"))[0] == 0
    assert not (tmp_path / "ray").exists() and elsewhere.manifest["parents"] == alone.manifest["parents"]

    # Bundle and index: what embeds comes from the bucket, and the index goes there
    faces = f"{bucket}/faces"
    build_faces(faces, size=32, train=12, val=12, test=2)  # a retriever is judged by ten others
    engine = {"steps": 1, "batch_size": 2, "threads": 1}
    stage = {"data": {"store": faces, "size": 32}, "engine": engine, "evaluation": {"pictures": 2}}
    first = train(suit(preset("gmm_unit:tiny", **stage), Store.open(faces)), tmp_path / "gmm")
    parent = {"model": {"parent": {"bundle": str(first)}}}
    second = train(suit(preset("retriever:tiny", **stage, **parent), Store.open(faces)), tmp_path / "retriever")
    bundles.copy(second, f"{bucket}/retriever")
    build_index(f"{bucket}/retriever", faces, f"{bucket}/index", backend="exact", workers=1)
    build_index(second, faces, tmp_path / "index", backend="exact")
    one, other = open_index(f"{bucket}/index"), open_index(tmp_path / "index")
    assert list(one.ids()) == list(other.ids()) and len(one.ids()) > 10
