"""Training the runs of a table that are not finished, each from its checkpoint where it has one, and after what it starts from.

In this process one at a time, in processes of their own (`parallel`), or on a Ray cluster (`on`), for which either serves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import experiments
import recollect
from experiments.tables.jobs import Job, Outcome, digest_of, look, read, steps_done, steps_kept, write
from experiments.tables.locks import PATIENCE, locked
from experiments.tables.stages import hindrance, prepared, write_job
from experiments.tables.table import OnRay
from recollect.bundle import copy, filesystem_of, open_bundle
from recollect.config import Run
from recollect.training.session import train as train_run
from recollect.training.tracking import duration

QUIET = 60.0  # seconds between two lines that only say how far it is
Say = Callable[[str], None]


def train_jobs(jobs: Sequence[Job], parallel: int = 1, on: OnRay | None = None, say: Say = print) -> list[Outcome]:
    """Train what is not finished yet, and return how every job stands. One that fails stops those alone that start from it.

    Args:
        jobs: parents before what starts from them, as `plan` has them.
        parallel: 1 trains in this process; more in so many processes at a time, each with one thread.
        on: train on this Ray cluster, which this process is connected to.
        say: told at every end, and every minute in between with `parallel`.

    Ctrl-C (KeyboardInterrupt) stops everything that runs; it goes on from its last checkpoint the next time.
    """
    every = {job.place: job for job in reversed(jobs)}  # arms that are one run are trained once, where the first of them stands
    waiting = [job for job in jobs if every[job.place] is job and look(job).facts is None]
    progress = Progress(waiting, len(every), parallel, say)
    for job in waiting:
        write_job(job)
    if parallel > 1:
        _train_in_processes(waiting, parallel, on, progress)
    else:
        for job in waiting:
            if not _kept_back(job, progress):
                progress.begins(job)
                with contextlib.suppress(Exception):  # it is in failed.json
                    complete(job.place, on)
                progress.ended(job)
    return [look(job) for job in jobs]


def _kept_back(job: Job, progress: Progress) -> bool:
    """Whether what a job starts from failed; its own failure says so then."""
    why = hindrance(job)
    if why:
        write(job.place, "failed.json", {"error": why})
        progress.begins(job)
        progress.ended(job)
    return bool(why)


class Progress:
    """Lines that say what ended and how long the rest will take, by the steps a second so far."""

    def __init__(self, jobs: Sequence[Job], total: int, parallel: int, say: Say) -> None:
        self.say, self.total, self.done, self.began, self.said = say, total, total - len(jobs), time.monotonic(), time.monotonic()
        self.steps = {job: steps_kept(job) for job in jobs}  # as they stood
        self.running: dict[Job, float] = {}
        if total:
            again = sum(steps > 0 for steps in self.steps.values())
            say(f"{total} runs: {self.done} finished, {again} to go on with, {len(jobs) - again} to begin; {parallel} at a time")

    def begins(self, job: Job) -> None:
        self.running[job] = time.monotonic()

    def ended(self, job: Job) -> None:
        """Say how a job ended."""
        took, outcome = duration(time.monotonic() - self.running.pop(job)), look(job)
        self.done += 1
        how = f"{job.run.engine.steps} steps, {took}" if outcome.facts else f"FAILED after {took}: {outcome.error}"
        self.say(f"[{self.done}/{self.total}] {job}: {how}; {self._left()}")
        self.said = time.monotonic()

    def tick(self) -> None:
        """Say how far it is, where nothing has been said for a while."""
        if time.monotonic() - self.said >= QUIET:
            self.said = time.monotonic()
            running = ", ".join(f"{job} at {steps_done(job)}/{job.run.engine.steps}" for job in self.running)
            self.say(f"[{self.done}/{self.total}] {running}; {self._left()}")

    def _left(self) -> str:
        if self.done == self.total:
            return "nothing left"
        now = {job: steps_done(job) for job in self.steps}
        left = sum(job.run.engine.steps - now[job] for job in self.steps if not look(job).error)
        made = sum(now[job] - before for job, before in self.steps.items())
        return f"about {duration((time.monotonic() - self.began) / made * left)} left" if made > 0 else "no estimate yet"


def complete(place: str, on: OnRay | None = None) -> None:
    """Train the run of a place to its end, from its checkpoint where it has one, and leave done.json.

    Raises what training raises, and leaves it in failed.json.
    """
    config = read(place, "run.json")
    assert config is not None, "whoever plans a job writes its run"
    run = Run.model_validate(config)
    try:
        with _workplace(place) as directory, locked(directory / "lock", PATIENCE):
            stage = read(place, "stage.json")
            run, parents = prepared(run, stage, on) if stage else (run, {})
            spent = Spent(directory / "seconds.json")
            bundle = (
                _train_on_ray(run, place, directory, on, spent) if on else train_run(run, directory, resume=True, report=spent)
            )
            if "://" in place:
                copy(bundle, f"{place}/{bundle.name}")
            facts = _facts(run, bundle, spent.seconds, on)
            own = {"run": stage["digest"], "parents": parents} if stage else {}
            write(place, "done.json", {**facts, **own})
    except Exception as error:
        logging.getLogger("recollect").error("%s", traceback.format_exc())
        write(place, "failed.json", {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise


class Spent:
    """The seconds that went into what is kept: those of earlier sessions up to their last checkpoint, and this one's."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()
        self.before = float(json.loads(path.read_text())) if path.exists() else 0.0
        self.seconds = self.before

    def __call__(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        self.seconds = self.before + time.monotonic() - self.began
        self.path.write_text(json.dumps(self.seconds))


def _facts(run: Run, bundle: Path, seconds: float, on: OnRay | None) -> dict[str, Any]:
    import torch

    opened = open_bundle(bundle)
    data = str(opened.manifest["parents"]["data"])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and run.engine.device != "cpu" else "no GPU"
    machine = f"{os.cpu_count()} cores, {device}, torch {torch.__version__}"
    return {
        "run": digest_of(run, data),
        "bundle": bundle.name,
        "digest": opened.digest,
        "step": max((int(row["step"]) for row in opened.metrics()), default=0),  # the best weights may be older than the run
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in opened.build().parameters()),
        "machine": f"Ray, {on.workers} workers a run; driver with {machine}" if on else machine,
        "recollect": recollect.__version__,
    }


