"""What is done to the residual blocks of a method's networks, one by one: activations computed again, and compiled code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from recollect.trainable import Block

logger = logging.getLogger("recollect")


def blocks(model: nn.Module) -> Iterator[Block]:
    """The blocks of a model."""
    yield from (module for module in model.modules() if isinstance(module, Block))


def recompute(model: nn.Module) -> int:
    """Let blocks keep their inputs alone, and compute the rest again in the backward pass; returns how many blocks those are.

    Memory falls by the activations inside blocks, and a forward pass of them is added. The numbers are the same, bit by bit.
    """
    found = list(blocks(model))
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return len(found)


def compiled(model: nn.Module) -> int:
    """Compile the blocks, each kind once; returns how many blocks those are: none, with a warning, where nothing can be compiled.

    Code is made when a block first meets pictures of a size, which takes seconds to minutes; sums have another order than before.
    """
    try:
        torch.compile(_probe)(torch.ones(2))
    except Exception as error:  # no compiler, or one that does not work: every kind of error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("engine.compile does nothing here: %s; going on without", reason[0])
        return 0
    found = list(blocks(model))
    for block in found:
        block.compile(dynamic=False)
    return len(found)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1
