"""A logged number over the steps, of one run or of several, drawn as a small inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

WIDTH, HEIGHT = 240, 110
LEFT, RIGHT, TOP, BOTTOM = 42, 6, 6, 14  # room for the labels of the axes
POINTS = 300  # more than there are pixels; longer histories are averaged down to this
DECADES = 1.5  # positive values that span more than so many powers of ten are drawn on a log scale
GROUPS = 16  # classes c0, c1, ... of runs that are drawn together
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
        return all_log([self])

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
    return overlay([curve])


def overlay(curves: Sequence[Curve | None]) -> str:
    """An SVG of one curve of each run, all on the same axes; None for a run without it.

    One alone is drawn with every value faint behind its running mean. Of several only the running means are drawn, each in the
    class `c<n>` of its place. The scale is logarithmic where that fits all of them.
    """
    log = all_log([curve for curve in curves if curve is not None])
    shown = [(place, curve.thinned()) for place, curve in enumerate(curves) if curve is not None]
    scale = math.log10 if log else float
    values = [value for _, curve in shown for value in (curve.values if len(curves) == 1 else curve.smoothed())]
    low, high = scale(min(values)), scale(max(values))
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    first = min(curve.steps[0] for _, curve in shown)
    last = max(max(curve.steps[-1] for _, curve in shown), first + 1)

    def place_of(step: int, value: float) -> str:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - scale(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(kind: str, curve: Curve, heights: Sequence[float]) -> str:
        points = " ".join(place_of(step, value) for step, value in zip(curve.steps, heights, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    def drawn(curve: Curve) -> str:
        if len(curve.values) <= DOTS and len(curves) == 1:
            spots = [place_of(step, value).split(",") for step, value in zip(curve.steps, curve.values, strict=True)]
            return line("line", curve, curve.values) + "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="2"/>' for x, y in spots)
        behind = line("raw", curve, curve.values) if len(curves) == 1 else ""
        dot = ""
        if len(curve.values) == 1:
            x, y = place_of(curve.steps[0], curve.values[0]).split(",")
            dot = f'<circle class="dot" cx="{x}" cy="{y}" r="2"/>'
        return behind + line("line", curve, curve.smoothed()) + dot

    lines = "".join(
        f'<g class="c{place % GROUPS}">{drawn(curve)}</g>' if len(curves) > 1 else drawn(curve) for place, curve in shown
    )
    count = sum(len(curve.values) for _, curve in shown)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{count} values by step">'
        + "".join(_level(value, low, high, log) for value in (low, (low + high) / 2, high))
        + f'<text x="{LEFT}" y="{HEIGHT - 2}">{first}</text>'
        + f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{last}</text>'
        + f"{lines}</svg>"
    )


def all_log(curves: Sequence[Curve]) -> bool:
    """Whether a log scale fits all of these curves together: only positive values, over more than `DECADES`."""
    low, high = min(min(curve.values) for curve in curves), max(max(curve.values) for curve in curves)
    return low > 0 and math.log10(high / low) > DECADES


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
