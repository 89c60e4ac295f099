"""The whole line in one command: `make demo`, or `make demo DATA=folder` on your own pictures.

Draws the streets world (or reads the folders), searches MGUIT's memory with Ray Tune, trains the winner further with Ray Train on
two workers, evaluates it beside its baselines, writes a report, deploys it with Ray Serve and posts a picture to it over HTTP.
Everything lies in runs/demo (or runs/demo-<folder>) afterwards; DEMO_KEEP=1 leaves the endpoint up.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from recollect.config import Run
    from recollect.data.store import Store
    from recollect.search.tune import Outcome

TRIALS, TRIAL_STEPS, STEPS = 4, 90, 1400
OVER = (
    "model.memory.items_per_class.*",
    "model.memory.*_temperature",
    "weights.con_k",
    "weights.latent",
)


@dataclass
class Clock:
    """How long each stage took, for the table at the end."""

    stages: list[tuple[str, float]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def stage(self, name: str) -> None:
        """Close the running stage under its name, and say so."""
        now = time.monotonic()
        self.stages.append((name, now - self.since))
        self.since = now


class Memory(threading.Thread):
    """Samples the memory of this process and all it started (proportional set size, so that shared pages count once)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.peak = max(self.peak, sum(map(_proportional, _family())))
            time.sleep(2)


