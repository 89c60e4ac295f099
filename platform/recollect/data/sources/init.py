"""INIT (instance-level image translation): streets in sunny, night, rainy and cloudy, with boxes of cars, signs and persons.

Two layouts are read. As published: `batch1_anno/sunny1.txt`, one list a domain and batch, of records

    # index
    /path/of/the/picture.png        relative to the domain's folder
    3 1208 1920 1                   channels, height, width, number
    0
    2                               how many boxes follow, perhaps none
    1 745.1 620.9 955.2 719.8       class x1 y1 x2 y2 in pixels; 1 car, 2 speed-limit sign, 3 person

with blank lines anywhere. And as MGUIT's released loader reads it: `label/sunny_train/**/*`, a file a picture, whose first line
begins with the picture's path, whose second line says nothing, and whose others are `class x1 y1 x2 y2` in the frame of
572x360 pixels that its pictures are resized to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from recollect.config import did_you_mean
from recollect.data.schema import SPLITS
from recollect.data.sources.annotated import (
    Annotation,
    Item,
    Label,
    corners,
    ingest_annotated,
    position,
    read_text,
    with_splits,
)
from recollect.data.sources.class_map import by_own_names, check_classes
from recollect.data.sources.pictures import Ingest
from recollect.data.taking import Workers

CLASSES = {1: "car", 2: "sign", 3: "person"}
FRAME = (572, 360)  # 1920x1208 at a height of 360
TEST_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Listed:
    """One picture of a list: its path as written, without the leading slash, its boxes, and where it stands."""

    path: str
    annotation: Annotation
    where: str

    def own_annotation(self) -> Annotation:
        """What the list says of it."""
        return self.annotation


def split_85_15(path: str, *, val: float = 0.05, seed: int = 0) -> str:
    """The split of a picture by the paper's shares, 85% for training and 15% for testing.

    The paper names no pictures, so the SHA-256 of `seed/path` decides: the lowest 15% are "test", the next `val` of all "val"
    (the paper has none; 0 gives exactly its shares), the rest "train".

    >>> [split_85_15(path) for path in ("1.png", "2.png", "6.png")]
    ['train', 'val', 'test']
    """
    place = position(path, seed)
    return "test" if place < TEST_SHARE else "val" if place < TEST_SHARE + val else "train"


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    domains: Sequence[str] | None = None,
    split: Literal["given", "85-15"] | None = None,
    together: bool = False,
    val: float = 0.05,
    seed: int = 0,
    frame: tuple[int, int] = FRAME,
    classes: Mapping[str, str] | None = None,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn INIT into a store with a domain a weather.

    Args:
        folder: with `label/DOMAIN_PHASE/` it is read as MGUIT's loader does, else by its lists `batch*_anno/DOMAIN*.txt`.
        uri: where the store goes; one that is there is replaced.
        domains: these only, in this order; None: all, by name.
        split: "given" keeps the phases of `label/DOMAIN_PHASE`, "85-15" divides anew by `split_85_15`; None: "given" where
            there are phases.
        together: keep all pictures of one folder (a drive) in one split: what is tested was then never driven past in training.
        val: the share of all pictures that becomes "val"; with "given", of the training pictures of a domain without one.
        seed: of the hashed splits.
        frame: (width, height) that the boxes of `label/` are in; the lists say theirs themselves.
        classes: the class map; None: car, sign, person.
        strict, max_side, workers, progress: as in `annotated.ingest_annotated`.

    Ids are `DOMAIN/path`. Raises ValueError, naming file and line, for unknown classes and whatever is not this format.
    """
    root = Path(folder)
    classes = by_own_names(CLASSES.values()) if classes is None else classes
    names = check_classes(classes, CLASSES.values())
    phased = (root / "label").is_dir()
    items = _phased_items(root, frame) if phased else _raw_items(root)
    items = _chosen(items, domains, root)
    if split not in (None, "given", "85-15"):
        raise ValueError(f"there is no way to split {split!r}{did_you_mean(str(split), ('given', '85-15'))}")
    if split == "given" and not phased:
        raise ValueError(f"the lists of {root} give no splits; leave `given` out, and they are divided 85 to 15")
    if together:
        items = [replace(item, key=item.key.rpartition("/")[0]) for item in items]
    if phased and split != "85-15":
        items = with_splits(items, val=val, test=0, seed=seed)
    else:
        items = [replace(item, split=split_85_15(item.key, val=val, seed=seed)) for item in items]
    return ingest_annotated(
        items,
        uri,
        names=names,
        classes=classes,
        source=f"INIT: {root.resolve().name}{' (label files)' if phased else ''}",
        strict=strict,
        max_side=max_side,
        workers=workers,
        progress=progress,
    )


def _chosen(items: list[Item], domains: Sequence[str] | None, root: Path) -> list[Item]:
    known = sorted({item.domain for item in items})
    for name in domains or ():
        if name not in known:
            raise ValueError(f"{root} has no domain {name!r}{did_you_mean(name, known)}")
    return [item for name in domains or known for item in items if item.domain == name]


