"""An index in parts: each searches its own rows, and what they find is put together as if they were one.

A part is a run of rows, so that what is mapped from the disk stays there and no process holds more than its part. The distances
of every back-end are those of the vectors themselves (`local.reranked`), so the nearest of the parts are those of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect.retrieval.index import Index, Matches
from recollect.retrieval.local import LocalIndex


def part_of(index: Index, number: int, parts: int) -> LocalIndex:
    """The part `number` (from 0) of an index in this process that is cut into `parts`.

    Raises ValueError for an index in a server, which shares its rows out itself, and for more parts than pictures.
    """
    if not isinstance(index, LocalIndex):
        raise ValueError(f"a {index.back_end} index shares its pictures out itself; serve it as one (shards=1)")
    if not 0 <= number < parts <= len(index):
        raise ValueError(
            f"an index of {len(index)} pictures can be cut into 1 to {len(index)} parts, not part {number} of {parts}"
        )
    return index.part(number, parts)


def merged(parts: Sequence[Matches], k: int) -> Matches:
    """The `k` nearest of what parts found for the same queries; ties in the order of the parts."""
    distances = np.concatenate([part.distances for part in parts], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    rows = []
    for query, places in enumerate(order.tolist()):
        ids = [id for part in parts for id in part.ids[query]]
        rows.append(tuple(ids[place] for place in places))
    return Matches(tuple(rows), np.take_along_axis(distances, order, 1))
