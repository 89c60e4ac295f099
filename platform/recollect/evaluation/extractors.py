"""Networks that describe pictures for `diversity` and `frechet`, by name, each with a digest of its weights.

    inception      the Inception-v3 of FID, KID and IS as published: TensorFlow's of 2015, 2048 features, 1008 classes
    inception_v3   torchvision's Inception-v3, or one fine-tuned on the modes of a domain as MUNIT's IS and CIS want it
    features       a bundle of `trainables.features`, trained on the data itself; see `own_features`
    classifier     a bundle of `trainables.classifier`: its features, and each of its attributes as a question
    alex, vgg, squeeze   what LPIPS compares pictures in

A network with the published weights has the bare name. Any other has the digest in it (`inception:1a2b3c4d`), and so have all
numbers that are measured with it: no score of other features wears the standard name.

Files that a configuration names are safetensors. Published files are pickles and torch's own business: it downloads them (only
when a configuration says `download`) to its cache and reads them there without running what is in them, and is asked to only
after the SHA-256 of the file was found to be the published one.

Legend: B pictures, n pictures of one input, P pairs, H x W pixels, F features, K classes, Q questions.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from recollect.bundle import Bundle, open_bundle
from recollect.config import Frozen, did_you_mean
from recollect.data.transforms import check_pictures, to_uint8
from recollect.evaluation.classification import AttributeClassifier, answer
from recollect.evaluation.inception import SIDE, inception_net, resize_like_tensorflow
from recollect.pretrained import WeightsFile, read_weights
from recollect.trainable import weights_digest

Backbone = Literal["alex", "vgg", "squeeze"]
SMALLEST = 32  # pixels a side: below it the last layers of LPIPS's networks have nothing to look at


class FeaturesConfig(Frozen):
    """Which network describes pictures, and where its weights are.

    `weights` is a safetensors file of that layout with its SHA-256; its digest is then in the metrics' names. Empty: the
    published file in torch's cache, which `download` allows to fill. `bundle` is that of `features` or of a `classifier`.
    """

    name: Literal["inception", "inception_v3", "features", "classifier", "alex", "vgg", "squeeze"] = "inception"
    weights: WeightsFile = WeightsFile()
    bundle: str = ""
    download: bool = False


@dataclass(frozen=True)
class Published:
    """A file of published weights: where it is published, and how its SHA-256 begins, in so far as the publisher says."""

    url: str
    sha256: str
    where: str

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


def _torchvision(weights: Any) -> Published:
    url: str = weights.url
    return Published(url, url.rpartition("-")[2].removesuffix(".pth"), f"by torchvision as {weights}")


PUBLISHED: dict[str, Published] = {
    "inception": Published(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "with release v0.2.0 of torch-fidelity; pytorch-fid's pt_inception-2015-12-05-6726825d.pth is the same file",
    ),
    "inception_v3": _torchvision(models.Inception_V3_Weights.IMAGENET1K_V1),
    "alex": _torchvision(models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg": _torchvision(models.VGG16_Weights.IMAGENET1K_V1),
    "squeeze": _torchvision(models.SqueezeNet1_1_Weights.IMAGENET1K_V1),
}


class Extractor(ABC):
    """Tells features and class probabilities of pictures (B, 3, H, W) in [-1, 1]; answers are float64 and on the CPU.

    `name` stands in the names of metrics behind the `@`, `digest` is of the weights.
    """

    name: str
    digest: str
    device: torch.device
    features: int  # F
    questions: tuple[str, ...] = ("",)  # Q; what a classifier with one question answers needs no name
    classes: int  # K

    @abstractmethod
    def describe(self, images: Tensor) -> Tensor:
        """Features (B, F)."""

    @abstractmethod
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, Q, K): over the last axis they sum to 1."""


