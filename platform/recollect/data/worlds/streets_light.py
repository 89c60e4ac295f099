"""What light does to a street: four domains, each a table over materials and a few effects, in a few discrete modes.

A domain first gives every surface a colour (its albedo times what the domain does to its material) and paints them all at
once as a palette at twice the size; then come what depends on the place: sky, shadows, lamps, mirrors, rain.

Per-pixel arithmetic is kept to + - * / and table look-ups, whose results every processor agrees on to the last bit; powers and
exponentials are not, and a world must be the same bytes everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from recollect.data.worlds.streets_scene import Scene
from recollect.data.worlds.streets_sheet import MATERIAL, Colour, paint

Pixels = NDArray[np.float32]  # (H, W, 3) or (H, W, 1), 0 to 1 unless light was added


@dataclass(frozen=True, slots=True)
class Mode:
    """A discrete style: the colours of the sky at its top and at the horizon, of the light on everything, and of street lamps."""

    name: str
    zenith: Colour
    horizon: Colour
    light: Colour
    lamp: Colour = (1.0, 0.9, 0.7)


# Each mode has to be recognisable in every picture of its domain: it tints the sky and whatever light falls on the road.
LIGHTS = {
    "sunny": (
        Mode("noon", (0.13, 0.38, 0.86), (0.62, 0.82, 0.98), (1.00, 1.00, 0.98)),
        Mode("golden", (0.42, 0.52, 0.74), (1.00, 0.80, 0.52), (1.12, 0.94, 0.70)),
        Mode("turquoise", (0.05, 0.55, 0.66), (0.72, 0.94, 0.86), (0.86, 1.03, 0.97)),
    ),
    "night": (
        Mode("amber", (0.060, 0.030, 0.020), (0.20, 0.105, 0.045), (1.35, 0.88, 0.50), (1.0, 0.62, 0.20)),
        Mode("white", (0.030, 0.034, 0.036), (0.10, 0.112, 0.110), (1.00, 1.00, 0.96), (1.0, 0.97, 0.90)),
        Mode("blue", (0.008, 0.016, 0.080), (0.04, 0.070, 0.220), (0.60, 0.84, 1.42), (0.60, 0.80, 1.0)),
    ),
    "rainy": (
        Mode("steel", (0.34, 0.40, 0.47), (0.50, 0.56, 0.62), (0.90, 1.00, 1.12)),
        Mode("ochre", (0.44, 0.41, 0.33), (0.60, 0.56, 0.45), (1.12, 1.01, 0.80)),
        Mode("violet", (0.33, 0.29, 0.42), (0.52, 0.45, 0.58), (1.02, 0.90, 1.15)),
    ),
    "cloudy": (
        Mode("silver", (0.76, 0.78, 0.80), (0.90, 0.91, 0.91), (1.00, 1.00, 1.00)),
        Mode("leaden", (0.46, 0.54, 0.66), (0.64, 0.71, 0.80), (0.80, 0.92, 1.10)),
        Mode("cream", (0.80, 0.72, 0.58), (0.95, 0.87, 0.72), (1.10, 1.00, 0.80)),
    ),
}
DOMAINS = tuple(LIGHTS)
MODES = {domain: tuple(mode.name for mode in modes) for domain, modes in LIGHTS.items()}

# By how much a domain dims each material; what is not listed has the default. These tables are the point of the world: what
# looks alike by day (road and post, car and sign, person and billboard) must look different elsewhere.
DIM = {
    "sunny": {"default": 1.0},
    "night": (
        {"default": 0.16, "front": 0.22, "side_left": 0.20, "side_right": 0.20, "roof": 0.18, "window": 0.12, "curtain": 0.0}
        | {"billboard": 0.14, "asphalt": 0.20, "marking": 0.30, "paving": 0.46, "kerb": 0.42, "post": 0.95, "lamp": 0.0}
        | {"grass": 0.13, "leaf": 0.13, "headlamp": 0.0, "taillamp": 0.0, "plate": 0.5, "skin": 0.26, "sheeting": 1.0}
    ),
    "rainy": {"default": 0.62, "asphalt": 0.58, "paving": 0.55, "kerb": 0.6, "sheeting": 0.75, "headlamp": 0.2, "taillamp": 0.3},
    "cloudy": {"default": 0.74, "asphalt": 0.55, "marking": 0.70, "paving": 0.82, "grass": 0.62, "leaf": 0.60},
}
GLOW: dict[str, dict[str, Colour]] = {  # what shines by itself
    "sunny": {},
    "night": (
        {"curtain": (0.90, 0.70, 0.34), "headlamp": (1.0, 1.0, 0.94), "taillamp": (1.0, 0.07, 0.05)}
        | {"sheeting": (0.06, 0.06, 0.06)}  # even a black letter shines back a little
    ),
    "rainy": {"curtain": (0.16, 0.12, 0.04), "headlamp": (0.78, 0.78, 0.74), "taillamp": (0.75, 0.02, 0.02)},
    "cloudy": {},
}
GREY = {"sunny": 0.0, "night": 0.15, "rainy": 0.45, "cloudy": 0.35}  # how much of its colour everything loses
WETTABLE = {"asphalt": 1.0, "marking": 0.9, "paving": 0.75, "kerb": 0.7, "grass": 0.12}
GROUND = dict.fromkeys(WETTABLE, 1.0)


@dataclass(frozen=True, slots=True)
class Style:
    """One way a domain can look. A domain ignores what it has no use for, so that all styles are drawn alike."""

    domain: str
    mode: int  # index into MODES[domain]
    exposure: float  # factor on the whole picture
    haze: float  # 0 to 1: how much of the distance is lost in the horizon's colour
    cover: float  # 0 to 1: of the sky, by clouds
    azimuth: float  # -1 to 1: to which side shadows fall, and how far, in heights
    lamps: float  # factor on street lamps and headlights
    rain: float  # 0 to 1: density of the streaks, and how wet the street is
    slant: float  # -1 to 1: of the rain
    grain: int  # which piece of the cloud, star and noise textures is seen


def check_style(domain: str, mode: int | None = None) -> None:
    """Raise ValueError, naming what there is, for a domain or mode that is not drawn."""
    if domain not in LIGHTS:
        raise ValueError(f"streets has no domain {domain!r}; it has {', '.join(DOMAINS)}")
    if mode is not None and not 0 <= mode < len(MODES[domain]):
        names = ", ".join(f"{i} ({name})" for i, name in enumerate(MODES[domain]))
        raise ValueError(f"{domain} has no mode {mode}; it has {names}")


def draw_style(domain: str, rng: np.random.Generator, mode: int | None = None) -> Style:
    """A random style of the domain, of the given mode or of any with equal chance."""
    check_style(domain, mode)
    any_mode, grain = int(rng.integers(len(MODES[domain]))), int(rng.integers(2**31))
    u = rng.random(7).tolist()
    return Style(
        domain=domain,
        mode=any_mode if mode is None else mode,
        exposure=0.93 + 0.14 * u[0],
        haze=0.15 + 0.5 * u[1],
        cover=u[2],
        azimuth=2 * u[3] - 1,
        lamps=0.7 + 0.6 * u[4],
        rain=u[5],
        slant=2 * u[6] - 1,
        grain=grain,
    )


def render(scene: Scene, style: Style) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of the scene in that style."""
    check_style(style.domain, style.mode)
    mode = LIGHTS[style.domain][style.mode]
    colours = surface_colours(scene, style, mode)
    canvas = np.asarray(coloured(scene.surfaces, colours).reduce(2), np.float32) * np.float32(1 / 255)
    ground = coverage(scene, GROUND)
    canvas *= 1 + 0.05 * (texture(scene, scene.seed, 2.0, scene.size) * ground)  # of the place, so the same in every domain
    if style.domain == "sunny":
        sun(canvas, scene, style, mode, ground)
    elif style.domain == "night":
        night(canvas, scene, style, mode, ground)
    elif style.domain == "rainy":
        rain(canvas, scene, style, mode, colours)
    else:
        overcast(canvas, scene, style, mode, ground)
    canvas *= np.float32(style.exposure * 255)
    canvas += noise(scene.size, style.grain) * np.float32(2.2)  # of a camera, in grey levels
    picture: NDArray[np.uint8] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return picture


