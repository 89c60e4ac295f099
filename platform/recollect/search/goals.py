"""What a search steers by: metrics by name, each with its direction, and what a setting may cost at most.

Costs are reported by training itself: `parameters`, and `seconds_per_step` without evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recollect.config import did_you_mean
from recollect.evaluation.metrics import METRICS, find_metric

Mode = Literal["min", "max"]
COSTS = ("parameters", "seconds_per_step")
OBJECTIVE = "objective"  # what a judge calls the number it steers by


@dataclass(frozen=True)
class Goal:
    """A number to minimise or maximise."""

    name: str
    mode: Mode

    @property
    def sign(self) -> int:
        """What makes smaller better."""
        return 1 if self.mode == "min" else -1

    @property
    def worst(self) -> float:
        """What a setting scores that was not tried."""
        return math.inf * self.sign

    def __str__(self) -> str:
        return f"{'minimises' if self.mode == 'min' else 'maximises'} {self.name}"


def goal(name: str, mode: Mode | None = None) -> Goal:
    """A goal by name; its direction is the metric's own, and costs are minimised.

    Raises ValueError for names that are neither a metric nor a cost, and for a `mode` that is not the metric's.

    >>> goal("content_kept"), goal("parameters", "min")
    (Goal(name='content_kept', mode='max'), Goal(name='parameters', mode='min'))
    """
    if name in COSTS:
        own: Mode = "min"
    else:
        try:
            own = "max" if find_metric(name).higher_is_better else "min"
        except ValueError:
            raise ValueError(f"there is no metric or cost {name!r}{did_you_mean(name, [*METRICS, *COSTS])}") from None
    if mode not in (None, own):
        better, verb = ("higher", "--maximise") if own == "max" else ("lower", "--minimise")
        raise ValueError(f"{name} is better when it is {better}: {verb} it")
    return Goal(name, own)


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """What a setting may cost at most, from `parameters=2e6` and `seconds_per_step=0.5`.

    Raises ValueError for other names, and for what is no positive number.

    >>> parse_limits(["parameters=2e6"])
    {'parameters': 2000000.0}
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in COSTS:
            raise ValueError(f"a limit is NAME=NUMBER with one of {', '.join(COSTS)}; not {text!r}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ValueError(f"the limit of {name} is a number, for instance {name}=1e6; not {value!r}") from None
        if not 0 < limits[name] < math.inf:
            raise ValueError(f"the limit of {name} is a positive number; not {value}")
    return limits


def excess(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[float]:
    """By how much of each limit its cost is above it, in the limits' order; at most 0 where it is kept, or not known.

    >>> excess({"parameters": 300.0}, {"parameters": 200.0, "seconds_per_step": 1.0})
    [0.5, 0.0]
    """
    return [float(metrics.get(name, limit)) / limit - 1 for name, limit in limits.items()]


def over(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The costs that are above their limits."""
    return [name for name, by in zip(limits, excess(metrics, limits), strict=True) if by > 0]


def front(rows: Sequence[Sequence[float]]) -> list[bool]:
    """Which rows no other is at least as good as in everything and better in something; smaller is better.

    >>> front([(1, 5), (2, 3), (2, 4), (3, 1)])
    [True, True, False, True]
    """

    def beaten(row: Sequence[float]) -> bool:
        return any(all(a <= b for a, b in zip(o, row, strict=True)) and tuple(o) != tuple(row) for o in rows)

    return [not beaten(row) for row in rows]
