"""How good is the search? Every setting of a small space is trained to the end; then ASHA and TPE look for the best of them.

    python -m benchmarks.search_grid train  runs/grid        train all settings, some minutes; goes on where it was stopped
    python -m benchmarks.search_grid search runs/grid        search with three seeds, replaying what was trained

What the search is given is what training would have reported, evaluation by evaluation, so that its result is exact and costs
seconds; the space, the sampler and the scheduler are the platform's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from recollect.config import Choice, Run, overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.training.session import suit, train

EVALUATIONS, EVERY = 9, 6  # of each setting; steps between them
SPACE: dict[str, Choice] = {
    "optimisers.default.lr": Choice((1e-4, 2e-4, 4e-4, 8e-4, 16e-4, 32e-4)),
    "weights.self_rec": Choice((0.3, 1.0, 3.0, 10.0, 30.0, 100.0)),
}
TRIALS, SHARE = 15, 1 / 3  # of the search; of the grid's evaluations that it may use
WITHIN = 1.02


def run_on(store: Store) -> Run:
    """The run whose settings are searched: MGUIT, as small as it still learns something in seconds."""
    small = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 1, "generator_blocks": 1}
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={**small, "memory": {"value_dim": 8}},
        engine={"steps": EVALUATIONS * EVERY, "batch_size": 2, "evaluate_every": EVERY, "log_every": 100, "threads": 1},
        evaluation={"pictures": 8},
    )
    made = suit(made, store)
    return overlay(
        made, {f"optimisers.{net}.lr": 2e-4 for net in made.optimisers if net != "default"} | {"optimisers.default.lr": 2e-4}
    )


def settings() -> list[dict[str, Any]]:
    """The whole grid."""
    return [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*(choice.options for choice in SPACE.values()))]


def train_one(folder: Path, run: Run, number: int) -> int:
    """Train one setting to the end and keep its curve."""
    curve: list[float] = []

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        curve.append(metrics["objective"])

    with tempfile.TemporaryDirectory() as work:
        train(overlay(run, settings()[number]), Path(work) / "run", report=report)
    (folder / "curves" / f"{number:03d}.json").write_text(json.dumps(curve))
    return number


def train_grid(folder: Path) -> Path:
    """Train what is missing; returns the table `grid.parquet`: setting, evaluation, objective."""
    build_streets(folder / "store", size=32, train=64, val=8, test=2, references=3)
    run = run_on(Store.open(folder / "store"))
    (folder / "curves").mkdir(exist_ok=True)
    missing = [number for number in range(len(settings())) if not (folder / "curves" / f"{number:03d}.json").exists()]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number in pool.map(train_one, [folder] * len(missing), [run] * len(missing), missing):
            print(f"{number + 1}/{len(settings())}  {settings()[number]}", flush=True)
    rows = [
        {**setting, "evaluation": index + 1, "objective": value}
        for number, setting in enumerate(settings())
        for index, value in enumerate(json.loads((folder / "curves" / f"{number:03d}.json").read_text()))
    ]
    pd.DataFrame(rows).to_parquet(folder / "grid.parquet", index=False)
    return folder / "grid.parquet"


def searched(folder: Path, seed: int) -> dict[str, Any]:
    """One search of the grid with the platform's own sampler and scheduler: the best it found, and what it used."""
    from ray import tune

    from recollect.search import tune as platform

    table = pd.read_parquet(folder / "grid.parquet")
    run = run_on(Store.open(folder / "store"))
    curves = {values: list(curve) for values, curve in table.groupby(list(SPACE))["objective"]}

    def replay(config: dict[str, Any]) -> None:
        for number, value in enumerate(curves[tuple(config[name] for name in SPACE)]):
            tune.report({"step": float((number + 1) * EVERY), platform.OBJECTIVE: value})

    with tempfile.TemporaryDirectory() as place:
        plan = platform.Search(run, tuple(SPACE), trials=TRIALS, directory=place, concurrent=1, seed=seed)
        object.__setattr__(plan, "fields", {name: (choice, plan.fields[name][1]) for name, choice in SPACE.items()})
        grid = platform._tuner(plan, tune.with_resources(replay, {"CPU": 1}), place, platform._journal(place)).fit()
        histories = [result.metrics_dataframe for result in grid]
    found = min(float(history[platform.OBJECTIVE].min()) for history in histories)
    best = float(table["objective"].min())
    used = sum(map(len, histories))
    return {"seed": seed, "found": found, "best": best, "ratio": found / best, "evaluations": used, "share": used / len(table)}


def main(argv: list[str] | None = None) -> int:
    """Train the grid, or search it; the exit code says whether the search held what it promises."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "search"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    folder = arguments.folder.absolute()
    if arguments.what == "train":
        print(train_grid(folder))
        return 0
    from recollect.cluster import connect, disconnect

    connect("local", cpus=1, dashboard=False)
    try:
        rows = [searched(folder, seed) for seed in (0, 1, 2)]
    finally:
        disconnect()
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.4f"))
    ratio, share = (statistics.median(row[name] for row in rows) for name in ("ratio", "share"))
    print(f"median of 3 seeds: {ratio - 1:.2%} above the best of the grid, with {share:.1%} of its evaluations")
    return 0 if ratio <= WITHIN and share <= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