def surface_colours(scene: Scene, style: Style, mode: Mode) -> NDArray[np.float32]:
    """What the domain makes of every surface before anything that depends on the place: (S, 3) in [0, 1]."""
    domain = style.domain
    dim, glow = material_tables(domain)
    albedo = scene.albedo
    grey = (albedo[:, :1] * 0.3 + albedo[:, 1:2] * 0.55 + albedo[:, 2:] * 0.15) * GREY[domain]
    factor = dim[scene.material][:, None]
    turn = 0.22 * style.azimuth if domain == "sunny" else 0.0  # sides of houses turned to the sun are lit, the others are not
    factor[scene.material == MATERIAL["side_left"]] *= np.float32(0.84 - turn)
    factor[scene.material == MATERIAL["side_right"]] *= np.float32(0.84 + turn)
    light = np.array(mode.light, np.float32)
    if domain == "night":  # signs answer the white headlights of whoever looks at them, and take little of the street's hue
        light = np.where(scene.material[:, None] == MATERIAL["sheeting"], 1 + np.float32(0.2) * (light - 1), light)
    colours = (albedo * (1 - GREY[domain]) + grey) * factor * light
    distance = np.float32(style.haze * 0.5) * (1 - scene.scale[:, None]) ** 2
    colours = colours * (1 - distance) + np.array(mode.horizon, np.float32) * distance + glow[scene.material]
    if domain == "night":
        colours[scene.material == MATERIAL["lamp"]] = np.array(mode.lamp, np.float32)
    colours[0] = mode.horizon  # the sky, until put_sky
    clipped: NDArray[np.float32] = colours.clip(0, 1).astype(np.float32)
    return clipped


