"""Hair of two lengths, with fringes, waves and grey strands."""

from __future__ import annotations

import numpy as np

from recollect.data.worlds.faces_head import FRONT, Look
from recollect.data.worlds.faces_sheet import Points, Sheet, closed, dim, mix, opened, ribbon


def draw_back_hair(sheet: Sheet, look: Look) -> None:
    """Long hair as far as it is behind the neck; only women have it."""
    if look.male:
        return
    w, low = look.width, long_hair(look)
    puff = 1.16 + 0.10 * look.genes["volume"] + 0.06 * look.shown["Wavy_Hair"]
    half = opened(
        [
            (0.0, -0.30),
            (0.8 * w, -0.25),
            (puff * w, -0.1),
            (1.06 * puff * w, 0.1),
            (1.08 * puff * w, low - 0.08),
            (0.9 * puff * w, low),
            (0.0, low),
        ]
    )
    if look.shown["Wavy_Hair"]:
        half = np.concatenate([half[:6], wavy(half[6:-4], 0.016), half[-4:]])
    sheet.on_head(sheet.surface("hair", dim(look.hair, 0.72)), np.concatenate([half, half[::-1] * (-1, 1)]), lift=0.02)


def long_hair(look: Look) -> float:
    """Where long hair ends, below the eyes."""
    return 0.21 + 0.24 * look.genes["length"]


def draw_hair(sheet: Sheet, look: Look) -> None:
    """Hair before the head: a man's short cut, or a woman's curtains down both sides; a fringe over either."""
    tone = sheet.surface("hair", look.hair)
    light = sheet.surface("hair", mix(look.hair, (1.0, 0.95, 0.85), 0.16))
    if look.male:
        draw_short(sheet, look, tone)
    else:
        draw_curtains(sheet, look, tone, light)
    draw_gloss(sheet, look, light)
    if look.shown["Bangs"]:
        draw_fringe(sheet, look, tone)
    if not look.young:
        draw_grey(sheet, look)


def crown(look: Look, out: float, high: float) -> Points:
    """The edge of the hair from the left ear over the top to the right one, a little outside of the head."""
    w = look.width * out
    half = [(0.0, high), (0.5 * w, high + 0.018), (0.89 * w, -0.215), (w, -0.12), (0.985 * w, -0.03)]
    line = opened([*((-x, y) for x, y in reversed(half[1:])), *half])
    return wavy(line, 0.012) if look.shown["Wavy_Hair"] else line


def draw_short(sheet: Sheet, look: Look, tone: int) -> None:
    """A short cut, parted on one side, that leaves the ears free."""
    w, genes = look.width, look.genes
    side = 1 if genes["parting"] < 0.5 else -1
    high = -0.315 - 0.03 * genes["volume"] - 0.01 * look.shown["Wavy_Hair"]
    burn = 0.085 if look.shown["Sideburns"] else 0.012
    front = -0.215 if look.shown["Receding_Hairline"] else -0.178
    notch = 0.055 if look.shown["Receding_Hairline"] else 0.0
    top = crown(look, 1.075, high)
    hairline = opened(
        [
            *((0.93 * w, burn), (0.90 * w, -0.07), (0.80 * w, -0.135 - notch), (0.45 * w, front + 0.004 - 0.5 * notch)),
            *(
                (0.0, front),
                (-0.45 * w, front - 0.014 - 0.5 * notch),
                (-0.80 * w, -0.135 - notch),
                (-0.90 * w, -0.07),
                (-0.93 * w, burn),
            ),
        ]
    )
    outer = np.array([(1.02 * w, burn), (-1.02 * w, burn)])
    shape = np.concatenate([top, outer[:1], hairline, outer[1:]]) * (side, 1)
    sheet.on_head(tone, shape, lift=FRONT)
    quiff = [
        (-0.5 * w, front - 0.01),
        (0.1 * w, front + 0.020),
        (0.62 * w, front + 0.012),
        (0.82 * w, -0.15),
        (0.55 * w, -0.26),
        (-0.3 * w, -0.28),
    ]
    if not look.shown["Receding_Hairline"]:
        sheet.on_head(tone, closed(quiff) * (side, 1), lift=FRONT + 0.01)


