"""Cityscapes: `leftImg8bit/{train,val}/CITY/X_leftImg8bit.png` with `gtFine/{train,val}/CITY/X_gtFine_polygons.json`.

The data set has outlines, no boxes. Outlines are drawn in their order, a later one over those before it, as the official
instance maps are made; what is left of each is one instance. Its *modal* box is the tight box of these pixels, its *amodal* box
that of the whole outline inside the picture, as if nothing stood in front. Objects that are `deleted` do not exist; a
`...group` (several that nobody could tell apart) hides what is behind it and is no object itself.

The published polygons of `test` are placeholders, so it is not read; `val` is what results are reported on, and becomes "test".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from recollect.config import did_you_mean
from recollect.data.sources.annotated import (
    Annotation,
    Item,
    Label,
    ingest_annotated,
    read_text,
    with_splits,
)
from recollect.data.sources.class_map import by_own_names, check_classes
from recollect.data.sources.pictures import Ingest
from recollect.data.taking import Workers

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
INSTANCES = (*CLASSES, "caravan", "trailer")  # labels whose polygons are told apart; the last two are not evaluated
UNDRAWN = "license plate"  # its official id is negative: it covers nothing
LABELS = (
    *INSTANCES,
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk"),
    *("parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"),
    *("traffic light", "traffic sign", "vegetation", "terrain", "sky", UNDRAWN),
)
FOUR_CLASSES = {"person": "person", "car": "car", "truck": "truck", "bicycle": "bicycle", "rider": "bicycle"}
"""Cityscapes' side of the four classes that it shares with KITTI: person, car, truck, bicycle (MGUIT, section 4.1).

KITTI boxes a cyclist with the bicycle; Cityscapes outlines rider and bicycle apart, so both stand for it.
"""
SPLITS = {"train": "train", "val": "test"}

Boxes = Literal["modal", "amodal"]


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    domain: str = "cityscapes",
    boxes: Boxes = "modal",
    classes: Mapping[str, str] | None = FOUR_CLASSES,
    val: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn Cityscapes' train and val pictures into a store of one domain; its val becomes "test".

    Args:
        folder: holds `leftImg8bit` and `gtFine`.
        uri: where the store goes; one that is there is replaced.
        domain: what to call the domain.
        boxes: "modal" for what is seen of an object, "amodal" for all of its outline.
        classes: the class map, from any of `LABELS` (each polygon is a box); None: the eight evaluated classes.
        val, seed: share of the training pictures that becomes "val" (`annotated.with_splits`).
        strict, max_side, workers, progress: as in `annotated.ingest_annotated`.

    Ids are `DOMAIN/CITY_SEQUENCE_FRAME`. Raises ValueError, naming the file, for whatever is not this format.
    """
    root = Path(folder)
    if boxes not in ("modal", "amodal"):
        raise ValueError(f"there are no {boxes!r} boxes{did_you_mean(boxes, ('modal', 'amodal'))}")
    classes = by_own_names(CLASSES) if classes is None else classes
    names = check_classes(classes, LABELS)
    wanted = frozenset(classes)
    items, lone = [], []
    for split, goes_to in SPLITS.items():
        pictures = _files(root, "leftImg8bit", split, "_leftImg8bit.png")
        polygons = _files(root, "gtFine", split, "_gtFine_polygons.json")
        for stem, file in polygons.items():
            picture = pictures.get(stem, root / "leftImg8bit" / split / file.parent.name / f"{stem}_leftImg8bit.png")
            source = picture.relative_to(root).as_posix()
            annotation = partial(read_polygons, file, boxes, wanted)
            items.append(Item(f"{domain}/{stem}", picture, source, domain, goes_to, stem, annotation))
        lone += [(pictures[stem].relative_to(root).as_posix(), "it has no polygons") for stem in pictures if stem not in polygons]
    if not items:
        raise ValueError(
            f"{root} is not Cityscapes: it needs leftImg8bit/train/CITY/..._leftImg8bit.png and gtFine/train/CITY/..."
        )
    return ingest_annotated(
        with_splits(items, val=val, test=0, seed=seed),
        uri,
        names=names,
        classes=classes,
        source=f"Cityscapes: {root.resolve().name} ({boxes})",
        skipped=lone,
        strict=strict,
        max_side=max_side,
        workers=workers,
        progress=progress,
    )


