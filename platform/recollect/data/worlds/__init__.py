"""Procedural worlds with exact ground truth, and how they become stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from recollect.data.schema import BACKGROUND, Record
from recollect.data.store import Manifest, Store, write_store
from recollect.data.worlds import faces, streets


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
    return _build(
        uri,
        streets.records(size=size, train=train, val=val, test=test, references=references, seed=seed),
        len(streets.DOMAINS) * (train + (val + test) * references),
        progress,
        domains=streets.DOMAINS,
        classes=streets.CLASSES,
        regions=streets.REGIONS,
        source=f"streets v{streets.VERSION} size={size} train={train} val={val} test={test} references={references} seed={seed}",
    )


def build_faces(
    uri: str | os.PathLike[str],
    *,
    size: int = 64,
    train: int = 2000,
    val: int = 60,
    test: int = 100,
    correlation: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Draw the `faces` world into a store; a store of just this world that is there already is kept.

    Args:
        train: faces to learn from, each drawn once.
        val, test: faces drawn in all twelve combinations, their own first.
        correlation: 0 for independent attributes, 1 for an imbalance like CelebA's.
        progress: called with (pictures drawn, pictures in all).
    """
    counts = f"train={train} val={val} test={test}"
    return _build(
        uri,
        faces.records(size=size, train=train, val=val, test=test, correlation=correlation, seed=seed),
        train + (val + test) * len(faces.COMBINATIONS),
        progress,
        domains=faces.DOMAINS,
        attributes=faces.ATTRIBUTES,
        regions=faces.REGIONS,
        source=f"faces v{faces.VERSION} size={size} {counts} correlation={float(correlation)} seed={seed}",
    )


def _build(
    uri: str | os.PathLike[str],
    records: Iterable[Record],
    total: int,
    progress: Callable[[int, int], None] | None,
    *,
    domains: tuple[str, ...],
    classes: tuple[str, ...] = (BACKGROUND,),
    attributes: tuple[str, ...] = (),
    regions: tuple[str, ...],
    source: str,
) -> Manifest:
    """Write a world's records, unless a store of the same `source` is there. Raises ValueError where another one is."""
    try:
        manifest = Store.open(uri).manifest
    except ValueError:
        counted = _counted(records, total, progress)
        return write_store(uri, counted, domains=domains, classes=classes, attributes=attributes, regions=regions, source=source)
    if manifest.source != source:
        raise ValueError(f"{uri} holds another store ({manifest.source!r}); choose another place, or remove it")
    return manifest


def _counted(records: Iterable[Record], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Record]:
    for index, record in enumerate(records, start=1):
        yield record
        if progress is not None and (index % 100 == 0 or index == total):
            progress(index, total)
