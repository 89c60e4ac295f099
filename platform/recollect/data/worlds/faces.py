"""The procedural world `faces`: one head and shoulders in twelve combinations of hair colour, gender and age, with exact truth.

The same person (pose, expression, glasses, clothes, wall, light: all the content there is) is drawn with black, blond or brown
hair, as a man or a woman, young or old, and everything else stays as it was. Gender changes jaw, neck, shoulders, hair, brows and
lashes; age draws lines, thins lips and greys the hair by so much that its colour is still told. A face comes with a combination
of its own; the pictures of the others are its exact counterparts.

    faces_traits.py   attributes, and how often each occurs
    faces_sheet.py    curves, and how they are painted
    faces_head.py     the head without its hair
    faces_hair.py     hair
    faces_things.py   wall, clothes, jewellery, glasses, hats
    faces_light.py    styles, colours, light

Everything follows from integers. VERSION 1 is frozen: results that name it can be compared. Its bytes were seen to be the same
with numpy 2.0 and 2.4 and with Pillow 11.3 and 13. (PNG files may differ with the zlib that wrote them; their pixels do not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from recollect.data.schema import Record
from recollect.data.worlds.encode import png
from recollect.data.worlds.faces_light import Style, draw_style, render
from recollect.data.worlds.faces_sheet import REGIONS
from recollect.data.worlds.faces_traits import (
    ATTRIBUTES,
    COMBINATIONS,
    CONTENT,
    HAIRS,
    STYLE,
    Combination,
    Face,
    check_correlation,
    draw_face,
)

__all__ = [
    "ATTRIBUTES",
    "COMBINATIONS",
    "CONTENT",
    "DOMAINS",
    "HAIRS",
    "REGIONS",
    "STYLE",
    "VERSION",
    "Combination",
    "Face",
    "Style",
    "draw_face",
    "draw_style",
    "face_seed",
    "records",
    "render",
]

VERSION = 1
DOMAINS = ("faces",)
BLOCKS = ("train", "val", "test")  # each has face seeds of its own


def face_seed(seed: int, block: str, index: int) -> int:
    """The seed of face `index` of a block of BLOCKS: 2^32 seeds to a block, 2^8 blocks to a seed, so none is shared.

    >>> face_seed(0, "train", 5), face_seed(0, "val", 5) == 5 + 2**32, face_seed(1, "train", 0) == 2**40
    (5, True, True)
    """
    return (seed << 40) + (BLOCKS.index(block) << 32) + index


def records(
    size: int = 128, train: int = 2000, val: int = 100, test: int = 100, correlation: float = 0.0, seed: int = 0
) -> Iterator[Record]:
    """The pictures of a store, of `size` pixels a side.

    train: so many faces, each once, in its own combination.
    val, test: so many faces, each in all of COMBINATIONS: first (so also first in `Store.scene`) in its own, then in the others.
    Pictures of one face share `scene`; `mode` indexes COMBINATIONS. `attributes` holds what is true of that very picture, without
    the names that do not apply to it.
    """
    check_correlation(correlation)
    if seed < 0 or min(train, val, test) < 0:
        raise ValueError(f"records need a seed >= 0 and counts >= 0, not seed {seed}, train {train}, val {val}, test {test}")
    learnt = (record(face, face.own, place, "train", size) for face, place in faces("train", train, correlation, seed))
    judged = (
        record(face, combination, place, split, size)
        for split, count in (("val", val), ("test", test))
        for face, place in faces(split, count, correlation, seed)
        for combination in own_first(face)
    )
    return chain(learnt, judged)


def faces(split: str, count: int, correlation: float, seed: int) -> Iterator[tuple[Face, str]]:
    """The first faces of a split, with their names."""
    for index in range(count):
        yield draw_face(face_seed(seed, split, index), correlation), f"{split}-{index:06d}"


def own_first(face: Face) -> tuple[Combination, ...]:
    """All combinations, beginning with the face's own."""
    return (face.own, *(one for one in COMBINATIONS if one != face.own))


def record(face: Face, combination: Combination, place: str, split: str, size: int) -> Record:
    """The picture of the face in that combination."""
    picture, regions = render(face, draw_style(face, combination), size)
    return Record(
        id=f"{place}-{combination.name}",
        image=png(picture),
        domain=DOMAINS[0],
        width=size,
        height=size,
        split=split,
        attributes=face.attributes(combination),
        source=f"faces {VERSION} face {face.seed}",
        scene=place,
        mode=COMBINATIONS.index(combination),
        regions=png(regions),
    )
