"""The items of a memory by class: their names, the share of the writes that each receives, and which are dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.evaluation.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from recollect.evaluation.grids import item_colours

DEAD = 0.01  # of an even share: an item that receives less is dead
CROWDED = 10  # more bars than this have a wider drawing
BLOCKS = "▁▂▃▄▅▆▇█"


class Memory(Protocol):
    """Keys (N, C) and values (D, N, C_v) of N items, the class (N,) of each, and its running share (N,) of its class's writes."""

    keys: Tensor
    values: Tensor
    item_class: Tensor
    usage: Tensor
    class_names: tuple[str, ...]

    def read(self, content: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        """A style and the weights (B, N, h, w) of the items for every cell of a content map (B, C, h, w)."""
        ...


def memory_of(model: nn.Module) -> Memory | None:
    """The memory that a method reads by its content; None where there is none, or a single item and so nothing to look up."""
    memory = getattr(model, "memory", None)
    parts = (*Memory.__annotations__, "read")
    if not hasattr(model, "content_encoder") or not all(hasattr(memory, part) for part in parts):
        return None
    found = cast(Memory, memory)
    return found if len(found.item_class) > 1 else None


@dataclass(frozen=True)
class ClassUse:
    """One class: the indices of its items, their shares of its writes, which are dead, and the mean cosine of different keys.

    Shares sum to 1, or are all 0 where the class was never written. The cosine of a class with one item is nan.
    """

    name: str
    items: tuple[int, ...]
    shares: tuple[float, ...]
    dead: tuple[bool, ...]
    cosine: float

    @property
    def effective(self) -> float:
        """How many items the writes spread over: exp of the entropy of the shares, from 1 to all; 0 without writes."""
        return math.exp(-sum(share * math.log(share) for share in self.shares if share > 0)) if any(self.shares) else 0.0


def class_use(memory: Memory) -> list[ClassUse]:
    """What each class's items received, in the memory's order."""
    return [_use(memory, index, name) for index, name in enumerate(memory.class_names)]


def _use(memory: Memory, index: int, name: str) -> ClassUse:
    items = (memory.item_class == index).nonzero()[:, 0]
    usage, count = memory.usage[items].double().cpu(), len(items)
    keys = F.normalize(memory.keys[items].double(), dim=-1)
    cosine = float((keys @ keys.mT).fill_diagonal_(0).sum()) / (count * (count - 1)) if count > 1 else math.nan
    shares = usage / usage.sum() if usage.sum() > 0 else torch.zeros_like(usage)
    dead = usage < DEAD / count
    return ClassUse(name, tuple(items.tolist()), tuple(shares.tolist()), tuple(dead.tolist()), cosine)


def percent(share: float) -> str:
    """A share as text: whole per cents, tenths below ten.

    >>> percent(0.237), percent(0.0237), percent(0.0), percent(0.0001)
    ('24 %', '2.4 %', '0 %', '<0.1 %')
    """
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.0995 else f"{100 * share:.1f} %"


def usage_markdown(memory: Memory) -> str:
    """A Markdown table with a row for each class: shares of its items, effective items, mean cosine, dead items by number."""
    rows = ["| class | items | share of the class's writes by item | effective | cosine | dead |", "|---|---|---|---|---|---|"]
    for use in class_use(memory):
        most = max(use.shares) or 1.0
        bars = "".join(BLOCKS[round(share / most * (len(BLOCKS) - 1))] for share in use.shares)
        shares = f"{bars} {', '.join(map(percent, use.shares))}" if any(use.shares) else "never written"
        dead = ", ".join(str(place + 1) for place, gone in enumerate(use.dead) if gone) or "none"
        cosine = "" if math.isnan(use.cosine) else f"{use.cosine:.2f}"
        rows.append(f"| {use.name} | {len(use.items)} | {shares} | {use.effective:.1f} | {cosine} | {dead} |")
    return "\n".join(rows)


def usage_chart(use: ClassUse, item_class: Sequence[int]) -> str:
    """An SVG of a class's shares: a bar an item in the item's colour, a dashed line at the even share, x where one is dead.

    Args:
        item_class: the class of every item of the memory, which the colours follow from.
    """
    colours, count = item_colours(item_class), len(use.items)
    high = max(*use.shares, 1 / count)
    across = round(WIDTH * max(1.0, count / CROWDED))
    base, step = HEIGHT - BOTTOM, (across - LEFT - RIGHT) / count
    width = min(0.8 * step, 40.0)

    def level(share: float) -> float:
        return base - share / high * (base - TOP - 10)  # 10: the numbers over the bars

    even = level(1 / count)
    bars, numbers = "", f'<text x="{LEFT - 4}" y="{even + 3:.1f}" text-anchor="end">{percent(1 / count)}</text>'
    for place, (item, share, dead) in enumerate(zip(use.items, use.shares, use.dead, strict=True)):
        middle, top = LEFT + (place + 0.5) * step, level(share)
        size = f'width="{width:.1f}" height="{base - top:.1f}"'
        bars += f'<rect x="{middle - width / 2:.1f}" y="{top:.1f}" {size} fill="rgb{colours[item]}"/>'
        shown = "×" if dead else f"{100 * share:.0f}"
        numbers += f'<text class="over" x="{middle:.1f}" y="{top - 3:.1f}" text-anchor="middle">{shown}</text>'
        numbers += f'<text x="{middle:.1f}" y="{HEIGHT - 2}" text-anchor="middle">{place + 1}</text>'
    lines = f'<line class="grid" x1="{LEFT}" x2="{across - RIGHT}" y1="{base}" y2="{base}"/>'
    lines += f'<line class="even" x1="{LEFT}" x2="{across - RIGHT}" y1="{even:.1f}" y2="{even:.1f}"/>'
    label = f"share of the writes of each of {count} items"
    return f'<svg viewBox="0 0 {across} {HEIGHT}" role="img" aria-label="{label}">{bars}{lines}{numbers}</svg>'
