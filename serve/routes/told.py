"""What several endpoints tell in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable

from serve.answers import NeighbourTold
from serve.pictures import base64_png
from serve.work import Neighbour


def neighbours_told(found: Iterable[Neighbour]) -> list[NeighbourTold]:
    """Neighbours as they go over the wire."""
    return [
        NeighbourTold(
            id=one.id,
            distance=None if math.isnan(one.distance) else one.distance,
            thumbnail=None if one.picture is None else base64_png(one.picture),
        )
        for one in found
    ]
