"""One optimiser a net, its rate a function of the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from recollect.config import Optimiser, Run
from recollect.trainable import Trainable


def trained_nets(model: Trainable) -> tuple[str, ...]:
    """The nets that some phase updates, in order of first use. Frozen parents are simply in no part."""
    names = (net for phase in model.phases() for part in phase.parts for net in part.nets)
    return tuple(dict.fromkeys(names))


def make_optimisers(model: Trainable, run: Run) -> dict[str, torch.optim.Optimizer]:
    """An optimiser for each trained net by its name.

    Raises ValueError for an entry of `run.optimisers` that names no net.
    """
    nets = trained_nets(model)
    strange = [name for name in run.optimisers if name != "default" and name not in nets]
    if strange:
        raise ValueError(f"optimisers.{strange[0]} names no net of {run.model.name}; its nets: {', '.join(nets)}")
    return {name: _make(model.get_submodule(name), run.optimiser(name)) for name in nets}


def _make(net: nn.Module, config: Optimiser) -> torch.optim.Optimizer:
    parameters: Iterable[nn.Parameter] = net.parameters()
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)  # one pass over memory


def rate(config: Optimiser, step: int, steps: int) -> float:
    """The learning rate of a step: constant for the share `hold` of the run, then linear to zero; halved on top of that.

    >>> [rate(Optimiser(lr=1.0, hold=0.5), step, 4) for step in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    >>> [rate(Optimiser(lr=1.0, halve_every=2), step, 6) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    held = config.hold * steps
    lr = config.lr * 0.5 ** (step // config.halve_every) if config.halve_every else config.lr
    return lr if step <= held else lr * (steps - step) / max(steps - held, 1)
