"""The head without its hair: skin, eyes, nose, mouth, beard, and what age does to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recollect.data.worlds.faces_sheet import Colour, Points, Sheet, closed, dim, ellipse, mirrored, mix, opened, ribbon

EYE_GAP = 0.083  # from the axis to the middle of an eye
NOSE, MOUTH = 0.105, 0.178  # how far below the eyes
FRONT = 0.12  # of the head's axis, the face's outline: less than what is on it, so that a turn moves eyes and nose aside
IRISES: tuple[Colour, ...] = ((0.20, 0.42, 0.72), (0.26, 0.52, 0.34), (0.36, 0.22, 0.12), (0.44, 0.47, 0.50), (0.50, 0.36, 0.14))
INK: Colour = (0.10, 0.07, 0.07)


@dataclass(frozen=True, slots=True)
class Look:
    """All that drawing needs to know of a face in one combination: what shows, how it is built, and its colours."""

    shown: dict[str, bool]  # traits; a trait that is hidden in this combination is False
    genes: dict[str, float]
    male: bool
    young: bool
    skin: Colour
    hair: Colour
    grey: Colour  # of the strands that age has turned
    wrinkles: float  # 0 to 1: how deep
    width: float  # half of the face at the cheekbones
    jaw: float  # half of the face at the jaw
    chin: float  # how far below the eyes

    def outline(self) -> Points:
        """The face's outline, on the head."""
        w, chin = self.width, 0.082 if self.male else 0.05
        chin += 0.025 * self.shown["Chubby"] - 0.012 * self.shown["Oval_Face"]
        half = ((0.0, -0.268), (0.58 * w, -0.25), (0.93 * w, -0.175), (w, -0.07), (0.995 * w, 0.03), (0.95 * w, 0.115))
        return closed(mirrored([*half, (self.jaw, 0.2), (chin, self.chin - 0.018), (0.0, self.chin)]))


def draw_head(sheet: Sheet, look: Look) -> None:
    """Ears, face, and all that is on it, from far to near."""
    draw_ears(sheet, look)
    sheet.on_head(sheet.surface("skin", look.skin), look.outline(), lift=FRONT)
    draw_cheeks(sheet, look)
    if look.shown["5_o_Clock_Shadow"]:
        sheet.on_head(sheet.surface("skin", mix(look.skin, dim(look.hair, 0.6), 0.36)), beard_area(look, 0.125), lift=FRONT)
    draw_age(sheet, look)
    if look.male and not look.shown["No_Beard"]:
        draw_beard(sheet, look)
    for side in (-1, 1):
        draw_eye(sheet, look, side)
    draw_nose(sheet, look)
    if look.shown["Mustache"]:
        draw_mustache(sheet, look)
    draw_mouth(sheet, look)


def draw_ears(sheet: Sheet, look: Look) -> None:
    """Both ears, behind the face."""
    size = 0.9 + 0.3 * look.genes["ear"]
    skin, fold = sheet.surface("skin", dim(look.skin, 0.93)), sheet.surface("skin", dim(look.skin, 0.74))
    for side in (-1, 1):
        x = side * (look.width + 0.006)
        sheet.on_head(skin, ellipse(x, 0.025, 0.027 * size, 0.052 * size), lift=0.05)
        sheet.on_head(fold, ellipse(x + side * 0.005, 0.022, 0.012 * size, 0.03 * size), lift=0.05)


def draw_cheeks(sheet: Sheet, look: Look) -> None:
    """Colour on the cheeks, and freckles."""
    if look.shown["Rosy_Cheeks"]:
        outer, inner = (sheet.surface("skin", mix(look.skin, (0.93, 0.30, 0.32), t)) for t in (0.30, 0.52))
        for side in (-1, 1):
            sheet.on_face(outer, ellipse(side * 0.112, 0.092, 0.050, 0.037))
            sheet.on_face(inner, ellipse(side * 0.112, 0.092, 0.036, 0.026))
    if look.shown["Freckles"]:
        spot = sheet.surface("skin", mix(look.skin, (0.45, 0.20, 0.08), 0.62))
        places = np.random.default_rng(int(look.genes["freckles"] * 2**32)).random((18, 2)).tolist()
        for u, v in places:
            x = (0.03 + 0.12 * (2 * u % 1)) * (1 if u < 0.5 else -1)
            sheet.on_face(spot, ellipse(x, 0.055 + 0.075 * v, 0.0055, 0.005))


