"""What stands in a street: buildings, trees, lamps, cars, persons, signs, and where each of them may be.

Every thing is drawn from its foot upwards in fractions of its own height and width. Lengths are large on purpose: a picture
of 64 pixels must still show a sign of five, so signs and persons are about half as large again as they would be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from recollect.data.worlds.streets_sheet import (
    CLOTHES,
    CURTAINS,
    DARK,
    HAIRS,
    LEAVES,
    PAINTS,
    SIGNAL,
    SKINS,
    TROUSERS,
    WALLS,
    WHITE,
    Caster,
    Colour,
    Sheet,
    Source,
)

Plan = list[tuple[float, Callable[[float], None]]]  # scale t, and what draws the thing there

VERGE = 0.24  # the sidewalk's width at the lower border
CURTAINED = 0.45  # of the windows: pale by day and lit at night, so that the day picture tells which
CROWN = (  # of a tree, from its shade to its light: brightness, centre and radius of an ellipse in crown radii
    *((0.72, 0.0, 0.25, 0.95), (0.88, -0.45, 0.1, 0.72), (0.88, 0.5, 0.15, 0.66)),
    *((1.0, 0.0, -0.2, 0.8), (1.18, -0.22, -0.4, 0.45)),
)


def compose(seed: int) -> Sheet:
    """Sample a scene: the still parts from far to near, then everything that stands in the street, by its distance."""
    sheet = Sheet(Random(seed))
    ground(sheet)
    skyline(sheet)
    street(sheet)
    standing = [*plan_buildings(sheet), *plan_trees(sheet), *plan_traffic(sheet), *plan_kerbside(sheet)]
    standing.sort(key=lambda item: item[0])
    for t, draw in standing:
        sheet.foot = sheet.row(t)
        draw(t)
    assert len(sheet.material) <= 256, "a surface number must fit in a byte"
    return sheet


def shade(colour: Colour, by: float) -> Colour:
    """A colour times `by`, at most 1."""
    return min(1.0, colour[0] * by), min(1.0, colour[1] * by), min(1.0, colour[2] * by)


def ground(sheet: Sheet) -> None:
    """Road, markings, pavements and grass, in perspective."""
    dice = sheet.dice
    sky = sheet.surface("sky", (0.5, 0.7, 0.9), 0.0)
    assert sky == 0, "paint() starts from a sky of surface 0"
    sheet.curtains = [sheet.surface("curtain", colour, 0.5) for colour in CURTAINS]
    grass = sheet.surface("grass", shade((0.36, 0.55, 0.24), dice.uniform(0.85, 1.1)), 0.6)
    sheet.rectangle(grass, 0, sheet.horizon, 1, 1)


def street(sheet: Sheet) -> None:
    """Sidewalks, kerbs, road and its markings."""
    dice, half, top = sheet.dice, sheet.half_road, 0.015  # the scale at which the street meets the horizon

    def strip(surface: int, left: float, right: float, near: float = 1.02, far: float = top) -> None:
        sheet.polygon(
            surface,
            *(sheet.column(left, far), sheet.row(far), sheet.column(right, far), sheet.row(far)),
            *(sheet.column(right, near), sheet.row(near), sheet.column(left, near), sheet.row(near)),
        )

    strip(sheet.surface("paving", shade((0.70, 0.66, 0.60), dice.uniform(0.92, 1.08))), -half - VERGE, half + VERGE)
    strip(sheet.surface("kerb", (0.84, 0.83, 0.80)), -half - 0.035, half + 0.035)
    strip(sheet.surface("asphalt", shade((0.44, 0.44, 0.46), dice.uniform(0.94, 1.06))), -half, half)
    white = sheet.surface("marking", WHITE)
    start, near = dice.uniform(1.0, 1.5), 1.0
    for k in range(9):  # dashes of equal length on the ground: 1/t grows evenly
        near, far = 1 / (start - 0.4 + k * 0.8), 1 / (start + k * 0.8)
        strip(white, -0.014, 0.014, min(near, 1.02), far)
    if dice.random() < 0.6:
        for side in (-1, 1):
            strip(white, side * (half - 0.035) - 0.009, side * (half - 0.035) + 0.009)
    if dice.random() < 0.35:  # a crossing
        near = dice.uniform(0.42, 0.8)
        for k in range(6):
            left = half * (-0.92 + k * 0.31)
            strip(white, left, left + half * 0.17, near, near * 0.82)


def skyline(sheet: Sheet) -> None:
    """A row of far houses along the horizon."""
    dice, x = sheet.dice, -0.03
    sheet.foot = base = sheet.horizon + 0.006
    glass = sheet.surface("window", (0.34, 0.42, 0.50), 0.12)
    walls = [sheet.surface("front", shade(dice.choice(WALLS), dice.uniform(0.85, 1.0)), 0.12) for _ in range(4)]
    roof = sheet.surface("roof", (0.42, 0.34, 0.32), 0.12)
    while x < 1:
        width, height = dice.uniform(0.07, 0.13), dice.uniform(0.05, 0.21)
        sheet.rectangle(dice.choice(walls), x, base - height, x + width, base)
        sheet.rectangle(roof, x - 0.004, base - height - 0.008, x + width + 0.004, base - height)
        columns, rows = (2 if width < 0.095 else 3), max(1, int(height / 0.05))
        for i in range(columns):
            for j in range(rows):
                left, up = x + width * (i + 0.28) / columns, base - height + 0.012 + j * 0.046
                sheet.rectangle(window(sheet, glass), left, up, left + width * 0.46 / columns, up + 0.026)
        x += width + (dice.uniform(0.01, 0.07) if dice.random() < 0.4 else 0.0)


def window(sheet: Sheet, glass: int) -> int:
    """The surface of one window: its glass, or for some a pale curtain, which is lit at night."""
    draw = sheet.dice.random()
    return sheet.curtains[int(draw / CURTAINED * 3)] if draw < CURTAINED else glass


def plan_buildings(sheet: Sheet) -> Plan:
    """A few near houses on either side, each with a front that faces us and a side along the street."""
    dice = sheet.dice
    plan: Plan = []
    for side in (-1, 1):
        t, offset = dice.uniform(0.34, 0.50), side * dice.uniform(0.86, 1.02)
        for _ in range(dice.randint(1, 3)):
            depth = dice.uniform(0.62, 0.78)
            plan.append((t * depth, partial(building, sheet, t, side, offset)))
            t *= depth * dice.uniform(0.72, 0.95)
            if t < 0.14:
                break
    return plan


def building(sheet: Sheet, near: float, side: int, offset: float, far: float) -> None:
    """One building along the street, with its windows and perhaps a billboard in a sign's colours."""
    dice = sheet.dice
    wall, height = dice.choice(WALLS), dice.uniform(0.95, 1.75)
    sheet.foot = base = sheet.row(near)
    corner, outer = sheet.column(offset, near), sheet.column(offset + side * dice.uniform(0.45, 0.9), near)
    flank, front = sheet.surface("side_left" if side < 0 else "side_right", wall, near), sheet.surface("front", wall, near)
    glass, roof = sheet.surface("window", (0.34, 0.42, 0.50), near), sheet.surface("roof", shade(wall, 0.62), near)

    def along(u: float, v: float) -> tuple[float, float]:
        """A point of the flank: u from the near corner to the far one, v from the ground to the roof."""
        t = 1 / ((1 - u) / near + u / far)
        return sheet.column(offset, t), sheet.row(t) - v * height * t

    def panel(surface: int, u1: float, v1: float, u2: float, v2: float) -> None:
        sheet.polygon(surface, *along(u1, v1), *along(u2, v1), *along(u2, v2), *along(u1, v2))

    panel(flank, 0, 0, 1, 1)
    panel(roof, 0, 0.965, 1, 1.03)
    floors = max(3, round(height / 0.3))
    for j in range(floors):
        for i in range(4):
            u, v = (i + 0.25) / 4, (j + 0.32) / floors
            panel(window(sheet, glass), u, v, u + 0.13, v + 0.5 / floors)
    left, right, tall = min(corner, outer), max(corner, outer), height * near
    sheet.rectangle(front, left, base - tall, right, base)
    sheet.rectangle(roof, left - 0.006, base - tall * 1.03, right + 0.006, base - tall * 0.965)
    step = 0.155 * near
    for i in range(4):  # counted from the corner, for the rest of a front may be outside of the picture
        x = corner + side * step * (i + 0.55) * 1.15
        if not (0 < x < 1 and left + step * 0.4 < x < right - step * 0.4):
            continue
        for j in range(floors):
            y = base - tall * (j + 0.82) / floors
            sheet.rectangle(window(sheet, glass), x - step * 0.3, y, x + step * 0.3, y + tall * 0.5 / floors)
    if dice.random() < 0.5:
        billboard(sheet, near, along)


