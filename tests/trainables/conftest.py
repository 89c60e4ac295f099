"""Weights with the names and shapes of torchvision's published VGG16, drawn at random: the real ones are not ours to ship."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import vgg16


def published_vgg16() -> dict[str, Tensor]:
    """A state dictionary of torchvision's VGG16: drawn features, an empty classifier (no loss needs it)."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16(weights=None).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, tensor in state.items():
        if name.startswith("features.") and tensor.ndim == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return state


def stored(tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
    """Write a safetensors file; returns the fields of its `WeightsFile`."""
    save_file(tensors, path)
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture(scope="session")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The feature layers in a file, which is all that is read of it."""
    features = {name: tensor for name, tensor in published_vgg16().items() if name.startswith("features.")}
    return stored(features, tmp_path_factory.mktemp("weights") / "vgg16.safetensors")
