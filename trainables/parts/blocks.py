"""Layers that several papers share. B pictures, C channels, H x W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.trainable import Block
from trainables.parts.passes import by_domain, in_one_pass

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


def instance_norm(x: Tensor) -> Tensor:
    """Every channel of every picture (B, C, H, W) with mean 0 and deviation 1.

    By `group_norm`: torch's `instance_norm` (2.14, on a CPU) has the wrong gradient for a single picture where gradients come in
    the other memory format, and takes three times as long.
    """
    return F.group_norm(x, x.shape[1])


class InstanceNorm(nn.Module):
    """`instance_norm`, without an affine map."""

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A normalisation layer by name; instance norm has no affine map."""
    return LayerNorm2d(channels) if kind == "layer" else InstanceNorm() if kind == "instance" else nn.Identity()


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm: Norm = "none", act: nn.Module | None = None
) -> nn.Sequential:
    """Reflection padding, convolution, normalisation, activation."""
    layers: list[nn.Module] = [nn.ReflectionPad2d((kernel - 1) // 2)] if kernel > 1 else []
    layers += [nn.Conv2d(inputs, outputs, kernel, stride), make_norm(norm, outputs)]
    return nn.Sequential(*layers, *([act] if act else []))


class DoublingConv(nn.Conv2d):
    """Nearest-neighbour doubling, reflection padding and a convolution in one: (B, C, h, w) to (B, outputs, 2h, 2w); h, w >= 2.

    A doubled picture shows every pixel four times, so four small kernels on the picture before, whose taps are sums of this
    one's, give its four pixels: with 5 taps a side 9 products for 25, with 3 taps 4 for 9. The numbers are those of the three
    steps, but for the order of sums.
    """

    sums: Tensor  # (k k, 4 s s + 4 k): which taps each tap of the kernels made of them sums up

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        if kernel not in (3, 5):
            raise ValueError(f"a doubling convolution has 3 or 5 taps a side, not {kernel}")
        self.taps = (kernel + 1) // 2
        pairs = torch.zeros(2, self.taps, kernel)  # along a line: its even pixels and its odd ones, small taps, taps
        for phase in range(2):
            seen = [(phase + tap - kernel // 2) // 2 for tap in range(kernel)]
            for tap, place in enumerate(seen):
                pairs[phase, place - seen[0], tap] = 1
        edge = torch.tensor([[float(tap in (0, kernel - 1)), float(0 < tap < kernel - 1)] for tap in range(kernel)])
        each = torch.eye(kernel)
        made = [
            torch.einsum("pau,qbv->uvpqab", pairs, pairs),  # the four pixels
            torch.einsum("ua,vb->uvab", edge, each),  # the outermost rows, (2, k)
            torch.einsum("ua,vb->uvab", each, edge),  # and columns, (k, 2)
        ]
        self.register_buffer("sums", torch.cat([one.reshape(kernel**2, -1) for one in made], 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), taps = self.kernel_size, self.taps
        inside, rows, columns = self._summed().split_with_sizes([4 * taps**2, 2 * kernel, 2 * kernel], 2)
        picture = self._replicated(x, inside.reshape(*inside.shape[:2], 4, taps, taps).transpose(1, 2).flatten(0, 1))
        if taps == 2:  # reflection by one pixel of a doubled picture is just that
            return picture
        return self._reflected(x, picture, rows.reshape(*rows.shape[:2], 2, kernel), columns.reshape(*rows.shape[:2], kernel, 2))

    def _summed(self) -> Tensor:
        """The taps of all kernels made of this one's, (outputs, inputs, taps); bf16 would round sums before they are used."""
        if self.weight.is_meta or not torch.is_autocast_enabled(self.weight.device.type):
            return self.weight.flatten(2) @ self.sums
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight.flatten(2) @ self.sums

    def _replicated(self, x: Tensor, weight: Tensor) -> Tensor:
        """All of it, as if the picture went on with its outermost pixels."""
        (height, width), shift = x.shape[-2:], 3 - self.taps
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias)
        if shift == 0:
            return F.pixel_shuffle(y, 2)
        y = y.reshape(y.shape[0], self.out_channels, 2, 2, *y.shape[2:])
        lines = [
            torch.stack([y[:, :, p, q, p * shift :, q * shift :][..., :height, :width] for q in range(2)], -1) for p in range(2)
        ]
        return torch.stack(lines, -3).reshape(x.shape[0], self.out_channels, 2 * height, 2 * width)

    def _reflected(self, x: Tensor, picture: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """The same with its outermost lines as reflection has them: of the second pixel they see two taps, of the first three."""
        count = x.shape[0]
        rows = torch.cat([x[:, :, :2].flip(2), x[:, :, -2:]]).repeat_interleave(2, dim=3)  # second, first
        rows = F.conv2d(F.pad(rows, (2, 2, 0, 0), mode="reflect"), down, self.bias)
        columns = torch.cat([x[..., :2].flip(3), x[..., -2:]]).repeat_interleave(2, dim=2)
        columns = F.conv2d(F.pad(columns, (0, 0, 2, 2), mode="reflect"), across, self.bias)[:, :, 1:-1]
        middle = torch.cat([columns[:count], picture[:, :, 1:-1, 1:-1], columns[count:]], dim=3)
        return torch.cat([rows[:count], middle, rows[count:]], dim=2)


def deconv(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Transposed 3x3 convolution that doubles the picture, normalisation, ReLU."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1), make_norm(norm, outputs), nn.ReLU())


class ResBlock(Block):
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
        self.affine = nn.Conv2d(style_dim, 2 * channels, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = resize_to(self.affine(style), x).chunk(2, dim=1)
        return instance_norm(x) * (1 + scale) + shift


class ModulatedResBlock(Block):
    """A residual block whose norms are modulated by a style map."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels) for _ in range(2))
        self.norms = nn.ModuleList(Modulation(channels, style_dim) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.convs[0](x), style))
        body: Tensor = self.norms[1](self.convs[1](hidden), style)
        return x + body


def adain(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive instance norm: every channel of every picture (B, C, H, W) gets the mean `shift` and deviation `scale`, (B, C).

    >>> adain(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[5.0]]), torch.tensor([[3.0]])).round(decimals=3)
    tensor([[[[2., 8.]]]])
    """
    return instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


class AdaINResBlock(Block):
    """A residual block whose two instance norms take shift and scale from a vector of style parameters (MUNIT)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels) for _ in range(2))

    def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
        """`parameters` is (B, 4 C): shift and scale of the first norm, then of the second."""
        shift1, scale1, shift2, scale2 = parameters.to(x.dtype).chunk(4, dim=1)
        hidden = F.relu(adain(self.convs[0](x), shift1, scale1))
        return x + adain(self.convs[1](hidden), shift2, scale2)


class Mlp(nn.Sequential):
    """`layers` fully connected layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 3) -> None:
        sizes = [inputs, *(hidden for _ in range(layers - 1)), outputs]
        body = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(*body[:-1])


class GlobalStyleEncoder(nn.Sequential):
    """Pictures (B, 3, H, W) to style vectors (B, style_dim); no normalisation, which would erase the style (MUNIT's E_s).

    Of the `downs` halvings the first two double the channels. Pictures are at least 2 ** downs pixels.
    """

    def __init__(self, width: int, style_dim: int, downs: int = 4) -> None:
        sizes = [width * 2 ** min(i, 2) for i in range(downs + 1)]
        super().__init__(
            conv(3, width, 7, act=nn.ReLU()),
            *(conv(a, b, 4, 2, act=nn.ReLU()) for a, b in zip(sizes, sizes[1:], strict=False)),
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(sizes[-1], style_dim, 1), nn.Flatten()),
        )


def content_layers(width: int, downs: int, blocks: int) -> nn.Sequential:
    """Pictures to content (B, width * 2 ** downs, h, w): halvings and residual blocks with instance norm (MUNIT's E_c)."""
    sizes = [width * 2**i for i in range(downs + 1)]
    return nn.Sequential(
        conv(3, width, 7, norm="instance", act=nn.ReLU()),
        *(conv(a, b, 4, 2, norm="instance", act=nn.ReLU()) for a, b in zip(sizes, sizes[1:], strict=False)),
        *(ResBlock(sizes[-1]) for _ in range(blocks)),
    )


def doublings(width: int, downs: int) -> list[nn.Module]:
    """Layers from features (B, width * 2 ** downs, h, w) to (B, width, H, W), with layer norm (of MUNIT's decoder)."""
    sizes = [width * 2**i for i in reversed(range(downs + 1))]
    return [
        layer
        for a, b in zip(sizes, sizes[1:], strict=False)
        for layer in (DoublingConv(a, b, 5), make_norm("layer", b), nn.ReLU())
    ]


def picture_layers(width: int, downs: int) -> nn.Sequential:
    """Features (B, width * 2 ** downs, h, w) to pictures: doublings, and tanh (the tail of MUNIT's decoder)."""
    return nn.Sequential(*doublings(width, downs), conv(width, 3, 7, act=nn.Tanh()))


class TailSharingEncoder(nn.Module):
    """Pictures to content (B, width * 2 ** downs, h, w): a trunk per domain, and one last block for all (DRIT's E_c)."""

    def __init__(self, width: int, downs: int, blocks: int, domains: int) -> None:
        super().__init__()
        top = width * 2**downs
        self.trunks = nn.ModuleList(
            nn.Sequential(
                conv(3, width, 7, act=nn.LeakyReLU(0.01)),
                *(conv(width * 2**i, width * 2 ** (i + 1), 3, 2, norm="instance", act=nn.ReLU()) for i in range(downs)),
                *(ResBlock(top) for _ in range(blocks - 1)),
            )
            for _ in range(domains)
        )
        self.tail = ResBlock(top)

    def forward(self, images: Tensor, domain: int) -> Tensor:
        return self.together([images], [domain])[0]

    def together(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        """The contents of pictures of several domains, with one pass through what they share."""
        return in_one_pass(self.tail, by_domain(self.trunks, domains, images))  # (B, C, h, w) each


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
