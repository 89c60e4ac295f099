"""Pictures that were tampered with by chance: what a network for judging pictures must tell from true ones.

A network that was trained to tell domains alone takes a darkened day for a night, and a blur of the right colours for a true
picture. One that has seen tampered pictures, and was asked to say so, does not.

    colours   y = clip(A x + b) ^ gamma, alike in all pixels      x, y in [0, 1]; A 3 x 3, b in R^3
    detail    blurred, drawn coarsely, or noisy

Legend: B pictures, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.trainable import Draws

COLOURS = ("darker", "lighter", "gamma", "flatter", "mixed")
DETAIL = ("blurred", "coarse", "noisy")
GREY = (0.299, 0.587, 0.114)


class Colours(NamedTuple):
    """A change of colours: A (3, 3), b (3,) and gamma ()."""

    matrix: Tensor
    shift: Tensor
    gamma: Tensor


def tampered(images: Tensor, draws: Draws, slots: Sequence[int], name: str = "tamper") -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], each tampered with by the draws of its slot: two of three in their colours.

    darker: times .08 to .7; lighter: the same of its negative; gamma: to the power of .3 to .65 or 1.6 to 4; flatter: contrast
    times .2 to .6 around a level; mixed: channels exchanged, more or less saturated, by channel stronger or weaker; blurred:
    means of 3 x 3 to 7 x 7; coarse: of half or a quarter of the resolution; noisy: deviation .04 to .2.
    """
    found = []
    for image, slot in zip(images, slots, strict=True):
        generator = draws.generator(name, slot)
        of_colours = int(torch.randint(3, (), generator=generator)) > 0
        unit = (image + 1) / 2
        changed = _coloured(unit, colours(generator)) if of_colours else _detailed(unit, generator)
        found.append(changed.clamp(0, 1) * 2 - 1)
    return torch.stack(found) if found else images


def colours(generator: torch.Generator) -> Colours:
    """One draw of a change of colours."""
    kind = COLOURS[int(torch.randint(len(COLOURS), (), generator=generator))]
    u: list[float] = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    matrix, shift, gamma = torch.eye(3), torch.zeros(3), torch.ones(())
    if kind in ("darker", "lighter"):
        factor = math.exp(_between(u[0], math.log(0.08), math.log(0.7)))
        tint = torch.tensor([_between(value, 0.85, 1.0) for value in u[1:4]])  # rarely is a change of light quite neutral
        matrix = torch.diag(factor * tint)
        shift = 1 - matrix.sum(1) if kind == "lighter" else shift
    elif kind == "gamma":
        gamma = gamma * (_between(u[0], 0.3, 0.65) if u[1] < 0.5 else math.exp(_between(u[0], math.log(1.6), math.log(4.0))))
    elif kind == "flatter":
        factor = _between(u[0], 0.2, 0.6)
        matrix, shift = matrix * factor, torch.full((3,), (1 - factor) * u[1])
    else:
        saturation = _between(u[0], 0.0, 0.5) if u[1] < 0.5 else _between(u[0], 1.6, 3.0)
        grey = torch.tensor(GREY).expand(3, 3)
        gains = torch.tensor([_between(value, 0.55, 1.45) for value in u[2:5]])
        matrix = gains[:, None] * (grey + saturation * (matrix - grey))
        matrix = matrix.roll(int(3 * u[5]), 0)  # in two of three channels change places
    return Colours(matrix, shift, gamma)


def _coloured(image: Tensor, change: Colours) -> Tensor:
    matrix, shift, gamma = (part.to(image) for part in change)
    mixed = torch.einsum("cd,dhw->chw", matrix, image) + shift[:, None, None]
    found: Tensor = mixed.clamp(1e-4, 1).pow(gamma)
    return found


def _detailed(image: Tensor, generator: torch.Generator) -> Tensor:
    kind = DETAIL[int(torch.randint(len(DETAIL), (), generator=generator))]
    strength = int(torch.randint(1, 4, (), generator=generator))
    if kind == "blurred":
        padded = F.pad(image[None], (strength,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * strength + 1, 1)[0]
    if kind == "coarse":
        factor = 2 if strength < 3 else 4
        small = F.avg_pool2d(image[None], factor, ceil_mode=True)
        return F.interpolate(small, image.shape[1:], mode="bilinear" if strength == 1 else "nearest")[0]
    noise = torch.randn(image.shape, generator=generator).to(image)
    return image + noise * (0.04, 0.1, 0.2)[strength - 1]


def _between(share: float, low: float, high: float) -> float:
    return low + share * (high - low)
