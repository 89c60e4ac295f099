"""P@10 as pure functions: who is nearest, how much of what was asked for they share, and what chance would find.

For each attribute P@10 is the share of the ten nearest pictures of the gallery that agree with what was asked. Pairs of which one
side is unknown are left out. Random pictures agree often: beside every number stands `chance`, what they score in expectation,
and `lift`, how much of the way from there to 1 is made.

Legend: Q queries, G pictures of the gallery, k neighbours, A attributes, E dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.evaluation.validate import ByPicture, Judgement

K = 10  # neighbours that are judged; names say so
ROWS = 512  # queries compared with the gallery at once


def nearest(queries: Tensor, gallery: Tensor, k: int, own: Tensor) -> Tensor:
    """The indices (Q, k) of the gallery's vectors (G, E) nearest to queries (Q, E), nearest first, by Euclidean distance.

    Args:
        own: (Q,) the index of each query's own picture, which it must not find.

    Raises ValueError where the gallery has not k others.

    >>> nearest(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0], [4.0]]), 2, torch.tensor([0, 2]))
    tensor([[1, 2],
            [1, 0]])
    """
    if len(gallery) <= k:
        raise ValueError(f"{len(gallery)} pictures are too few to find {k} others of; take a larger split")
    centre = gallery.double().mean(0)
    one, other = queries.double() - centre, gallery.double() - centre  # the expanded square would cancel far from zero
    found = []
    for start in range(0, len(one), ROWS):
        rows = slice(start, start + ROWS)
        squared = one[rows].square().sum(1, keepdim=True) + other.square().sum(1) - 2 * one[rows] @ other.mT
        squared[torch.arange(len(squared)), own[rows]] = torch.inf
        found.append(squared.topk(k, dim=1, largest=False).indices)
    return torch.cat(found)


def agreement(wanted: Tensor, found: Tensor) -> Tensor:
    """The share (Q, A) of neighbours (Q, k, A) that agree with what is wanted (Q, A), in every attribute.

    NaN on either side is unknown and left out; where nothing is left the share is NaN.

    >>> nan = torch.nan
    >>> agreement(torch.tensor([[1.0, 0.0, nan]]), torch.tensor([[[1.0, nan, 1.0], [0.0, 0.0, 1.0]]]))
    tensor([[0.5000, 1.0000,    nan]], dtype=torch.float64)
    """
    known = ~(wanted.isnan()[:, None] | found.isnan())
    same = (wanted[:, None] == found) & known
    return same.sum(1).double() / known.sum(1).double()  # 0 / 0 is nan


def chance(wanted: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """What `agreement` is in expectation (Q, A) when neighbours are drawn at random from the gallery (G, A).

    Exactly: every picture but the query's own, whose index is in `own` (Q,), is as likely as any other.

    >>> chance(torch.tensor([[1.0]]), torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([0]))
    tensor([[0.5000]], dtype=torch.float64)
    """
    ones, zeros = (gallery == 1).sum(0).double(), (gallery == 0).sum(0).double()  # (A,)
    mine = gallery[own]
    ones, zeros = ones - (mine == 1).double(), zeros - (mine == 0).double()  # (Q, A)
    agreeing = torch.where(wanted == 1, ones, zeros)
    return (agreeing / (ones + zeros)).masked_fill(wanted.isnan(), torch.nan)


def lift(precision: float, by_chance: float) -> float:
    """How much of the way from chance to 1 is made: 0 by chance, 1 at best; 0 where there is no way to make.

    >>> lift(0.9, 0.8)
    0.5
    """
    return round((precision - by_chance) / (1 - by_chance), 12) if by_chance < 1 else 0.0


@dataclass(frozen=True)
class Retrieved:
    """What the queries found, by attribute, beside what chance finds."""

    names: tuple[str, ...]  # A
    style: tuple[str, ...]  # those of them that were asked for
    precision: Tensor  # (Q, A), NaN where nothing is known
    chance: Tensor  # (Q, A)

    def judgement(self) -> Judgement:
        """P@10, chance and lift by attribute; of style `attributes`, of `content`, and of the `average` of the two.

        An attribute's score is the mean over queries, a group's the plain mean over its attributes.
        """
        values: dict[str, float] = {}
        by_picture: dict[str, ByPicture] = {}
        shares = self._shares()
        for name in ("average", *shares, *self.names):
            weights = self._weights(name, shares)
            if weights is None:
                continue
            precision, by_chance = _score(self.precision, weights), _score(self.chance, weights)
            values[f"p_at_{K}/{name}"], values[f"chance/{name}"] = float(precision), float(by_chance)
            values[f"lift/{name}"] = lift(float(precision), float(by_chance))
            rows = _by_query(self.precision, weights)
            ones = torch.ones_like(rows)
            by_picture[f"p_at_{K}/{name}"] = ByPicture(rows, ones)
            if by_chance < 1:
                by_picture[f"lift/{name}"] = ByPicture((rows - by_chance) / (1 - by_chance), ones)
        return Judgement(values, by_picture)

    def _known(self) -> Tensor:
        return (~self.precision.isnan()).any(0) & (~self.chance.isnan()).any(0)

    def _shares(self) -> dict[str, Tensor]:
        """For each group of attributes what each counts in its mean (A,)."""
        asked = torch.tensor([name in self.style for name in self.names])
        groups = {"attributes": asked & self._known(), "content": ~asked & self._known()}
        return {name: group.double() / group.sum() for name, group in groups.items() if group.any()}

    def _weights(self, name: str, shares: dict[str, Tensor]) -> Tensor | None:
        """What each attribute counts (A,) in the score of that name; None where nothing is known."""
        if name == "average":
            return torch.stack(list(shares.values())).mean(0)
        if name in shares:
            return shares[name]
        index = self.names.index(name)
        return F.one_hot(torch.tensor(index), len(self.names)).double() if bool(self._known()[index]) else None


def _score(table: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over attributes of the mean over queries of what is known in a table (Q, A)."""
    return (table.nanmean(0).nan_to_num() * weights).sum()


def _by_query(table: Tensor, weights: Tensor) -> Tensor:
    """The score shared out among the queries (Q,): its mean is the score, and resampling it resamples the score.

    A query of which some attribute is unknown has the mean of the others there (the score's linearisation in the queries).
    """
    means = table.nanmean(0).nan_to_num()
    known = ~table.isnan()
    off = torch.where(known, table - means, 0.0) * len(table) / known.sum(0).clamp_min(1)
    return ((off + means) * weights).sum(1)
