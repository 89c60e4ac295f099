"""Distances between two sets of pictures in a network's features: Frechet's (FID) and the kernel's (KID), by torchmetrics.

A distance is named by its protocol: `fid_1000@inception` compares 1,000 translations with as many real pictures in the published
features, `fid_200v50@classifier:1a2b3c4d` 200 with 50 in the features of the classifier with that digest. Two numbers can be
compared where features, counts and pictures are the same: the expectation of FID falls as the counts grow, that of KID does not.

On several ranks every rank describes its share, in the batches that one process would make, and what is kept are sums: of
features and their products for FID, of rows that are zero elsewhere for KID. So the number of ranks changes the order of
additions only, and KID's subsets are drawn from the same rows by the same seed.

Legend: M, N pictures, B of them at once, H x W pixels, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from recollect.data.transforms import check_pictures, to_unit
from recollect.evaluation.validate import Judgement
from recollect.training.sync import Ranks

BATCH = 32  # pictures described at once
KERNEL_SUBSETS, KERNEL_SIZE = 100, 1000  # as Binkowski et al. 2018 and torch-fidelity


class Measurement(NamedTuple):
    """What was measured, and how: the protocol, the features and their digest, and what else the numbers depend on."""

    judgement: Judgement
    about: Mapping[str, str | int | float]


class PictureSet(Protocol):
    """Pictures by their numbers, made when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Sequence[int], /) -> Tensor: ...  # (B, 3, H, W) in [-1, 1]


class Describes(Protocol):
    """What tells features of pictures: `recollect.evaluation.extractors.Extractor`."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def features(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def describe(self, images: Tensor) -> Tensor: ...  # (B, F) of (B, 3, H, W) in [-1, 1]


class Stack:
    """A tensor of pictures (N, 3, H, W) as a set: uint8, or floats in [-1, 1]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        chosen = self.images[list(rows)]
        return to_unit(chosen) if chosen.dtype == torch.uint8 else chosen


def fid(
    real: PictureSet, fake: PictureSet, extractor: Describes, count: int | None = None, ranks: Ranks = Ranks()
) -> Measurement:
    """Frechet's distance between Gaussians fitted to the features of two sets.

    Args:
        real: the pictures to be like; a few thousand at least for published protocols.
        fake: translations.
        extractor: whose features; in FID as published, Inception's.
        count: so many of each, evenly spread; None: all there are.
        ranks: who shares the work; every rank calls this with the same arguments, and every rank gets the number.

    Raises ValueError for fewer than two pictures on a side or fewer than `count`, and for pictures that are none.
    """
    sides = _sides(real, fake, count)
    distance = _accumulator(extractor.features, extractor.device)
    for side, (pictures, rows) in enumerate(sides):
        for _, found in _described(extractor, pictures, rows, ranks):
            distance.update(found, real=side == 0)
    _reduce(distance, ranks)
    reals, fakes = (len(rows) for _, rows in sides)
    name = set_name("fid", fakes, reals, extractor)
    about = _about(extractor, reals, fakes) | {"rank_deficient": int(min(reals, fakes) <= extractor.features)}
    return Measurement(Judgement({name: float(distance.compute())}, {}), about)


def kid(
    real: PictureSet,
    fake: PictureSet,
    extractor: Describes,
    count: int | None = None,
    subsets: int = KERNEL_SUBSETS,
    size: int = KERNEL_SIZE,
    seed: int = 0,
    ranks: Ranks = Ranks(),
) -> Measurement:
    """The kernel distance (cubic kernel, unbiased): its mean over random subsets of both sets; arguments as of `fid`.

    Args:
        subsets: how many.
        size: pictures of each side in a subset; where there are fewer, all of them, and then once.
        seed: of the subsets, which are the same on any number of ranks.

    The name tells the subsets where they are not the published ones: `kid_500_50x100@inception`. Every rank holds the features
    of all pictures while it computes: 8 * (M + N) * F bytes, 330 MB for 10,000 pictures on each side and Inception's features.
    Raises ValueError as `fid`, and for subsets of fewer than two.
    """
    if subsets < 1 or size < 2:
        raise ValueError(f"KID needs at least 1 subset of at least 2 pictures, not {subsets} of {size}")
    tables = [_table(extractor, pictures, rows, ranks) for pictures, rows in _sides(real, fake, count)]
    return _kernel(tables, extractor, subsets, size, seed)


def fid_and_kid(
    real: PictureSet, fake: PictureSet, extractor: Describes, count: int | None = None, ranks: Ranks = Ranks()
) -> Measurement:
    """`fid` and `kid` of the same pictures, which are made and described once; every rank holds the features of all of them."""
    tables = [_table(extractor, pictures, rows, ranks) for pictures, rows in _sides(real, fake, count)]
    kernel = _kernel(tables, extractor, KERNEL_SUBSETS, KERNEL_SIZE, 0)
    reals, fakes = map(len, tables)
    values = {set_name("fid", fakes, reals, extractor): frechet(*tables), **kernel.judgement.values}
    deficient = {"rank_deficient": int(min(reals, fakes) <= extractor.features)}
    return Measurement(Judgement(values, {}), dict(kernel.about) | deficient)


