"""Judging a translator on a fixed set of pictures: what training, search and the final table all use.

`Cases` are the pictures with what is known of them, `judge` compares any translations of them (a method's or a baseline's)
with it, and `Validator` does both for a pipeline and names the one number to steer by.

Legend: B pictures, S pixels a side, K true renders of a picture, R regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from recollect.config import Run, did_you_mean
from recollect.data.schema import Record
from recollect.data.store import Store
from recollect.data.transforms import Sample, check_pictures, joint_crop, rasterise, to_uint8, to_unit
from recollect.evaluation.features import feature_distance, pyramid
from recollect.evaluation.grids import colour_items, picture_grid
from recollect.evaluation.metrics import (
    METRICS,
    RegionErrors,
    class_found,
    content_kept,
    effective_items,
    find_metric,
    mode_coverage,
    nearest_modes,
    region_errors,
    scene_error,
)
from recollect.evaluation.statistics import Measured
from recollect.pipeline import Pipeline, pad_to

if TYPE_CHECKING:
    from recollect.evaluation.quick import Quick

BATCH = 8  # pictures translated at once
DISTANCE = "feature_distance@pyramid"
SHORT = tuple(f"{kind}_quick@features" for kind in ("fid", "kid", "is", "cis", "lpips"))  # scores to steer by; see `quick`


@dataclass(frozen=True)
class Truth:
    """What the translations should look like: several true renders of every picture, because a style is a choice."""

    references: Tensor  # (B, K, 3, S, S) uint8
    modes: Tensor  # (B, K) int64: the style mode of each; -1: unknown
    regions: Tensor  # (B, S, S) uint8


@dataclass(frozen=True)
class Cases:
    """The pictures to translate, and what is known of them. All are cut at the centre in the same way."""

    source: str
    target: str
    ids: tuple[str, ...]
    images: Tensor  # (B, 3, S, S) uint8
    samples: tuple[Sample, ...]  # with the boxes
    targets: Tensor  # (M, 3, S, S) uint8: pictures of the target domain from the same split
    truth: Truth | None
    classes: tuple[str, ...]
    regions: tuple[str, ...]
    annotated: bool

    def __len__(self) -> int:
        return len(self.ids)

    def translate(self, pipeline: Pipeline, chosen: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """Translations (n, 3, S, S) in [-1, 1], on the CPU, of the pictures of these numbers; with seeds by random styles.

        Raises ValueError, naming the pictures, for translations that are no pictures.
        """
        images = to_unit(self.images[list(chosen)])
        answer = pipeline(images, self.target, source=self.source, seeds=seeds).images.float().cpu()
        check_pictures(answer, f"the translations of {', '.join(sorted({self.ids[case] for case in chosen}))}")
        return answer

    def class_map(self, stride: int) -> Tensor | None:
        """The true class (B, S // stride, S // stride) of each cell, or None where nobody annotated the pictures."""
        if not self.annotated or len(self.classes) < 2:
            return None
        size = self.images.shape[-1]
        return torch.stack([rasterise(sample.boxes, sample.labels, size, stride) for sample in self.samples])


def halved(store: Store, split: str) -> Literal[0] | None:
    """Which half of a split is judged: of validation scenes with truth every second one, the others are for fitting baselines."""
    return 0 if split == "val" and store.manifest.truth else None


def gather(
    store: Store,
    direction: tuple[str, str],
    split: str,
    size: int,
    pictures: int | None = None,
    short_side: int | None = None,
    half: Literal[0, 1] | None = None,
) -> Cases:
    """A fixed, evenly spread choice of `pictures` source pictures (None: all) of a split, with all that is known of them.

    In a store with truth each is of another scene, and they take turns in their styles. `half` keeps every second of the
    scenes, so that baselines can be fitted on one half of a split and judged on the other.
    Raises ValueError for unknown domains and for a split without pictures of one of the two.
    """
    source, target = direction
    for domain in direction:
        if not store.ids(split, domain):
            counts = {name: of.get(domain, 0) for name, of in store.manifest.counts.items()}
            raise ValueError(f"{store.uri} has no {split} picture of {domain!r} to evaluate on; it has {counts}")
    candidates = one_per_scene(store, split, source)[half or 0 :: 1 if half is None else 2]
    records = store.records(spread(candidates, pictures))
    samples = tuple(_cut(store, record, size, short_side) for record in records)
    held_out = store.records(spread(one_per_scene(store, split, target), max(len(records), 50)))
    return Cases(
        source=source,
        target=target,
        ids=tuple(record.id for record in records),
        images=_stack(samples),
        samples=samples,
        targets=_stack([_cut(store, record, size, short_side) for record in held_out]),
        truth=_truth(store, records, samples, target, size, short_side),
        classes=store.domains.classes,
        regions=store.domains.regions,
        annotated=store.manifest.annotated,
    )


def one_per_scene(store: Store, split: str, domain: str) -> tuple[str, ...]:
    """One picture of each scene, the styles taking turns; where there are no scenes, all pictures."""
    ids = store.ids(split, domain)
    if not store.manifest.truth:
        return ids
    groups: dict[str, list[str]] = {}
    for id in ids:
        groups.setdefault(store.record(id).scene or id, []).append(id)
    return tuple(members[index % len(members)] for index, members in enumerate(groups.values()))


def spread(ids: Sequence[str], count: int | None) -> list[str]:
    """`count` of them at even distances.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    if count is None or count >= len(ids):
        return list(ids)
    return [ids[index * len(ids) // count] for index in range(count)]


def _cut(store: Store, record: Record, size: int, short_side: int | None) -> Sample:
    return joint_crop(record, size, short_side, classes=store.domains.classes, with_regions=True)


def _stack(samples: Sequence[Sample]) -> Tensor:
    return torch.stack([sample.image.as_subclass(Tensor) for sample in samples])


def _truth(
    store: Store, records: Sequence[Record], samples: Sequence[Sample], target: str, size: int, short_side: int | None
) -> Truth | None:
    if not store.manifest.truth:
        return None
    rows, modes = [], []
    for record, sample in zip(records, samples, strict=True):
        renders = store.records(store.scene(record.scene, target)) if record.scene else ()
        if not renders or sample.regions is None:
            return None  # judged without truth unless all of the pictures have it
        rows.append(_stack([_cut(store, render, size, short_side) for render in renders]))
        modes.append(torch.tensor([-1 if render.mode is None else render.mode for render in renders]))
    longest = max(map(len, rows))
    references = torch.stack([_lengthen(row, longest) for row in rows])
    regions = torch.stack([sample.regions.as_subclass(Tensor) for sample in samples if sample.regions is not None])
    return Truth(references, torch.stack([_lengthen(row, longest) for row in modes]), regions)


def _lengthen(rows: Tensor, length: int) -> Tensor:
    """`rows` with the last repeated up to `length`; one more copy of a render changes no nearest render."""
    return torch.cat([rows, rows[-1:].expand(length - len(rows), *rows.shape[1:])])


class ByPicture(NamedTuple):
    """A metric's values (B,) in the order of the cases, and what each counts (B,); a value that counts 0 does not matter."""

    values: Tensor
    weights: Tensor


class Judgement(NamedTuple):
    """Metrics by name, and what they were made of, so that pictures can be resampled and two judgements paired.

    A metric in `by_picture` is the weighted mean of what is there: weights are 1 for pictures that count alike, the pixels of a
    region, or 0 where the metric does not apply. One that is not there, but whose parts are (`scene_error` of
    `scene_error/<region>`), is the plain mean over its parts. The others belong to the whole set of pictures.
    """

    values: dict[str, float]
    by_picture: dict[str, ByPicture]

    def measured(self, metric: str) -> Measured | None:
        """The metric as statistics take it; None for one of the whole set."""
        names = parts_of(metric, self.by_picture)
        if not names:
            return None
        rows = [self.by_picture[name] for name in names]
        values = torch.stack([torch.where(row.weights > 0, row.values, 0.0).double() for row in rows], -1)
        return Measured(values[None], torch.stack([row.weights.double() for row in rows], -1))


def parts_of(metric: str, known: Iterable[str]) -> list[str]:
    """The names in `known` that a metric is made of: itself, or its parts; none where neither is there.

    >>> parts_of("scene_error", ("content_kept", "scene_error/car", "scene_error/road"))
    ['scene_error/car', 'scene_error/road']
    """
    names = list(known)
    return [metric] if metric in names else [name for name in names if name.rpartition("/")[0] == metric]


def judge(translations: Tensor, cases: Cases) -> Judgement:
    """Compare translations (B, 3, S, S) in [0, 1] of the cases' pictures with all that is known of them."""
    kept, parts, nearest = [], [], []
    for start in range(0, len(cases), BATCH):
        rows = slice(start, start + BATCH)
        batch = translations[rows]
        kept.append(content_kept(cases.images[rows].float() / 255, batch))
        if cases.truth:
            references = cases.truth.references[rows].float() / 255
            parts.append(region_errors(batch, references, cases.truth.regions[rows], len(cases.regions)))
            nearest.append(nearest_modes(batch, references, cases.truth.modes[rows]))
    whole = torch.cat(kept)
    values = {"content_kept": float(whole.double().mean())}
    by_picture = {"content_kept": ByPicture(whole, torch.ones_like(whole))}
    if cases.truth:
        errors = RegionErrors(torch.cat([part.error for part in parts]), torch.cat([part.pixels for part in parts]))
        values |= scene_error(errors, cases.regions)
        for r, region in enumerate(cases.regions):
            if f"scene_error/{region}" in values:
                by_picture[f"scene_error/{region}"] = ByPicture(errors.error[:, r], errors.pixels[:, r])
        if int(cases.truth.modes.min()) >= 0:
            values |= mode_coverage(torch.cat(nearest), cases.truth.modes)
    if min(len(cases), len(cases.targets)) > 1:
        values[DISTANCE] = feature_distance(pyramid(translations), pyramid(cases.targets.float() / 255))
    return Judgement(values, by_picture)


def translate_all(pipeline: Pipeline, cases: Cases) -> Tensor:
    """The deterministic translations (B, 3, S, S) in [0, 1] of all cases, on the CPU."""
    rows = range(len(cases))
    batches = [cases.translate(pipeline, rows[start : start + BATCH]) for start in range(0, len(cases), BATCH)]
    return (torch.cat(batches) + 1) / 2


def _batches(images: Tensor) -> list[Tensor]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def has_memory(pipeline: Pipeline) -> bool:
    """Whether the method reads a class-aware memory by its content (`memory` and `content_encoder`)."""
    return hasattr(pipeline.model, "memory") and hasattr(pipeline.model, "content_encoder")


def examine_memory(pipeline: Pipeline, cases: Cases) -> dict[str, float]:
    """How the memory is read without classes (`effective_items`, `class_found`), and the method's own `health`."""
    model: Any = pipeline.model
    report: dict[str, float] = dict(model.health())
    if not has_memory(pipeline):
        return report
    weights = torch.cat([_read_weights(pipeline, to_unit(images), cases) for images in _batches(cases.images)])
    report["effective_items"] = effective_items(weights)
    classes = cases.class_map(model.stride) if cases.images.shape[-1] % model.stride == 0 else None
    names: tuple[str, ...] = model.memory.class_names
    if classes is not None and set(cases.classes) <= set(names):  # a memory without classes has none to find
        height, width = classes.shape[1:]
        ours = torch.tensor([names.index(name) for name in cases.classes])  # the memory may list the classes in another order
        report |= class_found(weights[..., :height, :width], ours[classes], model.memory.item_class.cpu(), names)
    return report


def _read_weights(pipeline: Pipeline, images: Tensor, cases: Cases) -> Tensor:
    model: Any = pipeline.model
    source, target = pipeline.domains.index(cases.source), pipeline.domains.index(cases.target)
    with torch.inference_mode():
        padded, _ = pad_to(images.to(pipeline.device, pipeline.dtype), pipeline.model.stride)
        weights: Tensor = model.memory.read(model.content_encoder(padded, source), target)[1]
    return weights.float().cpu()


class Validator:
    """Judges a pipeline on a fixed set of pictures: `Validator(store, run)(pipeline)["objective"]`.

    Args:
        store: where the pictures are.
        run: the direction, the size, the metric and the floor of `content_kept`.
        split: "val" for decisions; the test split is read once, for the table.
        pictures: how many source pictures; None: `run.evaluation.pictures`.

    Raises ValueError for unknown domains and metrics, and for metrics that this store has no truth for.
    """

    metric: str
    mode: Literal["min", "max"]
    about: str

    def __init__(self, store: Store, run: Run, split: str = "val", pictures: int | None = None) -> None:
        count = run.evaluation.pictures if pictures is None else pictures
        self.cases = gather(store, run.direction(), split, run.data.size, count, run.data.short_side)
        self.floor = run.evaluation.content_floor
        self.scores = self._scores(store, run, split)
        self.metric = (
            self.scores.metric if self.scores and run.evaluation.metric in SHORT else self._resolve(run.evaluation.metric)
        )
        chosen = find_metric(self.metric)
        self.mode = "max" if chosen.higher_is_better else "min"
        of_sets = chosen.needs in ("pictures", "features") and self.mode == "min"
        self._penalised = of_sets and (self.cases.truth is None or chosen.needs == "features")
        verb = "maximises" if chosen.higher_is_better else "minimises"
        self.about = f"{verb} {self.metric} ({chosen.about}) on {len(self.cases)} {split} pictures, "
        self.about += f"{self.cases.source} to {self.cases.target}"
        if self._penalised:
            inputs = self.cases.images.float() / 255
            known = judge(inputs, self.cases).values | (self.scores.sets(inputs) if self.scores else {})
            self._untranslated = known[self.metric]
            self.about += f", with a penalty where content_kept is below {self.floor:g}"

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of: both ends of the run's direction."""
        return run.direction()

    def _scores(self, store: Store, run: Run, split: str) -> Quick | None:
        from recollect.evaluation.frechet import Stack  # these are made of what is here
        from recollect.evaluation.quick import Quick, wanted

        if not wanted(run):
            return None
        cases = self.cases
        return Quick(run, store, split, cases, Stack(cases.targets), (cases.target, cases.source))

    def _resolve(self, name: str) -> str:
        if name == "auto":
            return "scene_error" if self.cases.truth else DISTANCE
        if find_metric(name).needs == "truth" and not self.cases.truth:
            usable = [key for key, metric in METRICS.items() if metric.needs in ("pictures", "memory")]
            raise ValueError(f"evaluation.metric {name!r} needs true renders, which this store lacks{did_you_mean('', usable)}")
        return name

    def __call__(self, pipeline: Pipeline) -> dict[str, float]:
        """All metrics that apply, by name, and `objective`, the number to steer by (`mode` says which way is better)."""
        translations = translate_all(pipeline, self.cases)
        values = judge(translations, self.cases).values | examine_memory(pipeline, self.cases)
        values |= self.scores(pipeline, translations) if self.scores else {}
        if self.metric not in values:
            raise ValueError(f"evaluation.metric {self.metric!r} is not measured here{did_you_mean(self.metric, values)}")
        return {**values, "objective": self.objective(values)}

    def objective(self, values: dict[str, float]) -> float:
        """The metric to steer by. Of distances between sets, losing the content costs up to ten times the value or the input's.

        The input's own distance is what makes it hold: a generator that shows real pictures of other places has a distance of
        almost nothing, and ten times that is still nothing.
        """
        value = values[self.metric]
        if not self._penalised or not self.floor:
            return value
        missing = max(0.0, self.floor - values["content_kept"]) / self.floor
        return value + 10 * missing * max(value, self._untranslated)

    def grid(self, pipeline: Pipeline, rows: int = 4, styles: int = 3) -> Tensor:
        """A picture (3, height, width) uint8: a row for each of `rows` pictures, with captions.

        input | translation | `styles` random styles | nearest true render (with truth) | the memory items read (with memory)

        A method without random styles has no columns for them.
        """
        cases = self.cases
        chosen = spread([str(row) for row in range(len(cases))], rows)
        index = torch.tensor([int(row) for row in chosen])
        inputs = to_unit(cases.images[index])
        answer = pipeline(inputs, cases.target, source=cases.source)
        translated = to_uint8(answer.images.cpu())
        columns = {f"{cases.source} (input)": cases.images[index], f"{cases.target} (translated)": translated}
        for style in range(styles if pipeline.random_styles else 0):
            drawn = pipeline(inputs, cases.target, source=cases.source, seeds=[style] * len(index))
            columns[f"random style {style + 1}"] = to_uint8(drawn.images.cpu())
        if cases.truth:
            references = cases.truth.references[index]
            distance = (references.float() - translated[:, None].float()).abs().flatten(2).mean(2)
            columns["nearest true render"] = references[torch.arange(len(index)), distance.argmin(1)]
        if "memory_map" in answer.extras:
            model: Any = pipeline.model
            item_map, side = answer.extras["memory_map"], cases.images.shape[-1]
            kinds = model.memory.item_class.cpu() if has_memory(pipeline) else torch.arange(int(item_map.max()) + 1)
            columns["memory items read"] = colour_items(item_map, kinds, pipeline.model.stride, (side, side))
        return picture_grid(columns)
