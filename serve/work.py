"""What ingress and translator say to each other: plain data, so that it crosses processes as it is.

Arrays travel between deployments without a copy; tensors would not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from recollect.data.transforms import to_unit
from recollect.styles import Shown, Style
from serve.errors import ApiError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ClassStyles:
    """Styles by class, and the pictures (3, H, W) that they name."""

    chosen: Mapping[str, Style]
    pictures: Mapping[str, Pixels]

    def open(self, name: str) -> Shown:
        """One of the pictures."""
        return Shown(to_unit(torch.tensor(self.pictures[name]))[None])


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of a translator, whichever picture it is of."""

    target: str | None = None  # None: the only domain, or the first one where attributes say what is wanted
    source: str | None = None
    seeds: tuple[int, ...] | None = None  # one a sample; None: the method's own deterministic style
    attributes: Mapping[str, float] = field(default_factory=dict)
    strength: float | None = None  # how much of the neighbours is drawn with
    exemplar: Pixels | None = None  # a picture of the target domain whose style is wanted
    styles: ClassStyles | None = None  # those of single classes
    extras: frozenset[str] = frozenset()  # of EXTRAS: what is told beside the pictures

    def bytes(self, picture: Pixels) -> int:
        """About how many go to the translator, or come back, whichever is more; thumbnails can be any number."""
        if "thumbnails" in self.extras:
            return sys.maxsize
        further = sum(own.nbytes for own in (self.styles.pictures if self.styles else {}).values())
        sent = picture.nbytes + further + (self.exemplar.nbytes if self.exemplar is not None else 0)
        return max(sent, 2 * picture.nbytes * len(self.seeds or (None,)))  # a mask and a map are less than the picture


EXTRAS = ("memory_map", "attention_mask", "neighbours", "thumbnails")


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to translate once. The samples of a request share the objects in it."""

    picture: Pixels  # (3, H, W)
    target: str
    source: str | None
    seed: int | None  # None: the method's own deterministic style
    styles: ClassStyles | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    strength: float | None = None
    exemplar: Pixels | None = None
    extras: frozenset[str] = frozenset()

    def key(self, stride: int) -> tuple[object, ...]:
        """Jobs with the same key can share one forward, on pictures that are padded alike.

        Without a seed, a class without a choice has its stored values, so all choices fit together; beside a seed it has what
        the seed draws, which is the method's own business, so there the same classes must be chosen.
        """
        classes = frozenset(self.styles.chosen) if self.styles and self.seed is not None else frozenset()
        exemplar = self.exemplar.shape if self.exemplar is not None else None
        given = (self.seed is None, bool(self.attributes), self.strength is None, exemplar, classes)
        return (*padded_size(self.picture.shape[1:], stride), self.target, self.source, *given)


def padded_size(size: tuple[int, ...], stride: int) -> tuple[int, int]:
    """Height and width of a picture as the pipeline pads it: multiples of `stride`, at least four.

    >>> padded_size((41, 3), 4)
    (44, 16)
    """
    height, width = (max(-(-side // stride) * stride, 4 * stride) for side in size)
    return height, width


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A picture that was found: its id, how far it is, and itself (3, S, S) where it was asked for."""

    id: str
    distance: float
    picture: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A translated picture (3, H, W), how many shared its forward, and what was asked for beside it."""

    picture: Pixels
    batch: int
    memory_map: NDArray[np.int64] | None = None  # (h, w), cells of `cell` pixels
    cell: int = 0
    mask: Pixels | None = None  # (H, W): 255 where all was drawn anew
    neighbours: tuple[Neighbour, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ingress gets: one `Done` a sample, and which model they are from."""

    done: tuple[Done, ...]
    name: str
    digest: str
    index: str = ""  # the digest of the index that was looked into


@dataclass(frozen=True, slots=True)
class Found:
    """What the ingress gets of a search."""

    neighbours: tuple[Neighbour, ...]
    name: str
    digest: str
    index: str  # the digest of the index


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request cannot be met by this model. A value and no exception, so that it crosses processes as it is."""

    code: str
    message: str
    hint: str
    status: int = 422

    def error(self) -> ApiError:
        """The same as an answer."""
        return ApiError(self.status, self.code, self.message, self.hint)
