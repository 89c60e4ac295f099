"""Layers that several papers share. B pictures, C channels, H x W pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["none", "instance", "layer"]


class LayerNorm2d(nn.Module):
    """Normalises over (C, H, W) with an affine map per channel, as DRIT and MUNIT do in their decoders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normal = F.layer_norm(x, x.shape[1:])
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A normalisation layer by name; instance norm has no affine map."""
    made: nn.Module = {"none": nn.Identity, "instance": nn.InstanceNorm2d, "layer": LayerNorm2d}[kind](channels)
    return made


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm: Norm = "none", act: nn.Module | None = None
) -> nn.Sequential:
    """Reflection padding, convolution, normalisation, activation."""
    layers: list[nn.Module] = [nn.ReflectionPad2d((kernel - 1) // 2)] if kernel > 1 else []
    layers += [nn.Conv2d(inputs, outputs, kernel, stride), make_norm(norm, outputs)]
    return nn.Sequential(*layers, *([act] if act else []))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with instance norm around a skip; no activation at the end (DRIT's INSResBlock)."""

    def __init__(self, channels: int, norm: Norm = "instance") -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, norm=norm, act=nn.ReLU()), conv(channels, channels, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        return x + body


class DownBlock(nn.Module):
    """A pre-activation residual block (DRIT's BasicBlock), halving the picture where `down`."""

    def __init__(self, inputs: int, outputs: int, down: bool = True, norm: Norm = "none") -> None:
        super().__init__()
        pool: nn.Module = nn.AvgPool2d(2) if down else nn.Identity()
        self.body = nn.Sequential(
            *(make_norm(norm, inputs), nn.LeakyReLU(0.2), conv(inputs, inputs)),
            *(make_norm(norm, inputs), nn.LeakyReLU(0.2), conv(inputs, outputs), pool),
        )
        self.skip = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        skip: Tensor = self.skip(x)
        return body + skip


class Modulation(nn.Module):
    """Instance norm whose scale and shift are read from a style map at every pixel."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.affine = nn.Conv2d(style_dim, 2 * channels, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = resize_to(self.affine(style), x).chunk(2, dim=1)
        normal: Tensor = self.norm(x)
        return normal * (1 + scale) + shift


class ModulatedResBlock(nn.Module):
    """A residual block whose norms are modulated by a style map."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels) for _ in range(2))
        self.norms = nn.ModuleList(Modulation(channels, style_dim) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.convs[0](x), style))
        body: Tensor = self.norms[1](self.convs[1](hidden), style)
        return x + body


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, nearest neighbour."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, size=like.shape[-2:], mode="nearest")


def initialise(module: nn.Module, std: float | None) -> None:
    """Gaussian weights with this deviation for every convolution; None: Kaiming's, which starves no un-normalised layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if std is None:
                nn.init.kaiming_normal_(layer.weight, a=0.2)
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
