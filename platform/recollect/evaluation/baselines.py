"""What stands beside a method in the table: doing nothing, a constant, colour maps, and another true render as the ceiling.

Colour maps are fitted on pairs, which no unpaired method ever sees; they show how much of the task is a matter of colours
alone. They are fitted on a split (or half of one) that is not judged.

Legend: B pictures, S pixels a side, P pixels, K true renders of a picture, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from recollect.evaluation.metrics import region_errors
from recollect.evaluation.validate import BATCH, Cases, Judgement, Truth, judge

RIDGE = 1e-6  # a region of one flat colour has a singular system; so small a ridge changes no other


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, whether it is a bound below or above the methods, what it had, and its judgement."""

    name: str
    kind: Literal["baseline", "ceiling"]
    about: str
    judgement: Judgement


@dataclass(frozen=True)
class Drawn:
    """A row's pictures (B, 3, S, S) in [0, 1], one of each case, before they are judged, and what they are to be judged by."""

    name: str
    kind: Literal["baseline", "ceiling"]
    about: str
    pictures: Tensor
    cases: Cases


def rows(cases: Cases, fitting: Cases | None) -> list[Row]:
    """All baselines that apply to these cases; those that are fitted need `fitting` cases with truth, of other scenes."""
    return [Row(own.name, own.kind, own.about, judge(own.pictures, own.cases)) for own in drawn(cases, fitting)]


def drawn(cases: Cases, fitting: Cases | None) -> list[Drawn]:
    """What `rows` judges."""
    inputs = cases.images.float() / 255
    found = [
        Drawn("the input itself", "baseline", "nothing is translated", inputs, cases),
        Drawn("black", "baseline", "a black picture", torch.zeros_like(inputs), cases),
    ]
    if cases.truth is None:
        return found
    if fitting is not None and fitting.truth is not None:
        assert not set(fitting.ids) & set(cases.ids), "baselines are fitted on other pictures"
        colour = best_constant(fitting).view(1, 3, 1, 1).expand_as(inputs)
        maps = fit_colour_maps(fitting)
        had = f"had the truth of {len(fitting)} other pictures in hand"
        found += [
            Drawn("best constant colour", "baseline", had, colour, cases),
            Drawn("best colour map", "baseline", had, apply_maps(inputs, maps[:1]), cases),
            Drawn("best colour map per region", "baseline", f"{had}, and is told the regions",
                  apply_maps(inputs, maps[1:], cases.truth.regions), cases),
        ]  # fmt: skip
    if cases.truth.references.shape[1] > 1:
        found.append(Drawn("another true render", "ceiling", "one true render, judged by the others", *leave_one_out(cases)))
    return found


def exchanged(cases: Cases, fitting: Cases) -> Row:
    """One colour map a class, fitted with the truth in hand, and by how much errors rise when classes exchange their maps.

    It bounds what an exchange of styles can show (`memory_use/shuffled`): where the colours of a class are any (cars by day),
    those of another class are hardly worse, however well a method uses its memory.
    """
    assert cases.truth is not None
    owner = torch.tensor([cases.classes.index(region) if region in cases.classes else 0 for region in cases.regions])
    names, inputs, own = cases.classes, cases.images.float() / 255, owner[cases.truth.regions.long()]
    maps = fit_colour_maps(_by_class(fitting, owner))[1:]
    plain = judge(apply_maps(inputs, maps, own), cases)
    values, rises = dict(plain.values), {name: list[float]() for name in names}
    for shift in range(1, len(names)):
        order = [(k + shift) % len(names) for k in range(len(names))]
        worse = judge(apply_maps(inputs, maps[order], own), cases)
        for k, name in enumerate(names):
            regions = [region for region, belongs in zip(cases.regions, owner.tolist(), strict=True) if belongs == k]
            before, after = (sum(j.values.get(f"scene_error/{region}", 0.0) for region in regions) for j in (plain, worse))
            if before:
                rises[name].append(after / before - 1)
    found = {f"memory_use/shuffled/{name}": sum(rise) / len(rise) for name, rise in rises.items() if rise}
    found["memory_use/shuffled"] = sum(found.values()) / max(len(found), 1)
    about = f"had the truth of {len(fitting)} other pictures in hand, and is told the classes"
    return Row("best colour map per class", "baseline", about, Judgement(values | found, plain.by_picture))