def draw_age(sheet: Sheet, look: Look) -> None:
    """Bags under the eyes, and the lines of the old."""
    if look.shown["Bags_Under_Eyes"]:
        bag, line = (sheet.surface("skin", mix(look.skin, (0.24, 0.10, 0.20), t)) for t in (0.34, 0.60))
        for side in (-1, 1):
            x = side * EYE_GAP
            sheet.on_face(bag, closed([(x - 0.044, 0.012), (x, 0.022), (x + 0.044, 0.012), (x + 0.03, 0.043), (x - 0.03, 0.043)]))
            sheet.on_face(line, ribbon([(x - 0.036, 0.034), (x, 0.047), (x + 0.036, 0.034)], 0.007))
    if look.young:
        return
    deep, faint = (sheet.surface("skin", dim(look.skin, 1 - by * (0.75 + 0.25 * look.wrinkles))) for by in (0.38, 0.26))
    for y, reach in ((-0.155, 0.085), (-0.125, 0.1), (-0.095, 0.075)):
        sheet.on_face(faint, ribbon([(-reach, y + 0.006), (-0.03, y - 0.004), (0.03, y + 0.003), (reach, y + 0.006)], 0.0075))
    for side in (-1, 1):
        sheet.on_face(deep, ribbon([(side * 0.052, 0.1), (side * 0.083, 0.135), (side * 0.088, 0.178)], 0.011))
        sheet.on_face(faint, ribbon([(side * 0.068, 0.205), (side * 0.072, 0.235), (side * 0.06, 0.255)], 0.009))
        sheet.on_face(faint, ribbon([(side * 0.05, 0.036), (side * EYE_GAP, 0.05), (side * 0.12, 0.03)], 0.007))
        sheet.on_face(faint, ribbon([(side * 0.012, -0.062), (side * 0.01, -0.04), (side * 0.014, -0.022)], 0.007))
        for dy in (-0.017, 0.0, 0.018):  # crow's feet
            sheet.on_face(faint, ribbon([(side * 0.137, 0.3 * dy + 0.001), (side * 0.166, 1.3 * dy)], 0.007, smooth=False))


def draw_eye(sheet: Sheet, look: Look, side: int) -> None:
    """One eye: `side` is -1 for the one on the left of the picture."""
    genes = look.genes
    x, half = side * (EYE_GAP + 0.006 * genes["eye_gap"]), 0.043 + 0.004 * genes["eye_size"]
    high = (0.0245 + 0.004 * genes["eye_size"]) * (1.0 if look.male else 1.12) * (1.0 if look.young else 0.88)
    high *= 0.42 if look.shown["Narrow_Eyes"] else 1.0
    low = 0.72 * high
    inner, outer = x - side * half, x + side * half
    upper = opened([(inner, 0.006), (x - side * 0.018, -0.85 * high), (x + side * 0.012, -high), (outer, -0.004)])
    lower = opened([(inner, 0.006), (x - side * 0.01, low), (x + side * 0.02, 0.9 * low), (outer, -0.004)])
    colour, gaze = IRISES[int(genes["iris"] * len(IRISES))], 0.012 * (genes["gaze"] - 0.5)
    radius = 0.0235
    sheet.on_face(sheet.surface("eyes", (0.95, 0.95, 0.94)), np.concatenate([upper, lower[::-1]]))
    sheet.on_face(sheet.surface("eyes", colour), ellipse(x + gaze, 0.0, radius, radius))
    sheet.on_face(sheet.surface("eyes", (0.05, 0.04, 0.05)), ellipse(x + gaze, 0.0, 0.0105, 0.0105))
    sheet.on_face(sheet.surface("eyes", (1.0, 1.0, 1.0)), ellipse(x + gaze + 0.007, -0.007, 0.0055, 0.0055))
    lid = dim(look.skin, 0.86)
    if look.shown["Heavy_Makeup"]:
        shadows: tuple[Colour, ...] = ((0.42, 0.20, 0.55), (0.16, 0.36, 0.58), (0.62, 0.25, 0.38))
        lid = mix(look.skin, shadows[int(genes["shadow_colour"] * 3)], 0.85)
    above = opened([(inner - side * 0.004, 0.002), (x - side * 0.018, -0.043), (x + side * 0.016, -0.045), (outer, -0.02)])
    corner = np.array([[outer + side * 0.004, -0.002]])
    sheet.on_face(sheet.surface("skin", lid), np.concatenate([upper, corner, above[::-1]]))
    below = opened([(inner, 0.012), (x, low + 0.019), (outer, 0.006)])
    sheet.on_face(sheet.surface("skin", dim(look.skin, 0.94)), np.concatenate([lower, below[::-1]]))
    draw_lashes(sheet, look, side, upper, outer)


