"""Judging a retriever: does it find pictures with the attributes that are asked for, and otherwise like the query (P@10)?

A query is a picture and the style attributes of another one of the split, its target. For a retriever over domains the style
attributes are the domains. For each attribute P@10 is the share of the
ten nearest pictures of the gallery that agree with what was asked: style attributes with the target's, the others (the content)
with the query picture's own. Pairs of which one side is unknown are left out. Random pictures agree often: beside every number
stands `chance`, what they score in expectation, and `lift`, how much of the way from there to 1 is made.

Where a world draws the same faces with other attributes, `counterpart_at_10` is the share of queries that find the very same
face with the target's attributes (one of its pictures, where several have them) among all these pictures.

Legend: Q queries, G pictures of the gallery, k neighbours, A attributes, S of them style attributes, E dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import to_unit
from recollect.evaluation.attribute_cases import answers, attributes_of, cut, own_pictures, random_targets, scenes_of
from recollect.evaluation.baselines import Row
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.retrieved import K, Retrieved, agreement, chance, nearest
from recollect.evaluation.validate import ByPicture, Judgement, spread

GALLERY = 2000  # pictures at most, as in the paper; of a larger split a fixed choice at even distances
BATCH = 32  # pictures embedded at once
SHOWN = 5  # neighbours in a grid
MEASURED = ("lift/average", "lift/attributes", "lift/content", "p_at_10/average", "p_at_10/attributes", "p_at_10/content")


class Asking(Protocol):
    """What asks for attributes."""

    def style_attributes(self) -> tuple[str, ...]: ...


class Retriever(Asking, Protocol):
    """What is judged here: a module that embeds pictures, and queries in the same space."""

    def query(self, images: Tensor, attributes: Tensor) -> Tensor: ...
    def embed(self, images: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class Asked(NamedTuple):
    """What is asked of a retriever: the attributes by name, and those of the gallery, the targets and the answers."""

    names: tuple[str, ...]  # A
    style: list[int]  # which of them are asked for (S)
    table: Tensor  # (G, A)
    targets: Tensor  # (Q,) the place in the gallery of the picture whose style attributes are asked for
    wanted: Tensor  # (Q, A) what is found should have: the target's style, the query's own content


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

    def targets(self, model: Asking) -> Tensor:
        """For each query the place in the gallery of the picture whose style attributes are asked for (Q,)."""
        return self.asked(model).targets

    def retrieved(self, model: Retriever) -> Retrieved:
        """What the queries find in the gallery."""
        asked = self.asked(model)
        return replace(self.expected(model), precision=agreement(asked.wanted, asked.table[self._find(model)]))

    def expected(self, model: Asking) -> Retrieved:
        """What they would find at random, in expectation."""
        asked = self.asked(model)
        by_chance = chance(asked.wanted, asked.table, torch.tensor(self.queries))
        return Retrieved(asked.names, model.style_attributes(), by_chance, by_chance)

    def asked(self, model: Asking) -> Asked:
        """What is asked of this model. Raises ValueError for style attributes that are neither the data's nor its domains."""
        style = model.style_attributes()
        shown = attributes_of(self.store, self.ids, style)  # (G, S)
        of_domains = set(style) <= set(self.store.domains.names)
        names = (*style, *(name for name in self.names if name not in style)) if of_domains else self.names
        columns = [names.index(name) for name in style]
        table = torch.full((len(self.ids), len(names)), torch.nan)
        table[:, [names.index(name) for name in self.names]] = attributes_of(self.store, self.ids, self.names)
        table[:, columns] = shown
        groups = [[style.index(name) for name in group] for group in _groups(model)]
        targets = random_targets(shown, torch.tensor(self.queries), groups)
        wanted = table[self.queries]
        wanted[:, columns] = shown[targets]
        return Asked(names, columns, table, targets, wanted)

    def _find(self, model: Retriever) -> Tensor:
        """The neighbours' places in the gallery (Q, K)."""
        asked = self.asked(model)
        vectors = self._query(model, asked.wanted[:, asked.style])
        return nearest(vectors, self._embed(model, self.ids), K, torch.tensor(self.queries))

    def counterparts(self, model: Retriever) -> dict[str, float]:
        """`counterpart_at_10`, and what chance finds, over the queries whose counterpart is another picture; or nothing."""
        return self._counterparts_found(model).values

    def _counterparts_found(self, model: Retriever) -> Judgement:
        pairs = self._counterparts(model)  # by query: its own picture, and its counterparts
        if not pairs:
            return Judgement({}, {})
        gallery = list(dict.fromkeys(id for scene in self.scenes.values() for id in scene))  # domains share scenes
        place = {id: index for index, id in enumerate(gallery)}
        asked, rows = self.asked(model), list(pairs)
        vectors = self._query(model, asked.wanted[:, asked.style])[rows]
        own = torch.tensor([place[own] for own, _ in pairs.values()])
        found = nearest(vectors, self._embed(model, gallery), K, own).tolist()
        right = [{place[id] for id in others} for _, others in pairs.values()]
        hits = torch.tensor([not others.isdisjoint(row) for others, row in zip(right, found, strict=True)]).double()
        by_chance = [1 - math.comb(len(gallery) - 1 - len(some), K) / math.comb(len(gallery) - 1, K) for some in right]
        every = torch.zeros(2, len(self.queries), dtype=torch.double)  # values and weights
        every[:, rows] = torch.stack([hits, torch.ones_like(hits)])
        values = {
            f"counterpart_at_{K}": float(hits.mean()),
            f"chance/counterpart_at_{K}": sum(by_chance) / len(by_chance),
        }
        return Judgement(values, {f"counterpart_at_{K}": ByPicture(*every)})

    def _counterparts(self, model: Asking) -> dict[int, tuple[str, tuple[str, ...]]]:
        """By query the ids of its own picture, and of the same face with what is wanted, where these are other pictures."""
        style = model.style_attributes()
        asked = self.asked(model)
        found = {}
        for row, query in enumerate(self.queries):
            own = self.ids[query]
            scene = self.scenes.get(own, ())
            right = (attributes_of(self.store, scene, style) == asked.wanted[row, asked.style]).all(1) if scene else None
            if right is None or not right.any():
                continue
            table = attributes_of(self.store, (own, *scene), self.names)
            others = tuple(scene[place] for place in answers(table[0], table[1:], right))
            if own not in others:
                found[row] = own, others
        return found

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

    def judgement(self, model: Retriever) -> Judgement:
        """All metrics; by query where they are made of queries."""
        one, other = self.retrieved(model).judgement(), self._counterparts_found(model)
        return Judgement({**one.values, **other.values}, {**one.by_picture, **other.by_picture})

    def baselines(self, model: Asking) -> list[Row]:
        """What stands beside the method: random retrieval."""
        about = f"{K} drawn at random: the exact expectation"
        return [Row("random retrieval", "baseline", about, self.expected(model).judgement())]

    def __call__(self, model: Retriever) -> dict[str, float]:
        """All metrics by name, and `objective`, the one to steer by."""
        values = self.judgement(model).values
        return {**values, "objective": values[self.metric]}

    def grid(self, model: Retriever, rows: int = 4, by: str = "") -> Tensor:
        """A picture (3, height, width) uint8: query | what is wanted, in words | its first neighbours, nearest first.

        `by` names the model above what it found.
        """
        chosen = [int(row) for row in spread([str(row) for row in range(len(self.queries))], rows)]
        style, found, asked = model.style_attributes(), self._find(model), self.asked(model)
        wanted = asked.wanted[chosen][:, asked.style].tolist()
        columns: dict[str, Tensor | list[str]] = {
            "query": self._cut([self.queries[row] for row in chosen]),
            "wanted": [named(style, row, _groups(model)) for row in wanted],
        }
        for place in range(SHOWN):
            columns[f"{by}: {place + 1}" if by else f"found {place + 1}"] = self._cut(found[chosen, place].tolist())
        return picture_grid(columns)

    def _cut(self, places: Sequence[int]) -> Tensor:
        return cut(self.store, [self.ids[place] for place in places], self.run)


def _groups(model: Asking) -> Sequence[Sequence[str]]:
    """The groups of its attributes of which a picture has at most one; none where it does not say."""
    return tuple(getattr(model, "exclusive_attributes", tuple)())


def named(names: Sequence[str], values: Sequence[float], groups: Sequence[Sequence[str]] = ()) -> str:
    """What a picture has, a line each, as people say it; what it lacks with a "not", unless another of its group says so.

    >>> named(["Black_Hair", "Blond_Hair", "Young"], [0, 1, 0], [["Black_Hair", "Blond_Hair"]])
    'Blond Hair\\nnot Young'
    """
    has = {name for name, value in zip(names, values, strict=True) if value}
    said = {name for group in groups if has & set(group) for name in group} - has
    return "\n".join(("" if name in has else "not ") + name.replace("_", " ") for name in names if name not in said)


def model_call(model: Retriever, images: Tensor, function: Any) -> Tensor:
    """A model's answer (B, E) to pictures (B, 3, H, W), on the CPU."""
    like = next(model.parameters())
    with torch.inference_mode():
        answer: Tensor = function(images.to(like.device, like.dtype))
    return answer.float().cpu()
