"""Published data sets with boxes into a store: what all of them share.

A source says which pictures there are and reads their annotations as they stand; here boxes are renamed by a class map (see
`class_map.py`), brought into the picture's pixels, checked, counted and written.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from recollect.data.schema import SPLITS, Box, Record
from recollect.data.sources.pictures import Ingest, Picture, read_picture
from recollect.data.store import StoreWriter
from recollect.data.taking import Reader, Tally, Workers, finish, take

ROUNDING = 1.0  # pixels that a box may stick out by, as tools round differently


@dataclass(frozen=True, slots=True)
class Label:
    """A box as a data set has it: its own class, corners in pixels of the annotation's frame, unchecked, and where it stands."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float
    where: str  # a file and a line, for messages


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a data set says of a picture.

    `frame` is the (width, height) that the corners are meant in; None: the picture's own. `ignored` names what is no object
    but was annotated all the same (regions to ignore, crowds), once for each; it is only counted.
    """

    labels: tuple[Label, ...]
    frame: tuple[int, int] | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to take: its id and place in the store, its file, what to call that in the store, and how to get its boxes.

    `key` is what a hashed split goes by (see `with_splits`). `annotation` raises ValueError, naming file and line.
    """

    id: str
    file: Path
    source: str
    domain: str
    split: str
    key: str
    annotation: Callable[[], Annotation]


def corners(texts: Sequence[str], where: str) -> tuple[float, float, float, float]:
    """Four written numbers x1 y1 x2 y2. Raises ValueError, naming `where`, when they are not four finite numbers."""
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        raise ValueError(f"{where}: the box {' '.join(texts)!r} is not four numbers x1 y1 x2 y2") from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"{where}: the box {' '.join(texts)!r} is not finite")
    return x1, y1, x2, y2