def billboard(sheet: Sheet, t: float, along: Callable[[float, float], tuple[float, float]]) -> None:
    """An advertisement with a sign's colours: it does not shine back at night, which only its place and size tell."""
    dice = sheet.dice
    colour, v = dice.choice(SIGNAL), dice.uniform(0.28, 0.5)
    for surface, u1, v1, u2, v2 in (
        (sheet.surface("billboard", colour, t), 0.12, v, 0.72, v + 0.26),
        (sheet.surface("billboard", WHITE, t), 0.2, v + 0.09, 0.64, v + 0.17),
    ):
        sheet.polygon(surface, *along(u1, v1), *along(u2, v1), *along(u2, v2), *along(u1, v2))


def plan_trees(sheet: Sheet) -> Plan:
    """Where the trees stand."""
    plan: Plan = []
    for _ in range(sheet.dice.randint(2, 5)):
        side, t = sheet.dice.choice((-1, 1)), sheet.dice.uniform(0.16, 0.55)
        offset = side * (sheet.half_road + VERGE + sheet.dice.uniform(0.08, 0.35))
        plan.append((t, partial(tree, sheet, offset)))
    return plan


def tree(sheet: Sheet, offset: float, t: float) -> None:
    """One tree; `t` is how near it is, and so its scale."""
    dice, x, base = sheet.dice, sheet.column(offset, t), sheet.foot
    height, leaves = dice.uniform(0.55, 0.85) * t, dice.choice(LEAVES)
    radius = height * dice.uniform(0.26, 0.34)
    sheet.rectangle(sheet.surface("trunk", (0.36, 0.26, 0.18), t), x - 0.028 * t, base - height * 0.6, x + 0.028 * t, base)
    middle = base - height + radius
    for by, dx, dy, r in CROWN:
        leaf = sheet.surface("leaf", shade(leaves, by), t)
        sheet.ellipse(leaf, x + dx * radius, middle + dy * radius, r * radius, r * radius * 0.95)
    sheet.casters.append(Caster(x - radius * 0.8, x + radius * 0.8, base, height * 0.8))


