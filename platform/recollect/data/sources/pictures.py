"""From a picture's file to the bytes that a store keeps, shared by all sources.

Every picture is really decoded once. Common encodings are kept as they are; what is turned by EXIF, huge, of another format or
made smaller is encoded again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from recollect.data.schema import Box
from recollect.data.store import Manifest
from recollect.data.transforms import FORMATS, open_image

KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # encodings that a store keeps as they are (an MPO is a JPEG with more behind it)
KEPT_BYTES = 16 << 20  # larger files become JPEG
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


@dataclass(frozen=True, slots=True)
class Ingest:
    """What became of a source: the store's manifest, the (path, reason) of every file that was left out, and what else is odd."""

    manifest: Manifest
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright picture as the store takes it: encoded, `width` x `height` pixels; `original` is its size before shrinking."""

    content: bytes
    width: int
    height: int
    original: tuple[int, int]

    def shrunk(self, box: Box) -> Box:
        """A box in pixels of the original, in pixels of this picture; what was inside stays inside."""
        width, height = self.original
        x1, x2 = (x * self.width / width for x in (box.x1, box.x2))
        y1, y2 = (y * self.height / height for y in (box.y1, box.y2))
        return Box(box.label, x1, y1, x2, y2)


def read_picture(path: Path, max_side: int | None = None) -> Picture:
    """Read and decode a picture; one with a side longer than `max_side` pixels is made smaller.

    Raises OSError or ValueError with the reason when it cannot be read or decoded.
    """
    content = path.read_bytes()
    image = open_image(content)
    original = image.size
    if max_side is not None and max(original) > max_side:
        scale = max_side / max(original)
        size = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
        return Picture(_encode(image.resize(size, Image.Resampling.LANCZOS), content), *size, original)
    return Picture(content if _keep(content) else _encode(image, content), *original, original)


def _keep(content: bytes) -> bool:
    """Whether the store takes these bytes as they are: a common encoding, upright, of sane size."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        return opened.format in KEPT and len(content) <= KEPT_BYTES and opened.getexif().get(ORIENTATION, 1) == 1


def _encode(image: Image.Image, original: bytes) -> bytes:
    """The picture as JPEG where it was one or is huge, else lossless as PNG."""
    sink = io.BytesIO()
    if original.startswith(b"\xff\xd8") or len(original) > KEPT_BYTES:
        image.save(sink, "JPEG", quality=95, subsampling=0)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()
