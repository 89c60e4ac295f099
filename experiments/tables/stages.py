"""Runs that start from other runs of a table: what keeps them from beginning, and their configuration once nothing does.

What is built between two stages (an index of the first one's embeddings, say) lies in `<storage>/<table>/between/<digest>`, by
the digest of the parents' bundles: whatever is there was made from just these, and all that start from them share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.tables.jobs import Job, look, read, remove, write
from experiments.tables.locks import locked
from experiments.tables.table import OnRay
from recollect.config import Run, resolve
from recollect.data.store import Store
from recollect.training.session import suit


def write_job(job: Job) -> None:
    """Lay at a job's place what is to be trained, for the process that does it; how it failed before is forgotten."""
    write(job.place, "run.json", json.loads(job.run.model_dump_json()))
    if job.prepare:
        places = [{"arm": parent.arm, "place": parent.place} for parent in job.parents]
        between = job.place.rsplit("/", 2)[0] + "/between"
        about = {"digest": job.digest, "data": job.data, "prepare": job.prepare, "parents": places, "between": between}
        write(job.place, "stage.json", about)
    remove(job.place, "failed.json")


def hindrance(job: Job) -> str:
    """Why a job cannot be started, given that nothing of it is at work any more; empty where it can."""
    for parent in job.parents:
        outcome = look(parent)
        if outcome.facts is None:
            how = f"failed: {outcome.error}" if outcome.error else "is not trained"
            return f"not started: {parent}, which it starts from, {how}"
    return ""


def prepared(run: Run, stage: dict[str, Any], on: OnRay | None = None) -> tuple[Run, dict[str, str]]:
    """The run with its parents' bundles in it, and the digests of these by arm; `on` is the Ray that it is to be trained on.

    Raises ValueError where a parent is not finished, where the store changed since the run was planned, where the recipe's
    function returns no run, and whatever that raises.
    """
    if (found := Store.open(run.data.store).digest) != stage["data"]:
        raise ValueError(f"{run.data.store} holds other pictures ({found[:12]}) than when the run was planned; start again")
    bundles: dict[str, str] = {}
    digests: dict[str, str] = {}
    for parent in stage["parents"]:
        facts = read(parent["place"], "done.json")
        if facts is None:
            raise ValueError(f"{parent['arm']}, which it starts from, is not finished: {parent['place']}")
        bundles[parent["arm"]] = f"{parent['place']}/{facts['bundle']}"
        digests[parent["arm"]] = facts["digest"]
    name = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]
    with _alone(f"{stage['between']}/{name}"):
        made = resolve(stage["prepare"])(run, bundles, f"{stage['between']}/{name}", on)
    if not isinstance(made, Run):
        raise ValueError(f"{stage['prepare']} returned {type(made).__name__}, not a Run")
    return suit(made, Store.open(made.data.store), lambda text: None), digests


@contextlib.contextmanager
def _alone(place: str) -> Iterator[None]:
    """Let one process at a time build at a place, however long that takes. At a remote place nothing keeps the others."""
    if "://" in place:
        yield
        return
    with locked(Path(f"{place}.lock"), patience=None):
        yield
