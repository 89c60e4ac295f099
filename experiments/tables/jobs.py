"""The jobs of a table: which runs it consists of, where each lies, and how each stands.

A finished run is known by the digest of its configuration and of its data (and of what it starts from), so whoever starts the
same table again trains only what is missing. A run's place is `<storage>/<table>/<arm>-<domains>/<seed>-<digest>`, and that of a
run that tables share `<storage>/<runs>/<method>-<domains>/<seed>-<digest>`:

    run.json                what is trained
    stage.json              what it starts from, where it starts from other runs
    last/ best/ ...         a run's directory, as everywhere (trained on Ray: without Ray's checkpoints)
    log.txt                 what a process of its own said
    done.json, failed.json  how it ended
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tables.table import Arm, parent_of, parents_first
from recollect.bundle import filesystem_of
from recollect.config import Data, Run, find_method, overlay
from recollect.data.store import Store
from recollect.training.checkpoint import SCALARS
from recollect.training.session import suit

CHECKPOINTS = 20  # of a run that says nothing about them: so much of it is lost at most when it is stopped


@dataclass(frozen=True, eq=False)  # known by itself: a Run has no hash
class Job:
    """One arm with one seed on one store. `place` is a folder or URI; `run` is what the parents' bundles do not determine."""

    arm: str
    seed: int
    run: Run
    data: str
    digest: str
    place: str
    parents: tuple[Job, ...] = ()
    prepare: str = ""
    shown: bool = True

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


def plan(arms: Sequence[Arm], seeds: Sequence[int], storage: str, shared: bool = False) -> list[Job]:
    """The jobs of a table below `storage`: all arms with the first seed first, and parents before what starts from them.

    With `shared` a run's place does not depend on its arm's name: equal runs of several tables, or arms, are one. Equal seeds
    mean equal data in equal order. Raises ValueError for arms of one name on the same domains, and for parents that are not
    there or go in a circle.
    """
    stores: dict[str, Store] = {}
    jobs: list[Job] = []
    for seed in dict.fromkeys(seeds):
        made: list[tuple[Arm, Job]] = []
        for arm in parents_first(arms):
            uri = arm.run.data.store
            store = stores.setdefault(uri, stores.get(uri) or Store.open(uri))
            parents = [parent_of(arm, name, arms) for name in arm.parents]
            own = tuple(job for parent in parents for other, job in made if other is parent)
            job = _job(arm, seed, store, own, f"{storage}/{_slug(arm.run.model.name if shared else arm.name)}")
            made.append((arm, job))
            jobs.append(job)
    known = [(job.arm, job.run.data.domains, job.seed) for job in jobs]
    twice = [job.arm for job, key in zip(jobs, known, strict=True) if known.count(key) > 1]
    if twice:
        raise ValueError(f"two arms are called {twice[0]!r} on the same domains; every arm needs a name of its own")
    return jobs


def _job(arm: Arm, seed: int, store: Store, parents: tuple[Job, ...], place: str) -> Job:
    every = arm.run.engine.checkpoint_every or max(arm.run.engine.steps // CHECKPOINTS, 1)
    changes = {"name": arm.name, "seed": seed, "engine.checkpoint_every": every}
    suited = _begun(arm.run, store) if arm.prepare else suit(arm.run, store, lambda text: None)
    run = overlay(suited, changes)
    digest = digest_of(run, store.digest, arm.prepare, [job.digest for job in parents])
    folder = f"{place}-{'-'.join(run.data.domains)}/{seed}-{digest[:12]}"
    _same_defaults(folder, run)
    return Job(arm.name, seed, run, store.digest, digest, folder, parents, arm.prepare, arm.shown)


def _same_defaults(place: str, run: Run) -> None:
    """Raise ValueError where what lies at a place was trained when a default was another."""
    before, now = read(place, "run.json"), json.loads(run.model_dump_json())
    elsewhere = {"name": "", "data": {**now["data"], "store": ""}}
    for name, old, new in _changed({**(before or {}), **elsewhere}, {**now, **elsewhere}):
        raise ValueError(
            f"{place} holds a run from when the default of {name} was {json.dumps(old)}; it is {json.dumps(new)} now. Set the "
            f"old value (--set {name}=...) or take another --storage"
        )


def _changed(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields of `before` that are others now; fields that it does not have are no change."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, before, now
        return
    for key, value in before.items():
        yield from _changed(value, now.get(key), f"{name}.{key}".lstrip("."))


def _begun(run: Run, store: Store) -> Run:
    """The run with its store and domains: the rest is known when its parents are trained."""
    needed: int = find_method(run.model.name).domains_needed
    uri = store.uri if "://" in store.uri else os.path.abspath(store.uri)
    return overlay(run, {"data.store": uri, "data.domains": run.data.domains or store.domains.names[:needed]})


def digest_of(run: Run, data: str, prepare: str = "", parents: Iterable[str] = ()) -> str:
    """What a run is known by: what it sets otherwise than the defaults, without its name and its store's place, and its data.

    So a field that comes with a later version leaves finished runs what they were. One that starts from others is known by
    their digests as well, and by what takes their bundles.
    """
    config = overlay(run, {"name": "", "data.store": ""}).model_dump(mode="json", exclude_defaults=True)
    known: list[Any] = [run.model.name, config, data]
    if prepare:
        known += [prepare, list(parents)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def same_pictures(jobs: Sequence[Job]) -> None:
    """Raise ValueError for shown arms on the same domains of a store that do not train on the same pictures."""
    elsewhere: dict[str, Any] = {"index": "", "library": ""}  # what guides a method is no picture that it trains on
    cuts: dict[tuple[str, tuple[str, ...]], tuple[str, Data]] = {}
    for job in jobs:
        if job.shown:
            own = job.run.data.model_copy(update=elsewhere)
            arm, first = cuts.setdefault((own.store, own.domains), (job.arm, own))
            if first != own:
                raise ValueError(f"{arm} and {job.arm} do not see the same pictures: {first} and {own}")


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
