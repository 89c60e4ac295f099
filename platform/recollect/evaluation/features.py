"""Picture statistics that need neither training nor a download, and a distance between two sets of pictures.

`pyramid` features describe a picture by what early vision measures: how bright and how coloured each part of it is, how its
channels go together, and how much detail it has at every scale, per part and by how rare that detail is. They tell a night from
a darkened day, because a darkened day has the colours and the contrasts of a day, only smaller (see `feature_distance`).

Legend: B, M, N pictures, S pixels a side after resizing, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 64  # every picture is brought to this size first, so that numbers do not depend on the run's
LEVELS = 4  # octaves of the Laplacian pyramid: 64, 32, 16 and 8 pixels
GRID = 4  # parts a side
FLOOR = 1e-2  # two and a half grey levels: what is weaker counts little, or a darkened picture's faint texture would say most
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, -1 / 2, 0.0), (1 / 4, 1 / 4, -1 / 2))  # light, red-green, yellow-blue


def pyramid(images: Tensor) -> Tensor:
    """Features (B, 191) of pictures (B, 3, H, W) in [0, 1]; float64, each of the order of one.

    Per part of a 4 x 4 grid: mean and spread of light and of two opponent colours, and the darkest and brightest twentieth of
    the light. Per octave and colour axis: the log energy of the Laplacian band in each quarter of the picture, and the log ratio
    of fourth to second moment (a few lamps in the dark are rare and strong). For the whole picture: the channels' correlations.
    """
    x = F.interpolate(images.double(), (SIDE, SIDE), mode="bilinear", antialias=True)
    axes = torch.einsum("ac,bchw->bahw", x.new_tensor(OPPONENT), x)  # (B, 3, S, S)
    parts = F.unfold(axes, SIDE // GRID, stride=SIDE // GRID).reshape(len(x), 3, -1, GRID * GRID)  # (B, 3, pixels, parts)
    light = parts[:, 0].quantile(x.new_tensor([0.05, 0.95]), dim=1)  # (2, B, parts)
    spread = parts.std(dim=2, correction=0)
    moments = [parts.mean(2), spread, light.movedim(0, 1)]
    found = [4 * item.flatten(1) for item in moments] + [_correlations(x)]
    for band in _laplacian(axes):
        energy = F.adaptive_avg_pool2d(band.square(), 2).flatten(1)
        tails = band.pow(4).mean((2, 3)) / (band.square().mean((2, 3)) + FLOOR**2).square()
        found += [(energy + FLOOR**2).log() / 4, (tails + 1).log() / 2]
    return torch.cat(found, dim=1)


def _laplacian(x: Tensor) -> list[Tensor]:
    """The bands of a Laplacian pyramid, finest first."""
    bands = []
    for _ in range(LEVELS):
        small = F.avg_pool2d(x, 2)
        bands.append(x - F.interpolate(small, x.shape[-2:], mode="bilinear"))
        x = small
    return bands


def _correlations(x: Tensor) -> Tensor:
    """The three correlations (B, 3) between the channels, 0 where a channel is flat."""
    centred = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
    covariance = centred @ centred.mT / centred.shape[2]
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt() + FLOOR
    correlation = covariance / (deviation[:, :, None] * deviation[:, None])
    rows, columns = torch.triu_indices(3, 3, 1)
    return correlation[:, rows, columns]


def feature_distance(one: Tensor, other: Tensor) -> float:
    """Squared maximum mean discrepancy of features (M, F) and (N, F) under the cubic kernel (x . y / F + 1)^3, unbiased.

    About 0 for two sets of one kind, and slightly negative by chance; the kernel is KID's. Unlike Frechet's distance its
    expectation does not depend on M and N, so 20 pictures give what 50 give.

    Measured on the world `streets` (64 pixels, 48 pictures of each, against held-out night): other nights 0.01, rainy 2.6,
    sunny darkened to 15 % 5.3, cloudy 5.9, sunny 10.2; with 20 pictures -0.01, 2.4, 5.5, 5.6, 10.3. On webcam photographs
    (40 pictures, against held-out nights): other nights -0.01, days darkened to the brightness of the nights 1.4, days 14.

    Raises ValueError for fewer than two pictures on a side.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"a distance between sets needs at least 2 pictures on each side, not {len(one)} and {len(other)}")
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for kernel, n in ((_cubic(x, x), len(x)) for x in (one, other))]
    return float(within[0] + within[1] - 2 * _cubic(one, other).mean())


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1).pow(3)
