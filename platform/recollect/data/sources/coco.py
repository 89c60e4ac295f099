"""COCO's JSON: images, annotations with `bbox` [x, y, w, h], categories whose ids need not be contiguous.

`read_coco` is for boxes that belong to pictures found otherwise; `ingest` turns whole data sets in this form into a store. An
annotation with `iscrowd` is a region of many objects, not one: it gives no box.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from recollect.config import did_you_mean
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.annotated import (
    ROUNDING,
    Annotation,
    Item,
    Label,
    ingest_annotated,
    with_splits,
)
from recollect.data.sources.class_map import by_own_names, check_classes
from recollect.data.sources.pictures import Ingest
from recollect.data.taking import Workers


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a COCO file: its size as the file has it (None: not given), its boxes, unchecked, and how many crowds."""

    file: str
    name: str
    width: int | None
    height: int | None
    boxes: tuple[Box, ...]
    crowds: int = 0

    def boxes_within(self, width: int, height: int) -> tuple[Box, ...]:
        """The boxes inside a picture of that size, those that stick out by at most a pixel clipped.

        Raises ValueError, naming file, picture and box, when sizes differ or a box is not inside.
        """
        where = f"{self.file}: picture {self.name!r}"
        if (self.width or width, self.height or height) != (width, height):
            raise ValueError(f"{where} is {self.width}x{self.height} there, but the picture (upright) is {width}x{height}")
        return tuple(_clip(box, width, height, where) for box in self.boxes)

    def annotation(self) -> Annotation:
        """The same as an annotation whose labels are yet to be mapped and checked."""
        where = f"{self.file}: picture {self.name!r}"
        labels = (
            Label(box.label, box.x1, box.y1, box.x2, box.y2, f"{where}, box {number}")
            for number, box in enumerate(self.boxes, start=1)
        )
        frame = (self.width, self.height) if self.width and self.height else None
        return Annotation(tuple(labels), frame, ("crowd",) * self.crowds)


def _clip(box: Box, width: int, height: int, where: str) -> Box:
    sticks_out = max(-box.x1, -box.y1, box.x2 - width, box.y2 - height)
    x1, x2 = max(box.x1, 0.0), min(box.x2, float(width))
    y1, y2 = max(box.y1, 0.0), min(box.y2, float(height))
    if not (sticks_out <= ROUNDING and x1 < x2 and y1 < y2):  # so put, a NaN is an error too
        bbox = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
        raise ValueError(f"{where}: the {box.label} box {bbox} (x, y, w, h) is not inside the picture of {width}x{height} pixels")
    return Box(box.label, x1, y1, x2, y2)


@dataclass(frozen=True, slots=True)
class Annotations:
    """A COCO file: its classes in the order of their ids, and its pictures by file name."""

    file: str
    classes: tuple[str, ...]
    entries: Mapping[str, Entry]

    def match(self, pictures: Iterable[str]) -> dict[str, Entry]:
        """The entry of each picture (a path with `/`), where there is one.

        A file name in the JSON may be the picture's path or any tail of it (relative to the split's folder, to the domain's,
        or bare); pictures still without an entry are then matched by base name. Raises ValueError when an entry fits two
        pictures, and when no entry fits any.
        """
        names = list(pictures)
        found: dict[str, Entry] = {}
        self._claim(found, {name: next((tail for tail in _tails(name) if tail in self.entries), None) for name in names})
        claimed = {entry.name for entry in found.values()}
        bases: dict[str, list[str]] = {}
        for name in self.entries:
            if name not in claimed:
                bases.setdefault(PurePosixPath(name).name, []).append(name)
        left = [name for name in names if name not in found]
        only = {base: entries[0] for base, entries in bases.items() if len(entries) == 1}
        self._claim(found, {name: only.get(PurePosixPath(name).name) for name in left})
        if names and not found:
            some = ", ".join(list(self.entries)[:3]) or "nothing"
            raise ValueError(
                f"{self.file} has boxes for none of the pictures: it names {some}; the pictures are {', '.join(names[:3])}"
            )
        return found

    def _claim(self, found: dict[str, Entry], wanted: Mapping[str, str | None]) -> None:
        owner: dict[str, str] = {}
        for picture, entry in wanted.items():
            if entry is None:
                continue
            if entry in owner:
                both = f"{owner[entry]!r} and {picture!r}"
                raise ValueError(f"{self.file}: {entry!r} fits both {both}; name its pictures relative to the split's folder")
            owner[entry] = picture
            found[picture] = self.entries[entry]


