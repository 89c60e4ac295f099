"""The nouns that flow between data, methods and the platform. Frozen data, no behaviour beyond moving to a device.

Legend: B pictures, H x W pixels, h x w cells of the feature grid, A attributes, n boxes of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from recollect.config import did_you_mean


@dataclass(frozen=True, slots=True)
class Domains:
    """The ordered names behind all indices: domains, box classes (0 is the background), attributes, mask regions."""

    names: tuple[str, ...]
    classes: tuple[str, ...] = ("background",)
    attributes: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def index(self, name: str) -> int:
        """The index of a domain. Raises ValueError with the known names."""
        return _index(self.names, name, "domain")

    def class_index(self, name: str) -> int:
        """The index of a box class. Raises ValueError with the known names."""
        return _index(self.classes, name, "class")

    def only(self, names: tuple[str, ...]) -> Domains:
        """The same classes and attributes with these domains, in this order."""
        for name in names:
            self.index(name)
        return replace(self, names=tuple(names))


def _index(names: tuple[str, ...], name: str, kind: str) -> int:
    if name not in names:
        raise ValueError(f"there is no {kind} {name!r}{did_you_mean(name, names)}")
    return names.index(name)


# Of a batch: methods ask these for single numbers, for which a GPU would have to stop.
ON_HOST = ("domain", "attributes", "boxes", "labels", "modes")


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures with what is known of them. Only `images`, `classes` and `regions` go to a device; the rest stays on the host.

    `slots` are the positions in the JOINT batch over all ranks: random draws are keyed by them, so that one process and N
    ranks draw the same numbers for the same picture.
    """

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    domain: Tensor  # (B,) int64
    ids: tuple[str, ...]
    slots: tuple[int, ...]
    classes: Tensor | None = None  # (B, h, w) int64 on the feature grid; None: nobody annotated these pictures
    attributes: Tensor | None = None  # (B, A) in {0, 1}; NaN where unknown, or where it does not apply
    boxes: tuple[Tensor, ...] | None = None  # B times (n, 4) float32, x1 y1 x2 y2 in pixels of the picture
    labels: tuple[Tensor, ...] | None = None  # B times (n,) int64, the classes of the boxes; never the background
    regions: Tensor | None = None  # (B, H, W) int64, 0: nothing is known there, else 1 + the region; for who `learns_truth`
    modes: Tensor | None = None  # (B,) int64, the style that each was drawn in, -1 where nobody knows; likewise

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self, count: int) -> tuple[Batch, ...]:
        """The batch in so many parts of one size, in order. Raises ValueError where it does not divide."""
        if len(self) % count:
            raise ValueError(f"a batch of {len(self)} pictures does not divide into {count} parts")
        size = len(self) // count
        return tuple(self._cut(slice(start, start + size)) for start in range(0, len(self), size))

    def _cut(self, rows: slice) -> Batch:
        rows_of: dict[str, Any] = {name: None if value is None else value[rows] for name, value in _values(self).items()}
        return replace(self, **rows_of)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, channels_last: bool = False) -> Batch:
        """The batch on `device`, its pictures as `dtype`; but for what is read number by number. Only the engine calls this."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        moved = {name: value if name in ON_HOST else _moved(value, device) for name, value in _values(self).items()}
        moved["images"] = moved["images"].to(dtype=dtype or self.images.dtype, memory_format=layout)
        return replace(self, **moved)


def _values(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


def _moved(value: Any, device: torch.device | str) -> Any:
    """A tensor on `device`; everything else as it is."""
    return onto(value, torch.device(device), value.dtype) if isinstance(value, Tensor) else value


def onto(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor on a device and in a dtype. A GPU takes it from pinned memory when it comes to it, and nobody waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device=device, dtype=dtype, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Guide:
    """What steers a translation. A method takes what it understands and refuses the rest by name."""

    noise: Tensor | None = None  # the method's own random style; `Translator.sample_guide` draws it
    exemplar: Tensor | None = None  # (B, 3, H, W): a picture of the target domain whose style is wanted
    neighbours: Tensor | None = None  # (B, k, 3, H, W): what a retriever found, nearest first
    attributes: Tensor | None = None  # (B, S) in [0, 1]: what is wanted of a method that is `AttributeWise`
    values: Mapping[str, Tensor] | None = None  # class name -> memory values (N_k, C) or (B, N_k, C)
    classes: Tensor | None = None  # (B, h, w) int64: what each cell of the feature grid shows, where somebody knows it
    strength: Tensor | None = None  # (B,) in [0, 1]: how much of the neighbours is drawn with; None: all, as in training

    def given(self) -> tuple[str, ...]:
        """The names of the guides that are set."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector sees in one picture, best first: n boxes of objects, with how sure it is of each."""

    boxes: Tensor  # (n, 4), x1 y1 x2 y2 in pixels of the picture
    scores: Tensor  # (n,) in [0, 1]
    labels: Tensor  # (n,) int64, indices into the classes; never the background


@dataclass(frozen=True, slots=True)
class Translation:
    """What a translator answers: pictures (B, 3, H, W) in [-1, 1], and named extras (a memory map, an attention mask)."""

    images: Tensor
    extras: Mapping[str, Tensor]
