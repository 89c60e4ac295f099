"""CelebA: faces with 40 binary attributes, as published and as RG-UNIT lists them.

    list_attr_celeba.txt        line 1 the number of pictures, line 2 the 40 names, then `000001.jpg -1  1 ...`
    list_eval_partition.txt     `000001.jpg 0`: 0 train, 1 val, 2 test
    img_align_celeba/           000001.jpg ..., 178 x 218 pixels

Both lists may lie in `Anno/` and `Eval/`, the pictures in `Img/`, as they are downloaded. RG-UNIT's lists have a picture a line,
its name, a tab and five bits: `000001.jpg<TAB>00101` for black, blond, brown hair, male, young.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from recollect.config import did_you_mean
from recollect.data.sources.annotated import position, read_text
from recollect.data.sources.attributes import Labelled, ingest_labelled
from recollect.data.sources.pictures import Ingest, Picture
from recollect.data.taking import Workers
from recollect.data.transforms import open_image

HAIRS = ("Black_Hair", "Blond_Hair", "Brown_Hair")
BITS = (*HAIRS, "Male", "Young")  # what the five bits of RG-UNIT's lists say
PARTS = {"0": "train", "1": "val", "2": "test"}
HELD_OUT = 2000  # RG-UNIT holds out the pictures 1 to 2000
VAL = 0.01  # of the others: 2,000 pictures that choose checkpoints, which the held-out ones must not
WHERE = {
    "list_attr_celeba.txt": ("", "Anno"),
    "list_eval_partition.txt": ("", "Eval", "Anno"),
    "img_align_celeba": ("", "Img"),
}


@dataclass(frozen=True, slots=True)
class Attributes:
    """A list of attributes: its names in order, and what is true of each picture by its file's name."""

    names: tuple[str, ...]
    of: dict[str, dict[str, int]]


def ingest(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    size: int = 128,
    crop: int = 178,
    split: Literal["official", "rg-unit"] | None = None,
    val: float | None = None,
    bits: Sequence[str | os.PathLike[str]] = (),
    attributes: Sequence[str] | None = None,
    labelled: float = 1.0,
    one_hair: bool = False,
    domain: str = "celeba",
    seed: int = 0,
    strict: bool = False,
    workers: Workers = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Ingest:
    """Turn CelebA into a store of one domain.

    Args:
        folder: as in the module's docstring.
        uri: where the store goes; one that is there is replaced.
        size, crop: pixels a side: cut `crop` from the middle, then bring that to `size` (bilinear, with antialiasing).
        split: "official" by list_eval_partition.txt; "rg-unit": pictures 1 to 2000 are test, all others train; None: "rg-unit"
            with `bits`, else "official".
        val: with "rg-unit" the share of the others that is val, chosen by the hash of their names; None: `VAL`. The official
            division has its own.
        bits: lists of RG-UNIT's (such as one for training and one for validation): they say which pictures there are, and their
            five attributes. The others come from list_attr_celeba.txt where it is there.
        attributes: these only, in this order; None: all.
        labelled: the share of training pictures that keep their attributes, chosen by hash, so that a smaller share is part of a
            larger one; the others are there without any.
        one_hair: leave out pictures that have none of the three hair colours, or several.
        domain: what to call the domain.
        seed: of the choices of `val` and `labelled`.
        strict: fail at the first picture that is missing, broken or too small instead of listing it.
        workers: threads that decode (0: none), or workers on Ray (`OnRay`).
        progress: called with (done, total) after every picture.

    Raises ValueError, naming file and line, for lists that cannot be read and attributes that are not there.
    """
    if split not in (None, "official", "rg-unit"):
        raise ValueError(f"there is no division {split!r}{did_you_mean(str(split), ('official', 'rg-unit'))}")
    if size < 1 or crop < 1 or not 0 < labelled <= 1:
        raise ValueError(f"size {size} and crop {crop} must be at least 1 pixel, labelled {labelled} above 0 and at most 1")
    division = split or ("rg-unit" if bits else "official")
    share = _share(val, division)
    root = Path(folder)
    pictures = find(root, "img_align_celeba")
    found = _read_all(root, bits)
    names = _wanted(found, attributes)
    parts = None if division == "rg-unit" else read_partition(find(root, "list_eval_partition.txt"))
    items = []
    for name, values in found.of.items():
        if one_hair and sum(values[hair] for hair in HAIRS) != 1:
            continue
        part = held_out(name, share, seed) if parts is None else parts.get(name)
        if part is None:
            raise ValueError(f"list_eval_partition.txt of {root} does not name {name}, which the list of attributes has")
        kept = {key: values[key] for key in names if key in values}
        items.append(Labelled(f"{domain}/{Path(name).stem}", pictures / name, f"img_align_celeba/{name}", domain, part, kept))
    return ingest_labelled(
        _unlabelled(items, labelled, seed),
        uri,
        attributes=names,
        source=f"celeba: {division}, {crop} to {size}"
        + (f", {share:g} val" if parts is None else "")
        + (f", {labelled:g} labelled" if labelled < 1 else ""),
        read=partial(read_cut, crop=crop, size=size),
        strict=strict,
        workers=workers,
        progress=progress,
    )


def find(root: Path, name: str) -> Path:
    """A file or folder of CelebA, where it may lie. Raises ValueError, saying where it was looked for."""
    for path in candidates(root, name):
        if path.exists():
            return path
    places = " or ".join(map(str, candidates(root, name)))
    hint = "; RG-UNIT's division needs none, take --split rg-unit" if name == "list_eval_partition.txt" else ""
    raise ValueError(f"{root} is not CelebA: there is no {places}{hint}")


def candidates(root: Path, name: str) -> tuple[Path, ...]:
    """Where a file or folder of CelebA may lie."""
    return tuple(root / place / name for place in WHERE[name])


def _read_all(root: Path, bits: Sequence[str | os.PathLike[str]]) -> Attributes:
    """The attributes of all pictures to take."""
    if not bits:
        return read_attributes(find(root, "list_attr_celeba.txt"))
    listed = any(path.exists() for path in candidates(root, "list_attr_celeba.txt"))
    known = read_attributes(find(root, "list_attr_celeba.txt")) if listed else Attributes(BITS, {})
    merged: dict[str, dict[str, int]] = {}
    for file in bits:
        for name, values in read_bits(Path(file)).items():
            if name in merged:
                raise ValueError(f"{file} names {name}, which another list has already")
            merged[name] = known.of.get(name, {}) | values
    return Attributes(known.names, merged)


def read_attributes(file: Path) -> Attributes:
    """A file list_attr_celeba.txt. Raises ValueError, naming file and line, where it is none."""
    lines = read_text(file).splitlines()
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        raise ValueError(f"{file} is no list of attributes: line 1 must be the number of pictures, line 2 the names")
    names = tuple(lines[1].split())
    missing = [name for name in BITS if name not in names]
    if missing or len(set(names)) < len(names):
        raise ValueError(f"{file}:2 must name CelebA's attributes once each; {', '.join(missing) or 'one is there twice'}")
    of: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines[2:], start=3):
        name, *values = line.split() or [""]
        if not name:
            continue
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise ValueError(f"{file}:{number} must be a picture and {len(names)} times 1 or -1, not {line[:60]!r}")
        if name in of:
            raise ValueError(f"{file}:{number}: {name} is there twice")
        of[name] = {key: int(value == "1") for key, value in zip(names, values, strict=True)}
    if len(of) != int(lines[0]):
        raise ValueError(f"{file} says {lines[0].strip()} pictures in its first line and has {len(of)}: it is cut off")
    return Attributes(names, of)