@lru_cache
def material_tables(domain: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By material, in a domain: how much of its colour is left, and the light it gives off."""
    dim = np.array([DIM[domain].get(name, DIM[domain]["default"]) for name in MATERIAL], np.float32)
    return dim, np.array([GLOW[domain].get(name, (0, 0, 0)) for name in MATERIAL], np.float32)


def coloured(surfaces: Image.Image, colours: NDArray[np.float32]) -> Image.Image:
    """Surfaces painted with their colours (256, 3) in [0, 1]: an RGB picture of the surfaces' own size."""
    picture = surfaces.copy()
    picture.putpalette((colours * 255 + 0.5).astype(np.uint8).tobytes())
    return picture.convert("RGB")


def coverage(scene: Scene, weights: dict[str, float]) -> Pixels:
    """How much of each pixel is of these materials: (H, W, 1)."""
    table = np.array([255 * weights.get(name, 0.0) for name in MATERIAL], np.uint8)[scene.material]
    mask = scene.surfaces.point(np.pad(table, (0, 256 - len(table))).tolist()).reduce(2)
    return np.asarray(mask, np.float32)[:, :, None] * np.float32(1 / 255)


@lru_cache(maxsize=1)
def cloud_tile() -> Image.Image:
    """Smooth noise of several octaves, 512 x 512 in mode L; textures are pieces of it, cut where a number says."""
    rng, total = np.random.default_rng(20), np.zeros((512, 512), np.float32)
    for octave, weight in ((8, 0.5), (16, 0.27), (32, 0.14), (64, 0.09)):
        grid = Image.fromarray(rng.integers(0, 256, (octave, octave), dtype=np.uint8))
        total += np.float32(weight) * np.asarray(grid.resize((512, 512), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.clip((total - 128) * 1.6 + 128, 0, 255).astype(np.uint8))


@lru_cache(maxsize=4)
def noise_tile(side: int) -> NDArray[np.float32]:
    """A square tile of normal noise, cut off at 3 deviations; always the same one."""
    return np.random.default_rng(21).standard_normal((side, side)).clip(-3, 3).astype(np.float32)


def noise(size: int, grain: int) -> Pixels:
    """Grey pixel noise (H, W, 1) of deviation 1."""
    x, y = grain % 61, grain // 61 % 61
    return noise_tile(size + 64)[y : y + size, x : x + size, None]


def texture(scene: Scene, grain: int, stretch: float, rows: int) -> Pixels:
    """A piece of the smooth noise (rows, W, 1), -1 to 1; its lumps are `stretch` times as wide as high."""
    height = 200 / stretch
    x, y = grain % 311, grain // 311 % 311
    piece = cloud_tile().resize((scene.size, rows), Image.Resampling.BILINEAR, (x, y, x + 200, y + height))
    return np.asarray(piece, np.float32)[:, :, None] * np.float32(1 / 128) - 1


def put_sky(canvas: Pixels, scene: Scene, mode: Mode, clouds: Pixels | float, colour: Colour) -> None:
    """The sky from the zenith to the horizon, with clouds (rows, W, 1) of that colour, where nothing stands before it."""
    rows = sky_rows(scene)
    down = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    zenith, horizon = np.array(mode.zenith, np.float32), np.array(mode.horizon, np.float32)
    sky = zenith + (horizon - zenith) * down
    sky = sky + (np.array(colour, np.float32) - sky) * clouds
    canvas[:rows] += (sky - horizon) * coverage(scene, {"sky": 1.0})[:rows]


def dimmed(colour: Colour, by: float) -> Colour:
    """A colour times `by`."""
    return colour[0] * by, colour[1] * by, colour[2] * by


def sky_rows(scene: Scene) -> int:
    """How many rows from the top the sky can reach: down to the horizon."""
    return int(scene.sheet.horizon * scene.size) + 1


def shadows(scene: Scene, shift: float, ahead: float) -> Image.Image:
    """What the things on the ground shade of it, shifted sideways by `shift` and down by `ahead` heights: mode L at (2H, 2W)."""
    side = 2 * scene.size
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for caster in scene.sheet.casters:
        x1, x2, foot = caster.x1 * side, caster.x2 * side, caster.foot * side
        dx, dy, thick = shift * caster.height * side, ahead * caster.height * side, (caster.x2 - caster.x1) * side * 0.10
        draw.polygon((x1, foot - thick, x2, foot - thick, x2, foot, x2 + dx, foot + dy, x1 + dx, foot + dy, x1, foot), 255)
        draw.ellipse((x1, foot - thick * 1.5, x2, foot + thick * 1.5), 255)
    return mask


def sun(canvas: Pixels, scene: Scene, style: Style, mode: Mode, ground: Pixels) -> None:
    """Sunlight, in place: hard shadows on the ground, and a sky with clouds."""
    shift = 0.25 * style.azimuth + (0.35 if style.azimuth > 0 else -0.35)  # never straight ahead, where a shadow hardly shows
    mask = np.asarray(shadows(scene, shift, 0.16).reduce(2), np.float32)[:, :, None] * np.float32(1 / 255)
    canvas *= 1 - np.array((0.62, 0.58, 0.48), np.float32) * (ground * mask)  # shade is lit by the blue sky
    lumps = texture(scene, style.grain, 2.2, sky_rows(scene))
    clouds = np.clip(lumps * 1.7 + np.float32(0.9 * style.cover - 0.65), 0, 0.92)
    r, g, b = mode.light
    put_sky(canvas, scene, mode, clouds, (min(1.0, 0.98 * r), min(1.0, 0.98 * g), min(1.0, 0.98 * b)))


def overcast(canvas: Pixels, scene: Scene, style: Style, mode: Mode, ground: Pixels) -> None:
    """A covered sky, in place: grey lumps above, soft shadows below things."""
    mask = shadows(scene, 0.0, 0.05).reduce(2).filter(ImageFilter.BoxBlur(scene.size / 100))
    canvas *= 1 - np.float32(0.4 / 255) * (ground * np.asarray(mask, np.float32)[:, :, None])
    lumps = texture(scene, style.grain, 3.0, sky_rows(scene))
    put_sky(canvas, scene, mode, np.clip(lumps * (0.5 + 0.4 * style.cover), 0, 0.7), dimmed(mode.zenith, 0.86))


def night(canvas: Pixels, scene: Scene, style: Style, mode: Mode, ground: Pixels) -> None:
    """Night, in place: a dark sky with stars, pools of light on the ground, halos around lamps."""
    rare = noise(scene.size, style.grain // 3721)[: sky_rows(scene)] - np.float32(2.75)  # one pixel in 330
    stars = np.clip(rare, 0, 0.25) * np.float32(2.4)
    put_sky(canvas, scene, mode, stars, (0.9, 0.9, 1.0))
    pools, halos = lamp_light(scene, style, mode)
    canvas *= 1 + pools * (0.15 + 0.85 * ground)
    canvas += halos


def lamp_light(scene: Scene, style: Style, mode: Mode) -> tuple[Pixels, Pixels]:
    """By what lamps raise the light on the ground, and the halo around them: both (H, W, 3)."""
    tints: dict[str, Colour] = {"lamp": mode.lamp, "headlamp": (1.0, 1.0, 0.92), "taillamp": (1.0, 0.10, 0.08)}
    places, tint = [], []
    for s in scene.sheet.sources:  # centre and 1 / squared half-widths: of the pool, then of the halo; then their strengths
        power = style.lamps * (1.0 if s.kind != "taillamp" else 0.7)
        if s.kind == "lamp":
            places.append((s.x, s.foot, s.t * 0.30, s.t * 0.10, s.x, s.y, s.t * 0.09, s.t * 0.09, 1.5 * power, 0.50 * power))
        else:
            ahead = s.foot + s.t * 0.06
            places.append((s.x, ahead, s.t * 0.09, s.t * 0.07, s.x, s.y, s.t * 0.05, s.t * 0.05, 1.3 * power, 0.30 * power))
        tint.append(tints[s.kind])
    side = max(16, scene.size // 4)  # light is smooth: a quarter of the size is enough
    grid = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side
    table = np.array(places, np.float32).T[:, :, None]  # (10, N, 1)
    colours = np.array(tint, np.float32)  # (N, 3)
    fields = []
    for x, y, rx, ry, power in ((*table[0:4], table[8]), (*table[4:8], table[9])):
        across, down = ((grid - x) / rx) ** 2, ((grid - y) / ry) ** 2  # (N, side) each
        fall = 1 / (1 + across[:, None, :] + down[:, :, None])
        fall = fall * fall * power[:, :, None]
        bands = [(fall * colours[:, c, None, None]).sum(0, dtype=np.float32) for c in range(3)]
        enlarged = [np.asarray(Image.fromarray(b).resize((scene.size, scene.size), Image.Resampling.BILINEAR)) for b in bands]
        fields.append(np.stack(enlarged, -1))
    return fields[0], fields[1]


def rain(canvas: Pixels, scene: Scene, style: Style, mode: Mode, colours: NDArray[np.float32]) -> None:
    """Rain, in place: a grey sky, wet ground that mirrors what stands above it, streaks."""
    lumps = texture(scene, style.grain, 3.0, sky_rows(scene))
    put_sky(canvas, scene, mode, np.clip(lumps * 0.5, -0.3, 0.6), dimmed(mode.zenith, 0.8))
    wet = coverage(scene, WETTABLE) * np.float32(0.45 + 0.25 * style.rain)
    blur = ImageFilter.BoxBlur((scene.size / 160, scene.size / 28))
    mirror = coloured(paint(scene.sheet, scene.size, mirrored=True), colours).filter(blur)  # drops smear it downwards
    canvas += (np.asarray(mirror, np.float32) * np.float32(0.9 / 255) - canvas) * wet
    streaks = np.asarray(rain_streaks(scene.size, style).reduce(2), np.float32)[:, :, None] * np.float32(1 / 255)
    canvas += (np.array(mode.horizon, np.float32) * 1.25 - canvas) * streaks


def rain_streaks(size: int, style: Style) -> Image.Image:
    """Streaks of rain (2H, 2W) in mode L: long and bright in front, short and faint behind."""
    side, count = 2 * size, int(70 + 110 * style.rain)
    layer = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(layer)
    rng = np.random.default_rng(style.grain)
    width = max(1, round(side / 220))
    for x, y, near in rng.random((count, 3)).tolist():
        length = (0.03 + 0.06 * near) * side
        x, y, lean = (x * 1.2 - 0.1) * side, (y * 1.1 - 0.1) * side, 0.35 * style.slant * length
        draw.line((x, y, x + lean, y + length), int(70 + 90 * near), width)
    return layer
