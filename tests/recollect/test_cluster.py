"""Finding and starting Ray: a private cluster ends with its driver, and a joined one runs this driver's code, not its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]

OWNER = """
import sys
from recollect.cluster import connect
print("address", connect("local", cpus=1, dashboard=False).address, flush=True)
sys.stdin.read()
"""

GUEST = """
import sys
from recollect.cluster import connect, require
import ray
found = connect(sys.argv[1])

@ray.remote
def where():
    import recollect, trainables, serve, experiments, recollect.config
    return recollect.__file__, recollect.config.find_method("mguit").__name__, serve.__file__

print("local", found.local, "cpus", found.cpus)
for path in ray.get(where.remote()):
    print("worker", path)
try:
    require(5, 0, "this")
except ValueError as error:
    print("refused", error)
"""


def run(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", **environment}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=known, timeout=120, cwd=folder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("by, tokens", [("argument", {}), ("RAY_ADDRESS", {"RAY_AUTH_MODE": "disabled"})])
@pytest.mark.slow
def test_a_joined_cluster_runs_the_code_of_the_driver(by: str, tokens: dict[str, str], tmp_path: Path) -> None:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", **tokens}
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=pipe, stdout=pipe, text=True, env=known)
    try:
        assert owner.stdout is not None
        address = next(line.split()[1] for line in owner.stdout if line.startswith("address"))
        if by == "argument":
            output = run(GUEST, tmp_path, address)
        else:
            output = run(GUEST.replace("connect(sys.argv[1])", "connect()"), tmp_path, RAY_ADDRESS=address)
    finally:
        assert owner.stdin is not None
        owner.stdin.close()
        owner.wait(60)
    assert "local False cpus 1.0" in output and "worker MGUIT" in output
    shipped = [line.split()[1] for line in output.splitlines() if line.startswith("worker /")]
    assert len(shipped) == 2 and all("runtime_resources/py_modules_files" in path for path in shipped)
    assert "refused this needs 5 CPUs and 0 GPUs; the cluster has 1" in output


MAPPER = """
import os, sys, time
import pyarrow as pa
from recollect import cluster
from recollect.cluster import connect, connected, disconnect, map_shards
from recollect.data.shards import shares
from recollect.data.store import Store

def make(store):
    def widths(ids):
        if os.environ.get("SLOW"):
            time.sleep(2)
        if ids[0] == os.environ.get("DIES_ON") and not os.path.exists(died):
            open(died, "w").close()
            os.kill(os.getpid(), 9)
        if ids[0] == os.environ.get("FAILS_ON"):
            raise ValueError(f"picture {ids[0]!r} is broken")
        return pa.table({"id": list(ids), "width": [store.record(id).width for id in ids]})

    return widths

store, work = Store.open(sys.argv[1]), sys.argv[2]
died = work + "-died"
ids = [id for domain in store.domains.names for id in store.ids("train", domain)]
said = []
if __name__ == "__main__":
    names = ("SLOW", "DIES_ON", "FAILS_ON")
    connect("local", cpus=2, dashboard=False, env={name: os.environ[name] for name in names if name in os.environ})
    print("folder", *cluster._folders, flush=True)
    with connected("local") as joined:  # what is connected stays so
        try:
            def progress(done, total):
                said.append((done, total))
                print("done", done, flush=True)
            table = map_shards(make, store, shares(store, ids), work, workers=2, progress=progress)
            print("rows", table["id"].to_pylist() == sorted(ids), set(table["width"].to_pylist()))
        except ValueError as error:
            print("refused", error)
    disconnect()
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from tests.recollect.retrieval.embedders import write_records

    write_records(tmp_path / "store", train=128)  # 8 shards
    return tmp_path / "store"


def mapped(pictures: Path, work: Path, **environment: str) -> str:
    return run(MAPPER, work.parent, str(pictures), str(work), **environment)


