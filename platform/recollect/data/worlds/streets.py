"""The procedural world `streets`: one street scene in four weathers and times of day, with exact truth.

The same place (road, sidewalks, sky, buildings, trees, posts, cars, persons, signs) is drawn once as surfaces, and lit as
often as one likes: sunny, night, rainy, cloudy. What a domain changes depends on what a thing is: at night signs shine back
and car lamps are white or red by heading while road, persons and advertisements go dark; a wet road mirrors what stands
above it; under clouds sky and road move apart. So no single map of colours turns one domain into another.

    streets_sheet.py   surfaces, shapes and how they are painted
    streets_things.py  what stands where
    streets_scene.py   the scene: regions, instances, boxes
    streets_light.py   the domains

Everything follows from integers. VERSION 1 is frozen: results that name it can be compared. Its bytes were seen to be the same
with numpy 2.0 and 2.4 and with Pillow 11.3 to 13; Pillow 11.2 and older fill some polygons and lines differently.
(PNG files may differ with the zlib that wrote them; their pixels do not.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from recollect.data.schema import Record
from recollect.data.worlds.encode import png
from recollect.data.worlds.streets_light import DOMAINS, MODES, Style, check_style, draw_style, render
from recollect.data.worlds.streets_scene import Scene, draw_scene
from recollect.data.worlds.streets_sheet import CLASSES, REGIONS

__all__ = [
    "CLASSES",
    "DOMAINS",
    "MODES",
    "REGIONS",
    "VERSION",
    "Scene",
    "Style",
    "draw_scene",
    "draw_style",
    "records",
    "regions_png",
    "render",
    "scene_seed",
]

VERSION = 1
BLOCKS = (*(f"train/{domain}" for domain in DOMAINS), "val", "test")  # each has scene seeds of its own


def scene_seed(seed: int, block: str, index: int) -> int:
    """The seed of scene `index` of a block of BLOCKS: 2^32 seeds to a block, 2^8 blocks to a seed, so none is shared.

    >>> scene_seed(0, "train/sunny", 5), scene_seed(0, "train/night", 5) == 5 + 2**32, scene_seed(1, "train/sunny", 0) == 2**40
    (5, True, True)
    """
    return (seed << 40) + (BLOCKS.index(block) << 32) + index


def records(
    size: int = 128,
    train: int = 500,
    val: int = 100,
    test: int = 100,
    references: int = 6,
    domains: Sequence[str] = DOMAINS,
    seed: int = 0,
) -> Iterator[Record]:
    """The pictures of a store, of `size` pixels a side.

    train: `train` pictures of each domain in a random style; no place is seen in two domains.
    val, test: so many places, each in every domain, `references` times: the k-th in mode k modulo the number of modes.
    """
    for domain in domains:
        check_style(domain)
    if seed < 0 or min(train, val, test) < 0 or references < 1:
        given = f"seed {seed}, train {train}, val {val}, test {test}, references {references}"
        raise ValueError(f"records need a seed >= 0, counts >= 0 and at least one reference, not {given}")
    judged = (paired(size, split, count, references, domains, seed) for split, count in (("val", val), ("test", test)))
    return chain(unpaired(size, train, domains, seed), *judged)


def unpaired(size: int, count: int, domains: Sequence[str], seed: int) -> Iterator[Record]:
    """Training records: `count` scenes a domain, none of which another domain shows."""
    for domain in domains:
        for index in range(count):
            scene = draw_scene(scene_seed(seed, f"train/{domain}", index), size)
            name = f"train-{domain}-{index:06d}"
            yield record(scene, domain, 0, None, name, name, "train", regions_png(scene))


def paired(size: int, split: str, count: int, references: int, domains: Sequence[str], seed: int) -> Iterator[Record]:
    """Records of a split whose scenes are drawn `references` times in every domain, the modes taking turns."""
    for index in range(count):
        scene = draw_scene(scene_seed(seed, split, index), size)
        place, regions = f"{split}-{index:06d}", regions_png(scene)
        for domain in domains:
            for k in range(references):
                yield record(scene, domain, k, k % len(MODES[domain]), f"{place}-{domain}-{k}", place, split, regions)


def record(scene: Scene, domain: str, k: int, mode: int | None, name: str, place: str, split: str, regions: bytes) -> Record:
    """The k-th picture of the scene in a domain; its style follows from the scene's seed, the domain and k."""
    rng = np.random.default_rng((scene.seed, DOMAINS.index(domain), k))
    style = draw_style(domain, rng, mode)
    return Record(
        id=name,
        image=png(render(scene, style)),
        domain=domain,
        width=scene.size,
        height=scene.size,
        split=split,
        boxes=scene.boxes,
        source=f"streets {VERSION} scene {scene.seed}",
        scene=place,
        mode=style.mode,
        regions=regions,
    )


def regions_png(scene: Scene) -> bytes:
    """The region map as a PNG of mode L, whose values index REGIONS."""
    return png(scene.regions)
