"""Several batches through a net at once: larger convolutions are faster, and the weights get one gradient.

All of it is for nets that look at each sample alone. The numbers are those of one batch after the other, but for the order of
sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Nets = nn.ModuleList | Sequence[Callable[..., Tensor]]


class Drawing(NamedTuple):
    """One picture that a generator is asked for: the index of its content, its style (vector or map), its domain."""

    content: int
    style: Tensor  # (B, ...)
    domain: int


def in_one_pass(net: Callable[..., Tensor], *inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a net makes of several batches, in one pass. `inputs` has a list for each argument, with an entry for each batch.

    >>> in_one_pass(torch.mul, [torch.ones(1), torch.ones(2)], [torch.ones(1), torch.zeros(2)])
    [tensor([1.]), tensor([0., 0.])]
    """
    outputs = net(*(torch.cat(list(column)) if len(column) > 1 else column[0] for column in inputs))
    return list(outputs.split_with_sizes([item.shape[0] for item in inputs[0]]))


def by_domain(nets: Nets, domains: Sequence[int], *inputs: Sequence[Tensor]) -> list[Tensor]:
    """Each batch through the net of its domain, or through the one that serves all; one pass a net.

    >>> nets = nn.ModuleList([nn.Flatten(), nn.Identity()])
    >>> [tuple(x.shape) for x in by_domain(nets, [1, 0, 1], [torch.zeros(1, 2, 2)] * 3)]
    [(1, 2, 2), (1, 4), (1, 2, 2)]
    """
    owner = [min(domain, len(nets) - 1) for domain in domains]
    outputs: dict[int, Tensor] = {}
    for index in dict.fromkeys(owner):
        mine = [place for place, other in enumerate(owner) if other == index]
        outputs |= zip(mine, in_one_pass(nets[index], *([column[place] for place in mine] for column in inputs)), strict=True)
    return [outputs[place] for place in range(len(owner))]
