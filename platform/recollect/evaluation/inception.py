"""Inception-v3, as torchvision has it and as the published FID, KID and IS have it.

The latter is TensorFlow's network of 2015, from which torchvision's differs in small things that change FID: the mean over a
window leaves the padding out, the last block takes a maximum, pictures are resized without antialiasing from the upper left
corner, and there are 1008 classes. Names of weights are the same in both. Checked against torch-fidelity in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import inception as blocks

SIDE = 299  # pixels: what it sees


def inception_net(classes: int, tensorflow: bool) -> Any:
    """Inception-v3 that ends with its 2048 features, the last layer beside it as `head`; TensorFlow's pools otherwise."""
    kinds = [blocks.BasicConv2d, _A, blocks.InceptionB, _C, blocks.InceptionD, _E, blocks.InceptionAux]
    net = models.Inception3(classes, aux_logits=False, init_weights=False, inception_blocks=kinds if tensorflow else None)
    if tensorflow:
        net.Mixed_7c.pool = nn.MaxPool2d(3, 1, padding=1)  # what the published graph does in its last block, and only there
    net.head, net.fc, net.dropout = net.fc, nn.Identity(), nn.Identity()
    return net


class _Pooled:
    """Blocks whose pooling leaves the padding out of the mean, as TensorFlow's does; the other branches are torchvision's."""

    pool: nn.Module
    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        pool = getattr(self, "pool", None) or nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        branches: list[Tensor] = super()._forward(x)  # type: ignore[misc]
        return [*branches[:-1], self.branch_pool(pool(x))]


class _A(_Pooled, blocks.InceptionA): ...


class _C(_Pooled, blocks.InceptionC): ...


class _E(_Pooled, blocks.InceptionE): ...


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear (B, C, H, W) to (B, C, side, side) as TensorFlow 1 resizes: pixel i is sampled at i * H / side.

    >>> resize_like_tensorflow(torch.tensor([[[[0.0, 4.0]]]]), 4)[0, 0, 0]
    tensor([0., 2., 4., 4.])
    """
    for axis in (2, 3):
        length = images.shape[axis]
        place = torch.arange(side, device=images.device, dtype=images.dtype) * (length / side)
        low = place.long()
        share = (place - low).view(-1, *[1] * (3 - axis))
        below, above = images.index_select(axis, low), images.index_select(axis, (low + 1).clamp_max(length - 1))
        images = below + (above - below) * share
    return images