def plan_traffic(sheet: Sheet) -> Plan:
    """Cars in both lanes: those on the right go away from us, those on the left come towards us."""
    dice = sheet.dice
    plan: Plan = []
    for side in (-1, 1):
        t = dice.uniform(0.42, 0.72) if dice.random() < 0.7 else dice.uniform(0.72, 1.08)
        for _ in range(dice.choice((0, 1, 1, 2, 2))):
            offset = side * sheet.half_road * dice.uniform(0.46, 0.58)
            plan.append((t, partial(car, sheet, offset, side < 0)))
            t *= dice.uniform(0.50, 0.70)
    return plan


def car(sheet: Sheet, offset: float, oncoming: bool, t: float) -> None:
    """One car, seen from the front where it is oncoming, with its lamps."""
    dice, x, base = sheet.dice, sheet.column(offset, t), sheet.foot
    colour, w, h = dice.choice(PAINTS), dice.uniform(0.155, 0.175) * t, dice.uniform(0.25, 0.30) * t
    sheet.labels.append("car")
    thing = len(sheet.labels) - 1
    body, dim = sheet.surface("paint", colour, t, thing), sheet.surface("paint", shade(colour, 0.68), t, thing)
    deck = sheet.surface("paint", shade(colour, 1.12), t, thing)
    glass, tyre = sheet.surface("glass", (0.26, 0.34, 0.40), t, thing), sheet.surface("tyre", (0.07, 0.07, 0.08), t, thing)
    inner = x + w if x < sheet.vanish else x - w  # the side that we see
    waist, hood, roof = base - h * 0.12, base - h * 0.60, base - h
    receding(sheet, tyre, inner, base - h * 0.2, inner, base, 0.93)
    receding(sheet, dim, inner, hood, inner, waist, 0.80)
    receding(sheet, deck, x - w, hood, x + w, hood, 0.80)
    cabin(sheet, x, hood, roof, w, glass, body, dim, deck)
    sheet.rectangle(tyre, x - w * 0.92, base - h * 0.2, x - w * 0.58, base)
    sheet.rectangle(tyre, x + w * 0.58, base - h * 0.2, x + w * 0.92, base)
    bend = hood + h * 0.1
    sheet.polygon(body, x - w * 0.96, hood, x + w * 0.96, hood, x + w, bend, x + w, waist, x - w, waist, x - w, bend)
    sheet.rectangle(dim, x - w, waist - h * 0.10, x + w, waist)
    plate = sheet.surface("plate", WHITE, t, thing)
    if oncoming:
        sheet.rectangle(tyre, x - w * 0.42, hood + h * 0.14, x + w * 0.42, hood + h * 0.26)
    sheet.rectangle(plate, x - w * 0.24, waist - h * 0.15, x + w * 0.24, waist - h * 0.05)
    car_lamps(sheet, x, hood + h * 0.2, w, h, t, thing, oncoming)
    sheet.casters.append(Caster(x - w, x + w, base, h * 0.8))


