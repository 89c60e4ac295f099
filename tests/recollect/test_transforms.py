"""Decoding of whatever people have, and that pictures, boxes and masks move together."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from recollect.data.schema import Box, Record
from recollect.data.transforms import decode, joint_crop, rasterise, to_uint8, to_unit

CLASSES = ("background", "car", "person", "sign")


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pixel(content: bytes, row: int = 0, column: int = 0) -> list[int]:
    picture = decode(content)
    assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[0] == 3
    values: list[int] = picture[:, row, column].tolist()
    return values


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decode_turns_upright(orientation: int, kind: str) -> None:
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16, :16] = 255  # one white corner, top left
    # what a camera stores so that the given orientation turns it upright (EXIF 2.3, tag 0x0112)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert picture.shape == (3, 48, 32)
    assert (picture.float().numpy().transpose(1, 2, 0) - upright).__abs__().mean() < 5


def test_decode_of_modes() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (200, 100, 50, 255))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    assert pixel(encode(clear)) == [200, 100, 50] and pixel(encode(clear), 0, 1) == [255, 127, 127]
    assert pixel(encode(clear), 3, 3) == [255, 255, 255]
    assert pixel(encode(Image.new("LA", (4, 4), (0, 0)))) == [255, 255, 255]
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert pixel(encode(palette)) == [10, 200, 30]
    holed = Image.new("P", (4, 4), 1)
    holed.putpalette([9, 9, 9, 80, 90, 100])
    assert pixel(encode(holed)) == [80, 90, 100] and pixel(encode(holed, transparency=1)) == [255, 255, 255]
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert decode(encode(deep))[0].tolist() == [[0, 100, 255]]
    assert pixel(encode(Image.new("1", (4, 4), 1))) == [255, 255, 255]
    assert pixel(encode(Image.new("L", (4, 4), 77), "BMP")) == [77, 77, 77]
    ink = pixel(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert ink[0] > 200 and max(ink[1:]) < 60


def test_decode_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    for content, message in {
        b"": "it has no bytes",
        b"<html>not found</html>": "not a picture that can be read \\(JPEG, PNG, WEBP, BMP\\)",
        whole[:300]: "cannot be decoded: .*Truncated",
        whole[:-200]: "cannot be decoded: .*truncated",
        encode(Image.effect_noise((64, 64), 50))[:200]: "cannot be decoded",
        encode(Image.new("RGB", (4, 4)), "TIFF"): "not a picture that can be read",
    }.items():
        with pytest.raises(ValueError, match=message):
            decode(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb"):
        decode(whole)


def painted(width: int, height: int, box: tuple[int, int, int, int]) -> Record:
    """A black picture with a white rectangle, its box, and the same rectangle as a region mask."""
    x1, y1, x2, y2 = box
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    image = encode(Image.fromarray(mask * 255).convert("RGB"))
    return Record("p", image, "d", width, height, "train", boxes=(Box("person", *box),), regions=encode(Image.fromarray(mask)))


@st.composite
def rectangles(draw: st.DrawFn, low: int = 16, high: int = 60) -> tuple[int, int, tuple[int, int, int, int]]:
    width, height = draw(st.integers(low, high)), draw(st.integers(low, high))
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return width, height, (x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height)))


@settings(max_examples=150, deadline=None)
@given(rectangles(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31), st.booleans())
def test_boxes_follow_pixels_through_crop_and_flip(
    drawn: tuple[int, int, tuple[int, int, int, int]], stride: int, seed: int, flip: bool
) -> None:
    width, height, box = drawn
    record, size = painted(width, height, box), 16
    generator = torch.Generator().manual_seed(seed)
    sample = joint_crop(record, size, min(width, height), flip, generator, classes=CLASSES, with_regions=True)
    assert sample.image.shape == (3, size, size) and sample.regions is not None
    white = sample.image[0] > 127
    assert torch.equal(white, sample.regions == 1)
    assert bool(white.any()) == (len(sample.labels) == 1)
    if len(sample.labels):  # the box is exactly the bounding box of its pixels
        rows, columns = torch.where(white)
        edges = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
        assert sample.boxes.tolist() == [edges] and sample.labels.tolist() == [2]
    cells = rasterise(sample.boxes, sample.labels, size, stride) == 2
    centres = white[stride // 2 :: stride, stride // 2 :: stride]  # the pixel right and below of the cell's centre
    if bool(centres.any()):
        assert torch.equal(cells, centres)
    else:
        assert int(cells.sum()) == len(sample.labels)


@settings(max_examples=100, deadline=None)
@given(rectangles(), st.integers(16, 90), st.integers(0, 2**31))
def test_boxes_follow_masks_through_any_resize(
    drawn: tuple[int, int, tuple[int, int, int, int]], short_side: int, seed: int
) -> None:
    width, height, box = drawn
    generator = torch.Generator().manual_seed(seed)
    sample = joint_crop(painted(width, height, box), 16, short_side, True, generator, classes=CLASSES, with_regions=True)
    assert sample.regions is not None
    inside = rasterise(sample.boxes, sample.labels, 16, 1) == 2
    mask = sample.regions == 1
    assume(bool(mask.any()))  # else the rectangle fell between pixels, and its box claims one all the same
    x1, y1, x2, y2 = sample.boxes[0].tolist() if len(sample.boxes) else [0.0] * 4
    centres = torch.arange(16) + 0.5
    # A pixel's centre exactly on an edge falls to either side by rounding; all others must agree.
    across = torch.minimum((centres - x1).abs(), (centres - x2).abs()) < 1e-3
    down = torch.minimum((centres - y1).abs(), (centres - y2).abs()) < 1e-3
    tie = across[None, :] | down[:, None]
    assert torch.equal(inside & ~tie, mask & ~tie)
    assert bool(((sample.boxes >= 0) & (sample.boxes <= 16)).all())


def reference(boxes: list[tuple[float, float, float, float]], labels: list[int], size: int, stride: int) -> list[list[int]]:
    """`rasterise`, cell by cell, from its definition."""
    cells = size // stride
    grid = [[0] * cells for _ in range(cells)]
    owner = [[(float("inf"), 0)] * cells for _ in range(cells)]
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        centres = [
            (row, column)
            for row in range(cells)
            for column in range(cells)
            if x1 <= (column + 0.5) * stride < x2 and y1 <= (row + 0.5) * stride < y2
        ]
        own = (min(int((y1 + y2) / 2 // stride), cells - 1), min(int((x1 + x2) / 2 // stride), cells - 1))
        for row, column in centres or [own]:
            if ((x2 - x1) * (y2 - y1), -index) < owner[row][column]:
                owner[row][column] = ((x2 - x1) * (y2 - y1), -index)
                grid[row][column] = labels[index]
    return grid


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 48)] * 4, st.integers(1, 3)), max_size=6),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1.0, 0.5, 1 / 3]),
)
def test_rasterise_is_its_definition(drawn: list[tuple[int, int, int, int, int]], stride: int, unit: float) -> None:
    size = 16
    drawn = [(min(a, c), min(b, d), max(a, c), max(b, d), label) for a, b, c, d, label in drawn if a != c and b != d]
    kept = [
        (a * unit, b * unit, c * unit, d * unit, label) for a, b, c, d, label in drawn if c * unit <= size and d * unit <= size
    ]
    boxes = torch.tensor([row[:4] for row in kept], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([row[4] for row in kept], dtype=torch.int64)
    grid = rasterise(boxes, labels, size, stride)
    assert grid.dtype == torch.int64 and grid.shape == (size // stride, size // stride)
    assert grid.tolist() == reference([row[:4] for row in kept], [row[4] for row in kept], size, stride)
    if len(kept) == 1:
        assert int((grid != 0).sum()) >= 1


def test_the_smaller_box_wins_in_any_order() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [4, 4, 8, 8], [5, 5, 5.5, 5.5]])
    labels = torch.tensor([1, 2, 3])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert rasterise(boxes[order], labels[order], 8, 4).tolist() == [[1, 1], [1, 3]]


def test_centre_crop_without_generator() -> None:
    columns = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    record = Record(
        "p", encode(Image.fromarray(columns)), "d", 40, 20, "val", boxes=(Box("car", 0, 0, 5, 20), Box("sign", 10, 0, 12, 3))
    )
    sample = joint_crop(record, 20, classes=CLASSES, flip=True)
    assert sample.image[0, 0].tolist() == list(range(10, 30))  # the middle, not mirrored
    assert sample.labels.tolist() == [3] and sample.boxes.tolist() == [[0, 0, 2, 3]]  # the car is outside


def test_joint_crop_is_its_generators_alone() -> None:
    record = painted(60, 40, (5, 5, 30, 30))
    torch.manual_seed(0)
    first = joint_crop(record, 16, 20, True, torch.Generator().manual_seed(5), classes=CLASSES)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = joint_crop(record, 16, 20, True, torch.Generator().manual_seed(5), classes=CLASSES)
    assert torch.equal(first.image, again.image) and torch.equal(first.boxes, again.boxes)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator was not touched


def test_crops_and_flips_cover_everything() -> None:
    columns = np.tile(np.arange(24, dtype=np.uint8), (16, 1))
    record = Record("p", encode(Image.fromarray(columns)), "d", 24, 16, "train")
    seen = set()
    for seed in range(300):
        row = joint_crop(record, 16, None, True, torch.Generator().manual_seed(seed)).image[0, 0].tolist()
        seen.add((min(row), row[0] > row[-1]))
    assert seen == {(left, mirrored) for left in range(9) for mirrored in (False, True)}


def test_refusals_name_the_picture() -> None:
    record = painted(20, 20, (0, 0, 5, 5))
    with pytest.raises(ValueError, match="picture 'p': there is no class 'person'; known: background, dog"):
        joint_crop(record, 16, classes=("background", "dog"))
    with pytest.raises(ValueError, match="short side 12 is below the crop of 16"):
        joint_crop(record, 16, 12, classes=CLASSES)
    with pytest.raises(ValueError, match="picture 'q': it has no bytes"):
        joint_crop(Record("q", b"", "d", 2, 2, "train"), 16)
    wrong = Record("m", record.image, "d", 20, 20, "train", regions=encode(Image.new("L", (10, 20))))
    with pytest.raises(ValueError, match="picture 'm': its region mask is"):
        joint_crop(wrong, 16, with_regions=True)


def test_unit_range_is_exact_both_ways() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(values)), values)
    assert to_unit(values).min() == -1 and to_unit(values).max() == 1
    assert torch.equal(to_uint8(to_unit(values).bfloat16().float())[[0, 255]], values[[0, 255]])
