"""What the endpoint answers, as Python objects: pictures decoded, numbers as arrays."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Found:
    """A picture of the index: its id, how far it is, and what it looks like where thumbnails were asked for."""

    id: str
    distance: float | None  # None: drawn at random
    thumbnail: Image.Image | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Retrieved:
    """What was found, nearest first, by which bundle, in which version of the index."""

    found: tuple[Found, ...]
    model: str
    digest: str
    index: str


@dataclass(frozen=True)
class Item:
    """An item of a model's memory; `number` is what a style calls it, `index` its value in a memory map."""

    index: int
    label: str
    number: int
    usage: float  # its share of what its class wrote in training
    dead: bool
    colour: str
    thumbnails: Mapping[str, Image.Image] = field(default_factory=dict, repr=False)  # by domain


@dataclass(frozen=True)
class Translated:
    """An answer: pictures with everything needed to get them again."""

    images: tuple[Image.Image, ...]
    encoded: tuple[bytes, ...] = field(repr=False)  # the same as the server sent them
    format: str
    seeds: tuple[int, ...] | None  # one a picture; None: the deterministic translation
    model: str
    digest: str  # SHA-256 of the bundle that answered
    memory_map: NDArray[np.uint8] | None = field(default=None, repr=False)  # (h, w): the item that each cell reads
    cell: int = 0  # pixels of a cell of it
    masks: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False)  # (H, W) a picture: 255 where it was drawn anew
    neighbours: tuple[tuple[Found, ...], ...] = ()  # for each picture what it was drawn with, nearest first
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the whole answer

    def save(self, folder: str | os.PathLike[str], stem: str = "translated") -> list[Path]:
        """Write the pictures as they came: STEM.png, or STEM-SEED.png where they have seeds. Returns the paths."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        ends = [f"-{seed}" for seed in self.seeds] if self.seeds else [""]
        paths = [out / f"{stem}{end}.{'jpg' if self.format == 'jpeg' else self.format}" for end in ends]
        for path, content in zip(paths, self.encoded, strict=True):
            path.write_bytes(content)
        return paths


def _image(encoded: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        return image


def translated(body: Any) -> Translated:
    encoded = tuple(base64.b64decode(text) for text in body["images"])
    extras: Mapping[str, Any] = body["extras"]
    memory: Mapping[str, Any] = extras.get("memory_map") or {}
    seeds: Sequence[int] | None = body["seeds"]
    return Translated(
        images=tuple(_image(content) for content in encoded),
        encoded=encoded,
        format=body["format"],
        seeds=None if seeds is None else tuple(seeds),
        model=body["model"],
        digest=body["digest"],
        memory_map=_array(memory["image"]) if memory else None,
        cell=memory.get("cell", 0),
        masks=tuple(_array(text) for text in extras.get("attention_masks") or ()),
        neighbours=tuple(_found(told) for told in extras.get("neighbours") or ()),
        raw=body,
    )


def _array(text: str) -> NDArray[np.uint8]:
    return np.asarray(_image(base64.b64decode(text)))


def _found(told: Sequence[Mapping[str, Any]]) -> tuple[Found, ...]:
    return tuple(
        Found(one["id"], one["distance"], _image(base64.b64decode(one["thumbnail"])) if one["thumbnail"] else None)
        for one in told
    )


def retrieved(body: Any) -> Retrieved:
    return Retrieved(_found(body["found"]), body["model"], body["digest"], body["index"])


def items(body: Any) -> list[Item]:
    found = []
    for told in body["items"]:
        pictures = {domain: _image(base64.b64decode(text)) for domain, text in told["thumbnails"].items()}
        found.append(Item(**{**told, "thumbnails": pictures}))
    return found
