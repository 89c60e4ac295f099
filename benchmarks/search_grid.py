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
import statistics
import sys
import tempfile
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
TRIALS, SHARE = 16, 1 / 3  # of the search; of the grid's evaluations that it may use
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
    return overlay(made, {f"optimisers.{net}.lr": 2e-4 for net in made.optimisers if net != "default"} | {"optimisers.default.lr": 2e-4})


def settings() -> list[dict[str, Any]]:
    """The whole grid."""
    return [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*(choice.options for choice in SPACE.values()))]


def train_grid(folder: Path) -> Path:
    """Train what is missing; returns the table `grid.parquet`: setting, evaluation, objective."""
    build_streets(folder / "store", size=32, train=64, val=8, test=2, references=3)
    run = run_on(Store.open(folder / "store"))
    for number, setting in enumerate(settings()):
        kept = folder / "curves" / f"{number:03d}.json"
        if kept.exists():
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        curve: list[float] = []
        with tempfile.TemporaryDirectory() as work:
            train(overlay(run, setting), Path(work) / "run", report=lambda metrics, _: curve.append(metrics["objective"]))  # noqa: B023
        kept.write_text(json.dumps(curve))
        print(f"{number + 1}/{len(settings())}  {setting}  {min(curve):.4f}", flush=True)
    rows = [
        {**setting, "evaluation": index + 1, "objective": value}
        for number, setting in enumerate(settings())
        for index, value in enumerate(json.loads((folder / "curves" / f"{number:03d}.json").read_text()))
    ]
    pd.DataFrame(rows).to_parquet(folder / "grid.parquet", index=False)
    return folder / "grid.parquet"
