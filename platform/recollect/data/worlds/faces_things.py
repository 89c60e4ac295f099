"""What surrounds a face: the wall behind, clothes, jewellery, glasses and hats."""

from __future__ import annotations

import numpy as np

from recollect.data.worlds.faces_head import EYE_GAP, FRONT, Look
from recollect.data.worlds.faces_sheet import Colour, Sheet, closed, dim, ellipse, mix, opened, ribbon, ring, rounded

CLOTHES: tuple[Colour, ...] = (
    *((0.80, 0.24, 0.24), (0.22, 0.50, 0.82), (0.25, 0.66, 0.42), (0.93, 0.72, 0.25), (0.62, 0.36, 0.72), (0.92, 0.52, 0.62)),
    *((0.30, 0.68, 0.72), (0.93, 0.92, 0.90), (0.90, 0.50, 0.24)),
)
DARK_CLOTHES: tuple[Colour, ...] = (
    (0.13, 0.14, 0.18),
    (0.12, 0.17, 0.32),
    (0.28, 0.10, 0.13),
    (0.10, 0.22, 0.18),
    (0.24, 0.17, 0.12),
)
WALLS: tuple[Colour, ...] = (
    *((0.62, 0.74, 0.88), (0.68, 0.84, 0.70), (0.92, 0.84, 0.62), (0.90, 0.70, 0.62), (0.78, 0.70, 0.88), (0.84, 0.84, 0.84)),
    *((0.60, 0.84, 0.84), (0.94, 0.78, 0.84)),
)
TIES: tuple[Colour, ...] = ((0.72, 0.10, 0.14), (0.12, 0.22, 0.56), (0.10, 0.42, 0.30), (0.86, 0.62, 0.12), (0.36, 0.12, 0.42))
HATS: tuple[Colour, ...] = ((0.16, 0.58, 0.62), (0.72, 0.16, 0.20), (0.14, 0.46, 0.26), (0.26, 0.32, 0.62), (0.58, 0.26, 0.52))
GOLD: Colour = (0.96, 0.78, 0.26)
SILVER: Colour = (0.84, 0.87, 0.92)


def pick(colours: tuple[Colour, ...], gene: float) -> Colour:
    """The colour at this place in [0, 1) of a list."""
    return colours[int(gene * len(colours))]


def draw_wall(sheet: Sheet, look: Look) -> None:
    """The background: surface 0, and its pattern."""
    genes = look.genes
    wall = dim(
        pick(WALLS, genes["back"]),
        (0.92 + 0.1 * genes["back_tone"]) if look.shown["Bright_Background"] else (0.24 + 0.2 * genes["back_tone"]),
    )
    sheet.surface("background", wall)
    if not look.shown["Patterned_Background"]:
        return
    other = sheet.surface("background", dim(wall, 0.8) if look.shown["Bright_Background"] else mix(wall, (1.0, 1.0, 1.0), 0.16))
    kind, offset = int(genes["pattern"] * 3), genes["back_kind"]
    if kind == 0:  # stripes
        for i in range(6):
            x = (i + offset) / 5.5 - 0.1
            sheet.behind(other, np.array([(x, 0.0), (x + 0.085, 0.0), (x + 0.085, 1.0), (x, 1.0)]))
    elif kind == 1:  # dots
        for i in range(6):
            for j in range(6):
                sheet.behind(other, ellipse((i + 0.5 * (j % 2) + offset) / 5.5 - 0.1, (j + 0.4) / 5.5, 0.045, 0.045))
    else:  # slanted stripes
        for i in range(8):
            x = (i + offset) / 4 - 0.9
            sheet.behind(other, np.array([(x, 0.0), (x + 0.12, 0.0), (x + 0.92, 1.0), (x + 0.8, 1.0)]))