def read_text(file: Path) -> str:
    """A text file as UTF-8. Raises ValueError, naming it, when it is not."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: {error}") from None


def position(key: str, seed: int = 0) -> float:
    """Where a key lies in [0, 1): the first 8 bytes of SHA-256 of `seed/key`, as a fraction. The same on every machine.

    >>> position("sunny/a.png") == position("sunny/a.png") != position("sunny/a.png", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def with_splits(items: Sequence[Item], *, val: float = 0.1, test: float = 0.1, seed: int = 0) -> list[Item]:
    """The same pictures, with shares of "train" moved to the splits that a domain lacks.

    Each picture goes by `position(key)` alone: below `test` to "test", in the next `val` to "val". So a picture that is added
    moves no other, and all pictures of one key stay together. A split that a domain has already takes no share.

    Raises ValueError for shares that leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"shares of val {val} and test {test} leave no training pictures; each is at least 0, together below 1")
    has = {(item.domain, item.split) for item in items}

    def split_of(item: Item) -> str:
        place, start = position(item.key, seed), 0.0
        for split, share in (("test", test), ("val", val)):
            if (item.domain, split) not in has:
                if start <= place < start + share:
                    return split
                start += share
        return item.split

    return [replace(item, split=split_of(item)) if item.split == "train" else item for item in items]


def ingest_annotated(
    items: Sequence[Item],
    uri: str | os.PathLike[str],
    *,
    names: Sequence[str],
    classes: Mapping[str, str],
    source: str,
    skipped: Sequence[tuple[str, str]] = (),
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Write annotated pictures as a store.

    Args:
        items: the pictures, in the store's order; their domains, in order of appearance, become the store's.
        uri: where the store goes; one that is there is replaced.
        names: the store's classes, as `check_classes` gives them.
        classes: the class map.
        source: what made this store, in words.
        skipped: (path, reason) of what the source has left out already.
        strict: a picture that is missing or broken, a box without area, one that sticks out by more than a pixel are errors.
        max_side: pictures with a longer side are made smaller (their boxes too) and encoded again.
        workers: threads that decode (0: none), or workers on Ray (`OnRay`).
        progress: called with (done, total) after every picture.

    Raises ValueError, naming file and line, for annotations that cannot be read, and for a domain without training pictures.
    """
    if strict and skipped:
        raise ValueError(": ".join(skipped[0]))
    if not items:
        raise ValueError(f"{source}: there is no picture to take")
    _refuse_twins(items)
    domains = tuple(dict.fromkeys(item.domain for item in items))
    left, tally, boxed = list(skipped), Tally(), Counter[str]()
    counts: Counter[tuple[str, str]] = Counter()
    with StoreWriter(uri, domains=domains, classes=names, source=source) as writer:
        read = partial(_read, classes=classes, strict=strict, max_side=max_side)
        reader = Reader(read, file=lambda item: item.file, known=partial(_known, settings=(dict(classes), strict, max_side)))
        taken = take(writer, items, reader, workers)
        for done, (item, (result, events)) in enumerate(zip(items, taken, strict=True), start=1):
            tally.add(events)
            if not isinstance(result, str):
                counts[item.domain, item.split] += 1
                boxed[item.domain] += result.boxes or 0
            elif strict:
                raise ValueError(f"{item.file}: {result}")
            else:
                left.append((item.source, result))
            if progress:
                progress(done, len(items))
        for domain in domains:
            if not counts[domain, "train"]:
                has = ", ".join(f"{counts[domain, split]} {split}" for split in SPLITS)
                reasons = f"; {len(left)} left out, the first: {': '.join(left[0])}" if left else ""
                raise ValueError(f"empty domain: {domain!r} has no training picture ({has}){reasons}")
    lacking = [f"domain {domain!r} has no {split} picture" for domain in domains for split in SPLITS if not counts[domain, split]]
    bare = [
        f"domain {domain!r} has no box at all: a class-aware method sees background" for domain in domains if not boxed[domain]
    ]
    return Ingest(finish(writer), tuple(left), (*_warnings(tally, classes, names), *bare, *lacking))


def _refuse_twins(items: Sequence[Item]) -> None:
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            both = f"{seen[item.id].source} ({seen[item.id].split}) and {item.source} ({item.split})"
            raise ValueError(f"the picture {item.id!r} is there twice: {both}")
        seen[item.id] = item


def _known(item: Item, *, settings: object) -> object:
    """What a record is made of besides its picture's bytes."""
    try:
        annotation: object = item.annotation()
    except ValueError as error:  # reading says it, if the picture is there
        annotation = str(error)
    return item.id, item.source, item.domain, item.split, annotation, settings


def _read(item: Item, *, classes: Mapping[str, str], strict: bool, max_side: int | None) -> tuple[Record | str, Tally]:
    """The record of a picture, or why there is none, and what happened to its boxes."""
    try:
        picture = read_picture(item.file, max_side)
    except FileNotFoundError:
        return "the picture is missing", Tally()
    except (OSError, ValueError) as error:
        return str(error), Tally()
    boxes, tally = place_boxes(item.annotation(), picture, classes, item.source, strict)
    record = Record(
        id=item.id,
        image=picture.content,
        domain=item.domain,
        width=picture.width,
        height=picture.height,
        split=item.split,
        boxes=boxes,
        source=item.source,
    )
    return record, tally


def place_boxes(
    annotation: Annotation, picture: Picture, classes: Mapping[str, str], name: str, strict: bool = False
) -> tuple[tuple[Box, ...], Tally]:
    """The boxes of a picture by the class map, in its own pixels and clipped to it, and what happened to them.

    Corners are scaled from the annotation's frame where the picture has another size of the same shape. Raises ValueError,
    naming the picture, for another shape; with `strict`, naming the box, also for one without area or out of the picture.
    """
    tally = Tally()
    for ignored in annotation.ignored:
        tally.note("ignored", ignored)
    across, down = _scale(annotation, picture, name, tally)
    boxes = []
    for label in annotation.labels:
        if label.name not in classes:
            tally.note("dropped", label.name)
            continue
        tally.note("named", label.name)
        box = Box(classes[label.name], label.x1 * across, label.y1 * down, label.x2 * across, label.y2 * down)
        inside = _inside(box, picture.original, label, strict, tally)
        if inside is not None:
            tally.note("kept", inside.label)
            boxes.append(picture.shrunk(inside))
    return tuple(boxes), tally


def _scale(annotation: Annotation, picture: Picture, name: str, tally: Tally) -> tuple[float, float]:
    frame, (width, height) = annotation.frame, picture.original
    if frame is None or frame == (width, height):
        return 1.0, 1.0
    (w, h), (large_w, large_h) = sorted((frame, (width, height)))
    if abs(w - large_w * h / large_h) > 0.5 + 0.5 * large_w / large_h + 1e-6:  # more than the rounding of w and h explains
        raise ValueError(f"{name}: its boxes are meant in {frame[0]}x{frame[1]} pixels, but the picture is {width}x{height}")
    tally.note("scaled", f"{frame[0]}x{frame[1]} to {width}x{height}", name)
    return width / frame[0], height / frame[1]


def _inside(box: Box, size: tuple[int, int], label: Label, strict: bool, tally: Tally) -> Box | None:
    """The part of a box inside its picture; None: there is none."""
    width, height = size
    x1, x2 = max(box.x1, 0.0), min(box.x2, float(width))
    y1, y2 = max(box.y1, 0.0), min(box.y2, float(height))
    corners = f"({label.x1:g}, {label.y1:g}) to ({label.x2:g}, {label.y2:g})"
    if not (x1 < x2 and y1 < y2):  # so put, a NaN has no area either
        if strict:
            raise ValueError(
                f"{label.where}: the {label.name} box {corners} has no area in its picture of {width}x{height} pixels"
            )
        tally.note("empty", label.name, label.where)
        return None
    if max(-box.x1, -box.y1, box.x2 - width, box.y2 - height) > ROUNDING:
        if strict:
            raise ValueError(
                f"{label.where}: the {label.name} box {corners} sticks out of its picture of {width}x{height} pixels"
            )
        tally.note("clipped", label.name, label.where)
    return Box(box.label, x1, y1, x2, y2)


def _warnings(tally: Tally, classes: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """What a user should know of the boxes, in sentences."""
    texts = {
        "dropped": "dropped {} boxes of classes that the class map does not name",
        "ignored": "left out {} regions that are no objects",
        "empty": "left out {} boxes without area in their picture",
        "clipped": "clipped {} boxes that stuck out of their picture by more than a pixel",
        "scaled": "scaled the boxes of {} pictures, whose size is not the one that their annotations are in",
    }
    found = []
    for event, text in texts.items():
        counts = tally.of(event)
        if counts:
            first = f"; the first: {tally.first[event]}" if tally.first[event] else ""
            which = ", ".join(f"{count} {name}" for name, count in counts.items())
            found.append(f"{text.format(sum(counts.values()))} ({which}{first})")
    named, kept = tally.of("named"), tally.of("kept")
    found += [f"the class map names {own!r}, but no picture has such a box" for own in classes if own not in named]
    found += [f"the class {name!r} is left without a box" for name in names[1:] if name not in kept]
    return found
