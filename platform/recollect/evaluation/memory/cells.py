"""The cells of the content maps of pictures of several domains, and the memory item that each reads most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.data.transforms import to_unit
from recollect.evaluation.memory.items import Memory, memory_of
from recollect.evaluation.validate import BATCH, Cases
from recollect.pipeline import Pipeline, pad_to


@dataclass(frozen=True)
class Cells:
    """P cells of pictures of D domains, read without being told their class."""

    domains: tuple[str, ...]
    pictures: tuple[Tensor, ...]  # a domain each: (B, 3, S, S) uint8
    stride: int  # pixels of a cell's side
    content: Tensor  # (P, C) float32 unit vectors
    item: Tensor  # (P,) the item read most
    domain: Tensor  # (P,) index into `domains`
    picture: Tensor  # (P,) row of that domain's pictures
    row: Tensor  # (P,)
    column: Tensor  # (P,)
    shown: Tensor  # (P,) index into `classes` of what is annotated there; -1: nobody said
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.item)


def known_memory(pipeline: Pipeline) -> Memory:
    """The pipeline's memory. Raises ValueError where the method has none that could be shown."""
    memory = memory_of(pipeline.model)
    if memory is None:
        raise ValueError(f"{pipeline.name or 'this method'} has no memory of several items to show")
    return memory


def cells_of(pipeline: Pipeline, parts: Sequence[Cases]) -> Cells:
    """The cells of the source pictures of each part; every part has another source domain and pictures of the same size.

    Raises ValueError for a method without a memory.
    """
    memory, found = known_memory(pipeline), [(cases, *read_cells(pipeline, cases)) for cases in parts]
    classes = parts[0].classes
    assert all(cases.classes == classes for cases in parts), "parts of one store"
    rows = [torch.cat(column) for column in zip(*(_columns(*part, pipeline.model.stride) for part in found), strict=True)]
    content, item, picture, row, column, shown = rows
    assert int(item.max()) < len(memory.item_class)
    domain = torch.cat([torch.full((items.numel(),), index) for index, (_, _, items) in enumerate(found)])
    names, images = tuple(cases.source for cases in parts), tuple(cases.images for cases in parts)
    stride = pipeline.model.stride
    return Cells(names, images, stride, content, item, domain, picture, row, column, shown, classes)


def _columns(cases: Cases, features: Tensor, items: Tensor, stride: int) -> tuple[Tensor, ...]:
    """Content, item, picture, row, column and annotated class of the cells of one part."""
    picture, row, column = torch.stack(torch.meshgrid(*map(torch.arange, items.shape), indexing="ij")).flatten(1)
    kinds = cases.class_map(stride) if cases.images.shape[-1] % stride == 0 else None
    shown = torch.full_like(items, -1) if kinds is None else kinds
    return features.movedim(1, -1).flatten(0, 2), items.flatten(), picture, row, column, shown.flatten()


def read_cells(pipeline: Pipeline, cases: Cases) -> tuple[Tensor, Tensor]:
    """Unit contents (B, C, h, w) and the items (B, h, w) they read most, on the CPU; cells beyond the picture are left out.

    Raises ValueError for a method without a memory.
    """
    known_memory(pipeline)
    model: Any = pipeline.model
    source, target = pipeline.domains.index(cases.source), pipeline.domains.index(cases.target)
    height, width = (-(-side // model.stride) for side in cases.images.shape[-2:])
    contents, items = [], []
    for start in range(0, len(cases), BATCH):
        with torch.inference_mode():
            images = to_unit(cases.images[start : start + BATCH]).to(pipeline.device, pipeline.dtype)
            content = model.content_encoder(pad_to(images, model.stride)[0], source)
            weights = model.memory.read(content, target)[1]
        contents.append(F.normalize(content.float(), dim=1)[..., :height, :width].cpu())
        items.append(weights.argmax(1)[..., :height, :width].cpu())
    return torch.cat(contents), torch.cat(items)


def nearest_cells(cells: Cells, keys: Tensor, count: int) -> list[list[Tensor]]:
    """The cells whose content is closest to each key by cosine: for item n and domain d, up to `count` indices, closest first.

    At most one cell a picture, or all would come from neighbouring cells of one object. Of equal cells the first is taken.

    Args:
        keys: (N, C).
    """
    cosines = cells.content @ F.normalize(keys.float().cpu(), dim=-1).mT  # (P, N)
    found: list[list[Tensor]] = [[] for _ in keys]
    for domain, pictures in enumerate(cells.pictures):
        own = (cells.domain == domain).nonzero()[:, 0]  # picture by picture, as many cells in each
        best, place = cosines[own].reshape(len(pictures), -1, len(keys)).max(1)  # (B, N)
        cell = own[place + torch.arange(len(pictures))[:, None] * (len(own) // len(pictures))]
        order = best.argsort(dim=0, descending=True, stable=True)[:count]
        for item, (rows, column) in enumerate(zip(order.mT, cell.mT, strict=True)):
            found[item].append(column[rows])
    return found


def labels_of(cells: Cells, memory: Memory) -> tuple[Tensor, tuple[str, ...]]:
    """The class (P,) of each cell and the classes' names: as annotated where that is known of all, else of the item it reads."""
    if bool((cells.shown >= 0).all()):
        return cells.shown, cells.classes
    return memory.item_class.cpu()[cells.item], memory.class_names
