"""Starting and stopping a server as the command line does: a real process, real signals, and nothing left behind."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from PIL import Image

from recollect.bundle import open_bundle
from serve import run
from tests.serve.conftest import encoded, painted
from tests.serve.translators import STREETS, write_bundle, write_mguit

ROOT = Path(__file__).parents[2]
CODE = "import sys, serve.run; serve.run.main(sys.argv[1], port=int(sys.argv[2]))"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(bundle: Path, port: int, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(bundle), str(port)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def processes_below(pid: int) -> dict[int, str]:
    """pid -> start time of every process that descends from `pid`; the two together name a process for good."""
    parents: dict[int, int] = {}
    started: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)], started[int(folder.name)] = int(fields[1]), fields[19]
    found, fresh = set[int](), {pid}
    while fresh:
        found |= fresh
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
    return {child: started[child] for child in found if child in started}


def still_there(processes: dict[int, str]) -> list[int]:
    left = []
    for pid, started in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == started and fields[0] != "Z":
            left.append(pid)
    return left


def end(server: subprocess.Popen[str], below: dict[int, str]) -> None:
    """After a failed test: nothing of it stays."""
    for pid in still_there(below | processes_below(server.pid)):
        os.kill(pid, signal.SIGKILL)


def output_until(server: subprocess.Popen[str], wanted: str) -> str:
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if wanted in line:
            break
    return "".join(lines)


def ended(server: subprocess.Popen[str]) -> str:
    out, _ = server.communicate(timeout=60)
    return out


def translates(url: str) -> None:
    """MGUIT over HTTP: samples differ, seeds repeat, and the memory map shows items that exist."""

    def post(**fields: str) -> httpx.Response:
        files, data = {"image": encoded(painted(70, 50))}, {"target": "night", **fields}
        answer = httpx.post(f"{url}/v1/translate", files=files, data=data, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer

    several = post(samples="3", seed="11", memory_map="true").json()
    assert several["model"] == "memory" and several["seeds"] == [11, 12, 13]
    assert len(set(several["images"])) == 3
    again, sampled = array(post(seed="12").content), array(base64.b64decode(several["images"][1]))
    assert again.shape == (50, 70, 3) and np.abs(again - sampled).max() <= 1
    memory, card = several["extras"]["memory_map"], httpx.get(f"{url}/v1/model", trust_env=False).json()
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(memory["image"]))))
    assert shown.shape == (-(-50 // memory["cell"]), -(-70 // memory["cell"]))
    assert shown.max() < sum(card["run"]["model"]["memory"]["items_per_class"].values())
    assert card["classes"] == list(STREETS.classes) and card["method"] == "mguit"


def array(content: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="the line it prints is for curl")
def test_mguit_is_served_until_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    bundle, port = write_mguit(tmp_path), free_port()
    (tmp_path / "picture.png").write_bytes(encoded(painted()))
    server, below = launch(bundle, port, tmp_path), dict[int, str]()
    try:
        told = output_until(server, "Ctrl-C")
        assert f"http://127.0.0.1:{port}/docs" in told, told
        curl = re.search(r"^try: (curl .*)$", told, re.MULTILINE)
        assert curl is not None
        subprocess.run(shlex.split(curl[1]), cwd=tmp_path, check=True, capture_output=True, timeout=30)
        assert Image.open(tmp_path / "translated.png").size == (48, 40)
        translates(f"http://127.0.0.1:{port}")
        below = processes_below(server.pid)
        assert len(below) > 4  # Ray's own, and the replicas
        folders = {str(path) for path in Path("/tmp").glob("rcl-*")}
        os.killpg(server.pid, signal.SIGINT)  # a terminal sends it to the whole group
        rest = ended(server)
        assert server.returncode == 0, rest
        assert "stopping" in rest and "Traceback" not in rest
        assert still_there(below) == []
        assert {str(path) for path in Path("/tmp").glob("rcl-*")} < folders
        run.require_free("127.0.0.1", port)
    finally:
        end(server, below)


@pytest.mark.slow
def test_sigterm_while_starting_leaves_nothing(tmp_path: Path) -> None:
    server, seen = launch(write_bundle(tmp_path), free_port(), tmp_path), dict[int, str]()
    try:
        deadline = time.monotonic() + 60
        while len(seen) < 4 and time.monotonic() < deadline:  # Ray is coming up
            time.sleep(0.05)
            seen = processes_below(server.pid)
        assert len(seen) >= 4
        seen |= processes_below(server.pid)
        server.terminate()
        out = ended(server)
        assert server.returncode == 128 + signal.SIGTERM, out
        time.sleep(0.2)
        assert still_there(seen) == []
    finally:
        end(server, seen)


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_no_proxy(tmp_path: Path) -> None:
    """Ray's processes notice that their driver is gone; HAProxy by itself would stay, and keep its ports."""
    port = free_port()
    server, below = launch(write_bundle(tmp_path), port, tmp_path), dict[int, str]()
    try:
        output_until(server, "Ctrl-C")
        below = processes_below(server.pid)
        server.kill()
        until = time.monotonic() + 150  # Ray's agents look for their raylet once a minute or so
        while still_there(below) and time.monotonic() < until:
            time.sleep(0.5)
        assert still_there(below) == []
        run.require_free("127.0.0.1", port)
    finally:
        end(server, below)