def read_partition(file: Path) -> dict[str, str]:
    """The split of each picture by a file list_eval_partition.txt. Raises ValueError, naming file and line, where it is none."""
    found = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in PARTS:
            raise ValueError(f"{file}:{number} must be a picture and 0, 1 or 2, not {line!r}")
        found[words[0]] = PARTS[words[1]]
    return found


def read_bits(file: Path) -> dict[str, dict[str, int]]:
    """The five attributes of each picture by a list of RG-UNIT's. Raises ValueError, naming file and line, where it is none."""
    if not file.is_file():
        raise ValueError(f"there is no list {file}")
    found = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) != len(BITS) or set(words[1]) - {"0", "1"}:
            raise ValueError(f"{file}:{number} must be a picture, a tab and five bits ({', '.join(BITS)}), not {line!r}")
        name = Path(words[0]).name
        if name in found:
            raise ValueError(f"{file}:{number}: {name} is there twice")
        found[name] = {key: int(bit) for key, bit in zip(BITS, words[1], strict=True)}
    if not found:
        raise ValueError(f"{file} names no picture")
    return found


def held_out(name: str, val: float = VAL, seed: int = 0) -> str:
    """The split of a picture in RG-UNIT's division: its held-out ones are the test, a share `val` of the others is val.

    >>> held_out("002000.jpg"), held_out("202599.jpg"), held_out("202599.jpg", val=0.5)
    ('test', 'train', 'val')
    """
    stem = Path(name).stem
    if not stem.isdecimal():
        raise ValueError(f"RG-UNIT's division goes by numbers such as 000001.jpg; {name!r} has none, take --split official")
    if int(stem) <= HELD_OUT:
        return "test"
    return "val" if position(f"val/{name}", seed) < val else "train"  # not the hash by which labels are kept


def read_cut(file: Path, *, crop: int, size: int) -> Picture:
    """The middle of a picture, `crop` pixels a side, brought to `size`. Raises OSError or ValueError where there is none."""
    image = open_image(file.read_bytes())
    width, height = image.size
    if min(width, height) < crop:
        raise ValueError(f"it is {width}x{height} pixels, too small to cut {crop} from it")
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    cut = image.crop((left, top, left + crop, top + crop))
    if size != crop:
        cut = cut.resize((size, size), Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    cut.save(sink, "JPEG", quality=95, subsampling=0)  # as PNG the 200,000 would take four times the room
    return Picture(sink.getvalue(), size, size, (width, height))


def _share(val: float | None, division: str) -> float:
    """The share of val. Raises ValueError for one that cannot be, and where the division has its own."""
    if val is not None and division == "official":
        raise ValueError("the official division names its validation pictures itself; leave val out, or take --split rg-unit")
    if val is not None and not 0 <= val < 1:
        raise ValueError(f"a share of val {val} leaves no training pictures; it is at least 0 and below 1")
    return VAL if val is None else val


def _wanted(found: Attributes, attributes: Sequence[str] | None) -> tuple[str, ...]:
    for name in attributes or ():
        if name not in found.names:
            raise ValueError(f"there is no attribute {name!r}{did_you_mean(name, found.names)}")
    return found.names if attributes is None else tuple(attributes)


def _unlabelled(items: Sequence[Labelled], labelled: float, seed: int) -> list[Labelled]:
    """The same pictures; of those for training only a share keeps its attributes."""

    def keeps(item: Labelled) -> bool:
        return item.split != "train" or position(item.file.name, seed) < labelled

    return [item if keeps(item) else replace(item, attributes={}) for item in items]