def _by_class(cases: Cases, owner: Tensor) -> Cases:
    """The cases with a region for each class; `owner` (R,) says which class a region belongs to."""
    assert cases.truth is not None
    merged = owner[cases.truth.regions.long()].to(cases.truth.regions.dtype)
    return replace(cases, truth=replace(cases.truth, regions=merged), regions=cases.classes)


def leave_one_out(cases: Cases) -> tuple[Tensor, Cases]:
    """One true render of each picture (they take turns), and the cases without it."""
    assert cases.truth is not None
    references, modes, regions = cases.truth.references, cases.truth.modes, cases.truth.regions
    count = references.shape[1]
    left_out = torch.arange(len(cases)) % count
    others = torch.stack([torch.tensor([k for k in range(count) if k != out]) for out in left_out.tolist()])  # (B, K - 1)
    pictures = torch.arange(len(cases))
    rest = Truth(references[pictures[:, None], others], modes.gather(1, others), regions)
    return references[pictures, left_out].float() / 255, replace(cases, truth=rest)


def best_constant(cases: Cases) -> Tensor:
    """The one colour (3,) in [0, 1] with the lowest scene_error on these cases, to the grey level.

    Every level of every channel has its cost tabulated for each picture, render and region, so the descent by channel looks
    at all 256 levels; it starts from 27 colours, because the nearest render makes the error non-convex.
    """
    costs, weights = _level_costs(cases)  # (B, K, R, 3, 256), (B, R)

    def error(parts: Tensor) -> Tensor:
        return (parts.amin(1) * weights[..., None]).sum((0, 1))  # over (B, K, R, levels) -> (levels,)

    best, best_error = torch.zeros(3, dtype=torch.long), float("inf")
    for start in product((0, 96, 192), repeat=3):
        colour, now, before = list(start), float("inf"), None
        while now != before:
            before = now
            for channel in range(3):
                others = [costs[..., c, colour[c], None] for c in range(3) if c != channel]
                levels = error(costs[..., channel, :] + others[0] + others[1])
                colour[channel] = int(levels.argmin())
                now = float(levels.min())
        if now < best_error:
            best, best_error = torch.tensor(colour), now
    return best.float() / 255


def _level_costs(cases: Cases) -> tuple[Tensor, Tensor]:
    """Mean |level - render| / 3 for each picture, render, region, channel and level; and each picture's share in a region."""
    assert cases.truth is not None
    references, regions = cases.truth.references.flatten(3).long(), cases.truth.regions.flatten(1).long()  # (B, K, 3, P), (B, P)
    (batch, renders, _, _), count = references.shape, len(cases.regions)
    cell = regions[:, None, None] + count * torch.arange(batch)[:, None, None, None]  # which picture and region a pixel is in
    cell = (cell * renders + torch.arange(renders)[:, None, None]) * 3 + torch.arange(3)[:, None]
    histogram = torch.bincount((cell * 256 + references).flatten(), minlength=batch * count * renders * 3 * 256).double()
    histogram = histogram.reshape(batch, count, renders, 3, 256).transpose(1, 2)  # (B, K, R, 3, 256)
    levels = torch.arange(256, dtype=torch.double)
    size = histogram[:, 0, :, 0].sum(-1)  # (B, R)
    costs = histogram @ (levels[:, None] - levels).abs() / (3 * 255) / size[:, None, :, None, None].clamp_min(1)
    present = (size.sum(0) > 0).sum()
    return costs, size / size.sum(0).clamp_min(1) / present


