"""Attribute classifiers: one sigmoid an attribute, trained by the same engine as the translators.

They say what translations show (RG-UNIT's Table 7: a ResNet-50 fine-tuned on CelebA; Gomez, Liu, De Nadai, Karatzas, Lepri, Sebe,
ACM MM 2020, section 4.1), and their features compare sets of pictures. A bundle of one is a named, versioned judge.

    features = body(I)   logits = head(features)   p(attribute) = sigmoid(logit)

Legend: B pictures, A attributes, F features. Pictures are (B, 3, H, W) in [-1, 1].

- An attribute of a picture may be unknown, or not apply: it enters no loss. The loss is the mean over what is known in the JOINT
  batch, by `step.reduce`d counts, so N ranks take the step of one process.
- `architecture = "small"`: strided convolutions that keep where things are (a smile, the turn of a head), for worlds of 64 to 128
  pixels on a CPU.
- `architecture = "resnet50"`: torchvision's, its published batch norms frozen (the paper goes on training them, and a step would
  depend on the ranks); without published weights with group norms, from scratch. Published files are pickles; make one of them
  without running what is in it:

      python -c "import torch, safetensors.torch as s; s.save_file(torch.load('resnet50-0676ba61.pth', weights_only=True),
      'resnet50.safetensors')" && sha256sum resnet50.safetensors
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from recollect.batch import Batch, Domains, onto
from recollect.config import Choice, ModelConfig, Weights, did_you_mean
from recollect.objective import Terms
from recollect.pretrained import WeightsFile, read_weights
from recollect.trainable import Part, Phase, Step, Trainable
from trainables.parts.perceptual import DEVIATION, MEAN

PUBLISHED = "of torchvision's resnet50 (ImageNet), as safetensors"
CELL = 8  # pictures are cut to multiples of this; pictures of any size are classified
PLACES = 4  # a side: how finely `small` tells where things are


class ClassifierConfig(ModelConfig):
    """The network. `attributes` empty: all of the data's."""

    name: Literal["classifier"] = "classifier"
    architecture: Literal["small", "resnet50"] = "small"
    attributes: tuple[str, ...] = ()
    width: Annotated[int, Field(ge=8, multiple_of=8), Choice((16, 24, 32), shape=True)] = 24  # small: channels at half resolution
    features: Annotated[int, Field(ge=1), Choice((64, 128), shape=True)] = 64  # small: F
    pretrained: WeightsFile = WeightsFile()  # resnet50: torchvision's; empty: from scratch

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes must be distinct names, not {', '.join(self.attributes)}")
        if self.pretrained.path and self.architecture == "small":
            raise ValueError("there are no published weights for the small architecture; leave pretrained.path empty")
        return self


class ClassifierWeights(Weights):
    """The only term: binary cross entropy."""

    bce: float = 1.0


class SmallBody(nn.Module):
    """Four halvings, then a grid of 4 x 4 places, each with its channels, to F features."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (width, 2 * width, 2 * width, 4 * width):
            layers += [nn.Conv2d(before, channels, 4, 2, padding=1), nn.GroupNorm(8, channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU()]
            before = channels
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(PLACES), nn.Flatten())
        self.summary = nn.Sequential(nn.Linear(before * PLACES**2, features), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.summary(self.body(images))
        return features  # (B, F)


class ResNetBody(nn.Module):
    """torchvision's ResNet-50 without its last layer: 2048 features."""

    def __init__(self, published: bool) -> None:
        super().__init__()
        self.net = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if published else partial(nn.GroupNorm, 32))
        self.net.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        features: Tensor = self.net(((images + 1) / 2 - mean) / deviation)
        return features  # (B, 2048)


