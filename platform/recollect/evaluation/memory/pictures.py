"""Pictures of what a class-aware memory does: what reads each item, what each item stands for, what its values change.

Every function raises ValueError for a method without a memory of several items. Colours are those of `grids.item_colours`: a hue
for each class, a shade for each item. Legend: N items, S pixels a side of a picture.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recollect.batch import Guide
from recollect.config import did_you_mean
from recollect.data.transforms import to_uint8, to_unit
from recollect.evaluation.grids import GAP, INK, PAPER, TEXT, colour_items, item_colours, picture_grid
from recollect.evaluation.memory.cells import Cells, known_memory, nearest_cells, read_cells
from recollect.evaluation.memory.items import Memory, class_use, percent
from recollect.evaluation.validate import Cases
from recollect.pipeline import Pipeline
from recollect.trainable import ClassWise

Colour = tuple[int, int, int]

LINE = TEXT + 5  # pixels: a line of text
PATCH = 64  # pixels: the side of a thumbnail
TILES = 4  # items side by side
FADED = 0.7  # how much white covers the patches of a dead item
ALARM = (190, 40, 40)


def memory_map(pipeline: Pipeline, cases: Cases, rows: int = 6) -> Tensor:
    """Input, translation, the item each cell reads and, where annotated, the true classes; below, the items' shares of the cells.

    Returns (3, height, width) uint8 with a row for each of `rows` pictures at even distances.
    """
    memory = known_memory(pipeline)
    index = _spread(len(cases), rows)
    answer = pipeline(to_unit(cases.images[index]), cases.target, source=cases.source)
    if "memory_map" not in answer.extras:
        raise ValueError(f"{pipeline.name or 'this method'} does not say which items it reads (the extra `memory_map`)")
    stride, (height, width) = pipeline.model.stride, cases.images.shape[-2:]
    read = answer.extras["memory_map"].cpu()[:, : -(-height // stride), : -(-width // stride)]
    columns = {
        f"{cases.source} (input)": cases.images[index],
        f"{cases.target} (translated)": to_uint8(answer.images.cpu()),
        "memory items read": colour_items(read, memory.item_class.cpu(), stride, (height, width)),
    }
    truth = cases.class_map(stride) if set(cases.classes) == set(memory.class_names) and not height % stride else None
    if truth is not None:
        ours = torch.tensor([memory.class_names.index(name) for name in cases.classes])
        kinds = torch.arange(len(memory.class_names))
        columns["classes annotated"] = colour_items(ours[truth[index]], kinds, stride, (height, width))
    grid = picture_grid(columns)
    shares = torch.bincount(read.flatten(), minlength=len(memory.item_class)).double() / read.numel()
    return _stacked([grid, _legend(memory, shares, grid.shape[-1])])


def _legend(memory: Memory, shares: Tensor, width: int) -> Tensor:
    """A line for each class, and more where it is full: name and share, then for each item a swatch, its number, its share."""
    colours, font = item_colours(memory.item_class.tolist()), ImageFont.load_default(size=TEXT)
    uses = class_use(memory)
    heads = [f"{use.name} {percent(float(shares[list(use.items)].sum()))}" for use in uses]
    texts = {item: f"{n}: {percent(float(shares[item]))}" for use in uses for n, item in enumerate(use.items, start=1)}
    left, step = (int(max(map(font.getlength, words))) for words in (heads, texts.values()))
    left, step = left + 14, step + TEXT + 16
    room = max(1, (width - left) // step)
    lines = [
        (head if start == 0 else "", use.items[start : start + room])
        for head, use in zip(heads, uses, strict=True)
        for start in range(0, len(use.items), room)
    ]
    strip = Image.new("RGB", (width, LINE * len(lines) + 4), PAPER)
    draw = ImageDraw.Draw(strip)
    for line, (head, items) in enumerate(lines):
        top = line * LINE + 2
        draw.text((2, top), head, fill=INK, font=font)
        for place, item in enumerate(items):
            x = left + place * step
            draw.rectangle((x, top + 2, x + TEXT - 1, top + TEXT + 1), fill=colours[item])
            draw.text((x + TEXT + 4, top), texts[item], fill=INK, font=font)
    return _tensor(strip)


def item_thumbnails(pipeline: Pipeline, cells: Cells, patches: int = 3) -> Tensor:
    """What each item stands for: a row of patches for each domain, whose marked cell has the content closest to the item's key.

    Patches are from different pictures, the closest left. Above them the item's number and how many cells read it most. Items
    that are dead are faded and named so. Returns (3, height, width) uint8.
    """
    memory = known_memory(pipeline)
    nearest, colours = nearest_cells(cells, memory.keys, patches), item_colours(memory.item_class.tolist())
    reads = torch.bincount(cells.item, minlength=len(colours)).tolist()
    size = (patches * (PATCH + 2) - 2, LINE + len(cells.domains) * (PATCH + 2) - 2)
    width = TILES * (size[0] + 4 * GAP) - 4 * GAP
    blocks = []
    for use in class_use(memory):
        total = sum(reads[item] for item in use.items)
        what = f"{use.name}: {_many(len(use.items), 'item')}, {sum(use.dead)} dead, {percent(total / len(cells))} of the reads"
        blocks.append(_strip(what, width, colours[use.items[len(use.items) // 2]]))
        tiles = []
        for place, (item, dead) in enumerate(zip(use.items, use.dead, strict=True)):
            text = f"{place + 1}: {_many(reads[item], 'read')}, {percent(reads[item] / len(cells))}"
            shown = [[_patch(cells, int(cell), PATCH) for cell in chosen] for chosen in nearest[item]]
            tiles.append(_tile(size, text, shown, colours[item], dead))
        for start in range(0, len(tiles), TILES):
            line = Image.new("RGB", (width, size[1]), PAPER)
            for place, tile in enumerate(tiles[start : start + TILES]):
                line.paste(tile, (place * (size[0] + 4 * GAP), 0))
            blocks.append(_tensor(line))
    return _stacked(blocks, 3 * GAP)


def _spread(total: int, count: int) -> Tensor:
    """Up to `count` rows at even distances."""
    return torch.arange(min(count, total)) * total // min(count, total)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def patch_window(cells: Cells, cell: int) -> tuple[int, int, int]:
    """Left, top and side in pixels of the window shown around a cell: a quarter of the picture, moved to lie inside it."""
    height, width = cells.pictures[int(cells.domain[cell])].shape[-2:]
    side = min(max(min(height, width) // 4, 4 * cells.stride), height, width)
    left, top = (int(place) * cells.stride + cells.stride // 2 - side // 2 for place in (cells.column[cell], cells.row[cell]))
    return min(max(left, 0), width - side), min(max(top, 0), height - side), side


def item_patch(cells: Cells, cell: int, size: int) -> NDArray[np.uint8]:
    """The window around a cell, the cell marked, as (3, size, size)."""
    return np.asarray(_patch(cells, cell, size)).transpose(2, 0, 1).copy()


def _patch(cells: Cells, cell: int, size: int) -> Image.Image:
    left, top, side = patch_window(cells, cell)
    picture = cells.pictures[int(cells.domain[cell])][int(cells.picture[cell])]
    crop = Image.fromarray(picture[:, top : top + side, left : left + side].permute(1, 2, 0).contiguous().numpy())
    crop = crop.resize((size, size), Image.Resampling.NEAREST if side <= size else Image.Resampling.LANCZOS)
    scale = size / side
    x, y = (int(cells.column[cell]) * cells.stride - left) * scale, (int(cells.row[cell]) * cells.stride - top) * scale
    draw, end = ImageDraw.Draw(crop), cells.stride * scale
    draw.rectangle((x - 2, y - 2, x + end + 1, y + end + 1), outline=(0, 0, 0))  # black and white: one of them shows
    draw.rectangle((x - 1, y - 1, x + end, y + end), outline=(255, 255, 255))
    return crop


def _tile(size: tuple[int, int], text: str, rows: list[list[Image.Image]], colour: Colour, dead: bool) -> Image.Image:
    tile = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(size=TEXT)
    draw.rectangle((0, 2, TEXT - 1, TEXT + 1), fill=colour)
    draw.text((TEXT + 4, 0), text, fill=INK, font=font)
    if dead:
        draw.text((size[0] - font.getlength("dead"), 0), "dead", fill=ALARM, font=font)
    for y, row in enumerate(rows):
        for x, patch in enumerate(row):
            shown = Image.blend(patch, Image.new("RGB", patch.size, PAPER), FADED) if dead else patch
            tile.paste(shown, (x * (PATCH + 2), LINE + y * (PATCH + 2)))
    return tile


class Styles(NamedTuple):
    """Rows of random styles (3, height, width) uint8, and how far these differ from the stored style, of [0, 1].

    `inside` is the mean absolute difference over the pixels whose cell reads an item of the class, `outside` over the others
    (nan where there are none).
    """

    picture: Tensor
    inside: float
    outside: float


def random_styles(pipeline: Pipeline, cases: Cases, only: str | None = None, styles: int = 5, rows: int = 4) -> Styles:
    """Rows of input, translation, and translations with random values: of all items, or of one class only.

    The draws are those of the seeds 0, 1, ... in every row, so a column is one style, and a class's draws are the same alone
    and among all. With `only` the pictures are those in which most cells read the class.

    Raises ValueError for a class that the memory does not have, and for methods whose classes cannot be steered.
    """
    memory, model = known_memory(pipeline), pipeline.model
    items = read_cells(pipeline, cases)[1]
    inside, index = torch.ones_like(items, dtype=torch.bool), _spread(len(cases), rows)
    if only is not None:
        if only not in memory.class_names:
            raise ValueError(f"the memory has no class {only!r}{did_you_mean(only, memory.class_names)}")
        inside = memory.item_class.cpu()[items] == memory.class_names.index(only)
        index = inside.flatten(1).sum(1).argsort(descending=True, stable=True)[:rows]
    inputs = to_unit(cases.images[index])

    def drawn(**how: Any) -> Tensor:
        return pipeline(inputs, cases.target, source=cases.source, **how).images.cpu()

    stored, answers = drawn(), []
    for seed in range(styles):
        answers.append(drawn(seeds=[seed] * len(index)) if only is None else drawn(guide=_one_class(model, cases, only, seed)))
    columns = {f"{cases.source} (input)": cases.images[index], f"{cases.target} (stored style)": to_uint8(stored)}
    of = "" if only is None else f" of {only}"
    columns |= {f"random style {seed + 1}{of}": to_uint8(answer) for seed, answer in enumerate(answers)}
    height, width = stored.shape[-2:]
    where = inside[index].repeat_interleave(model.stride, 1).repeat_interleave(model.stride, 2)[:, :height, :width]
    change = torch.stack([(answer - stored).abs().mean(1) / 2 for answer in answers])  # (styles, rows, S, S)
    return Styles(picture_grid(columns), float(change[:, where].mean()), float(change[:, ~where].mean()))


def _one_class(model: Any, cases: Cases, name: str, seed: int) -> Guide:
    if not isinstance(model, ClassWise):
        raise ValueError("this method's styles cannot be chosen class by class")
    values = model.random_values(model.domains.index(cases.target), torch.Generator().manual_seed(seed))  # type: ignore[attr-defined]
    return Guide(values={name: values[name]})


def _strip(text: str, width: int, colour: Colour) -> Tensor:
    strip = Image.new("RGB", (width, LINE + 2), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((0, 0), text, fill=INK, font=ImageFont.load_default(size=TEXT))
    draw.line((0, LINE, width, LINE), fill=colour, width=2)
    return _tensor(strip)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _stacked(blocks: list[Tensor], gap: int = 2 * GAP) -> Tensor:
    """Blocks (3, h, w) below one another on white."""
    width = max(block.shape[-1] for block in blocks)
    parts = []
    for place, block in enumerate(blocks):
        height = block.shape[1] + gap * (place < len(blocks) - 1)
        part = torch.full((3, height, width), 255, dtype=torch.uint8)
        part[:, : block.shape[1], : block.shape[2]] = block
        parts.append(part)
    return torch.cat(parts, dim=1)
