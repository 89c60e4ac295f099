"""Bytes from strangers to tensors, and back. Nothing is decoded before its size is known to be acceptable."""

from __future__ import annotations

import base64
import colorsys
import io
import warnings
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from serve.errors import ApiError
from serve.schema import Format, Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # decoders that strangers can reach; every further one is more to attack
ACCEPTED = "send a PNG, JPEG, WebP or BMP picture"
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LARGEST_SIDE = {"webp": 16383, "jpeg": 65500, "png": 2**31 - 1}  # what the formats themselves can hold
PNG_LEVEL = 2  # of zlib: a photograph of 256 px in 4.1 ms and 84 kB; the usual 6 takes 14.1 ms for 79 kB


class PictureError(ApiError):
    """The bytes are no acceptable picture; a 422 unless said otherwise."""

    def __init__(self, code: str, message: str, hint: str = ACCEPTED, status: int = 422) -> None:
        super().__init__(status, code, message, hint)
        self.args = (code, message, hint, status)  # what pickle calls this class with


def decode(content: bytes, limits: Limits = Limits()) -> Tensor:
    """The picture in an encoded file, upright, as uint8 (3, H, W).

    Transparency is laid over white, 16-bit and CMYK pictures become 8-bit RGB, EXIF rotation is applied.

    Raises:
        PictureError: with a code, the reason and a hint, for whatever is no acceptable picture.
    """
    if not content:
        raise PictureError("empty", "the picture is empty (0 bytes)")
    check_bytes(len(content), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit on pixels only warns; ours is checked below
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        with picture:
            _check_header(picture, limits)
            picture.load()
            return _tensor(_rgb(_upright(picture)))
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError("too_many_pixels", "the picture has far too many pixels", _fewer(limits), 413) from None
    except UnidentifiedImageError:
        raise PictureError("not_a_picture", f"this is no picture we read{_guess(content)}") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        if "truncated" in str(error).lower():
            raise PictureError("truncated", "the picture is cut off: its file ends too early", "send the whole file") from None
        raise PictureError("damaged", f"the picture is damaged and cannot be decoded ({type(error).__name__})") from None


def check_bytes(count: int, limits: Limits) -> None:
    """Raise PictureError (413) when an encoded picture of `count` bytes is more than the limit."""
    if count > limits.max_bytes:
        message = f"the picture has {count:,} bytes; at most {limits.max_bytes:,} are taken"
        raise PictureError("too_many_bytes", message, "scale it down, or send it as JPEG or WebP", 413)


def _check_header(picture: Image.Image, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        message = f"the picture has {width} x {height} = {width * height:,} pixels; at most {limits.max_pixels:,} are taken"
        raise PictureError("too_many_pixels", message, _fewer(limits), 413)
    if min(width, height) < limits.min_side:
        message = f"the picture is {width} x {height} pixels; each side needs at least {limits.min_side}"
        raise PictureError("too_small", message, "send a larger picture")
    if max(width, height) > limits.max_aspect * min(width, height):
        message = (
            f"the picture is {width} x {height} pixels; the long side may be at most {limits.max_aspect:g} times the short one"
        )
        raise PictureError("extreme_aspect", message, "crop it")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # an MPO is a camera's JPEG with a preview or a depth map behind it
        raise PictureError(
            "animated", f"the picture is an animation of {frames} frames", "send one frame as a picture of its own"
        )


def _fewer(limits: Limits) -> str:
    side = int(limits.max_pixels**0.5)
    return f"scale it down, for instance to {side} x {side}"


def _guess(content: bytes) -> str:
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = {
        "HTML": start.startswith((b"<!doctype html", b"<html")),
        "SVG": b"<svg" in start,
        "XML": start.startswith(b"<"),
        "a GIF": start.startswith(b"gif8"),
        "a PDF": start.startswith(b"%pdf"),
        "a TIFF": content.startswith((b"II*\0", b"MM\0*")),
        "HEIC or AVIF": content[4:8] == b"ftyp",
        "a cut-off PNG": content.startswith(b"\x89PNG"),
        "a cut-off JPEG": content.startswith(b"\xff\xd8"),
    }
    found = next((name for name, fits in known.items() if fits), "")
    return f"; it looks like {found}" if found else ""


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF in a good picture: better as it lies than not at all
        turn = None
    return picture.transpose(turn) if turn is not None else picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow would clip it instead of scaling
        levels = np.asarray(picture).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if "A" in picture.mode.upper() and picture.mode != "LAB" or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def resized(picture: Tensor, side: int | None, limits: Limits = Limits()) -> Tensor:
    """The picture (3, H, W) with its longer side at `side` pixels; as it is without one.

    Raises PictureError when that is more pixels than the limit, or leaves a side too short.
    """
    height, width = picture.shape[1:]
    if side is None or side == max(height, width):
        return picture
    new = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    if new[0] * new[1] > limits.max_pixels:
        message = f"size: {side} makes it {new[1]} x {new[0]} pixels; at most {limits.max_pixels:,} are computed"
        raise PictureError("bad_size", message, _fewer(limits))
    if min(new) < limits.min_side:
        message = f"size: {side} makes it {new[1]} x {new[0]} pixels; each side needs at least {limits.min_side}"
        raise PictureError("bad_size", message, "ask for a larger one")
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((new[1], new[0]), Image.Resampling.LANCZOS)
    return _tensor(image)


def to_base64(content: bytes) -> str:
    """Standard base64, as it goes into JSON."""
    return base64.b64encode(content).decode("ascii")


def base64_png(picture: NDArray[np.uint8]) -> str:
    """A colour picture (3, H, W) or a grey one (H, W) as a PNG in base64."""
    stream = io.BytesIO()
    Image.fromarray(picture if picture.ndim == 2 else picture.transpose(1, 2, 0)).save(stream, "PNG", compress_level=PNG_LEVEL)
    return to_base64(stream.getvalue())


def encode(picture: Tensor, format: Format = "png") -> bytes:
    """A uint8 picture (3, H, W) as PNG (lossless), JPEG or WebP (quality 95).

    Raises PictureError when the format cannot hold a picture of that size.
    """
    side = max(picture.shape[-2:])
    if side > LARGEST_SIDE[format]:
        raise PictureError(
            "bad_format", f"{format} holds at most {LARGEST_SIDE[format]} pixels a side, not {side}", "ask for png"
        )
    stream = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    image.save(stream, format.upper(), **({"compress_level": PNG_LEVEL} if format == "png" else {"quality": 95}))
    return stream.getvalue()


def encode_map(items: Tensor) -> bytes:
    """Memory items (h, w), int64 and at least 0, as a PNG whose pixel values are the items' indices.

    Up to 256 items make an indexed PNG with a colour for each; more make a 16-bit grey one.
    """
    array, stream = items.cpu().numpy(), io.BytesIO()
    if array.max(initial=0) > 255:
        Image.fromarray(array.astype(np.uint16)).save(stream, "PNG")
        return stream.getvalue()
    image = Image.fromarray(array.astype(np.uint8), mode="P")
    image.putpalette(_palette(256))
    image.save(stream, "PNG")
    return stream.getvalue()


def map_colours(count: int) -> list[str]:
    """The colours of the first `count` items in maps of up to 256, as #rrggbb."""
    parts = _palette(count)
    return [f"#{parts[3 * item]:02x}{parts[3 * item + 1]:02x}{parts[3 * item + 2]:02x}" for item in range(count)]


def _palette(count: int) -> list[int]:
    colours = (colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, 0.95 - 0.3 * (index % 3) / 2) for index in range(count))
    return cast(list[int], [round(255 * value) for colour in colours for value in colour])  # golden-ratio hues: neighbours differ
