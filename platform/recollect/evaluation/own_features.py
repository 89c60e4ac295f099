"""Features of a network that was trained on the data itself (`trainables.features`), for sets and for pairs of pictures.

Legend: B pictures, n pictures of one input, P pairs, H x W pixels, F features, K classes.
"""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.batch import Domains
from recollect.bundle import Bundle, open_bundle
from recollect.data.transforms import check_pictures
from recollect.evaluation.extractors import Extractor

BATCH = 32


@runtime_checkable
class DescribesPictures(Protocol):
    """What a bundle of features holds."""

    domains: Domains

    def features(self, images: Tensor) -> Tensor: ...  # (B, F)
    def answers(self, features: Tensor, task: str) -> Tensor: ...
    def mode_logits(self, features: Tensor, target: int) -> Tensor: ...  # (B, k)
    def body(self, images: Tensor) -> Tensor: ...  # (B, F, h, w)


class OwnFeatures(Extractor):
    """A trained network of features. What it classifies pictures by, for IS and CIS, depends on where they were translated to.

    The styles inside the target domain, where the data says them; else the data's attributes, each a question of yes and no;
    else nothing (`classes` is 0).

    Args:
        bundle: a bundle of features.
        target: the domain that pictures are translated to; empty: into attributes.

    Raises ValueError for a bundle of something else.
    """

    def __init__(self, bundle: str | os.PathLike[str] | Bundle, device: str | torch.device = "cpu", target: str = "") -> None:
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        model: Any = opened.build().to(device).eval()
        if not isinstance(model, DescribesPictures):
            raise ValueError(
                f"{opened.path} holds {opened.run.model.name!r}, not features; `recollect features train` makes some"
            )
        self.model: Any = model
        self.size, self.device = opened.run.data.size, torch.device(device)
        self.digest, self.name = opened.digest, f"features:{opened.digest[:8]}"
        self.data = str(opened.manifest["parents"].get("data", ""))
        self.features = self.describe(torch.zeros(1, 3, self.size, self.size)).shape[1]
        names = model.domains.names
        self.target = names.index(target) if target in names else None
        self.questions, self.classes = self._asked()

    def _asked(self) -> tuple[tuple[str, ...], int]:
        if self.target is not None and (styles := self.model.mode_logits(self._blank(), self.target).shape[1]):
            return ("",), styles
        attributes = self.model.domains.attributes
        return (attributes, 2) if attributes else (("",), 0)

    def _blank(self) -> Tensor:
        return torch.zeros(1, self.features, device=self.device)

    def describe(self, images: Tensor) -> Tensor:
        """Features (B, F) of pictures of any size. Raises ValueError for what are no pictures."""
        with torch.inference_mode():
            found: Tensor = self.model.features(self.resized(images))
        return found.double().cpu()

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, Q, K). Raises ValueError for what are no pictures."""
        with torch.inference_mode():
            features = self.model.features(self.resized(images))
            if self.questions == ("",):
                assert self.target is not None, "there is nothing to ask these features"
                styles: Tensor = self.model.mode_logits(features, self.target)
                return styles.double().softmax(1)[:, None].cpu()
            yes = self.model.answers(features, "attributes").double().sigmoid().cpu()
        return torch.stack([1 - yes, yes], dim=2)

    def resized(self, images: Tensor) -> Tensor:
        """Pictures of the size that the network was trained on, on its device."""
        check_pictures(images)
        images = images.to(self.device, torch.float32)
        if tuple(images.shape[2:]) == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


class OwnDistance:
    """How far pictures are from each other in the maps of own features: LPIPS without its linear heads.

    In every cell the features are made unit vectors; the distance is the squared difference, averaged over cells: in [0, 4].
    """

    published = False

    def __init__(self, features: OwnFeatures) -> None:
        self.own = features
        self.name, self.digest, self.device = features.name, features.digest, features.device

    def between(self, images: Tensor, pairs: Tensor) -> Tensor:
        """Distances (P,) between the pairs (P, 2) of pictures (n, 3, H, W)."""
        with torch.inference_mode():
            maps = torch.cat([self.own.model.body(self.own.resized(batch)) for batch in torch.split(images, BATCH)])
            unit = F.normalize(maps.double(), dim=1)
            found = (unit[pairs[:, 0]] - unit[pairs[:, 1]]).square().sum(1).mean((1, 2))
        return found.cpu()
