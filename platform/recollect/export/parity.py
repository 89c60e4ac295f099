"""Whether an exported form gives what the Pipeline gives: on real pictures, alone and several at once, at their own sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from recollect.data.store import Store
from recollect.data.transforms import decode, to_unit
from recollect.export.graph import Traceable, guide_of
from recollect.pipeline import Pipeline, pad_to

PICTURES = 4  # that are compared, unless more are named
LARGEST_SIDE = 512  # pictures are cut to this; a comparison needs no more
TOLERANCE = 2e-3  # of pictures in [-1, 1]: a quarter of a grey level
CELLS_EQUAL = 0.995  # of a map of indices: two items that are equally near may change places
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Parity:
    """How far an exported form is from the Pipeline.

    Args:
        pictures: how many were compared.
        worst: by output: the largest difference of a number; of a map of indices, the share of cells that differ.
    """

    pictures: int
    worst: Mapping[str, float]

    def check(self) -> None:
        """Raise ValueError where it is too far."""
        limits = {name: 1 - CELLS_EQUAL if name == "memory_map" else TOLERANCE for name in self.worst}
        bad = [
            f"{name} by {worst:.2g} (at most {limits[name]:g})" for name, worst in self.worst.items() if not worst <= limits[name]
        ]
        if bad:
            raise ValueError(f"the exported model does not give what the bundle gives; it differs in {', '.join(bad)}")


def compare(pipeline: Pipeline, traced: Traceable, run: Run, pictures: Sequence[Tensor]) -> Parity:
    """Compare on pictures (3, H, W) in [-1, 1], each alone and together with its mirror image.

    `run` calls the exported form with tensors by the names of its inputs. Every picture comes with inputs of its own: styles
    drawn from its number, attributes of its own, the pictures after it as neighbours.
    """
    worst: dict[str, float] = {}
    source, target = (pipeline.domains.names[index] for index in (traced.graph.source, traced.graph.target))
    for number, picture in enumerate(pictures):
        for images in (picture[None], torch.stack([picture, picture.flip(-1)])):
            padded, (height, width) = pad_to(images, pipeline.model.stride)
            inputs = {"images": padded} | _others(traced, padded, number, pictures)
            wanted = pipeline(images, target, source, guide_of(inputs))
            got = dict(zip(traced.outputs, run(inputs), strict=True))
            expected = {"translation": wanted.images, **wanted.extras}
            for name, tensor in expected.items():
                found = got[name]
                if found.ndim == tensor.ndim and found.shape[-2:] == padded.shape[-2:]:
                    found = found[..., :height, :width]
                worst[name] = max(worst.get(name, 0.0), _far(found, tensor))
    return Parity(len(pictures), worst)


def _far(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        return float((found != wanted).float().mean())
    far = (found.double() - wanted.double()).abs().max()
    return float(far) if torch.isfinite(far) else float("inf")


def _others(traced: Traceable, padded: Tensor, number: int, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs beside the pictures for the picture with this number."""
    count, found = len(padded), {}
    for name, example in zip(traced.inputs[1:], traced.example[1:], strict=True):
        if name == "attributes":
            exclusive = torch.eye(example.shape[1])[number % example.shape[1]]  # one of them: never two of a group
            found[name] = exclusive.expand(count, -1)
        elif name == "neighbours":
            others = [pictures[(number + 1 + other) % len(pictures)] for other in range(example.shape[1])]
            found[name] = torch.stack([_fitted(other, padded.shape[-2], padded.shape[-1]) for other in others]).expand(
                count, -1, -1, -1, -1
            )
        else:
            model, target = traced.graph.model, traced.graph.target
            generators = [torch.Generator().manual_seed(100 * number + row) for row in range(count)]
            noise = model.sample_guide(target, generators).noise
            assert noise is not None
            found[name] = noise
    return found


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture repeated and cut to a size."""
    rows, columns = (-(-side // own) for side, own in zip((height, width), picture.shape[-2:], strict=True))
    return picture.repeat(1, rows, columns)[:, :height, :width]


def real_pictures(given: Sequence[str | os.PathLike[str]], store: str, domain: str) -> list[Tensor]:
    """Pictures (3, H, W) in [-1, 1]: the given files and those in given folders; without any, test pictures of a store.

    Raises ValueError where there are none: a comparison without pictures says nothing.
    """
    if given:
        paths = list(islice(_files(given), 64))
        if not paths:
            raise ValueError(f"there are no pictures ({', '.join(KINDS)}) in {', '.join(map(str, given))}")
        return [_cut(to_unit(decode(path.read_bytes()))) for path in paths]
    try:
        opened = Store.open(store)
    except (ValueError, OSError) as error:
        why = f"its data {store} is not here ({error})" if store else "the bundle names no data"
        raise ValueError(
            f"an export is compared with the bundle on real pictures, and {why}; name some with --pictures"
        ) from None
    ids = next(filter(None, (opened.ids(split, domain) for split in ("test", "val", "train"))), ())
    if not ids:
        raise ValueError(f"{store} has no pictures of {domain}; name some with --pictures")
    return [_cut(to_unit(decode(opened.record(id).image))) for id in ids[:PICTURES]]


def _files(given: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    for place in map(Path, given):
        if place.is_dir():
            yield from islice((path for path in sorted(place.rglob("*")) if path.suffix.lower() in KINDS), PICTURES)
        else:
            yield place


def _cut(picture: Tensor) -> Tensor:
    return picture[:, :LARGEST_SIDE, :LARGEST_SIDE].as_subclass(Tensor)