def _tails(path: str) -> list[str]:
    """`a/b/c` -> `a/b/c`, `b/c`, `c`."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def read_coco(path: str | os.PathLike[str]) -> Annotations:
    """Read a COCO JSON file. Raises ValueError, naming the file, when there is none or it is not COCO."""
    file = Path(path)
    if not file.is_file():
        near = [item.name for item in file.parent.glob("*.json")] if file.parent.is_dir() else []
        raise ValueError(f"there is no file {file}{did_you_mean(file.name, near, '; JSON files there: ')}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:  # bad JSON, bad UTF-8
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{file} is not COCO: it needs the lists images, annotations and categories")
    try:
        return _parse(str(file), content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not COCO: an image, annotation or category is malformed ({error!r})") from None


def _parse(file: str, content: Mapping[str, Any]) -> Annotations:
    labels = {item["id"]: str(item["name"]) for item in sorted(content["categories"], key=lambda item: item["id"])}
    boxes: dict[Any, list[Box]] = {item["id"]: [] for item in content["images"]}
    crowds = dict.fromkeys(boxes, 0)
    for item in content["annotations"]:
        if item["image_id"] not in boxes:
            raise ValueError(f"{file}: annotation {item.get('id')} belongs to image {item['image_id']}, which is not listed")
        if item["category_id"] not in labels:
            known = did_you_mean(str(item["category_id"]), map(str, labels))
            raise ValueError(f"{file}: annotation {item.get('id')} has the unknown category {item['category_id']}{known}")
        if len(item["bbox"]) != 4:
            raise ValueError(f"{file}: annotation {item.get('id')} has the bbox {item['bbox']}; it must be [x, y, w, h]")
        if item.get("iscrowd"):
            crowds[item["image_id"]] += 1
            continue
        x, y, w, h = map(float, item["bbox"])
        boxes[item["image_id"]].append(Box(labels[item["category_id"]], x, y, x + w, y + h))
    entries: dict[str, Entry] = {}
    for item in content["images"]:
        name = str(PurePosixPath(str(item["file_name"]).replace("\\", "/")))
        if name in entries:
            raise ValueError(f"{file} lists the picture {name!r} twice")
        own = tuple(boxes[item["id"]])
        entries[name] = Entry(file, name, item.get("width"), item.get("height"), own, crowds[item["id"]])
    return Annotations(file, tuple(dict.fromkeys(labels.values())), entries)


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of pictures with its COCO file, and the domain and split that they make; without a split they are training's."""

    domain: str
    images: Path
    annotations: Path
    split: str | None = None


def parse_part(text: str) -> Part:
    """`DOMAIN/SPLIT=IMAGES,ANNOTATIONS` or `DOMAIN=IMAGES,ANNOTATIONS` as a part. Raises ValueError for anything else.

    >>> parse_part("day/val=day/images,day/val.json").split
    'val'
    """
    name, _, places = text.partition("=")
    images, _, annotations = places.rpartition(",")
    domain, slash, split = name.partition("/")
    if not (domain and images and annotations) or (slash and not split):
        raise ValueError(f"a part is written DOMAIN/SPLIT=IMAGES,ANNOTATIONS, as in day/train=day/images,day.json; not {text!r}")
    return Part(domain, Path(images), Path(annotations), split or None)


def ingest(
    parts: Sequence[Part],
    uri: str | os.PathLike[str],
    *,
    classes: Mapping[str, str] | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn one or more data sets in COCO's form into a store.

    Args:
        parts: folders of pictures with their COCO files; the pictures are those that the files list.
        uri: where the store goes; one that is there is replaced.
        classes: the class map; None: the categories of all parts by their own names, in the order of their ids.
        val, test, seed: shares of a domain's training pictures that become these splits where no part is one
            (`annotated.with_splits`).
        strict, max_side, workers, progress: as in `annotated.ingest_annotated`.

    Ids are `DOMAIN/SPLIT/file_name`, without the split where the part names none. Raises ValueError, naming the file, for a
    part without pictures and whatever is not this format.
    """
    files = [_read_part(part) for part in parts]
    if not files:
        raise ValueError("which pictures? name at least one part: DOMAIN/SPLIT=IMAGES,ANNOTATIONS")
    known = tuple(dict.fromkeys(name for file in files for name in file.classes))
    classes = by_own_names(known) if classes is None else classes
    names = check_classes(classes, known)
    items = [
        Item(
            id="/".join(filter(None, (part.domain, part.split, name))),
            file=part.images / name,
            source=f"{part.images.resolve().name}/{name}",
            domain=part.domain,
            split=part.split or "train",
            key=f"{part.domain}/{name}",
            annotation=entry.annotation,
        )
        for part, file in zip(parts, files, strict=True)
        for name, entry in file.entries.items()
    ]
    return ingest_annotated(
        with_splits(items, val=val, test=test, seed=seed),
        uri,
        names=names,
        classes=classes,
        source=f"COCO: {', '.join(dict.fromkeys(part.annotations.name for part in parts))}",
        strict=strict,
        max_side=max_side,
        workers=workers,
        progress=progress,
    )


def _read_part(part: Part) -> Annotations:
    if part.split not in (None, *SPLITS):
        raise ValueError(f"there is no split {part.split!r}{did_you_mean(str(part.split), SPLITS)}")
    if not part.images.is_dir():
        raise ValueError(f"there is no folder {part.images} for the pictures of {part.domain!r}")
    file = read_coco(part.annotations)
    if not file.entries:
        raise ValueError(f"{part.annotations} lists no picture")
    return file
