"""Folders of pictures, with or without boxes in COCO form, into a store.

Every picture is really decoded once. What cannot be decoded is listed with its reason and skipped, or fails the whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from recollect.config import did_you_mean
from recollect.data.schema import BACKGROUND, SPLITS, Record
from recollect.data.sources.coco import Annotations, Entry, read_coco
from recollect.data.sources.pictures import Ingest, read_picture
from recollect.data.store import StoreWriter
from recollect.data.taking import Reader, Tally, Workers, finish, take

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LAYOUTS = """
  trainA/ trainB/ [valA/ valB/ testA/ testB/]   pictures of the domains A and B
  {train,val,test}/DOMAIN/...                   a folder a domain in every split
  {train,val,test}/                             pictures of a single domain
  DOMAIN/...                                    a folder a domain, no splits
val and test may be missing; a tenth of train then takes their place. Pictures are """ + " ".join(EXTENSIONS)
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Found:
    """A picture's file: its path relative to the folder (with `/`), its domain, its folder's split and the split it goes to."""

    path: str
    domain: str
    folder_split: str
    split: str


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    boxes: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    min_domains: int = 1,
    strict: bool = False,
    max_side: int | None = None,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn a folder of pictures into a store.

    Args:
        folder: laid out in one of `LAYOUTS`.
        uri: where the store goes; one that is there is replaced.
        boxes: a COCO file for all pictures, or one for each split by name.
        names: what to call the domains, in the order of their folders' names.
        min_domains: fewer domains than this are an error (a translator needs two).
        strict: fail at the first picture that cannot be decoded instead of listing it.
        max_side: pictures with a longer side are made smaller (their boxes too) and encoded again.
        workers: threads that decode (0: none), or workers on Ray (`OnRay`).
        progress: called with (done, total) after every picture.

    Raises ValueError for a folder that has no known layout, a domain without training pictures, boxes that do not fit.
    """
    root = Path(folder)
    found, skipped = find_pictures(root)
    found = _renamed(found, names)
    domains = (
        tuple(dict.fromkeys(item.domain for item in sorted(found, key=lambda item: item.domain))) if names is None else names
    )
    if len(domains) < min_domains:
        raise ValueError(f"{root} has {len(domains)} domain(s), {', '.join(domains)}; this needs at least {min_domains}")
    files = _read_boxes(boxes)
    entries = _match_boxes(files, found)
    classes = tuple(dict.fromkeys(name for file in files.values() for name in file.classes))
    with StoreWriter(uri, domains=domains, classes=(BACKGROUND, *classes), source=f"folders: {root.resolve().name}") as writer:
        pictures = [(item, entries.get(item.path)) for item in found]
        reader = Reader(
            partial(_read, root, max_side), file=lambda picture: root / picture[0].path, known=lambda picture: (picture, max_side)
        )
        taken = take(writer, pictures, reader, workers)
        for done, (item, (result, _)) in enumerate(zip(found, taken, strict=True), start=1):
            if isinstance(result, str):
                if strict:
                    raise ValueError(f"{root / item.path}: {result}")
                skipped.append((item.path, result))
            if progress:
                progress(done, len(found))
        _require_training(root, found, skipped)
    return Ingest(finish(writer), tuple(skipped))


def find_pictures(root: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """The pictures of a folder by its layout, in a fixed order, and the (path, reason) of those that lie outside of it.

    Raises ValueError, showing the layouts, when the folder is none of them.
    """
    if not root.is_dir():
        near = [item.name for item in root.parent.iterdir() if item.is_dir()] if root.parent.is_dir() else []
        raise ValueError(f"there is no folder {root}{did_you_mean(root.name, near, '; folders there: ')}")
    folders = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith((".", "__MACOSX")))
    paired = {name: match for name in folders if (match := re.fullmatch("(train|val|test)([A-Z])", name))}
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    skipped: list[tuple[str, str]] = []
    if any(name.startswith("train") for name in paired):
        found = [Found(path, m[2], m[1], m[1]) for name, m in paired.items() for path in _walk(root, name)]
        skipped += [
            (path, "it lies outside trainA, trainB, ...") for name in folders if name not in paired for path in _walk(root, name)
        ]
    elif any(SPLIT_NAMES[name.lower()] == "train" for name in splits):
        found, skipped = _split_folders(root, splits)
        skipped += [
            (path, "it lies outside the split folders") for name in folders if name not in splits for path in _walk(root, name)
        ]
    else:
        found = [Found(path, name, "train", "train") for name in folders for path in _walk(root, name)]
        empty = [name for name in folders if not any(item.domain == name for item in found)]
        if found and empty:
            raise ValueError(f"empty domain: the folder {root / empty[0]} has no picture ({' '.join(EXTENSIONS)})")
    if not found:
        held = ", ".join(folders) or "no folder"
        raise ValueError(f"{root} is not laid out in a way that is understood (it holds {held}). Layouts:{LAYOUTS}")
    _require_training(root, found, skipped)
    return _with_splits(found), skipped


