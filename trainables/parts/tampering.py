"""Pictures whose colours were changed by chance: what a network for judging pictures must tell from true ones.

A network that was trained to tell domains alone takes a darkened day for a night. One that has seen tampered pictures, and was
asked to say so, does not.

    y = clip(A x + b) ^ gamma, alike in all pixels      x, y in [0, 1]; A 3 x 3, b in R^3

Blur and noise are no part of it: a network that was taught to find them too (tried on the streets world) puts a night that was
blurred a little, 3 x 3, as far from nights as true rain is, and every translator's pictures are blurred a little.

Legend: B pictures, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recollect.batch import onto
from recollect.trainable import Draws

KINDS = ("darker", "lighter", "gamma", "flatter", "mixed")
GREY = (0.299, 0.587, 0.114)


class Colours(NamedTuple):
    """A change of colours: A (3, 3), b (3,) and gamma ()."""

    matrix: Tensor
    shift: Tensor
    gamma: Tensor


def tampered(images: Tensor, draws: Draws, slots: Sequence[int], name: str = "tamper") -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with other colours, each by the draws of its slot: one of KINDS.

    darker: times .08 to .7; lighter: the same of its negative; gamma: to the power of .3 to .65 or 1.6 to 4; flatter: contrast
    times .2 to .6 around a level; mixed: channels exchanged, more or less saturated, by channel stronger or weaker.
    """
    changes = [colours(draws.generator(name, slot)) for slot in slots]
    matrix, shift, gamma = (onto(torch.stack(parts), images.device, images.dtype) for parts in zip(*changes, strict=True))
    mixed = torch.einsum("bcd,bdhw->bchw", matrix, (images + 1) / 2) + shift[:, :, None, None]
    changed: Tensor = mixed.clamp(1e-4, 1).pow(gamma[:, None, None, None])
    return changed * 2 - 1


def colours(generator: torch.Generator) -> Colours:
    """One draw of a change of colours."""
    kind = KINDS[int(torch.randint(len(KINDS), (), generator=generator))]
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


def _between(share: float, low: float, high: float) -> float:
    return low + share * (high - low)
