"""The pieces a page is made of: sections, tables, pictures, charts; and the page itself, written whole or not at all.

Everything that comes from outside is escaped here, and nowhere else.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor

from recollect.evaluation.curves import number
from recollect.evaluation.metrics import Metric, find_metric
from recollect.evaluation.report.style import FRAMES, SERIES, STYLE


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, and its content as HTML; a section without content is left out."""

    heading: str
    content: str


def write_page(path: Path, title: str, head: str, sections: Sequence[Section]) -> Path:
    """Write the page; a reader sees the old page or the new one, never a half."""
    shown = [section for section in sections if section.content]
    links = "".join(f'<a href="#{slug(section.heading)}">{escape(section.heading)}</a>' for section in shown)
    nav = f"<nav>{links}</nav>" if len(shown) > 1 else ""
    body = "".join(f'<section id="{slug(s.heading)}"><h2>{escape(s.heading)}</h2>{s.content}</section>' for s in shown)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="data:,">'  # or a browser would ask a server for one
    meta += f"<title>{escape(title)}</title>{icon}<style>{STYLE}</style>"
    content = f"<main><h1>{escape(title)}</h1>{head}{nav}{body}</main>"
    return _write(path, f'<!doctype html>\n<html lang="en"><head>{meta}</head><body>{content}</body></html>\n')


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".part", encoding="utf-8") as stream:
        stream.write(page)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)
    return path


def slug(text: str) -> str:
    """
    >>> slug("Time and cost")
    'time-and-cost'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def facts(pairs: Mapping[str, object]) -> str:
    """Short facts side by side."""
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in pairs.items())
    return f'<dl class="facts">{listed}</dl>' if listed else ""


def said(text: str) -> str:
    """A sentence that says how to read what follows."""
    return f'<p class="soft">{escape(text)}</p>' if text else ""


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>" if text else ""


def series(place: int) -> str:
    """The class of everything that belongs to the nth run."""
    return f"c{place % (2 * SERIES)}"


def key(names: Sequence[str], places: Sequence[int] | None = None) -> str:
    """Which colour is which run; nothing where there is one. `places`: which runs of the page these are; None: all in order."""
    if len(names) < 2:
        return ""
    entries = ""
    for place, name in zip(places or range(len(names)), names, strict=True):
        dashed = " dashed" if place % (2 * SERIES) >= SERIES else ""
        entries += f'<span class="{series(place)}"><i class="swatch{dashed}"></i>{escape(name)}</span>'
    return f'<div class="key">{entries}</div>'


def known(name: str) -> Metric | None:
    """The metric of that name, or None."""
    try:
        return find_metric(name)
    except ValueError:
        return None


def labelled(name: str) -> str:
    """A metric's name with which way is better."""
    metric = known(name)
    return f"{name} {metric.arrow}" if metric else name


def picture(caption: str, image: Tensor | bytes, lossy: bool = False) -> str:
    """A picture with its caption: (3, H, W) uint8, or a PNG file's bytes."""
    kind, content = ("png", image) if isinstance(image, bytes) else ("webp", webp(image, lossy))
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    shown = f'<img alt="{escape(caption)}" src="{source}">'
    return f'<figure><div class="box">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'


def webp(image: Tensor, lossy: bool = False) -> bytes:
    """(3, H, W) uint8 as WebP, every pixel kept unless `lossy`."""
    file = io.BytesIO()
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels.save(file, "WEBP", lossless=not lossy, quality=80 if lossy else 50, method=4)
    return file.getvalue()


def steps(group: str, frames: Sequence[tuple[str, str]], about: str, last: bool = False) -> str:
    """Frames of which one is shown, chosen by buttons (the arrow keys move along); the first or the last at the beginning.

    A single frame is shown as it is.

    Args:
        group: a name that no other group of the page has.
        frames: at most FRAMES pairs of a button's label and a frame's HTML.
    """
    assert len(frames) <= FRAMES, "a style sheet has a rule for each"
    if len(frames) < 2:
        return "".join(content for _, content in frames)
    buttons = ""
    for place, (label, _) in enumerate(frames):
        own, chosen = f"{group}-{place}", " checked" * (place == (len(frames) - 1 if last else 0))
        buttons += f'<input type="radio" name="{group}" id="{own}"{chosen}><label for="{own}">{escape(label)}</label>'
    shown = "".join(f"<div>{content}</div>" for _, content in frames)
    return f'<div class="steps" role="group" aria-label="{escape(about)}">{buttons}<div class="frames">{shown}</div></div>'


def card(title: str, fact: str, svg: str, classes: str = "") -> str:
    """A drawing (an SVG) with a title and a fact."""
    return f'<div class="chart{" " * bool(classes)}{classes}"><b>{escape(title)}</b><span>{escape(fact)}</span>{svg}</div>'


def charts(cards: Iterable[str], classes: str = "") -> str:
    """Cards side by side; nothing for none."""
    content = "".join(cards)
    return f'<div class="charts{" " * bool(classes)}{classes}">{content}</div>' if content else ""


def folded(summary: str, content: str) -> str:
    """What opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def plain_table(frame: pd.DataFrame) -> str:
    """A frame as it is; its index is shown where it is no plain count."""
    index = not isinstance(frame.index, pd.RangeIndex)
    head = "".join(f"<th>{escape(str(name))}</th>" for name in ([frame.index.name or ""] if index else []) + list(frame.columns))
    body = ""
    for place, values in frame.iterrows():
        cells = [escape(text_of(value)) for value in ([place] if index else []) + list(values)]
        body += f"<tr><th>{cells[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text_of(value: Any) -> str:
    """A value as a cell shows it."""
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "run"), plural(3, "run")
    ('1 run', '3 runs')
    """
    return f"{count} {noun}" + "s" * (count != 1)
