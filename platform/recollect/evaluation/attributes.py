"""Judging a translator whose targets are attributes: by exact counterparts where a world has them, else by real pictures.

Every picture is translated to each of its flips (see `attribute_cases`). Where the world knows what the picture looks like then:

    counterpart_error     mean |translation - counterpart| over the whole picture
    identity_error        the same where input and counterpart agree: what should not have changed
    change_error          the same where they differ: what should have
    attribute_accuracy    share of translations whose nearest true picture of the scene has the attribute as it was wanted
    attributes_kept       share of the other attributes that this nearest picture has as they were

each by the attribute that was to change, and the mean over attributes; `...@input` is what doing nothing scores.
Elsewhere `feature_distance@pyramid` compares the translations with real pictures that show exactly what was wanted.

Legend: B pictures, P pixels a side, S attributes that can be set, K true pictures of a scene, F flips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recollect.batch import Guide
from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import check_pictures, to_uint8, to_unit
from recollect.evaluation.attribute_cases import (
    AttributeCases,
    Flip,
    Pictures,
    gather,
    has_counterparts,
    own_pictures,
    random_targets,
)
from recollect.evaluation.baselines import Row
from recollect.evaluation.features import feature_distance, pyramid
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.metrics import content_kept, find_metric
from recollect.evaluation.validate import BATCH, DISTANCE, ByPicture, Judgement, parts_of, spread
from recollect.pipeline import Pipeline
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.library import Library
from recollect.retrieval.manifest import Origin
from recollect.trainable import AttributeWise

CHUNK = 8 * BATCH  # translations in memory at once
SAME = 2  # grey levels: as far as two pictures may differ in a pixel and still agree there
WITH_TRUTH = ("counterpart_error", "identity_error", "change_error", "attribute_accuracy", "attributes_kept")
WITHOUT = (DISTANCE, "content_kept")


def translate_flips(pipeline: Pipeline, cases: AttributeCases) -> Tensor:
    """The deterministic translations (F, 3, P, P) in [0, 1] of all flips, on the CPU."""
    return translate_to(pipeline, cases, _asked(cases, slice(None)))


def translate_to(
    pipeline: Pipeline, pictures: Pictures, wanted: Sequence[tuple[int, Sequence[float]]], seeds: Sequence[int] | None = None
) -> Tensor:
    """Translations (N, 3, P, P) in [0, 1], on the CPU, of pictures (by number) into wanted attributes (S,).

    Deterministic ones, or by random styles, a seed each. Raises ValueError, naming the pictures, for what are no pictures.
    """
    found: dict[int, Tensor] = {}
    together: dict[tuple[str, str], list[int]] = {}
    for place, (picture, row) in enumerate(wanted):
        together.setdefault((pictures.domains[picture], pictures.target(picture, row)), []).append(place)
    for (source, target), places in together.items():
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            images = to_unit(pictures.images[[wanted[place][0] for place in batch]])
            guide = Guide(attributes=torch.tensor([list(wanted[place][1]) for place in batch]))
            own = None if seeds is None else [seeds[place] for place in batch]
            answer = pipeline(images, target, source=source, guide=guide, seeds=own).images.float().cpu()
            check_pictures(answer, f"the translations of {', '.join(pictures.ids[wanted[place][0]] for place in batch)}")
            found |= dict(zip(batch, (answer + 1) / 2, strict=True))
    return torch.stack([found[place] for place in range(len(wanted))])


@dataclass(frozen=True)
class Asked:
    """Pictures, and a translation to ask for of some of them: which picture, and the attributes (S,) wanted."""

    pictures: Pictures
    wanted: tuple[tuple[int, tuple[float, ...]], ...]

    @staticmethod
    def at_random(pictures: Pictures, seed: int = 0) -> Asked:
        """Of every picture the attributes of another one at random, as RG-UNIT's authors do."""
        columns = [[pictures.names.index(name) for name in group] for group in pictures.groups]
        chosen = pictures.own[random_targets(pictures.own, torch.arange(len(pictures)), columns, seed)]
        return Asked(pictures, tuple((number, tuple(row)) for number, row in enumerate(chosen.tolist())))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.pictures.ids[picture] for picture, _ in self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)

    def translate(self, pipeline: Pipeline, chosen: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """As `Cases.translate`."""
        return translate_to(pipeline, self.pictures, [self.wanted[row] for row in chosen], seeds) * 2 - 1


def judge_flips(translations: Tensor, cases: AttributeCases) -> Judgement:
    """Compare translations (F, 3, P, P) in [0, 1] of all flips with all that is known of them."""
    return _judged((translations[rows] for rows in _slices(len(cases.flips))), cases)


def judge_pipeline(pipeline: Pipeline, cases: AttributeCases) -> Judgement:
    """`judge_flips` of what a pipeline makes of the flips, without having all translations in memory."""
    return _judged((translate_to(pipeline, cases, _asked(cases, rows)) for rows in _slices(len(cases.flips))), cases)


def judge_inputs(cases: AttributeCases) -> Judgement:
    """`judge_flips` of doing nothing, without having the input of every flip in memory."""
    return _judged((_inputs(cases, rows) for rows in _slices(len(cases.flips))), cases)


def inputs_of(cases: AttributeCases) -> Tensor:
    """The input of every flip as its translation (F, 3, P, P) in [0, 1]: doing nothing."""
    return _inputs(cases, slice(None))


def _inputs(cases: AttributeCases, rows: slice) -> Tensor:
    return cases.images[[flip.picture for flip in cases.flips[rows]]].float() / 255


def _asked(cases: AttributeCases, rows: slice) -> list[tuple[int, tuple[float, ...]]]:
    """Which picture, and what is wanted of it, of each flip."""
    return [(flip.picture, flip.wanted) for flip in cases.flips[rows]]


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _judged(chunks: Iterable[Tensor], cases: AttributeCases) -> Judgement:
    """What `judge_flips` says, of translations that come in chunks."""
    if cases.renders is None:
        return _judge_by_real_pictures(chunks, cases)
    translations = (picture for chunk in chunks for picture in chunk)
    rows = [_compare(picture, flip, cases) for picture, flip in zip(translations, cases.flips, strict=True)]
    by_picture: dict[str, ByPicture] = {}
    for metric in WITH_TRUTH:
        by_picture |= _by_picture(metric, [row[metric] for row in rows], cases)
    return Judgement({name: value for metric in WITH_TRUTH for name, value in _means(metric, by_picture).items()}, by_picture)


def _compare(picture: Tensor, flip: Flip, cases: AttributeCases) -> dict[str, float]:
    """One translation (3, P, P) against the true pictures of its scene; nan where a metric has nothing to look at."""
    assert cases.renders is not None and cases.shown is not None
    renders, shown = cases.renders[flip.picture], cases.shown[flip.picture]
    difference = (picture - renders.float() / 255).abs().mean(1)  # (K, P, P)
    whole = difference.double().mean((1, 2))  # (K,)
    answer = min(flip.answers, key=lambda index: float(whole[index]))
    changed = (renders[answer].int() - cases.images[flip.picture].int()).abs().amax(0) > SAME
    error, wanted = difference[answer].double(), torch.tensor(flip.wanted)
    right = _nearest_have(whole, shown == wanted)  # (S,)
    others = [index for index in range(len(cases.names)) if cases.own[flip.picture, index] == wanted[index]]
    return {
        "counterpart_error": float(whole[answer]),
        "identity_error": float(error[~changed].mean()),
        "change_error": float(error[changed].mean()),
        "attribute_accuracy": float(right[flip.attribute]),
        "attributes_kept": float(right[others].double().mean()),
    }


def _nearest_have(distances: Tensor, right: Tensor) -> Tensor:
    """For each attribute whether the nearest picture has it right (S,), given `right` (K, S); a tie is decided for right.

    Two true pictures can be the same, where a hat hides the hair: then either is an answer.
    """
    having = distances[:, None].masked_fill(~right, torch.inf).amin(0)
    return having <= distances.min()


def _by_picture(metric: str, values: Sequence[float], cases: AttributeCases) -> dict[str, ByPicture]:
    """A metric's values by picture for each attribute that changed; those that are nan, or were not asked for, count nothing."""
    table = torch.full((len(cases), len(cases.names)), torch.nan, dtype=torch.double)
    for flip, value in zip(cases.flips, values, strict=True):
        table[flip.picture, flip.attribute] = value
    known = ~table.isnan()
    return {
        f"{metric}/{name}": ByPicture(table[:, index].nan_to_num(), known[:, index].double())
        for index, name in enumerate(cases.names)
        if known[:, index].any()
    }


def _means(metric: str, by_picture: Mapping[str, ByPicture]) -> dict[str, float]:
    """The mean over pictures for each attribute; before them the mean over attributes, where there are any."""
    means = {
        name: float((by_picture[name].values * by_picture[name].weights).sum() / by_picture[name].weights.sum())
        for name in parts_of(metric, by_picture)
    }
    return {metric: sum(means.values()) / len(means), **means} if means else {}


def _judge_by_real_pictures(chunks: Iterable[Tensor], cases: AttributeCases) -> Judgement:
    """Distances between sets for each attribute and each way it changes; a set of both ways would hide that nothing is done."""
    assert cases.real is not None
    kept, found = [], []
    for rows, chunk in zip(_slices(len(cases.flips)), chunks, strict=True):
        kept.append(content_kept(_inputs(cases, rows), chunk))
        found.append(pyramid(chunk))
    by_picture = _by_picture("content_kept", torch.cat(kept).tolist(), cases)
    features, distances = torch.cat(found), dict[str, float]()
    for index, name in enumerate(cases.names):
        ways = [
            [place for place, flip in enumerate(cases.flips) if flip.attribute == index and flip.wanted[index] == value]
            for value in (0.0, 1.0)
        ]
        distance = [feature_distance(features[way], cases.real[way]) for way in ways if len(way) > 1]
        if distance:
            distances[f"{DISTANCE}/{name}"] = sum(distance) / len(distance)
    if not distances:
        raise ValueError(f"{len(cases)} pictures are too few for a distance between sets; raise evaluation.pictures")
    values = {DISTANCE: sum(distances.values()) / len(distances), **distances}
    return Judgement({**values, **_means("content_kept", by_picture)}, by_picture)


def check_neighbours(pipeline: Pipeline, split: str, index: str) -> None:
    """Raise ValueError where the pictures that guide a pipeline are among those that it is judged on.

    Neighbours from the judged split may be the very counterparts that are asked for.

    Args:
        split: the one that is judged.
        index: where the neighbours are found, as far as that is known.
    """
    if isinstance(pipeline.search, Library) and pipeline.search.origin is not None:
        _check_origin(pipeline.search.origin, split, index or "that guides it")


def _check_origin(origin: Origin, split: str, index: str) -> None:
    if split in origin.splits:
        raise ValueError(
            f"the index {index} holds the {split} split of {origin.store}, which is what is judged: its neighbours would be the "
            "answers. `recollect index build` makes one of the training pictures alone; judge with that"
        )


class AttributeJudge:
    """Judges a translator that is `AttributeWise`: `AttributeJudge(store, run)(pipeline)["objective"]`.

    Args:
        store: where the pictures are.
        run: its domains, the size, the metric and the floor of `content_kept`.
        split: "val" for decisions; the test split is read once, for the table.
        pictures: how many pictures, each with all its flips; None: `run.evaluation.pictures`.

    Raises ValueError for metrics that are not measured here, and for a run whose neighbours are of the judged split.
    """

    most: ClassVar[int] = 500  # pictures of a table where nobody says how many: each is translated once an attribute

    def __init__(self, store: Store, run: Run, split: str = "val", pictures: int | None = None) -> None:
        self.store, self.run, self.split = store, run, split
        self.pictures = run.evaluation.pictures if pictures is None else pictures
        if run.data.index:  # said before a training, not after hours of it
            _check_origin(read_manifest(run.data.index).origin, split, run.data.index)
        every = own_pictures(store, split, run.data.domains)
        self.ids = ids = tuple(spread(every, self.pictures))
        self.left_out = len(every) - len(ids)
        self.truth = has_counterparts(store, ids, run.data.domains)
        self.metric = self._resolve(run.evaluation.metric)
        chosen = find_metric(self.metric)
        self.mode: Literal["min", "max"] = "max" if chosen.higher_is_better else "min"
        self.about = (
            f"{self.mode}imises {self.metric} ({chosen.about}) on {len(ids)} {split} pictures, each of their attributes changed"
        )
        self._prepared: dict[Any, tuple[AttributeCases, Judgement]] = {}

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of."""
        return run.data.domains

    def _resolve(self, name: str) -> str:
        measured = WITH_TRUTH if self.truth else WITHOUT
        if self.run.evaluation.features:
            raise ValueError(
                "evaluation.features is for translators between domains; one that is told attributes is steered by "
                f"{', '.join(measured)}, and judged by scores with `recollect evaluate --suite`"
            )
        if name == "auto":
            return measured[0]
        if name not in measured:
            raise ValueError(f"evaluation.metric {name!r} is not measured here{did_you_mean(name, measured)}")
        return name

    def cases(self, pipeline: Pipeline) -> AttributeCases:
        """What is asked of this method. Raises ValueError for one whose targets are not attributes, or not those of the data."""
        return self._prepare(pipeline)[0]

    def _prepare(self, pipeline: Pipeline) -> tuple[AttributeCases, Judgement]:
        model: Any = pipeline.model
        if not isinstance(model, AttributeWise):
            raise ValueError(f"{model.config.name} is not told attributes, so it cannot be judged by them")
        check_neighbours(pipeline, self.split, self.run.data.index)
        names, groups = model.style_attributes(), model.exclusive_attributes()
        if (names, groups) not in self._prepared:
            cases = gather(self.store, self.run, self.split, names, groups, self.pictures)
            self._prepared[names, groups] = cases, judge_inputs(cases)
        return self._prepared[names, groups]

    def judgement(self, pipeline: Pipeline) -> Judgement:
        """The translations of all flips, judged; with what belongs to single pictures."""
        return judge_pipeline(pipeline, self.cases(pipeline))

    def baselines(self, pipeline: Pipeline) -> list[Row]:
        """What stands beside the method: doing nothing."""
        return [Row("the input itself", "baseline", "nothing is translated", self._prepare(pipeline)[1])]

    def __call__(self, pipeline: Pipeline) -> dict[str, float]:
        """All metrics by name, those of the input as `...@input`, and `objective`, the number to steer by."""
        values, untranslated = self.judgement(pipeline).values, self._prepare(pipeline)[1].values
        return {
            **values,
            **{_of_input(name): value for name, value in untranslated.items()},
            **pipeline.model.health(),
            "objective": self.objective(values, untranslated),
        }

    def objective(self, values: Mapping[str, float], untranslated: Mapping[str, float]) -> float:
        """The metric to steer by; where it is a distance to real pictures, losing the content costs as in `Validator`."""
        value, floor = values[self.metric], self.run.evaluation.content_floor
        if self.metric != DISTANCE or not floor:
            return value
        missing = max(0.0, floor - values["content_kept"]) / floor
        return value + 10 * missing * max(value, untranslated[self.metric])

    def grid(self, pipeline: Pipeline, rows: int = 4) -> Tensor:
        """A picture (3, height, width) uint8: input | each attribute changed; beneath each row the true ones, where known."""
        cases = self.cases(pipeline)
        chosen = [int(row) for row in spread([str(row) for row in range(len(cases))], rows)]
        return picture_grid(_columns(pipeline, cases, chosen))


def _of_input(metric: str) -> str:
    """
    >>> _of_input("counterpart_error/Male"), _of_input("content_kept")
    ('counterpart_error@input/Male', 'content_kept@input')
    """
    family, slash, part = metric.partition("/")
    return f"{family}@input{slash}{part}"


def _columns(pipeline: Pipeline, cases: AttributeCases, rows: Sequence[int]) -> dict[str, Tensor]:
    """The columns of a grid: the inputs, then by attribute the translations; every second picture a true one, where known.

    What a picture has already, and shares a group with others, is drawn as well: with nothing to change.
    """
    asked = {(flip.picture, flip.attribute): flip for flip in cases.flips}
    same = [Flip(row, index, tuple(cases.own[row].tolist())) for index in range(len(cases.names)) for row in rows]
    flips = [asked.get((flip.picture, flip.attribute), flip) for flip in same]
    drawn = translate_to(pipeline, cases, [(flip.picture, flip.wanted) for flip in flips])
    translated = to_uint8(drawn * 2 - 1).view(len(cases.names), len(rows), *drawn.shape[1:])
    inputs = cases.images[list(rows)]
    columns = {"input": inputs, **{_caption(cases, index): translated[index] for index in range(len(cases.names))}}
    if cases.renders is None:
        return columns
    blank = torch.full_like(inputs, 255)
    truths = [blank, *(torch.stack([_answer(cases, flip) for flip in group]) for group in _chunks(flips, len(rows)))]
    return {
        caption: torch.stack([pictures, truth], dim=1).flatten(0, 1)
        for (caption, pictures), truth in zip(columns.items(), truths, strict=True)
    }


def _chunks(flips: Sequence[Flip], size: int) -> Iterator[Sequence[Flip]]:
    return (flips[start : start + size] for start in range(0, len(flips), size))


def _answer(cases: AttributeCases, flip: Flip) -> Tensor:
    """The true picture (3, P, P) uint8 of what a flip asks for; of the input itself where nothing changes."""
    assert cases.renders is not None
    return cases.renders[flip.picture][flip.answers[0]] if flip.answers else cases.images[flip.picture]


def _caption(cases: AttributeCases, index: int) -> str:
    """An attribute that excludes others is set; one by itself is flipped."""
    ways = {flip.wanted[index] for flip in cases.flips if flip.attribute == index}
    how = "changed" if len(ways) > 1 else "cleared" if 0.0 in ways else "set"
    return f"{cases.names[index]} {how}" + ("; beneath: true" if cases.renders is not None else "")