@pytest.mark.slow
def test_a_function_is_mapped_over_shards_and_what_is_done_stays(pictures: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    output = mapped(pictures, work, FAILS_ON="train-0064")
    assert "refused picture 'train-0064' is broken\n" in output, output  # the function's own error and nothing of Ray's
    done = {path.name for path in work.glob("*.parquet")}
    assert done and len(done) < 8
    output = mapped(pictures, work, DIES_ON="train-0064")  # its worker is started again
    assert (tmp_path / "work-died").exists() and "rows True {24}" in output, output
    assert f"done {16 * len(done)}\n" in output and "done 128\n" in output and "done 0\n" not in output


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_its_parts(pictures: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", "SLOW": "1"}
    command = [sys.executable, "-c", MAPPER, str(pictures), str(work)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=known, cwd=tmp_path)
    assert driver.stdout is not None
    folder = ""
    while "done 32" not in (line := driver.stdout.readline()):
        folder = line.split()[1] if line.startswith("folder") else folder
        assert driver.poll() is None
    driver.kill()
    driver.wait(30)
    shutil.rmtree(folder)  # which a driver that ends by itself takes away
    done = len(list(work.glob("*.parquet")))
    assert 2 <= done < 8
    output = mapped(pictures, work)
    assert "done 0\n" not in output and "rows True {24}" in output
    first = int(output.split("done ")[1].split()[0])
    assert first >= 16 * done


@given(workers=st.integers(1, 64), gpus=st.integers(1, 16))
def test_all_workers_fit_on_the_gpus(workers: int, gpus: int) -> None:
    from recollect.cluster import gpu_share

    share = gpu_share(workers, gpus)
    units = round(share * 1e4)  # Ray counts in these, rounded
    assert units >= 1 and (10_000 // units) * gpus >= workers, "a worker is on one GPU, so what is left of two holds nobody"
    assert share == 1 or 2 * share * -(-workers // gpus) > 1


CROWDED = """
import os, sys, time
import pyarrow as pa
import ray
from recollect.cluster import map_shards
from recollect.data.shards import shares
from recollect.data.store import Store

def make(store):
    def who(ids):
        time.sleep(0.5)
        return pa.table({"id": list(ids), "pid": [os.getpid()] * len(ids)})

    return who

@ray.remote(num_cpus=1)
class Guest:
    def here(self):
        return True

if __name__ == "__main__":
    ray.init(
        address="local", num_cpus=3, num_gpus=2, include_dashboard=False, _temp_dir=sys.argv[2], object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    store = Store.open(sys.argv[1])
    ids = [id for domain in store.domains.names for id in store.ids("train", domain)]
    table = map_shards(make, store, shares(store, ids), sys.argv[3] + "-one", workers=3)
    print("rows", table.num_rows, "workers", len(set(table["pid"].to_pylist())), flush=True)
    guests = [Guest.remote() for _ in range(2)]
    ray.get([guest.here.remote() for guest in guests])
    table = map_shards(make, store, shares(store, ids), sys.argv[3] + "-two", workers=3)  # there is room for one
    print("rows", table.num_rows, "workers", len(set(table["pid"].to_pylist())), flush=True)
    ray.shutdown()
"""


@pytest.mark.slow
def test_workers_share_gpus_and_nobody_waits_for_those_without_room(pictures: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # Ray's sockets live below it
        output = run(CROWDED, tmp_path, str(pictures), short, str(tmp_path / "work"))
    assert "rows 128 workers 3\n" in output and output.endswith("rows 128 workers 1\n"), output


EMBED = """
import sys
from recollect.retrieval.embed import build_index
manifest = build_index(sys.argv[1], sys.argv[2], "index", workers=2, backend="exact")  # relative: workers are elsewhere
print("count", manifest.count)
"""


@pytest.mark.slow
def test_workers_embed_what_one_process_does(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recollect.retrieval.directory import open_index
    from recollect.retrieval.embed import build_index
    from tests.recollect.retrieval.embedders import CATALOGUE, write_colours

    monkeypatch.setenv("RECOLLECT_CATALOGUE", CATALOGUE)
    bundle = write_colours(tmp_path / "bundle")
    assert "count 128\n" in run(EMBED, tmp_path, "bundle", "store", RECOLLECT_CATALOGUE=CATALOGUE)
    build_index(bundle, pictures, tmp_path / "here", backend="exact")
    there, here = open_index(tmp_path / "index"), open_index(tmp_path / "here")
    assert list(there.ids()) == list(here.ids())
    queries = np.random.default_rng(0).normal(size=(20, 8))
    one, other = there.search(queries, 5), here.search(queries, 5)
    assert one.ids == other.ids
    np.testing.assert_allclose(one.distances, other.distances, rtol=1e-5)
    assert not list(tmp_path.glob("*.parts-*"))
