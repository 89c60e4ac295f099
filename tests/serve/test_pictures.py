"""Bytes from strangers become an upright RGB tensor, or a PictureError; nothing else ever."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.pictures import PictureError, decode, encode, encode_map, resized
from serve.schema import Limits
from tests.serve.conftest import encoded, painted


def refused(content: bytes, limits: Limits = Limits()) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(content, limits)
    assert caught.value.message and caught.value.hint
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: decoding it would need width x height bytes and more."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_lossless_formats_arrive_exactly(kind: str) -> None:
    image = painted()
    tensor = decode(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 40, 48)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))


def test_jpeg_arrives() -> None:
    difference = decode(encoded(painted(), "JPEG", quality=95)).float() - decode(encoded(painted())).float()
    assert difference.abs().mean() < 4


def test_alpha_lies_over_white() -> None:
    image = painted().convert("RGBA")
    image.putalpha(64)
    expected = np.asarray(painted(), dtype=float) * 64 / 255 + 255 * (1 - 64 / 255)
    assert np.abs(decode(encoded(image)).permute(1, 2, 0).numpy() - expected).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.putpixel((0, 0), 0)
    tensor = decode(encoded(image, transparency=0))
    assert tensor[:, 0, 0].tolist() == [255, 255, 255] and tensor[:, 5, 5].tolist() == [200, 10, 30]


def test_16_bit_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).round().astype(np.uint16)
    tensor = decode(encoded(Image.fromarray(levels)))
    assert torch.equal(tensor[0], tensor[2])
    assert np.abs(tensor[0].numpy() - levels / 257).max() <= 0.51


def test_cmyk_and_grey_and_bilevel() -> None:
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    assert (decode(encoded(cyan, "JPEG", quality=95))[:, 8, 8].float() - torch.tensor([0.0, 255, 255])).abs().max() < 12
    assert decode(encoded(Image.new("L", (32, 32), 77)))[:, 0, 0].tolist() == [77] * 3
    assert decode(encoded(Image.new("1", (32, 32), 1)))[:, 0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """Against what Pillow's own exif_transpose makes of it."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(painted(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode(content).permute(1, 2, 0).numpy(), np.asarray(upright))


def test_broken_exif_does_not_cost_the_picture() -> None:
    assert decode(encoded(painted(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")).shape == (3, 40, 48)


def test_phone_pictures_with_a_second_picture_inside() -> None:
    content = encoded(painted(), "MPO", save_all=True, append_images=[painted(seed=1)])
    assert decode(content).shape == (3, 40, 48)


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (b"", "empty", "0 bytes"),
        (b"hello, this is text", "not_a_picture", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_a_picture", "SVG"),
        (b"  <!DOCTYPE html><html></html>", "not_a_picture", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "not_a_picture", "SVG"),
        (b"%PDF-1.7", "not_a_picture", "PDF"),
        (b"\0\0\0\x18ftypheic", "not_a_picture", "HEIC"),
        (encoded(painted(), "GIF"), "not_a_picture", "GIF"),
        (encoded(painted(), "TIFF"), "not_a_picture", "TIFF"),
        (encoded(painted())[:200], "truncated", "too early"),
        (encoded(painted(200, 200), "JPEG")[:2000], "truncated", "too early"),
        (encoded(painted(15, 100)), "too_small", "15 x 100"),
        (encoded(painted(16, 300)), "extreme_aspect", "16 x 300"),
    ],
)
def test_refusals(content: bytes, code: str, told: str) -> None:
    error = refused(content)
    assert (error.status, error.code) == (422, code)
    assert told in error.message


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    assert refused(encoded(painted(), kind, save_all=True, append_images=[painted(seed=1)])).code == "animated"


@pytest.mark.parametrize("side", [2049, 12000, 30000, 2**31 - 1])  # above our limit, above Pillow's warning, above its error
def test_pixels_are_counted_before_decoding(side: int) -> None:
    error = refused(png_header(side, side))
    assert (error.status, error.code) == (413, "too_many_pixels")


def test_bytes_are_counted_before_opening() -> None:
    error = refused(b"x" * 101, Limits(max_bytes=100))
    assert (error.status, error.code) == (413, "too_many_bytes")


def test_a_comment_that_unpacks_to_megabytes() -> None:
    """Pillow gives up with a ValueError here, which is none of the errors that it promises."""
    content, comment = encoded(painted()), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    end_of_header = 8 + 25
    assert refused(content[:end_of_header] + comment + content[end_of_header:]).code == "damaged"


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(refused(b"")))
    assert isinstance(error, PictureError) and error.code == "empty"


@given(st.binary(max_size=400))
def test_random_bytes(content: bytes) -> None:
    refused(content)


SEEDS = [
    encoded(painted()),
    encoded(painted().convert("P")),
    encoded(painted(), "JPEG"),
    encoded(painted(), "WEBP"),
    encoded(painted(), "BMP"),
    encoded(painted(), "WEBP", save_all=True, append_images=[painted(seed=1)]),
]


@pytest.mark.parametrize("examples", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_pictures(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.data())(_mutated))()


def _mutated(data: st.DataObject) -> None:
    """Bytes changed, cut, inserted, anywhere: a valid tensor or our error."""
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1) if len(content) > 1 else st.just(0))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[place : place + data.draw(st.integers(1, 200))]
        else:
            content[place:place] = data.draw(st.binary(max_size=20))
    limits = Limits(max_pixels=256 * 256)
    try:
        tensor = decode(bytes(content), limits)
    except PictureError as error:
        assert error.code and 400 <= error.status < 500
    else:
        assert tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[0] == 3
        assert tensor.shape[1] * tensor.shape[2] <= limits.max_pixels and min(tensor.shape[1:]) >= limits.min_side


def test_encode_gives_back_what_decode_read() -> None:
    tensor = decode(encoded(painted()))
    assert torch.equal(decode(encode(tensor, "png")), tensor)
    for kind in ("jpeg", "webp"):
        content = encode(tensor, kind)
        assert Image.open(io.BytesIO(content)).format == kind.upper()
        assert (decode(content).float() - tensor.float()).abs().mean() < 4


def test_webp_cannot_hold_everything() -> None:
    with pytest.raises(PictureError, match="16383"):
        encode(torch.zeros(3, 16, 16384, dtype=torch.uint8), "webp")


@pytest.mark.parametrize(("items", "mode"), [(12, "P"), (256, "P"), (300, "I;16")])
def test_memory_maps_keep_their_indices(items: int, mode: str) -> None:
    indices = torch.arange(items).reshape(-1, 4)
    image = Image.open(io.BytesIO(encode_map(indices)))
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), indices.numpy())
    if mode == "P":
        palette = image.getpalette()
        assert palette is not None and len({tuple(palette[3 * i : 3 * i + 3]) for i in range(items)}) > items * 0.9


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((48, 40), None, (48, 40)),
        ((48, 40), 48, (48, 40)),
        ((48, 40), 96, (96, 80)),
        ((48, 40), 24, (24, 20)),
        ((40, 48), 96, (80, 96)),
    ],
)
def test_a_picture_is_resized_in_its_aspect(size: tuple[int, int], side: int | None, expected: tuple[int, int]) -> None:
    image = painted(*size)
    made = resized(decode(encoded(image)), side)
    assert made.shape == (3, expected[1], expected[0]) and made.dtype == torch.uint8
    back = np.asarray(Image.fromarray(made.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(back - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("side", [2, 15, 60_000])
def test_a_size_that_cannot_be_had_is_told(side: int) -> None:
    with pytest.raises(PictureError, match="bad_size"):
        resized(decode(encoded(painted())), side)