def _train_on_ray(run: Run, place: str, directory: Path, on: OnRay, spent: Spent) -> Path:
    """Ray keeps its checkpoints at `place/ray` until the run is whole."""
    from recollect.training import launch

    resources = launch.Resources(on.workers, gpus_per_worker=on.gpus_per_worker)
    try:
        bundle = launch.fetch(launch.train(run, f"{place}/ray", "run", resources), directory)
    finally:
        spent({}, None)
    filesystem, root = filesystem_of(f"{place}/ray")
    filesystem.delete_dir(root)
    return bundle


@contextlib.contextmanager
def _workplace(place: str) -> Iterator[Path]:
    """The folder to train in: the place itself, or a temporary one where the place is remote."""
    if "://" not in place:
        yield Path(place)
        return
    folder = Path(tempfile.mkdtemp(prefix="recollect-table-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train_in_processes(jobs: Sequence[Job], parallel: int, on: OnRay | None, progress: Progress) -> None:
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while len(running) < parallel and (job := _next(waiting, running)) is not None:
                waiting.remove(job)
                if not _kept_back(job, progress):
                    running[job] = _start(job, on)
                    progress.begins(job)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    if look(job).facts is None and not look(job).error:  # it had no time to say why
                        write(job.place, "failed.json", {"error": f"its process ended with {process.returncode}; see log.txt"})
                    progress.ended(job)
            progress.tick()
            time.sleep(0.1)
    finally:
        _stop(list(running.values()))


def _next(waiting: Sequence[Job], running: Collection[Job]) -> Job | None:
    """The first of the jobs whose parents have all ended."""
    places = {job.place for job in (*waiting, *running)}
    return next((job for job in waiting if not any(parent.place in places for parent in job.parents)), None)


def _start(job: Job, on: OnRay | None) -> subprocess.Popen[bytes]:
    """One process for one job, in a session of its own, so that Ctrl-C reaches it through us and only once."""
    command = [sys.executable, "-m", "experiments.tables.runs", job.place, "--parent", str(os.getpid())]
    if on is not None:
        command += ["--address", on.address, "--workers", str(on.workers), "--gpus-per-worker", str(on.gpus_per_worker)]
    roots = [str(Path(module.__file__ or "").parents[1]) for module in (experiments, recollect)]
    paths = os.pathsep.join(dict.fromkeys([*roots, *filter(None, [os.environ.get("PYTHONPATH")])]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with _log(job) as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _log(job: Job) -> IO[bytes]:
    if "://" in job.place:
        return open(os.devnull, "ab")
    return (Path(job.place) / "log.txt").open("ab")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended: nobody would stop it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """One job in a process of its own; `train_jobs` starts these."""
    made = argparse.ArgumentParser(description="Train the run of a place of a table (its driver starts these).")
    made.add_argument("place")
    made.add_argument("--parent", type=int, required=True, help="end when this process is not the parent any more")
    made.add_argument("--address")
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--gpus-per-worker", type=float, default=0.0)
    arguments = made.parse_args(argv)
    _end_with(arguments.parent)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    on = OnRay(arguments.address, arguments.workers, arguments.gpus_per_worker) if arguments.address else None
    try:
        if on is not None:
            from recollect.cluster import connect

            connect(on.address)
        complete(arguments.place, on)
    except KeyboardInterrupt:
        return 130
    except Exception:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