def receding(sheet: Sheet, surface: int, x1: float, y1: float, x2: float, y2: float, k: float) -> None:
    """The face between an edge and the same edge moved towards the vanishing point."""
    sheet.polygon(surface, x1, y1, x2, y2, *sheet.towards(x2, y2, k), *sheet.towards(x1, y1, k))


def cabin(sheet: Sheet, x: float, hood: float, roof: float, w: float, glass: int, body: int, dim: int, deck: int) -> None:
    """The upper part of a car, set back from its front by a tenth of the way to the vanishing point."""
    (left, low), (right, _) = sheet.towards(x - w * 0.93, hood, 0.94), sheet.towards(x + w * 0.93, hood, 0.94)
    (top_left, top), (top_right, _) = sheet.towards(x - w * 0.72, roof, 0.92), sheet.towards(x + w * 0.72, roof, 0.92)
    back_left, back_right = sheet.towards(top_left, top, 0.90), sheet.towards(top_right, top, 0.90)
    sheet.polygon(deck, top_left, top, top_right, top, *back_right, *back_left)
    if x < sheet.vanish:
        sheet.polygon(dim, right, low, top_right, top, *back_right, *sheet.towards(right, low, 0.87))
    else:
        sheet.polygon(dim, left, low, top_left, top, *back_left, *sheet.towards(left, low, 0.87))
    sheet.polygon(body, left, low, top_left, top, top_right, top, right, low)
    inset, drop = (right - left) * 0.06, (low - top) * 0.16
    upper = (top_left + inset, top + drop, top_right - inset, top + drop)
    sheet.polygon(glass, *upper, right - inset * 1.3, low, left + inset * 1.3, low)


