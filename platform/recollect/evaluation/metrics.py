"""What a translation is worth, in numbers: pure functions, and the registry of their names.

Legend: B pictures, H x W pixels, K true renders of a picture, R regions, N memory items, h x w cells of the feature grid.
Pictures are floats in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.config import did_you_mean


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name, which way is up, its unit, what it needs to be computed, and what it says.

    `parts` is what `name/<part>` stands for (a region, an attribute) where a table shows the parts as well; empty: it does not.
    `cost` is what it takes, on one CPU core where it is a time.
    `protocols`: what is measured goes by `name_<protocol>@<features>`, because the number depends on both.
    """

    name: str
    higher_is_better: bool
    unit: str
    needs: Literal["truth", "pictures", "memory", "boxes", "attributes", "embeddings", "classifier", "features"]
    about: str
    parts: str = ""
    protocols: bool = False
    cost: str = "a translation a picture"

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.higher_is_better else "↓"


_LISTED = (
    Metric(
        "scene_error",
        False,
        "of [0, 1]",
        "truth",
        "mean difference to the nearest true render, region by region",
        parts="region",
    ),
    Metric("modes_hit", True, "share", "truth", "share of the true modes that are nearest to at least one translation"),
    Metric("mode_entropy", True, "of [0, 1]", "truth", "how evenly the translations spread over the true modes"),
    Metric("content_kept", True, "of [0, 1]", "pictures", "how much of the input's structure is still where it was"),
    Metric(
        "feature_distance@pyramid",
        False,
        "MMD²",
        "pictures",
        "distance of the set of translations to pictures of the target",
    ),
    Metric("effective_items", False, "items", "memory", "how many memory items a cell's read averages", cost="a read a picture"),
    Metric(
        "class_found",
        True,
        "share",
        "memory",
        "cells that read an item of their own class without being told it",
    ),
    Metric(
        "memory/cosine", False, "cosine", "memory", "mean similarity of a class's different keys; 1: collapsed", cost="nothing"
    ),
    Metric("memory/dead", False, "items", "memory", "items of a class that are hardly ever written", cost="nothing"),
    Metric(
        "memory_use/found",
        True,
        "share",
        "memory",
        "cells in boxes whose most read item is of the box's class",
        cost="a read a picture",
    ),
    Metric(
        "memory_use/shuffled",
        True,
        "of the error",
        "memory",
        "rise of a class's error when classes exchange their values",
        cost="a translation a picture and class",
    ),
    Metric(
        "memory_use/class_free",
        False,
        "of the error",
        "memory",
        "rise of the error when it is read without the classes",
        cost="two translations a picture",
    ),
    Metric(
        "memory_use/local",
        True,
        "ratio",
        "memory",
        "change inside a class, when its values change, to that elsewhere",
        cost="two translations a picture and class",
    ),
    Metric(
        "detection_map",
        True,
        "AP",
        "boxes",
        "COCO average precision over IoU .50 to .95, mean over classes",
        cost="training a detector; then a detection a picture",
    ),
    Metric(
        "detection_map50",
        True,
        "AP",
        "boxes",
        "average precision at IoU .50, mean over classes",
        cost="measured with `detection_map`",
    ),
)
_OF_ATTRIBUTES = (  # of translators into attributes, by the attribute that was to change
    Metric(
        "counterpart_error",
        False,
        "of [0, 1]",
        "truth",
        "mean difference to the exact counterpart with the attributes wanted",
        parts="attribute",
    ),
    Metric("identity_error", False, "of [0, 1]", "truth", "the same where input and counterpart agree", parts="attribute"),
    Metric("change_error", False, "of [0, 1]", "truth", "the same where input and counterpart differ", parts="attribute"),
    Metric(
        "attribute_accuracy",
        True,
        "share",
        "attributes",
        "translations whose nearest true picture has the attribute as wanted",
        parts="attribute",
    ),
    Metric(
        "attributes_kept",
        True,
        "share",
        "attributes",
        "of the other attributes, those that this nearest picture has as they were",
        parts="attribute",
    ),
)
_OF_INPUTS = tuple(
    replace(metric, name=f"{metric.name}@input", about=f"{metric.about}, of the input: doing nothing", cost="nothing")
    for metric in (*_LISTED, *_OF_ATTRIBUTES)
    if metric.name in ("content_kept", "feature_distance@pyramid") or metric in _OF_ATTRIBUTES
)
_OF_CLASSIFIERS = (
    Metric("accuracy", True, "share", "classifier", "of a classifier's answers, those that are right", parts="attribute"),
    Metric("majority", True, "share", "classifier", "what always the more frequent answer would score", parts="attribute"),
    Metric(
        "accuracy@classifier",
        True,
        "share",
        "classifier",
        "of the attributes asked for, those that a classifier sees",
        parts="attribute",
    ),
    Metric(
        "fid@classifier",
        False,
        "squared distance",
        "classifier",
        "Fréchet distance to real pictures, in a classifier's features",
        parts="attribute",
    ),
)
_OF_FEATURES = (
    Metric(
        "darkening",
        True,
        "share",
        "features",
        "how far darkened pictures of another domain are from the target, of how far these are as they are",
        parts="pair of domains",
    ),
    Metric("domain_found", True, "share", "features", "of true pictures, those whose domain is named rightly"),
    Metric("fid@features", False, "squared distance", "features", "Fréchet distance to real pictures, in own features"),
    Metric("kid@features", False, "MMD²", "features", "kernel distance to real pictures, in own features, unbiased"),
)
_OF_RETRIEVERS = (
    Metric("p_at_10", True, "share", "embeddings", "of the ten nearest, those that agree with what was asked", parts="attribute"),
    Metric("p_at_10/attributes", True, "share", "embeddings", "mean of P@10 over the style attributes"),
    Metric("p_at_10/content", True, "share", "embeddings", "mean of P@10 over the content attributes"),
    Metric("p_at_10/average", True, "share", "embeddings", "mean of P@10 of attributes and of content"),
    Metric("chance", True, "share", "embeddings", "what ten drawn at random score in expectation"),
    Metric("lift", True, "of [0, 1]", "embeddings", "how much of the way from chance to 1 P@10 makes", parts="attribute"),
    Metric("lift/attributes", True, "of [0, 1]", "embeddings", "lift over chance of the mean P@10 of style attributes"),
    Metric("lift/content", True, "of [0, 1]", "embeddings", "lift over chance of the mean P@10 of content attributes"),
    Metric("lift/average", True, "of [0, 1]", "embeddings", "lift over chance of P@10, attributes and content averaged"),
    Metric("counterpart_at_10", True, "share", "embeddings", "queries that find the very same face as wanted among the ten"),
)
_BY_PROTOCOL = (  # recollect.evaluation.diversity and recollect.evaluation.frechet; docs/metrics.md says what the names say
    Metric(
        "is",
        True,
        "nats",
        "classifier",
        "how sure a classifier is of translations and how they differ",
        protocols=True,
        cost="inputs x samples translations, each classified (Inception 0.15 s)",
    ),
    Metric(
        "cis",
        True,
        "nats",
        "classifier",
        "the same of the translations of one picture, then the mean",
        protocols=True,
        cost="measured with `is`",
    ),
    Metric(
        "lpips",
        True,
        "LPIPS",
        "features",
        "mean perceptual distance between translations of one picture",
        protocols=True,
        cost="inputs x samples translations; a pair 2 ms (AlexNet, 64 px)",
    ),
    Metric(
        "fid",
        False,
        "squared distance",
        "features",
        "Fréchet distance of the features to real pictures'",
        protocols=True,
        cost="a translation a picture, all described (Inception 0.15 s, own 1 ms)",
    ),
    Metric(
        "kid",
        False,
        "MMD²",
        "features",
        "kernel distance of the features to real pictures', unbiased",
        protocols=True,
        cost="as `fid`",
    ),
)
_PROTOCOL = re.compile(r"_\d+(?:[vx]\d+(?:all|of\d+)?)?(?:_\d+x\d+)?(?:@.+)?")  # 1000, 200v50, 100x19, 100x10all, 500_50x100
COSTS = {  # what most metrics of a group take, where it is not a translation of every picture
    **{metric.name: "an embedding a picture" for metric in _OF_RETRIEVERS},
    **dict.fromkeys(("accuracy", "majority"), "a classification a picture"),
    **dict.fromkeys(("accuracy@classifier", "fid@classifier"), "a translation a picture, and its classification"),
    **dict.fromkeys(("darkening", "domain_found"), "features of 200 pictures a domain"),
    "class_found": "a read a picture",
}
METRICS: dict[str, Metric] = {}