@pytest.mark.slow
def test_on_a_cluster_it_listens_where_it_is_told_and_ends_with_its_terminal(tmp_path: Path) -> None:
    bundle, gcs, port = write_bundle(tmp_path), free_port(), free_port()
    ray_command, bare = str(Path(sys.executable).with_name("ray")), {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    known = {**bare, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    said: dict[str, Any] = {"env": known, "cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def serve(*words: str) -> subprocess.Popen[str]:
        code = "from recollect.cli import main; main()"
        words = ("serve", str(bundle), "--address", f"127.0.0.1:{gcs}", *words)
        return subprocess.Popen([sys.executable, "-c", code, *words], start_new_session=True, **said)

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="joined-") as short:
        start = ["start", "--head", f"--port={gcs}", f"--temp-dir={short}/ray", "--num-cpus=4", "--include-dashboard=false"]
        head = subprocess.Popen(
            [ray_command, *start, "--object-store-memory=100000000", "--block"], start_new_session=True, **said
        )
        try:
            output_until(head, "--block")
            known["RECOLLECT_TOKEN"] = "a-token-of-this-test-alone"
            first = serve("--port", str(port))  # on 0.0.0.0
            told = output_until(first, "Ctrl-C stops it")
            url = f"http://127.0.0.1:{port}/v1/model"
            assert httpx.get(url, trust_env=False).status_code == 401, told
            known_to = {"Authorization": f"Bearer {known['RECOLLECT_TOKEN']}"}
            assert httpx.get(url, trust_env=False, headers=known_to).status_code == 200
            second = serve("--port", str(free_port()))
            out = ended(second)
            assert second.returncode == 2 and f"give --host 0.0.0.0 --port {port}" in out, out
            assert httpx.get(url, trust_env=False, headers=known_to).status_code == 200, "the first one is as it was"
            first.send_signal(signal.SIGHUP)  # what a broken connection sends
            rest = ended(first)
            assert first.returncode == 0 and "stopping" in rest, rest
            assert httpx.get(url, trust_env=False, headers=known_to).status_code == 404  # Serve is there, and serves nothing
            third = serve("--port", str(port), "--host", "0.0.0.0")
            output_until(third, "Ctrl-C stops it")
            os.killpg(third.pid, signal.SIGINT)
            assert ended(third) and third.returncode == 0
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            head.communicate(timeout=60)


def test_a_port_in_use_is_told_before_ray_starts(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port}: .*in use; port \d+ is free"):
            run.start(bundle, port=port)
    assert not ray.is_initialized()


def test_mistakes_are_told_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no bundle"):
        run.start(tmp_path, port=free_port())
    with pytest.raises(ValueError, match="max_batch"):
        run.start(write_bundle(tmp_path), port=free_port(), max_batch=3)
    bundle = write_bundle(tmp_path, name="damaged")
    (bundle / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file"):
        run.start(bundle, port=free_port())
    assert open_bundle(tmp_path / "tinted").run.name == "tinted"
    assert not ray.is_initialized()
