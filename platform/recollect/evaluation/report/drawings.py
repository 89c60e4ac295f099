"""Drawings as inline SVG: dots with intervals, bars, parallel coordinates, a front of two objectives.

Colours are the page's classes `c<n>`; everything else is in the drawing's own units, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from recollect.evaluation.curves import number
from recollect.evaluation.report.html import series

LETTER = 5.6  # a letter's mean width at 10 units


class Mark(NamedTuple):
    """A value with the ends of its interval (nan: none), of the nth run (None: of a baseline), and whose it is."""

    value: float
    low: float
    high: float
    run: int | None
    name: str
    ceiling: bool = False  # a baseline that cannot be beaten: dotted


class Row(NamedTuple):
    """A line of a dot drawing."""

    label: str
    marks: tuple[Mark, ...]


def _room(labels: Sequence[str], most: float = 150) -> float:
    return min(most, max(map(len, labels), default=0) * LETTER + 10)


def _cut(text: str, width: float) -> str:
    fits = int(width / LETTER)
    return text if len(text) <= fits else f"{text[: max(fits - 1, 1)]}…"


def _rule(x: float, top: float, bottom: float) -> str:
    return f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def dot_rows(rows: Sequence[Row], width: int = 760) -> str:
    """A line a row: a dot for each run with its interval, and a grey stroke for each baseline, on one axis.

    Dots of one line stand a little below one another, so that intervals do not hide each other.
    """
    present = sorted({mark.run for row in rows for mark in row.marks if mark.run is not None})
    ends = [end for row in rows for mark in row.marks for end in (mark.value, mark.low, mark.high) if math.isfinite(end)]
    low, high = min(*ends, 0.0), max(ends)
    high = high if high > low else low + 1
    line = max(18.0, 7.0 * len(present) + 8)
    left, right, base = _room([row.label for row in rows]), 24.0, 6 + line * len(rows)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    drawn = ""
    for step in range(5):
        value = low + (high - low) * step / 4
        drawn += (
            _rule(at(value), 4, base)
            + f'<text x="{at(value):.1f}" y="{base + 12:.1f}" text-anchor="middle">{number(value)}</text>'
        )
    for place, row in enumerate(rows):
        top = 6 + line * place
        drawn += f'<text x="0" y="{top + line / 2 + 3:.1f}">{escape(_cut(row.label, left - 8))}</text>'
        for mark in row.marks:
            said = f"<title>{escape(f'{mark.name}: {number(mark.value)}')}</title>"
            x = at(mark.value)
            if mark.run is None:
                stroke = f'x1="{x:.1f}" x2="{x:.1f}" y1="{top + 3:.1f}" y2="{top + line - 3:.1f}"'
                drawn += f'<line class="mark{" dotted" * mark.ceiling}" {stroke}>{said}</line>'
                continue
            y = top + line * (present.index(mark.run) + 1) / (len(present) + 1)
            whisker = ""
            if math.isfinite(mark.low) and math.isfinite(mark.high):
                whisker = f'<line class="whisker" x1="{at(mark.low):.1f}" x2="{at(mark.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            dot = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2">{said}</circle>'
            drawn += f'<g class="{series(mark.run)}">{whisker}{dot}</g>'
    return f'<svg viewBox="0 0 {width} {base + 18:.0f}" role="img" aria-label="{len(rows)} values with intervals">{drawn}</svg>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """For each row its label, and beneath it a bar (its length a share of the longest) with a word behind it."""
    width, line = 380, 32
    most = max((value for _, value, _ in rows), default=0) or 1.0
    room = width - 10 - max((len(word) for _, _, word in rows), default=0) * LETTER
    drawn = ""
    for place, (label, value, word) in enumerate(rows):
        y, length = place * line, max(value / most, 0.0) * room
        drawn += f'<text x="0" y="{y + 11}">{escape(_cut(label, width))}</text>'
        drawn += f'<rect class="bar" x="0" y="{y + 15}" width="{length:.1f}" height="10" rx="2"/>'
        drawn += f'<text x="{length + 5:.1f}" y="{y + 24}">{escape(word)}</text>'
    return f'<svg viewBox="0 0 {width} {line * len(rows)}" role="img" aria-label="{len(rows)} bars">{drawn}</svg>'


def progress(values: Sequence[float], upward: bool) -> str:
    """The trials in their order: a ring each, and a line at the best so far."""
    width, height, left, bottom, top, right = 380, 170, 44, 18, 10, 10
    low, high = min(values), max(values)
    extent, last = (high - low) or 1.0, max(len(values) - 1, 1)
    across, down = width - left - right, height - top - bottom
    at = [(left + place / last * across, top + (high - value) / extent * down) for place, value in enumerate(values)]
    drawn = ""
    for value in (low, (low + high) / 2, high):
        y = top + (high - value) / extent * down
        drawn += f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">{number(value)}</text>'
    path, best = "", values[0]
    for (x, _), value in zip(at, values, strict=True):
        best = max(best, value) if upward else min(best, value)
        y = top + (high - best) / extent * down
        path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
    drawn += f'<path class="line" d="{path}"/>'
    drawn += "".join(
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{number(value)}</title></circle>'
        for (x, y), value in zip(at, values, strict=True)
    )
    drawn += f'<text x="{left}" y="{height - 3}">1</text>'
    drawn += f'<text x="{width - right}" y="{height - 3}" text-anchor="end">{len(values)}</text>'
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{len(values)} trials in their order">{drawn}</svg>'


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates: a place from 0 to 1 for every trial (None: it has none), and some in words."""

    name: str
    places: tuple[float | None, ...]
    ticks: tuple[tuple[float, str], ...]


