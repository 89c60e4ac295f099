"""Procedural worlds with exact ground truth, and how they become stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from recollect.data.schema import Record
from recollect.data.store import Manifest, Store, write_store
from recollect.data.worlds import streets


def build_streets(
    uri: str | os.PathLike[str],
    *,
    size: int = 64,
    train: int = 600,
    val: int = 48,
    test: int = 60,
    references: int = 6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Draw the `streets` world into a store; a store of just this world that is there already is kept.

    Args:
        train: unpaired pictures per domain.
        val, test: scenes, each drawn `references` times in every domain.
        progress: called with (pictures drawn, pictures in all).
    """
    source = f"streets v{streets.VERSION} size={size} train={train} val={val} test={test} references={references} seed={seed}"
    try:
        manifest = Store.open(uri).manifest
    except ValueError:
        pass
    else:
        if manifest.source == source:
            return manifest
        raise ValueError(f"{uri} holds another store ({manifest.source!r}); choose another place, or remove it")
    total = len(streets.DOMAINS) * (train + (val + test) * references)
    pictures = streets.records(size=size, train=train, val=val, test=test, references=references, seed=seed)
    return write_store(
        uri,
        _counted(pictures, total, progress),
        domains=streets.DOMAINS,
        classes=streets.CLASSES,
        regions=streets.REGIONS,
        source=source,
    )


def _counted(records: Iterable[Record], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Record]:
    for index, record in enumerate(records, start=1):
        yield record
        if progress is not None and (index % 100 == 0 or index == total):
            progress(index, total)