def draw_lashes(sheet: Sheet, look: Look, side: int, upper: Points, outer: float) -> None:
    """The dark edge of the upper lid; with lashes where the face is a woman's."""
    lash = sheet.surface("eyes", INK)
    made = look.shown["Heavy_Makeup"]
    sheet.on_face(lash, ribbon(upper, 0.009 if look.male else 0.013 + 0.004 * made, ends=0.6, smooth=False))
    if not look.male:
        for dx, dy in ((0.020, -0.020), (0.008, -0.026)):
            root = outer - side * (0.004 if dx > 0.01 else 0.014)
            tip = (root + side * (dx + 0.005 * made), -0.006 + dy - 0.003 * made)
            sheet.on_face(lash, np.array([(root - side * 0.007, -0.010), (root + side * 0.004, -0.004), tip]))


def draw_brows(sheet: Sheet, look: Look) -> None:
    """Both eyebrows; a fringe does not hide them."""
    thick = (0.021 if look.male else 0.013) * (1.75 if look.shown["Bushy_Eyebrows"] else 1.0)
    arch = 0.025 if look.shown["Arched_Eyebrows"] else 0.007
    y = -0.066 - 0.006 * look.genes["brow"] + (0.004 if look.male else 0.0)
    colour = mix(dim(look.hair, 0.58), look.grey, 0.0 if look.young else 0.30)
    line = [(0.036, y + 0.006 - 0.4 * arch), (0.075, y - 0.5 * arch), (0.106, y - arch), (0.137, y + 0.010)]
    brow = sheet.surface("brows", colour)
    for side in (-1, 1):
        sheet.on_face(brow, ribbon([(side * x, y) for x, y in line], thick, ends=0.4))


def draw_nose(sheet: Sheet, look: Look) -> None:
    """The nose: shade beside the bridge, wings, nostrils, a light tip."""
    big, pointy = look.shown["Big_Nose"], look.shown["Pointy_Nose"]
    half = (
        (0.030 + 0.004 * look.genes["nose"]) * (1.7 if big else 1.0) * (0.80 if pointy else 1.0) * (1.06 if look.male else 0.96)
    )
    tip = NOSE + (0.008 if big else 0.0) + (0.012 if pointy else 0.0)
    side = 1 if look.genes["light"] < 0.5 else -1  # the one away from the light
    shade, dark = sheet.surface("skin", dim(look.skin, 0.84)), sheet.surface("skin", dim(look.skin, 0.50))
    light = sheet.surface("skin", mix(look.skin, (1.0, 0.98, 0.95), 0.35))
    bridge = [(side * 0.012, -0.03), (side * 0.017, 0.03), (side * half, tip - 0.028), (side * half * 1.1, tip - 0.008)]
    if pointy:
        sheet.on_face(
            shade, np.array([*bridge[:2], (side * half, tip - 0.014), (0.0, tip + 0.012), (-side * 0.004, 0.03)]), lift=0.02
        )
        sheet.on_face(
            dark, ribbon([(-half, tip - 0.016), (0.0, tip + 0.009), (half, tip - 0.016)], 0.009, smooth=False), lift=0.02
        )
        sheet.on_face(light, ribbon([(-side * 0.004, 0.0), (-side * 0.004, tip - 0.014)], 0.010, smooth=False), lift=0.03)
        return
    sheet.on_face(shade, np.concatenate([opened(bridge), [(0.0, tip + 0.004), (0.0, 0.04)]]), lift=0.02)
    sheet.on_face(
        shade,
        closed([(-half, tip - 0.012), (half, tip - 0.012), (half * 0.7, tip + 0.013), (-half * 0.7, tip + 0.013)]),
        lift=0.02,
    )
    sheet.on_face(light, ellipse(-side * 0.005, tip - 0.018, 0.011 + 0.005 * big, 0.011), lift=0.03)
    for x in (-1, 1):
        sheet.on_face(dark, ellipse(x * half * 0.45, tip + 0.004, 0.009 + 0.003 * big, 0.0055), lift=0.02)


