"""Ranks: what one process of several does differently. No DDP wrapper.

Parameters are broadcast once; each phase's gradients are averaged in flat buckets that go out while the backward pass goes on (a
parameter without a gradient on a rank counts as zero); sums over samples go through `reduce`, which is differentiable. So N
ranks with a batch of B each take the step that one process takes with a batch of N * B.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 25 << 20  # bytes; a smaller one waits less, a larger one says more at a time


class Going(Protocol):
    """Something that is under way."""

    def wait(self) -> object: ...


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

    def sum_aside(self, flat: Tensor) -> Going | None:
        """Begin to sum `flat` over ranks in place, beside whatever else is asked of the ranks; wait for it before it is read."""
        return None

    def broadcast(self, module: nn.Module) -> None:
        """Make every rank's parameters and buffers those of rank 0."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class Group(Ranks):
    """The default process group of torch.distributed (gloo or nccl)."""

    def __init__(self) -> None:
        assert dist.is_initialized(), "torch.distributed has no process group yet"
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._aside: Any = dist.new_group()  # sums inside the backward pass must not meet the buckets

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; its gradient is the sum of the ranks' gradients."""
        summed: Tensor = _AllSum.apply(tensor)
        return summed

    def average(self, flat: Tensor) -> Tensor:
        """Mean over ranks, in place."""
        dist.all_reduce(flat)
        return flat.div_(self.world)

    def sum_aside(self, flat: Tensor) -> Going | None:
        """Begin to sum over ranks, in place."""
        going: Going | None = dist.all_reduce(flat, group=self._aside, async_op=True)
        return going

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


class Gradients:
    """The gradients of a phase, part by part, averaged over ranks.

    A parameter that a part does not reach has zeros: the same rule on any number of ranks, and its optimiser steps. A single
    process copies nothing.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.parameters: list[nn.Parameter] = []
        self._sent: list[_Bucket] = []

    def take(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Differentiate a loss for some parameters. Of several ranks, each bucket goes out as soon as it is full."""
        if self.ranks.world == 1:
            self.give(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
            return
        self.parameters += parameters
        buckets = _buckets(parameters)
        owner = {parameter: bucket for bucket in buckets for parameter in bucket.parameters}
        filled = partial(self._filled, owner, buckets)
        hooks = [p.register_post_accumulate_grad_hook(filled) for p in parameters]  # type: ignore[no-untyped-call]
        try:
            loss.backward(inputs=list(parameters))  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
        while buckets:  # with a parameter that this rank's loss does not reach
            self._send(buckets)

    def give(self, grads: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
        """Take gradients that are there already."""
        self.parameters += parameters
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.zeros_like(parameter) if grad is None else _laid_out_as(parameter, grad)
        if self.ranks.world > 1:
            buckets = _buckets(parameters)
            while buckets:
                self._send(buckets)

    def finish(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Wait until every `.grad` is the average over ranks.

        Returns the vector `terms` averaged over ranks, and whether it and all gradients are finite (a bool on the device).
        """
        if self.ranks.world > 1:
            terms = self.ranks.average(terms.clone())
        for bucket in self._sent:
            bucket.receive(self.ranks.world)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        length = torch.nn.utils.get_total_norm(grads)  # not finite where any number is not, or where it passes 1e19: diverged
        return terms, terms.isfinite().all() & length.isfinite()

    def _filled(self, owner: dict[nn.Parameter, _Bucket], buckets: list[_Bucket], parameter: nn.Parameter) -> None:
        """A gradient is there. Buckets go out in their order, which is the same on every rank."""
        owner[parameter].lacks -= 1
        while buckets and buckets[0].lacks == 0:
            self._send(buckets)

    def _send(self, buckets: list[_Bucket]) -> None:
        bucket = buckets.pop(0)
        bucket.send(self.ranks)
        self._sent.append(bucket)


class _Bucket:
    """Gradients that travel together."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.lacks = parameters, len(parameters)

    def send(self, ranks: Ranks) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None  # the copy is all that is needed
        self.flat = torch.cat([grad.flatten() for grad in grads])
        self.going = ranks.sum_aside(self.flat)

    def receive(self, world: int) -> None:
        if self.going is not None:
            self.going.wait()
        pieces = self.flat.div_(world).split_with_sizes([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = _laid_out_as(parameter, piece.view_as(parameter))


def _laid_out_as(parameter: Tensor, grad: Tensor) -> Tensor:
    """A gradient in the memory format of its parameter: fused optimisers take for granted that it is."""
    return grad if grad.stride() == parameter.stride() else torch.empty_like(parameter).copy_(grad)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """The last parameters first: so a backward pass comes to them."""
    found: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not found or size > room:
            found.append([])
            room = BUCKET
        found[-1].append(parameter)
        room -= size
    return [_Bucket(group) for group in found]