def _split_folders(root: Path, splits: Sequence[str]) -> tuple[list[Found], list[tuple[str, str]]]:
    """`{split}/DOMAIN/...`, or `{split}/` with the pictures of one domain, which is named after the folder."""
    paths = [(SPLIT_NAMES[name.lower()], path) for name in splits for path in _walk(root, name)]
    parted = any(path.count("/") >= 2 for _, path in paths)
    found = [
        Found(path, path.split("/")[1] if parted else root.resolve().name, split, split)
        for split, path in paths
        if path.count("/") >= 2 or not parted
    ]
    return found, [(path, "it lies beside the domain folders") for _, path in paths if parted and path.count("/") < 2]


def _walk(root: Path, name: str) -> list[str]:
    """The pictures below root/name, relative to root, sorted. Hidden files (also macOS's `._x.jpg`) are none."""
    paths = []
    for where, folders, files in os.walk(root / name):
        folders[:] = [item for item in folders if not item.startswith(".")]
        paths += [
            Path(where, item).relative_to(root).as_posix()
            for item in files
            if item.lower().endswith(EXTENSIONS) and not item.startswith(".")
        ]
    return sorted(paths)


def _with_splits(found: Sequence[Found]) -> list[Found]:
    """The same pictures; a domain without val (test) gives a tenth of train for it: at least 4, if there are 8 to take from.

    Which ones depends on the hash of their paths only: not on the machine, nor on the order of files.
    """
    chosen: dict[str, str] = {}
    for domain in dict.fromkeys(item.domain for item in found):
        own = [item for item in found if item.domain == domain]
        train = sorted(
            (item.path for item in own if item.split == "train"), key=lambda path: hashlib.sha256(path.encode()).digest()
        )
        for split in ("val", "test"):
            if not any(item.split == split for item in own):
                count = max(round(len(train) / 10), 4 if len(train) >= 8 else 0)
                chosen |= dict.fromkeys(train[:count], split)
                train = train[count:]
    return [replace(item, split=chosen.get(item.path, item.split)) for item in found]


def _require_training(root: Path, found: Sequence[Found], skipped: Sequence[tuple[str, str]]) -> None:
    lost = {path for path, _ in skipped}
    counts = {split: Counter(item.domain for item in found if item.split == split and item.path not in lost) for split in SPLITS}
    for domain in sorted({item.domain for item in found}):
        if not counts["train"][domain]:
            reasons = f"; {len(skipped)} skipped, the first: {': '.join(skipped[0])}" if skipped else ""
            has = ", ".join(f"{counts[split][domain]} {split}" for split in SPLITS)
            raise ValueError(f"empty domain: {domain!r} has no training picture in {root} ({has}){reasons}")


def _renamed(found: list[Found], names: Sequence[str] | None) -> list[Found]:
    if names is None:
        return found
    old = sorted({item.domain for item in found})
    if len(old) != len(names):
        raise ValueError(f"{len(names)} names were given ({', '.join(names)}) for {len(old)} domains ({', '.join(old)})")
    new = dict(zip(old, names, strict=True))
    return [replace(item, domain=new[item.domain]) for item in found]


def _read_boxes(boxes: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str] | None) -> dict[str, Annotations]:
    """COCO files by split; the key "" stands for all."""
    if boxes is None:
        return {}
    if not isinstance(boxes, Mapping):
        return {"": read_coco(boxes)}
    for split in boxes:
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r} to give boxes for{did_you_mean(split, SPLITS)}")
    return {split: read_coco(boxes[split]) for split in SPLITS if split in boxes}


def _match_boxes(files: Mapping[str, Annotations], found: Sequence[Found]) -> dict[str, Entry]:
    """path -> its entry. Files go by the folder a picture lies in, also where it was moved from train to val."""
    entries: dict[str, Entry] = {}
    for split, file in files.items():
        pictures = [item.path for item in found if split in ("", item.folder_split)]
        if not pictures:
            has = sorted({item.folder_split for item in found})
            raise ValueError(
                f"{file.file} was given for {split!r}, but there is no folder of that split; there is: {', '.join(has)}"
            )
        entries |= file.match(pictures)
    return entries


def _read(root: Path, max_side: int | None, given: tuple[Found, Entry | None]) -> tuple[Record | str, Tally]:
    """The record of a picture, or why it cannot be decoded. Boxes that do not fit are no matter of decoding: they raise."""
    item, entry = given
    try:
        picture = read_picture(root / item.path, max_side)
    except (OSError, ValueError) as error:
        return str(error), Tally()
    boxes = entry.boxes_within(*picture.original) if entry is not None else None
    record = Record(
        id=item.path,
        image=picture.content,
        domain=item.domain,
        width=picture.width,
        height=picture.height,
        split=item.split,
        boxes=boxes and tuple(picture.shrunk(box) for box in boxes),
        source=f"{root.resolve().name}/{item.path}",
    )
    return record, Tally()
