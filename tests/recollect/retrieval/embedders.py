"""Small methods that embed pictures, and draw with what was found; and a store of pictures that they can tell apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from recollect import bundle
from recollect import config as settings
from recollect.batch import Domains, Guide, Translation
from recollect.config import Data, ModelConfig, Run
from recollect.data.schema import Record
from recollect.data.store import Store, write_store
from recollect.trainable import Queries, Trainable, Translator, weights_digest
from tests.serve.translators import METHODS as TRANSLATORS

CATALOGUE = "tests.recollect.retrieval.embedders:METHODS"
METHODS = {
    **TRANSLATORS,
    "colours": "tests.recollect.retrieval.embedders:Colours",
    "echo": "tests.recollect.retrieval.embedders:Echo",
}
DOMAINS = Domains(("warm", "cold"), attributes=("Male", "Young"))


class Colours(Trainable):
    """What colours are where, coarsely: pictures pooled to 2 x 2, and a matrix."""

    class Config(ModelConfig):
        name: str = "colours"
        dim: int = 8

    class Weights(settings.Weights):
        none: float = 0.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        assert isinstance(config, Colours.Config)
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, config.dim))

    def embed(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.net(images)
        return vectors

    def embedding_digest(self) -> str:
        return weights_digest(self.net)


class Echo(Translator):
    """Answers a picture with the one that is nearest to it by colours."""

    class Config(ModelConfig):
        name: str = "echo"
        dim: int = 8

    class Weights(settings.Weights):
        none: float = 0.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}
    stride = 1

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        self.colours = Colours(Colours.Config(), domains)

    def embed(self, images: Tensor) -> Tensor:
        return self.colours.embed(images)

    def embedding_digest(self) -> str:
        return self.colours.embedding_digest()

    def look_up(self, images: Tensor, source: int, target: int, guide: Guide) -> Queries | None:
        return Queries(1, ("",) * len(images), self.embed(images))

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        assert guide.neighbours is not None
        return Translation(F.interpolate(guide.neighbours[:, 0], images.shape[-2:]), {})


def write_echo(folder: Path, colours: Path, index: str = "") -> Path:
    """A bundle of what draws with the neighbours that the other bundle's vectors find."""
    data = Data(domains=DOMAINS.names, size=16, index=index)
    run = Run.model_validate({"name": "echo", "model": {"name": "echo"}, "data": data})
    state = {f"colours.{name}": value for name, value in bundle.open_bundle(colours).state().items()}
    return bundle.write(folder, run, DOMAINS, state).path


def write_colours(
    folder: Path, seed: int = 0, size: int = 16, short_side: int | None = None, known: tuple[str, ...] = ()
) -> Path:
    """An untrained bundle. RECOLLECT_CATALOGUE must be set."""
    torch.manual_seed(seed)
    data = Data(domains=DOMAINS.names, size=size, short_side=short_side, known=known)
    run = Run.model_validate({"name": "colours", "model": {"name": "colours"}, "data": data})
    return bundle.write(folder, run, DOMAINS, Colours(run.model, DOMAINS).state_dict()).path


def records(count: int, start: int = 0, split: str = "train") -> list[Record]:
    """Pictures of 24 x 20 in four colours, every other one warm."""
    found = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(corners).resize((24, 20), Image.Resampling.BILINEAR).save(stream, "PNG")
        attributes = {"Male": int(random.random() < 0.5), "Young": int(number % 3 == 0)}
        domain = DOMAINS.names[number % 2]
        found.append(Record(f"{split}-{number:04d}", stream.getvalue(), domain, 24, 20, split, attributes=attributes))
    return found


def write_records(uri: Path, train: int = 40, val: int = 6) -> Store:
    """A store in shards of 16 records."""
    everything = records(train) + records(val, 10_000, "val")
    write_store(uri, everything, domains=DOMAINS.names, attributes=DOMAINS.attributes, rows_per_shard=16)
    return Store.open(uri)