class Inception(Extractor):
    """Inception-v3: features are the 2048 of the last pooling.

    `tensorflow` is the network of FID as published: pictures go through 8 bits, are resized as TensorFlow 1 did (without
    antialiasing, from the upper left corner), and class probabilities are of the logits without their biases, which is what IS
    was defined with. Else it is torchvision's, pictures are resized with antialiasing, and its classes are those of the file.
    """

    features = 2048

    def __init__(
        self, tensors: Mapping[str, Tensor], tensorflow: bool, name: str, published: bool, device: str | torch.device = "cpu"
    ) -> None:
        self.classes, self.tensorflow = _classes(tensors), tensorflow
        self.net = inception_net(self.classes, tensorflow)
        _fill(self.net, {key: tensor for key, tensor in tensors.items() if not key.startswith("AuxLogits.")})
        self.net.eval().requires_grad_(False).to(device)
        self.device, self.digest = torch.device(device), weights_digest(self.net)
        self.name = name if published else f"{name}:{self.digest[:8]}"

    def describe(self, images: Tensor) -> Tensor:
        """Features (B, 2048). Raises ValueError for what are no pictures."""
        check_pictures(images)
        with torch.inference_mode():
            found: Tensor = self._body(images.to(self.device, torch.float32))
        return found.double().cpu()

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, 1, K). Raises ValueError for what are no pictures."""
        head: nn.Linear = self.net.head
        bias = None if self.tensorflow else head.bias.double().cpu()
        return F.linear(self.describe(images), head.weight.double().cpu(), bias).softmax(1)[:, None]

    def _body(self, images: Tensor) -> Tensor:
        if self.tensorflow:
            small = (resize_like_tensorflow(to_uint8(images).float(), SIDE) - 128) / 128
        else:
            small = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        found: Tensor = self.net(small)
        return found


class ByClassifierBundle(Extractor):
    """A trained classifier of attributes: each attribute is a question with two classes, no and yes.

    Raises ValueError for a bundle that is no classifier.
    """

    classes = 2

    def __init__(self, bundle: str | os.PathLike[str] | Bundle, device: str | torch.device = "cpu") -> None:
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        model: Any = opened.build().to(device).eval()
        if not isinstance(model, AttributeClassifier):
            raise ValueError(f"{opened.path} holds {opened.run.model.name!r}, which tells no attributes")
        self.model, self.size, self.device = model, opened.run.data.size, torch.device(device)
        self.digest, self.name = opened.digest, f"classifier:{opened.digest[:8]}"
        self.questions = model.attributes
        self.features = self.describe(torch.zeros(1, 3, self.size, self.size)).shape[1]

    def describe(self, images: Tensor) -> Tensor:
        """Features (B, F) of pictures of any size. Raises ValueError for what are no pictures."""
        return self._answer(images)[1].double()

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, Q, 2) of no and yes. Raises ValueError for what are no pictures."""
        yes = self._answer(images)[0].double().sigmoid()
        return torch.stack([1 - yes, yes], dim=2)

    def _answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_pictures(images)
        if tuple(images.shape[2:]) != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return answer(self.model, images)