def fit_colour_maps(cases: Cases) -> Tensor:
    """Affine maps from RGB to RGB by least squares on these cases: (1 + R, 4, 3), the global one first, then one a region.

    In the global fit every region counts alike, as it does in scene_error. A map is fitted to the k-th true renders for every
    k, and to their mean; the one with the lowest error on these cases is kept, for each region by itself.
    A region that these cases do not show has the global map.
    """
    assert cases.truth is not None
    left, right, pixels = _normal_equations(cases)  # (R, 4, 4), (K + 1, R, 4, 3), (R,)
    seen = pixels > 0
    share = 1 / pixels.clamp_min(1)
    wide = _solve((left * share[:, None, None]).sum(0), (right * share[:, None, None]).sum(1))  # (K + 1, 4, 3)
    narrow = _solve(left / pixels.clamp_min(1)[:, None, None], right / pixels.clamp_min(1)[:, None, None])  # (K + 1, R, 4, 3)
    best_global = torch.stack([_errors(cases, wide[k : k + 1], False)[seen].mean() for k in range(len(wide))]).argmin()
    by_region = torch.stack([_errors(cases, narrow[k], True) for k in range(len(narrow))]).argmin(0)  # (R,)
    chosen = narrow[by_region, torch.arange(len(seen))]
    chosen = torch.where(seen[:, None, None], chosen, wide[best_global])
    return torch.cat([wide[best_global][None], chosen]).float()


def apply_maps(images: Tensor, maps: Tensor, regions: Tensor | None = None) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] under the only one of `maps` (1, 4, 3), or each pixel under its region's of (R, 4, 3)."""
    if regions is None:
        mapped = torch.einsum("bchw,cd->bdhw", images, maps[0, :3]) + maps[0, 3].view(1, 3, 1, 1)
        return mapped.clamp(0, 1)
    by_pixel = maps[regions.long()]  # (B, S, S, 4, 3)
    mapped = torch.einsum("bchw,bhwcd->bdhw", images, by_pixel[..., :3, :]) + by_pixel[..., 3, :].movedim(-1, 1)
    return mapped.clamp(0, 1)


def _normal_equations(cases: Cases) -> tuple[Tensor, Tensor, Tensor]:
    """By region X'X (R, 4, 4) and pixels (R,); by render and region X'Y (K + 1, R, 4, 3), the last for the mean render."""
    assert cases.truth is not None
    count, renders = len(cases.regions), cases.truth.references.shape[1]
    left, pixels = torch.zeros(count, 4, 4, dtype=torch.double), torch.zeros(count, dtype=torch.double)
    right = torch.zeros(renders + 1, count, 4, 3, dtype=torch.double)
    for image, truth, regions in zip(cases.images, cases.truth.references, cases.truth.regions, strict=True):
        colours = image.flatten(1).T.double() / 255
        x = torch.cat([colours, torch.ones(len(colours), 1, dtype=torch.double)], dim=1)  # (P, 4)
        y = truth.flatten(2).mT.double() / 255  # (K, P, 3)
        y = torch.cat([y, y.mean(0, keepdim=True)])
        for region in regions.unique().tolist():
            inside = regions.flatten() == region
            left[region] += x[inside].T @ x[inside]
            right[:, region] += x[inside].T @ y[:, inside]
            pixels[region] += inside.sum()
    return left, right, pixels


def _solve(left: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(left + RIDGE * torch.eye(4, dtype=left.dtype), right)
    return solution


def _errors(cases: Cases, maps: Tensor, by_region: bool) -> Tensor:
    """The pixel-weighted error (R,) of each region under these maps."""
    assert cases.truth is not None
    total = torch.zeros(2, len(cases.regions), dtype=torch.double)
    for start in range(0, len(cases), BATCH):
        part = slice(start, start + BATCH)
        regions = cases.truth.regions[part]
        mapped = apply_maps(cases.images[part].float() / 255, maps.float(), regions if by_region else None)
        errors = region_errors(mapped, cases.truth.references[part].float() / 255, regions, len(cases.regions))
        total += torch.stack([(errors.error * errors.pixels).sum(0), errors.pixels.sum(0)])
    return total[0] / total[1].clamp_min(1)
