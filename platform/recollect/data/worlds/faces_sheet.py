"""Curves and the sheet on which a face is drawn: polygons that carry surface numbers, moved by the pose and painted once.

Lengths are in sides of the picture, x to the right and y down. The head has its origin between the eyes; its shapes turn as if
they lay on a ball (`relief`) in front of or behind the head's axis (`lift`), and tilt around the root of the neck.

Only + - * / and square roots make coordinates: every processor agrees on them to the last bit, so pictures are the same bytes
everywhere. Sines come rounded from tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

REGIONS = ("background", "clothes", "skin", "hair", "beard", "brows", "eyes", "mouth", "accessories")

Points = NDArray[np.float64]  # (N, 2)
Path = Sequence[tuple[float, float]]
Colour = tuple[float, float, float]

RADIUS = 0.24  # of the ball that faces are drawn on
PIVOT = 0.36  # below the eyes: the root of the neck, where a head tilts

_ANGLES = np.arange(24) * (2 * np.pi / 24)
CIRCLE: Points = np.round(np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1), 6)

_T = np.arange(4)[:, None] / 4  # a curve goes through its points, with three more between any two
_SPLINE = tuple(
    basis / 2
    for basis in (
        -_T + 2 * _T * _T - _T * _T * _T,
        2 - 5 * _T * _T + 3 * _T * _T * _T,
        _T + 4 * _T * _T - 3 * _T * _T * _T,
        -_T * _T + _T * _T * _T,
    )
)


def closed(path: Path | Points) -> Points:
    """A smooth outline through these points, and back to the first."""
    points = np.asarray(path, np.float64)
    around = np.concatenate([points[-1:], points, points[:2]])
    return _through(around)


def opened(path: Path | Points) -> Points:
    """A smooth line through these points, from the first to the last."""
    points = np.asarray(path, np.float64)
    beyond = np.concatenate([points[:1], points, points[-1:]])
    return np.concatenate([_through(beyond), points[-1:]])


def _through(points: Points) -> Points:
    """Catmull-Rom pieces between all points but the outer two, the end of each left to the next: (4 (N - 3), 2)."""
    before, here, there, after = (points[i : len(points) - 3 + i, None] for i in range(4))
    pieces = _SPLINE[0] * before + _SPLINE[1] * here + _SPLINE[2] * there + _SPLINE[3] * after
    return pieces.reshape(-1, 2)


def mirrored(half: Path) -> list[tuple[float, float]]:
    """An outline from its right half, given from top to bottom; points on the axis are not doubled."""
    return [*half, *((-x, y) for x, y in reversed(half) if x)]


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """An ellipse around (x, y)."""
    return CIRCLE * (rx, ry) + (x, y)


def ribbon(path: Path | Points, width: float, ends: float = 0.3, smooth: bool = True) -> Points:
    """A stroke along a line, `width` thick in its middle and `ends` times that where it ends."""
    line = opened(path) if smooth else np.asarray(path, np.float64)
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    squares = along * along
    normal = along[:, ::-1] * (taper(len(line), width, ends) / np.sqrt(squares[:, :1] + squares[:, 1:] + 1e-18))
    return np.concatenate([line + normal, (line - normal)[::-1]])


@lru_cache(maxsize=512)
def taper(count: int, width: float, ends: float) -> Points:
    """Half the thickness of a stroke at each of its points, times the signs that turn a direction into a normal."""
    t = (np.arange(count) * 2 / (count - 1) - 1)[:, None]
    return width / 2 * (ends + (1 - ends) * (1 - t * t)) * (-1, 1)


def ring(x: float, y: float, rx: float, ry: float, width: float, corner: float = 0.0) -> Points:
    """A frame around (x, y) as one polygon with a seam; `corner` 0 is an ellipse, 1 nearly a rectangle."""
    shape = rounded(corner)
    ends = np.concatenate([shape, shape[:1]])
    return np.concatenate([ends * (rx, ry), ends[::-1] * (rx - width, ry - width)]) + (x, y)


def rounded(corner: float) -> Points:
    """Between the unit circle (0) and a square with round corners (1): 24 points."""
    reach = np.maximum(np.abs(CIRCLE[:, :1]), np.abs(CIRCLE[:, 1:]))
    return CIRCLE * (1 + corner * 0.9 * (1 / reach - 1))


def mix(one: Colour, other: Colour, t: float) -> Colour:
    """The colour on the way from one (t = 0) to the other (t = 1)."""
    return one[0] + (other[0] - one[0]) * t, one[1] + (other[1] - one[1]) * t, one[2] + (other[2] - one[2]) * t


def dim(colour: Colour, by: float) -> Colour:
    """A colour times `by`."""
    return colour[0] * by, colour[1] * by, colour[2] * by


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the head is in the picture: its eyes' middle, its size, its turn and tilt as sines and cosines."""

    x: float
    y: float
    scale: float
    sin_turn: float
    cos_turn: float
    sin_roll: float
    cos_roll: float


