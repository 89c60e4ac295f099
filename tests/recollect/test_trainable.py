"""What a method's weights are known by."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from recollect.trainable import weights_digest


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_the_same_weights_have_one_digest_in_any_precision() -> None:
    known = weights_digest(net())
    assert weights_digest(net().double()) == known == weights_digest(net().double().float())
    halved = net().bfloat16()
    assert weights_digest(halved) == weights_digest(net().bfloat16().double()) != known  # other values


@pytest.mark.parametrize("change", ["weight", "buffer", "count", "shape", "order", "name"])
def test_whatever_differs_is_another_digest(change: str) -> None:
    known, other = weights_digest(net()), net()
    with torch.no_grad():
        if change == "weight":
            other[0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index]
        elif change == "buffer":
            other[1].running_mean[2] = 1e-6  # type: ignore[index]
        elif change == "count":
            other[1].num_batches_tracked += 1  # type: ignore[index]
        elif change == "shape":
            other[2].weight = nn.Parameter(other[2].weight.detach().reshape(4, 2))  # type: ignore[index]
        elif change == "name":
            other = nn.ModuleDict(dict(zip("abc", other.children(), strict=True)))
    if change == "order":
        assert weights_digest(net(), net(1)) != weights_digest(net(1), net())
    else:
        assert weights_digest(other) != known


def test_the_digest_of_float32_weights_is_that_of_their_bytes() -> None:
    digest = hashlib.sha256()
    for name, tensor in net().state_dict().items():
        digest.update(f"0/{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + tensor.numpy().tobytes())
    assert weights_digest(net()) == digest.hexdigest()  # which indexes name
