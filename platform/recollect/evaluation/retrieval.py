"""Judging a retriever: does it find pictures with the attributes that are asked for, and otherwise like the query (P@10)?

A query is a picture and the style attributes of another one of the split, its target. For each attribute P@10 is the share of the
ten nearest pictures of the gallery that agree with what was asked: style attributes with the target's, the others (the content)
with the query picture's own. Pairs of which one side is unknown are left out. Random pictures agree often: beside every number
stands `chance`, what they score in expectation, and `lift`, how much of the way from there to 1 is made.

Where a world draws the same faces with other attributes, `counterpart_at_10` is the share of queries that find the very same
face with the target's attributes among all these pictures.

Legend: Q queries, G pictures of the gallery, k neighbours, A attributes, S of them style attributes, E dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import to_unit
from recollect.evaluation.attribute_cases import attributes_of, cut, own_pictures, random_targets, scenes_of
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.validate import ByPicture, Judgement, spread

K = 10  # neighbours that are judged; names say so
GALLERY = 2000  # pictures at most, as in the paper; of a larger split a fixed choice at even distances
BATCH = 32  # pictures embedded at once
ROWS = 512  # queries compared with the gallery at once
SHOWN = 5  # neighbours in a grid
MEASURED = ("lift/average", "lift/attributes", "lift/content", "p_at_10/average", "p_at_10/attributes", "p_at_10/content")


class Retriever(Protocol):
    """What is judged here: a module that embeds pictures, and queries in the same space."""

    def style_attributes(self) -> tuple[str, ...]: ...
    def query(self, images: Tensor, attributes: Tensor) -> Tensor: ...
    def embed(self, images: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


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


class RetrievalJudge:
    """Judges a retriever: `RetrievalJudge(store, run)(model)["objective"]`.

    Args:
        store: where the pictures are.
        run: its domains, the size, the metric (`lift/average` where it is "auto"), and how many queries.
        split: "val" for decisions; the test split is read once, for the table.
        queries: how many pictures are queries; None: `run.evaluation.pictures`.
        gallery: how many pictures of the split can be found at most.

    Raises ValueError for other metrics, and for a split of too few pictures.
    """

    mode: Literal["max"] = "max"

    def __init__(
        self, store: Store, run: Run, split: str = "val", queries: int | None = None, gallery: int | None = GALLERY
    ) -> None:
        self.store, self.run = store, run
        self.ids = spread(own_pictures(store, split, run.data.domains), gallery)
        if len(self.ids) <= K:
            raise ValueError(f"{store.uri} has {len(self.ids)} {split} pictures, too few to find {K} others of")
        count = run.evaluation.pictures if queries is None else queries
        self.queries = [int(place) for place in spread([str(place) for place in range(len(self.ids))], count)]
        self.names = store.domains.attributes
        self.table = attributes_of(store, self.ids, self.names)  # (G, A)
        self.scenes = self._scenes(gallery)
        self.metric = MEASURED[0] if run.evaluation.metric == "auto" else run.evaluation.metric
        if self.metric not in self._measured():
            raise ValueError(f"a retriever is not judged by {self.metric!r}{did_you_mean(self.metric, self._measured())}")
        self.about = f"maximises {self.metric} ({find_metric(self.metric).about}): {len(self.queries)} queries among "
        self.about += f"{len(self.ids)} {split} pictures"

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of."""
        return run.data.domains

    def _measured(self) -> tuple[str, ...]:
        return (*MEASURED, f"counterpart_at_{K}") if self.scenes else MEASURED

    def _scenes(self, most: int | None) -> dict[str, tuple[str, ...]]:
        """All pictures of the faces of the gallery, whatever their attributes, by the own one; queries first; at most so many."""
        asked = set(self.queries)
        order = [*self.queries, *(place for place in range(len(self.ids)) if place not in asked)]
        ids = [self.ids[place] for place in order]
        found: dict[str, tuple[str, ...]] = {}
        count = 0
        for id, scene in zip(ids, scenes_of(self.store, ids, self.run.data.domains), strict=True):
            count += len(scene)
            if len(scene) < 2 or most is not None and count > most:
                break
            found[id] = scene
        return found

    def targets(self, model: Retriever) -> Tensor:
        """For each query the place in the gallery of the picture whose style attributes are asked for (Q,)."""
        style = model.style_attributes()
        wanted = attributes_of(self.store, self.ids, style)
        return random_targets(wanted, torch.tensor(self.queries))

    def retrieved(self, model: Retriever) -> Retrieved:
        """What the queries find in the gallery."""
        found, wanted = self._find(model)
        own = torch.tensor(self.queries)
        return Retrieved(
            self.names, model.style_attributes(), agreement(wanted, self.table[found]), chance(wanted, self.table, own)
        )

    def _find(self, model: Retriever) -> tuple[Tensor, Tensor]:
        """The neighbours' places in the gallery (Q, K), and the attributes that should be there (Q, A)."""
        style, targets = model.style_attributes(), self.targets(model)
        asked = self._columns(style)
        wanted = self.table[self.queries]
        wanted[:, asked] = self.table[targets][:, asked]
        vectors = self._embed(model, self.ids)
        return nearest(self._query(model, wanted[:, asked]), vectors, K, torch.tensor(self.queries)), wanted

    def _columns(self, style: Sequence[str]) -> list[int]:
        for name in style:
            if name not in self.names:
                raise ValueError(f"{self.store.uri} has no attribute {name!r}{did_you_mean(name, self.names)}")
        return [self.names.index(name) for name in style]

    def counterparts(self, model: Retriever) -> dict[str, float]:
        """`counterpart_at_10`, and what chance finds, over the queries whose counterpart is another picture of the gallery."""
        if not self.scenes:
            return {}
        style, gallery = model.style_attributes(), [id for scene in self.scenes.values() for id in scene]
        wanted = attributes_of(self.store, self.ids, style)[self.targets(model)]
        place = {id: index for index, id in enumerate(gallery)}
        rows, own, answers = [], [], []
        for row, query in enumerate(self.queries):
            scene = self.scenes.get(self.ids[query], ())
            right = (attributes_of(self.store, scene, style) == wanted[row]).all(1) if scene else torch.zeros(0)
            answer = next((id for id, fits in zip(scene, right.tolist(), strict=True) if fits), self.ids[query])
            if answer != self.ids[query]:
                rows.append(row)
                own.append(place[self.ids[query]])
                answers.append(place[answer])
        if not rows:
            return {}
        vectors = self._query(model, wanted)[rows]
        found = nearest(vectors, self._embed(model, gallery), K, torch.tensor(own))
        hits = (found == torch.tensor(answers)[:, None]).any(1)
        by_chance = K / (len(gallery) - 1)
        value = float(hits.double().mean())
        return {f"counterpart_at_{K}": value, f"chance/counterpart_at_{K}": by_chance}

    def _embed(self, model: Retriever, ids: Sequence[str]) -> Tensor:
        return torch.cat([model_call(model, images, model.embed) for images, _ in self._pictures(ids)])

    def _query(self, model: Retriever, wanted: Tensor) -> Tensor:
        """The vectors (Q, E) of the queries with these style attributes (Q, S)."""
        ids = [self.ids[place] for place in self.queries]

        def ask(rows: slice, images: Tensor) -> Tensor:
            return model_call(model, images, lambda moved: model.query(moved, wanted[rows].to(moved)))

        return torch.cat([ask(rows, images) for images, rows in self._pictures(ids)])

    def _pictures(self, ids: Sequence[str]) -> Iterator[tuple[Tensor, slice]]:
        for start in range(0, len(ids), BATCH):
            rows = slice(start, start + BATCH)
            yield to_unit(cut(self.store, ids[rows], self.run)), rows

    def __call__(self, model: Retriever) -> dict[str, float]:
        """All metrics by name, and `objective`, the one to steer by."""
        values = {**self.retrieved(model).judgement().values, **self.counterparts(model)}
        return {**values, "objective": values[self.metric]}

    def grid(self, model: Retriever, rows: int = 4) -> Tensor:
        """A picture (3, height, width) uint8: query | what is wanted, in words | its first neighbours, nearest first."""
        chosen = [int(row) for row in spread([str(row) for row in range(len(self.queries))], rows)]
        style, (found, wanted) = model.style_attributes(), self._find(model)
        asked = wanted[chosen][:, self._columns(style)].tolist()
        columns: dict[str, Tensor | list[str]] = {
            "query": self._cut([self.queries[row] for row in chosen]),
            "wanted": [named(style, row) for row in asked],
        }
        for place in range(SHOWN):
            columns[f"found {place + 1}"] = self._cut(found[chosen, place].tolist())
        return picture_grid(columns)

    def _cut(self, places: Sequence[int]) -> Tensor:
        return cut(self.store, [self.ids[place] for place in places], self.run)


def named(names: Sequence[str], values: Sequence[float]) -> str:
    """What a picture has, a line each, as people say it; what it lacks is crossed out with a "not".

    >>> named(["Blond_Hair", "Young"], [1, 0])
    'Blond Hair\\nnot Young'
    """
    return "\n".join(("" if value else "not ") + name.replace("_", " ") for name, value in zip(names, values, strict=True))


def model_call(model: Retriever, images: Tensor, function: Any) -> Tensor:
    """A model's answer (B, E) to pictures (B, 3, H, W), on the CPU."""
    like = next(model.parameters())
    with torch.inference_mode():
        answer: Tensor = function(images.to(like.device, like.dtype))
    return answer.float().cpu()
