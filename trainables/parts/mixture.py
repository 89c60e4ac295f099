"""The style space of GMM-UNIT: a mixture of Gaussians with one component for each choice of attributes (RG-UNIT, eq. 1).

An attribute owns a block of `dims` numbers of the style. A component's mean is +1 in the blocks of the attributes that are set
and -1 in the others; its deviation is `sigma` everywhere. Nothing of it is learned. Attributes between 0 and 1 have the means
between: that is how one domain is interpolated to another.

Legend: B pictures, S attributes, Z = S * dims numbers of a style, those of the first attribute first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.parts.losses import exact


class Posterior(NamedTuple):
    """What E_s says of a picture's style: a diagonal Gaussian."""

    mean: Tensor  # (B, Z)
    logvar: Tensor  # (B, Z)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The components of `attributes` attributes.

    >>> Mixture(2, dims=2).means(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    tensor([[ 1.,  1., -1., -1.],
            [ 0.,  0., -1., -1.]])
    """

    attributes: int
    dims: int = 8
    sigma: float = 0.5

    @property
    def size(self) -> int:
        """Z, the numbers of a style."""
        return self.attributes * self.dims

    def blocks(self, values: Tensor) -> Tensor:
        """Values of attributes (B, S), each for all numbers of its block: (B, Z)."""
        return values.repeat_interleave(self.dims, dim=1)

    def means(self, attributes: Tensor) -> Tensor:
        """The means (B, Z) of components; attributes (B, S) in [0, 1]."""
        return self.blocks(2 * attributes - 1)

    def sample(self, attributes: Tensor, noise: Tensor) -> Tensor:
        """Styles (B, Z) of components by standard normal noise (B, Z)."""
        return self.means(attributes) + self.sigma * noise

    def kl(self, posterior: Posterior, attributes: Tensor) -> Tensor:
        """KL(posterior || component): summed over the numbers of a style, mean over pictures; in fp32 or better.

        >>> one = torch.ones(1, 8)
        >>> Mixture(1).kl(Posterior(one, math.log(0.25) * one), one[:, :1])  # the component itself
        tensor(0.)
        """
        mean, logvar = map(exact, posterior)
        variance = self.sigma**2
        apart = (mean - self.means(attributes).to(mean)).square()
        return ((math.log(variance) - logvar) + (logvar.exp() + apart) / variance - 1).sum(dim=1).mean() / 2

    def log_density(self, styles: Tensor, attributes: Tensor) -> Tensor:
        """The log-density (B, S) of each attribute's block of styles (B, Z); their sum over S is that of the component."""
        apart = (styles - self.means(attributes)) / self.sigma
        density = -(apart.square() + math.log(2 * math.pi * self.sigma**2)) / 2
        return density.view(-1, self.attributes, self.dims).sum(dim=2)

    def most_likely(self, styles: Tensor, exclusive: Iterable[Sequence[int]] = ()) -> Tensor:
        """The attributes (B, S) in {0, 1} of the component with the highest density at each style.

        Of an exclusive group (indices of attributes) at most one is set.
        """
        ones = styles.new_ones(len(styles), self.attributes)
        gain = self.log_density(styles, ones) - self.log_density(styles, 0 * ones)  # of setting an attribute, (B, S)
        found = (gain > 0).to(styles.dtype)
        for group in map(list, exclusive):
            best = torch.zeros_like(gain[:, group]).scatter(1, gain[:, group].argmax(1, keepdim=True), 1)
            found[:, group] = found[:, group] * best
        return found


def flipped(labels: Sequence[int], exclusive: Iterable[Sequence[int]], generator: torch.Generator) -> list[int]:
    """The labels with one attribute changed at random: the domain that a picture is translated to in training.

    Of an exclusive group at most one attribute is set afterwards. A flip within a group moves to a member that was not set, or
    from the one that was to another. A picture with two of a group (annotators disagree) has its flip there.

    >>> flipped([1, 0], [(0, 1)], torch.Generator())  # of two that exclude each other, there is only the other
    [0, 1]
    """
    groups = [list(group) for group in exclusive]
    contradictory = next((group for group in groups if sum(labels[i] for i in group) > 1), None)
    candidates = contradictory or range(len(labels))
    chosen = candidates[_draw(len(candidates), generator)]
    group = next((group for group in groups if chosen in group), None)
    wanted = list(labels)
    if group is None:
        wanted[chosen] = 1 - wanted[chosen]
        return wanted
    if wanted[chosen] and not contradictory:
        others = [i for i in group if i != chosen]
        chosen = others[_draw(len(others), generator)]
    for i in group:
        wanted[i] = int(i == chosen)
    return wanted


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def drawn_other(labels: Sequence[int], exclusive: Iterable[Sequence[int]], generator: torch.Generator) -> list[int]:
    """Labels drawn at random that are not these: one of each exclusive group, a coin for every other attribute.

    >>> drawn_other([1, 0], [(0, 1)], torch.Generator())  # of two that exclude each other, there is only the other
    [0, 1]
    """
    groups = [list(group) for group in exclusive]
    grouped = {i for group in groups for i in group}
    while True:
        drawn = [0 if i in grouped else _draw(2, generator) for i in range(len(labels))]
        for group in groups:
            drawn[group[_draw(len(group), generator)]] = 1
        if drawn != list(labels):
            return drawn
