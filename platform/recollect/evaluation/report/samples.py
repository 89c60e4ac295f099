"""How samples developed: the grids that training saved at its evaluations, to step through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recollect.evaluation.report.html import Section, picture, said, steps
from recollect.evaluation.report.sources import Source
from recollect.evaluation.report.style import FRAMES

ABOUT = "The same pictures at every evaluation; the buttons are steps (with the keyboard: the arrow keys)."


def section(runs: Sequence[Source]) -> Section:
    """The grids of every run that saved some, at most FRAMES of each at even distances, the first and the last among them."""
    shown = []
    for place, run in enumerate(runs):
        files = run.samples()
        chosen = evenly(list(files), FRAMES)
        frames = [(str(step), picture(f"{run.name} at step {step}", _read(files[step]), lossy=True)) for step in chosen]
        if frames:
            shown.append((run.name, steps(f"samples-{place}", frames, "training step", last=True)))
    left_out = said(f"Of the first {FRAMES} of {len(shown)} runs.") if len(shown) > FRAMES else ""
    content = steps("samples", shown[:FRAMES], "run") + left_out
    return Section("Samples over time", said(ABOUT) + content if shown else "")


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, the first and the last among them.

    >>> evenly(range(10), 4), evenly([7], 4)
    ([0, 3, 6, 9], [7])
    """
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _read(file: object) -> Tensor:
    with Image.open(str(file)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
