"""Grids of pictures with captions, as tensors and PNG files."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 3  # pixels between pictures
COLUMN = 112  # narrower pictures are enlarged to at least this, so that captions and small things can be read
TEXT = 13  # pixels: the font's size
INK, PAPER = (60, 60, 66), (255, 255, 255)


def picture_grid(columns: Mapping[str, Tensor | Sequence[str]], gap: int = GAP) -> Tensor:
    """One row a picture, one column a caption: (3, height, width) uint8 on white.

    Args:
        columns: caption -> pictures (B, 3, H, W) uint8, the same B, H and W in every column; or B texts, a line of which that is
            too long is wrapped, as captions are. What does not fit its cell is cut off.
    """
    pictures = [column for column in columns.values() if isinstance(column, Tensor)]
    assert len({tuple(column.shape) for column in pictures}) == 1, "columns of one shape"
    scale = max(1, -(-COLUMN // pictures[0].shape[-1]))
    rows, height, width = len(pictures[0]), pictures[0].shape[2] * scale, pictures[0].shape[3] * scale
    enlarged = [
        column.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        if isinstance(column, Tensor)
        else torch.stack([_worded(text, height, width) for text in column])
        for column in columns.values()
    ]
    head = _captions(tuple(columns), width, gap)
    body = torch.full((3, rows * (height + gap), len(enlarged) * (width + gap) - gap), 255, dtype=torch.uint8)
    for x, column in enumerate(enlarged):
        for y, picture in enumerate(column):
            body[:, y * (height + gap) : y * (height + gap) + height, x * (width + gap) : x * (width + gap) + width] = picture
    return torch.cat([head, body[:, : body.shape[1] - gap]], dim=1)


def _captions(captions: Sequence[str], width: int, gap: int) -> Tensor:
    font = ImageFont.load_default(size=TEXT)
    wrapped = [wrap(caption, width - 4, font) for caption in captions]
    line = TEXT + 3
    strip = Image.new("RGB", (len(captions) * (width + gap) - gap, max(map(len, wrapped)) * line + 6), PAPER)
    draw = ImageDraw.Draw(strip)
    for column, lines in enumerate(wrapped):
        for row, text in enumerate(lines):
            draw.text((column * (width + gap) + 2, row * line + 2), text, fill=INK, font=font)
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)


def _worded(text: str, height: int, width: int) -> Tensor:
    """A cell (3, height, width) with lines of text."""
    font = ImageFont.load_default(size=TEXT)
    cell = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(cell)
    for row, line in enumerate(line for part in text.splitlines() for line in wrap(part, width - 4, font)):
        draw.text((2, row * (TEXT + 3) + 2), line, fill=INK, font=font)
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, and within words that are longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def colour_items(item_map: Tensor, item_class: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """A memory map (B, h, w) of item indices as pictures (B, 3, *size) uint8: a hue for each class, a shade for each item.

    Args:
        item_class: (N,) the class of each item.
        cell: pixels of a cell's side.
    """
    palette = torch.tensor(item_colours(item_class.tolist()), dtype=torch.uint8)
    large = item_map.cpu().repeat_interleave(cell, -1).repeat_interleave(cell, -2)[..., : size[0], : size[1]]
    return palette[large].permute(0, 3, 1, 2)


def item_colours(item_class: Sequence[int]) -> list[tuple[int, int, int]]:
    """An RGB colour for each item: greys for class 0, and well separated hues for the others.

    Where there is one class only, a hue for each item.

    >>> item_colours([0, 1])
    [(140, 140, 140), (217, 100, 42)]
    """
    colours = []
    if len(set(item_class)) == 1 < len(item_class):
        item_class = range(1, len(item_class) + 1)
    for item, kind in enumerate(item_class):
        members = [other for other, of in enumerate(item_class) if of == kind]
        place = (members.index(item) + 0.5) / len(members)
        hue = (20 / 360 + (kind - 1) * 0.382) % 1.0  # steps of the golden section never come close to each other
        light, saturation = (0.22 + 0.66 * place, 0.0) if kind == 0 else (0.33 + 0.36 * place, 0.7)
        colours.append(tuple(int(255 * part) for part in colorsys.hls_to_rgb(hue, light, saturation)))
    return colours  # type: ignore[return-value]  # three parts each


def save_png(picture: Tensor, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Save (3, H, W) uint8 as a PNG file, or write it to an open one."""
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path, "PNG", optimize=True)