def _family() -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has just ended
            continue
    family = {os.getpid()}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _proportional(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; exits 0 only when every stage worked and the checks hold."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folders of pictures (default: the streets world)")
    made.add_argument("--out", type=Path, help="where everything goes (default: runs/demo; replaced)")
    made.add_argument("--steps", type=int, default=STEPS, help="steps of the winner in all (default: %(default)s)")
    made.add_argument("--trial-steps", type=int, default=TRIAL_STEPS, help="steps of a trial (default: %(default)s)")
    made.add_argument("--trials", type=int, default=TRIALS)
    made.add_argument("--workers", type=int, default=2, help="Ray Train workers of the winner's training (default: %(default)s)")
    made.add_argument("--port", type=int, default=0, help="of the endpoint (default: a free one)")
    made.add_argument("--keep", action="store_true", help="leave the endpoint up until Ctrl-C")
    arguments = made.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return demo(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def demo(arguments: argparse.Namespace) -> int:
    """All stages in order."""
    from recollect.cluster import connect, disconnect
    from recollect.data.store import Store
    from recollect.evaluation.validate import Validator

    clock, memory = Clock(), Memory()
    memory.start()
    out: Path = arguments.out or Path("runs") / (f"demo-{arguments.data.name}" if arguments.data else "demo")
    shutil.rmtree(out / "search", ignore_errors=True)
    for name in ("winner", "report.html", "results.parquet", "winner-run"):
        target = out / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    uri = _store(arguments.data, out)
    store = Store.open(uri)
    clock.stage("pictures")
    run = _run(store, arguments)
    judge = Validator(store, run)
    source, target_domain = run.direction()
    print(f"\n== {source} to {target_domain}; objective: {judge.about}")
    cluster = connect("local", cpus=max(2, arguments.workers))
    try:
        outcome = _search(run, judge, out, arguments)
        clock.stage(f"search ({arguments.trials} trials)")
        bundle = _train(run, outcome, out, arguments, cluster.gpus)
        clock.stage(f"training ({arguments.workers} workers)")
    finally:
        disconnect()
    shutil.copytree(bundle, out / "winner")
    frame = _evaluate(out / "winner", store, out)
    clock.stage("evaluation")
    report = _report(out, store, judge.about)
    clock.stage("report")
    _serve(out / "winner", store, run, out, arguments)
    clock.stage("endpoint")
    return _summary(out, report, frame, clock, memory, store.manifest.truth, run)


def _store(folder: Path | None, out: Path) -> str:
    """The store the demo works on, made where it is not there yet."""
    from experiments.stores import streets_store
    from recollect.data.sources.folders import ingest

    if folder is None:
        print("== pictures: drawing the streets world (sunny, night, rainy, cloudy) at 64 px")
        return streets_store(str(out / "streets-64"))
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; DATA is a folder with trainA/ and trainB/, or a folder a domain")
    print(f"== pictures: reading {folder}")
    uri = out / "store"
    shutil.rmtree(uri, ignore_errors=True)
    found = ingest(folder, str(uri), max_side=192)
    for path, reason in found.skipped:
        print(f"   skipped {path}: {reason}")
    print(f"   {found.manifest.counts}")
    return str(uri)


def _run(store: Store, arguments: argparse.Namespace) -> Run:
    from recollect.config import preset
    from recollect.training.session import suit

    run = preset(
        "mguit:tiny",
        name="demo",
        data={"short_side": None if store.manifest.truth else 72},  # photographs are cropped, drawn scenes fit as they are
        engine={
            "steps": arguments.trial_steps,
            "evaluate_every": max(arguments.trial_steps // 3, 1),
            "log_every": 20,
            "threads": 1,
        },
        evaluation={"pictures": 16},
    )
    return suit(run, store, lambda text: print(f"   {text}"))


def _search(run: Run, judge: Any, out: Path, arguments: argparse.Namespace) -> Outcome:
    from recollect.search.tune import Search, search

    print(f"\n== search: {arguments.trials} trials of at most {arguments.trial_steps} steps (Ray Tune, Optuna, ASHA)")
    plan = Search(run, OVER, arguments.trials, str(out / "search"), mode=judge.mode, seed=0)
    outcome = search(plan)
    columns = ["trial", "objective", "status", "step"]
    print(outcome.table[columns].to_string(index=False, float_format="%.4f"))
    return outcome


def _train(run: Run, outcome: Outcome, out: Path, arguments: argparse.Namespace, gpus: float) -> Path:
    from recollect.config import overlay
    from recollect.training import launch

    steps = arguments.steps
    print(f"\n== training the winner further, to step {steps}, on {arguments.workers} Ray Train workers")
    longer = overlay(
        overlay(run, outcome.changes),
        {
            "engine.steps": steps,
            "engine.evaluate_every": max(steps // 3, 1),
            "engine.sample_every": max(steps // 9, 1),  # pictures for the report
            "engine.log_every": 50,
        },
    )
    storage = (out / "winner-run" / "ray").absolute()
    result = launch.train(
        longer,
        str(storage),
        "winner",
        launch.Resources.fitting(arguments.workers, gpus),
        start=str(Path(outcome.checkpoint).absolute()),
    )
    return launch.fetch(result, out / "winner-run")


def _evaluate(bundle: Path, store: Store, out: Path) -> pd.DataFrame:
    from recollect.evaluation.evaluate import append, evaluate

    print("\n== evaluation on the test split, read once")
    frame = evaluate(str(bundle), store.uri, split="test")
    append(out / "results.parquet", frame)
    return frame


def _report(out: Path, store: Store, objective: str) -> Path:
    from recollect.bundle import open_bundle
    from recollect.evaluation.grids import save_png
    from recollect.evaluation.report.write import write_report
    from recollect.evaluation.validate import Validator
    from recollect.pipeline import Pipeline

    opened = open_bundle(out / "winner")
    grid = out / "grid.png"
    save_png(Validator(store, opened.run, split="test").grid(Pipeline.open(opened), rows=6), grid)
    source, target = opened.run.direction()
    return write_report(
        out / "report.html",
        [out / "winner-run", out / "search"],
        title=f"{opened.run.model.name}: {source} to {target}",
        about={"objective": objective},
    )


def _serve(bundle: Path, store: Store, run: Run, out: Path, arguments: argparse.Namespace) -> None:
    import httpx

    from recollect.config import resolve
    from recollect.ports import free_port

    start = resolve("serve.run:start")  # by name: recipes and the endpoint stand side by side, and neither imports the other
    source, target = run.direction()
    picture = store.record(store.ids("test", source)[0]).image
    print("\n== endpoint: deploying the winner with Ray Serve")
    with start(str(bundle), port=arguments.port or free_port()) as running:
        began = time.monotonic()
        answer = httpx.post(
            f"{running.url}/v1/translate",
            files={"image": ("input", picture)},
            data={"target": target, "source": source},
            timeout=60,
        )
        answer.raise_for_status()
        (out / "served-input.png").write_bytes(picture)
        (out / "served.png").write_bytes(answer.content)
        took, kind = time.monotonic() - began, answer.headers["content-type"]
        print(f"   POST {running.url}/v1/translate -> {answer.status_code} {kind} in {took:.2f} s")
        if arguments.keep:
            print(f"   kept up at {running.url} (docs at {running.url}/docs); Ctrl-C ends it")
            _until_interrupted()


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopped")


def _summary(out: Path, report: Path, frame: pd.DataFrame, clock: Clock, memory: Memory, truth: bool, run: Run) -> int:
    from recollect.evaluation.evaluate import show

    print("\n== result")
    show(frame)
    code = _checks(frame, run) if truth else 0
    for name, seconds in clock.stages:
        print(f"   {name:28} {seconds:6.1f} s")
    print(f"   {'in all':28} {sum(seconds for _, seconds in clock.stages):6.1f} s")
    print(f"   peak memory of all processes {memory.peak / 2**30:.1f} GiB")
    for label, path in {
        "report": report,
        "grid": out / "grid.png",
        "table": out / "results.parquet",
        "trials": out / "search" / "trials.parquet",
        "bundle": out / "winner",
        "served picture": out / "served.png",
    }.items():
        print(f"   {label:15} {path}")
    print(f"   look inside     recollect board {out}")
    return code


def _checks(frame: pd.DataFrame, run: Run) -> int:
    """The claims of the demo on the streets world: better than the input, black and the best constant, with content kept."""
    values = frame.set_index(["name", "metric"])["value"]
    own = frame[frame["kind"] == "method"]["name"].iloc[0]
    score = float(values[own, "scene_error"])
    failed = []
    for name in ("the input itself", "black", "best constant colour"):
        other = float(values[name, "scene_error"])
        print(f"   scene_error {score:.4f} against {other:.4f} for {name}: {'better' if score < other else 'NOT better'}")
        failed += [name] if score >= other else []
    for name in ("best colour map", "best colour map per region"):
        other = float(values[name, "scene_error"])
        fell = "better" if score < other else "not better"
        print(f"   scene_error {score:.4f} against {other:.4f} for {name}, which had the truth in hand: {fell}")
    kept, floor = float(values[own, "content_kept"]), run.evaluation.content_floor
    print(f"   content_kept {kept:.3f}, floor {floor}: {'kept' if kept >= floor else 'NOT kept'}")
    return 0 if not failed and kept >= floor else 1


if __name__ == "__main__":
    sys.exit(main())
