"""What one picture is in an image store: the record, its boxes, and the columns that hold them.

A store is a folder of Parquet shards plus `manifest.json` (see `store.py`); every source and every procedural world
produces `Record`s, and nothing else in the platform knows where a picture came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

SPLITS = ("train", "val", "test")
BACKGROUND = "background"  # class 0 of every store: whatever no box covers


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in absolute pixels of its picture, half-open: columns [x1, x2), rows [y1, y2)."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Record:
    """One picture with everything that is known of it.

    `boxes` is None where nobody annotated the picture (an annotated picture without objects has an empty tuple).
    `scene`, `mode` and `regions` are truth that only a world (or a paired set) has: pictures of one `scene` show the same
    place, `mode` is the discrete style they were drawn in, `regions` a PNG (mode L) whose pixels index the store's regions.
    """

    id: str
    image: bytes  # encoded: PNG, JPEG or WebP
    domain: str
    width: int
    height: int
    split: str
    boxes: tuple[Box, ...] | None = None
    attributes: dict[str, int] | None = None
    source: str = ""  # where it came from: a path, a seed
    scene: str | None = None
    mode: int | None = None
    regions: bytes | None = field(default=None, repr=False)


BOX = pa.struct([("label", pa.string()), ("x1", pa.float32()), ("y1", pa.float32()), ("x2", pa.float32()), ("y2", pa.float32())])

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("domain", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("boxes", pa.list_(BOX)),
        ("attributes", pa.map_(pa.string(), pa.int8())),
        ("source", pa.string()),
        ("scene", pa.string()),
        ("mode", pa.int32()),
        ("regions", pa.binary()),
    ]
)
