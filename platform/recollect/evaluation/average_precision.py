"""COCO's average precision of what detectors found, by torchmetrics, with intervals over pictures.

Intervals come from resampling pictures (places, where the store knows which pictures show the same one). torchmetrics would
match all boxes again for every resample; matching does not depend on the other pictures, so it is done once, by pycocotools
(which torchmetrics uses as well), and only the accumulation over pictures is repeated. With every picture counted once it gives
torchmetrics' own numbers, which a test holds it to.

Legend: n boxes of one picture, K classes of objects, T = 10 thresholds of IoU, D detections of a class, R resamples.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recollect.batch import Detections
from recollect.evaluation.statistics import bounds, draw_pictures

METRIC, METRIC50 = "detection_map", "detection_map50"
RESAMPLES = 1000
AT_ONCE = 1 << 22  # numbers: resamples times detections that are accumulated together
# COCO's thresholds, in double precision as pycocotools has them. torchmetrics' are rounded to float32, which moves a recall of
# exactly 0.55 to another step: on a dozen pictures its AP was 0.002 off COCO's.
OVERLAPS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0.0, 1.0, 101)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Annotated:
    """A whole picture at the scale of the detector, and its boxes in pixels of the stored one."""

    id: str
    place: str  # pictures of one place are resampled together
    image: Tensor  # (3, h, w) uint8
    scale: tuple[float, float]  # stored pixels per pixel of `image`, across and down
    boxes: Tensor  # (n, 4) float32
    labels: Tensor  # (n,) int64


@dataclass(frozen=True)
class Precision:
    """Average precision: `values` by name (`detection_map`, `detection_map/car`, `detection_map50` ...), in [0, 1].

    `resampled` has the same metrics for R resamples of the pictures (nan: the class was not drawn); the same pictures give the
    same resamples, so those of two detectors can be subtracted. Classes without a box in these pictures are left out.
    """

    values: dict[str, float]
    resampled: dict[str, Tensor]

    def bounds(self, metric: str) -> tuple[float, float]:
        """95 % interval over pictures; nan where nothing was resampled."""
        return bounds(self.resampled[metric]) if metric in self.resampled else (float("nan"), float("nan"))


def precision(
    seen: Sequence[tuple[Annotated, Detections]], classes: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Precision:
    """COCO's average precision of what was found in pictures; `classes` with the background first.

    Raises ValueError where no picture has a box.
    """
    values = measure([found for _, found in seen], [(picture.boxes, picture.labels) for picture, _ in seen], classes)
    if not values:
        raise ValueError("none of these pictures has a box of the detector's classes, so there is no precision to speak of")
    if not resamples:
        return Precision(values, {})
    places = {place: index for index, place in enumerate(dict.fromkeys(picture.place for picture, _ in seen))}
    times = draw_pictures(len(places), resamples, seed)[:, [places[picture.place] for picture, _ in seen]]  # (R, pictures)
    return Precision(values, accumulated(seen, classes, times))


def measure(found: Sequence[Detections], truth: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]) -> dict[str, float]:
    """torchmetrics' average precision; empty where there is no box at all.

    Args:
        found: of each picture.
        truth: of each picture the boxes (n, 4) and their labels (n,).
    """
    kind = _metric_class()
    steps = {"iou_thresholds": OVERLAPS.tolist(), "rec_thresholds": RECALLS.tolist()}
    alone = {"sync_on_compute": False}  # rank 0 judges while the others wait for it elsewhere
    metric = kind(iou_type="bbox", extended_summary=True, backend="pycocotools", **steps, **alone)
    metric.warn_on_many_detections = False  # COCO counts the 100 best of a picture, and so do we
    predictions = [{"boxes": own.boxes, "scores": own.scores, "labels": own.labels} for own in found]
    metric.update(predictions, [{"boxes": boxes, "labels": labels} for boxes, labels in truth])
    with contextlib.redirect_stdout(io.StringIO()):
        result = metric.compute()
    at = result["precision"][:, :, :, 0, -1].double()  # (T, recalls, K): all areas, 100 detections; -1: the class has no box
    here = result["classes"].reshape(-1).tolist()
    by_class = {classes[k]: at[:, :, row].mean(1) for row, k in enumerate(here) if float(at[0, 0, row]) >= 0}
    if not by_class:
        return {}
    ordered = {name: by_class[name] for name in classes if name in by_class}
    return {
        METRIC: float(result["map"]),
        **{f"{METRIC}/{name}": float(own.mean()) for name, own in ordered.items()},
        METRIC50: float(result["map_50"]),
        **{f"{METRIC50}/{name}": float(own[0]) for name, own in ordered.items()},
    }


def _metric_class() -> Any:
    missing = [name for name in ("torchmetrics", "pycocotools") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"judging a detector needs {' and '.join(missing)}: pip install 'recollect[evaluate]'")
    from torchmetrics.detection import MeanAveragePrecision

    return MeanAveragePrecision


def accumulated(seen: Sequence[tuple[Annotated, Detections]], classes: Sequence[str], times: Tensor) -> dict[str, Tensor]:
    """The metrics of `measure`, each (R,), with picture i counted `times[r, i]` times."""
    by_class = {name: torch.from_numpy(own.precision(times.numpy())) for name, own in _matched(seen, classes).items()}
    found: dict[str, Tensor] = {}
    for metric, levels in ((METRIC, slice(None)), (METRIC50, slice(0, 1))):
        own = {f"{metric}/{name}": values[levels].mean(0) for name, values in by_class.items()}
        found |= {metric: torch.stack(list(own.values())).nanmean(0), **own}
    return found


@dataclass(frozen=True)
class _Matches:
    """The detections of one class, best first: whether each is right (T, D), in which picture (D,), boxes by picture."""

    right: NDArray[np.bool_]
    picture: NDArray[np.int64]
    boxes: Floats

    def precision(self, times: Floats) -> Floats:
        """Average precision (T, R) by COCO's 101 recalls; nan where no box of the class is drawn."""
        rows = max(AT_ONCE // max(len(self.picture), 1), 1)
        parts = [self._precision(times[start : start + rows]) for start in range(0, len(times), rows)]
        return np.concatenate(parts, axis=1)

    def _precision(self, times: Floats) -> Floats:
        weight, total = times[:, self.picture], times @ self.boxes  # (R, D), (R,)
        every = np.cumsum(weight, axis=1) + np.spacing(1)
        result = np.full((len(self.right), len(times)), np.nan)
        for level, right in enumerate(self.right):
            hits = np.cumsum(weight * right, axis=1)
            best = np.maximum.accumulate((hits / every)[:, ::-1], axis=1)[:, ::-1]  # at this recall or any higher one
            for row in np.flatnonzero(total):
                place = np.searchsorted(hits[row] / total[row], RECALLS, side="left")
                result[level, row] = best[row, place[place < best.shape[1]]].sum() / len(RECALLS)
        return result


def _matched(seen: Sequence[tuple[Annotated, Detections]], classes: Sequence[str]) -> dict[str, _Matches]:
    """What pycocotools matches, for each class that some picture has a box of."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        job = COCOeval(_coco(seen, classes, truth=True), _coco(seen, classes, truth=False), "bbox")
        job.evaluate()
    count, areas = len(seen), len(job.params.areaRng)
    matches = {}
    for place, kind in enumerate(job.params.catIds):
        own = job.evalImgs[place * areas * count : place * areas * count + count]  # the first area is all of them
        boxes = np.array([0 if image is None else len(image["gtIds"]) for image in own], dtype=np.float64)
        if not boxes.sum():
            continue
        present = [(index, image) for index, image in enumerate(own) if image is not None]
        scores = np.concatenate([np.asarray(image["dtScores"], dtype=np.float64) for _, image in present])
        order = np.argsort(-scores, kind="mergesort")
        right = np.concatenate([np.asarray(image["dtMatches"]) > 0 for _, image in present], axis=1)
        picture = np.repeat([index for index, _ in present], [len(image["dtScores"]) for _, image in present])
        matches[classes[kind]] = _Matches(right[:, order], picture[order].astype(np.int64), boxes)
    return matches


def _coco(seen: Sequence[tuple[Annotated, Detections]], classes: Sequence[str], truth: bool) -> Any:
    """Truth or detections in COCO form, as pycocotools reads it from memory."""
    from pycocotools.coco import COCO

    rows: list[dict[str, Any]] = []
    for number, (picture, found) in enumerate(seen, start=1):
        boxes, labels = (picture.boxes, picture.labels) if truth else (found.boxes, found.labels)
        scores = [1.0] * len(boxes) if truth else found.scores.tolist()
        for (x1, y1, x2, y2), label, score in zip(boxes.tolist(), labels.tolist(), scores, strict=True):
            size = (x2 - x1, y2 - y1)
            box = {"bbox": [x1, y1, *size], "area": size[0] * size[1], "iscrowd": 0, "score": score}
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label, **box})
    made = COCO()
    categories = [{"id": index, "name": name} for index, name in enumerate(classes) if index]
    made.dataset = {
        "images": [{"id": number} for number in range(1, len(seen) + 1)],
        "annotations": rows,
        "categories": categories,
    }
    made.createIndex()
    return made