def _files(root: Path, kind: str, split: str, ending: str) -> dict[str, Path]:
    """`CITY_SEQUENCE_FRAME` -> its file."""
    return {path.name.removesuffix(ending): path for path in sorted((root / kind / split).glob(f"*/*{ending}"))}


def read_polygons(file: Path, boxes: Boxes = "modal", wanted: Collection[str] = CLASSES) -> Annotation:
    """The boxes of a file `..._gtFine_polygons.json`, in the order of its objects; half-open, so whole pixels.

    There is a box for every polygon whose label is in `wanted` or is one of `INSTANCES`. Groups and objects of which nothing is
    seen are among the ignored. Raises ValueError, naming file and object, for unknown labels and malformed outlines.
    """
    width, height, objects = _read(file)
    canvas = Image.new("I", (width, height), 0)  # 32 bits: a number for every polygon
    pen = ImageDraw.Draw(canvas)
    drawn: list[tuple[int, str, tuple[int, int, int, int]]] = []
    ignored: list[str] = []
    for number, item in enumerate(objects, start=1):
        where = f"{file}: object {number}"
        name, outline = _object(item, where)
        if item.get("deleted"):
            continue
        group = name not in LABELS and name.endswith("group") and name.removesuffix("group") in LABELS
        if not group and name not in LABELS:
            raise ValueError(f"{where}: there is no label {name!r}{did_you_mean(name, LABELS)}")
        if name != UNDRAWN:
            pen.polygon(outline, fill=number)
        if group:
            ignored += [name] if name.removesuffix("group") in wanted else []
        elif name in wanted or name in INSTANCES:
            drawn.append((number, name, _outline_box(outline, width, height)))
    pixels = np.asarray(canvas)
    labels = []
    for number, name, (x1, y1, x2, y2) in drawn:
        if boxes == "modal" and name != UNDRAWN:
            rows, columns = np.nonzero(pixels[y1:y2, x1:x2] == number)
            if not len(rows):
                ignored += [f"hidden {name}"] if name in wanted else []
                continue
            x1, x2 = x1 + int(columns.min()), x1 + int(columns.max()) + 1
            y1, y2 = y1 + int(rows.min()), y1 + int(rows.max()) + 1
        labels.append(Label(name, x1, y1, x2, y2, f"{file}: object {number}"))
    return Annotation(tuple(labels), (width, height), tuple(ignored))


def _outline_box(outline: list[tuple[float, float]], width: int, height: int) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the pixels of an outline inside the picture; its corners are pixels, so the last one belongs to it."""
    xs, ys = zip(*outline, strict=True)
    x1, y1 = max(math.floor(min(xs)), 0), max(math.floor(min(ys)), 0)
    x2, y2 = min(math.floor(max(xs)) + 1, width), min(math.floor(max(ys)) + 1, height)
    return x1, y1, max(x1, x2), max(y1, y2)


def _read(file: Path) -> tuple[int, int, list[Any]]:
    text = read_text(file)
    try:
        content = json.loads(text)
        width, height, objects = int(content["imgWidth"]), int(content["imgHeight"]), content["objects"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: this is not JSON: {error.msg}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no polygon file: it needs imgWidth, imgHeight and objects ({error!r})") from None
    if width < 1 or height < 1 or not isinstance(objects, list):
        raise ValueError(f"{file} is no polygon file: it is {width}x{height} pixels with objects {str(objects)[:40]}")
    return width, height, objects


def _object(item: Any, where: str) -> tuple[str, list[tuple[float, float]]]:
    try:
        name, outline = item["label"], [(float(x), float(y)) for x, y in item["polygon"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} needs a label and a polygon [[x, y], ...] ({error!r})") from None
    if not isinstance(name, str) or len(outline) < 3 or not all(math.isfinite(value) for point in outline for value in point):
        raise ValueError(f"{where} needs a label and a polygon of at least three finite corners; it has {name!r}, {outline[:3]}")
    return name, outline
