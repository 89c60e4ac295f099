"""A feed whose pictures are read, decoded and cut by Ray tasks, on any node that has room: CPU nodes decode for GPU nodes.

The rank itself decides what each step shows and where it is cut, as it does without Ray; a task gets ids and seeds, and answers
with squares of uint8. So the batches are those of the local feed, bit by bit, at any number of ranks and after any kill, and a
task whose node dies is simply done again elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from recollect.batch import Batch
from recollect.bundle import absolute
from recollect.config import Data
from recollect.data.loader import Feed, Piece, Wanted, pieces
from recollect.data.store import Store
from recollect.data.transforms import Sample

Numbers = NDArray[Any]


class RemoteFeed:
    """The batches of a `Feed`, its pictures decoded by Ray tasks of one CPU each.

    Args:
        feed: whose store's URI means the same on every node.
        ahead: so many steps are in the making at a time.
        resource: a custom resource of which a task needs one, so that only nodes that have it decode; empty: any node.
    """

    def __init__(self, feed: Feed, ahead: int, resource: str = "") -> None:
        self.feed, self.ahead, self.resource = feed, ahead, resource

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Batch, ...]]]:
        """(step, batches) for start <= step < stop, in order; closing it early stops the tasks.

        In a process that is not connected it joins a cluster or starts a private one (`recollect.cluster.connect`). Raises
        ValueError where no node could ever decode, or none has had room for as long as a driver waits for nodes.
        """
        from recollect.cluster import ahead_on_ray, connected  # Ray, which the local feed does without

        steps = range(start, stop)
        if not steps:
            return
        place = Place(absolute(self.feed.store.uri), self.feed.store.digest)
        decode = partial(_decode, place, self.feed.data, self.feed.truth)
        wanted = map(self.feed.wanted, steps)
        with connected(), closing(ahead_on_ray(decode, wanted, ahead=self.ahead, resource=self.resource)) as answers:
            for step, answer in zip(steps, answers, strict=True):
                yield step, self.feed.batches_of(self.feed.wanted(step), [_unpack(one) for one in answer])


class Place(NamedTuple):
    """A store as every node opens it, and what must be in it."""

    uri: str
    digest: str


@lru_cache(maxsize=1)  # a process decodes for one run after the other
def _opened(place: Place) -> Store:
    torch.set_num_threads(1)
    store = Store.open(place.uri)
    if store.digest != place.digest:
        raise ValueError(
            f"the store {place.uri} is another one where pictures are decoded than where the run trains (digest "
            f"{store.digest[:12]}, not {place.digest[:12]}): its place must mean the same on every node"
        )
    return store


class Packed(NamedTuple):
    """A `Piece` as arrays, which processes share without copying: uint8 (3, S, S), boxes (n, 4), labels (n,), regions (S, S)."""

    image: Numbers
    boxes: Numbers
    labels: Numbers
    regions: Numbers | None
    attributes: Numbers | None


def _decode(place: Place, data: Data, truth: bool, wanted: Sequence[Wanted]) -> list[Packed]:
    """What a task does."""
    return [_pack(piece) for piece in pieces(_opened(place), data, wanted, truth)]


def _pack(piece: Piece) -> Packed:
    sample, attributes = piece
    return Packed(
        image=sample.image.as_subclass(Tensor).numpy(),
        boxes=sample.boxes.as_subclass(Tensor).numpy(),
        labels=sample.labels.numpy(),
        regions=None if sample.regions is None else sample.regions.as_subclass(Tensor).numpy(),
        attributes=None if attributes is None else attributes.numpy(),
    )


def _unpack(packed: Packed) -> Piece:
    image = tv_tensors.Image(_tensor(packed.image))
    boxes = tv_tensors.BoundingBoxes(_tensor(packed.boxes), format="XYXY", canvas_size=image.shape[-2:])
    regions = None if packed.regions is None else tv_tensors.Mask(_tensor(packed.regions))
    sample = Sample(image, boxes, _tensor(packed.labels), regions)
    return sample, None if packed.attributes is None else _tensor(packed.attributes)


def _tensor(array: Numbers) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: what comes from Ray is read-only