def draw_body(sheet: Sheet, look: Look) -> None:
    """Neck, shoulders and clothes, a necklace or a tie."""
    genes, shown = look.genes, look.shown
    neck = (0.104 if look.male else 0.074) + 0.014 * shown["Chubby"]
    wide = (0.40 if look.male else 0.31) + 0.05 * genes["shoulders"] + 0.03 * shown["Chubby"]
    skin = sheet.surface("skin", dim(look.skin, 0.90))
    sheet.on_head(skin, np.array([(-neck, 0.12), (neck, 0.12), (neck, 0.40), (-neck, 0.40)]))
    sheet.on_body(skin, closed([(-neck, 0.33), (0.0, 0.32), (neck, 0.33), (1.1 * neck, 0.40), (0.0, 0.50), (-1.1 * neck, 0.40)]))
    colour = pick(DARK_CLOTHES, genes["cloth"]) if shown["Dark_Clothes"] else pick(CLOTHES, genes["cloth"])
    colour = dim(colour, 0.9 + 0.15 * genes["cloth_tone"])
    cloth = sheet.surface("clothes", colour)
    depth = 0.405 + 0.05 * genes["collar"]
    edge = opened(
        [
            (-1.25 * neck, 0.352),
            (-0.8 * neck, depth - 0.012),
            (0.0, depth + 0.01),
            (0.8 * neck, depth - 0.012),
            (1.25 * neck, 0.352),
        ]
    )
    right = opened([(1.25 * neck, 0.352), (0.55 * wide, 0.392), (0.88 * wide, 0.44), (wide, 0.54), (wide + 0.03, 0.8)])
    garment = np.concatenate([edge, right, right[::-1] * (-1, 1)])
    sheet.on_body(cloth, garment)
    if genes["stripes"] < 0.25:
        band = sheet.surface("clothes", mix(colour, (1.0, 1.0, 1.0), 0.3))
        for y in (0.46, 0.515, 0.57):
            half = wide * (0.86 if y < 0.5 else 0.98)
            sheet.on_body(band, np.array([(-half, y), (half, y), (half, y + 0.02), (-half, y + 0.02)]))
    sheet.on_body(sheet.surface("clothes", dim(colour, 0.78)), ribbon(edge, 0.016, ends=0.8, smooth=False))
    if shown["Wearing_Necktie"]:
        draw_tie(sheet, look, neck)
    if shown["Wearing_Necklace"]:
        draw_necklace(sheet, look, neck)


def draw_tie(sheet: Sheet, look: Look, neck: float) -> None:
    """A white collar and a tie."""
    white, fold = sheet.surface("clothes", (0.95, 0.95, 0.95)), sheet.surface("clothes", (0.78, 0.80, 0.84))
    colour = pick(TIES, look.genes["tie"])
    tie, knot = sheet.surface("accessories", colour), sheet.surface("accessories", dim(colour, 0.72))
    sheet.on_body(white, np.array([(-neck, 0.36), (neck, 0.36), (0.085, 0.8), (-0.085, 0.8)]))
    sheet.on_body(tie, np.array([(-0.022, 0.435), (0.022, 0.435), (0.052, 0.62), (0.052, 0.8), (-0.052, 0.8), (-0.052, 0.62)]))
    sheet.on_body(knot, np.array([(-0.034, 0.40), (0.034, 0.40), (0.021, 0.44), (-0.021, 0.44)]))
    for side in (-1, 1):
        flap = np.array([(side * neck * 1.18, 0.345), (side * 0.012, 0.412), (side * 0.065, 0.47), (side * neck * 1.42, 0.40)])
        sheet.on_body(fold, flap + (0.0, 0.007))
        sheet.on_body(white, flap)


def draw_necklace(sheet: Sheet, look: Look, neck: float) -> None:
    """A string of pearls, or a chain with a pendant."""
    metal = GOLD if look.genes["jewel"] < 0.5 else SILVER
    chain = sheet.surface("accessories", metal)
    low = 0.402
    line = opened(
        [(-1.02 * neck, 0.335), (-0.6 * neck, low - 0.016), (0.0, low), (0.6 * neck, low - 0.016), (1.02 * neck, 0.335)]
    )
    sheet.on_body(chain, ribbon(line, 0.015, ends=0.8, smooth=False))
    for x, y in line[2:-2:2].tolist():
        sheet.on_body(chain, ellipse(x, y, 0.0105, 0.0105))
    sheet.on_body(sheet.surface("accessories", dim(metal, 0.8)), ellipse(0.0, low + 0.018, 0.016, 0.019))


