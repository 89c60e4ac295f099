"""A scene of the street world with all that is exactly known of it: regions, instances and boxes, whatever the light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recollect.data.schema import Box
from recollect.data.worlds.streets_sheet import REGION_OF, Sheet, paint
from recollect.data.worlds.streets_things import compose


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One place, without light.

    `surfaces` (2H, 2W) is the picture of surface numbers; `material`, `albedo` (S, 3 in [0, 1]), `scale` are per surface.
    `regions` (H, W) indexes REGIONS, `instances` (H, W) is 0 or which car, person or sign is seen there, `labels` their
    classes; `boxes` are the tight boxes around what is visible of each, in pixels. `sheet` is what it was drawn from.
    """

    seed: int
    size: int
    regions: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]
    surfaces: Image.Image
    material: NDArray[np.uint8]
    albedo: NDArray[np.float32]
    scale: NDArray[np.float32]
    sheet: Sheet


def draw_scene(seed: int, size: int) -> Scene:
    """The street of this seed, drawn for pictures of `size` by `size` pixels; the place does not depend on the size."""
    if seed < 0 or size < 16:
        raise ValueError(f"a scene needs a seed >= 0 and a size >= 16 pixels, not seed {seed} and size {size}")
    sheet = compose(seed)
    surfaces = paint(sheet, 2 * size)
    seen = np.asarray(surfaces)[::2, ::2]  # one sample a pixel: a region is never a mixture
    material = np.array(sheet.material, np.uint8)
    instances = np.array(sheet.thing, np.uint8)[seen]
    return Scene(
        seed=seed,
        size=size,
        regions=REGION_OF[material][seen],
        instances=instances,
        labels=tuple(sheet.labels),
        boxes=tight_boxes(instances, sheet.labels),
        surfaces=surfaces,
        material=material,
        albedo=np.array(sheet.albedo, np.float32),
        scale=np.array(sheet.scale, np.float32),
        sheet=sheet,
    )


def tight_boxes(instances: NDArray[np.uint8], labels: Sequence[str]) -> tuple[Box, ...]:
    """The exact boxes around the visible pixels of each instance that has enough of them."""
    size, count = instances.shape[0], len(labels)
    rows, columns = np.nonzero(instances)
    which = instances[rows, columns]
    low, high = np.full((2, count), size), np.zeros((2, count), np.int64)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[axis], which, places)
        np.maximum.at(high[axis], which, places + 1)
    enough = np.bincount(which, minlength=count) >= max(4, size * size / 800)  # 5 pixels at 64: less is not recognisable
    corners = np.concatenate([low, high]).T.astype(float).tolist()  # x1, y1, x2, y2
    return tuple(Box(labels[i], *corners[i]) for i in range(1, count) if enough[i])
