"""What a model is, in words and pictures: its card, what it can be asked for, and what its memory holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import recollect
from recollect.data.store import Store
from recollect.evaluation.memory.cells import cells_of, nearest_cells
from recollect.evaluation.memory.items import class_use, memory_of
from recollect.evaluation.memory.pictures import item_patch
from recollect.evaluation.validate import gather
from recollect.trainable import AttributeWise, ClassWise
from serve.batch import BatchTranslator
from serve.work import Pixels

logger = logging.getLogger("ray.serve")
PICTURES = 24  # of each domain, in which the cells nearest to an item's key are looked for
PATCH = 64  # pixels: the side of a thumbnail


def card(model: BatchTranslator) -> dict[str, Any]:
    """What `GET /v1/model` tells, but for the limits."""
    domains = model.pipeline.domains
    return {
        "name": model.name,
        "digest": model.digest,
        "method": model.run.model.name,
        "domains": domains.names,
        "classes": domains.classes,
        "size": model.run.data.size,
        "random_styles": model.random_styles,
        "style_classes": model.pipeline.model.style_classes() if isinstance(model.pipeline.model, ClassWise) else {},
        "guides": model.guides,
        "extras": model.extras,
        "device": str(model.pipeline.device),
        "recollect": recollect.__version__,
        "run": model.run.model_dump(mode="json"),
    }


def targets(model: BatchTranslator) -> dict[str, Any]:
    """What `GET /v1/domains` tells: all that can be asked for by name."""
    net = model.pipeline.model
    return {
        "model": model.name,
        "domains": model.pipeline.domains.names,
        "attributes": net.style_attributes() if isinstance(net, AttributeWise) else (),
        "exclusive": net.exclusive_attributes() if isinstance(net, AttributeWise) else (),
        "classes": net.style_classes() if isinstance(net, ClassWise) else {},
    }


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One item of a memory."""

    index: int  # the value that it has in memory maps
    label: str  # its class
    number: int  # its number within the class: what a style's `item` names
    usage: float  # its share of what its class wrote in training
    dead: bool
    patches: dict[str, Pixels]  # by domain, what is nearest to its key: (3, PATCH, PATCH)


def items(model: BatchTranslator) -> tuple[MemoryItem, ...] | None:
    """The items of the memory; None where there is none. Without the run's pictures at hand they have no patches."""
    memory = memory_of(model.pipeline.model)
    if memory is None:
        return None
    patches = _patches(model)
    found = [
        MemoryItem(index, use.name, number, use.shares[number], use.dead[number], patches.get(index, {}))
        for use in class_use(memory)
        for number, index in enumerate(use.items)
    ]
    return tuple(sorted(found, key=lambda item: item.index))


def _patches(model: BatchTranslator) -> dict[int, dict[str, Pixels]]:
    """For every item and domain the patch of a picture whose cell is nearest to the item's key."""
    data, names = model.run.data, model.pipeline.domains.names
    memory = memory_of(model.pipeline.model)
    assert memory is not None
    try:
        store = Store.open(data.store)
        directions = [(name, next(other for other in names if other != name)) for name in names]
        split = next(split for split in ("val", "test", "train") if all(store.ids(split, name) for name in names))
        cases = [gather(store, direction, split, data.size, PICTURES, data.short_side) for direction in directions]
    except (ValueError, OSError, StopIteration) as error:  # the store is elsewhere: a server needs none
        logger.warning("%s: no pictures for its memory items: %s", model.name, error)
        return {}
    cells = cells_of(model.pipeline, cases)
    nearest = nearest_cells(cells, memory.keys, 1)
    return {
        item: {
            name: item_patch(cells, int(chosen[0]), PATCH)
            for name, chosen in zip(cells.domains, by_domain, strict=True)
            if len(chosen)
        }
        for item, by_domain in enumerate(nearest)
    }
