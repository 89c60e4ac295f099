"""A checkpoint is a bundle plus what training needs to go on bit-equal: optimiser state, the averaged weights' count, the step.

There is no RNG or sampler state to keep: draws and samples are functions of (seed, step). Tensors go to safetensors and the
rest to JSON; nothing is a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from recollect import bundle as bundles
from recollect.config import Run

TENSORS, SCALARS = "training.safetensors", "training.json"


def pack(
    step: int, optimisers: Mapping[str, torch.optim.Optimizer], averaged: int | None, best: float | None
) -> dict[str, bytes]:
    """The extra files of a checkpoint taken after `step` steps."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {"step": step, "averaged": averaged, "best": best, "optimisers": {}}
    for name, optimiser in optimisers.items():
        rest: dict[str, dict[str, Any]] = {}
        for index, entries in optimiser.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{index}/{key}"] = value.detach().cpu().contiguous()
                else:
                    rest.setdefault(str(index), {})[key] = value
        scalars["optimisers"][name] = rest
    return {TENSORS: save(tensors), SCALARS: json.dumps(scalars).encode()}


def adopt(path: Path, run: Run) -> None:
    """Let a checkpoint go on as `run`: a trial takes over another's state, and keeps its own settings (PBT).

    Weights, optimisers and step stay; only settings that change no shape may differ. A checkpoint of this run stays as it is.
    """
    opened = bundles.open_bundle(path)
    if opened.run == run:
        return
    bundles.write(
        path,
        run,
        opened.domains,
        opened.state("model"),
        ema=opened.state("ema") if bundles.EMA in opened.manifest["files"] else None,
        metrics=opened.metrics(),
        parents=opened.manifest["parents"],
        card=(path / "README.md").read_text(),
        extra={name: (path / name).read_bytes() for name in (TENSORS, SCALARS)},
    )


def is_checkpoint(path: Path) -> bool:
    """Whether training can go on from this bundle."""
    return (path / SCALARS).exists()


def unpack(path: Path, optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore the optimisers in place and return the scalars: step, averaged, best.

    Raises ValueError when `path` is a bundle without training state, or of other nets.
    """
    if not is_checkpoint(path):
        raise ValueError(f"{path} is a bundle for inference only (it has no {SCALARS}); resume from a checkpoint (`last`)")
    scalars: dict[str, Any] = json.loads((path / SCALARS).read_text())
    if set(scalars["optimisers"]) != set(optimisers):
        raise ValueError(f"{path} holds optimisers for {sorted(scalars['optimisers'])}, this run has {sorted(optimisers)}")
    tensors = load((path / TENSORS).read_bytes())
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in scalars["optimisers"][name].items()}
        for key, tensor in tensors.items():
            net, index, entry = key.rsplit("/", 2)
            if net == name:
                state.setdefault(int(index), {})[entry] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return scalars
