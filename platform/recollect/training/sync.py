"""Ranks: what one process of several does differently. No DDP wrapper.

Parameters are broadcast once; each phase's gradients are averaged in one flat bucket (a net without a gradient on a rank counts
as zero); sums over samples go through `reduce`, which is differentiable. So N ranks with a batch of B each take the step that
one process takes with a batch of N * B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """A single process: rank 0 of 1, every operation the identity."""

    rank = 0
    world = 1

    def reduce(self, tensor: Tensor) -> Tensor:
        """The differentiable sum of `tensor` over ranks."""
        return tensor

    def average(self, flat: Tensor) -> Tensor:
        """The mean of `flat` over ranks, without gradient."""
        return flat

    def broadcast(self, module: nn.Module) -> None:
        """Make every rank's parameters and buffers those of rank 0."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class Group(Ranks):
    """The default process group of torch.distributed (gloo or nccl)."""

    def __init__(self) -> None:
        assert dist.is_initialized(), "torch.distributed has no process group yet"
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; its gradient is the sum of the ranks' gradients."""
        summed: Tensor = _AllSum.apply(tensor)
        return summed

    def average(self, flat: Tensor) -> Tensor:
        """Mean over ranks, in place."""
        dist.all_reduce(flat)
        return flat.div_(self.world)

    def broadcast(self, module: nn.Module) -> None:
        """Copy rank 0's parameters and buffers."""
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


class _AllSum(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of the ranks' gradients: every rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def local_ranks() -> Ranks:
    """`Group` where torch.distributed is initialised with more than one process, else a single process."""
    return Group() if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else Ranks()


def average_gradients(parameters: list[nn.Parameter], terms: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Average the `.grad` of all parameters and the vector `terms` over ranks, in one flat bucket.

    Returns the averaged terms, and whether they and all gradients are finite (a bool on the device). A single process copies
    nothing: its gradients are read once.
    """
    for parameter in parameters:
        if parameter.grad is None:  # the same rule on any number of ranks: zero, and the optimiser steps
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if ranks.world > 1:
        bucket = ranks.average(torch.cat([terms.to(grads[0].dtype), *(grad.flatten() for grad in grads)]))
        terms, *pieces = bucket.split_with_sizes([len(terms), *(p.numel() for p in parameters)])
        grads = [piece.view_as(parameter) for parameter, piece in zip(parameters, pieces, strict=True)]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
    length = torch.nn.utils.get_total_norm(grads)  # not finite where any number is not, or where it passes 1e19: diverged
    return terms, terms.isfinite().all() & length.isfinite()
