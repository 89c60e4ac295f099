"""MLflow as a sink: against a real server where one is installed; and that a server which fails never stops a training."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.ports import free_port
from recollect.training.mlflow import METRICS, PARAMS, MLflowError, Sink
from recollect.training.session import train

MLFLOW = os.environ.get("RECOLLECT_MLFLOW", "") or shutil.which("mlflow") or ""  # in an environment of its own: its pins differ
TINY = {"width": 8, "critic_width": 8}


@pytest.fixture
def run(store: Store) -> Run:
    data = {"store": store.uri, "domains": ("sunny", "night"), "size": 32}
    engine = {"steps": 4, "batch_size": 1, "log_every": 1, "evaluate_every": 2}
    return preset("munit:tiny", name="logged", data=data, model=TINY, engine=engine, evaluation={"pictures": 2})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server with its own database and artifacts."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([MLFLOW, *words], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until and process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def asked(uri: str, path: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{uri}/api/2.0/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
@pytest.mark.skipif(not MLFLOW, reason="no MLflow server is installed")
def test_a_run_is_on_the_server_as_it_is_on_the_disk(server: str, run: Run, tmp_path: Path) -> None:
    run = overlay(run, {"engine.mlflow": server})
    train(run, tmp_path / "run")
    train(overlay(run, {"engine.steps": 6}), tmp_path / "run", resume=True)
    id = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run"]
    found = asked(server, f"mlflow/runs/get?run_id={id}")["run"]
    assert found["info"]["status"] == "FINISHED" and found["info"]["run_name"] == "logged"
    params = {pair["key"]: pair["value"] for pair in found["data"]["params"]}
    assert params["model.name"] == "munit" and params["engine.batch_size"] == "1" and params["weights.cyc_rec"]
    experiment = found["info"]["experiment_id"]
    runs = asked(server, "mlflow/runs/search", {"experiment_ids": [experiment]})["runs"]
    assert [one["info"]["run_id"] for one in runs] == [id], "resuming begins no second run"

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in (("loss/self_rec", "loss/self_rec"), ("feature_distance@pyramid", "feature_distance-pyramid")):
        curve = asked(server, f"mlflow/metrics/get-history?run_id={id}&metric_key={theirs}")["metrics"]
        wanted = {row["step"]: row[ours] for row in rows if ours in row}
        assert {point["step"]: point["value"] for point in curve} == pytest.approx(wanted) and wanted
    files = asked(server, f"mlflow/artifacts/list?run_id={id}")["files"]
    assert [file["path"] for file in files] == ["card.md"]
    place = re.sub(r"^mlflow-artifacts:/+", "", found["info"]["artifact_uri"])
    with urllib.request.urlopen(f"{server}/api/2.0/mlflow-artifacts/artifacts/{place}/card.md", timeout=20) as answer:
        assert "trained for 6 steps" in answer.read().decode()
    assert any(tag["key"] == "mlflow.note.content" and "# logged" in tag["value"] for tag in found["data"]["tags"])


class Moody(BaseHTTPRequestHandler):
    """Takes what MLflow takes, within its limits, and can be told to refuse."""

    refuse = False
    said: list[tuple[str, Any]] = []

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/api/2.0/mlflow/")
        fits = len(content.get("params", [])) <= PARAMS and len(content.get("metrics", [])) <= METRICS
        self._answer(500 if type(self).refuse or not fits else 200, {"run": {"info": {"run_id": "r1"}}, "experiment_id": "7"})
        if fits and not type(self).refuse:
            self.said.append((path, content))

    def do_GET(self) -> None:
        self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def _answer(self, code: int, content: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[str]:
    Moody.refuse, Moody.said = False, []
    listening = HTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def test_what_the_server_does_not_take_is_sent_later(
    moody: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink(f"{moody}/", run, tmp_path)
    params = {pair["key"] for path, said in Moody.said if path == "runs/log-batch" for pair in said["params"]}
    assert {"model.name", "engine.steps", "weights.cyc_rec"} <= params
    Moody.refuse, Moody.said = True, []
    with caplog.at_level(logging.WARNING):
        sink.row(1, {"loss/a@b": 0.5, "loss/c": float("nan")})
    assert "kept for the next time: 1 values" in caplog.text and "answered 500" in caplog.text
    Moody.refuse = False
    sink.row(2, {f"m{n}": 1.0 for n in range(METRICS + 5)})
    sent = [metric for _, said in Moody.said for metric in said["metrics"]]
    assert [(metric["key"], metric["step"], metric["value"]) for metric in sent[:2]] == [("loss/a-b", 1, 0.5), ("m0", 2, 1.0)]
    assert len(sent) == METRICS + 6 and len(Moody.said) == 2
    Moody.refuse = True
    sink.close("FINISHED", "# card")
    assert "was not told how the run ended" in caplog.text


def test_a_run_goes_on_where_it_was_and_only_there(moody: str, run: Run, tmp_path: Path) -> None:
    Sink(moody, run, tmp_path)
    count = sum(path == "runs/create" for path, _ in Moody.said)
    Sink(moody, run, tmp_path, start=2)
    assert count == 1 and sum(path == "runs/create" for path, _ in Moody.said) == 1
    Sink(moody, run, tmp_path, start=0)
    assert sum(path == "runs/create" for path, _ in Moody.said) == 2, "one that begins again is another run"


def test_a_server_that_is_not_there_is_told_before_training(run: Run, tmp_path: Path) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MLflowError, match=f"no MLflow server answers at {where}"):
        train(overlay(run, {"engine.mlflow": where}), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()
    with pytest.raises(MLflowError, match=r"as in http://127\.0\.0\.1:5000"):
        Sink("runs/mlruns", run, tmp_path)
