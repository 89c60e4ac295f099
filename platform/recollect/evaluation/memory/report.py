"""What the report shows of a memory: panels of pictures, drawings and numbers, each with a sentence that says how to read it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from recollect.config import Run
from recollect.data.store import Store
from recollect.evaluation.memory.cells import Cells, cells_of
from recollect.evaluation.memory.items import CROWDED, Memory, class_use, memory_of, percent, usage_chart
from recollect.evaluation.memory.pictures import item_thumbnails, memory_map, random_styles
from recollect.evaluation.memory.space import NEIGHBOURS, domains_drawing, embed, items_drawing, separation
from recollect.evaluation.validate import Cases, gather
from recollect.pipeline import Pipeline
from recollect.trainable import ClassWise


@dataclass(frozen=True)
class Drawing:
    """A picture (3, H, W) uint8, or an SVG, with its caption and, for an SVG, a fact."""

    caption: str
    image: Tensor | str
    fact: str = ""


@dataclass(frozen=True)
class Panel:
    """One thing to see of a memory: a title, how to read it, drawings, and numbers where there are any."""

    title: str
    about: str
    drawings: tuple[Drawing, ...] = ()
    numbers: pd.DataFrame | None = None
    wide: bool = False  # SVGs that want half the page instead of a quarter


def memory_panels(
    pipeline: Pipeline, store: Store, run: Run, split: str = "val", pictures: int = 32, seed: int = 0
) -> tuple[Panel, ...]:
    """All panels of a method with a memory; none for a method without, or with a single item.

    Args:
        run: the direction and the size.
        split: the pictures to look at; up to `pictures` of each of the two domains.
        seed: of the sample and the layout of the t-SNE.

    Raises ValueError for unknown domains and a split without pictures.
    """
    memory = memory_of(pipeline.model)
    if memory is None:
        return ()
    source, target = run.direction()
    sizes = (split, run.data.size, pictures, run.data.short_side)
    parts = gather(store, (source, target), *sizes), gather(store, (target, source), *sizes)
    cells = cells_of(pipeline, parts)
    return (
        _map(pipeline, parts, memory),
        _items(pipeline, cells),
        _styles(pipeline, parts[0], memory),
        _space(cells, memory, seed),
        _use(memory),
    )


def _map(pipeline: Pipeline, parts: tuple[Cases, Cases], memory: Memory) -> Panel:
    colours = "a hue for each class, a shade for each item" if len(memory.class_names) > 1 else "a hue for each item"
    about = f"Which item each cell reads most, without being told its class: {colours}. Below, the share of the cells shown "
    about += "that read each item."
    drawings = (Drawing(f"{cases.source} to {cases.target}", memory_map(pipeline, cases, rows=4)) for cases in parts)
    return Panel("What is read where", about, tuple(drawings))


def _items(pipeline: Pipeline, cells: Cells) -> Panel:
    total = sum(map(len, cells.pictures))
    about = "For each item the places whose content is closest to its key, closest first, the cell marked; the upper row from "
    about += (
        f"{cells.domains[0]}, the lower from {cells.domains[1]} pictures: one key serves both. Above them, how many cells of "
    )
    about += f"{total} pictures read the item. Items that are hardly ever written are dead."
    return Panel("What each item stands for", about, (Drawing("Closest cells by item", item_thumbnails(pipeline, cells)),))


def _styles(pipeline: Pipeline, cases: Cases, memory: Memory) -> Panel:
    drawings = [Drawing("All values random", random_styles(pipeline, cases).picture)]
    rows = {}
    for name in memory.class_names if isinstance(pipeline.model, ClassWise) and len(memory.class_names) > 1 else ():
        found = random_styles(pipeline, cases, name, rows=2)
        drawings.append(Drawing(f"Only the values of {name} random", found.picture))
        rows[name] = {"change where it is read": found.inside, "elsewhere": found.outside}
    about = "Random values in place of the stored ones; a column is one draw."
    if rows:
        about += " With the values of one class only, the rest of the picture should stay as it was: the mean change, of [0, 1], "
        about += "says how far it does."
    return Panel("Random styles", about, tuple(drawings), pd.DataFrame.from_dict(rows, orient="index") if rows else None)


def _space(cells: Cells, memory: Memory, seed: int) -> Panel:
    title = "Where contents lie"
    try:
        space = embed(cells, memory, seed=seed)
        numbers = separation(cells, memory, space.cells)
    except ValueError as error:
        return Panel(title, f"Left out: {error}.")
    about = f"t-SNE of {len(space.cells)} content features, sampled evenly over classes and domains; a disc is an item's key. "
    about += f"The numbers are of the feature space itself: the share of the {NEIGHBOURS} nearest neighbours in other pictures "
    about += "that are alike, and silhouettes (cosine). Items and classes should separate, domains should mix."
    words = "of the nearest neighbours are alike"
    alike = {str(n): f"{percent(row['alike'])} {words}, {percent(row['by chance'])} by chance" for n, row in numbers.iterrows()}
    drawings = (
        Drawing("By the item read", items_drawing(space, cells, memory), alike["item"]),
        Drawing("By domain", domains_drawing(space, cells), alike["domain"]),
    )
    return Panel(title, about, drawings, numbers.round(3), wide=True)


def _use(memory: Memory) -> Panel:
    about = "The share of its class's writes that each item received, in per cent, a running mean; dashed: an even share. "
    about += "× marks a dead item."
    drawings = (
        Drawing(
            use.name, usage_chart(use, memory.item_class.tolist()), f"{use.effective:.1f} of {len(use.items)} items effective"
        )
        for use in class_use(memory)
    )
    crowded = any(len(use.items) > CROWDED for use in class_use(memory))
    return Panel("What was written", about, tuple(drawings), wide=crowded)
