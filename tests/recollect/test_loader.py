"""The feed: a pure function of (seed, step, rank, world), without replacement, at any number of ranks and threads."""

from __future__ import annotations

import io
import math
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recollect.batch import Batch
from recollect.config import Data
from recollect.data.loader import Feed, fixed_batch, in_order
from recollect.data.schema import Box, Record
from recollect.data.store import Store, write_store
from recollect.data.transforms import joint_crop, rasterise, to_unit

COUNTS = {"a": 10, "b": 7, "c": 3}
CLASSES = ("background", "car", "sign")


def picture(index: int, domain: str, split: str = "train", boxes: tuple[Box, ...] | None = None) -> Record:
    noise = Image.frombytes("RGB", (6, 4), random.Random(f"{domain}{index}").randbytes(72)).resize((30, 20))
    sink = io.BytesIO()
    noise.save(sink, "PNG")
    return Record(
        f"{domain}/{split}/{index}", sink.getvalue(), domain, 30, 20, split, boxes=boxes, attributes={"odd": index % 2, "x": 0}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    some = (Box("car", 3, 3, 20, 15), Box("sign", 10, 5, 12, 7))
    records = [
        picture(i, domain, boxes=some[: i % 3] if i % 4 else None) for domain, count in COUNTS.items() for i in range(count)
    ]
    records += [picture(i, "a", "val", boxes=some) for i in range(3)]
    write_store(path, records, domains=COUNTS, classes=CLASSES, attributes=("odd", "x"))
    return Store.open(path)


def feed(store: Store, batch_size: int = 4, *, domains: tuple[str, ...] = ("b", "a"), seed: int = 3, **options: Any) -> Feed:
    data = {key: options.pop(key) for key in ("limit", "known", "short_side", "flip") if key in options}
    return Feed(store, Data(domains=domains, size=16, **data), batch_size, 4, seed, **options)


def same(first: Batch, second: Batch) -> bool:
    assert first.classes is not None and second.classes is not None
    assert first.attributes is not None and second.attributes is not None
    return (
        (first.ids, first.slots) == (second.ids, second.slots)
        and torch.equal(first.images, second.images)
        and torch.equal(first.domain, second.domain)
        and torch.equal(first.classes, second.classes)
        and torch.equal(first.attributes, second.attributes)
    )


def test_a_batch_is_what_it_says(store: Store) -> None:
    b, a = feed(store, 5, short_side=18).batches(7)
    assert b.images.shape == (5, 3, 16, 16) and b.images.dtype == torch.float32 and b.images.abs().max() <= 1
    assert b.slots == (0, 1, 2, 3, 4) and b.domain.tolist() == [0] * 5 and a.domain.tolist() == [1] * 5  # the run's order
    assert all(id.startswith("b/train/") for id in b.ids) and all(id.startswith("a/train/") for id in a.ids)
    assert a.classes is not None and a.classes.shape == (5, 4, 4) and a.classes.dtype == torch.int64
    assert a.attributes is not None and a.attributes.tolist() == [[int(id.split("/")[-1]) % 2, 0] for id in a.ids]
    for row, id in enumerate(a.ids):
        if store.record(id).boxes is None:  # not annotated, in a store that is: background
            assert int(a.classes[row].sum()) == 0


def test_every_epoch_shows_every_picture_once(store: Store) -> None:
    source = feed(store, 5, domains=("a", "b", "c"))
    seen: dict[str, list[str]] = {name: [] for name in COUNTS}
    for step in range(14):
        for name, batch in zip(COUNTS, source.batches(step), strict=True):
            seen[name] += batch.ids
    orders = set()
    for name, count in COUNTS.items():
        for start in range(0, 70 - count, count):
            epoch = seen[name][start : start + count]
            assert sorted(epoch) == sorted(store.ids("train", name))
            orders.add(tuple(epoch))
    assert sum(len(order) == 10 for order in orders) >= 5  # another order every epoch


def test_a_domain_does_not_depend_on_the_others(store: Store) -> None:
    alone = feed(store, domains=("b",)).batches(3)[0]
    beside = feed(store, domains=("a", "c", "b")).batches(3)[2]
    assert alone.ids == beside.ids and torch.equal(alone.images, beside.images)
    assert feed(store, domains=("b",), seed=4).batches(3)[0].ids != alone.ids


def test_all_domains_of_the_store_when_none_is_named(store: Store) -> None:
    assert feed(store, domains=()).domains.names == ("a", "b", "c") and len(feed(store, domains=()).batches(0)) == 3


@settings(max_examples=25, deadline=None)
@given(world=st.sampled_from([1, 2, 3, 4, 6]), step=st.integers(0, 10**7), seed=st.integers(0, 2**40))
def test_ranks_together_are_one_process(store: Store, world: int, step: int, seed: int) -> None:
    whole = feed(store, 12, seed=seed).batches(step)
    parts = [feed(store, 12, seed=seed, rank=rank, world=world).batches(step) for rank in range(world)]
    for index, batch in enumerate(whole):
        shares = [part[index] for part in parts]
        joined = Batch(
            images=torch.cat([share.images for share in shares]),
            domain=torch.cat([share.domain for share in shares]),
            ids=tuple(id for share in shares for id in share.ids),
            slots=tuple(slot for share in shares for slot in share.slots),
            classes=torch.cat([share.classes for share in shares if share.classes is not None]),
            attributes=torch.cat([share.attributes for share in shares if share.attributes is not None]),
        )
        assert same(joined, batch)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_stream_is_the_batches_in_order(store: Store, workers: int) -> None:
    source = feed(store, workers=workers)
    torch.manual_seed(11)  # the global generator must not matter
    streamed = list(source.stream(5, 25))
    assert [step for step, _ in streamed] == list(range(5, 25))
    for step, batches in streamed:
        assert all(same(one, two) for one, two in zip(batches, feed(store).batches(step), strict=True))
    assert list(source.stream(4, 4)) == []


def ahead_threads() -> int:
    return sum(thread.name.startswith("recollect-ahead") for thread in threading.enumerate())


def test_the_stream_stops_with_its_consumer(store: Store) -> None:
    stream = feed(store, workers=2).stream(0, 10**5)
    assert next(stream)[0] == 0 and ahead_threads() > 0
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert ahead_threads() == 0
    for step, _ in feed(store, workers=2).stream(0, 10**5):
        if step == 3:
            break
    assert ahead_threads() == 0


def test_work_ahead_is_bounded_and_its_errors_arrive() -> None:
    asked: list[int] = []

    def items() -> Any:
        for number in range(100):
            asked.append(number)
            yield number

    results = in_order(lambda number: 10 // (7 - number), items(), 2)
    assert next(results) == 1 and len(asked) == 5
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert ahead_threads() == 0


def test_the_limit_is_a_growing_subset(store: Store) -> None:
    kept = {limit: set(feed(store, domains=("a",), limit=limit).ids["a"]) for limit in (1, 4, 9, 10, 99)}
    assert [len(ids) for ids in kept.values()] == [1, 4, 9, 10, 10]
    assert kept[1] < kept[4] < kept[9] < kept[10]
    assert set(feed(store, domains=("a",), limit=4, seed=99).ids["a"]) == kept[4]  # seeds compare on the same pictures
    counted = Counter(id for step in range(2) for id in feed(store, domains=("a",), limit=4).batches(step)[0].ids)
    assert counted == dict.fromkeys(kept[4], 2)
    assert len(feed(store, domains=("a",), limit=1, split="val").ids["a"]) == 3  # it is for training pictures


def test_crops_change_from_epoch_to_epoch(store: Store) -> None:
    source = feed(store, 3, domains=("c",), short_side=20, flip=True)
    crops = {
        id: {
            row.numpy().tobytes()
            for step in range(8)
            for name, row in zip(*ids_and_rows(source, step), strict=True)
            if name == id
        }
        for id in source.ids["c"]
    }
    assert all(len(different) >= 7 for different in crops.values())


def ids_and_rows(source: Feed, step: int) -> tuple[tuple[str, ...], torch.Tensor]:
    batch = source.batches(step)[0]
    return batch.ids, batch.images


def test_fixed_batch_is_the_centre(store: Store) -> None:
    ids = (*store.ids("val", "a"), "c/train/1")
    batch = fixed_batch(store, ids, 16, 4, 20, domains=("c", "a"))
    assert batch.ids == ids and batch.slots == (0, 1, 2, 3) and batch.domain.tolist() == [1, 1, 1, 0]
    assert fixed_batch(store, ids, 16, 4).domain.tolist() == [0, 0, 0, 2]
    assert batch.classes is not None
    for row, id in enumerate(ids):
        sample = joint_crop(store.record(id), 16, 20, classes=CLASSES)
        assert torch.equal(batch.images[row], to_unit(sample.image))
        assert torch.equal(batch.classes[row], rasterise(sample.boxes, sample.labels, 16, 4))


def test_a_store_without_boxes_or_attributes(tmp_path: Path) -> None:
    plain = [
        Record(**{key: getattr(picture(i, "a"), key) for key in ("id", "image", "domain", "width", "height", "split")})
        for i in range(3)
    ]
    write_store(tmp_path, plain, domains=("a",))
    batch = feed(Store.open(tmp_path), domains=("a",)).batches(0)[0]
    assert batch.classes is None and batch.attributes is None and len(set(batch.ids)) == 3  # four of three


def test_attributes_that_a_record_lacks_are_nan(tmp_path: Path) -> None:
    known = [{"x": 1}, {}, None, {"odd": 0, "x": 0}]
    records = [replace(picture(i, "a"), attributes=attributes) for i, attributes in enumerate(known)]
    write_store(tmp_path, records, domains=("a",), attributes=("odd", "x"))
    store = Store.open(tmp_path)
    expected = torch.tensor([[math.nan, 1.0], [math.nan] * 2, [math.nan] * 2, [0.0, 0.0]])
    ids = [f"a/train/{i}" for i in range(4)]
    fixed = fixed_batch(store, ids, 16, 4).attributes
    fed = feed(store, domains=("a",)).batches(0)[0]
    assert fixed is not None and fed.attributes is not None
    torch.testing.assert_close(fixed, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(fed.attributes, expected[[ids.index(id) for id in fed.ids]], rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 24 training and 4 validation pictures, of a third of which nothing is known, and of another third only x."""
    path = tmp_path_factory.mktemp("partly")
    values: list[dict[str, int] | None] = [None, {"x": 1}, {"x": 0, "odd": 1}]
    records = [
        replace(picture(i, "a", split), attributes=values[i % 3]) for split, n in (("train", 24), ("val", 4)) for i in range(n)
    ]
    write_store(path, records, domains=("a",), attributes=("odd", "x"))
    return Store.open(path)


def test_training_can_leave_out_pictures_of_which_too_little_is_known(partly: Store) -> None:
    def chosen(**data: Any) -> list[str]:
        return list(feed(partly, domains=("a",), **data).ids["a"])

    both, all_known = [f"a/train/{i}" for i in range(2, 24, 3)], ("odd", "x")
    assert chosen(known=all_known) == both and len(chosen(known=("x",))) == 16 and len(chosen()) == 24
    few = chosen(known=all_known, limit=3)  # of those that are known, not the known ones of any three
    assert len(few) == 3 and set(few) < set(chosen(known=all_known, limit=5)) < set(both)
    for step in range(5):
        (batch,) = feed(partly, domains=("a",), known=all_known, limit=3).batches(step)
        assert batch.attributes is not None and not batch.attributes.isnan().any()
    assert len(chosen(split="val", known=("odd",))) == 4  # judges leave out what they do not know themselves


REFUSED: dict[str, Callable[[Store], object]] = {
    "joint batch of 6 does not divide over 4 ranks; take 8": lambda store: feed(store, 6, world=4),
    "rank 2 is not one of 0..1": lambda store: feed(store, world=2, rank=2),
    "no domain 'd'.*known: a, b, c": lambda store: feed(store, domains=("a", "d")),
    "domain 'b' has no val picture": lambda store: feed(store, split="val"),
    "no split 'valid'": lambda store: feed(store, split="valid"),
    "data.limit is 0": lambda store: feed(store, limit=0),
    r"data.known: the store .* has no attribute 'od'; did you mean 'odd'": lambda store: feed(store, known=("od",)),
    "data.short_side is 8, below data.size 16": lambda store: feed(store, short_side=8),
    "30 pixels do not divide into cells of 4; take 32": lambda store: Feed(store, Data(size=30), 4, 4, 0),
    "50 pixels do not divide into cells of 4": lambda store: fixed_batch(store, ["a/train/0"], 50, 4),
    "no picture 'z'": lambda store: fixed_batch(store, ["z"], 16, 4),
    "no domain 'a'": lambda store: fixed_batch(store, ["a/train/0"], 16, 4, domains=("b", "c")),
}


def test_where_nothing_is_known_of_a_domain_it_is_said(tmp_path: Path) -> None:
    records = [replace(picture(i, "a"), attributes={"x": 1} if i else {"odd": 0}) for i in range(4)]
    write_store(tmp_path, records, domains=("a",), attributes=("odd", "x"))
    with pytest.raises(ValueError, match="data.known leaves no training picture of 'a': of its 4 is known odd of 1, x of 3"):
        feed(Store.open(tmp_path), domains=("a",), known=("odd", "x"))


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(store: Store, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message](store)
