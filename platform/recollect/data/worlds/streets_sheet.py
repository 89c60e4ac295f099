"""Where everything is in a street: a scene sampled from a seed, and drawn once as surface numbers.

A scene is a list of flat shapes in the unit square (x right, y down), painted from far to near. Each shape carries the
number of a surface (one car's paint, one building's wall), so that one 8-bit picture at twice the size holds all there is
to know: light gives every surface a colour later, and regions, instances and boxes are exact by construction.

Perspective is the cheap and exact one of a flat street: a thing at scale t stands on the row `horizon + (1 - horizon) * t`
and all its lengths shrink by t; one metre is about 0.18 t. The camera hangs some three metres above the road.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("background", "car", "person", "sign")
REGIONS = ("sky", "building", "vegetation", "road", "sidewalk", "pole", "car", "person", "sign")

# What a surface is made of, by the region it belongs to; light treats every material in its own way.
MATERIALS = {
    "sky": ("sky",),
    "building": ("front", "side_left", "side_right", "roof", "window", "curtain", "billboard"),
    "vegetation": ("grass", "leaf", "trunk"),
    "road": ("asphalt", "marking"),
    "sidewalk": ("paving", "kerb"),
    "pole": ("post", "lamp"),
    "car": ("paint", "glass", "tyre", "headlamp", "taillamp", "plate"),
    "person": ("skin", "cloth", "hair"),
    "sign": ("sheeting",),
}
MATERIAL = {name: index for index, name in enumerate(name for names in MATERIALS.values() for name in names)}
REGION_OF = np.array([REGIONS.index(region) for region, names in MATERIALS.items() for _ in names], np.uint8)

Colour = tuple[float, float, float]
WHITE, DARK = (0.93, 0.93, 0.92), (0.10, 0.10, 0.11)
SIGNAL = ((0.80, 0.08, 0.10), (0.08, 0.25, 0.75), (0.96, 0.74, 0.06))  # red, blue, yellow: signs, and distractors
PAINTS = (*SIGNAL, WHITE, (0.60, 0.62, 0.65), (0.14, 0.15, 0.18), (0.10, 0.38, 0.24), (0.86, 0.42, 0.12), (0.45, 0.66, 0.80))
CLOTHES = (*SIGNAL, WHITE, (0.20, 0.22, 0.28), (0.20, 0.52, 0.30), (0.88, 0.45, 0.55), (0.45, 0.25, 0.55), (0.10, 0.62, 0.66))
TROUSERS = ((0.16, 0.19, 0.32), (0.20, 0.20, 0.22), (0.48, 0.40, 0.30), (0.30, 0.36, 0.48))
SKINS = ((0.94, 0.77, 0.64), (0.80, 0.58, 0.42), (0.52, 0.35, 0.24))
HAIRS = ((0.12, 0.09, 0.08), (0.36, 0.22, 0.12), (0.78, 0.62, 0.34), (0.55, 0.53, 0.52))
WALLS = (  # all darker than a curtain, as most bricks are: a lit window must be told by day
    *((0.66, 0.36, 0.28), (0.76, 0.60, 0.38), (0.56, 0.56, 0.58), (0.72, 0.46, 0.33), (0.52, 0.39, 0.34)),
    *((0.70, 0.66, 0.58), (0.46, 0.53, 0.60)),
)
LEAVES = ((0.20, 0.46, 0.16), (0.32, 0.52, 0.14), (0.14, 0.38, 0.20))
CURTAINS = ((0.93, 0.90, 0.80), (0.94, 0.84, 0.66), (0.86, 0.90, 0.94))


@dataclass(frozen=True, slots=True)
class Source:
    """A thing that shines at night, in unit coordinates: `kind` is the material, (x, y) its centre, `foot` the row it lights."""

    kind: str
    x: float
    y: float
    foot: float
    t: float


@dataclass(frozen=True, slots=True)
class Caster:
    """What throws a shadow on the ground: the columns [x1, x2], the row it stands on and its height, in unit coordinates."""

    x1: float
    x2: float
    foot: float
    height: float


class Sheet:
    """The shapes of one scene in painting order, and the surfaces they show."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.horizon = dice.uniform(0.40, 0.47)
        self.vanish = dice.uniform(0.38, 0.62)
        self.centre = dice.uniform(0.40, 0.60)  # of the road at the lower border
        self.half_road = dice.uniform(0.37, 0.45)
        self.shapes: list[tuple[str, list[float], int, float]] = []  # kind, coordinates, surface, mirror row (0: on the ground)
        self.material: list[int] = []
        self.albedo: list[Colour] = []
        self.scale: list[float] = []  # t of each surface: what is small is far, and haze takes it
        self.thing: list[int] = []  # 0, or which instance
        self.labels: list[str] = [CLASSES[0]]  # of the instances, from 1
        self.curtains: list[int] = []  # surfaces of the windows that light up at night
        self.sources: list[Source] = []
        self.casters: list[Caster] = []
        self.foot = 0.0  # the row on which the thing being drawn stands

    def surface(self, material: str, colour: Colour, t: float = 1.0, thing: int = 0) -> int:
        self.material.append(MATERIAL[material])
        self.albedo.append(colour)
        self.scale.append(t)
        self.thing.append(thing)
        return len(self.material) - 1

    def polygon(self, surface: int, *coordinates: float) -> None:
        self.shapes.append(("polygon", list(coordinates), surface, self.foot))

    def rectangle(self, surface: int, x1: float, y1: float, x2: float, y2: float) -> None:
        self.shapes.append(("rectangle", [x1, y1, x2, y2], surface, self.foot))

    def ellipse(self, surface: int, x: float, y: float, rx: float, ry: float) -> None:
        self.shapes.append(("ellipse", [x - rx, y - ry, x + rx, y + ry], surface, self.foot))

    def row(self, t: float) -> float:
        return self.horizon + (1 - self.horizon) * t

    def column(self, offset: float, t: float) -> float:
        """The column of the point `offset` beside the road's middle (measured at the lower border) at scale t."""
        return self.vanish + (self.centre + offset - self.vanish) * t

    def towards(self, x: float, y: float, k: float) -> tuple[float, float]:
        """The point moved towards the vanishing point: where it would be if it were 1/k times as far."""
        return self.vanish + (x - self.vanish) * k, self.horizon + (y - self.horizon) * k


def paint(sheet: Sheet, side: int, mirrored: bool = False) -> Image.Image:
    """Surface numbers (side, side) in mode L; mirrored, only what stands, upside down below its foot: what a wet street shows."""
    picture = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(picture)
    draw_polygon, draw_rectangle, draw_ellipse = draw.polygon, draw.rectangle, draw.ellipse
    for kind, coordinates, surface, foot in sheet.shapes:
        if mirrored:
            if not foot:
                continue
            coordinates = flipped(kind, coordinates, foot)
        points = [side * c for c in coordinates]
        if kind == "polygon":
            draw_polygon(points, surface)
        elif kind == "rectangle":
            points[2] -= 1  # Pillow fills both end pixels; a narrow rectangle keeps one
            points[3] -= 1
            draw_rectangle((points[0], points[1], max(points[0], points[2]), max(points[1], points[3])), surface)
        else:
            draw_ellipse(points, surface)
    return picture


def flipped(kind: str, coordinates: Sequence[float], foot: float) -> list[float]:
    """Coordinates of a primitive mirrored below the line `foot`, for reflections."""
    turned = [2 * foot - c if i % 2 else c for i, c in enumerate(coordinates)]
    return turned if kind == "polygon" else [turned[0], turned[3], turned[2], turned[1]]
