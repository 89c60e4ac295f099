"""A logged number over the steps, drawn as a small inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

WIDTH, HEIGHT = 240, 110
LEFT, RIGHT, TOP, BOTTOM = 42, 6, 6, 14  # room for the labels of the axes
POINTS = 300  # more than there are pixels; longer histories are averaged down to this
DECADES = 1.5  # positive values that span more than so many powers of ten are drawn on a log scale
DOTS = 40  # up to so many values are drawn as single dots too: validation is sparse


@dataclass(frozen=True)
class Curve:
    """A named number by step; all values are finite and there is at least one."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, name: str, history: Sequence[Mapping[str, Any]]) -> Self | None:
        """The curve of `name` in a history; None where nothing finite was logged under it."""
        found = [(int(row.get("step", place)), row[name]) for place, row in enumerate(history) if name in row]
        kept = [(s, float(v)) for s, v in found if isinstance(v, (int, float)) and math.isfinite(v)]
        return cls(name, tuple(s for s, _ in kept), tuple(v for _, v in kept)) if kept else None

    @property
    def log(self) -> bool:
        """Whether a log scale fits: only positive values, over more than `DECADES`."""
        return min(self.values) > 0 and math.log10(max(self.values) / min(self.values)) > DECADES

    def thinned(self) -> Self:
        """At most `POINTS` values, each the mean of its neighbours."""
        if len(self.values) <= POINTS:
            return self
        edges = [round(i * len(self.values) / POINTS) for i in range(POINTS + 1)]
        bins = list(zip(edges, edges[1:], strict=False))
        values = tuple(sum(self.values[a:b]) / (b - a) for a, b in bins)
        return type(self)(self.name, tuple(self.steps[(a + b) // 2] for a, b in bins), values)

    def smoothed(self) -> tuple[float, ...]:
        """A running mean over a twentieth of the curve (not less than 3 values), centred."""
        reach = max(1, len(self.values) // 40)
        windows = (self.values[max(0, i - reach) : i + reach + 1] for i in range(len(self.values)))
        return tuple(sum(window) / len(window) for window in windows)


def chart(curve: Curve) -> str:
    """An SVG of the curve: every value faint and a running mean strong, or a line with dots where there are few values."""
    log, curve = curve.log, curve.thinned()
    scale = math.log10 if log else float
    low, high = scale(min(curve.values)), scale(max(curve.values))
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    first, last = curve.steps[0], max(curve.steps[-1], curve.steps[0] + 1)

    def place(step: int, value: float) -> str:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - scale(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(kind: str, values: Sequence[float]) -> str:
        points = " ".join(place(step, value) for step, value in zip(curve.steps, values, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    if len(curve.values) <= DOTS:
        spots = [place(step, value).split(",") for step, value in zip(curve.steps, curve.values, strict=True)]
        drawn = line("line", curve.values) + "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="2"/>' for x, y in spots)
    else:
        drawn = line("raw", curve.values) + line("line", curve.smoothed())
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{len(curve.values)} values by step">'
        + "".join(_level(value, low, high, log) for value in (low, (low + high) / 2, high))
        + f'<text x="{LEFT}" y="{HEIGHT - 2}">{first}</text>'
        + f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{last}</text>'
        + f"{drawn}</svg>"
    )


def _level(value: float, low: float, high: float, log: bool) -> str:
    y = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
    rule = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return rule + f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{number(10**value if log else value)}</text>'


def number(value: float) -> str:
    """Three significant digits, short enough for an axis.

    >>> number(0.12345), number(1234.5), number(0.0), number(0.0000123), number(123456.0)
    ('0.123', '1234', '0', '1.2e-05', '1.2e+05')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}"
