"""Several stores as one: data sets that share their classes become the domains of a single store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from recollect.data.schema import SPLITS, Record
from recollect.data.store import Manifest, Store, write_store


def join_stores(
    uris: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the pictures of all stores as one new store; the old ones stay as they are.

    Args:
        uris: the stores, at least two. They must have the same classes (in any order; the first's is kept) and regions. A domain
            that several have is one domain with the pictures of all. The new store has the attributes of all; a picture does
            not know those of other stores.
        out: where the new store goes; one that is there is replaced.
        progress: called with (done, total) after every picture.

    Ids stay as they are unless two stores share one: then all get the name of their store's folder in front. Scenes get
    the number of their store in front, as worlds of two seeds name different places alike. Raises ValueError when names do not
    agree, and when `out` is one of the stores.
    """
    stores = [Store.open(uri) for uri in uris]
    if len(stores) < 2:
        raise ValueError(f"join at least two stores, not {len(stores)}")
    places = [str(store.uri).rstrip("/") for store in stores]
    for place in places:
        if os.path.realpath(place) == os.path.realpath(str(os.fspath(out)).rstrip("/")):
            raise ValueError(f"{place} is one of the stores to join; write the new one elsewhere")
    first = stores[0]
    for store in stores[1:]:
        _require_same(first, store)
    labels = [place.rpartition("/")[2] for place in places]
    prefixes = _prefixes(stores, labels)
    total, done = sum(map(len, stores)), 0

    def counted() -> Iterator[Record]:
        nonlocal done
        for record in _records(stores, prefixes):
            yield record
            done += 1
            if progress:
                progress(done, total)

    return write_store(
        out,
        counted(),
        domains=tuple(dict.fromkeys(name for store in stores for name in store.domains.names)),
        classes=first.domains.classes,
        attributes=tuple(dict.fromkeys(name for store in stores for name in store.domains.attributes)),
        regions=first.domains.regions,
        source=" + ".join(store.manifest.source or label for store, label in zip(stores, labels, strict=True)),
    )


def _require_same(first: Store, other: Store) -> None:
    pairs = {
        "classes": (sorted(first.domains.classes), sorted(other.domains.classes)),
        "regions": (list(first.domains.regions), list(other.domains.regions)),  # masks hold indices: the order matters
    }
    for kind, (one, two) in pairs.items():
        if one != two:
            raise ValueError(
                f"the stores do not have the same {kind}: {first.uri} has {', '.join(one) or 'none'}; {other.uri} has "
                f"{', '.join(two) or 'none'}{'; make them with one class map (--classes)' if kind == 'classes' else ''}"
            )


def _ids(store: Store) -> Iterator[str]:
    for split in SPLITS:
        for domain in store.domains.names:
            yield from store.ids(split, domain)


def _prefixes(stores: Sequence[Store], labels: Sequence[str]) -> list[str]:
    """What goes before the ids of each store: nothing, or its name where ids would meet."""
    seen: set[str] = set()
    for store in stores:
        own = set(_ids(store))
        if not seen.isdisjoint(own):
            if len(set(labels)) < len(labels):
                both = f"{min(seen & own)!r}, and two of them are both called {Counter(labels).most_common(1)[0][0]!r}"
                raise ValueError(f"the stores share ids such as {both}; rename one, or leave out what is there twice")
            return [f"{label}/" for label in labels]
        seen |= own
    return [""] * len(stores)


def _records(stores: Sequence[Store], prefixes: Sequence[str]) -> Iterator[Record]:
    for number, (store, prefix) in enumerate(zip(stores, prefixes, strict=True)):
        for id in _ids(store):
            record = store.record(id)
            scene = record.scene and f"{number}/{record.scene}"
            yield replace(record, id=f"{prefix}{id}", scene=scene)
