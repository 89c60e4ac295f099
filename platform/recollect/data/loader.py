"""Batches from a store, as a pure function of (seed, step, rank, world).

Every domain is read in its own seeded, shuffled epochs: slot s of step t is position p = t * batch_size + s, which is entry
p % n of the permutation keyed by (seed, domain, p // n). Crops and flips are keyed by position too. So N ranks together see
what one process sees, and to resume at step t is to ask for step t.

Which pictures a step shows, and where they are cut, is known without reading any: the part that costs, `pieces`, can be done by
anybody who reads the store (`recollect.data.remote` lets other nodes do it).
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from recollect.batch import Batch
from recollect.config import Data, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import Sample, joint_crop, rasterise, to_unit

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Wanted(NamedTuple):
    """A picture to cut: its id, and the seed that its crop and flip are drawn from."""

    id: str
    seed: int


Piece = tuple[Sample, Tensor | None]  # a picture's square, and its attributes (A,) where the store names some


class Feed:
    """The training pictures of one rank.

    Args:
        store: where the pictures are.
        data: which domains (none: all of the store's), how they are cut, of which attributes must be known, at most how many.
        batch_size: the JOINT batch per domain over all ranks; a multiple of `world`.
        stride: pixels per cell of the class maps; divides `data.size`.
        seed: of orders, crops and flips.
        rank, world: this process, and how many there are.
        split: which part of the store; `data.known` and `data.limit`, in this order, apply to "train" only.
        workers: threads that decode ahead in `stream`; 0: none.
        truth: also what only a world knows of its pictures: `Batch.regions` and `Batch.modes`, where the store has them.

    Raises ValueError for unknown names, a domain without pictures, and numbers that do not divide.
    """

    def __init__(
        self,
        store: Store,
        data: Data,
        batch_size: int,
        stride: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        split: str = "train",
        workers: int = 2,
        truth: bool = False,
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"a joint batch of {batch_size} does not divide over {world} ranks; take {world * -(-batch_size // world)}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of 0..{world - 1}")
        _check_cut(data.size, stride, data.short_side)
        self.store, self.data, self.stride, self.seed, self.workers, self.truth = store, data, stride, seed, workers, truth
        self.batch_size = batch_size
        share = batch_size // world
        self.slots = tuple(range(rank * share, (rank + 1) * share))
        self.domains = store.domains.only(data.domains or store.domains.names)
        self.ids = {name: self._select(split, name) for name in self.domains.names}

    def _select(self, split: str, domain: str) -> tuple[str, ...]:
        ids = self.store.ids(split, domain)
        if not ids:
            raise ValueError(f"domain {domain!r} has no {split} picture in {self.store.uri}; it has {self.store.manifest.counts}")
        if split == "train" and self.data.known:
            ids = self._known(ids, domain)
        if split != "train" or self.data.limit is None or self.data.limit >= len(ids):
            return ids
        if self.data.limit < 1:
            raise ValueError(f"data.limit is {self.data.limit}; it must be at least 1, or null for all pictures")
        # The first of one shuffled order that no seed changes: seeds compare on the same pictures, small limits are subsets.
        return tuple(ids[index] for index in _permutation(f"limit/{domain}", len(ids))[: self.data.limit])

    def _known(self, ids: tuple[str, ...], domain: str) -> tuple[str, ...]:
        """Those of the pictures of which all of `data.known` are known."""
        names, wanted = self.store.domains.attributes, self.data.known
        for name in wanted:
            if name not in names:
                raise ValueError(f"data.known: the store {self.store.uri} has no attribute {name!r}{did_you_mean(name, names)}")
        unknown = np.isnan(self.store.attributes(ids)[1][:, [names.index(name) for name in wanted]])
        found = tuple(id for id, lacks in zip(ids, unknown, strict=True) if not lacks.any())
        if not found:
            columns = zip(wanted, (~unknown).T.sum(axis=1).tolist(), strict=True)
            counts = ", ".join(f"{name} of {count}" for name, count in columns)
            raise ValueError(f"data.known leaves no training picture of {domain!r}: of its {len(ids)} is known {counts}")
        return found

    def batches(self, step: int) -> tuple[Batch, ...]:
        """One batch per domain, in the run's order, for this step and rank."""
        wanted = self.wanted(step)
        return self.batches_of(wanted, pieces(self.store, self.data, wanted, self.truth))

    def wanted(self, step: int) -> list[Wanted]:
        """The pictures of this step and rank, domain after domain."""
        return [self._wanted(domain, step, slot) for domain in self.domains.names for slot in self.slots]

    def _wanted(self, domain: str, step: int, slot: int) -> Wanted:
        ids = self.ids[domain]
        epoch, entry = divmod(step * self.batch_size + slot, len(ids))
        order = _permutation(f"{self.seed}/order/{domain}/{epoch}", len(ids))
        return Wanted(ids[order[entry]], _key(f"{self.seed}/crop/{domain}/{epoch}/{entry}"))

    def batches_of(self, wanted: Sequence[Wanted], cut: Sequence[Piece]) -> tuple[Batch, ...]:
        """The batches that these pictures make, which are those of `wanted`."""
        share = len(self.slots)
        return tuple(
            self._batch(index, wanted[start : start + share], cut[start : start + share])
            for index, start in enumerate(range(0, len(wanted), share))
        )

    def _batch(self, index: int, wanted: Sequence[Wanted], cut: Sequence[Piece]) -> Batch:
        batch = _collate(self.store, cut, [one.id for one in wanted], self.slots, [index] * len(cut), self.stride)
        return self._with_truth(batch, [sample for sample, _ in cut]) if self.truth else batch

    def _with_truth(self, batch: Batch, samples: Sequence[Sample]) -> Batch:
        modes = [-1 if mode is None else mode for mode in self.store.column("mode", batch.ids)]
        if not self.store.domains.regions:
            return replace(batch, modes=torch.tensor(modes))
        nothing = torch.zeros(self.data.size, self.data.size, dtype=torch.int64)  # a picture without a mask among others
        masks = [nothing if cut.regions is None else cut.regions.as_subclass(Tensor).long() + 1 for cut in samples]
        return replace(batch, regions=torch.stack(masks), modes=torch.tensor(modes))

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Batch, ...]]]:
        """(step, batches) for start <= step < stop, in order, decoded ahead by threads; closing it early stops them."""
        steps = range(start, stop)
        with closing(in_order(self.batches, steps, self.workers)) as batches:
            yield from zip(steps, batches, strict=True)


