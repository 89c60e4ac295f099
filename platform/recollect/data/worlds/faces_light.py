"""How a face becomes a picture: the continuous part of a style, colours, and soft light over flat shapes.

Per-pixel arithmetic is kept to + - * / and table look-ups, whose results every processor agrees on to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from recollect.data.worlds.faces_hair import draw_back_hair, draw_hair
from recollect.data.worlds.faces_head import Look, draw_brows, draw_head
from recollect.data.worlds.faces_sheet import REGIONS, Colour, Pose, Sheet, mix
from recollect.data.worlds.faces_things import draw_body, draw_earrings, draw_glasses, draw_hat, draw_wall
from recollect.data.worlds.faces_traits import Combination, Face

Pixels = NDArray[np.float32]  # (H, W, 3) or (H, W, 1), 0 to 1

# The two ends between which a hair colour varies, in the order of HAIRS; far enough apart that none is taken for another.
SHADES: tuple[tuple[Colour, Colour], ...] = (
    ((0.045, 0.045, 0.055), (0.125, 0.110, 0.110)),
    ((0.800, 0.610, 0.280), (0.950, 0.800, 0.480)),
    ((0.330, 0.175, 0.075), (0.500, 0.290, 0.145)),
)
GREY: Colour = (0.68, 0.68, 0.70)
SKINS: tuple[Colour, ...] = (
    *((1.00, 0.90, 0.84), (0.98, 0.86, 0.78), (0.93, 0.74, 0.60), (0.87, 0.65, 0.49), (0.74, 0.51, 0.36), (0.56, 0.37, 0.26)),
)


@dataclass(frozen=True, slots=True)
class Style:
    """One way to draw a face: the combination, and what of it is continuous, each in [0, 1)."""

    combination: Combination
    shade: float  # of the hair, between the two ends of its colour
    warmth: float  # of the hair
    grey: float  # how far the old are grey
    wrinkles: float  # how deep the lines of the old are


def draw_style(face: Face, combination: Combination, k: int = 0) -> Style:
    """The k-th style of the face in that combination.

    The continuous part follows from the face and k alone, so pictures of one k differ in nothing but what the combinations do.
    """
    rng = np.random.default_rng(np.random.SeedSequence(face.seed, spawn_key=(k,)))
    return Style(combination, *rng.random(4).tolist())


def look_of(face: Face, style: Style) -> Look:
    """What the face is like in that style."""
    genes, male, young = face.genes, style.combination.male, style.combination.young
    hidden = face.hidden(style.combination)
    shown = {name: value and (name not in hidden) for name, value in face.traits.items()}
    oval, chubby = shown["Oval_Face"], shown["Chubby"]
    width = 0.184 + 0.010 * genes["head"] + 0.022 * chubby - 0.012 * oval
    jaw = width * ((0.80 if male else 0.69) + 0.05 * genes["jaw"] + 0.10 * chubby - 0.05 * oval)
    tone = hair_colour(style)
    return Look(
        shown=shown,
        genes=genes,
        male=male,
        young=young,
        skin=skin_colour(face),
        hair=tone,
        grey=mix(tone, GREY, 0.0 if young else 0.55 + 0.25 * style.grey),
        wrinkles=style.wrinkles,
        width=width,
        jaw=jaw,
        chin=0.272 + 0.010 * genes["chin"] + (0.010 if male else 0.0) + 0.022 * oval - 0.006 * chubby,
    )


def hair_colour(style: Style) -> Colour:
    """Of most of the hair; the old are grey by at most a quarter, or the colour could not be told."""
    red, green, blue = mix(*SHADES[style.combination.hair], style.shade)
    turn = 0.10 * (style.warmth - 0.5)
    tone = (red * (1 + turn), green, blue * (1 - turn))
    return tone if style.combination.young else mix(tone, GREY, 0.10 + 0.14 * style.grey)


def skin_colour(face: Face) -> Colour:
    """Between pale and dark; only pale skin is at the pale end."""
    at = 0.8 * face.genes["skin"] if face.traits["Pale_Skin"] else 1.9 + 3.09 * face.genes["skin"]
    red, green, blue = mix(SKINS[int(at)], SKINS[int(at) + 1], at % 1)
    turn = 0.05 * (face.genes["undertone"] - 0.5)
    return red * (1 + 0.3 * turn), green, blue * (1 + turn)


def pose_of(face: Face) -> Pose:
    """Where the head is and how it is held; sines are rounded, as processors disagree on their last bits."""
    genes, traits = face.genes, face.traits
    turn = 0.12 * (genes["turn"] - 0.5)
    if traits["Turned_Left"] or traits["Turned_Right"]:
        turn = (0.22 + 0.12 * genes["turn"]) * (-1 if traits["Turned_Left"] else 1)
    roll = 0.06 * (genes["roll"] - 0.5)
    if traits["Tilted"]:
        roll = (0.13 + 0.10 * genes["roll"]) * (-1 if genes["roll_side"] < 0.5 else 1)
    return Pose(
        x=0.5 + 0.05 * (genes["x"] - 0.5),
        y=0.455 + 0.03 * (genes["y"] - 0.5),
        scale=1.0 + 0.10 * (genes["scale"] - 0.5),
        sin_turn=round(sin(turn), 6),
        cos_turn=round(cos(turn), 6),
        sin_roll=round(sin(roll), 6),
        cos_roll=round(cos(roll), 6),
    )


def compose(face: Face, style: Style) -> Sheet:
    """The shapes of the picture, from far to near."""
    sheet, look = Sheet(pose_of(face)), look_of(face, style)
    draw_wall(sheet, look)
    draw_back_hair(sheet, look)
    draw_body(sheet, look)
    draw_head(sheet, look)
    draw_hair(sheet, look)
    draw_brows(sheet, look)
    if look.shown["Eyeglasses"]:
        draw_glasses(sheet, look)
    if look.shown["Wearing_Earrings"]:
        draw_earrings(sheet, look)
    if look.shown["Wearing_Hat"]:
        draw_hat(sheet, look)
    return sheet


def render(face: Face, style: Style, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture (H, W, 3) of the face in that style, and its regions (H, W), which index REGIONS."""
    if size < 16:
        raise ValueError(f"a picture needs a size >= 16 pixels, not {size}")
    sheet = compose(face, style)
    surfaces = sheet.paint(2 * size)
    regions = np.array(sheet.region, np.uint8)
    flat = coloured(surfaces, sheet.colours).reduce(2)
    canvas = np.asarray(flat, np.float32) * np.float32(1 / 255)
    shade(canvas, surfaces, regions, face, size)
    if face.traits["Blurry"]:
        canvas = blurred(canvas, size)
    canvas *= 255
    canvas += grain(size, int(face.genes["grain"] * 3721)) * np.float32(1.6)
    picture: NDArray[np.uint8] = np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8)
    return picture, regions[np.asarray(surfaces)[::2, ::2]]