class Lpips:
    """The learned perceptual distance of Zhang et al. 2018, version 0.1, by the package lpips, whose linear heads it has.

    Args:
        backbone: which network.
        tensors: its weights in torchvision's layout, `features.*`; a classifier's head among them is not used.
        published: whether they are the published ones.
    """

    def __init__(
        self, backbone: Backbone, tensors: Mapping[str, Tensor], published: bool, device: str | torch.device = "cpu"
    ) -> None:
        self.net = lpips_net(backbone)
        own = self.net.net.state_dict()  # `slice2.3.weight` is torchvision's `features.3.weight`
        found = {key: tensors.get(f"features.{key.partition('.')[2]}") for key in own}
        _fill(self.net.net, {key: tensor for key, tensor in found.items() if tensor is not None})
        self.net.requires_grad_(False).to(device)
        self.device, self.published, self.digest = torch.device(device), published, weights_digest(self.net)
        self.name = backbone if published else f"{backbone}:{self.digest[:8]}"

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Distances (B,) between pictures (B, 3, H, W) in [-1, 1], float64 and on the CPU.

        Raises ValueError for what are no pictures, and for fewer than 32 pixels a side.
        """
        self._check(one, other)
        with torch.inference_mode():
            found: Tensor = self.net(one.to(self.device, torch.float32), other.to(self.device, torch.float32))
        return found.flatten().double().cpu()

    def between(self, images: Tensor, pairs: Tensor) -> Tensor:
        """Distances (P,) between the pairs (P, 2) of pictures (n, 3, H, W); a picture in several pairs is looked at once.

        The feature maps of all of them are then held: for 256 pixels 3 MB a picture with alex, 32 MB with vgg.
        """
        if len(pairs) * 2 <= len(images):
            return torch.cat([self(images[part[:, 0]], images[part[:, 1]]) for part in torch.split(pairs, 8)])
        self._check(images)
        with torch.inference_mode():
            batches = [self._maps(part.to(self.device, torch.float32)) for part in torch.split(images, 8)]
            maps = [torch.cat(level) for level in zip(*batches, strict=True)]
            found = [self._distances(maps, part.to(self.device)) for part in torch.split(pairs, 8)]
        return torch.cat(found).double().cpu()

    def _maps(self, images: Tensor) -> list[Tensor]:
        import lpips

        return [lpips.normalize_tensor(level) for level in self.net.net(self.net.scaling_layer(images))]

    def _distances(self, maps: list[Tensor], pairs: Tensor) -> Tensor:
        levels = zip(maps, self.net.lins, strict=True)
        found = [head((level[pairs[:, 0]] - level[pairs[:, 1]]).square()).mean((1, 2, 3)) for level, head in levels]
        return torch.stack(found).sum(0)

    @staticmethod
    def _check(*sides: Tensor) -> None:
        for images in sides:
            check_pictures(images)
            if min(images.shape[2:]) < SMALLEST:
                raise ValueError(f"LPIPS needs pictures of {SMALLEST} pixels a side, not {tuple(images.shape[2:])}")


def features_named(text: str, download: bool = False) -> FeaturesConfig:
    """What a word says: a published network (`inception`, `alex`), or the place of a bundle of features or of a classifier.

    Raises ValueError where it is neither.
    """
    if text in PUBLISHED:
        return FeaturesConfig.model_validate({"name": text, "download": download})
    try:
        kind = open_bundle(text).run.model.name
    except (ValueError, OSError) as error:
        raise ValueError(f"{text!r} is neither a bundle ({error}) nor a published network ({', '.join(PUBLISHED)})") from None
    if kind not in ("features", "classifier"):
        raise ValueError(f"{text} holds {kind!r}, which describes no pictures; `recollect features train` makes what does")
    return FeaturesConfig.model_validate({"name": kind, "bundle": text})


def open_extractor(
    config: FeaturesConfig, device: str | torch.device = "cpu", field: str = "evaluation.features", target: str = ""
) -> Extractor:
    """The network that a configuration names, for `fid`, `kid`, `is` and `cis`; `field` is what errors call the configuration.

    `target` is the domain that pictures are translated to: own features ask for its styles. Raises ValueError where weights are
    missing or others than said, with what to do about it.
    """
    if config.name == "features":
        from recollect.evaluation.own_features import OwnFeatures  # which is made of what is here

        if not config.bundle:
            raise ValueError(
                f"{field}.bundle is empty; give a bundle of features (`recollect features train STORE --out BUNDLE`)"
            )
        return OwnFeatures(config.bundle, device, target)
    if config.name == "classifier":
        if not config.bundle:
            raise ValueError(f"{field}.bundle is empty; give the bundle of a classifier (`recollect train classifier:tiny`)")
        return ByClassifierBundle(config.bundle, device)
    if config.name not in ("inception", "inception_v3"):
        raise ValueError(
            f"{config.name} compares pictures by LPIPS and tells no features of sets; use inception, features or classifier"
        )
    tensors, published = read_published(config, field)
    try:
        return Inception(tensors, config.name == "inception", config.name, published, device)
    except _Layout as error:
        raise ValueError(f"{field}.weights.path: {error}; it holds the weights {_source(config.name)}") from None


def open_lpips(config: FeaturesConfig, device: str | torch.device = "cpu", field: str = "evaluation.lpips") -> Lpips:
    """The distance that a configuration names (`alex`, as published, `vgg` or `squeeze`); errors as of `open_extractor`."""
    if config.name not in ("alex", "vgg", "squeeze"):
        raise ValueError(f"LPIPS compares pictures in alex, vgg or squeeze, not in {config.name}")
    tensors, published = read_published(config, field)
    try:
        return Lpips(config.name, tensors, published, device)
    except _Layout as error:
        raise ValueError(f"{field}.weights.path: {error}; it holds the weights {_source(config.name)}") from None


def read_published(config: FeaturesConfig, field: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a configuration's weights, and whether they are the published ones.

    Raises ValueError where there are none, and where the SHA-256 is another than the configuration's or the published one.
    """
    known = PUBLISHED.get(config.name)
    if known is None:
        raise ValueError(f"there are no published weights of {config.name!r}{did_you_mean(config.name, PUBLISHED)}")
    if config.weights.path:
        return read_weights(config.weights, f"{field}.weights", _source(config.name)), False
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / known.file
    if not path.is_file():
        if not config.download and field.startswith("--"):  # an option of the command line
            raise ValueError(
                f"{field}: {path} is not there. Put {known.file} there (published {known.where}), allow the network with "
                "--download, or give a bundle of features trained on the data (`recollect features train STORE --out BUNDLE`)"
            )
        if not config.download:
            raise ValueError(
                f"{field}: {path} is not there, and {field}.weights.path is empty. Put {known.file} there (published "
                f"{known.where}), allow the network with {field}.download=true, or give weights of your own as safetensors"
            )
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(known.url, str(path), hash_prefix=known.sha256, progress=False)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(known.sha256):  # torch looks at the digest of what it downloads, not of what lies there
        raise ValueError(
            f"{field}: {path} is not the file that was published {known.where}: its SHA-256 is {digest}, the published one's "
            f"begins with {known.sha256[:8]}"
        )
    tensors: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        known.url, str(folder), map_location="cpu", weights_only=True, progress=False
    )
    return tensors, True


