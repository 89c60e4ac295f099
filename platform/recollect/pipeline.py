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
from recollect.trainable import Translator

BESIDE_SEEDS = ("values", "classes")  # guides that say nothing of the whole picture's style


class Pipeline:
    """A translator ready to use: `Pipeline.open(bundle)(images, target)`.

    Args:
        model: the method with its weights.
        name: what to call it in answers.
    """

    def __init__(self, model: Translator, name: str = "", device: str | torch.device = "cpu") -> None:
        self.model, self.name, self.device = model.to(device).eval(), name, torch.device(device)

    @classmethod
    def open(cls, bundle: str | os.PathLike[str] | Bundle, device: str | torch.device = "cpu", which: str = "best") -> Pipeline:
        """Open a bundle (a path, a URI, or one already open) for inference.

        Raises ValueError when the bundle's method does not translate pictures.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        model = opened.build(which)
        if not isinstance(model, Translator):
            raise ValueError(f"{opened.path} holds {opened.run.model.name!r}, which does not translate pictures")
        return cls(model, opened.run.name or Path(opened.path).name, device)

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
            source: the domain the pictures are from; None: the first domain that is not `target`.
            guide: what steers the style; the default is the method's own deterministic one. `recollect.styles.choose` makes one
                from styles by class.
            seeds: one a picture: draw a random style from each. Values and classes of `guide` may stand beside them: the values
                of the named classes override what is drawn.

        Raises ValueError for unknown domains, pictures that are no pictures, another number of seeds or of values, and guides the
        method does not understand.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be floats of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        to = self.domains.index(target)
        origin = self.domains.index(source or next(name for name in self.domains.names if name != target))
        if seeds is not None:
            if len(seeds) != len(images):
                raise ValueError(f"one seed a picture: there are {len(images)} pictures and {len(seeds)} seeds")
            whole = [name for name in guide.given() if name not in BESIDE_SEEDS]
            if whole:
                raise ValueError(
                    f"give seeds or a guide, not both (the guide has {', '.join(whole)}); "
                    f"only {' and '.join(BESIDE_SEEDS)} go with seeds"
                )
            drawn = self.model.sample_guide(to, [torch.Generator().manual_seed(seed) for seed in seeds])
            guide = replace(drawn, **{name: getattr(guide, name) for name in BESIDE_SEEDS})
        for name, value in (guide.values or {}).items():
            if value.ndim == 3 and len(value) != len(images):
                raise ValueError(f"values for {name!r} are of {len(value)} pictures; there are {len(images)}")
        with torch.inference_mode():
            padded, (height, width) = pad_to(images.to(self.device, self.dtype), self.model.stride)
            if guide.exemplar is not None:
                guide = replace(guide, exemplar=pad_to(guide.exemplar.to(self.device, self.dtype), self.model.stride)[0])
            if guide.noise is not None:
                guide = replace(guide, noise=guide.noise.to(self.device, self.dtype))
            if guide.values is not None:
                values = {name: value.to(self.device, self.dtype) for name, value in guide.values.items()}
                guide = replace(guide, values=values)
            if guide.classes is not None:
                guide = replace(guide, classes=self._classes(guide.classes, images, padded))
            result = self.model.translate(padded, origin, to, guide)
        return Translation(result.images[..., :height, :width].clamp(-1, 1).to(images.dtype), result.extras)

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


def pad_to(images: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures padded at the right and bottom to multiples of `stride` (at least four cells), and their size before that."""
    height, width = images.shape[-2:]
    bottom = max(-height % stride, 4 * stride - height)  # networks with reflection padding need a few cells
    right = max(-width % stride, 4 * stride - width)
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    return images, (height, width)