def register(*metrics: Metric) -> None:
    """Make metrics known, so that tables and searches know which way they are better.

    A name covers its parts: `lift` says which way `lift/<anything>` is better, unless that has an entry of its own.
    Raises ValueError for a name that stands for another metric already.
    """
    for metric in metrics:
        if METRICS.setdefault(metric.name, metric) != metric:
            raise ValueError(
                f"the metric {metric.name!r} is registered already, with another meaning: {METRICS[metric.name].about}"
            )


_EVERY = (*_LISTED, *_OF_ATTRIBUTES, *_OF_INPUTS, *_OF_CLASSIFIERS, *_OF_FEATURES, *_OF_RETRIEVERS, *_BY_PROTOCOL)
register(*(replace(metric, cost=COSTS.get(metric.name, metric.cost)) for metric in _EVERY))


def find_metric(name: str) -> Metric:
    """The metric of that name; a part of one (`scene_error/car`) and a protocol of one (`fid_1000@inception`) have that metric.

    Raises ValueError with the names that exist.

    >>> find_metric("scene_error/car").arrow, find_metric("cis_20x10@classifier:0a1b2c3d/Male").name
    ('↓', 'cis')
    """
    family = name
    while family:
        if family in METRICS:
            return METRICS[family]
        stem, underscore, protocol = family.partition("_")
        if stem in METRICS and METRICS[stem].protocols and _PROTOCOL.fullmatch(underscore + protocol):
            return METRICS[stem]
        family = family.rpartition("/")[0]
    raise ValueError(f"there is no metric {name!r}{did_you_mean(name, METRICS)}")


