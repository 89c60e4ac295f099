"""What the serving tests share: the test catalogue, and pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from tests.serve.translators import CATALOGUE

Paint = Callable[..., bytes]


@pytest.fixture(scope="session", autouse=True)
def catalogue() -> Iterator[None]:
    """The translators of the tests are listed, here and in every process started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECOLLECT_CATALOGUE", CATALOGUE)
        yield


def painted(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture, no two seeds alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """`image` as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
