"""Faster R-CNN (Ren, He, Girshick, Sun; NeurIPS 2015) as torchvision has it, trained by the same engine as the translators.

In words: a backbone turns a picture into feature maps; the region proposal network says at every cell, for boxes of fixed
shapes around it (anchors), whether there is an object and how the box should be moved; what is left after non-maximum
suppression is cut out of the features and classified, and its box moved once more.

    features = backbone(I)   proposals = rpn(features)   class, box = roi_heads(features cut at proposals)

Legend: B pictures, n boxes of one picture, K classes with the background as class 0. Pictures are (B, 3, H, W) in [-1, 1], boxes
x1 y1 x2 y2 in their pixels.

Where this departs from torchvision's `fasterrcnn_resnet50_fpn`, and why:
- Pictures are not resized inside: `data.size` and `data.short_side` say how large they are, and evaluation keeps to it.
- Which anchors and proposals the losses look at is drawn for every picture from `step.draws`, by its slot: torchvision draws from
  the global generator, so its step depends on the ranks and on whoever drew before.
- The losses are means over all that was drawn in the JOINT batch, by `step.reduce`d counts: so N ranks take the step of one
  process. Nothing else joins samples: norms are group norms, or batch norms frozen at their published statistics.
- `begin` reads published weights (COCO's detector, ImageNet's classifier) from a local safetensors file. Published files are
  pickles; make one of them without running what is in it:

      python -c "import torch, safetensors.torch as s; s.save_file(torch.load('fasterrcnn_resnet50_fpn_coco-258fb6c6.pth',
      weights_only=True), 'coco.safetensors')" && sha256sum coco.safetensors

- `backbone = "tiny"`: a few convolutions of stride 4 and one feature map, for pictures of 64 to 128 pixels on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from recollect.batch import Batch, Detections, Domains
from recollect.config import Choice, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.pretrained import WeightsFile, read_weights
from recollect.trainable import Part, Phase, Step, Trainable
from trainables.parts.perceptual import DEVIATION, MEAN

PUBLISHED = "of torchvision's fasterrcnn_resnet50_fpn (COCO) or resnet50 (ImageNet), as safetensors"
CELL = 4  # pixels per cell of the finest feature map, in both backbones


class DetectorConfig(ModelConfig):
    """The networks. Sizes are pixels; `anchors` has one entry a feature map, or all of them for the only one of `tiny`."""

    name: Literal["detector"] = "detector"
    backbone: Literal["resnet50_fpn", "tiny"] = "resnet50_fpn"
    width: Annotated[int, Field(ge=8, multiple_of=8), Choice((16, 24, 32), shape=True)] = 32  # tiny: channels at half resolution
    anchors: tuple[Annotated[float, Field(gt=0)], ...] = (32, 64, 128, 256, 512)
    ratios: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 2.0)  # height over width
    head_width: Annotated[int, Field(ge=8), Choice((128, 256, 1024), shape=True)] = 1024
    proposals: Annotated[int, Field(ge=1)] = 1000  # of the region proposal network; twice as many while training
    sampled_anchors: Annotated[int, Field(ge=2)] = 256  # a picture
    sampled_proposals: Annotated[int, Field(ge=2)] = 512
    score_floor: Annotated[float, Field(ge=0, lt=1)] = 0.05  # detections below are not told
    suppression: Annotated[float, Field(gt=0, le=1), Range(0.3, 0.7)] = 0.5  # IoU above which the lower of two detections goes
    detections: Annotated[int, Field(ge=1)] = 100  # at most, a picture
    pretrained: WeightsFile = WeightsFile()  # torchvision's COCO detector or ImageNet ResNet-50; empty: from scratch
    trained_stages: Annotated[int, Field(ge=0, le=5)] = 3  # of the five of a pretrained ResNet; the others stay as published

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.backbone == "resnet50_fpn" and len(self.anchors) != 5:
            raise ValueError(f"resnet50_fpn has 5 feature maps and needs 5 anchors, not {len(self.anchors)}")
        if self.pretrained.path and self.backbone == "tiny":
            raise ValueError("there are no published weights for the tiny backbone; leave pretrained.path empty")
        return self

    def reads_classes(self) -> bool:
        return True


class DetectorWeights(Weights):
    """torchvision adds its four losses as they are."""

    classifier: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    box_reg: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    objectness: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    rpn_box_reg: Annotated[float, Range(0.3, 3, log=True)] = 1.0


class SlotSampler:
    """torchvision's choice of positives and negatives, with a generator of its own for every picture.

    Set `generators` before each use; `taken` then says how many it chose in all pictures.
    """

    def __init__(self, count: int, positive: float) -> None:
        self.count, self.positive = count, positive
        self.generators: Sequence[torch.Generator] = ()
        self.taken = 0

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (m,) of the chosen positives and negatives of each picture; labels: at least 1, 0, and -1 for neither."""
        chosen = [self._choose(own, generator) for own, generator in zip(labels, self.generators, strict=True)]
        self.taken = sum(int(mask.sum()) for pair in chosen for mask in pair)
        return [pair[0] for pair in chosen], [pair[1] for pair in chosen]

    def _choose(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        positives = _some(labels >= 1, int(self.count * self.positive), generator)
        return positives, _some(labels == 0, self.count - int(positives.sum()), generator)


def _some(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the true places of a mask, as a mask (uint8, which torchvision's callers expect)."""
    places = mask.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator)[:count].to(places.device)
    return torch.zeros_like(mask, dtype=torch.uint8).index_fill_(0, places[order], 1)


class TinyBackbone(nn.Module):
    """Stride 4 and one feature map that sees some 70 pixels around each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = 2 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 2, padding=1), nn.GroupNorm(8, width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.GroupNorm(8, 2 * width), nn.ReLU()),
            *(_Residual(2 * width) for _ in range(3)),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features  # (B, 2 * width, H / 4, W / 4)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(first, nn.GroupNorm(8, channels), nn.ReLU(), second, nn.GroupNorm(8, channels))

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        return F.relu(x + body)


class Detector(Trainable):
    """Finds the objects of a store's classes in pictures of any of the run's domains.

    Args:
        config: the networks.
        domains: one domain or more (their pictures are learnt from alike), and the classes behind the labels.

    A picture without boxes is a picture of background. Everything obeys the rule of ranks (see the top of this file).
    Raises ValueError where the data has no class of objects.
    """

    Config = DetectorConfig
    Weights = DetectorWeights
    config: DetectorConfig
    domains_needed = 1
    judged_by = "recollect.evaluation.detection:DetectionJudge"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "resnet50": {  # with pretrained weights: torchvision's reference recipe, at MGUIT's size
            "data": {"size": 360, "short_side": 360},
            "model": {"anchors": (16, 32, 64, 128, 256)},  # half of COCO's: its pictures are twice as large
            "optimisers": {"default": {"kind": "adamw", "lr": 1e-4, "betas": (0.9, 0.999), "hold": 0.7}},
            "engine": {"steps": 20_000, "batch_size": 4, "evaluate_every": 2000, "log_every": 50},
            "evaluation": {"pictures": 200},
        },
        "tiny": {  # 64 to 128 px, trains on a CPU in minutes
            "data": {"size": 64},
            "model": {
                "backbone": "tiny",
                "anchors": (8, 12, 18, 28, 44),
                "head_width": 128,
                "proposals": 60,
                "sampled_anchors": 64,
                "sampled_proposals": 48,
                "detections": 50,
            },
            "optimisers": {"default": {"kind": "adamw", "lr": 1e-3, "betas": (0.9, 0.999), "hold": 0.5}},
            "engine": {"steps": 1500, "batch_size": 8, "evaluate_every": 500, "ema": 0.99},
            "evaluation": {"pictures": 48},
        },
    }

    def __init__(self, config: DetectorConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        if len(domains.classes) < 2:
            raise ValueError(
                f"detector needs boxes, and the data has the class {domains.classes[0]} alone; "
                "`recollect data folders --boxes` reads them"
            )
        self.net = _make_net(config, len(domains.classes))
        self.anchor_sampler = SlotSampler(config.sampled_anchors, 0.5)
        self.proposal_sampler = SlotSampler(config.sampled_proposals, 0.25)
        self.net.rpn.fg_bg_sampler, self.net.roi_heads.fg_bg_sampler = self.anchor_sampler, self.proposal_sampler

    @property
    def stride(self) -> int:
        """Pixels per cell of the finest feature map; pictures of any other size are padded inside."""
        return CELL

    def begin(self) -> None:
        """Read the published weights, where the configuration names some.

        Raises ValueError where the file is another one, or does not hold a ResNet-50 or torchvision's detector.
        """
        file = self.config.pretrained
        if not file.path:
            return
        state = read_weights(file, "model.pretrained", PUBLISHED)
        detector = any(name.startswith("rpn.") for name in state)
        target: nn.Module = self.net if detector else self.net.backbone.body
        other = ("roi_heads.box_predictor.", "fc.")  # their classes are not ours
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(other)}
        missing, strange = target.load_state_dict(kept, strict=False)
        wrong = [*strange, *(name for name in missing if not name.startswith(other))]
        wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
        if wrong:
            raise ValueError(f"model.pretrained: {file.path} is neither ({PUBLISHED}): see its {wrong[0]!r}")

    def phases(self) -> tuple[Phase, ...]:
        """A single update of the whole network."""
        return (Phase("detect", (Part(("net",), self.detection_terms),), clip=10.0),)

    def detection_terms(self, step: Step) -> Terms:
        """The four losses over the pictures of all domains, each a mean over what was drawn in the joint batch."""
        images = torch.cat([batch.images for batch in step.batches])
        targets = [target for batch in step.batches for target in self._targets(batch)]
        self.anchor_sampler.generators = self._generators(step, "anchors")
        self.proposal_sampler.generators = self._generators(step, "proposals")
        features, where = self._features(images)
        proposals, losses = self.net.rpn(where, features, targets)
        losses |= self.net.roi_heads(features, proposals, where.image_sizes, targets)[1]
        self.anchor_sampler.generators = self.proposal_sampler.generators = ()
        samplers = (self.anchor_sampler, self.proposal_sampler)
        taken = images.new_tensor([float(sampler.taken) for sampler in samplers])
        shares = dict(zip(samplers, taken * step.shares / step.reduce(taken), strict=True))  # of the joint batch's draws
        by = {"objectness": self.anchor_sampler, "rpn_box_reg": self.anchor_sampler}
        names = [name for name in DetectorWeights.model_fields if step.wants(name)]
        return {name: losses[f"loss_{name}"] * shares[by.get(name, self.proposal_sampler)] for name in names}

    def _targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        assert batch.boxes is not None and batch.labels is not None, "a store with classes of objects is annotated"
        return [_target(boxes, labels, batch.images) for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]

    def _generators(self, step: Step, name: str) -> list[torch.Generator]:
        return [
            step.draws.generator(f"{name}/{domain}", slot)
            for domain, batch in zip(self.domains.names, step.batches, strict=True)
            for slot in batch.slots
        ]

    def _features(self, images: Tensor) -> tuple[dict[str, Tensor], Any]:
        """Feature maps by name, and the padded pictures with their sizes as torchvision passes them on."""
        height, width = images.shape[-2:]
        divisor = 32 if self.config.backbone == "resnet50_fpn" else CELL
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        normal = ((images + 1) / 2 - mean) / std
        padded = F.pad(normal, (0, -width % divisor, 0, -height % divisor))
        found = self.net.backbone(padded)
        features = {"0": found} if isinstance(found, Tensor) else found
        return features, ImageList(padded, [(height, width)] * len(images))

    def detect(self, images: Tensor) -> tuple[Detections, ...]:
        """What is seen in pictures (B, 3, H, W) in [-1, 1], best first; boxes in their pixels, classes as in the domains.

        No answer depends on its batch; in evaluation mode only.
        """
        assert not self.training, "a detector in training answers with losses"
        with torch.inference_mode():
            features, where = self._features(images)
            proposals, _ = self.net.rpn(where, features)
            found, _ = self.net.roi_heads(features, proposals, where.image_sizes)
        return tuple(Detections(one["boxes"], one["scores"], one["labels"]) for one in found)


def _target(boxes: Tensor, labels: Tensor, like: Tensor) -> dict[str, Tensor]:
    """A picture's boxes as torchvision takes them; what has no extent, or none that is a number, is no box."""
    extent = boxes[:, 2:] - boxes[:, :2]
    real = ((extent > 0) & extent.isfinite()).all(1)
    return {"boxes": boxes[real].to(like), "labels": labels[real].to(like.device)}


def _make_net(config: DetectorConfig, classes: int) -> Any:
    """torchvision's FasterRCNN; its names of parameters are those of the published weights."""
    common = {
        "rpn_pre_nms_top_n_train": 4 * config.proposals,
        "rpn_pre_nms_top_n_test": 2 * config.proposals,
        "rpn_post_nms_top_n_train": 2 * config.proposals,
        "rpn_post_nms_top_n_test": config.proposals,
        "box_score_thresh": config.score_floor,
        "box_nms_thresh": config.suppression,
        "box_detections_per_img": config.detections,
    }
    sizes: tuple[tuple[float, ...], ...]
    if config.backbone == "tiny":
        backbone: Any = TinyBackbone(config.width)
        levels, sizes, cells = ["0"], (config.anchors,), 5
    else:
        backbone = _resnet(config)
        levels, sizes, cells = ["0", "1", "2", "3"], tuple((size,) for size in config.anchors), 7
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, (config.ratios,) * len(sizes)),
        box_roi_pool=_pool(levels, cells),
        box_head=TwoMLPHead(backbone.out_channels * cells**2, config.head_width),
        box_predictor=FastRCNNPredictor(config.head_width, classes),
        **common,
    )


def _pool(levels: list[str], cells: int) -> Any:
    """RoIAlign, its scales settled: it guesses them once from the first picture, and one of 33 pixels would mislead it."""
    pool = MultiScaleRoIAlign(levels, output_size=cells, sampling_ratio=2)
    maps = {level: torch.zeros(1, 1, 64 >> power, 64 >> power) for power, level in enumerate(levels)}
    pool(maps, [torch.zeros(1, 4)], [(64 * CELL, 64 * CELL)])
    return pool


def _resnet(config: DetectorConfig) -> Any:
    """ResNet-50 with a feature pyramid: published batch norms frozen, or group norms that are learnt with the rest."""
    if not config.pretrained.path:
        return resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=partial(nn.GroupNorm, 32), trainable_layers=5
        )
    backbone: nn.Module = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=config.trained_stages
    )
    for module in backbone.modules():  # what stays as published is state, not parameters: the engine trains all of these
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    return backbone
