"""From encoded bytes to tensors: decoding, the one joint geometric transform, and class maps.

Legend: H x W pixels of a picture, n boxes, h x w cells of the class map (one cell is `stride` pixels).
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from recollect.config import did_you_mean
from recollect.data.schema import BACKGROUND, Record

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's plugins that may see a user's bytes; the others are attack surface
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
_Visual = TypeVar("_Visual", tv_tensors.Image, tv_tensors.Mask, tv_tensors.BoundingBoxes)


class Sample(NamedTuple):
    """A picture cut to a square with what belongs to it, all moved by the same transform."""

    image: tv_tensors.Image  # (3, size, size) uint8
    boxes: tv_tensors.BoundingBoxes  # (n, 4) float32, x1 y1 x2 y2 in pixels of the square
    labels: Tensor  # (n,) int64, indices into the classes
    regions: tv_tensors.Mask | None = None  # (size, size) uint8, indices into the store's regions


def open_image(content: bytes) -> Image.Image:
    """The picture in `content`, fully decoded, upright (EXIF rotation applied), mode RGB, transparency over white.

    Raises ValueError with the reason when it cannot be decoded.
    """
    if not content:
        raise ValueError("it has no bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(f"it is not a picture that can be read ({', '.join(FORMATS)})") from None
    except DECODING_ERRORS as error:
        raise ValueError(f"it cannot be decoded: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit greys; Pillow's own conversion clips them at 255
        return Image.fromarray(np.uint8(np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode(content: bytes) -> tv_tensors.Image:
    """Encoded bytes to a picture (3, H, W), uint8, RGB, upright. Raises ValueError with the reason when it cannot."""
    pixels = np.array(open_image(content))  # a copy: Pillow's own buffer is read-only
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def joint_crop(
    record: Record,
    size: int,
    short_side: int | None = None,
    flip: bool = False,
    generator: torch.Generator | None = None,
    *,
    classes: Sequence[str] = (BACKGROUND,),
    with_regions: bool = False,
) -> Sample:
    """Resize the short side, crop a square and flip: one transform for picture, boxes and region mask.

    Args:
        size: pixels of the square's side.
        short_side: resize the short side to this first (at least `size`); None: to `size`.
        flip: mirror left and right in half of the draws.
        generator: where crop and flip are drawn from; None: the centre, never mirrored.
        classes: the names behind the labels.
        with_regions: also cut the region mask; None stays None.

    Boxes are clipped to the square, those that vanish are dropped. Raises ValueError for a picture that cannot be decoded
    (naming the record), unknown classes, and a short side below `size`.
    """
    try:
        image = decode(record.image)
    except ValueError as error:
        raise ValueError(f"picture {record.id!r}: {error}") from None
    height, width = image.shape[-2:]
    cut = Cut.draw(height, width, size, short_side, flip, generator)
    boxes, labels = boxes_of(record, classes)
    moved = cut(boxes)
    kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    moved = tv_tensors.wrap(moved[kept], like=moved)
    regions = None
    if with_regions and record.regions is not None:
        mask = torch.from_numpy(np.array(Image.open(io.BytesIO(record.regions), formats=("PNG",))))
        if mask.shape != (height, width):
            raise ValueError(f"picture {record.id!r}: its region mask is {tuple(mask.shape)}, the picture {(height, width)}")
        regions = cut(tv_tensors.Mask(mask))
    return Sample(cut(image), moved, labels[kept], regions)


class Cut(NamedTuple):
    """A drawn geometric transform: resize to (height, width), cut `size` at (top, left), perhaps mirror."""

    height: int
    width: int
    top: int
    left: int
    size: int
    mirror: bool

    @classmethod
    def draw(
        cls, height: int, width: int, size: int, short_side: int | None, flip: bool, generator: torch.Generator | None
    ) -> Cut:
        """A transform for a picture of that height and width; without a generator the centre, not mirrored."""
        short = short_side or size
        if short < size:
            raise ValueError(f"the short side {short} is below the crop of {size} pixels; give at least {size}")
        scale = short / min(height, width)
        height, width = max(short, round(height * scale)), max(short, round(width * scale))
        if generator is None:
            return cls(height, width, (height - size) // 2, (width - size) // 2, size, False)
        # Always three draws, so that what one picture is like never shifts another draw of its generator.
        down, right, coin = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
        return cls(height, width, top, left, size, flip and coin < 0.5)

    def __call__(self, visual: _Visual) -> _Visual:
        """The transformed picture, mask (nearest neighbour) or boxes (clipped to the square)."""
        if isinstance(visual, tv_tensors.Mask):
            # As a plain tensor: for masks torchvision takes "nearest", which samples corners of pixels and so shifts them.
            plain = visual.as_subclass(Tensor)[None]
            size = [self.height, self.width]
            resized = tv_tensors.Mask(F.resize(plain, size, interpolation=InterpolationMode.NEAREST_EXACT, antialias=False)[0])
        else:
            resized = F.resize(visual, [self.height, self.width], antialias=True)
        result = F.crop(resized, self.top, self.left, self.size, self.size)
        return F.horizontal_flip(result) if self.mirror else result


def boxes_of(record: Record, classes: Sequence[str]) -> tuple[tv_tensors.BoundingBoxes, Tensor]:
    """The boxes of a record, (n, 4) x1 y1 x2 y2 in its own pixels, and their labels (n,).

    Raises ValueError for unknown classes.
    """
    given = record.boxes or ()
    for box in given:
        if box.label not in classes:
            raise ValueError(f"picture {record.id!r}: there is no class {box.label!r}{did_you_mean(box.label, classes)}")
    corners = torch.tensor([[b.x1, b.y1, b.x2, b.y2] for b in given], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([classes.index(box.label) for box in given], dtype=torch.int64)
    canvas = (record.height, record.width)
    return tv_tensors.BoundingBoxes(corners, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=canvas), labels


def rasterise(boxes: Tensor, labels: Tensor, size: int, stride: int) -> Tensor:
    """Boxes on the feature grid: each cell belongs to the smallest box that covers its centre, 0 where there is none.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 in pixels, half-open, inside the square.
        labels: (n,) class indices.
        size: pixels of the square's side.
        stride: pixels of a cell's side.

    Returns (size // stride, size // stride) int64. A box that covers no cell's centre takes the one cell that its own centre
    lies in. Where boxes fight for a cell the smaller area wins, and among equal areas the later in the list; so a box can lose
    its only cell to a smaller one, and to nothing else.

    >>> rasterise(torch.tensor([[0.0, 0, 8, 8], [4, 4, 5, 5]]), torch.tensor([1, 2]), 12, 4)
    tensor([[1, 1, 0],
            [1, 2, 0],
            [0, 0, 0]])
    """
    cells = size // stride
    grid = torch.zeros(cells, cells, dtype=torch.int64)
    corners: list[list[float]] = boxes.tolist()
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in corners]
    for index in sorted(range(len(corners)), key=lambda index: -area[index]):  # stable: equal areas stay in order
        x1, y1, x2, y2 = corners[index]
        left, right = _covered(x1, x2, stride, cells)
        top, bottom = _covered(y1, y2, stride, cells)
        if left >= right or top >= bottom:
            left, top = (min(max(int((a + b) / 2 / stride), 0), cells - 1) for a, b in ((x1, x2), (y1, y2)))
            right, bottom = left + 1, top + 1
        grid[top:bottom, left:right] = labels[index]
    return grid


def _covered(low: float, high: float, stride: int, cells: int) -> tuple[int, int]:
    """The cells [first, last) whose centres lie in [low, high)."""
    return max(math.ceil(low / stride - 0.5), 0), min(math.ceil(high / stride - 0.5), cells)


def to_unit(image: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], any shape.

    >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return image.as_subclass(Tensor).to(torch.float32).div_(127.5).sub_(1)


def check_pictures(images: Tensor, what: str = "pictures") -> None:
    """Raise ValueError for what is no batch of finite pictures (B, 3, H, W) in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"{what} are floats of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
    if not bool(images.isfinite().all()):
        raise ValueError(f"{what} have values that are not finite (NaN or infinite)")
    low, high = (float(value) for value in images.aminmax())
    if low < -1.001 or high > 1.001:
        raise ValueError(f"{what} are in [-1, 1], not in [{low:.3g}, {high:.3g}]; to_unit makes them of uint8")


def to_uint8(image: Tensor) -> Tensor:
    """Floats in [-1, 1] (clipped to it) to uint8, any shape; the inverse of `to_unit`.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return image.as_subclass(Tensor).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
