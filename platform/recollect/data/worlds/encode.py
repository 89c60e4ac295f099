"""How worlds encode what they draw."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of a picture (H, W, 3) or a region map (H, W), uint8, compressed quickly."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)  # 1 is three times as fast as 6, and a fifth larger
    return stream.getvalue()
