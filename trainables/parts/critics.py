"""Critics (discriminators) that several papers share; all answer with logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.parts.blocks import conv
from trainables.parts.losses import Gan, adversarial, exact


class MultiScaleCritic(nn.Module):
    """Patch critics on a picture and its halvings (Wang et al. 2018), as in DRIT and MUNIT.

    Args:
        width: channels of the first layer, doubled per layer up to 8 times.
        layers: stride-2 convolutions per scale.
        scales: how many sizes of the picture are judged.
    """

    def __init__(self, width: int = 64, layers: int = 4, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_patch_critic(width, layers) for _ in range(scales))

    def forward(self, x: Tensor) -> list[Tensor]:
        answers: list[Tensor] = []
        for index, critic in enumerate(self.scales):
            if index:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            answers.append(critic(x))
        return answers


def _patch_critic(width: int, layers: int) -> nn.Sequential:
    sizes = [3, *(width * min(2**i, 8) for i in range(layers))]
    body = [
        layer
        for inputs, outputs in zip(sizes, sizes[1:], strict=False)
        for layer in (nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 4, 2), nn.LeakyReLU(0.01))
    ]
    return nn.Sequential(*body, nn.Conv2d(sizes[-1], 1, 1))


class DomainCritics(nn.Module):
    """D: patch critics on a picture and its halvings, one set a domain, as in MUNIT and UNIT.

    Slope 0.2, and widths that double at every layer.
    """

    def __init__(self, width: int, layers: int, scales: int, domains: int) -> None:
        super().__init__()
        sizes = [3, *(width * 2**i for i in range(layers))]

        def critic() -> nn.Sequential:
            body = (conv(a, b, 4, 2, act=nn.LeakyReLU(0.2)) for a, b in zip(sizes, sizes[1:], strict=False))
            return nn.Sequential(*body, nn.Conv2d(sizes[-1], 1, 1))

        self.nets = nn.ModuleList(nn.ModuleList(critic() for _ in range(scales)) for _ in range(domains))

    def forward(self, images: Tensor, domain: int) -> list[Tensor]:
        logits: list[Tensor] = []
        for critic in self.nets[domain]:  # type: ignore[attr-defined]
            logits.append(critic(images))
            images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
        return logits


class Verdict(NamedTuple):
    """What a critic of pictures with attributes answers, scale by scale; all logits."""

    real: list[Tensor]  # (B, 1, h, w)
    attributes: list[Tensor]  # (B, S)


class AttributeCritic(nn.Module):
    """D: tells pictures from translations, patch by patch, and names the attributes of the whole; as StarGAN and GMM-UNIT.

    The released classifier is a convolution as large as the last feature map, so it belongs to one size of pictures. Here the
    map is pooled to `cells` x `cells` before it, half as many a scale further down: where the map has that size already (128
    px, 5 layers: 4 x 4) this is the released one, and elsewhere it has as many weights.

    Args:
        width: channels of the first layer, doubled per layer up to 8 times.
        layers: stride-2 convolutions per scale, with slope 0.1.
        scales: how many sizes of the picture are judged.
        attributes: how many there are to name.
        cells: the classifier's kernel at the first scale.
    """

    def __init__(self, width: int, layers: int, scales: int, attributes: int, cells: int) -> None:
        super().__init__()
        sizes = [3, *(width * min(2**i, 8) for i in range(layers))]
        kernels = [max(cells // 2**i, 1) for i in range(scales)]
        self.trunks = nn.ModuleList(
            nn.Sequential(*(conv(a, b, 4, 2, act=nn.LeakyReLU(0.1)) for a, b in zip(sizes, sizes[1:], strict=False)))
            for _ in kernels
        )
        self.real = nn.ModuleList(nn.Conv2d(sizes[-1], 1, 1) for _ in kernels)
        self.attributes = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(kernel), nn.Conv2d(sizes[-1], attributes, kernel), nn.Flatten())
            for kernel in kernels
        )

    def forward(self, images: Tensor) -> Verdict:
        verdict = Verdict([], [])
        for trunk, real, attributes in zip(self.trunks, self.real, self.attributes, strict=True):
            features = trunk(images)
            verdict.real.append(real(features))
            verdict.attributes.append(attributes(features))
            images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
        return verdict

    def apart(self, images: Sequence[Tensor]) -> list[Verdict]:
        """The verdicts on several batches, reached in one pass."""
        sizes = [batch.shape[0] for batch in images]
        together: Verdict = self(torch.cat([batch.to(images[0]) for batch in images]))
        real, attributes = (zip(*(answer.split_with_sizes(sizes) for answer in part), strict=True) for part in together)
        return [Verdict(list(one), list(other)) for one, other in zip(real, attributes, strict=True)]


class ContentCritic(nn.Module):
    """Tells which domain a content map comes from: one logit a domain, pooled, so that any picture from 64 px up works.

    DRIT's own (7x7 kernels without padding) needs pictures of 216 px; zero padding and a mean over what is left keep its form
    at every size.
    """

    def __init__(self, channels: int, domains: int, layers: int = 3, kernel: int = 7) -> None:
        super().__init__()
        body = [
            layer for _ in range(layers) for layer in (nn.Conv2d(channels, channels, kernel, 2, kernel // 2), nn.LeakyReLU(0.01))
        ]
        self.body = nn.Sequential(*body, nn.Conv2d(channels, domains, 1))

    def forward(self, content: Tensor) -> Tensor:
        logits: Tensor = self.body(content).mean(dim=(-2, -1))
        return logits


def telling_apart(critic: Callable[[Tensor], list[Tensor]], pictures: Tensor, fakes: Tensor, kind: Gan) -> Tensor:
    """What a critic strives for: to answer 1 to pictures (B, 3, H, W) and 0 to translations (F, 3, H, W), judged in one pass.

    >>> telling_apart(lambda x: [x], torch.ones(2, 3, 4, 4), torch.ones(1, 3, 4, 4), "lsgan")
    tensor(1.)
    """
    sizes = [pictures.shape[0], fakes.shape[0]]
    real, fake = zip(*(logits.split_with_sizes(sizes) for logits in critic(torch.cat([pictures.to(fakes), fakes]))), strict=True)
    return adversarial(list(real), 1.0, kind) + adversarial(list(fake), 0.0, kind)


def undecided(logits: Tensor) -> Tensor:
    """Cross-entropy of a domain critic's logits (B, D) against the even distribution: what content encoders strive for.

    >>> import torch
    >>> round(undecided(torch.zeros(2, 2)).item(), 4)  # log 2: nothing better is possible
    0.6931
    """
    return -exact(logits).log_softmax(dim=-1).mean()