def draw_hat(sheet: Sheet, look: Look) -> None:
    """A bowler, a woollen cap or a peaked cap: hair shows below each."""
    w, kind = look.width, int(look.genes["hat"] * 3)
    colour = pick(HATS, look.genes["hat_colour"])
    felt, band = sheet.surface("accessories", colour), sheet.surface("accessories", dim(colour, 0.66))
    dome = opened(
        [(-1.13 * w, -0.215), (-1.08 * w, -0.29), (-0.5 * w, -0.395), (0.5 * w, -0.395), (1.08 * w, -0.29), (1.13 * w, -0.215)]
    )
    sheet.on_head(felt, dome, lift=FRONT)
    if kind == 0:
        sheet.on_head(
            band, np.array([(-1.12 * w, -0.265), (1.12 * w, -0.265), (1.13 * w, -0.225), (-1.13 * w, -0.225)]), lift=FRONT
        )
        sheet.on_head(
            felt,
            closed([(-1.5 * w, -0.23), (0.0, -0.245), (1.5 * w, -0.23), (1.45 * w, -0.202), (0.0, -0.195), (-1.45 * w, -0.202)]),
            lift=FRONT,
        )
    elif kind == 1:
        sheet.on_head(
            band,
            closed(
                [(-1.15 * w, -0.265), (0.0, -0.28), (1.15 * w, -0.265), (1.15 * w, -0.205), (0.0, -0.215), (-1.15 * w, -0.205)]
            ),
            lift=FRONT + 0.01,
        )
        sheet.on_head(band, ellipse(0.0, -0.405, 0.038, 0.038), lift=FRONT)
    else:
        side = 1 if look.genes["parting"] < 0.5 else -1
        sheet.on_head(band, ribbon([(0.0, -0.395), (0.02 * side, -0.3), (0.03 * side, -0.22)], 0.008, ends=1.0), lift=FRONT)
        peak = [
            (-1.1 * w, -0.23),
            (0.2 * w, -0.245),
            (1.1 * w, -0.235),
            (1.55 * w, -0.185),
            (1.0 * w, -0.178),
            (-0.6 * w, -0.195),
        ]
        sheet.on_head(band, closed(peak) * (side, 1), lift=FRONT + 0.02)


def draw_glasses(sheet: Sheet, look: Look) -> None:
    """Glasses with clear lenses, or dark ones."""
    genes = look.genes
    corner, dark = (0.0 if genes["frame"] < 0.5 else 0.75), look.shown["Sunglasses"]
    colours: tuple[Colour, ...] = ((0.09, 0.09, 0.10), (0.42, 0.12, 0.10), (0.12, 0.16, 0.36), (0.44, 0.32, 0.10))
    frame = sheet.surface("accessories", pick(colours, genes["frame_colour"]))
    rx, ry = (0.066, 0.048) if corner else (0.060, 0.054)
    lens = sheet.surface("accessories", (0.07, 0.08, 0.11)) if dark else frame
    glint = sheet.surface("accessories", (0.36, 0.42, 0.52) if dark else (0.97, 0.98, 1.0))
    for side in (-1, 1):
        x = side * (EYE_GAP + 0.004)
        if dark:
            sheet.on_face(lens, rounded(corner) * (rx, ry) + (x, 0.006), lift=0.02)
        sheet.on_face(frame, ring(x, 0.006, rx, ry, 0.0105, corner), lift=0.02)
        streak = [(x - 0.034, -0.006), (x - 0.014, -0.024)]
        sheet.on_face(glint, ribbon(streak, 0.009, smooth=False), lift=0.02)
        arm = [(side * (EYE_GAP + rx), -0.004), (side * (look.width + 0.01), 0.0)]
        sheet.on_face(frame, ribbon(arm, 0.012, ends=1.0, smooth=False), lift=0.02)
    bridge = [(-EYE_GAP + rx - 0.008, 0.002), (0.0, -0.010), (EYE_GAP - rx + 0.008, 0.002)]
    sheet.on_face(frame, ribbon(bridge, 0.011, ends=1.0), lift=0.02)


def draw_earrings(sheet: Sheet, look: Look) -> None:
    """Earrings: hoops or drops, before whatever hair there is."""
    metal = GOLD if look.genes["jewel"] < 0.5 else SILVER
    ring_of, drop = sheet.surface("accessories", metal), sheet.surface("accessories", dim(metal, 0.82))
    hoop = look.genes["frame"] < 0.5
    for side in (-1, 1):
        x = side * (look.width + 0.014)
        if hoop:
            sheet.on_head(ring_of, ring(x, 0.105, 0.024, 0.030, 0.010), lift=0.05)
        else:
            sheet.on_head(ring_of, ellipse(x, 0.082, 0.011, 0.011), lift=0.05)
            sheet.on_head(drop, closed([(x, 0.085), (x + 0.016, 0.125), (x, 0.142), (x - 0.016, 0.125)]), lift=0.05)