def draw_mouth(sheet: Sheet, look: Look) -> None:
    """The mouth in one of four expressions: smiling or not, open or not."""
    smiling, parted, big = look.shown["Smiling"], look.shown["Mouth_Slightly_Open"], look.shown["Big_Lips"]
    half = 0.057 + 0.008 * look.genes["mouth"] + 0.017 * smiling
    lift, thick = (0.026 if smiling else 0.004), (0.0265 if big else 0.0115) * (1.0 if look.young else 0.88)
    gap = (0.030 if smiling else 0.036) if parted else 0.0
    y = MOUTH - 0.004 * parted
    corner = y - lift + 0.008 * smiling
    tone = lip_tone(look)
    top = [(-half, corner), (-0.5 * half, y - 0.35 * lift), (0.0, y), (0.5 * half, y - 0.35 * lift), (half, corner)]
    floor = opened([(-half, corner), (-0.5 * half, y + gap * 0.85), (0.0, y + gap), (0.5 * half, y + gap * 0.85), (half, corner)])
    line = opened(top)
    bow = opened(
        [
            (-half, corner),
            (-0.25 * half, y - thick - 0.2 * lift),
            (0.0, y - thick * 0.72),
            (0.25 * half, y - thick - 0.2 * lift),
            (half, corner),
        ]
    )
    full = opened(
        [
            (-half, corner),
            (-0.45 * half, y + gap + thick),
            (0.0, y + gap + thick * 1.35),
            (0.45 * half, y + gap + thick),
            (half, corner),
        ]
    )
    sheet.on_face(sheet.surface("mouth", dim(tone, 0.88)), np.concatenate([bow, line[::-1]]))
    if parted:
        sheet.on_face(sheet.surface("mouth", (0.30, 0.07, 0.08)), np.concatenate([line, floor[::-1]]))
        teeth = opened(
            [(-0.8 * half, corner + 0.006), (0.0, y + gap * (0.72 if smiling else 0.34)), (0.8 * half, corner + 0.006)]
        )
        inner = opened([(-0.8 * half, corner + 0.004), (0.0, y), (0.8 * half, corner + 0.004)])
        sheet.on_face(sheet.surface("mouth", (0.97, 0.96, 0.93)), np.concatenate([inner, teeth[::-1]]))
    sheet.on_face(sheet.surface("mouth", tone), np.concatenate([floor, full[::-1]]))
    sheet.on_face(sheet.surface("mouth", dim(tone, 0.5)), ribbon(line, 0.007, ends=0.5, smooth=False))
    if smiling:
        fold = sheet.surface("skin", dim(look.skin, 0.78))
        for side in (-1, 1):
            sheet.on_face(
                fold,
                ribbon(
                    [
                        (side * (half + 0.004), corner - 0.018),
                        (side * (half + 0.013), corner),
                        (side * (half + 0.006), corner + 0.016),
                    ],
                    0.009,
                ),
            )


def lip_tone(look: Look) -> Colour:
    """The colour of the lips: of the skin, redder with a woman, and painted with lipstick."""
    if look.shown["Wearing_Lipstick"]:
        return mix((0.80, 0.06, 0.16), (0.60, 0.04, 0.30), look.genes["lip_tone"])
    natural = mix(dim(look.skin, 0.76), (0.74, 0.28, 0.30), 0.45 if look.male else 0.6)
    return dim(natural, 0.94 + 0.06 * look.genes["lip_tone"])


def beard_area(look: Look, top: float) -> Points:
    """The lower part of the face from `top` downwards, along its outline and around the mouth."""
    w, low = look.width, look.chin + 0.004
    outer = opened([(-0.97 * w, 0.06), (-0.955 * w, 0.12), (-look.jaw, 0.205), (-0.08, look.chin - 0.016), (0.0, low)])
    edge = opened([(-0.97 * w, 0.06), (-0.80 * w, 0.125), (-0.55 * w, top + 0.012), (-0.06, top), (0.0, top + 0.006)])
    left = np.concatenate([outer, edge[::-1]])
    right = np.concatenate([edge, outer[::-1]]) * (-1, 1)
    return np.concatenate([left[: len(outer)], right[len(edge) :], right[: len(edge)], left[len(outer) :]])


def draw_beard(sheet: Sheet, look: Look) -> None:
    """A goatee or a full beard, in the colour of the hair."""
    tone, extra = mix(dim(look.hair, 0.88), look.grey, 0.0 if look.young else 0.4), 0.035 * look.genes["beard_length"]
    beard = sheet.surface("beard", tone)
    if look.shown["Goatee"]:
        low = look.chin + 0.012 + extra
        path = [(-0.05, 0.205), (0.0, 0.216), (0.05, 0.205), (0.056, 0.245), (0.036, low - 0.012), (0.0, low)]
        sheet.on_face(beard, closed([*path, (-0.036, low - 0.012), (-0.056, 0.245)]))
        return
    area = beard_area(look, 0.15)
    area[:, 1] += np.where(area[:, 1] > 0.2, extra + 0.006, 0.0)
    sheet.on_head(beard, area, lift=FRONT)


def draw_mustache(sheet: Sheet, look: Look) -> None:
    """A mustache."""
    tone = sheet.surface("beard", mix(dim(look.hair, 0.55), look.grey, 0.0 if look.young else 0.3))
    y = NOSE + 0.026
    half = [(0.0, y), (0.03, y + 0.002), (0.066, y + 0.026), (0.074, y + 0.046), (0.045, y + 0.036), (0.0, y + 0.028)]
    sheet.on_face(tone, closed(mirrored(half)), lift=0.01)
