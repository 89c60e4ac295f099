"""Where contents lie: a t-SNE of content features with the keys, and how alike a feature's nearest neighbours are.

The plane of a t-SNE has no axes worth a number and its distances mislead, so what can be measured is measured in the feature
space itself. Legend: n sampled cells, N items, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from recollect.evaluation.grids import item_colours
from recollect.evaluation.memory.cells import Cells, labels_of
from recollect.evaluation.memory.items import Memory, class_use

SIDE, MARGIN = 400, 14  # of the drawing, in its own units
LINE, DISC = 19, 21  # height and width of a disc in the legend
LETTER = 7.5  # a letter's mean width at 12 units
DOMAIN_COLOURS = ((43, 99, 198), (224, 148, 24), (128, 64, 176), (32, 158, 137), (204, 62, 92))
NEIGHBOURS = 10

Colour = tuple[int, int, int]


class Space(NamedTuple):
    """n cells and where t-SNE puts them (n, 2) and the keys (N, 2)."""

    cells: Tensor  # (n,) indices
    points: Tensor
    keys: Tensor


def even_sample(cells: Cells, memory: Memory, count: int, seed: int = 0) -> Tensor:
    """Indices of at most `count` cells, as many of each class in each domain; all of those that are fewer than that.

    Classes are those annotated, or where nobody annotated, those of the items read. Sorted; the same for the same seed.
    """
    labels, names = labels_of(cells, memory)
    strata = labels * len(cells.domains) + cells.domain
    quota = count // (len(names) * len(cells.domains))
    shuffled = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))
    chosen = [shuffled[strata[shuffled] == stratum][:quota] for stratum in range(len(names) * len(cells.domains))]
    return torch.cat(chosen).sort().values


def embed(cells: Cells, memory: Memory, count: int = 1200, seed: int = 0) -> Space:
    """A t-SNE of about `count` content features, sampled evenly, together with the keys. The same for the same seed.

    Raises ValueError where scikit-learn is not installed, and for fewer than 10 cells.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError("t-SNE needs scikit-learn: pip install 'recollect[evaluate]'") from error
    index = even_sample(cells, memory, count, seed)
    if len(index) < 10:
        raise ValueError(f"a t-SNE of {len(index)} cells shows nothing; it takes at least 10")
    keys = torch.nn.functional.normalize(memory.keys.float().cpu(), dim=-1)
    features = torch.cat([cells.content[index], keys])
    perplexity = min(30.0, (len(features) - 1) / 3)
    plane = torch.from_numpy(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.numpy()))
    return Space(index, plane[: len(index)], plane[len(index) :])


