"""Numbers from rows: means over seeds with intervals, and paired differences. Tables and `recollect compare` are made of them.

See `recollect.evaluation.statistics` for the intervals. Settings are given by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd
import torch

from recollect.evaluation.evaluate import is_whole, short
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.statistics import Interval, Measured, difference, estimate
from recollect.evaluation.validate import parts_of


class Frames(Protocol):
    """A row a number, and a row a picture and metric."""

    @property
    def rows(self) -> pd.DataFrame: ...
    @property
    def pictures(self) -> pd.DataFrame: ...


class Numbers:
    """What was measured, ready for statistics: by setting, row of the table, and metric.

    Args:
        results: `rows` with a setting, an arm, a seed (-1: of a baseline, for which nothing was trained), a kind, a metric and a
            value each; `pictures` with setting, arm, seed, metric, picture, value and weight.
    """

    def __init__(self, results: Frames) -> None:
        self.rows = results.rows
        order = ["setting", "arm", "seed", "metric"]
        by_picture = results.pictures.sort_values("picture").groupby(order, sort=False)[["value", "weight"]]
        self._pictures: dict[Any, torch.Tensor] = {key: torch.tensor(own.to_numpy(float)) for key, own in by_picture}  # (B, 2)
        self._made_of: dict[tuple[str, str, int], list[str]] = {}  # the metrics that have values by picture
        for own, name, seed, metric in self._pictures:
            self._made_of.setdefault((own, name, seed), []).append(metric)
        self._scalars = self.rows.set_index(order)["value"].to_dict()

    def of(self, setting: str) -> pd.DataFrame:
        """The rows of a setting."""
        return self.rows[self.rows["setting"] == setting]

    def names(self, setting: str, kind: str) -> list[str]:
        """The rows of a kind in the order in which they were judged."""
        rows = self.of(setting)
        return [str(name) for name in rows[rows["kind"] == kind]["arm"].unique()]

    def seeds(self, setting: str, name: str) -> list[int]:
        """The seeds of an arm that were judged; [-1] for a baseline."""
        rows = self.of(setting)
        return sorted(int(seed) for seed in rows[rows["arm"] == name]["seed"].unique())

    def measured(self, setting: str, name: str, metric: str, seeds: Sequence[int]) -> Measured | None:
        """What was measured of an arm with these seeds; None where one of them lacks the metric."""
        keys = [(setting, name, seed) for seed in seeds]
        if not keys or any((*key, metric) not in self._scalars for key in keys):
            return None
        parts = sorted(parts_of(metric, self._made_of.get(keys[0], [])))
        if not parts:
            return Measured.of_seeds([float(self._scalars[(*key, metric)]) for key in keys])
        found = torch.stack([torch.stack([self._pictures[(*key, part)] for part in parts], -1) for key in keys])  # (S, B, 2, G)
        assert bool((found[:, :, 1] == found[:1, :, 1]).all()), f"{name}: the weights of {metric} are not the same for all seeds"
        return Measured(found[:, :, 0].nan_to_num(), found[0, :, 1])

    def estimate(self, setting: str, name: str, metric: str) -> Interval | None:
        """The mean over all seeds of an arm, with its interval."""
        measured = self.measured(setting, name, metric, self.seeds(setting, name))
        return None if measured is None else estimate(measured)

    def difference(self, setting: str, one: str, other: str, metric: str) -> tuple[Interval, int] | None:
        """`one` minus `other` over the seeds that both have, and how many those are."""
        seeds = [self.seeds(setting, name) for name in (one, other)]
        common = sorted(set(seeds[0]) & set(seeds[1]))
        chosen = [own if own == [-1] else (common if -1 not in seeds[0] + seeds[1] else own) for own in seeds]
        measured = [self.measured(setting, name, metric, own) for name, own in zip((one, other), chosen, strict=True)]
        if measured[0] is None or measured[1] is None or measured[0].values.shape[1:] != measured[1].values.shape[1:]:
            return None  # one of them lacks it, or the values by picture of it
        return difference(measured[0], measured[1]), max(map(len, chosen))

    def measured_in(self, settings: Sequence[str], metric: str) -> list[str]:
        """The settings in which anything has the metric; all of them where nothing has it anywhere."""
        found = [setting for setting in settings if (self.of(setting)["metric"] == metric).any()]
        return found or list(settings)

    def metrics(self, setting: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
        """The metrics of a setting that are columns, the parts of families that show them, and the metrics of memories.

        The first and last in the registry's order, then those by protocol; parts by family, in the order in which they were
        measured.
        """
        seen = [str(metric) for metric in self.of(setting)["metric"].unique()]
        listed = [metric for metric in METRICS if metric in seen]
        listed += [metric for metric in seen if metric not in METRICS and is_whole(metric)]
        memory = [metric for metric in listed if find_metric(metric).needs == "memory"]
        parts: dict[str, list[str]] = {}
        for metric in seen:
            if metric not in METRICS and find_metric(metric).parts:
                parts.setdefault(find_metric(metric).name, []).append(metric)
        return [metric for metric in listed if metric not in memory], parts, memory


def cell(interval: Interval | None, bold: bool = False, with_ends: bool = True) -> str:
    """A value, with the ends of its interval where it has one."""
    if interval is None:
        return ""
    value = f"**{short(interval.value)}**" if bold else short(interval.value)
    return value + (f" ({short(interval.low)} to {short(interval.high)})" if with_ends and interval.low == interval.low else "")


def signed(interval: Interval) -> str:
    """A difference, with the ends of its interval where it has one."""
    ends = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval.low == interval.low else ""
    return f"{interval.value:+.3f}{ends}"