def axis(name: str, values: Sequence[object], log: bool = False) -> Axis:
    """An axis of numbers, or of words where some are none. `log`: positive numbers at their logarithms.

    >>> axis("a", [1.0, 10.0, 100.0], log=True).places
    (0.0, 0.5, 1.0)
    """
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) < sum(v is not None and v == v for v in values) or not numbers:
        words = sorted({str(v) for v in values if v is not None})
        at = {word: place / max(len(words) - 1, 1) for place, word in enumerate(words)}
        return Axis(name, tuple(None if v is None else at[str(v)] for v in values), tuple((at[word], word) for word in words))
    log = log and min(numbers) > 0
    scale = math.log10 if log else float
    low, high = scale(min(numbers)), scale(max(numbers))
    extent = high - low or 1.0

    def place(value: object) -> float | None:
        return (scale(float(value)) - low) / extent if isinstance(value, int | float) and math.isfinite(value) else None

    ticks = [(step / 2, low + extent * step / 2) for step in range(3)] if high > low else [(0.0, low)]
    return Axis(name, tuple(map(place, values)), tuple((at, number(10**value if log else value)) for at, value in ticks))


def parallel(axes: Sequence[Axis], shades: Sequence[float], top: int | None) -> str:
    """Parallel coordinates: an axis a field, a line a trial through its values.

    Args:
        shades: of each trial from 0 (the best) to 1.
        top: the trial that is drawn strong and last.
    """
    gap, height, head, foot, side = 128, 200, 34, 10, 46
    width = gap * (len(axes) - 1) + 2 * side
    order = sorted(range(len(shades)), key=lambda trial: (trial == top, -shades[trial]))
    drawn = ""
    for trial in order:
        points = [(side + gap * a, own.places[trial]) for a, own in enumerate(axes)]
        path = " ".join(f"{x:.1f},{head + (1 - at) * height:.1f}" for x, at in points if at is not None)
        hue = f"hsl({215 - 185 * shades[trial]:.0f} 70% 50%)"
        drawn += f'<polyline class="trial{" top" * (trial == top)}" stroke="{hue}" points="{path}"/>'
    for a, own in enumerate(axes):
        x = side + gap * a
        drawn += _rule(x, head, head + height)
        for line, words in enumerate(_two_lines(own.name, gap - 6)):
            drawn += f'<text x="{x}" y="{11 + 11 * line}" text-anchor="middle">{escape(words)}</text>'
        for at, words in own.ticks:
            y = head + (1 - at) * height
            drawn += f'<text class="over" x="{x + 4}" y="{y + 3:.1f}">{escape(_cut(words, 70))}</text>'
    size = f'viewBox="0 0 {width} {head + height + foot}"'
    label = f"{len(shades)} trials over {len(axes)} axes"
    style = f"min-width:{min(width, 900)}px;max-width:{1.25 * width:.0f}px"
    return f'<svg {size} style="{style}" role="img" aria-label="{label}">{drawn}</svg>'


def _two_lines(name: str, width: float) -> list[str]:
    """A dotted name on at most two lines: its end, and above it what that is a part of."""
    if len(name) * LETTER <= width:
        return ["", name]
    *_, head, tail = ["", *name.split(".")]
    return [_cut(head, width), _cut(tail, width)]


def front(xs: Sequence[float], ys: Sequence[float], ahead: Sequence[bool], names: Sequence[str], labels: tuple[str, str]) -> str:
    """Points of two numbers; those `ahead` (no other is better in both) are filled, and joined.

    Args:
        labels: what the axes are.
    """
    width, height, left, bottom, top, right = 380, 250, 48, 34, 18, 14

    def scaled(values: Sequence[float], start: float, end: float) -> list[float]:
        low, extent = min(values), (max(values) - min(values)) or 1.0
        return [start + (value - low) / extent * (end - start) for value in values]

    px, py = scaled(xs, left + 8, width - right - 8), scaled(ys, height - bottom - 8, top + 8)
    drawn = f'<line class="grid" x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}"/>'
    drawn += _rule(left, top, height - bottom)
    best = sorted((i for i in range(len(xs)) if ahead[i]), key=lambda i: xs[i])
    drawn += (
        f'<polyline class="line even" points="{" ".join(f"{px[i]:.1f},{py[i]:.1f}" for i in best)}"/>' if len(best) > 1 else ""
    )
    for i in sorted(range(len(xs)), key=lambda i: ahead[i]):
        kind = 'class="dot" r="5"' if ahead[i] else 'class="ring" r="4"'
        said = escape(f"{names[i]}: {number(xs[i])}, {number(ys[i])}")
        drawn += f'<circle {kind} cx="{px[i]:.1f}" cy="{py[i]:.1f}"><title>{said}</title></circle>'
    for value, x, anchor in ((min(xs), left + 8, "start"), (max(xs), width - right, "end")):
        drawn += f'<text x="{x}" y="{height - bottom + 13}" text-anchor="{anchor}">{number(value)}</text>'
    for value, y in ((min(ys), height - bottom - 4), (max(ys), top + 12)):
        drawn += f'<text x="{left - 4}" y="{y}" text-anchor="end">{number(value)}</text>'
    drawn += f'<text x="{(left + width) / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(labels[0])}</text>'
    drawn += f'<text x="0" y="9">{escape(labels[1])}</text>'
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{len(xs)} trials">{drawn}</svg>'
