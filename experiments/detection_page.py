"""The page of `mguit_detection.py`: average precision by arm, and what each arm gains over the lower bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SOURCE_ONLY, ORACLE = "source only", "target oracle"


def page(frame: pd.DataFrame, resamples: dict[tuple[str, int, str], Any], source: str, target: str, command: str) -> str:
    """The table in Markdown: means over seeds with 95 % intervals, and the differences to the lower bound."""
    arms = list(dict.fromkeys([SOURCE_ONLY, *(arm for arm in frame["arm"] if arm != ORACLE), ORACLE]))
    arms = [arm for arm in arms if arm in set(frame["arm"])]
    metrics = list(dict.fromkeys(frame["metric"]))
    seeds = {arm: sorted(set(frame.loc[frame["arm"] == arm, "seed"])) for arm in arms}
    by = {(row.arm, row.seed, row.metric): float(row.value) for row in frame.itertuples()}  # type: ignore[arg-type]

    def cell(arm: str, metric: str, base: str | None = None) -> str:
        own = [seed for seed in seeds[arm] if (base is None or seed in seeds[base]) and (arm, seed, metric) in by]
        if not own:
            return ""
        values = [by[arm, seed, metric] - (by[base, seed, metric] if base else 0) for seed in own]
        drawn = [resamples[arm, seed, metric] - (resamples[base, seed, metric] if base else 0) for seed in own]
        low, high = spread_of(values, drawn)
        sign = "+" if base else ""
        return f"{100 * sum(values) / len(values):{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"

    parts = [metric for metric in metrics if metric.startswith("detection_map/")]
    shown = ["detection_map", "detection_map50", *parts]
    heads = ["mAP", "AP50", *(f"AP {metric.rpartition('/')[2]}" for metric in parts)]
    lines = [
        f"# Detection in {target} with boxes of {source}",
        "",
        f"COCO average precision on {target}'s test split, in per cent: the mean over seeds, and its 95 % interval over test",
        "pictures and seeds. The second table is paired with the first row: the same seeds, the same pictures.",
        "Regions that a data set marks as not to be judged (KITTI's DontCare, groups in Cityscapes, crowds in COCO) are in no",
        "store, so what is found in them counts as wrong, for every row alike; the data sets' own protocols leave it out.",
        "",
        *_table(["", "seeds", *heads], [[arm, str(len(seeds[arm])), *(cell(arm, metric) for metric in shown)] for arm in arms]),
    ]
    if SOURCE_ONLY in arms and len(arms) > 1:
        rows = [[arm, *(cell(arm, metric, SOURCE_ONLY) for metric in shown)] for arm in arms if arm != SOURCE_ONLY]
        lines += ["", f"Gained over `{SOURCE_ONLY}`:", "", *_table(["", *heads], rows)]
    return "\n".join([*lines, "", f"Made by `{command}`.", ""])


def spread_of(values: Sequence[float], drawn: Sequence[Any]) -> tuple[float, float]:
    """95 % interval of the mean over seeds: the resamples (N,) of the pictures, and the seeds' own chance by Student's t."""
    import torch

    from recollect.evaluation.statistics import bounds, student

    around = torch.stack(list(drawn)).double().mean(0)
    if len(values) > 1:
        deviation = float(torch.tensor(values, dtype=torch.double).std())
        around = around + deviation / math.sqrt(len(values)) * student(len(values) - 1, len(around), seed=1)
    return bounds(around)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