def neighbours_alike(content: Tensor, labels: Tensor, places: Tensor, count: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of the nearest neighbours by cosine, in OTHER pictures, that have the same label; and that share by chance.

    Args:
        content: (n, C) unit vectors.
        labels: (n,).
        places: (n,) which picture each is from: neighbouring cells of one picture overlap in what they see.

    >>> content = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> neighbours_alike(content, torch.tensor([0, 0, 1, 1]), torch.arange(4), 1)[0]
    1.0
    """
    other = places[:, None] != places
    cosines = (content @ content.mT).masked_fill(~other, -torch.inf)
    near = cosines.topk(min(count, len(content)), dim=1)
    valid = near.values > -torch.inf
    same = labels[:, None] == labels
    alike = same.gather(1, near.indices)
    chance = (same & other).sum(1)[other.any(1)].double() / other.sum(1)[other.any(1)]
    return float(alike[valid].double().mean()), float(chance.mean())


def separation(cells: Cells, memory: Memory, index: Tensor) -> pd.DataFrame:
    """How sampled contents lie by item, by class and by domain, measured in the feature space: a row each.

    `alike` is the share of the ten nearest neighbours in other pictures with the same label, `by chance` what it would be, and
    `silhouette` (cosine, -1 to 1) how much closer a cell is to its own group than to the next. Domains should mix: `alike`
    near chance and a silhouette near 0. Raises ValueError where scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ValueError("silhouettes need scikit-learn: pip install 'recollect[evaluate]'") from error
    content, places = cells.content[index], cells.domain[index] * 1_000_000 + cells.picture[index]
    groups = {"item": cells.item[index], "class": labels_of(cells, memory)[0][index], "domain": cells.domain[index]}
    rows = {}
    for name, labels in groups.items():
        alike, chance = neighbours_alike(content, labels, places)
        single = len(set(labels.tolist())) < 2
        score = float("nan") if single else float(silhouette_score(content.numpy(), labels.numpy(), metric="cosine"))
        rows[name] = {"alike": alike, "by chance": chance, "silhouette": score}
    return pd.DataFrame.from_dict(rows, orient="index")


def items_drawing(space: Space, cells: Cells, memory: Memory) -> str:
    """An SVG: every cell in the colour of the item it reads, and every key as a numbered disc of its own colour."""
    colours = item_colours(memory.item_class.tolist())
    numbers = {item: place + 1 for use in class_use(memory) for place, item in enumerate(use.items)}
    at = _fitted(space)
    points, keys = at[: len(space.points)], at[len(space.points) :]
    dots = _dots(points, [colours[int(item)] for item in cells.item[space.cells]])
    discs = "".join(_disc(x, y, numbers[item], colours[item]) for item, (x, y) in enumerate(keys.tolist()))
    legend: list[tuple[str, list[tuple[str, Colour]]]] = [
        (use.name, [(str(numbers[item]), colours[item]) for item in use.items]) for use in class_use(memory)
    ]
    return _drawing(dots + discs, at, legend, f"t-SNE of {len(points)} content features by the item they read")


def domains_drawing(space: Space, cells: Cells) -> str:
    """An SVG: every cell in the colour of its domain."""
    at = _fitted(space)
    points = at[: len(space.points)]
    dots = _dots(points, [DOMAIN_COLOURS[int(d) % len(DOMAIN_COLOURS)] for d in cells.domain[space.cells]])
    legend = [(name, [("", DOMAIN_COLOURS[d % len(DOMAIN_COLOURS)])]) for d, name in enumerate(cells.domains)]
    return _drawing(dots, at, legend, f"t-SNE of {len(points)} content features by domain")


def _fitted(space: Space) -> Tensor:
    """Points and keys (n + N, 2) in the drawing's units: both axes alike, within its width, from the top margin down."""
    points = torch.cat([space.points, space.keys])
    low, extent = points.amin(0), points.amax(0) - points.amin(0)
    return MARGIN + (points - low) * (SIDE - 2 * MARGIN) / float(extent.max().clamp_min(1e-9))


def _dots(points: Tensor, colours: Sequence[Colour]) -> str:
    """Strokes of no length with round ends, in random order, so that no colour hides the others."""
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = ""
    for colour, places in groupby(order, key=lambda place: colours[place]):
        path = "".join(f"M{points[place, 0]:.1f} {points[place, 1]:.1f}h0" for place in places)
        drawn += f'<path class="dots" stroke="rgb{colour}" d="{path}"/>'
    return drawn.replace(", ", ",")


def _disc(x: float, y: float, number: int, colour: Colour) -> str:
    circle = f'<circle class="disc" cx="{x:.1f}" cy="{y:.1f}" r="8" fill="rgb{colour}"/>'
    return f'{circle}<text class="on" x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle">{number}</text>'


def _drawing(content: str, at: Tensor, legend: Sequence[tuple[str, Sequence[tuple[str, Colour]]]], label: str) -> str:
    """The points with a legend below: a line for each name, and more where its discs fill it."""
    y = MARGIN + int(at[:, 1].max())
    left = int(MARGIN + max(len(name) for name, _ in legend) * LETTER + 12)
    room = (SIDE - left) // DISC
    for name, discs in legend:
        content += f'<text class="name" x="{MARGIN}" y="{y + LINE + 4}">{escape(name)}</text>'
        for place, (text, colour) in enumerate(discs):
            x, line = left + place % room * DISC, y + (1 + place // room) * LINE
            content += f'<circle class="disc" cx="{x}" cy="{line}" r="8" fill="rgb{colour}"/>'
            content += f'<text class="on" x="{x}" y="{line + 3.5}" text-anchor="middle">{text}</text>' if text else ""
        y += LINE * -(-len(discs) // room)
    return f'<svg viewBox="0 0 {SIDE} {y + LINE}" role="img" aria-label="{escape(label)}">{content}</svg>'
