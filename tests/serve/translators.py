"""Two small translators for the tests, real ones: they are in a bundle, open like any other, and answer through Ray Serve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recollect import bundle
from recollect.batch import Domains, Guide, Translation
from recollect.config import Data, ModelConfig, Run, Weights, preset
from recollect.trainable import Translator, refuse
from trainables import catalogue
from trainables.mguit import MGUIT

METHODS = {
    **catalogue.METHODS,  # whatever runs in this process later finds its own
    "tint": "tests.serve.translators:Tint",
    "flat": "tests.serve.translators:Flat",
}
CATALOGUE = "tests.serve.translators:METHODS"
STREETS = Domains(("sunny", "night"), ("background", "car", "person", "sign"))
DOMAINS = Domains(("sunny", "night", "rainy"), ("background", "car"))
NOISE, ITEMS = 8, 12


class Tint(Translator):
    """An encoder, a style that is a noise vector (AdaIN), a decoder, and a memory of unlearned keys."""

    class Config(ModelConfig):
        name: str = "tint"
        width: int = 8
        slow_at_width: int = 0  # pictures that wide take a while, as large ones do
        fails_at_width: int = 0  # pictures that wide break it, as a fault in a method would

    class Weights(Weights):
        rec: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        assert isinstance(config, Tint.Config)
        self.settings, width = config, config.width
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.InstanceNorm2d(width), nn.ReLU())
        self.style = nn.Linear(NOISE, 2 * width)
        self.domain = nn.Embedding(len(domains.names), 2 * width)
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(width + 3, 3, 3, padding=1), nn.Tanh())
        self.keys = nn.Buffer(torch.randn(ITEMS, width))

    @property
    def stride(self) -> int:
        return 4

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        refuse(guide, ("noise",), "tint")
        if images.shape[-1] == self.settings.slow_at_width:
            time.sleep(0.8)
        if images.shape[-1] == self.settings.fails_at_width:
            raise RuntimeError("a secret of the implementation")
        content = self.encoder(images)  # (B, width, h, w)
        noise = guide.noise if guide.noise is not None else images.new_zeros(len(images), NOISE)
        index = torch.full((len(images),), target, device=images.device)
        scale, shift = (self.style(noise) + self.domain(index)).chunk(2, dim=1)
        styled = content * (1 + scale[..., None, None]) + shift[..., None, None]
        up = self.decoder[0](styled)
        items = torch.einsum("bchw,nc->bnhw", content, self.keys).argmax(dim=1)
        return Translation(self.decoder[2](self.decoder[1](torch.cat([up, images], dim=1))), {"memory_map": items})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        return Guide(noise=torch.stack([torch.randn(NOISE, generator=generator) for generator in generators]))


class Flat(Translator):
    """One convolution: no random styles, no memory."""

    class Config(ModelConfig):
        name: str = "flat"

    class Weights(Weights):
        rec: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        self.net = nn.Conv2d(3, 3, 3, padding=1)

    @property
    def stride(self) -> int:
        return 1

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        refuse(guide, (), "flat")
        return Translation(self.net(images).tanh(), {})


def write_bundle(folder: Path, method: str = "tint", name: str = "tinted", **model: Any) -> Path:
    """An untrained bundle of a method above. RECOLLECT_CATALOGUE must be set."""
    torch.manual_seed(3)
    run = Run.model_validate({"name": name, "model": {"name": method, **model}, "data": Data(domains=DOMAINS.names, size=32)})
    net = {"tint": Tint, "flat": Flat}[method](run.model, DOMAINS)
    return bundle.write(folder / name, run, DOMAINS, net.state_dict()).path


def write_mguit(folder: Path, store: str = "", **model: Any) -> Path:
    """An untrained bundle of the published method, at its smallest."""
    run = preset("mguit:tiny", data={"domains": STREETS.names, "store": store}, model=model)
    run = run.model_copy(update={"name": "memory", "model": run.model.suited_to(STREETS.classes)})
    torch.manual_seed(0)
    return bundle.write(folder / "memory", run, STREETS, MGUIT(run.model, STREETS).state_dict()).path