def draw_curtains(sheet: Sheet, look: Look, tone: int, light: int) -> None:
    """Long hair, parted, that falls before both shoulders."""
    w, genes, low = look.width, look.genes, long_hair(look)
    middle = 0.5 * w * (genes["parting"] - 0.5)
    puff = 1.13 + 0.07 * genes["volume"]
    high = -0.312 - 0.03 * genes["volume"]
    for side in (-1, 1):
        tail = low - 0.02
        outer = opened(
            [
                (middle, high),
                (side * 0.62 * w, high + 0.035),
                (side * puff * w, -0.13),
                (side * (puff + 0.05) * w, 0.05),
                (side * (puff + 0.04) * w, 0.6 * tail),
                (side * (puff - 0.06) * w, tail),
            ]
        )
        inner = opened(
            [
                (side * 0.86 * w, tail - 0.02),
                (side * 0.93 * w, 0.6 * tail),
                (side * 0.93 * w, 0.07),
                (side * 0.84 * w, -0.08),
                (side * 0.56 * w + 0.3 * middle, -0.155),
                (middle, -0.225),
            ]
        )
        if look.shown["Wavy_Hair"]:
            outer = np.concatenate([outer[:6], wavy(outer[6:], 0.013)])
            inner = np.concatenate([wavy(inner[:-8], 0.009), inner[-8:]])
        sheet.on_head(tone, np.concatenate([outer, inner]), lift=FRONT)
        strand = [(side * (puff - 0.06) * w, -0.08), (side * (puff - 0.03) * w, 0.06), (side * (puff - 0.08) * w, tail - 0.03)]
        sheet.on_head(light, ribbon(strand, 0.014), lift=FRONT)


def draw_gloss(sheet: Sheet, look: Look, light: int) -> None:
    """A light band across the top of the hair."""
    w, bend = look.width, 0.02 * (look.genes["parting"] - 0.5)
    line = [(-0.62 * w, -0.235 + bend), (-0.25 * w, -0.272), (0.2 * w, -0.276), (0.60 * w, -0.24 - bend)]
    sheet.on_head(light, ribbon(line, 0.018, ends=0.1), lift=FRONT + 0.01)


def draw_fringe(sheet: Sheet, look: Look, tone: int) -> None:
    """Bangs: hair over the forehead, its edge in strands."""
    w, low = look.width, -0.108 + 0.012 * look.genes["fringe"]
    count = 9
    edge = []
    for i in range(count + 1):
        x = (2 * i / count - 1) * 0.90 * w
        edge.append((x, low - 0.016 + 0.012 * (x / w) * (x / w)))
        if i < count:
            edge.append((x + 0.9 * w / count * 1.25, low + 0.016))
    roof = opened([(0.92 * w, -0.1), (0.72 * w, -0.22), (0.0, -0.275), (-0.72 * w, -0.22), (-0.92 * w, -0.1)])
    sheet.on_head(tone, np.concatenate([np.array(edge), roof]), lift=FRONT + 0.01)
    part = sheet.surface("hair", dim(look.hair, 0.80))
    for i in (2, 4, 7):
        x = (2 * i / count - 1) * 0.86 * w
        sheet.on_head(part, ribbon([(0.8 * x, -0.215), (x, low - 0.018)], 0.008, smooth=False), lift=FRONT + 0.01)


def draw_grey(sheet: Sheet, look: Look) -> None:
    """Grey temples and strands: age greys hair in places, so that its own colour stays the larger part."""
    w, grey = look.width, sheet.surface("hair", look.grey)
    for x, reach in ((-0.62, 0.05), (-0.30, 0.045), (0.08, 0.05), (0.40, 0.04), (0.68, 0.045)):
        top = -0.272 + 0.085 * x * x
        sheet.on_head(grey, ribbon([(x * w, top), (1.07 * x * w, top + reach)], 0.009, smooth=False), lift=FRONT)
    for side in (-1, 1):
        foot = 0.01 if look.male else 0.12
        sheet.on_head(
            grey, ribbon([(side * 0.97 * w, foot), (side * 0.985 * w, -0.06), (side * 0.93 * w, -0.15)], 0.024), lift=FRONT
        )


def wavy(line: Points, amount: float) -> Points:
    """A line that swings to both sides in turn: the edge of wavy hair."""
    coarse = np.concatenate([line[:-1:2], line[-1:]])
    swing = np.where(np.arange(len(coarse)) % 2, amount, -amount)[:, None] * (1.0, 0.5)
    swing[-1] = 0.0
    return opened(coarse + swing)
