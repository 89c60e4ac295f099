"""Loss terms that several papers share: pure functions of tensors, unweighted, means over samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.parts.memory import unit

Gan = Literal["bce", "lsgan"]


def exact(x: Tensor) -> Tensor:
    """`x` in fp32 or better: what losses are made of."""
    return x if x.dtype == torch.float64 else x.float()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, in fp32 or better."""
    return (exact(a) - exact(b)).abs().mean()


def adversarial(logits: list[Tensor], target: float, kind: Gan) -> Tensor:
    """How far a critic's patch logits are from `target` (1 real, 0 fake, 0.5 undecided): mean over patches, sum over scales.

    `bce` is the non-saturating loss in its logits form (Goodfellow et al. 2014), `lsgan` the squares of Mao et al. 2017.

    >>> adversarial([torch.zeros(1, 1, 2, 2)], 1.0, "lsgan")
    tensor(1.)
    """
    if kind == "lsgan":
        return torch.stack([(exact(x) - target).square().mean() for x in logits]).sum()
    answers = [exact(x) for x in logits]
    return torch.stack([F.binary_cross_entropy_with_logits(x, torch.full_like(x, target)) for x in answers]).sum()


def misnamed(logits: list[Tensor], attributes: Tensor) -> Tensor:
    """-log D_cls(attributes | picture): how far logits (B, S) at each scale are from attributes (B, S) in {0, 1}.

    Binary cross-entropy, summed over attributes (the log-probability of the whole choice) and scales, mean over pictures.

    >>> misnamed([torch.zeros(1, 2)], torch.ones(1, 2)).round(decimals=4)  # 2 log 2
    tensor(1.3863)
    """
    answers = [exact(x) for x in logits]
    losses = [F.binary_cross_entropy_with_logits(x, attributes.to(x), reduction="none") for x in answers]
    return torch.stack(losses).sum(dim=(0, 2)).mean()


def memory_contrast(
    features: Tensor,
    items: Tensor,
    temperature: float,
    classes: Tensor | None = None,
    item_class: Tensor | None = None,
    positives: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The feature contrastive loss of MGUIT, eq. 8: cross-entropy of features against memory items.

    The positive is the nearest item (of the pixel's own class, where classes are given); the negatives are ALL other items,
    which is what makes the class-free read of test time find small classes. Mean over pixels, where the paper sums, so that
    the weight does not depend on resolution; and each class weighs alike, or background pixels drown the objects.

    Args:
        features: (B, C, h, w) content or style.
        items: (N, C) keys or values.
        classes, item_class: (B, h, w) and (N,) int64; both or neither.
        positives: (B, h, w) int64 item indices that replace the nearest item (the values take those of the keys).
        counted: what `class_counts` says (K,) of a share of the joint batch in the mean, over which classes then weigh alike;
            None: of these pixels.

    >>> round(memory_contrast(torch.tensor([[[[1.0]], [[0.0]]]]), torch.eye(2), 1.0).item(), 4)  # log(1 + 1 / e)
    0.3133
    """
    with torch.autocast(features.device.type, enabled=False):
        scores = _cosines(features, items)  # (P, N)
        if positives is None:
            positives = nearest_items(scores, classes, item_class)
        losses = F.cross_entropy(scores / temperature, positives.flatten(), reduction="none")  # (P,)
        return _mean_over_classes(losses, classes, item_class, counted)


def memory_triplet(
    features: Tensor,
    items: Tensor,
    margin: float = 1.0,
    classes: Tensor | None = None,
    item_class: Tensor | None = None,
    positives: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The feature triplet loss that eq. 8 replaces (MNAD, Park et al. 2020): the second nearest item is the only negative.

    max(0, |f - positive| - |f - negative| + margin), where the negative is the nearest of ALL other items. Arguments as in
    `memory_contrast`. Raises ValueError for a memory with a single item.

    >>> memory_triplet(torch.tensor([[[[1.0]], [[0.0]]]]), torch.eye(2), margin=2.0)  # 0 - sqrt(2) + 2
    tensor(0.5858)
    """
    if len(items) < 2:
        raise ValueError("the triplet loss needs at least two memory items")
    with torch.autocast(features.device.type, enabled=False):
        scores = _cosines(features, items)  # (P, N)
        if positives is None:
            positives = nearest_items(scores, classes, item_class)
        positives = positives.flatten()[:, None]
        negatives = scores.detach().scatter(1, positives, -torch.inf).argmax(1, keepdim=True)
        # |a - b|^2 = 2 - 2 cos for unit vectors; the floor keeps the root's slope finite where they meet
        near, far = ((2 - 2 * scores.gather(1, index)).clamp_min(1e-12).sqrt() for index in (positives, negatives))
        return _mean_over_classes((near - far + margin).clamp_min(0)[:, 0], classes, item_class, counted)


def _cosines(features: Tensor, items: Tensor) -> Tensor:
    """Cosines (P, N) of the pixels of (B, C, h, w) with items (N, C)."""
    pixels = unit(features).movedim(1, -1).flatten(0, 2)
    return pixels @ unit(items, dim=-1).mT.to(pixels.dtype)


def class_counts(classes: Tensor, count: int) -> Tensor:
    """How many of the pixels (B, h, w) are of each of K classes: (K,).

    >>> class_counts(torch.tensor([[[0, 2]]]), 3).tolist()
    [1, 0, 1]
    """
    return F.one_hot(classes.flatten(), count).sum(0)


def _mean_over_classes(losses: Tensor, classes: Tensor | None, item_class: Tensor | None, counted: Tensor | None) -> Tensor:
    """The mean of losses (P,) in which each class weighs alike over the joint batch; without classes the plain mean."""
    if classes is None:
        return losses.mean()
    assert item_class is not None, "classes of pixels need the classes of items"
    counted = class_counts(classes, int(item_class[-1]) + 1) if counted is None else counted
    member = F.one_hot(classes.flatten(), len(counted)).to(losses.dtype)  # (P, K)
    counts = counted.to(losses.dtype).clamp_min(torch.finfo(losses.dtype).tiny)
    return (losses @ member / counts).sum() / (counted > 0).sum()


def nearest_items(scores: Tensor, classes: Tensor | None, item_class: Tensor | None) -> Tensor:
    """For each pixel the item (P,) with the highest score (P, N), within the pixel's class where classes are given."""
    if classes is not None and item_class is not None:
        scores = scores.masked_fill(classes.flatten()[:, None] != item_class, -torch.inf)
    return scores.argmax(-1)