def car_lamps(sheet: Sheet, x: float, y: float, w: float, h: float, t: float, thing: int, oncoming: bool) -> None:
    """The lamps of a car: white ahead, red behind."""
    kind, colour = ("headlamp", (0.90, 0.91, 0.86)) if oncoming else ("taillamp", (0.52, 0.04, 0.05))
    lamp = sheet.surface(kind, colour, t, thing)
    for side in (-1, 1):
        middle = x + side * w * 0.74
        sheet.rectangle(lamp, middle - w * 0.22, y - h * 0.09, middle + w * 0.22, y + h * 0.09)
        sheet.sources.append(Source(kind, middle, y, sheet.foot, t))


def plan_kerbside(sheet: Sheet) -> Plan:
    """Persons, signs and street lamps on the sidewalks; now and then somebody crosses."""
    dice, half = sheet.dice, sheet.half_road
    plan: Plan = []
    for _ in range(dice.choice((1, 2, 3, 4))):
        crossing = dice.random() < 0.12
        offset = dice.uniform(-half, half) if crossing else dice.choice((-1, 1)) * (half + dice.uniform(0.03, VERGE - 0.03))
        plan.append((within(sheet, offset, dice.uniform(0.40, 0.85)), partial(person, sheet, offset)))
    side = dice.choice((-1, 1))
    for _ in range(dice.choice((2, 3, 3))):
        side = side if dice.random() < 0.3 else -side
        offset = side * (half + dice.uniform(0.05, VERGE))
        plan.append((within(sheet, offset, dice.uniform(0.38, 0.80)), partial(sign, sheet, offset)))
    for side in (-1, 1):
        t = dice.uniform(0.42, 0.75)
        for _ in range(2):
            offset = side * (half + 0.07)
            plan.append((t, partial(street_lamp, sheet, offset, side)))
            t *= dice.uniform(0.42, 0.55)
    return plan


def within(sheet: Sheet, offset: float, t: float) -> float:
    """The scale t, made smaller where the thing would stand outside of the picture."""
    while not 0.02 < sheet.column(offset, t) < 0.98:
        t *= 0.93
    return t


def person(sheet: Sheet, offset: float, t: float) -> None:
    """One person; `t` is how near, and so the scale."""
    dice, x, base = sheet.dice, sheet.column(offset, t), sheet.foot
    sheet.labels.append("person")
    thing, h = len(sheet.labels) - 1, dice.uniform(0.33, 0.40) * t
    shirt = dice.choice(CLOTHES)
    coat, sleeve = sheet.surface("cloth", shirt, t, thing), sheet.surface("cloth", shade(shirt, 0.78), t, thing)
    legs, skin = sheet.surface("cloth", dice.choice(TROUSERS), t, thing), sheet.surface("skin", dice.choice(SKINS), t, thing)
    hair, stride, w = sheet.surface("hair", dice.choice(HAIRS), t, thing), dice.uniform(0.02, 0.13), h * 0.17
    hip, neck, head = base - h * 0.46, base - h * 0.80, h * 0.105
    for side in (-1, 1):
        foot, toe = x + side * h * (stride + 0.05), side * h * 0.065
        sheet.polygon(legs, x - h * 0.02 * side, hip, x + side * w * 0.82, hip, foot + toe, base, foot - toe, base)
        hand, cuff = x + side * (w + h * (0.05 + stride * 0.4)), side * h * 0.035
        shoulder = (x + side * w * 0.7, neck, x + side * w * 1.05, neck + h * 0.03)
        sheet.polygon(sleeve, *shoulder, hand + cuff, hip + h * 0.02, hand - cuff, hip + h * 0.02)
        sheet.ellipse(skin, hand, hip + h * 0.035, h * 0.035, h * 0.035)
    collar, low = (x - w * 0.6, neck - h * 0.015, x + w * 0.6, neck - h * 0.015), neck + h * 0.02
    sheet.polygon(coat, x - w * 0.95, low, *collar, x + w * 0.95, low, x + w * 0.85, hip + h * 0.02, x - w * 0.85, hip + h * 0.02)
    sheet.ellipse(hair, x, base - h + head * 0.95, head * 1.02, head)
    sheet.ellipse(skin, x, base - h + head * 1.22, head * 0.82, head * 0.82)
    sheet.casters.append(Caster(x - w, x + w, base, h * 0.9))