def _source(name: str) -> str:
    return f"in the layout of {PUBLISHED[name].file}, published {PUBLISHED[name].where}"


class _Layout(ValueError):
    """Tensors that do not have the names and shapes of a network."""


def _classes(tensors: Mapping[str, Tensor]) -> int:
    if "fc.weight" not in tensors:
        raise _Layout("it has no tensor fc.weight")
    return len(tensors["fc.weight"])


def _fill(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all weights of `net`. How many batches a norm has seen may be missing: older files lack it, and nobody reads it."""
    head = {"head.weight": "fc.weight", "head.bias": "fc.bias"}
    mine = net.state_dict()
    named = {key: tensors[head.get(key, key)] for key in mine if head.get(key, key) in tensors}
    missing = [key for key in mine if key not in named and not key.endswith("num_batches_tracked")]
    if missing:
        raise _Layout(f"{len(missing)} tensors are missing, such as {head.get(missing[0], missing[0])}")
    wrong = [key for key in named if named[key].shape != mine[key].shape]
    if wrong:
        raise _Layout(f"{wrong[0]} is {tuple(named[wrong[0]].shape)}, not {tuple(mine[wrong[0]].shape)}")
    net.load_state_dict(named, strict=False)


def lpips_net(backbone: Backbone) -> Any:
    """The package's network with its linear heads and random weights below them."""
    import lpips  # of the extra `evaluate`

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # torchvision's, of how the package asks for no weights
        return lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