class RegionErrors(NamedTuple):
    """Per picture and region: the mean absolute difference (B, R) to the nearest true render, over so many pixels (B, R)."""

    error: Tensor
    pixels: Tensor


def region_errors(translations: Tensor, references: Tensor, regions: Tensor, count: int) -> RegionErrors:
    """The error of ONE translation a picture in each of its regions, against the true render that is nearest there.

    Args:
        translations: (B, 3, H, W).
        references: (B, K, 3, H, W), the true renders.
        regions: (B, H, W) integers in [0, count).

    A region that a picture does not show has 0 pixels and error 0.

    >>> picture = torch.tensor([[0.0, 0.4], [0.0, 1.0]]).expand(1, 3, 2, 2)
    >>> black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    >>> found = region_errors(picture, torch.stack([black, white], 1), torch.tensor([[[0, 0], [0, 1]]]), 2)
    >>> found.error, found.pixels
    (tensor([[0.1333, 0.0000]], dtype=torch.float64), tensor([[3., 1.]], dtype=torch.float64))
    """
    assert int(regions.max()) < count, "a region without a name"
    difference = (translations[:, None] - references).abs().mean(2).flatten(2).double()  # (B, K, P)
    inside = F.one_hot(regions.flatten(1).long(), count).to(difference.dtype)  # (B, P, R)
    pixels = inside.sum(1)
    error = (difference @ inside).amin(1) / pixels.clamp_min(1)
    return RegionErrors(error, pixels)


def scene_error(errors: RegionErrors, names: Sequence[str]) -> dict[str, float]:
    """Errors by region, weighted by pixels over the pictures, and `scene_error`, the plain mean over the regions present.

    The plain mean is what makes small things count: objects are a twentieth of the pixels.

    >>> scene_error(RegionErrors(torch.tensor([[0.125, 0.5], [0.625, 0.0]]), torch.tensor([[3, 1], [1, 0]])), ("road", "car"))
    {'scene_error': 0.375, 'scene_error/road': 0.25, 'scene_error/car': 0.5}
    """
    total = errors.pixels.sum(0)
    by_region = ((errors.error * errors.pixels).sum(0) / total.clamp_min(1)).tolist()
    present = {f"scene_error/{name}": by_region[r] for r, name in enumerate(names) if total[r] > 0}
    return {"scene_error": sum(present.values()) / len(present), **present}


def nearest_modes(translations: Tensor, references: Tensor, modes: Tensor) -> Tensor:
    """The style modes (B,) of the true renders (B, K, 3, H, W) nearest to the whole translations; `modes` is (B, K)."""
    distance = (translations[:, None] - references).abs().flatten(2).mean(2)  # (B, K)
    return modes.gather(1, distance.argmin(1, keepdim=True))[:, 0]


def mode_coverage(nearest: Tensor, modes: Tensor) -> dict[str, float]:
    """Which of the true modes the translations hit: `modes_hit` and the normalised entropy `mode_entropy`, both in [0, 1].

    A blur of all renders lies near one of them, always the same, and scores low on both.

    Args:
        nearest: (B,) the mode nearest to each translation.
        modes: the true modes there are, any shape.

    >>> mode_coverage(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3]))
    {'modes_hit': 0.5, 'mode_entropy': 0.5}
    """
    known = sorted(set(modes.flatten().tolist()))
    counts = torch.stack([(nearest == mode).sum() for mode in known]).double()
    share = counts / counts.sum()
    entropy = float(-(share * share.clamp_min(1e-12).log()).sum())
    evenness = entropy / log(len(known)) if len(known) > 1 else 1.0
    return {"modes_hit": float((counts > 0).double().mean()), "mode_entropy": abs(round(evenness, 9))}


WINDOW = 5  # pixels: structure is compared in windows of this side, at full and at half resolution
NOISE = 0.01  # gradients of a few grey levels and less count as none


