"""R, the network that puts (content, style) pairs where pairs alike in both are near (RG-UNIT, section 3.2 and Table 5)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from recollect.config import Choice, Frozen
from trainables.parts.blocks import make_norm

CELLS = 4  # the content is pooled to 4 x 4, which at the paper's 128 px is what it has already


class EmbeddingConfig(Frozen):
    """R. Table 5 has instance norm, which would erase what it is to see; the text and the released code have this one."""

    widths: tuple[int, int, int] = (128, 64, 32)  # channels, each halving the content once
    hidden: Annotated[int, Field(ge=1), Choice((256, 512), shape=True)] = 512
    dim: Annotated[int, Field(ge=1), Choice((32, 64, 100, 300), shape=True)] = 100  # figure 2 says 300, appendix A.2 100
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Embedding(nn.Module):
    """Vectors (B, E) of contents (B, C, h, w) and styles (B, Z). Not normalised; distances between them are Euclidean."""

    def __init__(self, config: EmbeddingConfig, channels: int, style: int) -> None:
        super().__init__()
        self.dropout, self.hidden = config.dropout, config.hidden
        sizes = [channels, *config.widths]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(a, b, 3, 1, 1), make_norm("layer", b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 4, 2, 1), make_norm("layer", b), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(CELLS))
        self.first = nn.Linear(config.widths[-1] * CELLS**2 + style, config.hidden)
        self.second = nn.Linear(config.hidden, config.hidden)
        self.last = nn.Linear(config.hidden, config.dim)

    def forward(self, content: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """`noise` (B, hidden), standard normal, drops units while training: a number of it drops one where it is low."""
        x = torch.cat([self.trunk(content).flatten(1), style.to(content.dtype)], dim=1)
        x = self.second(self.first(x).relu()).relu()
        if noise is not None and self.dropout:
            x = x * (torch.special.ndtr(noise) >= self.dropout) / (1 - self.dropout)
        vectors: Tensor = self.last(x)
        return vectors