def sign(sheet: Sheet, offset: float, t: float) -> None:
    """One traffic sign on its post."""
    dice, x, base = sheet.dice, sheet.column(offset, t), sheet.foot
    sheet.labels.append("sign")
    thing, r, y = len(sheet.labels) - 1, dice.uniform(0.095, 0.115) * t, base - dice.uniform(0.44, 0.54) * t
    post = sheet.surface("post", (0.46, 0.47, 0.49), t)
    sheet.rectangle(post, x - 0.016 * t, y, x + 0.016 * t, base)
    sign_face(sheet, x, y, r, [sheet.surface("sheeting", colour, t, thing) for colour in (*SIGNAL, WHITE, DARK)])
    sheet.casters.append(Caster(x - 0.02 * t, x + 0.02 * t, base, (base - y) * 0.8))


def sign_face(sheet: Sheet, x: float, y: float, r: float, sheeting: list[int]) -> None:
    """One of five signs of half-width r around (x, y)."""
    red, blue, yellow, white, black = sheeting
    kind = sheet.dice.randrange(5)
    if kind == 0:  # no entry
        sheet.ellipse(white, x, y, r * 1.06, r * 1.06)
        sheet.ellipse(red, x, y, r * 0.96, r * 0.96)
        sheet.rectangle(white, x - r * 0.62, y - r * 0.18, x + r * 0.62, y + r * 0.18)
    elif kind == 1:  # a speed limit
        sheet.ellipse(red, x, y, r * 1.04, r * 1.04)
        sheet.ellipse(white, x, y, r * 0.70, r * 0.70)
        sheet.rectangle(black, x - r * 0.34, y - r * 0.3, x - r * 0.06, y + r * 0.3)
        sheet.rectangle(black, x + r * 0.1, y - r * 0.3, x + r * 0.34, y + r * 0.3)
    elif kind == 2:  # parking
        sheet.rectangle(blue, x - r, y - r, x + r, y + r)
        sheet.rectangle(white, x - r * 0.42, y - r * 0.62, x - r * 0.12, y + r * 0.62)
        sheet.ellipse(white, x + r * 0.08, y - r * 0.24, r * 0.40, r * 0.38)
    elif kind == 3:  # a warning
        sheet.polygon(red, x, y - r * 1.12, x + r * 1.2, y + r * 0.95, x - r * 1.2, y + r * 0.95)
        sheet.polygon(yellow, x, y - r * 0.60, x + r * 0.74, y + r * 0.66, x - r * 0.74, y + r * 0.66)
    else:  # right of way
        sheet.polygon(white, x, y - r * 1.2, x + r * 1.2, y, x, y + r * 1.2, x - r * 1.2, y)
        sheet.polygon(yellow, x, y - r * 0.92, x + r * 0.92, y, x, y + r * 0.92, x - r * 0.92, y)


def street_lamp(sheet: Sheet, offset: float, side: int, t: float) -> None:
    """One street lamp, its arm over the road."""
    x, base = sheet.column(offset, t), sheet.foot
    top, reach = base - 0.98 * t, x - side * 0.17 * t
    post, lamp = sheet.surface("post", (0.36, 0.38, 0.40), t), sheet.surface("lamp", (0.88, 0.87, 0.82), t)
    sheet.rectangle(post, x - 0.026 * t, base - 0.10 * t, x + 0.026 * t, base)
    sheet.rectangle(post, x - 0.017 * t, top, x + 0.017 * t, base)
    sheet.rectangle(post, min(x - 0.017 * t, reach), top - 0.022 * t, max(x + 0.017 * t, reach), top + 0.012 * t)
    sheet.ellipse(lamp, reach, top + 0.012 * t, 0.075 * t, 0.032 * t)
    sheet.sources.append(Source("lamp", reach, top + 0.012 * t, base, t))
    sheet.casters.append(Caster(x - 0.022 * t, x + 0.022 * t, base, 0.7 * t))
