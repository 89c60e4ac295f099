"""Does the memory matter? What a translation loses when its values are shuffled or its addressing is left to itself.

A generator can learn to ignore what it is given. So: exchange the values of classes and look how much worse each class
becomes; tell the reading the true classes and look how much better it becomes; change one class's values and look where the
picture changes. All are relative, on the deterministic translation, and need true renders.

Legend: B pictures, S pixels a side, R regions, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recollect.batch import Guide
from recollect.data.schema import BACKGROUND
from recollect.data.transforms import to_unit
from recollect.evaluation.metrics import RegionErrors, region_errors
from recollect.evaluation.validate import BATCH, Cases
from recollect.pipeline import Pipeline
from recollect.trainable import ClassWise


def memory_use(pipeline: Pipeline, cases: Cases, seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, float]:
    """What the memory is worth for a translator that reads one by class; empty for others, and for pictures without truth.

    - `memory_use/shuffled/<class>`: by how much (0.3 is 30 %) the error of a class's regions rises when classes exchange their
      stored values, mean over all rounds of exchange in which every class gets another's; `memory_use/shuffled`: their mean.
    - `memory_use/class_free`: by how much the macro error is higher without the true classes than with them.
    - `memory_use/found`: share of the cells in boxes whose most read item is of the box's class, without being told it.
    - `memory_use/local/<class>`: pixels' mean change inside the class's regions, as a multiple of the change elsewhere, when
      that class's values alone are drawn anew (mean over `seeds`).
    """
    model = pipeline.model
    classes = cases.class_map(model.stride) if cases.images.shape[-1] % model.stride == 0 else None
    if not isinstance(model, ClassWise) or cases.truth is None or classes is None or len(model.style_classes()) < 2:
        return {}
    names = tuple(model.style_classes())
    target = pipeline.domains.index(cases.target)
    ours = torch.tensor([names.index(name) for name in cases.classes])[classes]
    inside = {name: _regions_of(name, cases) for name in names}
    plain = _translate(pipeline, cases, Guide())
    by_region = _errors(plain, cases)
    report: dict[str, float] = {}

    stored = model.stored_values(target)
    present = [name for name in names if by_region.pixels[:, inside[name]].sum() > 0]
    rises: dict[str, list[float]] = {name: [] for name in present}
    for shift in range(1, len(names)):
        values = {name: _fill(stored[names[(k + shift) % len(names)]], len(stored[name])) for k, name in enumerate(names)}
        shuffled = _errors(_translate(pipeline, cases, Guide(values=values)), cases)
        for name in present:
            rises[name].append(_mean_error(shuffled, inside[name]) / _mean_error(by_region, inside[name]) - 1)
    for name, rise in rises.items():
        report[f"memory_use/shuffled/{name}"] = sum(rise) / len(rise)
    report["memory_use/shuffled"] = sum(report.values()) / len(present)

    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(list(model.style_classes().values())))
    in_boxes = ours != names.index(BACKGROUND)
    if in_boxes.any():
        report["memory_use/found"] = float((owner[_most_read(pipeline, cases)] == ours)[in_boxes].float().mean())

    told = _errors(_translate(pipeline, cases, Guide(classes=ours)), cases)
    everything = [r for r in range(len(cases.regions)) if by_region.pixels[:, r].sum() > 0]
    report["memory_use/class_free"] = _mean_error(by_region, everything) / _mean_error(told, everything) - 1

    for name in present:
        mask = torch.isin(cases.truth.regions, torch.tensor(inside[name], dtype=cases.truth.regions.dtype))[:, None]
        near, far = [], []
        for seed in seeds:
            drawn = model.random_values(target, torch.Generator().manual_seed(seed))
            change = (_translate(pipeline, cases, Guide(values={name: drawn[name]})) - plain).abs().mean(1, keepdim=True)
            near.append(float(change[mask].mean()))
            far.append(float(change[~mask].mean()))
        report[f"memory_use/local/{name}"] = sum(near) / max(sum(far), 1e-12)
    return report


def _regions_of(name: str, cases: Cases) -> list[int]:
    """The region of a class's name, none if there is no such; for the background all that no class is named for."""
    if name == BACKGROUND:
        return [index for index, region in enumerate(cases.regions) if region not in cases.classes]
    return [index for index, region in enumerate(cases.regions) if region == name]


def _fill(values: Tensor, count: int) -> Tensor:
    """The rows of values repeated, or cut, to `count`."""
    return values.repeat(-(-count // len(values)), 1)[:count]


def _translate(pipeline: Pipeline, cases: Cases, guide: Guide) -> Tensor:
    """Translations (B, 3, S, S) in [0, 1] with one guide for all, whose class maps are cut with the batch."""
    rows = []
    for start in range(0, len(cases), BATCH):
        part = slice(start, start + BATCH)
        own = guide if guide.classes is None else replace(guide, classes=guide.classes[part])
        rows.append(pipeline(to_unit(cases.images[part]), cases.target, cases.source, own).images.float().cpu())
    return (torch.cat(rows) + 1) / 2


def _most_read(pipeline: Pipeline, cases: Cases) -> Tensor:
    """The item (B, h, w) that each cell reads most."""
    batches = [cases.images[start : start + BATCH] for start in range(0, len(cases), BATCH)]
    return torch.cat([pipeline(to_unit(b), cases.target, cases.source).extras["memory_map"].cpu() for b in batches])


def _errors(translations: Tensor, cases: Cases) -> RegionErrors:
    assert cases.truth is not None
    parts = [
        region_errors(
            translations[start : start + BATCH],
            cases.truth.references[start : start + BATCH].float() / 255,
            cases.truth.regions[start : start + BATCH],
            len(cases.regions),
        )
        for start in range(0, len(cases), BATCH)
    ]
    return RegionErrors(torch.cat([part.error for part in parts]), torch.cat([part.pixels for part in parts]))


def _mean_error(errors: RegionErrors, regions: list[int]) -> float:
    """The plain mean over regions of their errors, each weighted by pixels over the pictures."""
    error, pixels = errors.error[:, regions], errors.pixels[:, regions]
    return float(((error * pixels).sum(0) / pixels.sum(0).clamp_min(1)).mean())