class Sheet:
    """The shapes of one picture in painting order, and the surfaces they show."""

    def __init__(self, pose: Pose) -> None:
        self.pose = pose
        self.region: list[int] = []
        self.colours: list[Colour] = []
        self._points: list[Points] = []
        self._surfaces: list[int] = []
        self._solid: list[tuple[float, float, float]] = []  # turns, relief, lift

    def surface(self, region: str, colour: Colour) -> int:
        """A new surface of a region in REGIONS."""
        self.region.append(REGIONS.index(region))
        self.colours.append(colour)
        return len(self.colours) - 1

    def on_face(self, surface: int, points: Points, lift: float = 0.0) -> None:
        """A shape on the front of the head."""
        self._add(surface, points, (1.0, 1.0, lift))

    def on_head(self, surface: int, points: Points, lift: float = 0.0) -> None:
        """A flat shape across the head, `lift` before (or, negative, behind) its axis."""
        self._add(surface, points, (1.0, 0.0, lift))

    def on_body(self, surface: int, points: Points) -> None:
        """A shape that moves with the person and neither turns nor tilts."""
        self._add(surface, points, (0.0, 0.0, 0.0))

    def behind(self, surface: int, points: Points) -> None:
        """A shape in the picture's own coordinates, from 0 to 1."""
        self._add(surface, (points - (self.pose.x, self.pose.y)) / self.pose.scale, (0.0, 0.0, 0.0))

    def _add(self, surface: int, points: Points, solid: tuple[float, float, float]) -> None:
        self._points.append(points)
        self._surfaces.append(surface)
        self._solid.append(solid)

    def paint(self, side: int) -> Image.Image:
        """The picture of surface numbers (side, side), mode L."""
        picture = Image.new("L", (side, side), 0)
        polygon = ImageDraw.Draw(picture).polygon
        flat = self._placed(side).ravel().tolist()
        start = 0
        for points, surface in zip(self._points, self._surfaces, strict=True):
            stop = start + 2 * len(points)
            polygon(flat[start:stop], surface)
            start = stop
        return picture

    def _placed(self, side: int) -> Points:
        """All points in pixels of a picture with that side."""
        pose = self.pose
        points = np.concatenate(self._points)
        solid = np.repeat(np.array(self._solid), [len(one) for one in self._points], axis=0)
        turns, relief, lift = solid[:, 0], solid[:, 1], solid[:, 2]
        x, y = points[:, 0], points[:, 1]
        across = x / RADIUS
        depth = relief * np.sqrt(np.maximum(0.0, 1 - across * across)) * RADIUS + lift
        x = np.where(turns > 0, x * pose.cos_turn + depth * pose.sin_turn, x)
        below = y - PIVOT
        rolled_x, rolled_y = x * pose.cos_roll - below * pose.sin_roll, x * pose.sin_roll + below * pose.cos_roll + PIVOT
        x, y = np.where(turns > 0, rolled_x, x), np.where(turns > 0, rolled_y, y)
        return np.stack([(pose.x + pose.scale * x) * side, (pose.y + pose.scale * y) * side], 1)
