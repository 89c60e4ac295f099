"""A run's numbers on an MLflow tracking server as well, over MLflow's own REST API; nothing is installed for it.

    recollect train mguit:tiny data.store=runs/photos engine.mlflow=http://127.0.0.1:5000 --out runs/first

The server gets the configuration as parameters, the history as metrics, and the card as the run's description and as the
artifact `card.md`. A run that is resumed goes on in the same MLflow run (`mlflow.json` in its directory says which); steps that
are taken again are logged again. The server must answer when training begins. After that, what it does not take is kept and
sent with the next rows; training waits ten seconds for it at most.

MLflow's names are letters, digits, `_-. :/`; other characters become `-` (`feature_distance-pyramid`). MLFLOW_EXPERIMENT_NAME,
MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD mean what they mean to MLflow.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recollect.config import Run

logger = logging.getLogger("recollect")

API = "api/2.0/mlflow"
TIMEOUT = 10.0  # seconds that training waits for an answer at most
PARAMS, METRICS = 100, 1000  # MLflow takes no more at once
LONGEST = 500  # characters of a parameter: what the oldest servers in use take
NOTE = 5000  # characters of a tag
STRANGE = re.compile(r"[^\w\-. :/]", re.ASCII)


class MLflowError(ValueError):
    """The server refused something, or was not there."""


class Sink:
    """One run on a tracking server. Only rank 0 has one.

    Args:
        uri: the server, as `http://host:port`.
        run: what is trained.
        directory: the run's directory, where `mlflow.json` is kept.
        start: the step training starts from; above 0 it goes on with the MLflow run in `mlflow.json`, where there is one.

    Raises MLflowError where the server cannot be reached or refuses.
    """

    def __init__(self, uri: str, run: Run, directory: Path, start: int = 0) -> None:
        if not uri.startswith(("http://", "https://")):
            raise MLflowError(f"engine.mlflow is {uri!r}; it is a tracking server's address, as in http://127.0.0.1:5000")
        self.uri, self._file, self._waiting = uri.rstrip("/"), directory / "mlflow.json", list[dict[str, Any]]()
        known = json.loads(self._file.read_text()) if start and self._file.exists() else {}
        self.id = str(known["run"]) if known.get("uri") == self.uri else self._begin(run)
        self._post("runs/update", {"run_id": self.id, "status": "RUNNING"})
        self._file.write_text(json.dumps({"uri": self.uri, "run": self.id}) + "\n")

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Send what was logged at a step, and what could not be sent before. Never raises: training goes on."""
        now = int(time.time() * 1000)
        numbers = {named(name): float(value) for name, value in values.items() if math.isfinite(value)}
        self._waiting += [{"key": key, "value": value, "timestamp": now, "step": step} for key, value in numbers.items()]
        try:
            while self._waiting:
                self._post("runs/log-batch", {"run_id": self.id, "metrics": self._waiting[:METRICS]})
                del self._waiting[:METRICS]
        except MLflowError as error:
            logger.warning("not sent to MLflow, and kept for the next time: %d values (%s)", len(self._waiting), error)

    def close(self, status: str, card: str) -> None:
        """Send the card and say how the run ended: FINISHED or FAILED. Never raises."""
        try:
            if self._waiting:
                self._post("runs/log-batch", {"run_id": self.id, "metrics": self._waiting[:METRICS]})
            self._post("runs/set-tag", {"run_id": self.id, "key": "mlflow.note.content", "value": card[:NOTE]})
            self._artifact("card.md", card.encode())
            self._post("runs/update", {"run_id": self.id, "status": status, "end_time": int(time.time() * 1000)})
        except MLflowError as error:
            logger.warning("MLflow was not told how the run ended: %s", error)

    def _begin(self, run: Run) -> str:
        """A new MLflow run with the configuration as its parameters."""
        experiment, now = self._experiment(), int(time.time() * 1000)
        tags = [{"key": "recollect.method", "value": run.model.name}]
        begun = {"experiment_id": experiment, "run_name": run.name, "start_time": now, "tags": tags}
        id = str(self._post("runs/create", begun)["run"]["info"]["run_id"])
        params = [{"key": named(name), "value": value[:LONGEST]} for name, value in _flat(run.model_dump(mode="json")) if value]
        for first in range(0, len(params), PARAMS):
            self._post("runs/log-batch", {"run_id": id, "params": params[first : first + PARAMS]})
        return id

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "recollect")
        try:
            found = self._get(f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': name})}")
            return str(found["experiment"]["experiment_id"])
        except MLflowError as error:
            if "RESOURCE_DOES_NOT_EXIST" not in str(error):
                raise
        return str(self._post("experiments/create", {"name": name})["experiment_id"])

    def _artifact(self, name: str, content: bytes) -> None:
        """Store a file with the run, where the server takes artifacts itself; else only the description has the card."""
        where = str(self._get(f"runs/get?run_id={self.id}")["run"]["info"].get("artifact_uri", ""))
        if not where.startswith("mlflow-artifacts:"):
            logger.info("MLflow keeps its artifacts at %s, not behind the server: the card is the run's description only", where)
            return
        path = urllib.parse.urlsplit(where).path.strip("/")
        self._send("PUT", f"{self.uri}/api/2.0/mlflow-artifacts/artifacts/{path}/{name}", content)

    def _get(self, path: str) -> Any:
        return self._send("GET", f"{self.uri}/{API}/{path}")

    def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        return self._send("POST", f"{self.uri}/{API}/{path}", json.dumps(content).encode())

    def _send(self, method: str, url: str, content: bytes | None = None) -> Any:
        request = urllib.request.Request(url, content, {"Content-Type": "application/json", **_authorisation()}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                text = answer.read()
            return json.loads(text or b"{}")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise MLflowError(f"MLflow at {self.uri} answered {error.code} to {url.partition('?')[0]}: {said}") from None
        except (OSError, ValueError) as error:
            raise MLflowError(f"no MLflow server answers at {self.uri}: {error}") from None


def named(name: str) -> str:
    """A name as MLflow takes it.

    >>> named("feature_distance@pyramid"), named("loss/con_k")
    ('feature_distance-pyramid', 'loss/con_k')
    """
    return STRANGE.sub("-", name)


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Leaves by dotted name, as text."""
    if not isinstance(tree, dict):
        return [(prefix, tree if isinstance(tree, str) else json.dumps(tree))]
    return [pair for name, inner in tree.items() for pair in _flat(inner, f"{prefix}.{name}".strip("."))]


def _authorisation() -> dict[str, str]:
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