def content_kept(images: Tensor, translations: Tensor) -> Tensor:
    """How much of the pictures' structure (B, 3, H, W) is still where it was: (B,) in [0, 1]; 1 for the picture itself.

    In every window the gradients of the two pictures are compared by their RV coefficient: the squared correlation's
    generalisation to three channels. It does not change when a window is made brighter or darker, inverted, or given other
    colours by a linear map, so a lit window by night and a dark one by day are the same structure. Windows count by the
    input's gradient energy; full and half resolution count alike. Chance is what the mirrored and the shifted translation score,
    so what an unrelated picture has in common with the input (a horizon, vertical walls) is worth 0.

    Means (and ranges over 48 scenes) on the world `streets` at 64 pixels, input sunny:

        another sunny render .93 (.85 to .98)    true cloudy .90 (.86 to .93)    true rainy .77 (.71 to .85)
        true night .64 (.54 to .74)              the same, blurred (sigma 1) .44 (.35 to .53)
        input darkened to 15 % .97               inverted 1.00                   noise of .05 added .96, of .2 .64
        input blurred (sigma 1, 2, 4) .75, .40, .14                              half of another scene .34 (.24 to .47)
        another scene, sunny or night .03 (at most .12)                          mean of 48 nights .06 (at most .12)
        black or constant 0                      pure noise .03 (at most .05)    moved by 1, 2 pixels .41, .16

    At 128 pixels: true night .72 (.66 to .76), another scene .02 (at most .08). So 0.3 separates: below it, a translation has
    lost more than half of what a true night still shows.
    """
    kept = images.new_zeros(len(images))
    for _ in range(2):
        kept = kept + _structure_shared(_gradients(images), _gradients(translations)) / 2
        images, translations = F.avg_pool2d(images, 2), F.avg_pool2d(translations, 2)
    return kept.clamp(0, 1)


def _structure_shared(own: Tensor, other: Tensor) -> Tensor:
    """The mean RV coefficient of two gradient fields (B, 2, 3, H, W), weighted by the energy of `own`: chance 0, itself 1."""
    energy = _energy(own)

    def agreement(field: Tensor) -> Tensor:
        cross = _covariance(own, field).square().sum(1).sqrt()
        rv = cross / ((energy + NOISE**2) * (_energy(field) + NOISE**2)).sqrt()
        return (rv * energy).sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-12)

    mirrored = other.flip(-1) * own.new_tensor([-1.0, 1.0]).view(1, 2, 1, 1, 1)  # a slope to the right becomes one to the left
    chance = (agreement(mirrored) + agreement(other.roll(own.shape[-1] // 2, -1))) / 2
    room = agreement(own) - chance
    return torch.where(room > 1e-6, (agreement(other) - chance) / room, 1.0)  # a blank input has nothing to lose


def _energy(field: Tensor) -> Tensor:
    return _covariance(field, field).square().sum(1).sqrt()  # (B, H, W)


def _gradients(images: Tensor) -> Tensor:
    """Forward differences (B, 2, 3, H, W), across and down; 0 at the far edges."""
    across = F.pad(images[..., 1:] - images[..., :-1], (0, 1))
    down = F.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
    return torch.stack([across, down], dim=1)


def _covariance(one: Tensor, other: Tensor) -> Tensor:
    """Sums over directions of channel products (B, 9, H, W), averaged over windows."""
    products = torch.einsum("bdchw,bdehw->bcehw", one, other).flatten(1, 2)
    return F.avg_pool2d(F.pad(products, [WINDOW // 2] * 4, mode="replicate"), WINDOW, 1)


def effective_items(weights: Tensor) -> float:
    """How many items a read averages: exp of the mean entropy of read weights (B, N, h, w), from 1 to N.

    >>> effective_items(torch.full((1, 4, 2, 2), 0.25))
    4.0
    """
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(1).double().mean()
    return round(float(entropy.exp()), 5)


def class_found(weights: Tensor, classes: Tensor, item_class: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The share of each class's cells that read most from an item of that class, when nobody tells them their class.

    Args:
        weights: class-free read weights (B, N, h, w).
        classes: (B, h, w) the true class of each cell.
        item_class: (N,) the class of each item.

    Returns `class_found/<class>` for the classes present, background included (or reading cars everywhere would find all
    cars), and `class_found`, their plain mean.

    >>> read = torch.tensor([[[[0.9, 0.2, 0.9]], [[0.1, 0.8, 0.1]]]])
    >>> class_found(read, torch.tensor([[[0, 1, 1]]]), torch.tensor([0, 1]), ("background", "car"))
    {'class_found': 0.75, 'class_found/background': 1.0, 'class_found/car': 0.5}
    """
    right = item_class[weights.argmax(1)] == classes
    present = {f"class_found/{name}": right[classes == k] for k, name in enumerate(names) if bool((classes == k).any())}
    shares = {name: round(float(cells.double().mean()), 9) for name, cells in present.items()}
    return {"class_found": sum(shares.values()) / len(shares), **shares}
