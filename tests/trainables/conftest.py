"""What the tests of methods share.

Weights have the names and shapes of torchvision's published VGG16 and are drawn at random: the real ones are not ours to ship.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import vgg16

from recollect.testing import LONG


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a variant of a method, what takes long is a slow test."""
    for item in items:
        if isinstance(item, pytest.Function) and getattr(item.cls, "variant", False) and item.originalname in LONG:
            item.add_marker("slow")


def published_vgg16() -> dict[str, Tensor]:
    """A state dictionary of torchvision's VGG16: drawn features, and a classifier (no loss needs it) of shapes alone."""
    with torch.device("meta"):
        state: dict[str, Tensor] = vgg16(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.startswith("features."):
            deviation = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.0
            state[name] = torch.randn(tensor.shape, generator=generator) * deviation
    return state


def stored(tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
    """Write a safetensors file; returns the fields of its `WeightsFile`. Tensors on the meta device are a hole at its end."""
    real = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    save_file(real, path)
    if len(real) < len(tensors):
        _append_hole(path, {name: tensor for name, tensor in tensors.items() if tensor.is_meta})
    with path.open("rb") as stream:
        return {"path": str(path), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _append_hole(path: Path, tensors: dict[str, Tensor]) -> None:
    """Half a gigabyte of zeros that costs no disk: a length, a header of JSON, then the tensors' bytes."""
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8:length]), len(content) - length
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[length:])
    with path.open("r+b") as stream:
        stream.truncate(8 + len(text) + end)


@pytest.fixture(scope="session")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The feature layers in a file, which is all that is read of it."""
    features = {name: tensor for name, tensor in published_vgg16().items() if name.startswith("features.")}
    return stored(features, tmp_path_factory.mktemp("weights") / "vgg16.safetensors")


def doubling(inputs: int, outputs: int, side: int) -> int:
    """Products of a doubling convolution of 5 taps that gives pictures of this side."""
    inside, lines, taps = 36 * (side // 2) ** 2, 4 * side * 2 * 5, 5 * 5 * (36 + 10 + 10)
    return inputs * outputs * (inside + lines + taps)
