"""Judging a detector: COCO's average precision by torchmetrics, on a fixed set of pictures with boxes.

Whole pictures are judged, not squares cut from them: they are brought to the short side that the run trained at, and what is
found is brought back to their own pixels. Pictures that nobody annotated are left out; annotated ones without objects count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Literal, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes

from recollect.batch import Detections, Domains
from recollect.bundle import Bundle, open_bundle
from recollect.config import Run, did_you_mean
from recollect.data.schema import SPLITS, Record
from recollect.data.store import Store
from recollect.data.transforms import decode, to_unit
from recollect.evaluation.average_precision import METRIC, METRIC50, Annotated, Precision, precision
from recollect.evaluation.evaluate import COLUMNS, config_of, cut_of, steps_of
from recollect.evaluation.grids import item_colours, picture_grid
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.validate import one_per_scene, spread

BATCH = 8  # pictures detected at once


class BoxDetector(Protocol):
    """What is judged here: a module (`trainables.detector:Detector`) that answers pictures (B, 3, H, W) with boxes."""

    domains: Domains

    def detect(self, images: Tensor) -> tuple[Detections, ...]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


def annotated(
    store: Store, split: str, domains: Sequence[str], short_side: int, classes: Sequence[str], pictures: int | None = None
) -> Iterator[Annotated]:
    """The annotated pictures of a split, domain by domain; `pictures` in all at even distances (None: all of them).

    Boxes of classes that are not among `classes` are left out. A choice takes one picture of each place, as translators are
    judged. Raises ValueError where a domain has no picture in the split, or nobody annotated any.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}")
    if not store.manifest.annotated:
        raise ValueError(f"{store.uri} has no boxes to judge a detector by")
    ids: list[str] = []
    for domain in domains:
        own = store.ids(split, domain)
        if not own:
            raise ValueError(f"{store.uri} has no {split} picture of {domain!r}; it has {store.manifest.counts.get(split, {})}")
        count = None if pictures is None else max(pictures // len(domains), 1)
        ids += own if count is None else spread(one_per_scene(store, split, domain), count)
    records = (store.record(id) for id in ids)
    return (_annotated(record, short_side, classes) for record in records if record.boxes is not None)


def _annotated(record: Record, short_side: int, classes: Sequence[str]) -> Annotated:
    picture = decode(record.image)
    height, width = picture.shape[-2:]
    shrunk = F.resize(picture, list(scaled(height, width, short_side)), antialias=True).as_subclass(Tensor)
    own = [box for box in record.boxes or () if box.label in classes]
    corners = torch.tensor([[box.x1, box.y1, box.x2, box.y2] for box in own], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([classes.index(box.label) for box in own], dtype=torch.int64)
    scale = (width / shrunk.shape[-1], height / shrunk.shape[-2])
    return Annotated(record.id, record.scene or record.id, shrunk, scale, corners, labels)


def scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with that short side, as pictures are resized before they are cut.

    >>> scaled(375, 1242, 360)
    (360, 1192)
    """
    factor = short_side / min(height, width)
    return max(short_side, round(height * factor)), max(short_side, round(width * factor))


def detect(model: BoxDetector, pictures: Iterable[Annotated]) -> Iterator[tuple[Annotated, Detections]]:
    """Each picture with what the detector (in evaluation mode) sees in it, boxes in stored pixels, on the CPU."""
    like = next(model.parameters())
    for _, group in groupby(pictures, key=lambda picture: picture.image.shape):
        while batch := list(islice(group, BATCH)):
            images = to_unit(torch.stack([picture.image for picture in batch])).to(like.device, like.dtype)
            for picture, found in zip(batch, model.detect(images), strict=True):
                boxes = found.boxes.float().cpu() * torch.tensor([*picture.scale, *picture.scale])
                yield picture, Detections(boxes, found.scores.float().cpu(), found.labels.cpu())


class DetectionJudge:
    """Judges a detector on validation pictures while it trains: `DetectionJudge(store, run)(model)["objective"]`.

    Args:
        store: where the pictures are.
        run: its domains (or `evaluation.target` alone), its scale, its metric and how many pictures.

    Raises ValueError for metrics that are none of a detector's, and where the pictures have no boxes.
    """

    mode: Literal["max"] = "max"

    def __init__(self, store: Store, run: Run, split: str = "val") -> None:
        classes = store.domains.classes
        chosen = annotated(store, split, self.domains(run), short_side(run), classes, run.evaluation.pictures)
        self.pictures, self.classes = tuple(chosen), classes
        self.metric = METRIC if run.evaluation.metric == "auto" else run.evaluation.metric
        if self.metric not in (METRIC, METRIC50):
            raise ValueError(f"a detector is not judged by {self.metric!r}{did_you_mean(self.metric, (METRIC, METRIC50))}")
        if not any(len(picture.boxes) for picture in self.pictures):
            raise ValueError(f"none of the {len(self.pictures)} {split} pictures of {', '.join(self.domains(run))} has a box")
        self.about = f"maximises {self.metric} ({find_metric(self.metric).about}) on {len(self.pictures)} {split} pictures"

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of."""
        return (run.evaluation.target,) if run.evaluation.target else run.data.domains

    def __call__(self, model: BoxDetector) -> dict[str, float]:
        """Average precision by name, and `objective`, the one to steer by."""
        values = precision(list(detect(model, self.pictures)), self.classes, resamples=0).values
        return {**values, "objective": values[self.metric]}

    def grid(self, model: BoxDetector, rows: int = 4) -> Tensor:
        """A picture (3, height, width) uint8: true boxes | detections of at least one half, a colour for each class."""
        shape = self.pictures[0].image.shape
        alike = [picture for picture in self.pictures if picture.image.shape == shape]
        chosen = [alike[int(index)] for index in spread([str(index) for index in range(len(alike))], rows)]
        columns: dict[str, list[Tensor]] = {"true boxes": [], "found (score of 0.5 and more)": []}
        for picture, found in detect(model, chosen):
            sure = found.scores >= 0.5
            pairs = ((picture.boxes, picture.labels), (found.boxes[sure], found.labels[sure]))
            for column, (boxes, labels) in zip(columns.values(), pairs, strict=True):
                column.append(self._drawn(picture, boxes, labels))
        return picture_grid({caption: torch.stack(column) for caption, column in columns.items()})

    def _drawn(self, picture: Annotated, boxes: Tensor, labels: Tensor) -> Tensor:
        if not len(boxes):
            return picture.image
        palette = item_colours(range(len(self.classes)))
        own = boxes / torch.tensor([*picture.scale, *picture.scale])
        drawn: Tensor = draw_bounding_boxes(picture.image, own, colors=[palette[label] for label in labels.tolist()])
        return drawn


def short_side(run: Run) -> int:
    """The scale that a run's pictures are brought to: pixels of the short side."""
    return run.data.short_side or run.data.size


def evaluate_detector(
    bundle: str | os.PathLike[str] | Bundle,
    store: str | os.PathLike[str] | Store,
    split: str = "test",
    domains: Sequence[str] | None = None,
    pictures: int | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """A detector's bundle on a split of a store, one row a metric (see `evaluate.COLUMNS`), with intervals over pictures.

    `source` is what it was trained on, `target` what it was tested on.

    Args:
        domains: of the store; None: those that it was trained on.
        pictures: at most so many, one of each place; None: all of the split.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    opened_store = store if isinstance(store, Store) else Store.open(store)
    tested = tuple(domains or opened.run.data.domains)
    result, count = judge_bundle(opened, opened_store, split, tested, pictures, device)
    facts = {
        "name": opened.run.name,
        "kind": "method",
        "method": opened.run.model.name,
        "about": f"{steps_of(opened)} steps",
        "seed": opened.run.seed,
        "config": config_of(opened),
        "source": "+".join(opened.run.data.domains),
        "target": "+".join(tested),
        "split": split,
        "pictures": count,
        "cut": cut_of(opened.run.data),
        "bundle": opened.digest,
        "index": "",
        "data": opened_store.digest,
        "features": "",
    }
    rows = []
    for metric, value in result.values.items():
        low, high = result.bounds(metric)
        rows.append({**facts, "metric": metric, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=COLUMNS)


def judge_bundle(
    bundle: Bundle, store: Store, split: str, domains: Sequence[str], pictures: int | None = None, device: str = "cpu"
) -> tuple[Precision, int]:
    """The precision of a detector's best weights on a split, and on how many pictures it was measured."""
    model: Any = bundle.build().to(device)
    if not hasattr(model, "detect"):
        raise ValueError(f"{bundle.path} holds {bundle.run.model.name!r}, which finds no boxes")
    classes = bundle.domains.classes
    seen = [
        (without_pixels(picture), found)
        for picture, found in detect(model, annotated(store, split, domains, short_side(bundle.run), classes, pictures))
    ]
    return precision(seen, classes), len(seen)


def without_pixels(picture: Annotated) -> Annotated:
    """The picture without its pixels, which are not needed any more (a split can be larger than the memory)."""
    empty = tv_tensors.Image(torch.empty(3, 0, 0, dtype=torch.uint8))
    return Annotated(picture.id, picture.place, empty, picture.scale, picture.boxes, picture.labels)
