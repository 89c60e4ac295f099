"""The domain-invariant perceptual loss (Huang et al. 2018, section 5.1): VGG16 features without their channel statistics.

A domain changes mean and deviation of a feature channel more than it changes where the feature is, so instance norm before the
distance compares what is shown rather than how it looks.

The released codes use Caffe's weights and preprocessing; here they are torchvision's, with torchvision's preprocessing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from recollect.pretrained import WeightsFile, read_weights
from trainables.parts.blocks import instance_norm
from trainables.parts.losses import exact

SOURCE = (
    "of torchvision's VGG16 (VGG16_Weights.IMAGENET1K_V1, vgg16-397923af.pth) as safetensors: "
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('vgg16-397923af.pth', weights_only=True), 'vgg16.safetensors')\""
)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures in [0, 1]
RELU5_3 = 30  # so many of the feature layers


class Perceptual:
    """Distances in VGG16's relu5_3. Frozen, and no module of the method that holds it.

    So it is in no phase, no optimiser, no averaged copy and no bundle: nothing but training needs it. The file is read when a
    distance is first asked for, that is in the first step of a run whose term `perceptual` has a weight; a bundle of that run
    translates where the file is not.

    Args:
        file: the weights; may be empty where no distance is ever asked for.
        field: what `file` is called in a configuration, for errors.
    """

    def __init__(self, file: WeightsFile, field: str = "model.vgg16") -> None:
        self.file, self.field = file, field
        self._net: nn.Module | None = None
        self._mean = self._deviation = torch.zeros(())

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Mean squared distance of instance-normalised features; pictures (B, 3, H, W) in [-1, 1], at least 32 pixels a side.

        Raises ValueError where the weights are missing or are not what the configuration says, and for smaller pictures.
        """
        if min(images.shape[-2:]) < 32:  # a single cell of features has no deviation to divide by
            raise ValueError(f"the perceptual loss needs pictures of 32 pixels, not {tuple(images.shape[-2:])}; set data.size")
        with torch.no_grad():
            wanted = self._features(references)
        return (self._features(images) - wanted).square().mean()

    def _features(self, images: Tensor) -> Tensor:
        """Instance-normalised features (B, 512, H / 16, W / 16), in fp32 or better."""
        images = exact(images)
        if self._net is None or self._mean.device != images.device or self._mean.dtype != images.dtype:
            self._load(images)
        assert self._net is not None
        features: Tensor = self._net(((images + 1) / 2 - self._mean) / self._deviation)
        return instance_norm(exact(features))

    def _load(self, like: Tensor) -> None:
        """Read the weights to where the pictures are."""
        weights = read_weights(self.file, self.field, SOURCE, prefix="features.")
        with torch.device("meta"):
            net: nn.Module = vgg16(weights=None).features[:RELU5_3]
        try:
            net.load_state_dict({name: tensor.to(like) for name, tensor in weights.items()}, assign=True)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{self.field}.path: {self.file.path} does not hold the weights {SOURCE} ({text})") from None
        self._net = net.eval().requires_grad_(False)
        self._mean, self._deviation = (torch.tensor(values).to(like)[:, None, None] for values in (MEAN, DEVIATION))
