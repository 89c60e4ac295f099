"""Boxes from COCO's JSON: images, annotations with `bbox` [x, y, w, h], categories whose ids need not be contiguous."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from recollect.config import did_you_mean
from recollect.data.schema import Box

ROUNDING = 1.0  # pixels that a box may stick out by, as tools round differently


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a COCO file: its size as the file has it (None: not given) and its boxes, unchecked."""

    file: str
    name: str
    width: int | None
    height: int | None
    boxes: tuple[Box, ...]

    def boxes_within(self, width: int, height: int) -> tuple[Box, ...]:
        """The boxes inside a picture of that size, those that stick out by at most a pixel clipped.

        Raises ValueError, naming file, picture and box, when sizes differ or a box is not inside.
        """
        where = f"{self.file}: picture {self.name!r}"
        if (self.width or width, self.height or height) != (width, height):
            raise ValueError(f"{where} is {self.width}x{self.height} there, but the picture (upright) is {width}x{height}")
        return tuple(_clip(box, width, height, where) for box in self.boxes)


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
    for item in content["annotations"]:
        if item["image_id"] not in boxes:
            raise ValueError(f"{file}: annotation {item.get('id')} belongs to image {item['image_id']}, which is not listed")
        if item["category_id"] not in labels:
            known = did_you_mean(str(item["category_id"]), map(str, labels))
            raise ValueError(f"{file}: annotation {item.get('id')} has the unknown category {item['category_id']}{known}")
        if len(item["bbox"]) != 4:
            raise ValueError(f"{file}: annotation {item.get('id')} has the bbox {item['bbox']}; it must be [x, y, w, h]")
        x, y, w, h = map(float, item["bbox"])
        boxes[item["image_id"]].append(Box(labels[item["category_id"]], x, y, x + w, y + h))
    entries: dict[str, Entry] = {}
    for item in content["images"]:
        name = str(PurePosixPath(str(item["file_name"]).replace("\\", "/")))
        if name in entries:
            raise ValueError(f"{file} lists the picture {name!r} twice")
        entries[name] = Entry(file, name, item.get("width"), item.get("height"), tuple(boxes[item["id"]]))
    return Annotations(file, tuple(dict.fromkeys(labels.values())), entries)