def _raw_items(root: Path) -> list[Item]:
    """The pictures of the lists `batch*_anno/sunny1.txt`; they lie in `sunny/`."""
    files = sorted(path for path in root.glob("*_anno/*.txt") if not path.name.startswith("."))
    if not files:
        held = (
            ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "nothing: there is no such folder"
        )
        raise ValueError(
            f"{root} is not INIT: it needs batch1_anno/sunny1.txt, ... beside sunny/, ..., or label/sunny_train/, ...; "
            f"it holds {held or 'nothing'}"
        )
    items = []
    for file in files:
        domain = re.sub(r"[_-]?\d*$", "", file.stem)
        entries = list(read_list(file))
        if not domain or not entries:
            raise ValueError(f"{file} {'lists no picture' if domain else 'is named after no domain (sunny1.txt)'}")
        items += [_item(root, domain, f"{domain}/{entry.path}", "train", entry) for entry in entries]
    return items


def _phased_items(root: Path, frame: tuple[int, int]) -> list[Item]:
    """The pictures of `label/sunny_train/**/*`; their paths are relative to the root."""
    items = []
    folders = sorted(path for path in (root / "label").iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        domain, _, phase = folder.name.rpartition("_")
        if not domain or phase not in SPLITS:
            raise ValueError(f"{folder} is no label/DOMAIN_PHASE: there is no phase {phase!r}{did_you_mean(phase, SPLITS)}")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        for file in files:
            entry = read_label_file(file, frame)
            items.append(_item(root, domain, entry.path, phase, entry))
    if not items:
        raise ValueError(f"{root / 'label'} holds no label file; they are label/sunny_train/..., one a picture")
    return items


def _item(root: Path, domain: str, path: str, split: str, entry: Listed) -> Item:
    """`path`: of the picture, relative to the root."""
    id = path if path.startswith(f"{domain}/") else f"{domain}/{path}"
    return Item(id, root / path, entry.where, domain, split, id, entry.own_annotation)


def read_list(file: Path) -> Iterator[Listed]:
    """The records of a published list, in order. Raises ValueError, naming file and line, for whatever is none."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(file).splitlines(), start=1) if line.strip()]
    rest = iter(lines)
    last = lines[-1][0] if lines else 0

    def following(what: str) -> tuple[str, str]:
        number, line = next(rest, (last, ""))
        if not line:
            raise ValueError(f"{file}:{number}: the file ends where {what} should follow")
        return f"{file}:{number}", line

    for number, line in rest:
        if not line.startswith("#"):
            raise ValueError(f"{file}:{number}: a record begins with `# index`, not with {line[:60]!r}")
        where, path = following("the picture's path")
        size = _size(*following("its size"))
        _integers(*following("a line that is 0"), 1, "the line before the number of boxes is one number")
        (count,) = _integers(*following("the number of boxes"), 1, "the number of boxes is one number")
        labels = tuple(_label(*following(f"box {index + 1} of {count}")) for index in range(count))
        yield Listed(path.lstrip("/"), Annotation(labels, size), where)


def read_label_file(file: Path, frame: tuple[int, int] = FRAME) -> Listed:
    """A label file as MGUIT's loader reads it. Raises ValueError, naming file and line, for whatever is none."""
    lines = read_text(file).splitlines()
    path = lines[0].partition(" ")[0].strip() if lines else ""
    if not path:
        raise ValueError(f"{file}:1: the first line begins with the path of the picture, but it is empty")
    labels = (_label(f"{file}:{number}", line) for number, line in enumerate(lines[2:], start=3) if line.strip())
    return Listed(path.lstrip("/"), Annotation(tuple(labels), frame), f"{file}:1")


def _label(where: str, line: str) -> Label:
    fields = line.split()
    if len(fields) != 5:
        raise ValueError(f"{where}: a box is `class x1 y1 x2 y2`, not {line[:60]!r}")
    names = {str(number): name for number, name in CLASSES.items()}
    if fields[0] not in names:
        known = ", ".join(f"{number} {name}" for number, name in names.items())
        raise ValueError(f"{where}: there is no class {fields[0]!r}; known: {known}")
    return Label(names[fields[0]], *corners(fields[1:], where), where)


def _size(where: str, line: str) -> tuple[int, int]:
    """(width, height) of `channels height width number`."""
    channels, height, width, *_ = _integers(where, line, 4, "a size is `channels height width number`")
    if channels > 4 or not (height and width):
        raise ValueError(f"{where}: a size is `channels height width number`, so {line!r} would have {channels} channels")
    return width, height


def _integers(where: str, line: str, count: int, rule: str) -> list[int]:
    fields = line.split()
    if len(fields) != count or not all(field.isdecimal() for field in fields):
        raise ValueError(f"{where}: {rule}, not {line[:60]!r}")
    return [int(field) for field in fields]