def pieces(store: Store, data: Data, wanted: Sequence[Wanted], truth: bool) -> list[Piece]:
    """Read, decode and cut these pictures; with their region masks where `truth` is asked for and known."""
    cut = []
    for id, seed in wanted:
        record, generator = store.record(id), torch.Generator().manual_seed(seed)
        classes = store.domains.classes
        sample = joint_crop(record, data.size, data.short_side, data.flip, generator, classes=classes, with_regions=truth)
        cut.append((sample, _attributes(store, record.attributes)))
    return cut


def in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Generator[_Result, None, None]:
    """`map(function, items)` computed ahead by threads, a few items each and no more; closing it early stops them.

    `workers` 0 computes in the caller's thread, when asked.
    """
    if not workers:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="recollect-ahead")
    ahead: deque[Future[_Result]] = deque()
    waiting = iter(items)
    try:
        ahead.extend(executor.submit(function, item) for item in islice(waiting, 2 * workers))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(executor.submit(function, item) for item in islice(waiting, 1))
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def fixed_batch(
    store: Store,
    ids: Sequence[str],
    size: int,
    stride: int,
    short_side: int | None = None,
    *,
    domains: Sequence[str] | None = None,
) -> Batch:
    """These pictures, cut at the centre and never mirrored: for validation and sample grids.

    `domains` gives the order behind `Batch.domain` (a run's `data.domains`); None: the store's.
    """
    _check_cut(size, stride, short_side)
    order = store.domains.only(tuple(domains or store.domains.names))
    records = store.records(ids)
    samples = [
        (joint_crop(record, size, short_side, classes=order.classes), _attributes(store, record.attributes)) for record in records
    ]
    return _collate(store, samples, ids, range(len(ids)), [order.index(record.domain) for record in records], stride)


def _check_cut(size: int, stride: int, short_side: int | None) -> None:
    if size % stride:
        raise ValueError(f"pictures of {size} pixels do not divide into cells of {stride}; take {-(-size // stride) * stride}")
    if short_side is not None and short_side < size:
        raise ValueError(f"data.short_side is {short_side}, below data.size {size}; give at least {size}, or null")


def _attributes(store: Store, given: dict[str, int] | None) -> Tensor | None:
    """The attributes (A,) of a record, NaN where it has none of that name; None in a store that names none."""
    names, known = store.domains.attributes, given or {}
    return torch.tensor([float(known.get(name, math.nan)) for name in names]) if names else None


def _collate(
    store: Store,
    samples: Sequence[Piece],
    ids: Sequence[str],
    slots: Sequence[int],
    domain: Sequence[int],
    stride: int,
) -> Batch:
    images = to_unit(torch.stack([sample.image.as_subclass(Tensor) for sample, _ in samples]))  # (B, 3, size, size)
    classes = boxes = labels = None
    if store.manifest.annotated:  # a picture without boxes in an annotated store is background all over
        classes = torch.stack([rasterise(sample.boxes, sample.labels, images.shape[-1], stride) for sample, _ in samples])
        boxes = tuple(sample.boxes.as_subclass(Tensor) for sample, _ in samples)
        labels = tuple(sample.labels for sample, _ in samples)
    rows = [row for _, row in samples if row is not None]
    return Batch(
        images=images,
        domain=torch.tensor(domain, dtype=torch.int64),
        ids=tuple(ids),
        slots=tuple(slots),
        classes=classes,
        attributes=torch.stack(rows) if rows else None,
        boxes=boxes,
        labels=labels,
    )


def _key(text: str) -> int:
    """A 63-bit seed for a torch generator."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=64)  # an epoch's order is asked for once a picture
def _permutation(key: str, length: int) -> tuple[int, ...]:
    return tuple(torch.randperm(length, generator=torch.Generator().manual_seed(_key(key))).tolist())