class Classifier(Trainable):
    """Says which attributes pictures have, in any of the run's domains.

    Args:
        config: the attributes and the network.
        domains: one domain or more (their pictures are learnt from alike), and the attributes of the data.

    Raises ValueError where the data has no attributes, or not those of the configuration.
    """

    Config = ClassifierConfig
    Weights = ClassifierWeights
    config: ClassifierConfig
    domains_needed = 1
    judged_by = "recollect.evaluation.classification:ClassificationJudge"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 to 128 px, trains on a CPU in minutes; left and right are attributes, so pictures are not mirrored
            "data": {"size": 64, "flip": False},
            "optimisers": {"default": {"lr": 1e-3, "betas": (0.9, 0.999), "hold": 0.5}},
            "engine": {"steps": 2000, "batch_size": 32, "evaluate_every": 500, "ema": 0.99},
            "evaluation": {"pictures": 400},
        },
        "paper": {  # add model.pretrained.path and model.pretrained.sha256, with which the paper starts
            "data": {"size": 224},
            "model": {"architecture": "resnet50"},
            "optimisers": {"default": {"kind": "sgd", "lr": 0.01, "momentum": 0.9, "halve_every": 20_000}},
            "engine": {"steps": 100_000, "batch_size": 64, "evaluate_every": 5000, "log_every": 100},
            "evaluation": {"pictures": 2000},
        },
    }

    def __init__(self, config: ClassifierConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        if not domains.attributes:
            raise ValueError(
                "classifier needs attributes, and the data has none; `recollect data` reads them from a CSV or Parquet"
            )
        for name in config.attributes:
            if name not in domains.attributes:
                raise ValueError(
                    f"the data has no attribute {name!r}{did_you_mean(name, domains.attributes)}; set model.attributes"
                )
        self.attributes = config.attributes or domains.attributes
        self.columns = [domains.attributes.index(name) for name in self.attributes]  # of a batch's attributes
        small = config.architecture == "small"
        self.body = SmallBody(config.width, config.features) if small else ResNetBody(bool(config.pretrained.path))
        self.head = nn.Linear(config.features if small else 2048, len(self.attributes))

    @property
    def stride(self) -> int:
        return CELL

    def begin(self) -> None:
        """Read the published weights, where the configuration names some.

        Raises ValueError where the file is another one, or does not hold a ResNet-50.
        """
        file = self.config.pretrained
        if not file.path:
            return
        assert isinstance(self.body, ResNetBody)
        state = read_weights(file, "model.pretrained", PUBLISHED)
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}  # its classes are not ours
        missing, strange = self.body.net.load_state_dict(kept, strict=False)
        wrong = [name for name in (*strange, *missing) if not name.endswith("num_batches_tracked")]
        if wrong:
            raise ValueError(f"model.pretrained: {file.path} is not what it should be ({PUBLISHED}): see its {wrong[0]!r}")

    def phases(self) -> tuple[Phase, ...]:
        """A single update of the whole network."""
        return (Phase("classify", (Part(("body", "head"), self.classification_terms),)),)

    def classification_terms(self, step: Step) -> Terms:
        """The cross entropy over what is known of the pictures of all domains."""
        if not step.wants("bce"):
            return {}
        images = torch.cat([batch.images for batch in step.batches])
        truth = onto(torch.cat([self._truth(batch) for batch in step.batches]), images.device, images.dtype)
        known = ~truth.isnan()
        losses = F.binary_cross_entropy_with_logits(self.logits(images), truth.nan_to_num(), reduction="none")
        total = step.reduce(known.sum().to(images)).clamp_min(1)  # nothing is known of a batch: there is nothing to learn
        return {"bce": (losses * known).sum() * step.shares / total}  # in the mean over shares that of the joint batch

    def _truth(self, batch: Batch) -> Tensor:
        assert batch.attributes is not None, "data with attributes has them in every batch"
        return batch.attributes[:, self.columns]

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of pictures of any size: (B, F)."""
        features: Tensor = self.body(images)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """How sure it is of each attribute (B, A), in the order of `attributes`: above zero it says yes."""
        logits: Tensor = self.head(self.features(images))
        return logits
