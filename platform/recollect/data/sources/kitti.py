"""KITTI's object detection benchmark: `training/image_2/000000.png` with `training/label_2/000000.txt`.

A label is one line of 15 fields (16 with a detector's score): type, truncated, occluded, alpha, the box x1 y1 x2 y2 in pixels
from 0, three dimensions, three coordinates, rotation. `DontCare` lines are regions where nobody annotated: no objects, so no
boxes. Only `training/` has labels; `testing/` is not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from recollect.config import did_you_mean
from recollect.data.schema import SPLITS
from recollect.data.sources.annotated import (
    Annotation,
    Item,
    Label,
    corners,
    ingest_annotated,
    read_text,
    with_splits,
)
from recollect.data.sources.class_map import by_own_names, check_classes
from recollect.data.sources.pictures import Ingest
from recollect.data.taking import Workers

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
IGNORED = "DontCare"
FIELDS = (15, 16)
FOUR_CLASSES = {
    "Pedestrian": "person",
    "Person_sitting": "person",
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Cyclist": "bicycle",
}
"""KITTI's side of the four classes that it shares with Cityscapes: person, car, truck, bicycle (MGUIT, section 4.1)."""


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    domain: str = "kitti",
    classes: Mapping[str, str] | None = FOUR_CLASSES,
    lists: Mapping[str, str | os.PathLike[str]] | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn KITTI's training pictures into a store of one domain.

    Args:
        folder: holds `training/image_2` and `training/label_2` (or `Kitti/raw/training/...`, as torchvision unpacks it).
        uri: where the store goes; one that is there is replaced.
        domain: what to call the domain.
        classes: the class map; None: KITTI's eight classes by their own names.
        lists: split -> a file that names its pictures, one `000000` a line; pictures in none of them are left out.
        val, test, seed: without lists, the shares of pictures that become these splits (`annotated.with_splits`).
        strict, max_side, workers, progress: as in `annotated.ingest_annotated`.

    Ids are `DOMAIN/000000`. Raises ValueError, naming file and line, for whatever is not this format.
    """
    root = _root(Path(folder))
    classes = by_own_names(CLASSES) if classes is None else classes
    names = check_classes(classes, CLASSES, {IGNORED: "it marks regions where nobody annotated, not objects"})
    pictures = {path.stem: path for path in sorted((root / "image_2").iterdir()) if path.suffix.lower() in (".png", ".jpg")}
    labels = {path.stem: path for path in sorted((root / "label_2").glob("*.txt"))}
    if not labels:
        raise ValueError(f"{root / 'label_2'} holds no label file (000000.txt)")
    split_of = _read_lists(lists, labels) if lists else dict.fromkeys(labels, "train")
    items = [
        Item(
            id=f"{domain}/{stem}",
            file=pictures.get(stem, root / "image_2" / f"{stem}.png"),
            source=f"training/image_2/{pictures[stem].name if stem in pictures else f'{stem}.png'}",
            domain=domain,
            split=split_of[stem],
            key=stem,
            annotation=partial(read_label, path),
        )
        for stem, path in labels.items()
        if stem in split_of
    ]
    lone = [(f"training/image_2/{path.name}", "there is no label file") for stem, path in pictures.items() if stem not in labels]
    return ingest_annotated(
        items if lists else with_splits(items, val=val, test=test, seed=seed),
        uri,
        names=names,
        classes=classes,
        source=f"KITTI: {Path(folder).resolve().name}",
        skipped=lone,
        strict=strict,
        max_side=max_side,
        workers=workers,
        progress=progress,
    )


def _root(folder: Path) -> Path:
    for root in (folder / "training", folder / "Kitti" / "raw" / "training"):
        if (root / "image_2").is_dir() and (root / "label_2").is_dir():
            return root
    raise ValueError(f"{folder} is not KITTI's object data set: it needs training/image_2 and training/label_2")


def _read_lists(lists: Mapping[str, str | os.PathLike[str]], labels: Mapping[str, Path]) -> dict[str, str]:
    """picture -> split, by files that name a picture a line."""
    found: dict[str, str] = {}
    for split, file in lists.items():
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r} to give a list for{did_you_mean(split, SPLITS)}")
        for number, line in enumerate(read_text(Path(file)).splitlines(), start=1):
            name = Path(line.strip()).stem
            if name and name not in labels:
                raise ValueError(f"{file}:{number}: there is no label file for {line.strip()!r}")
            if name and found.setdefault(name, split) != split:
                raise ValueError(f"{file}:{number}: {name} is in the list of {found[name]!r} already")
    return found


def read_label(file: Path) -> Annotation:
    """The labels of a file `label_2/000000.txt`, DontCare regions set aside.

    Raises ValueError, naming file and line, for another number of fields, an unknown type, or corners that are no numbers.
    """
    labels: list[Label] = []
    ignored: list[str] = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{file}:{number}"
        if len(fields) not in FIELDS:
            raise ValueError(f"{where}: a label has 15 fields, or 16 with a score; this line has {len(fields)}")
        if fields[0] == IGNORED:
            ignored.append(IGNORED)
            continue
        if fields[0] not in CLASSES:
            raise ValueError(f"{where}: there is no type {fields[0]!r}{did_you_mean(fields[0], (*CLASSES, IGNORED))}")
        labels.append(Label(fields[0], *corners(fields[4:8], where), where))
    return Annotation(tuple(labels), None, tuple(ignored))