def coloured(surfaces: Image.Image, colours: list[Colour]) -> Image.Image:
    """Surfaces painted with their colours: an RGB picture of the surfaces' own size."""
    table = np.clip(np.array(colours, np.float32), 0, 1)
    picture = surfaces.copy()
    picture.putpalette((table * 255 + np.float32(0.5)).astype(np.uint8).tobytes())
    return picture.convert("RGB")


def coverage(surfaces: Image.Image, regions: NDArray[np.uint8], *names: str) -> Image.Image:
    """How much of each pixel is of these regions: (H, W), mode L."""
    table = np.zeros(256, np.uint8)
    table[: len(regions)] = weights(names)[regions]
    return surfaces.point(table.tolist()).reduce(2)


@lru_cache
def weights(names: tuple[str, ...]) -> NDArray[np.uint8]:
    """By region: 255 for these, 0 for others."""
    return np.array([255 * (name in names) for name in REGIONS], np.uint8)


def shade(canvas: Pixels, surfaces: Image.Image, regions: NDArray[np.uint8], face: Face, size: int) -> None:
    """Soft light, in place: a lamp from one side, hair and hats that shade what is below them, heads that are round."""
    side = face.genes["light"] - 0.5
    across, down = ramps(size)
    person = coverage(surfaces, regions, "skin", "hair", "beard", "brows", "eyes", "mouth", "accessories", "clothes")
    skin = coverage(surfaces, regions, "skin", "beard", "clothes")
    hair = coverage(surfaces, regions, "hair", "accessories")
    round_head = softened(person, size, 0.075)
    below = shifted(softened(hair, size, 0.022), round(0.020 * size))
    lit = 1 + np.float32(0.24 * side) * across - np.float32(0.10) * down
    lit = lit * (1 + np.float32(0.22) * (round_head - np.float32(0.9)) * as_float(person))
    lit = lit - np.float32(0.30) * below * as_float(skin)
    canvas *= lit


def blurred(canvas: Pixels, size: int) -> Pixels:
    """The picture out of focus."""
    picture = Image.fromarray(np.clip(canvas * 255 + np.float32(0.5), 0, 255).astype(np.uint8))
    soft = picture.filter(ImageFilter.BoxBlur(size * 0.011)).filter(ImageFilter.BoxBlur(size * 0.011))
    return np.asarray(soft, np.float32) * np.float32(1 / 255)


def as_float(mask: Image.Image) -> Pixels:
    """A mask of mode L as (H, W, 1) in [0, 1]."""
    return np.asarray(mask, np.float32)[:, :, None] * np.float32(1 / 255)


def softened(mask: Image.Image, size: int, by: float) -> Pixels:
    """A mask blurred over `by` of the picture's side; blurred at half the size, as it is smooth."""
    small = mask.reduce(2).filter(ImageFilter.BoxBlur(by * size / 2)).filter(ImageFilter.BoxBlur(by * size / 2))
    return as_float(small.resize((size, size), Image.Resampling.BILINEAR))


def shifted(field: Pixels, rows: int) -> Pixels:
    """A field moved down; what comes in at the top is nothing."""
    moved = np.zeros_like(field)
    moved[rows:] = field[: len(field) - rows] if rows else field
    return moved


@lru_cache(maxsize=4)
def ramps(size: int) -> tuple[Pixels, Pixels]:
    """From -1 to 1 across (1, W, 1) and down (H, 1, 1)."""
    ramp = ((np.arange(size) * 2 + 1) / size - 1).astype(np.float32)
    return ramp[None, :, None], ramp[:, None, None]


@lru_cache(maxsize=4)
def noise_tile(side: int) -> NDArray[np.float32]:
    """A square tile of normal noise, cut off at 3 deviations; always the same one."""
    return np.random.default_rng(31).standard_normal((side, side)).clip(-3, 3).astype(np.float32)


def grain(size: int, place: int) -> Pixels:
    """Grey pixel noise (H, W, 1) of deviation 1."""
    x, y = place % 61, place // 61 % 61
    return noise_tile(size + 64)[y : y + size, x : x + size, None]
