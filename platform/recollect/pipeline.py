"""The one inference path: everything that translates a picture outside training goes through `Pipeline`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.batch import Domains, Guide, Translation
from recollect.bundle import Bundle, open_bundle
from recollect.trainable import AttributeWise, Guided, Search, Translator

BESIDE_SEEDS = ("values", "classes", "attributes", "neighbours", "strength")  # guides that leave something of the style to chance


class Pipeline:
    """A translator ready to use: `Pipeline.open(bundle)(images, target)`.

    Args:
        model: the method with its weights.
        name: what to call it in answers.
        search: finds neighbours for a method that is guided by them.
    """

    def __init__(
        self, model: Translator, name: str = "", device: str | torch.device = "cpu", search: Search | None = None
    ) -> None:
        self.model, self.name, self.device = model.to(device).eval(), name, torch.device(device)
        self.search = search

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        device: str | torch.device = "cpu",
        which: str = "best",
        search: Search | None = None,
    ) -> Pipeline:
        """Open a bundle (a path, a URI, or one already open) for inference.

        Raises ValueError when the bundle's method does not translate pictures.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        model = opened.build(which)
        if not isinstance(model, Translator):
            raise ValueError(f"{opened.path} holds {opened.run.model.name!r}, which does not translate pictures")
        return cls(model, opened.run.name or Path(opened.path).name, device, search)

    @property
    def domains(self) -> Domains:
        """The names behind the indices."""
        return self.model.domains

    @property
    def random_styles(self) -> bool:
        """Whether the method draws styles from seeds; one that does not has one translation a picture."""
        try:
            self.model.sample_guide(0, [torch.Generator().manual_seed(0)])
        except (NotImplementedError, ValueError):
            return False
        return True

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: fp32, or fp64 where it was trained so."""
        return next(self.model.parameters()).dtype

    def __call__(
        self, images: Tensor, target: str, source: str | None = None, guide: Guide = Guide(), seeds: Sequence[int] | None = None
    ) -> Translation:
        """Translate pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1], any H and W; the answer has the same size.
            target: the domain wanted.
            source: the domain the pictures are from; None: the first domain that is not `target`, or the only one.
            guide: what steers the style; the default is the method's own deterministic one. `recollect.styles.choose` makes one
                from styles by class, `recollect.attributes.choose` from attributes by name.
            seeds: one a picture: draw a random style from each. Values and classes of `guide` may stand beside them: the values
                of the named classes override what is drawn. So may attributes and neighbours: the draw is of what they ask for.

        Raises ValueError for unknown domains, pictures that are no pictures, another number of seeds or of values, guides the
        method does not understand, attributes that contradict each other, and where neighbours are needed and nothing finds them.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be floats of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        to = self.domains.index(target)
        origin = self.domains.index(source or next((name for name in self.domains.names if name != target), target))
        if seeds is not None:
            guide = self._drawn(guide, seeds, to, len(images))
        for name, value in (guide.values or {}).items():
            if value.ndim == 3 and len(value) != len(images):
                raise ValueError(f"values for {name!r} are of {len(value)} pictures; there are {len(images)}")
        with torch.inference_mode():
            padded, (height, width) = pad_to(images.to(self.device, self.dtype), self.model.stride)
            guide = self._found(padded, origin, to, self._placed(guide, images, padded))
            result = self.model.translate(padded, origin, to, guide)
        extras = {
            name: extra[..., :height, :width] if extra.shape[-2:] == padded.shape[-2:] else extra  # others are of the grid
            for name, extra in result.extras.items()
        }
        return Translation(result.images[..., :height, :width].clamp(-1, 1).to(images.dtype), extras)

    def _drawn(self, guide: Guide, seeds: Sequence[int], target: int, count: int) -> Guide:
        """The guide that seeds make, with what may stand beside them."""
        if len(seeds) != count:
            raise ValueError(f"one seed a picture: there are {count} pictures and {len(seeds)} seeds")
        whole = [name for name in guide.given() if name not in BESIDE_SEEDS]
        if whole:
            raise ValueError(
                f"give seeds or a guide, not both (the guide has {', '.join(whole)}); "
                f"only {', '.join(BESIDE_SEEDS[:-1])} and {BESIDE_SEEDS[-1]} go with seeds"
            )
        drawn = self.model.sample_guide(target, [torch.Generator().manual_seed(seed) for seed in seeds])
        return replace(drawn, **{name: getattr(guide, name) for name in BESIDE_SEEDS})

    def _placed(self, guide: Guide, images: Tensor, padded: Tensor) -> Guide:
        """The guide checked, on the device, its pictures padded."""
        if guide.exemplar is not None:
            guide = replace(guide, exemplar=pad_to(guide.exemplar.to(self.device, self.dtype), self.model.stride)[0])
        if guide.noise is not None:
            guide = replace(guide, noise=guide.noise.to(self.device, self.dtype))
        if guide.values is not None:
            values = {name: value.to(self.device, self.dtype) for name, value in guide.values.items()}
            guide = replace(guide, values=values)
        if guide.classes is not None:
            guide = replace(guide, classes=self._classes(guide.classes, images, padded))
        if guide.attributes is not None:
            if isinstance(self.model, AttributeWise):  # others refuse it by name
                check_attributes(self.model, guide.attributes, len(images))
            guide = replace(guide, attributes=guide.attributes.to(self.device, self.dtype))
        if guide.strength is not None:
            check_strength(guide.strength, len(images))
            guide = replace(guide, strength=guide.strength.to(self.device, self.dtype))
        if guide.neighbours is not None and isinstance(self.model, Guided):
            guide = replace(guide, neighbours=self._neighbours(guide.neighbours, len(images)))
        return guide

    def _found(self, padded: Tensor, source: int, target: int, guide: Guide) -> Guide:
        """The guide with the neighbours that the method wants to see, where none are given."""
        if guide.neighbours is not None or not isinstance(self.model, Guided):
            return guide
        queries = self.model.look_up(padded, source, target, guide)
        if queries is None:
            return guide
        if self.search is None:
            raise ValueError(
                f"{self.model.config.name} draws with {queries.k} neighbours of a picture, and nothing finds them here; open the "
                "pipeline with a search, or give guide.neighbours"
            )
        return replace(guide, neighbours=self._neighbours(self.search(queries), len(padded)))

    def _neighbours(self, neighbours: Tensor, count: int) -> Tensor:
        """Neighbours (B, k, 3, H, W) on the device and padded."""
        if neighbours.ndim != 5 or len(neighbours) != count or neighbours.shape[2] != 3:
            raise ValueError(f"guide.neighbours is ({count}, k, 3, H, W) here, not {tuple(neighbours.shape)}")
        flat, _ = pad_to(neighbours.flatten(0, 1).to(self.device, self.dtype), self.model.stride)
        return flat.view(*neighbours.shape[:2], *flat.shape[1:])

    def _classes(self, classes: Tensor, images: Tensor, padded: Tensor) -> Tensor:
        """A class map for the padded pictures, the added cells background. Raises ValueError for one that does not fit."""
        stride, known = self.model.stride, len(self.domains.classes)
        cells = (len(images), *(-(-side // stride) for side in images.shape[-2:]))
        if tuple(classes.shape) != cells:
            raise ValueError(f"guide.classes has a cell for every {stride} pixels here: {cells}, not {tuple(classes.shape)}")
        if int(classes.min()) < 0 or int(classes.max()) >= known:
            raise ValueError(f"guide.classes has indices of {', '.join(self.domains.classes)}, so 0 to {known - 1}")
        height, width = padded.shape[-2] // stride, padded.shape[-1] // stride
        return F.pad(classes.to(self.device), (0, width - cells[2], 0, height - cells[1]))


def check_strength(strength: Tensor, count: int) -> None:
    """Raise ValueError where strengths are not (count,) numbers in [0, 1]."""
    if tuple(strength.shape) != (count,) or not ((strength >= 0) & (strength <= 1)).all():
        raise ValueError(f"guide.strength is {count} numbers from 0 to 1 here, not {strength.tolist()}")


def check_attributes(model: AttributeWise, attributes: Tensor, count: int) -> None:
    """Raise ValueError where attributes are not (count, S) numbers in [0, 1], or ask for more than one of an exclusive group."""
    names = model.style_attributes()
    if tuple(attributes.shape) != (count, len(names)):
        raise ValueError(f"guide.attributes is {(count, len(names))} here, {', '.join(names)}; not {tuple(attributes.shape)}")
    if not ((attributes >= 0) & (attributes <= 1)).all():
        raise ValueError(f"guide.attributes has numbers from 0 to 1 ({', '.join(names)}), not {attributes.tolist()}")
    for group in model.exclusive_attributes():
        asked = attributes[:, [names.index(name) for name in group]]
        wrong = (asked.sum(dim=1) > 1 + 1e-4).nonzero()
        if len(wrong):
            row = asked[int(wrong[0])].tolist()
            said = " and ".join(f"{name}={value:g}" for name, value in zip(group, row, strict=True) if value)
            raise ValueError(f"a picture has one of {', '.join(group)} at most; {said} is more than one")


def pad_to(images: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures padded at the right and bottom to multiples of `stride` (at least four cells), and their size before that."""
    height, width = images.shape[-2:]
    bottom = max(-height % stride, 4 * stride - height)  # networks with reflection padding need a few cells
    right = max(-width % stride, 4 * stride - width)
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    return images, (height, width)