def _kernel(tables: Sequence[Tensor], extractor: Describes, subsets: int, size: int, seed: int) -> Measurement:
    """KID of the features of real pictures and of translations."""
    from torchmetrics.image.kid import KernelInceptionDistance  # of the extra `evaluate`

    reals, fakes = map(len, tables)
    used = min(size, reals, fakes)
    times = 1 if reals == fakes == used else subsets  # all of them: every subset is the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features; so says our own docstring
        distance = KernelInceptionDistance(_given(extractor.features), subsets=times, subset_size=used, sync_on_compute=False)
    for side, table in enumerate(tables):
        distance.update(table, real=side == 0)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the process's own generator
        torch.manual_seed(seed)
        mean, deviation = distance.compute()
    protocol = "" if (subsets, size) == (KERNEL_SUBSETS, KERNEL_SIZE) else f"_{subsets}x{size}"
    name = set_name("kid", fakes, reals, extractor, protocol)
    about = {"subsets": times, "subset_size": used, "deviation": float(deviation), "seed": seed}
    return Measurement(Judgement({name: float(mean)}, {}), _about(extractor, reals, fakes) | about)


def _table(extractor: Describes, pictures: PictureSet, rows: Sequence[int], ranks: Ranks) -> Tensor:
    """The features (N, F) of all these pictures, of which each rank describes its share; on the CPU."""
    table = torch.zeros(len(rows), extractor.features, dtype=torch.double, device=extractor.device)
    for places, found in _described(extractor, pictures, rows, ranks):
        table[places.start : places.stop] = found
    return ranks.reduce(table).cpu()


def frechet(real: Tensor, fake: Tensor) -> float:
    """Frechet's distance between Gaussians fitted to features (M, F) and (N, F), by torchmetrics, in float64.

    Its expectation depends on M and N: compare equal numbers only. Raises ValueError for fewer than two on a side.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a distance between sets needs at least 2 pictures on each side, not {len(real)} and {len(fake)}")
    distance = _accumulator(real.shape[1], real.device)
    distance.update(real.double(), real=True)
    distance.update(fake.double(), real=False)
    return float(distance.compute())


def _sides(real: PictureSet, fake: PictureSet, count: int | None) -> list[tuple[PictureSet, list[int]]]:
    """Both sets with the rows that are used."""
    if count is not None and min(len(real), len(fake)) < count:
        raise ValueError(f"{count} pictures are to be compared, and there are {len(real)} real ones and {len(fake)} translations")
    sides = []
    for pictures in (real, fake):
        used = len(pictures) if count is None else count
        sides.append((pictures, [index * len(pictures) // used for index in range(used)]))
    if min(len(rows) for _, rows in sides) < 2:
        raise ValueError(f"a distance between sets needs at least 2 pictures on each side, not {len(real)} and {len(fake)}")
    return sides


def _described(extractor: Describes, pictures: PictureSet, rows: Sequence[int], ranks: Ranks) -> Iterator[tuple[range, Tensor]]:
    """The features (B, F) of this rank's batches, float64, each with where its rows are."""
    sizes: set[tuple[int, ...]] = set()
    for number, start in enumerate(range(0, len(rows), BATCH)):
        if number % ranks.world != ranks.rank:
            continue
        images = pictures[rows[start : start + BATCH]]
        check_pictures(images)
        sizes.add(tuple(images.shape[2:]))
        if len(sizes) > 1:
            raise ValueError(f"the pictures of one set have one size, not {' and '.join(map(str, sorted(sizes)))}")
        yield range(start, start + len(images)), extractor.describe(images).double().to(extractor.device)


def _accumulator(features: int, device: torch.device):  # type: ignore[no-untyped-def]  # torchmetrics is not typed
    """torchmetrics' Frechet distance of features that are given, in float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # of the extra `evaluate`; training a classifier needs none

    distance = FrechetInceptionDistance(feature=_given(features), sync_on_compute=False).set_dtype(torch.float64).to(device)
    nothing = torch.zeros(0, features, dtype=torch.double, device=device)  # a rank without pictures has been given something, too
    distance.update(nothing, real=True)
    return distance


def _given(features: int) -> nn.Module:
    """A network for torchmetrics that hands on what it gets."""
    identity = nn.Identity()
    identity.num_features = features  # type: ignore[assignment]  # what torchmetrics asks of a network
    return identity


def _reduce(distance: nn.Module, ranks: Ranks) -> None:
    """Sum torchmetrics' states over ranks. Its own way, all_gather on compute, does not know of our ranks and is off."""
    for side in ("real", "fake"):
        for state in ("sum", "cov_sum", "num_samples"):
            name = f"{side}_features_{state}"
            setattr(distance, name, ranks.reduce(getattr(distance, name)))


def set_name(kind: str, fakes: int, reals: int, extractor: Describes, protocol: str = "") -> str:
    """What a distance of so many translations from so many real pictures is called."""
    return f"{kind}_{fakes if fakes == reals else f'{fakes}v{reals}'}{protocol}@{extractor.name}"


def _about(extractor: Describes, reals: int, fakes: int) -> dict[str, str | int | float]:
    return {"features": extractor.name, "digest": extractor.digest, "real": reals, "fake": fakes}
