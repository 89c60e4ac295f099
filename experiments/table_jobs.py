"""The jobs of a table: which runs it consists of, where each lies, and how each stands.

A finished run is known by the digest of its configuration and of its data, so whoever starts the same table again trains only
what is missing. A run's place is `<storage>/<table>/<arm>-<domains>/<seed>-<digest>`:

    run.json                what is trained
    last/ best/ ...         a run's directory, as everywhere (trained on Ray: without Ray's checkpoints)
    log.txt                 what a process of its own said
    done.json, failed.json  how it ended
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tables import Arm
from recollect.bundle import filesystem_of
from recollect.config import Data, Run, overlay
from recollect.data.store import Store
from recollect.training.checkpoint import SCALARS
from recollect.training.session import suit

CHECKPOINTS = 20  # of a run that says nothing about them: so much of it is lost at most when it is stopped


@dataclass(frozen=True, eq=False)  # known by itself: a Run has no hash
class Job:
    """One arm with one seed on one store. `place` is a folder or URI."""

    arm: str
    seed: int
    run: Run
    data: str
    digest: str
    place: str

    def __str__(self) -> str:
        return f"{self.arm} ({'-'.join(self.run.data.domains)}) seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the facts of its done.json, or what went wrong; neither where it has not ended."""

    job: Job
    facts: dict[str, Any] | None = None
    error: str = ""

    @property
    def bundle(self) -> str:
        """Path or URI of the trained bundle."""
        assert self.facts is not None
        return f"{self.job.place}/{self.facts['bundle']}"


def plan(arms: Sequence[Arm], seeds: Sequence[int], storage: str) -> list[Job]:
    """The jobs of a table below `storage`, all arms with the first seed first. Equal seeds mean equal data in equal order.

    Raises ValueError for arms of one name, and for arms on the same domains of a store that do not see the same pictures.
    """
    stores: dict[str, Store] = {}
    jobs: list[Job] = []
    cuts: dict[tuple[str, tuple[str, ...]], tuple[str, Data]] = {}
    for seed in dict.fromkeys(seeds):
        for arm in arms:
            uri = arm.run.data.store
            store = stores.setdefault(uri, stores.get(uri) or Store.open(uri))
            every = arm.run.engine.checkpoint_every or max(arm.run.engine.steps // CHECKPOINTS, 1)
            changes = {"name": arm.name, "seed": seed, "engine.checkpoint_every": every}
            run = overlay(suit(arm.run, store, lambda text: None), changes)
            first = cuts.setdefault((uri, run.data.domains), (arm.name, run.data))
            if first[1] != run.data:
                raise ValueError(f"{first[0]} and {arm.name} do not see the same pictures: {first[1]} and {run.data}")
            digest = digest_of(run, store.digest)
            folder = f"{_slug(arm.name)}-{'-'.join(run.data.domains)}/{seed}-{digest[:12]}"
            jobs.append(Job(arm.name, seed, run, store.digest, digest, f"{storage}/{folder}"))
    known = [(job.arm, job.run.data.domains, job.seed) for job in jobs]
    twice = [job.arm for job, key in zip(jobs, known, strict=True) if known.count(key) > 1]
    if twice:
        raise ValueError(f"two arms are called {twice[0]!r} on the same domains; every arm needs a name of its own")
    return jobs


def digest_of(run: Run, data: str) -> str:
    """What a run is known by: its configuration without its name and its store's place, and the digest of its data."""
    known = overlay(run, {"name": "", "data.store": ""}).model_dump(mode="json")
    return hashlib.sha256(json.dumps([known, data], sort_keys=True).encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def look(job: Job) -> Outcome:
    """How a job stands, from what lies at its place."""
    done, failed = read(job.place, "done.json"), read(job.place, "failed.json")
    if done is not None and done["run"] == job.digest:
        return Outcome(job, done)
    return Outcome(job, error=str(failed["error"]) if failed else "")


def read(place: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a place; None where there is none."""
    filesystem, root = filesystem_of(f"{place}/{name}")
    try:
        with filesystem.open_input_stream(root) as stream:
            found: dict[str, Any] = json.loads(stream.read())
    except FileNotFoundError:
        return None
    return found


def write(place: str, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file into a place."""
    write_bytes(f"{place}/{name}", (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file at a path or URI; a reader sees the old one or the new one, never a half."""
    filesystem, root = filesystem_of(uri)
    folder, _, name = root.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/.{name}-new") as stream:
        stream.write(content)
    filesystem.move(f"{folder}/.{name}-new", root)


def remove(place: str, name: str) -> None:
    """Remove a file of a place, if it is there."""
    filesystem, root = filesystem_of(f"{place}/{name}")
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(root)


def steps_kept(job: Job) -> int:
    """The step that a job would go on from. Of a run on Ray nothing is seen until it ends."""
    if look(job).facts is not None:
        return job.run.engine.steps
    path = Path(job.place) / "last" / SCALARS
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def steps_done(job: Job) -> int:
    """How far a job's training is, by its checkpoint and its history."""
    path = Path(job.place) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    logged = int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0
    return max(steps_kept(job), logged)
